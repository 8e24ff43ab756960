//! `fanout`: rooms of equal size at a fixed rate; what a delivery costs and how long it takes.

use anyhow::Result;

use super::{Ask, publish};
use crate::args::Fanout;
use crate::plan::Mode;
use crate::schedule::Topology;

/// Seconds that are not measured, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 2.0;

pub(crate) fn run(fanout: &Fanout) -> Result<bool> {
    let Fanout { common, load, rooms, members, publishers, seconds } = fanout;
    let report = Ask {
        run: "fanout",
        common,
        mode: Mode::Chat,
        join: true,
        topology: Topology { rooms: *rooms, members: *members, publishers: *publishers.min(members) },
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
