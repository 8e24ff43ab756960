//! `soak`: minutes of chatting; whether memory drifts and the ledger stays clean.

use anyhow::Result;

use crate::args::Soak;
use crate::ask::Ask;
use crate::report::Report;
use crate::topology::Rooms;

/// Seconds until a server's pools and caches have grown, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 60.0;

pub(crate) fn measure(soak: &Soak) -> Result<Vec<Report>> {
    let Soak { common, load, rooms, members, minutes, drift_max } = soak;
    let rooms = Rooms::Equal { rooms: *rooms, members: *members, publishers: *members };
    let ask = Ask {
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        watches_memory: true,
        ..Ask::chatting("soak", common, rooms, load, minutes * 60.0)
    };
    let mut reports = super::rounds(&ask)?;
    for report in &mut reports {
        if let Some(drift) = report.drift.as_ref().filter(|drift| drift.percent > *drift_max) {
            let reason = format!("memory grew by {:.2} % after warm-up, more than {drift_max} %", drift.percent);
            report.void.push(reason);
        }
    }
    Ok(reports)
}
