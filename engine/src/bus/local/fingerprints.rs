//! The dedupe window of one room: three bytes of keyed hash for each seq, instead of who sent it and the client's id.
//!
//! Called by the local bus. It never says that a message is known: only which seqs *may* hold it. Whoever needs
//! certainty compares the key of a pending seq, or reads the row of a decided one (docs/decisions/0004).
//!
//! The window spans at least D seqs and at most D + [`CHUNK_SEQS`] of them. A look-up scans it: 4 KiB at most, two
//! bytes a seq, in a form that the compiler turns into vector code; the third byte is looked at only where the two match.

use super::{DEDUPE_MESSAGES, DedupeKey};
use foldhash::quality::FixedState;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// Seqs of one chunk: what a room with a single message pays is three times that many bytes.
pub(super) const CHUNK_SEQS: usize = 128;

/// A hash of a [`DedupeKey`] in 24 bits, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(u32);

/// Makes fingerprints. Its seed is the process's own, so that nobody can choose ids that collide.
#[derive(Clone, Debug)]
pub(super) struct Fingerprinter {
    state: FixedState,
    mask: u32,
}

impl Fingerprinter {
    /// With fewer than 24 `bits` collisions become frequent: for tests.
    pub(super) fn new(seed: u64, bits: u32) -> Fingerprinter {
        Fingerprinter { state: FixedState::with_seed(seed), mask: (1 << bits.min(24)) - 1 }
    }

    pub(super) fn of(&self, key: &DedupeKey) -> Fingerprint {
        let hash = (self.state.hash_one((&*key.user, &*key.client_id)) >> 32) as u32;
        Fingerprint((hash & self.mask).max(1))
    }
}

/// The fingerprints of [`CHUNK_SEQS`] seqs; 0 in both arrays where there is none.
#[derive(Debug)]
struct Chunk {
    low: [u16; CHUNK_SEQS],
    high: [u8; CHUNK_SEQS],
}

/// The fingerprints of a room's latest seqs.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    /// Number of the first chunk: it begins with the seq `first * CHUNK_SEQS`.
    first: u64,
    chunks: VecDeque<Box<Chunk>>,
}

fn place(seq: u64) -> (u64, usize) {
    (seq / CHUNK_SEQS as u64, (seq % CHUNK_SEQS as u64) as usize)
}

impl Fingerprints {
    /// How many seqs it has memory for.
    pub(super) fn capacity(&self) -> usize {
        self.chunks.len() * CHUNK_SEQS
    }

    /// Sets the fingerprint of a seq, which makes it the latest if it is above all others. What is D seqs and more
    /// below is forgotten, a chunk at a time; below that nothing is kept.
    pub(super) fn set(&mut self, seq: u64, fingerprint: Fingerprint) {
        let (number, index) = place(seq);
        if self.chunks.is_empty() {
            self.first = number;
        }
        if number < self.first {
            return;
        }
        let kept = place(seq.saturating_sub(DEDUPE_MESSAGES - 1)).0;
        while self.first < kept && self.chunks.pop_front().is_some() {
            self.first += 1;
        }
        if self.chunks.is_empty() {
            self.first = kept.max(self.first);
        }
        while self.first + self.chunks.len() as u64 <= number {
            self.chunks.push_back(Box::new(Chunk { low: [0; CHUNK_SEQS], high: [0; CHUNK_SEQS] }));
        }
        let chunk = &mut self.chunks[(number - self.first) as usize];
        chunk.low[index] = fingerprint.0 as u16;
        chunk.high[index] = (fingerprint.0 >> 16) as u8;
    }

    /// Forgets a seq: it was voided.
    pub(super) fn clear(&mut self, seq: u64) {
        let (number, index) = place(seq);
        if let Some(chunk) = number.checked_sub(self.first).and_then(|at| self.chunks.get_mut(at as usize)) {
            chunk.low[index] = 0;
            chunk.high[index] = 0;
        }
    }

    /// Whether that seq has that fingerprint.
    pub(super) fn has(&self, seq: u64, fingerprint: Fingerprint) -> bool {
        let (number, index) = place(seq);
        let chunk = number.checked_sub(self.first).and_then(|at| self.chunks.get(at as usize));
        chunk.is_some_and(|chunk| chunk.at(index) == fingerprint.0)
    }

    /// The seqs with that fingerprint, ascending.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> impl Iterator<Item = u64> {
        let low = fingerprint.0 as u16;
        let chunks = self.chunks.iter().zip(self.first..).filter(move |(chunk, _)| chunk.may_have(low));
        chunks.flat_map(move |(chunk, number)| {
            let places = (0..CHUNK_SEQS).filter(move |index| chunk.at(*index) == fingerprint.0);
            places.map(move |index| number * CHUNK_SEQS as u64 + index as u64)
        })
    }
}

impl Chunk {
    fn at(&self, index: usize) -> u32 {
        u32::from(self.high[index]) << 16 | u32::from(self.low[index])
    }

    /// Whether the two bytes occur. No early end: without one the loop becomes some sixteen vector compares.
    fn may_have(&self, low: u16) -> bool {
        self.low.iter().fold(0_u16, |found, own| found | u16::from(*own == low)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::UserId;
    use std::sync::Arc;

    fn found(window: &Fingerprints, fingerprint: u32) -> Vec<u64> {
        window.find(Fingerprint(fingerprint)).collect()
    }

    #[test]
    fn what_was_set_is_found_until_d_seqs_later() {
        let mut window = Fingerprints::default();
        for seq in 1..=10 * DEDUPE_MESSAGES {
            window.set(seq, Fingerprint(seq as u32 + 0x1_0000));
            let oldest = seq.saturating_sub(DEDUPE_MESSAGES - 1).max(1);
            assert_eq!(found(&window, oldest as u32 + 0x1_0000), [oldest]);
            assert!(window.has(oldest, Fingerprint(oldest as u32 + 0x1_0000)));
            assert!(window.capacity() <= DEDUPE_MESSAGES as usize + 2 * CHUNK_SEQS);
        }
        assert_eq!(found(&window, 1 + 0x1_0000), [0; 0]);
        assert!(!window.has(1, Fingerprint(1 + 0x1_0000)));
    }

    #[test]
    fn a_small_room_costs_one_chunk() {
        let mut window = Fingerprints::default();
        assert_eq!(window.capacity(), 0);
        window.set(1_000_000, Fingerprint(5));
        assert_eq!(window.capacity(), CHUNK_SEQS);
    }

    #[test]
    fn all_three_bytes_count_and_a_cleared_seq_is_gone() {
        let mut window = Fingerprints::default();
        for (seq, fingerprint) in [(1, 0x01_0007), (2, 0x02_0007), (3, 0x02_0007), (300, 0x02_0007)] {
            window.set(seq, Fingerprint(fingerprint));
        }
        assert_eq!(found(&window, 0x02_0007), [2, 3, 300]);
        window.clear(2);
        window.clear(5_000);
        assert_eq!(found(&window, 0x02_0007), [3, 300]);
        assert_eq!(found(&window, 0x01_0007), [1]);
    }

    #[test]
    fn a_jump_forgets_what_lies_too_far_below() {
        let mut window = Fingerprints::default();
        window.set(1, Fingerprint(9));
        window.set(100_000, Fingerprint(9));
        assert_eq!(found(&window, 9), [100_000]);
        window.set(2, Fingerprint(9));
        assert_eq!(found(&window, 9), [100_000], "too old to be kept");
        assert!(window.capacity() <= DEDUPE_MESSAGES as usize + 2 * CHUNK_SEQS);
    }

    #[test]
    fn a_fingerprint_depends_on_user_id_and_seed_and_is_never_nothing() {
        let key = |user: &str, id: &str| DedupeKey { user: UserId::new(user), client_id: Arc::from(id) };
        let maker = Fingerprinter::new(1, 24);
        let keys = [key("ann", "a"), key("ann", "b"), key("bob", "a"), key("anna", "")];
        let all: std::collections::HashSet<u32> = keys.iter().map(|key| maker.of(key).0).collect();
        assert_eq!(all.len(), 4);
        assert_ne!(maker.of(&keys[0]), Fingerprinter::new(2, 24).of(&keys[0]));
        assert_eq!(Fingerprinter::new(1, 0).of(&keys[0]), Fingerprint(1));
    }
}
