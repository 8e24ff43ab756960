//! `soak`: minutes of chatting; whether memory drifts and the ledger stays clean.

use anyhow::Result;

use super::publish;
use crate::args::Soak;
use crate::ask::Ask;
use crate::topology::Rooms;

/// Seconds until a server's pools and caches have grown, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 60.0;

pub(crate) fn run(soak: &Soak) -> Result<bool> {
    let Soak { common, load, rooms, members, minutes, drift_max } = soak;
    let rooms = Rooms::Equal { rooms: *rooms, members: *members, publishers: *members };
    let ask = Ask {
        rate: load.rate,
        size: load.size,
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: minutes * 60.0,
        drain: load.drain,
        watches_memory: true,
        ..Ask::of("soak", common, rooms)
    };
    let mut reports = super::rounds(&ask)?;
    for report in &mut reports {
        if let Some(drift) = report.drift.as_ref().filter(|drift| drift.percent > *drift_max) {
            let reason = format!("memory grew by {:.2} % after warm-up, more than {drift_max} %", drift.percent);
            report.void.push(reason);
        }
    }
    publish(&reports, common)
}
