//! ORDERING.md's strict mode: between append and PUB one serial read of the room's generation. A Redis that was cut off,
//! and whose successor began a later generation, then publishes nothing that the successor's side would not know of.
//!
//! One read is under way per room; what becomes durable meanwhile shares the next one.

use super::{Room, Stage};
use crate::bridge::shared::{BACK_OFF_MS, Purpose, Turn, hint_ms};
use crate::store::{StoreReply, StoreRequest};

impl Room {
    /// Asks the store for what is durable.
    pub(super) fn fence(&mut self, turn: &mut Turn<'_>) {
        let Some(writer) = &mut self.writer else { return };
        if writer.durable.is_empty() || !writer.fencing.is_empty() {
            return;
        }
        writer.fencing = std::mem::take(&mut writer.durable);
        self.ask_store(turn, Purpose::Fence, |ticket, room| StoreRequest::ReadGen { ticket, room });
    }

    /// The store's word: what is of its generation goes out, for anything else the bus must not serve its own any longer.
    pub(in crate::bridge) fn fenced(&mut self, turn: &mut Turn<'_>, reply: &StoreReply) {
        let now_ms = turn.now_ms();
        let Some(writer) = &mut self.writer else { return };
        let places = std::mem::take(&mut writer.fencing);
        let StoreReply::Gen { generation: latest, .. } = reply else {
            writer.durable.extend(places);
            writer.publish_again = true;
            self.writer_waits(now_ms + u64::from(hint_ms(reply)).max(BACK_OFF_MS));
            return;
        };
        let (current, stale): (Vec<_>, Vec<_>) = places.into_iter().partition(|(generation, _)| generation == latest);
        let mut retire = None;
        for place in stale {
            if let Some(written) = writer.written.get_mut(&place) {
                written.stage = Stage::Unresolved;
                writer.unresolved.insert(place);
                retire = Some(place.0);
            }
        }
        self.publish_places(turn, current);
        if let Some(generation) = retire {
            self.retire(turn, generation);
            self.want_head();
        }
    }
}
