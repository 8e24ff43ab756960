//! `soak`: minutes of chatting; whether memory drifts and the ledger stays clean.

use anyhow::Result;

use super::{Ask, publish};
use crate::args::Soak;
use crate::plan::Mode;
use crate::schedule::Topology;

/// Seconds until a server's pools and caches have grown, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 60.0;

pub(crate) fn run(soak: &Soak) -> Result<bool> {
    let Soak { common, load, rooms, members, minutes, drift_max } = soak;
    let mut report = Ask {
        run: "soak",
        common,
        mode: Mode::Chat,
        join: true,
        topology: Topology { rooms: *rooms, members: *members, publishers: *members },
        rate: load.rate,
        size: load.size,
        settle: 1.0,
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: minutes * 60.0,
        drain: load.drain,
        watches_memory: true,
    }
    .run()?;
    if let Some(drift) = report.drift.as_ref().filter(|drift| drift.percent > *drift_max) {
        let reason = format!("memory grew by {:.2} % after warm-up, more than {drift_max} %", drift.percent);
        report.void.push(reason);
    }
    publish(&report, common)
}
