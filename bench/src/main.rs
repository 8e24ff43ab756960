//! `roomwire-bench`: open-loop load, and what it costs the server.
//!
//! Reading order: `args` (what can be asked), `runs` (what each run asks of workers and server), `coordinator` (one
//! process that starts workers and watches the server), `worker` (the processes that hold the connections), `swarm` (their
//! event loop), `ledger` (nothing lost, doubled or out of order), `report` (what is printed and written).
//! What it never does: know anything of the server but the wire protocol and its pid.

mod args;
mod control;
mod coordinator;
mod environment;
mod frames;
mod histogram;
mod ledger;
mod observer;
mod payload;
mod plan;
mod report;
mod runs;
mod schedule;
mod server_process;
mod server_usage;
mod swarm;
mod sys;
mod table;
mod token;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Idle(idle) => runs::idle::run(&idle),
        Command::Fanout(fanout) => runs::fanout::run(&fanout),
        Command::Echo(echo) => runs::echo::run(&echo),
        Command::Soak(soak) => runs::soak::run(&soak),
        Command::Table(files) => table::run(&files),
        Command::Worker => worker::run().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("roomwire-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
