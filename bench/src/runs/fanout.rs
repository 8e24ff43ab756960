//! `fanout`: rooms of equal size at a fixed rate; what a delivery costs and how long it takes.

use anyhow::Result;

use super::rounds;
use crate::args::Fanout;
use crate::ask::Ask;
use crate::report::Report;
use crate::topology::Rooms;

pub(crate) fn measure(fanout: &Fanout) -> Result<Vec<Report>> {
    let Fanout { common, load, rooms, members, publishers, seconds, closed } = fanout;
    let rooms = Rooms::Equal { rooms: *rooms, members: *members, publishers: *publishers.min(members) };
    let ask = Ask { pace: closed.pace(), ..Ask::chatting("fanout", common, rooms, load, *seconds) };
    rounds(&ask)
}
