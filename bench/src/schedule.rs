//! Who publishes what, and when: arithmetic over the topology, the same in every worker, so that each knows what its
//! members have to receive without being told. `agenda`, `layout` and `observer` call it.

use crate::topology::{Rooms, Topology};
use crate::zipf::{Zipf, fraction};

/// Message `k` is meant to leave `k / rate` seconds after the start. Rooms of equal size take turns, others are drawn
/// by their size; a room's publishers take turns.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// Messages a second, all publishers together.
    rate: f64,
    /// How many messages there are.
    pub(crate) messages: u64,
    rooms: u32,
    /// How rooms are drawn, where they do not take turns.
    drawn: Option<(Zipf, u64)>,
    /// How many messages go to each room.
    to_rooms: Vec<u64>,
}

/// One message of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) room: u32,
    /// Numbered over all rooms.
    pub(crate) publisher: u32,
    /// The publisher's own count, from 0.
    pub(crate) number: u32,
    /// Nanoseconds after the start.
    pub(crate) after_ns: u64,
}

/// Where somebody is who goes through a schedule from its start.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    k: u64,
    /// How many messages each room has had.
    of_room: Vec<u32>,
}

impl Schedule {
    pub(crate) fn new(rooms: Rooms, rate: f64, messages: u64) -> Schedule {
        let (count, drawn) = match rooms {
            Rooms::Equal { rooms, .. } => (rooms, None),
            Rooms::Zipf { rooms, exponent, seed, .. } => (rooms, Some((Zipf::new(rooms, exponent), seed))),
        };
        let mut schedule = Schedule { rate, messages, rooms: count, drawn, to_rooms: vec![0; count as usize] };
        for k in 0..messages {
            let room = schedule.room(k);
            schedule.to_rooms[room as usize] += 1;
        }
        schedule
    }

    /// The room that message `k` goes to.
    pub(crate) fn room(&self, k: u64) -> u32 {
        match &self.drawn {
            Some((zipf, seed)) => zipf.rank(fraction(*seed, k)) as u32,
            // The remainder is below a u32.
            None => (k % u64::from(self.rooms)) as u32,
        }
    }

    pub(crate) fn walk(&self) -> Walk {
        Walk { k: 0, of_room: vec![0; self.rooms as usize] }
    }

    /// How many messages go to `room`.
    pub(crate) fn messages_to(&self, room: u32) -> u64 {
        self.to_rooms[room as usize]
    }

    /// How many messages `publisher` sends.
    pub(crate) fn messages_of(&self, topology: &Topology, publisher: u32) -> u64 {
        let Some((room, at)) = topology.room_of_publisher(publisher) else { return 0 };
        self.messages_to(room).saturating_sub(u64::from(at)).div_ceil(u64::from(topology.publishers(room)))
    }
}

impl Walk {
    /// The next message, or `None` behind the last.
    pub(crate) fn next(&mut self, schedule: &Schedule, topology: &Topology) -> Option<Planned> {
        if self.k >= schedule.messages {
            return None;
        }
        let room = schedule.room(self.k);
        let of_room = self.of_room[room as usize];
        self.of_room[room as usize] += 1;
        let publishers = topology.publishers(room);
        let after_ns = (self.k as f64 * 1e9 / schedule.rate) as u64;
        self.k += 1;
        let publisher = topology.publisher(room, of_room % publishers);
        Some(Planned { room, publisher, number: of_room / publishers, after_ns })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::topology::tests::ZIPF;

    fn all(rooms: Rooms, rate: f64, messages: u64) -> (Topology, Schedule, Vec<Planned>) {
        let (topology, schedule) = (Topology::new(rooms), Schedule::new(rooms, rate, messages));
        let mut walk = schedule.walk();
        let planned = std::iter::from_fn(|| walk.next(&schedule, &topology)).collect();
        (topology, schedule, planned)
    }

    #[test]
    fn counts_by_formula_equal_counts_by_walking() {
        let equal = |rooms, members, publishers| Rooms::Equal { rooms, members, publishers };
        for (rooms, messages) in [
            (equal(1, 1, 1), 5),
            (equal(3, 4, 2), 100),
            (equal(7, 5, 5), 33),
            (equal(200, 10, 10), 1_999),
            (equal(10, 2, 1), 0),
            (equal(10, 2, 2), 7),
            (ZIPF, 5_000),
        ] {
            let (topology, schedule, all) = all(rooms, 100.0, messages);
            assert_eq!(all.len() as u64, messages);
            let mut by_room = HashMap::new();
            let mut by_publisher = HashMap::new();
            for planned in all {
                *by_room.entry(planned.room).or_insert(0) += 1;
                let next: &mut u64 = by_publisher.entry(planned.publisher).or_insert(0);
                assert_eq!(u64::from(planned.number), *next, "a publisher counts without a gap");
                *next += 1;
                let connection = topology.connection_of(planned.publisher);
                assert!(topology.rooms_of(connection).contains(&planned.room), "publishers are members");
            }
            for room in 0..topology.rooms() {
                assert_eq!(schedule.messages_to(room), by_room.get(&room).copied().unwrap_or(0));
            }
            for publisher in 0..topology.all_publishers() {
                let walked = by_publisher.get(&publisher).copied().unwrap_or(0);
                assert_eq!(schedule.messages_of(&topology, publisher), walked);
            }
        }
    }

    #[test]
    fn messages_are_spread_evenly_over_time() {
        let (_, _, all) = all(Rooms::Equal { rooms: 2, members: 3, publishers: 3 }, 20.0, 200);
        assert_eq!((all[0].after_ns, all[1].after_ns, all[199].after_ns), (0, 50_000_000, 9_950_000_000));
    }

    #[test]
    fn rooms_by_zipf_get_messages_by_their_size() {
        let (_, schedule, _) = all(ZIPF, 100.0, 20_000);
        assert!(schedule.messages_to(0) > 10 * schedule.messages_to(39));
        assert!((0..40).all(|room| schedule.messages_to(room) > 0));
    }
}
