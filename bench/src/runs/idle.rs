//! `idle`: what a connection costs that does nothing; for several counts of connections, how memory grows with them.

use anyhow::Result;

use crate::args::Idle;
use crate::ask::Ask;
use crate::plan::Mode;
use crate::report::Report;
use crate::topology::Rooms;

pub(crate) fn measure(idle: &Idle) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for connections in &idle.connections {
        let rooms = Rooms::Equal { rooms: *connections, members: 1, publishers: 1 };
        let ask = Ask {
            mode: Mode::Still,
            join: idle.join,
            settle: idle.settle,
            seconds: idle.hold,
            ..Ask::of("idle", &idle.common, rooms)
        };
        reports.extend(super::rounds(&ask)?);
    }
    Ok(reports)
}
