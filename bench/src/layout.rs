//! A plan worked out: which connections a worker holds, where they go, what has to arrive at each. `worker`, `agenda`
//! and `observer` share one.

use crate::plan::{Mode, Plan};
use crate::schedule::Schedule;
use crate::topology::Topology;

/// See the module.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) plan: Plan,
    pub(crate) topology: Topology,
    pub(crate) schedule: Schedule,
    /// Connections that publish nowhere, and so may come and go.
    pub(crate) movers: Vec<u32>,
    /// Whether each connection is one of them.
    is_mover: Vec<bool>,
}

impl Layout {
    pub(crate) fn new(plan: Plan) -> Layout {
        let topology = Topology::new(plan.rooms);
        let mut is_mover = vec![!plan.extras.moves.is_empty(); topology.connections() as usize];
        for publisher in 0..topology.all_publishers() {
            is_mover[topology.connection_of(publisher) as usize] = false;
        }
        let movers = (0..topology.connections()).filter(|connection| is_mover[*connection as usize]).collect();
        let schedule = Schedule::new(plan.rooms, plan.rate, plan.messages);
        Layout { plan, topology, schedule, movers, is_mover }
    }

    /// The name of `room`.
    pub(crate) fn room_name(&self, room: u32) -> String {
        format!("bench-{}-{room}", self.plan.run_id)
    }

    /// How many connections this worker holds.
    pub(crate) fn own_connections(&self) -> usize {
        let all = self.topology.connections();
        all.saturating_sub(self.plan.worker).div_ceil(self.plan.workers) as usize
    }

    /// The number over all workers of this worker's connection `local`.
    pub(crate) fn connection(&self, local: usize) -> u32 {
        self.plan.worker + local as u32 * self.plan.workers
    }

    /// The number of the user that `connection` is.
    pub(crate) fn user(&self, connection: u32) -> u32 {
        self.plan.first_user + connection
    }

    /// The connection that is the user of that number, unless it is of another run.
    pub(crate) fn connection_of_user(&self, user: u32) -> Option<u32> {
        user.checked_sub(self.plan.first_user).filter(|connection| *connection < self.topology.connections())
    }

    /// This worker's index of `connection`, or `None` if another worker holds it.
    pub(crate) fn local(&self, connection: u32) -> Option<usize> {
        (connection % self.plan.workers == self.plan.worker).then_some((connection / self.plan.workers) as usize)
    }

    /// Which of the server's addresses `connection` goes to.
    pub(crate) fn node_of(&self, connection: u32) -> usize {
        self.topology.spread(connection) as usize % self.plan.addrs.len()
    }

    /// Whether what is published while `connection` is away has to reach it all the same.
    pub(crate) fn owes_all(&self, connection: u32) -> bool {
        !self.is_mover[connection as usize] || self.plan.dialect.resumes()
    }

    /// How many messages this worker sends.
    pub(crate) fn scheduled(&self) -> u64 {
        (0..self.topology.all_publishers())
            .filter(|publisher| self.local(self.topology.connection_of(*publisher)).is_some())
            .map(|publisher| self.schedule.messages_of(&self.topology, publisher))
            .sum()
    }

    /// How many acks this worker's publishers have to get.
    pub(crate) fn acks(&self) -> u64 {
        if self.plan.mode == Mode::Chat && self.plan.dialect.acks() { self.scheduled() } else { 0 }
    }

    /// How many deliveries have to arrive at this worker's connections.
    pub(crate) fn deliveries(&self) -> u64 {
        if self.plan.mode == Mode::Still {
            return 0;
        }
        let owed = (0..self.own_connections()).map(|local| self.connection(local)).filter(|one| self.owes_all(*one));
        let to_rooms: u64 = owed
            .flat_map(|connection| self.topology.rooms_of(connection))
            .map(|room| self.schedule.messages_to(*room))
            .sum();
        if self.plan.dialect.delivers_to_sender(self.plan.mode) { to_rooms } else { to_rooms - self.scheduled() }
    }

    /// How many receivers a message to `room` has to reach.
    pub(crate) fn receivers(&self, room: u32) -> u64 {
        let owed = self.topology.members(room).iter().filter(|member| self.owes_all(**member)).count() as u64;
        owed - u64::from(!self.plan.dialect.delivers_to_sender(self.plan.mode))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use crate::plan::{Extras, Move, Pace};
    use crate::topology::Rooms;
    use crate::topology::tests::ZIPF;

    /// A layout of worker `worker` of `workers`.
    pub(crate) fn layout(rooms: Rooms, messages: u64, worker: u32, workers: u32) -> Layout {
        Layout::new(plan(rooms, messages, worker, workers))
    }

    pub(crate) fn plan(rooms: Rooms, messages: u64, worker: u32, workers: u32) -> Plan {
        Plan {
            addrs: vec![([127, 0, 0, 1], 1).into()],
            path: "/".into(),
            dialect: Dialect::Roomwire,
            mode: Mode::Chat,
            pace: Pace::Open,
            join: true,
            secret: String::new(),
            run_id: "test".into(),
            worker,
            workers,
            sources: 1,
            first_user: 0,
            connect_burst: 1,
            rooms,
            rate: 1_000.0,
            messages,
            extras: Extras::default(),
            size: 64,
            measure_from_ns: 0,
            measure_to_ns: u64::MAX,
            drain_ns: 0,
            clock_offset_ns: 0,
        }
    }

    #[test]
    fn workers_share_the_connections_without_overlap() {
        for workers in 1..=7 {
            let mut owners = vec![0; 15];
            for worker in 0..workers {
                let layout = layout(Rooms::Equal { rooms: 5, members: 3, publishers: 1 }, 0, worker, workers);
                for local in 0..layout.own_connections() {
                    let connection = layout.connection(local);
                    assert_eq!(layout.local(connection), Some(local));
                    owners[connection as usize] += 1;
                }
            }
            assert_eq!(owners, vec![1; 15], "{workers} workers");
        }
    }

    #[test]
    fn what_workers_send_and_owe_adds_up_over_the_workers() {
        for rooms in [Rooms::Equal { rooms: 3, members: 4, publishers: 2 }, ZIPF] {
            let whole = layout(rooms, 500, 0, 1);
            let parts: Vec<Layout> = (0..4).map(|worker| layout(rooms, 500, worker, 4)).collect();
            assert_eq!(parts.iter().map(Layout::scheduled).sum::<u64>(), 500);
            assert_eq!(parts.iter().map(Layout::deliveries).sum::<u64>(), whole.deliveries());
            let by_room =
                (0..whole.topology.rooms()).map(|room| whole.schedule.messages_to(room) * whole.receivers(room));
            assert_eq!(by_room.sum::<u64>(), whole.deliveries());
        }
    }

    #[test]
    fn who_comes_and_goes_is_owed_everything_only_where_it_can_resume() {
        let extras = Extras { moves: vec![Move::Reconnect], ..Extras::default() };
        let of = |dialect| {
            let rooms = Rooms::Equal { rooms: 2, members: 4, publishers: 1 };
            Layout::new(Plan { dialect, extras: extras.clone(), ..plan(rooms, 10, 0, 1) })
        };
        assert_eq!(of(Dialect::Roomwire).movers, [1, 2, 3, 5, 6, 7]);
        assert_eq!((of(Dialect::Roomwire).deliveries(), of(Dialect::Plain).deliveries()), (40, 10));
    }

    #[test]
    fn users_are_numbered_from_the_first_of_this_run() {
        let rooms = Rooms::Equal { rooms: 2, members: 4, publishers: 1 };
        let layout = Layout::new(Plan { first_user: 100, ..plan(rooms, 0, 0, 1) });
        assert_eq!((layout.user(0), layout.user(7)), (100, 107));
        assert_eq!([99, 100, 107, 108].map(|user| layout.connection_of_user(user)), [None, Some(0), Some(7), None]);
    }
}
