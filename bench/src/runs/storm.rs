//! `storm`: all but the publishers lose their connections and come back at once. How long until everybody is back, what a
//! connection costs that comes with token check and join, and whether resume leaves no gap.

use anyhow::Result;

use super::rounds;
use crate::args::Storm;
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Move};
use crate::report::Report;
use crate::topology::Rooms;

pub(crate) fn measure(storm: &Storm) -> Result<Vec<Report>> {
    let Storm { common, load, rooms, members, over, seconds } = storm;
    let members = (*members).max(2);
    let movers = rooms.saturating_mul(members - 1);
    let rooms = Rooms::Equal { rooms: *rooms, members, publishers: 1 };
    let mut ask = Ask::chatting("storm", common, rooms, load, *seconds);
    ask.extras = Extras {
        moves: vec![Move::Reconnect],
        move_count: movers.into(),
        move_from_ns: nanoseconds(ask.warm_up),
        move_every_ns: nanoseconds(*over) / u64::from(movers.max(1)),
        ..Extras::default()
    };
    rounds(&ask)
}
