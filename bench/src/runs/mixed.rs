//! `mixed`: a chat product. Room sizes by Zipf, users in several rooms, messages, typing, receipts, presence, and people
//! who come and go, all at once.

use anyhow::{Result, bail};

use super::rounds;
use crate::args::{Load, Mixed};
use crate::ask::{Ask, nanoseconds};
use crate::plan::{Extras, Move};
use crate::report::Report;
use crate::schedule::Schedule;
use crate::topology::{Rooms, Topology};

/// Members of a room that write; the others read, and may come and go.
const PUBLISHERS_MAX: u32 = 2;
/// Messages a second, unless the command line says otherwise. Rooms are drawn by their size, so a message reaches far more
/// members than an average room has: with the sizes below it is 285, and a server of one core has to send 57,000 a second.
const RATE: f64 = 100.0;
/// So many draws say how many members a message reaches.
const DRAWS: u64 = 10_000;

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
    let load = Load { rate: load.rate.or(Some(RATE)), ..load.clone() };
    let mut ask = Ask::chatting("mixed", common, rooms, &load, seconds);
    let to_rooms = ask.rate + mixed.typing + mixed.receipts;
    eprintln!("mixed: {:.0} deliveries a second, typing and receipts among them", to_rooms * receivers(rooms));
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

/// How many members a message reaches on average.
fn receivers(rooms: Rooms) -> f64 {
    let (topology, drawn) = (Topology::new(rooms), Schedule::new(rooms, 1.0, DRAWS));
    let of_room = |room| drawn.messages_to(room) * topology.members(room).len() as u64;
    (0..topology.rooms()).map(of_room).sum::<u64>() as f64 / DRAWS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_more_than_an_average_room_has() {
        let rooms = |exponent| Rooms::Zipf {
            rooms: 500,
            connections: 2_000,
            memberships: 4,
            exponent,
            publishers_max: PUBLISHERS_MAX,
            seed: 1,
        };
        assert!((receivers(rooms(0.0)) - 16.0).abs() < 0.1);
        assert!((250.0..320.0).contains(&receivers(rooms(1.0))), "{}", receivers(rooms(1.0)));
    }
}
