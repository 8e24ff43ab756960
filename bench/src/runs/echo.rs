//! `echo`: what one message in and out costs a server that sends back what it gets.

use anyhow::Result;

use super::{Ask, publish};
use crate::args::Echo;
use crate::plan::Mode;
use crate::schedule::Topology;

/// Seconds that are not measured, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 2.0;

pub(crate) fn run(echo: &Echo) -> Result<bool> {
    let Echo { common, load, connections, seconds } = echo;
    let report = Ask {
        run: "echo",
        common,
        mode: Mode::Echo,
        join: false,
        topology: Topology { rooms: *connections, members: 1, publishers: 1 },
        rate: load.rate,
        size: load.size,
        settle: 1.0,
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: *seconds,
        drain: load.drain,
        watches_memory: false,
    }
    .run()?;
    publish(&report, common)
}
