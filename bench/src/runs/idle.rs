//! `idle`: what a connection costs that does nothing.

use anyhow::Result;

use super::{Ask, publish};
use crate::args::Idle;
use crate::plan::Mode;
use crate::schedule::Topology;

pub(crate) fn run(idle: &Idle) -> Result<bool> {
    let report = Ask {
        run: "idle",
        common: &idle.common,
        mode: Mode::Still,
        join: idle.join,
        topology: Topology { rooms: idle.connections, members: 1, publishers: 1 },
        rate: 0.0,
        size: 0,
        settle: idle.settle,
        warm_up: 0.0,
        seconds: idle.hold,
        drain: 0.0,
        watches_memory: false,
    }
    .run()?;
    publish(&report, &idle.common)
}
