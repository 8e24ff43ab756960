//! How a publish ends for those who wait for it: with its ids, refused, or told not to wait longer.

use super::super::room::Room;
use super::super::shared::{Origin, Turn};
use super::super::{Answer, BridgeEffect};
use super::{Publish, Stage, WHY_UNAVAILABLE};
use crate::mesh::ToShard;
use roomwire_wire::id::MessagePlace;
use roomwire_wire::message::ErrorCode;
use std::sync::Arc;

impl Room {
    pub(super) fn ack(&mut self, turn: &mut Turn<'_>, publish: &Publish, generation: u64, seq: u64) {
        self.mark_overtaken(publish, (generation, seq));
        let message_id: Arc<str> = Arc::from(MessagePlace { epoch: generation, seq }.encode(&self.id));
        let mut origins = self.others(publish);
        if !publish.is_answered {
            origins.push(publish.origin);
        }
        for origin in origins.into_iter().rev() {
            match origin {
                Origin::Connection(to) if publish.has_client_id => {
                    let message = ToShard::Published {
                        to,
                        room: self.id.clone(),
                        client_id: publish.client_id.clone(),
                        message_id: message_id.clone(),
                        seq,
                        timestamp: publish.timestamp,
                    };
                    turn.effects.push(BridgeEffect::Shard(to.shard, message));
                }
                Origin::Connection(_) => {}
                Origin::Http(call) => {
                    let (message_id, timestamp) = (message_id.clone(), publish.timestamp);
                    let answer = Answer::Published { message_id, seq, epoch: generation, timestamp };
                    turn.effects.push(BridgeEffect::Answer { call, answer });
                }
            }
        }
        turn.shared.publish_ends(publish.is_answered);
    }

    /// Those of the same connection that came in before it, and are not published yet.
    fn mark_overtaken(&mut self, publish: &Publish, place: (u64, u64)) {
        let Some(writer) = &mut self.writer else { return };
        let earlier = |other: &&mut Publish| {
            other.origin == publish.origin && other.attempt.wrapping_sub(publish.attempt) > u64::MAX / 2
        };
        let before = writer.written.range_mut(..place).map(|(_, written)| &mut written.publish);
        before.filter(earlier).for_each(|other| other.is_overtaken = true);
    }

    /// Who else waits for the publish; its client id is free again.
    fn others(&mut self, publish: &Publish) -> Vec<Origin> {
        if !publish.has_client_id {
            return Vec::new();
        }
        self.writer.as_mut().and_then(|writer| writer.keys.remove(&publish.key())).unwrap_or_default()
    }

    /// Lets go of a publish that has no seq, and tells who waits for it.
    pub(super) fn give_up(&mut self, turn: &mut Turn<'_>, publish: &Publish, why: &'static str) {
        let others = self.others(publish);
        let own = (!publish.is_answered).then_some(publish.origin);
        for origin in own.into_iter().chain(others) {
            refuse(turn, origin, publish, why);
        }
        turn.shared.publish_ends(publish.is_answered);
    }

    /// Some publishes have waited for as long as one may.
    pub(super) fn expire_publishes(&mut self, turn: &mut Turn<'_>) {
        let now_ms = turn.now_ms();
        let Some(writer) = &mut self.writer else { return };
        let is_due = |publish: &Publish| publish.deadline_ms <= now_ms;
        let (expired, kept) = std::mem::take(&mut writer.queue).into_iter().partition::<Vec<_>, _>(is_due);
        writer.queue = kept.into();
        let mut store_is_late = false;
        let written = writer.written.values_mut().map(|written| {
            store_is_late |= written.stage == Stage::Appending && written.publish.deadline_ms <= now_ms;
            &mut written.publish
        });
        let under_way = written.chain(&mut writer.sequencing);
        for publish in under_way.filter(|publish| publish.deadline_ms <= now_ms) {
            let others = writer.keys.get_mut(&publish.key()).map(std::mem::take).unwrap_or_default();
            let own = (!publish.is_answered).then_some(publish.origin);
            for origin in own.into_iter().chain(others) {
                refuse(turn, origin, publish, WHY_UNAVAILABLE);
            }
            if !std::mem::replace(&mut publish.is_answered, true) {
                turn.shared.publish_answered();
            }
        }
        let left = writer.written.values().map(|written| &written.publish).chain(&writer.sequencing);
        let left = left.chain(&writer.queue).filter(|publish| !publish.is_answered);
        writer.expire_ms = left.map(|publish| publish.deadline_ms).min();
        for publish in expired {
            self.give_up(turn, &publish, WHY_UNAVAILABLE);
        }
        if store_is_late {
            turn.shared.store_failed(turn.now, 0);
        }
    }
}

fn refuse(turn: &mut Turn<'_>, origin: Origin, publish: &Publish, why: &'static str) {
    let client_id = publish.has_client_id.then(|| publish.client_id.clone());
    let retry_after_ms = Some(turn.shared.retry_after_ms());
    turn.refuse(origin, client_id, (ErrorCode::Unavailable, why), retry_after_ms);
}
