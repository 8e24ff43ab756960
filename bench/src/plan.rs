//! What a worker is told to do. The coordinator writes it to the worker's stdin, never to its command line: it holds
//! the secret.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::args::Dialect;
use crate::schedule::Schedule;

/// What connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Join rooms and publish to them.
    Chat,
    /// Send to a server that echoes; a room is one connection.
    Echo,
    /// Be there.
    Still,
}

/// One run, as each worker gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The nodes of the server.
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    pub(crate) mode: Mode,
    /// Whether each connection joins its room.
    pub(crate) join: bool,
    pub(crate) secret: String,
    /// In every room's name, so that no run meets the history of another.
    pub(crate) run_id: String,
    /// This worker, of `workers`: it holds the connections `worker`, `worker + workers`, ...
    pub(crate) worker: u32,
    pub(crate) workers: u32,
    pub(crate) sources: u8,
    pub(crate) connect_burst: u32,
    pub(crate) schedule: Schedule,
    /// Bytes of one content.
    pub(crate) size: usize,
    /// The window that is measured, in nanoseconds after the start.
    pub(crate) measure_from_ns: u64,
    pub(crate) measure_to_ns: u64,
    /// How long to wait for what is under way after the end of the window.
    pub(crate) drain_ns: u64,
}

impl Plan {
    /// The name of `room`.
    pub(crate) fn room_name(&self, room: u32) -> String {
        format!("bench-{}-{room}", self.run_id)
    }

    /// Which of `addrs` `connection` goes to: neighbours in a room go to different nodes, and so do the first members of
    /// neighbouring rooms, which publish.
    pub(crate) fn node_of(&self, connection: u32) -> usize {
        let members = self.schedule.topology.members;
        ((connection / members) as usize + (connection % members) as usize) % self.addrs.len()
    }

    /// How many connections this worker holds.
    pub(crate) fn own_connections(&self) -> usize {
        let all = self.schedule.topology.connections();
        all.saturating_sub(self.worker).div_ceil(self.workers) as usize
    }

    /// The number over all workers of this worker's connection `local`.
    pub(crate) fn connection(&self, local: usize) -> u32 {
        self.worker + local as u32 * self.workers
    }

    /// This worker's index of `connection`, or `None` if another worker holds it.
    pub(crate) fn local(&self, connection: u32) -> Option<usize> {
        (connection % self.workers == self.worker).then_some((connection / self.workers) as usize)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::schedule::Topology;

    /// A plan of worker `worker` of `workers`.
    pub(crate) fn plan(topology: Topology, messages: u64, worker: u32, workers: u32) -> Plan {
        Plan {
            addrs: vec![([127, 0, 0, 1], 1).into()],
            path: "/".into(),
            dialect: Dialect::Roomwire,
            mode: Mode::Chat,
            join: true,
            secret: String::new(),
            run_id: "test".into(),
            worker,
            workers,
            sources: 1,
            connect_burst: 1,
            schedule: Schedule { topology, rate: 1_000.0, messages },
            size: 64,
            measure_from_ns: 0,
            measure_to_ns: u64::MAX,
            drain_ns: 0,
        }
    }

    #[test]
    fn workers_share_the_connections_without_overlap() {
        let topology = Topology { rooms: 5, members: 3, publishers: 1 };
        for workers in 1..=7 {
            let mut owners = vec![0; 15];
            for worker in 0..workers {
                let plan = plan(topology, 0, worker, workers);
                for local in 0..plan.own_connections() {
                    let connection = plan.connection(local);
                    assert_eq!(plan.local(connection), Some(local));
                    owners[connection as usize] += 1;
                }
            }
            assert_eq!(owners, vec![1; 15], "{workers} workers");
        }
    }

    #[test]
    fn members_and_publishers_are_spread_over_the_nodes() {
        let topology = Topology { rooms: 30, members: 6, publishers: 1 };
        let plan = Plan { addrs: vec![([127, 0, 0, 1], 1).into(); 3], ..plan(topology, 0, 0, 1) };
        for room in 0..30 {
            let mut members = [0; 3];
            for connection in room * 6..room * 6 + 6 {
                members[plan.node_of(connection)] += 1;
            }
            assert_eq!(members, [2; 3], "room {room}");
        }
        let mut publishers = [0; 3];
        for publisher in 0..30 {
            publishers[plan.node_of(topology.connection_of(publisher))] += 1;
        }
        assert_eq!(publishers, [10; 3]);
    }
}
