//! `history`: joins of rooms that hold messages. How long until somebody new, and then a member who asks again, has the
//! room's newest messages, from wherever the server has them.

use anyhow::{Result, bail};

use super::rounds;
use crate::args::History;
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Mode, Move};
use crate::report::Report;
use crate::topology::Rooms;

pub(crate) fn measure(history: &History) -> Result<Vec<Report>> {
    let History { common, rooms, reads, rate, messages, drain } = history;
    if !rate.is_finite() || *rate <= 0.0 {
        bail!("--rate has to be above 0");
    }
    if common.run_id.is_none() {
        bail!("--run-id has to name the run that has written to the rooms");
    }
    if !common.dialect.resumes() {
        bail!("a server of this dialect keeps no history");
    }
    let move_count = u64::from(*rooms) * u64::from(*reads);
    let extras = Extras {
        moves: vec![Move::Read],
        move_count,
        move_every_ns: nanoseconds(1.0 / rate),
        history: *messages,
        ..Extras::default()
    };
    let ask = Ask {
        mode: Mode::Still,
        join: false,
        extras,
        seconds: move_count as f64 / rate,
        drain: *drain,
        // Nobody publishes: all of them may move.
        ..Ask::of("history", common, Rooms::Equal { rooms: *rooms, members: 1, publishers: 0 })
    };
    rounds(&ask)
}
