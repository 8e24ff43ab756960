//! `fanout`: rooms of equal size at a fixed rate; what a delivery costs and how long it takes.

use anyhow::Result;

use super::{WARM_UP_SECS, publish, rounds};
use crate::args::Fanout;
use crate::ask::Ask;
use crate::topology::Rooms;

pub(crate) fn run(fanout: &Fanout) -> Result<bool> {
    let Fanout { common, load, rooms, members, publishers, seconds, closed } = fanout;
    let rooms = Rooms::Equal { rooms: *rooms, members: *members, publishers: *publishers.min(members) };
    let ask = Ask {
        pace: closed.pace(),
        rate: load.rate,
        size: load.size,
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: *seconds,
        drain: load.drain,
        ..Ask::of("fanout", common, rooms)
    };
    publish(&rounds(&ask)?, common)
}
