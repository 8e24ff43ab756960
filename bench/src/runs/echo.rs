//! `echo`: what one message in and out costs a server that sends back what it gets.

use anyhow::Result;

use super::{WARM_UP_SECS, publish, rounds};
use crate::args::Echo;
use crate::ask::Ask;
use crate::plan::Mode;
use crate::topology::Rooms;

pub(crate) fn run(echo: &Echo) -> Result<bool> {
    let Echo { common, load, connections, seconds, closed } = echo;
    let rooms = Rooms::Equal { rooms: *connections, members: 1, publishers: 1 };
    let ask = Ask {
        mode: Mode::Echo,
        pace: closed.pace(),
        join: false,
        rate: load.rate,
        size: load.size,
        warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: *seconds,
        drain: load.drain,
        ..Ask::of("echo", common, rooms)
    };
    publish(&rounds(&ask)?, common)
}
