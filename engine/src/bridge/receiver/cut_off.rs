//! A later generation that begins below what was delivered here. A Redis that was replaced had gone on without strict mode,
//! or rows did not live as long as older ones: what was delivered from the new base on was cut off, and what stands in its
//! place is delivered, at the same seqs under the new epoch.

use super::super::room::Room;
use super::super::shared::{Purpose, Turn, back_off_ms, hint_ms};
use crate::store::{ReadRow, StoreReply, StoreRequest};

impl Room {
    /// A later generation goes on from `base`.
    pub(super) fn adopt(&mut self, turn: &mut Turn<'_>, generation: u64, base: u64) {
        let receiver = &mut self.receiver;
        let before = receiver.generation;
        if generation <= before {
            return;
        }
        receiver.generation = generation;
        receiver.base = base;
        receiver.bases = None;
        receiver.is_stale = false;
        receiver.absent_on = None;
        // Where others went by between, one of them may have begun lower.
        let is_passed = turn.shared.config.cluster && before > 0 && generation > before + 1;
        receiver.hold.retain(|seq, held| held.generation >= generation || !is_passed && *seq < base);
        // What an earlier generation had decided from there on says nothing of this one, nor does a read of it.
        receiver.know = base.saturating_sub(1);
        receiver.reading_hole.take_if(|know| *know >= base);
        if is_passed {
            receiver.passed.get_or_insert(before);
            receiver.reading_hole = None;
        } else {
            self.cut_off(turn, base);
        }
    }

    /// All that was delivered from `base` on is none of the room's any more.
    fn cut_off(&mut self, turn: &mut Turn<'_>, base: u64) {
        if base < self.receiver.next {
            self.receiver.next = base;
            self.recent.cut_off(turn.shared, base);
            self.history_cut_off(base);
        }
    }

    /// Asks the store where generations began of which nothing was heard, if there are any.
    pub(super) fn read_passed(&mut self, turn: &mut Turn<'_>) -> bool {
        let receiver = &mut self.receiver;
        if receiver.passed.is_none() {
            return false;
        }
        if !receiver.reading_passed && receiver.read_ms.is_none() {
            receiver.reading_passed = true;
            self.ask_store(turn, Purpose::Passed, |ticket, room| StoreRequest::ReadRoom { ticket, room, window: 0 });
        }
        true
    }

    /// The store's word on that.
    pub(in crate::bridge) fn passed_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let receiver = &mut self.receiver;
        receiver.reading_passed = false;
        let Some(before) = receiver.passed else { return };
        let StoreReply::Room { meta, .. } = reply else {
            receiver.read_ms = Some(turn.now_ms() + back_off_ms(2, hint_ms(&reply)));
            self.refuse_history(turn, hint_ms(&reply));
            return;
        };
        receiver.passed = None;
        let later = |generation: u64| generation > before && generation <= receiver.generation;
        let bases = meta.bases.iter().filter(|(generation, _)| later(*generation)).map(|(_, base)| *base);
        let base = bases.chain([receiver.base]).min().unwrap_or(receiver.base);
        self.cut_off(turn, base);
        // What was heard meanwhile may have been taken for old.
        self.want_head();
    }

    /// Rows of a later generation, where this one is still served: its bus must not serve it any longer.
    pub(in crate::bridge) fn is_of_later_generation(&mut self, turn: &mut Turn<'_>, rows: &[ReadRow]) -> bool {
        let generation = self.receiver.generation;
        let is_later = turn.shared.config.cluster && rows.iter().any(|read| read.row.generation > generation);
        if is_later {
            self.receiver.is_stale = true;
            self.retire(turn, generation);
        }
        is_later
    }
}
