//! A bus that keeps fingerprints only says which decided seq *may* hold a message: its row tells.
//!
//! The publish waits in the queue while the row is read, and so do later ones of its connection. If the row is the same
//! message, the publish ends with that row's ids; else it is sequenced with that seq excepted.

use super::super::room::Room;
use super::super::shared::{BACK_OFF_MS, Purpose, Turn, hint_ms};
use crate::store::StoreReply;

impl Room {
    pub(super) fn read_known(&mut self, turn: &mut Turn<'_>, attempt: u64, seq: u64) {
        self.ask_row(turn, Purpose::Known { attempt, seq }, seq);
    }

    /// The row at a seq that may hold the message of that attempt from before. No row means that retention removed it,
    /// or that a later generation voided it: then nobody can tell, and a message is rather doubled than lost.
    pub(in super::super) fn known_read(&mut self, turn: &mut Turn<'_>, attempt: u64, seq: u64, reply: &StoreReply) {
        let Some(writer) = &mut self.writer else { return };
        // It may have been refused meanwhile.
        let Some(index) = writer.queue.iter().position(|publish| publish.attempt == attempt) else { return };
        let publish = &mut writer.queue[index];
        publish.is_reading = false;
        let StoreReply::Page { rows, .. } = reply else {
            // The bus will say `Perhaps` again.
            publish.not_before_ms = turn.now_ms() + u64::from(hint_ms(reply)).max(BACK_OFF_MS);
            return;
        };
        let is_same = |row: &crate::store::Row| row.user == publish.user.id && row.client_id == publish.client_id;
        let Some(row) = rows.iter().map(|read| &read.row).find(|row| row.seq == seq && is_same(row)) else {
            publish.except.push(seq);
            return;
        };
        let (generation, timestamp) = (row.generation, row.timestamp);
        if let Some(mut publish) = writer.queue.remove(index) {
            turn.shared.stored_before();
            publish.timestamp = timestamp;
            self.ack(turn, &publish, generation, seq);
        }
    }
}
