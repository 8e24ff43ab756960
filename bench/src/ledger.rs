//! The proof that nothing was lost, doubled or out of order. `observer` records each delivery and each ack; `runs`
//! judges the counts.
//!
//! A stream is what one receiver gets of one publisher: the numbers 0, 1, 2, ... each exactly once and in order. In the
//! good case a record is one comparison; only what was skipped is remembered by number.

use std::collections::HashSet;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// A jump ahead by more than this is no gap but nonsense.
const GAP_MAX: u32 = 1_000_000;

/// Counts over all streams of a worker; those of several workers add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Numbers that had to arrive.
    pub(crate) expected: u64,
    /// Numbers that arrived, each counted once.
    pub(crate) arrived: u64,
    /// Arrivals of a number that had arrived before.
    pub(crate) doubled: u64,
    /// Numbers that arrived after a higher one of their stream.
    pub(crate) out_of_order: u64,
    /// Arrivals whose `seq` was not one more than the one before it at this receiver.
    pub(crate) seq_breaks: u64,
    /// Arrivals that no stream of this receiver explains.
    pub(crate) stray: u64,
}

impl Counts {
    pub(crate) fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.arrived)
    }

    /// Whether everything arrived exactly once, in whatever order.
    pub(crate) fn is_each_once(&self) -> bool {
        Counts { out_of_order: 0, ..*self }.is_clean()
    }

    /// Whether everything arrived exactly once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost() == 0
            && self.arrived == self.expected
            && self.doubled + self.out_of_order + self.seq_breaks + self.stray == 0
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.expected += other.expected;
        self.arrived += other.arrived;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.seq_breaks += other.seq_breaks;
        self.stray += other.stray;
    }
}

/// The streams of one worker.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// For each stream the number that is due next.
    next: Vec<u32>,
    /// Numbers below `next` that have not arrived.
    missing: HashSet<(usize, u32)>,
    /// For each receiver the last `seq`; 0 before the first.
    last_seq: Vec<u64>,
    counts: Counts,
}

impl Ledger {
    /// A ledger of `streams` streams to `receivers` receivers in which `expected` numbers have to arrive.
    pub(crate) fn new(streams: usize, receivers: usize, expected: u64) -> Ledger {
        Ledger {
            next: vec![0; streams],
            missing: HashSet::new(),
            last_seq: vec![0; receivers],
            counts: Counts { expected, ..Counts::default() },
        }
    }

    /// Number `number` of `stream` arrived.
    pub(crate) fn record(&mut self, stream: usize, number: u32) {
        let Some(next) = self.next.get_mut(stream) else { return self.stray() };
        if number == *next {
            *next += 1;
            self.counts.arrived += 1;
        } else if number > *next {
            if number - *next > GAP_MAX {
                return self.stray();
            }
            self.missing.extend((*next..number).map(|skipped| (stream, skipped)));
            *next = number + 1;
            self.counts.arrived += 1;
        } else if self.missing.remove(&(stream, number)) {
            self.counts.arrived += 1;
            self.counts.out_of_order += 1;
        } else {
            self.counts.doubled += 1;
        }
    }

    /// Number `number` of `stream` arrived at a receiver that may have missed some and is owed none: it may not come
    /// twice or late.
    pub(crate) fn record_loose(&mut self, stream: usize, number: u32) {
        let Some(next) = self.next.get_mut(stream) else { return self.stray() };
        if number >= *next {
            *next = number.saturating_add(1);
        } else if number + 1 == *next {
            self.counts.doubled += 1;
        } else {
            self.counts.out_of_order += 1;
        }
    }

    /// `receiver` saw `seq`: one more than the last, whoever published it.
    pub(crate) fn record_seq(&mut self, receiver: usize, seq: u64) {
        if let Some(last) = self.last_seq.get_mut(receiver) {
            if *last != 0 && seq != *last + 1 {
                self.counts.seq_breaks += 1;
            }
            *last = seq;
        }
    }

    /// Something arrived that belongs to no stream of its receiver.
    pub(crate) fn stray(&mut self) {
        self.counts.stray += 1;
    }

    /// Whether everything has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.counts.arrived >= self.counts.expected
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: &[u32], expected: u64) -> Counts {
        let mut ledger = Ledger::new(1, 1, expected);
        for number in numbers {
            ledger.record(0, *number);
        }
        ledger.counts()
    }

    #[test]
    fn each_number_once_and_in_order_is_clean() {
        assert!(after(&[0, 1, 2], 3).is_clean());
    }

    #[test]
    fn a_number_that_never_comes_is_lost() {
        assert_eq!(after(&[0, 2], 3).lost(), 1);
        assert_eq!(after(&[0, 1], 3).lost(), 1);
        assert!(!after(&[0, 2], 3).is_clean());
    }

    #[test]
    fn a_number_that_comes_twice_is_doubled_and_hides_no_loss() {
        let counts = after(&[0, 1, 1, 3], 4);
        assert_eq!((counts.doubled, counts.lost()), (1, 1));
        let counts = after(&[0, 2, 1, 1], 3);
        assert_eq!((counts.doubled, counts.out_of_order, counts.lost()), (1, 1, 0));
        assert!(!counts.is_clean());
    }

    #[test]
    fn a_number_that_comes_late_is_out_of_order_and_not_lost() {
        let counts = after(&[0, 3, 1, 2], 4);
        assert_eq!((counts.out_of_order, counts.lost(), counts.doubled), (2, 0, 0));
        assert!(!counts.is_clean());
    }

    #[test]
    fn more_than_expected_is_not_clean() {
        assert!(!after(&[0, 1, 2], 2).is_clean());
    }

    #[test]
    fn a_receiver_that_is_owed_nothing_may_miss_but_not_get_twice_or_late() {
        let loose = |numbers: &[u32]| {
            let mut ledger = Ledger::new(1, 1, 0);
            numbers.iter().for_each(|number| ledger.record_loose(0, *number));
            ledger.counts()
        };
        assert!(loose(&[0, 1, 7, 9]).is_clean());
        assert_eq!(loose(&[0, 7, 7]).doubled, 1);
        assert_eq!(loose(&[0, 7, 2]).out_of_order, 1);
    }

    #[test]
    fn nonsense_is_stray() {
        assert_eq!(after(&[4_000_000_000], 1).stray, 1);
        let mut ledger = Ledger::new(1, 1, 0);
        ledger.record(7, 0);
        assert_eq!(ledger.counts().stray, 1);
    }

    #[test]
    fn streams_do_not_mix_and_workers_add_up() {
        let mut ledger = Ledger::new(2, 1, 4);
        for (stream, number) in [(0, 0), (1, 0), (1, 1), (0, 1)] {
            ledger.record(stream, number);
        }
        assert!(ledger.is_complete());
        let mut sum = ledger.counts();
        sum += after(&[0, 0], 2);
        assert_eq!((sum.expected, sum.arrived, sum.doubled, sum.lost()), (6, 5, 1, 1));
    }

    #[test]
    fn seq_may_start_anywhere_but_then_rises_by_one() {
        let mut ledger = Ledger::new(1, 2, 0);
        for (receiver, seq) in [(0, 5), (0, 6), (1, 1), (0, 7), (1, 2)] {
            ledger.record_seq(receiver, seq);
        }
        assert_eq!(ledger.counts().seq_breaks, 0);
        ledger.record_seq(0, 7);
        ledger.record_seq(1, 4);
        assert_eq!(ledger.counts().seq_breaks, 2);
    }
}
