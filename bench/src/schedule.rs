//! Who publishes what, and when: pure arithmetic over the plan, the same in every worker, so that each knows what its
//! members have to receive without being told. `worker` and `runs` call it.

use serde::{Deserialize, Serialize};

/// Rooms of equal size. Connection `c` is in room `c / members`; a room's first `publishers` members publish in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topology {
    pub(crate) rooms: u32,
    /// Connections in each room.
    pub(crate) members: u32,
    /// Of which this many publish; 1 to `members`.
    pub(crate) publishers: u32,
}

impl Topology {
    pub(crate) fn connections(&self) -> u32 {
        self.rooms.saturating_mul(self.members)
    }

    pub(crate) fn room_of(&self, connection: u32) -> u32 {
        connection / self.members
    }

    /// The connection that publishes as `publisher` (numbered over all rooms).
    pub(crate) fn connection_of(&self, publisher: u32) -> u32 {
        publisher / self.publishers * self.members + publisher % self.publishers
    }

    /// Which of its room's publishers `publisher` is, or `None` if it belongs to another room.
    pub(crate) fn publisher_in(&self, room: u32, publisher: u32) -> Option<u32> {
        (publisher / self.publishers == room).then_some(publisher % self.publishers)
    }
}

/// Message `k` is meant to leave `k / rate` seconds after the start; rooms take turns, and a room's publishers too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) topology: Topology,
    /// Messages a second, all publishers together.
    pub(crate) rate: f64,
    /// How many messages there are.
    pub(crate) messages: u64,
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

impl Schedule {
    /// The schedule that sends for `seconds` at `rate`.
    pub(crate) fn lasting(topology: Topology, rate: f64, seconds: f64) -> Schedule {
        Schedule { topology, rate, messages: (rate * seconds).round() as u64 }
    }

    /// Message `k`; `k` has to be below `messages`.
    pub(crate) fn message(&self, k: u64) -> Planned {
        let rooms = u64::from(self.topology.rooms);
        let publishers = u64::from(self.topology.publishers);
        let room = k % rooms;
        let of_room = k / rooms;
        // Both remainders are below a u32; a publisher's count overflows only after years at any rate.
        Planned {
            room: room as u32,
            publisher: (room * publishers + of_room % publishers) as u32,
            number: (of_room / publishers) as u32,
            after_ns: (k as f64 * 1e9 / self.rate) as u64,
        }
    }

    /// How many messages go to `room`.
    pub(crate) fn messages_to(&self, room: u32) -> u64 {
        let (rooms, room) = (u64::from(self.topology.rooms), u64::from(room));
        self.messages.saturating_sub(room).div_ceil(rooms)
    }

    /// How many messages `publisher` sends.
    pub(crate) fn messages_of(&self, publisher: u32) -> u64 {
        let publishers = self.topology.publishers;
        let of_room = self.messages_to(publisher / publishers);
        of_room.saturating_sub(u64::from(publisher % publishers)).div_ceil(u64::from(publishers))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn counts_by_formula_equal_counts_by_walking() {
        for (rooms, members, publishers, messages) in
            [(1, 1, 1, 5), (3, 4, 2, 100), (7, 5, 5, 33), (200, 10, 10, 1_999), (10, 2, 1, 0), (10, 2, 2, 7)]
        {
            let topology = Topology { rooms, members, publishers };
            let schedule = Schedule { topology, rate: 100.0, messages };
            let mut by_room = HashMap::new();
            let mut by_publisher = HashMap::new();
            for k in 0..messages {
                let planned = schedule.message(k);
                *by_room.entry(planned.room).or_insert(0) += 1;
                let next: &mut u64 = by_publisher.entry(planned.publisher).or_insert(0);
                assert_eq!(u64::from(planned.number), *next, "a publisher counts without a gap");
                *next += 1;
                let connection = topology.connection_of(planned.publisher);
                assert_eq!(topology.room_of(connection), planned.room, "publishers are members");
                assert!(topology.publisher_in(planned.room, planned.publisher).is_some());
            }
            for room in 0..rooms {
                assert_eq!(schedule.messages_to(room), by_room.get(&room).copied().unwrap_or(0));
            }
            for publisher in 0..rooms * publishers {
                assert_eq!(schedule.messages_of(publisher), by_publisher.get(&publisher).copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn messages_are_spread_evenly_over_time() {
        let topology = Topology { rooms: 2, members: 3, publishers: 3 };
        let schedule = Schedule::lasting(topology, 20.0, 10.0);
        assert_eq!(schedule.messages, 200);
        assert_eq!(schedule.message(0).after_ns, 0);
        assert_eq!(schedule.message(1).after_ns, 50_000_000);
        assert_eq!(schedule.message(199).after_ns, 9_950_000_000);
    }

    #[test]
    fn a_publisher_of_another_room_is_a_stranger() {
        let topology = Topology { rooms: 2, members: 3, publishers: 2 };
        assert_eq!(topology.publisher_in(1, 3), Some(1));
        assert_eq!(topology.publisher_in(0, 3), None);
        assert_eq!(topology.connection_of(3), 4);
    }
}
