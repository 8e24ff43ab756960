//! What one worker does and when: messages, typing, receipts and moves, merged by time. `worker` takes one after the
//! other.

use crate::layout::Layout;
use crate::plan::{Mode, Move, Pace};
use crate::schedule::{Planned, Walk};
use crate::zipf::mix;

/// Tells the draws of the streams apart.
const TYPING_SEED: u64 = 0x7479;
const RECEIPT_SEED: u64 = 0x7263;

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Publish(Planned),
    /// `connection` types in `room`.
    Typing {
        connection: u32,
        room: u32,
    },
    /// `connection` has read the last message of `room`.
    Receipt {
        connection: u32,
        room: u32,
    },
    Move {
        connection: u32,
        what: Move,
    },
}

/// An act and when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Nanoseconds after the start.
    pub(crate) after_ns: u64,
    pub(crate) act: Act,
}

/// See the module. Each stream holds its next own act.
pub(crate) struct Agenda {
    walk: Walk,
    messages: Option<Due>,
    typing: Stream,
    receipts: Stream,
    moves: Stream,
}

#[derive(Default)]
struct Stream {
    /// The number of the act behind `head`.
    next: u64,
    count: u64,
    head: Option<Due>,
}

impl Agenda {
    pub(crate) fn new(layout: &Layout) -> Agenda {
        let extras = &layout.plan.extras;
        let lasting = |per_second: f64| Stream {
            count: (per_second * layout.plan.measure_to_ns as f64 / 1e9) as u64,
            ..Stream::default()
        };
        let moves = if layout.movers.is_empty() { 0 } else { extras.move_count };
        let mut agenda = Agenda {
            walk: layout.schedule.walk(),
            messages: None,
            typing: lasting(extras.typing_per_second),
            receipts: lasting(extras.receipts_per_second),
            moves: Stream { count: moves, ..Stream::default() },
        };
        if layout.plan.mode != Mode::Still && layout.plan.pace == Pace::Open {
            agenda.next_message(layout);
        }
        agenda.typing.advance(layout, typing);
        agenda.receipts.advance(layout, receipt);
        agenda.moves.advance(layout, one_move);
        agenda
    }

    /// What is due first.
    pub(crate) fn peek(&self) -> Option<Due> {
        let heads = [self.messages, self.typing.head, self.receipts.head, self.moves.head];
        heads.into_iter().flatten().min_by_key(|due| due.after_ns)
    }

    /// Takes what [`Agenda::peek`] showed.
    pub(crate) fn take(&mut self, layout: &Layout) {
        match self.peek().map(|due| due.act) {
            Some(Act::Publish(_)) => self.next_message(layout),
            Some(Act::Typing { .. }) => self.typing.advance(layout, typing),
            Some(Act::Receipt { .. }) => self.receipts.advance(layout, receipt),
            Some(Act::Move { .. }) => self.moves.advance(layout, one_move),
            None => {}
        }
    }

    fn next_message(&mut self, layout: &Layout) {
        self.messages = None;
        while let Some(planned) = self.walk.next(&layout.schedule, &layout.topology) {
            if layout.local(layout.topology.connection_of(planned.publisher)).is_some() {
                self.messages = Some(Due { after_ns: planned.after_ns, act: Act::Publish(planned) });
                return;
            }
        }
    }
}

impl Stream {
    /// Moves to the next act that is a connection's of this worker.
    fn advance(&mut self, layout: &Layout, act: impl Fn(&Layout, u64) -> (u32, Due)) {
        self.head = None;
        while self.next < self.count {
            let (connection, due) = act(layout, self.next);
            self.next += 1;
            if layout.local(connection).is_some() {
                self.head = Some(due);
                return;
            }
        }
    }
}

/// A room drawn as messages are, and one of its members.
fn somebody(layout: &Layout, seed: u64, k: u64) -> (u32, u32) {
    let drawn = mix(seed ^ mix(k));
    let room = layout.schedule.room(drawn);
    let members = layout.topology.members(room);
    (members[(mix(drawn) % members.len() as u64) as usize], room)
}

fn typing(layout: &Layout, k: u64) -> (u32, Due) {
    let (connection, room) = somebody(layout, TYPING_SEED, k);
    let after_ns = (k as f64 * 1e9 / layout.plan.extras.typing_per_second) as u64;
    (connection, Due { after_ns, act: Act::Typing { connection, room } })
}

fn receipt(layout: &Layout, k: u64) -> (u32, Due) {
    let (connection, room) = somebody(layout, RECEIPT_SEED, k);
    let after_ns = (k as f64 * 1e9 / layout.plan.extras.receipts_per_second) as u64;
    (connection, Due { after_ns, act: Act::Receipt { connection, room } })
}

/// Movers take turns; each goes through the moves in order.
fn one_move(layout: &Layout, k: u64) -> (u32, Due) {
    let extras = &layout.plan.extras;
    let movers = layout.movers.len() as u64;
    let connection = layout.movers[(k % movers) as usize];
    let what = extras.moves[((k / movers) % extras.moves.len() as u64) as usize];
    let after_ns = extras.move_from_ns + k * extras.move_every_ns;
    (connection, Due { after_ns, act: Act::Move { connection, what } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::plan;
    use crate::plan::{Extras, Plan};
    use crate::topology::Rooms;
    use crate::topology::tests::ZIPF;

    fn all(plan: Plan) -> Vec<Due> {
        let layout = Layout::new(plan);
        let mut agenda = Agenda::new(&layout);
        std::iter::from_fn(|| {
            let due = agenda.peek();
            agenda.take(&layout);
            due
        })
        .collect()
    }

    fn busy(worker: u32, workers: u32) -> Plan {
        let extras = Extras {
            moves: vec![Move::Leave, Move::Join, Move::Reconnect],
            move_count: 60,
            move_from_ns: 5_000_000,
            move_every_ns: 1_000_000,
            typing_per_second: 100.0,
            receipts_per_second: 50.0,
            watched: 0,
            history: 0,
        };
        Plan { extras, measure_to_ns: 500_000_000, ..plan(ZIPF, 200, worker, workers) }
    }

    #[test]
    fn acts_come_in_the_order_of_time_and_each_belongs_to_one_worker() {
        let whole = all(busy(0, 1));
        assert_eq!(whole.len(), 200 + 50 + 25 + 60);
        assert!(whole.is_sorted_by_key(|due| due.after_ns));
        let parts: usize = (0..3).map(|worker| all(busy(worker, 3)).len()).sum();
        assert_eq!(parts, whole.len());
    }

    #[test]
    fn each_mover_leaves_joins_and_reconnects_in_turn() {
        let rooms = Rooms::Equal { rooms: 1, members: 3, publishers: 1 };
        let extras = Extras { move_count: 6, ..busy(0, 1).extras };
        let moves: Vec<(u32, Move)> = all(Plan { rooms, extras, messages: 0, ..busy(0, 1) })
            .iter()
            .filter_map(|due| match due.act {
                Act::Move { connection, what } => Some((connection, what)),
                _ => None,
            })
            .collect();
        let turns = [Move::Leave, Move::Join, Move::Reconnect];
        assert_eq!(moves, turns.iter().flat_map(|what| [(1, *what), (2, *what)]).collect::<Vec<_>>());
    }

    #[test]
    fn a_closed_loop_and_idle_connections_have_no_messages_on_the_agenda() {
        let rooms = Rooms::Equal { rooms: 1, members: 3, publishers: 1 };
        assert!(all(Plan { pace: Pace::Closed, ..plan(rooms, 10, 0, 1) }).is_empty());
        assert!(all(Plan { mode: Mode::Still, ..plan(rooms, 10, 0, 1) }).is_empty());
    }
}
