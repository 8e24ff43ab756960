//! `echo`: what one message in and out costs a server that sends back what it gets.

use anyhow::Result;

use super::rounds;
use crate::args::Echo;
use crate::ask::Ask;
use crate::plan::Mode;
use crate::report::Report;
use crate::topology::Rooms;

pub(crate) fn measure(echo: &Echo) -> Result<Vec<Report>> {
    let Echo { common, load, connections, seconds, closed } = echo;
    let rooms = Rooms::Equal { rooms: *connections, members: 1, publishers: 1 };
    let ask = Ask {
        mode: Mode::Echo,
        pace: closed.pace(),
        join: false,
        ..Ask::chatting("echo", common, rooms, load, *seconds)
    };
    rounds(&ask)
}
