//! Who is in which room and who publishes there: tables made from a few numbers, the same in every worker, so that each
//! knows what its members have to receive without being told. `schedule`, `observer` and `worker` read them.

use serde::{Deserialize, Serialize};

use crate::zipf::{Zipf, mix};

/// What rooms there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rooms {
    /// Rooms of equal size; each connection is in one.
    Equal {
        rooms: u32,
        /// Connections in each room.
        members: u32,
        /// Of which this many publish; 1 to `members`.
        publishers: u32,
    },
    /// Few large rooms and many small ones; a connection is in several.
    Zipf {
        rooms: u32,
        connections: u32,
        /// Rooms of a connection, on average.
        memberships: u32,
        exponent: f64,
        /// The most members of a room that publish.
        publishers_max: u32,
        seed: u64,
    },
}

/// See the module. Rooms, connections and publishers are numbered from 0.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    connections: u32,
    /// The size of every room, where it is one.
    equal_members: Option<u32>,
    /// Where each room's members begin in `members`; one more at the end.
    member_starts: Vec<u32>,
    members: Vec<u32>,
    /// Where each room's publishers begin in the count over all rooms; one more at the end.
    publisher_starts: Vec<u32>,
    /// Where each connection's rooms begin in `joined`; one more at the end.
    joined_starts: Vec<u32>,
    joined: Vec<u32>,
}

impl Topology {
    pub(crate) fn new(wanted: Rooms) -> Topology {
        match wanted {
            Rooms::Equal { rooms, members, publishers } => {
                let sizes = vec![u64::from(members); rooms as usize];
                let connections = Topology::connections_of(wanted);
                let topology = Topology::of(connections, &sizes, publishers, |room, at| room * members + at as u32);
                Topology { equal_members: Some(members), ..topology }
            }
            Rooms::Zipf { rooms, connections, memberships, exponent, publishers_max, seed } => {
                let total = u64::from(connections) * u64::from(memberships);
                let sizes = Zipf::new(rooms, exponent).parts(total, 2, u64::from(connections));
                Topology::of(connections, &sizes, publishers_max, |room, at| {
                    walk(seed ^ u64::from(room), u64::from(connections), at) as u32
                })
            }
        }
    }

    /// How many connections `rooms` have, without making the tables.
    pub(crate) fn connections_of(rooms: Rooms) -> u32 {
        match rooms {
            Rooms::Equal { rooms, members, .. } => rooms.saturating_mul(members),
            Rooms::Zipf { connections, .. } => connections,
        }
    }

    /// Rooms of `sizes`; member `at` of a room is the connection that `member` says.
    fn of(connections: u32, sizes: &[u64], publishers_max: u32, member: impl Fn(u32, u64) -> u32) -> Topology {
        let (mut member_starts, mut publisher_starts) = (vec![0], vec![0]);
        let mut members = Vec::new();
        let mut counts = vec![0_u32; connections as usize + 1];
        let mut publishers = 0;
        for (room, size) in (0_u32..).zip(sizes) {
            let of_room = (0..*size).map(|at| member(room, at));
            members.extend(of_room.inspect(|connection| counts[*connection as usize] += 1));
            member_starts.push(members.len() as u32);
            publishers += publishers_max.min(*size as u32);
            publisher_starts.push(publishers);
        }
        let mut joined_starts = Vec::with_capacity(counts.len());
        let mut sum = 0;
        for count in &counts {
            joined_starts.push(sum);
            sum += count;
        }
        let mut next = joined_starts.clone();
        let mut joined = vec![0; members.len()];
        for room in 0..sizes.len() {
            for connection in &members[member_starts[room] as usize..member_starts[room + 1] as usize] {
                let slot = &mut next[*connection as usize];
                joined[*slot as usize] = room as u32;
                *slot += 1;
            }
        }
        Topology { connections, equal_members: None, member_starts, members, publisher_starts, joined_starts, joined }
    }

    pub(crate) fn connections(&self) -> u32 {
        self.connections
    }

    pub(crate) fn rooms(&self) -> u32 {
        self.member_starts.len() as u32 - 1
    }

    /// The connections in `room`; its publishers are the first of them.
    pub(crate) fn members(&self, room: u32) -> &[u32] {
        let room = room as usize;
        &self.members[self.member_starts[room] as usize..self.member_starts[room + 1] as usize]
    }

    /// The rooms of `connection`, in rising order.
    pub(crate) fn rooms_of(&self, connection: u32) -> &[u32] {
        let connection = connection as usize;
        &self.joined[self.joined_starts[connection] as usize..self.joined_starts[connection + 1] as usize]
    }

    /// How many publishers there are over all rooms.
    pub(crate) fn all_publishers(&self) -> u32 {
        self.publisher_starts.last().copied().unwrap_or(0)
    }

    /// How many members of `room` publish.
    pub(crate) fn publishers(&self, room: u32) -> u32 {
        self.publisher_starts[room as usize + 1] - self.publisher_starts[room as usize]
    }

    /// The number over all rooms of `room`'s publisher `at`.
    pub(crate) fn publisher(&self, room: u32, at: u32) -> u32 {
        self.publisher_starts[room as usize] + at
    }

    /// The room of `publisher` and which of its publishers that is, or `None` if there is no such publisher.
    pub(crate) fn room_of_publisher(&self, publisher: u32) -> Option<(u32, u32)> {
        if publisher >= self.all_publishers() {
            return None;
        }
        let room = self.publisher_starts.partition_point(|start| *start <= publisher) - 1;
        Some((room as u32, publisher - self.publisher_starts[room]))
    }

    /// The connection that publishes as `publisher`, which has to be below [`Topology::all_publishers`].
    pub(crate) fn connection_of(&self, publisher: u32) -> u32 {
        let room = self.publisher_starts.partition_point(|start| *start <= publisher) - 1;
        let at = publisher - self.publisher_starts[room];
        self.members[(self.member_starts[room] + at) as usize]
    }

    /// A number that spreads connections over the nodes of a server by its remainder: neighbours in a room differ, and
    /// so do the first members, which publish, of neighbouring rooms of equal size.
    pub(crate) fn spread(&self, connection: u32) -> u32 {
        self.equal_members.map_or(connection, |members| connection / members + connection % members)
    }
}

/// Element `at` of a seeded walk over 0..`count` that visits each number once: steps of a length prime to `count`.
fn walk(seed: u64, count: u64, at: u64) -> u64 {
    let start = mix(seed) % count;
    let mut step = mix(seed ^ 0x5eed) % count.max(2);
    while gcd(step, count) != 1 {
        step = (step + 1) % count.max(2);
    }
    ((u128::from(start) + u128::from(at) * u128::from(step)) % u128::from(count)) as u64
}

fn gcd(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use super::*;

    pub(crate) const ZIPF: Rooms =
        Rooms::Zipf { rooms: 40, connections: 100, memberships: 4, exponent: 1.0, publishers_max: 3, seed: 9 };

    #[test]
    fn rooms_of_equal_size_are_filled_in_order_and_their_first_members_publish() {
        let topology = Topology::new(Rooms::Equal { rooms: 3, members: 4, publishers: 2 });
        assert_eq!((topology.connections(), topology.rooms(), topology.all_publishers()), (12, 3, 6));
        assert_eq!(topology.members(1), [4, 5, 6, 7]);
        assert_eq!((topology.rooms_of(7), topology.rooms_of(8)), ([1].as_slice(), [2].as_slice()));
        assert_eq!((topology.publisher(1, 1), topology.connection_of(3)), (3, 5));
        assert_eq!(topology.room_of_publisher(3), Some((1, 1)));
        assert_eq!(topology.room_of_publisher(6), None);
    }

    #[test]
    fn rooms_by_zipf_hold_each_member_once_and_add_up_to_the_memberships() {
        let topology = Topology::new(ZIPF);
        let mut memberships = 0;
        for room in 0..topology.rooms() {
            let members = topology.members(room);
            assert_eq!(members.iter().collect::<HashSet<_>>().len(), members.len(), "room {room}");
            assert!(members.iter().all(|member| topology.rooms_of(*member).contains(&room)));
            assert_eq!(topology.publishers(room), 3.min(members.len() as u32));
            memberships += members.len();
        }
        assert_eq!(memberships, 400);
        assert_eq!((0..100).map(|connection| topology.rooms_of(connection).len()).sum::<usize>(), 400);
        assert!(topology.members(0).len() > 10 * topology.members(39).len(), "few large rooms, many small ones");
        for publisher in 0..topology.all_publishers() {
            let (room, at) = topology.room_of_publisher(publisher).expect("below all publishers");
            assert_eq!(topology.publisher(room, at), publisher);
            assert_eq!(topology.connection_of(publisher), topology.members(room)[at as usize]);
        }
    }

    #[test]
    fn every_worker_makes_the_same_tables_and_another_seed_makes_others() {
        let members = |rooms| Topology::new(rooms).members;
        assert_eq!(members(ZIPF), members(ZIPF));
        let Rooms::Zipf { rooms, connections, memberships, exponent, publishers_max, .. } = ZIPF else {
            unreachable!()
        };
        let other = Rooms::Zipf { rooms, connections, memberships, exponent, publishers_max, seed: 10 };
        assert_ne!(members(ZIPF), members(other));
    }

    #[test]
    fn a_walk_visits_each_number_once() {
        for count in [1, 2, 7, 64, 100] {
            let visited: HashSet<u64> = (0..count).map(|at| walk(3, count, at)).collect();
            assert_eq!(visited.len() as u64, count);
        }
    }

    #[test]
    fn members_and_publishers_are_spread_over_the_nodes() {
        let topology = Topology::new(Rooms::Equal { rooms: 30, members: 6, publishers: 1 });
        for room in 0..30 {
            let mut members = [0; 3];
            for connection in topology.members(room) {
                members[topology.spread(*connection) as usize % 3] += 1;
            }
            assert_eq!(members, [2; 3], "room {room}");
        }
        let mut publishers = [0; 3];
        for publisher in 0..30 {
            publishers[topology.spread(topology.connection_of(publisher)) as usize % 3] += 1;
        }
        assert_eq!(publishers, [10; 3]);
    }
}
