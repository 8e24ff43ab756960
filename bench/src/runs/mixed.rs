//! `mixed`: a chat product. Room sizes by Zipf, users in several rooms, messages, typing, receipts, presence, and people
//! who come and go, all at once.

use anyhow::{Result, bail};

use super::rounds;
use crate::args::Mixed;
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Move};
use crate::report::Report;
use crate::topology::Rooms;

/// Members of a room that write; the others read, and may come and go.
const PUBLISHERS_MAX: u32 = 2;

pub(crate) fn measure(mixed: &Mixed) -> Result<Vec<Report>> {
    let Mixed { common, load, connections, rooms, memberships, exponent, seed, .. } = mixed;
    if !exponent.is_finite() || !(0.0..=4.0).contains(exponent) {
        bail!("--exponent has to be from 0 to 4");
    }
    if *connections < 2 || memberships > rooms {
        bail!("a mixed run needs two connections or more, and no more --memberships than --rooms");
    }
    let rooms = Rooms::Zipf {
        rooms: *rooms,
        connections: *connections,
        memberships: *memberships,
        exponent: *exponent,
        publishers_max: PUBLISHERS_MAX,
        seed: *seed,
    };
    let seconds = mixed.minutes * 60.0;
    let mut ask = Ask::chatting("mixed", common, rooms, load, seconds);
    let reconnects = mixed.reconnects.max(0.0);
    ask.extras = Extras {
        moves: vec![Move::Reconnect],
        move_count: (reconnects * seconds) as u64,
        move_from_ns: nanoseconds(ask.warm_up),
        move_every_ns: if reconnects > 0.0 { nanoseconds(1.0 / reconnects) } else { 0 },
        typing_per_second: mixed.typing,
        receipts_per_second: mixed.receipts,
        watched: mixed.watched,
        ..Extras::default()
    };
    rounds(&ask)
}
