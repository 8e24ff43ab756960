//! `roomwire-bench`: open-loop load, and what it costs the server.
//!
//! Reading order: `args` (what can be asked), `runs` (what each run asks), `ask` (one run from plan to report),
//! `coordinator` (one process that starts workers and watches the server), `worker` (the processes that hold the
//! connections), `agenda` (what they do when), `swarm` (their event loop), `observer` (what they make of what comes),
//! `ledger` (nothing lost, doubled or out of order), `load` (the verdict), `report` (what is printed and written); `compare`
//! and `suite` make many runs, `capacity` plans with what they cost;
//! `agent` lends a run the workers of other machines.
//! What it never does: know anything of the server but the wire protocol and its pid.

mod agenda;
mod agent;
mod args;
mod ask;
mod backends;
mod book;
mod capacity;
mod charts;
mod compare;
mod control;
mod coordinator;
mod dialect;
mod diff;
mod environment;
mod floor;
mod frames;
mod histogram;
mod html;
mod layout;
mod ledger;
mod load;
mod nameless;
mod observer;
mod own_use;
mod payload;
mod peer;
mod plan;
mod report;
mod runs;
mod schedule;
mod server_process;
mod server_usage;
mod statistics;
mod suite;
mod swarm;
mod sys;
mod syscalls;
mod table;
mod timed;
mod token;
mod topology;
mod worker;
mod zipf;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(run) => runs::run(&run),
        Command::Compare(compare) => compare::run(&compare),
        Command::Suite(suite) => suite::run(&suite),
        Command::FloorServer { addr } => floor::serve(addr),
        Command::Diff(files) => diff::run(&files),
        Command::Table(files) => table::run(&files),
        Command::Agent(agent) => agent::run(&agent),
        Command::Plan(plan) => capacity::run(&plan),
        Command::Report(merge) => runs::merge(&merge),
        Command::Man { folder } => man(&folder).map(|()| true),
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

/// The man pages of the package, from the same words as `--help`.
fn man(folder: &Path) -> Result<()> {
    let write =
        || std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Arguments::command(), folder));
    write().with_context(|| format!("cannot write man pages to {}", folder.display()))
}
