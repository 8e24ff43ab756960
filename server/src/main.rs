//! The `roomwire` binary: its allocator, its panic hook, its exit status. Everything else is in the library.

use clap::Parser as _;
use roomwire::{cli, logs};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    logs::abort_on_panic();
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                eprintln!("roomwire: {line}");
            }
            ExitCode::from(failure.status)
        }
    }
}
