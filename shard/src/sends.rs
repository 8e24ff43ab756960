//! Who sends in a turn. What fans out to very many goes out in slices, a slice a turn, so that all else waits for a
//! slice and not for its end: 18,000 sends take a core 200 ms.

use roomwire_engine::names::ConnectionId;
use std::collections::VecDeque;

/// The most connections to which one event is sent at once, and how many of the others follow in each turn: about a
/// millisecond of sends.
const SLICE_MAX: usize = 128;

/// The connections that have something to send and wait for their slice, in order.
#[derive(Debug, Default)]
pub(crate) struct LateSends {
    late: VecDeque<ConnectionId>,
}

impl LateSends {
    /// After an event that found `before` names on the list: of those that it added, all above a slice have to wait.
    pub(crate) fn set_aside(&mut self, named: &mut Vec<ConnectionId>, before: usize) {
        if named.len() > before + SLICE_MAX {
            self.late.extend(named.drain(before + SLICE_MAX..));
        }
    }

    /// The turn's slice of those that wait.
    pub(crate) fn slice(&mut self, into: &mut Vec<ConnectionId>) {
        into.extend(self.late.drain(..self.late.len().min(SLICE_MAX)));
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.late.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(slots: std::ops::Range<usize>) -> Vec<ConnectionId> {
        slots.map(|slot| ConnectionId { slot: slot as u32, generation: 1 }).collect()
    }

    #[test]
    fn a_small_fan_out_behind_a_large_one_is_not_held_up_and_nobody_is_forgotten() {
        let mut sends = LateSends::default();
        let mut named = connections(0..1_000);
        sends.set_aside(&mut named, 0);
        let before = named.len();
        named.extend(connections(2_000..2_010));
        sends.set_aside(&mut named, before);
        assert_eq!(
            named,
            [connections(0..SLICE_MAX), connections(2_000..2_010)].concat(),
            "the small one goes at once"
        );

        let mut turns = 0;
        let mut rest = Vec::new();
        while !sends.is_empty() {
            sends.slice(&mut rest);
            turns += 1;
            assert!(rest.len() <= turns * SLICE_MAX, "a slice a turn");
        }
        assert_eq!(rest, connections(SLICE_MAX..1_000), "in order, each once");
    }
}
