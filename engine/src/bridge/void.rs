//! ORDERING.md's void: seals a seq whose writer is gone, so that the room goes on. Repeatable, by any node.

use super::receiver::PENDING_MS_MAX;
use super::room::{BusAsked, Room};
use super::shared::{Purpose, Turn};
use crate::bus::{BusReply, BusRequest, Voiding};
use crate::store::{StoreReply, StoreRequest};

/// A void under way: VOID1, the store's compare-and-set, VOID2. What fails is dropped, and begun anew at the next look.
#[derive(Debug)]
pub(super) struct VoidRun {
    generation: u64,
    seq: u64,
}

impl Room {
    /// Voids a seq that is pending for too long, unless this node itself is still writing it: then the store is slow,
    /// and the writer ends it. While the store is down nothing is voided. But where a room waits for nothing but its void no
    /// publish comes to the store, so that a read finds out whether it is well again.
    pub(super) fn void_seq(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        if self.void.is_some() || self.is_writing(generation, seq) {
            return;
        }
        let is_degraded = turn.shared.stats.store_degraded_now;
        if is_degraded && !turn.shared.may_read_before_void(turn.now) {
            return;
        }
        self.void = Some(Box::new(VoidRun { generation, seq }));
        if is_degraded {
            self.ask_store(turn, Purpose::BeforeVoid, |ticket, room| StoreRequest::ReadGen { ticket, room });
        } else {
            self.seal(turn, generation, seq);
        }
    }

    fn seal(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        let request = BusRequest::Void1 { room: self.id.clone(), generation, seq, min_age_ms: PENDING_MS_MAX };
        self.ask_bus(turn, BusAsked::Void1, request);
    }

    pub(super) fn read_before_void(&mut self, turn: &mut Turn<'_>, reply: &StoreReply) {
        let Some(VoidRun { generation, seq }) = self.void.as_deref() else { return };
        let (generation, seq) = (*generation, *seq);
        match reply {
            StoreReply::Gen { .. } => self.seal(turn, generation, seq),
            _ => self.void = None,
        }
    }

    pub(super) fn void1_answered(&mut self, turn: &mut Turn<'_>, reply: &BusReply) {
        let Some(VoidRun { generation, seq }) = self.void.as_deref() else { return };
        let (generation, seq) = (*generation, *seq);
        if let BusReply::Voiding { answer: Voiding::Ok, .. } = reply {
            self.ask_store(turn, Purpose::Void, |ticket, room| StoreRequest::Void { ticket, room, generation, seq });
        } else {
            self.void = None;
        }
    }

    pub(super) fn void_stored(&mut self, turn: &mut Turn<'_>, reply: &StoreReply, hint_ms: u32) {
        let Some(VoidRun { generation, seq }) = self.void.as_deref() else { return };
        let (generation, seq, room) = (*generation, *seq, self.id.clone());
        match reply {
            StoreReply::Compared { applied: true, .. } => {
                turn.shared.store_works();
                self.ask_bus(turn, BusAsked::Void2, BusRequest::Void2 { room, generation, seq });
            }
            StoreReply::Compared { applied: false, .. } => {
                // The store has a later generation: the bus must not serve this one.
                turn.shared.store_works();
                self.void = None;
                self.retire(turn, generation);
            }
            _ => {
                turn.shared.store_failed(turn.now, hint_ms);
                self.void = None;
            }
        }
    }

    pub(super) fn void2_answered(&mut self, turn: &mut Turn<'_>, reply: &BusReply) {
        self.void = None;
        if let BusReply::Voided { applied: true, .. } = reply {
            turn.shared.stats.voided_total += 1;
            self.writer_may_go_on(turn);
            // A dead writer may have left several.
            self.want_head();
        }
    }
}
