//! `storm`: all but the publishers lose their connections and come back at once. How long until everybody is back, what a
//! connection costs that comes with token check and join, and whether resume leaves no gap.

use anyhow::Result;

use super::{WARM_UP_SECS, publish, rounds};
use crate::args::Storm;
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Move};
use crate::topology::Rooms;

pub(crate) fn run(storm: &Storm) -> Result<bool> {
    let Storm { common, load, rooms, members, over, seconds } = storm;
    let members = (*members).max(2);
    let movers = rooms.saturating_mul(members - 1);
    let warm_up = load.warm_up.unwrap_or(WARM_UP_SECS);
    let rooms = Rooms::Equal { rooms: *rooms, members, publishers: 1 };
    let extras = Extras {
        moves: vec![Move::Reconnect],
        move_count: movers.into(),
        move_from_ns: nanoseconds(warm_up),
        move_every_ns: nanoseconds(*over) / u64::from(movers.max(1)),
        ..Extras::default()
    };
    let ask = Ask {
        extras,
        rate: load.rate,
        size: load.size,
        warm_up,
        seconds: *seconds,
        drain: load.drain,
        ..Ask::of("storm", common, rooms)
    };
    publish(&rounds(&ask)?, common)
}
