//! ORDERING.md's writer: SEQ, append, PUB, ack; and RESOLVE where the outcome is not clear.
//!
//! A room has at most one SEQ under way and its publishes wait in one queue, so what one connection sends keeps its
//! order, also over a re-init. A repeat of a message that is still under way here joins it and gets its answer.
//!
//! A publish that waits longer than `publish_ms_max` is answered `unavailable`. If it has a seq by then it is still
//! brought to its end: it may appear later, once, and a retry with the same client id gets its true ids.

mod answers;
mod fence;
mod known;
mod sequenced;

use super::room::{BusAsked, Room};
use super::shared::{BACK_OFF_MS, Origin, PROBE_MS_MAX, Purpose, Turn, hint_ms};
use crate::bus::{BusReply, BusRequest, DedupeKey, Head, PublishItem, SequenceItem};
use crate::names::User;
use crate::store::{From, Row, StoreReply, StoreRequest};
use bytes::Bytes;
use hashbrown::HashMap;
use roomwire_wire::id::MessagePlace;
use roomwire_wire::message::{Chat, RawText, ServerMessage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The most messages of one SEQ.
const SEQUENCE_ITEMS_MAX: usize = 1_024;
/// What the sender of a message is told that could not be stored now.
pub(super) const WHY_UNAVAILABLE: &str = "the message cannot be stored now";
/// The pause after BUSY or WAIT.
const PAUSE_MS: u64 = 20;

/// A publish as it came in.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) origin: Origin,
    pub(super) user: User,
    pub(super) content: Bytes,
    pub(super) client_id: Option<Arc<str>>,
    pub(super) received_us: u64,
}

/// A publish under way.
#[derive(Debug)]
struct Publish {
    origin: Origin,
    user: User,
    content: Bytes,
    client_id: Arc<str>,
    /// The client gave the id, so it gets an ack.
    has_client_id: bool,
    attempt: u64,
    timestamp: u64,
    received_us: u64,
    deadline_ms: u64,
    /// `unavailable` was said.
    is_answered: bool,
    /// A later message of its connection has been published.
    is_overtaken: bool,
    /// It came while the bus did not answer: refused as soon as it still does not.
    is_probe: bool,
    /// Not to be sequenced before: another attempt of it is under way.
    not_before_ms: u64,
    /// The row of a seq that may hold it from before is being read; it waits in the queue meanwhile.
    is_reading: bool,
    /// Decided seqs that hold other messages, although the bus took them for candidates.
    except: Vec<u64>,
}

impl Publish {
    fn key(&self) -> DedupeKey {
        DedupeKey { user: self.user.id.clone(), client_id: self.client_id.clone() }
    }

    /// It cannot be sequenced now.
    fn must_wait(&self, now_ms: u64) -> bool {
        self.is_reading || self.not_before_ms > now_ms
    }
}

/// Where a publish with a seq is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Appending,
    /// To go out with the next flush: in `durable`.
    Durable,
    Publishing,
    /// PUB's outcome is not known: HEAD will tell whether the seq is decided. In `unresolved`.
    Unresolved,
    /// Whose message stands at the seq is being read.
    Reading,
}

/// A publish that has a seq.
#[derive(Debug)]
struct Written {
    publish: Publish,
    stage: Stage,
}

/// The publishes of one room.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// They wait for a seq.
    queue: VecDeque<Publish>,
    /// They are in the SEQ that is under way.
    sequencing: Vec<Publish>,
    /// They have one: by (generation, seq). Boxed, as a node of the map has room for eleven.
    written: BTreeMap<(u64, u64), Box<Written>>,
    /// Those of `written` that wait for a PUB, and for a HEAD.
    durable: Vec<(u64, u64)>,
    /// Strict mode: the store is being asked whether their generation is still the latest.
    fencing: Vec<(u64, u64)>,
    unresolved: BTreeSet<(u64, u64)>,
    /// Client ids under way here, and who else waits for each.
    keys: HashMap<DedupeKey, Vec<Origin>>,
    /// No SEQ before.
    pause_ms: u64,
    /// Some of the queue may have `not_before_ms` or `is_reading` set.
    has_waiting: bool,
    /// When something must be tried again.
    retry_ms: Option<u64>,
    /// When somebody has waited long enough; one timer per room, not per publish.
    expire_ms: Option<u64>,
    /// PUB's answer was `Failed`: again at the retry.
    publish_again: bool,
}

impl Writer {
    /// When the writer must be looked at.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let waiting = self.queue.iter().take_while(|_| self.has_waiting);
        let waiting = waiting.map(|publish| publish.not_before_ms).filter(|due| *due > 0).min();
        let paused = Some(self.pause_ms).filter(|due| *due > 0 && !self.queue.is_empty());
        [waiting, paused, self.retry_ms, self.expire_ms].into_iter().flatten().min()
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.sequencing.is_empty() && self.written.is_empty()
    }

    /// Puts publishes back to the front of the queue, in their order.
    fn put_back(&mut self, publishes: Vec<Publish>) {
        for publish in publishes.into_iter().rev() {
            self.queue.push_front(publish);
        }
    }

    /// Takes what may be sequenced now. A connection's later messages do not overtake one that has to wait.
    fn take_batch(&mut self, now_ms: u64) -> Vec<Publish> {
        self.has_waiting &= self.queue.iter().any(|publish| publish.must_wait(now_ms));
        if !self.has_waiting {
            let count = self.queue.len().min(SEQUENCE_ITEMS_MAX);
            return self.queue.drain(..count).collect();
        }
        let mut batch = Vec::new();
        let mut kept = VecDeque::new();
        let mut waiting: Vec<Origin> = Vec::new();
        for publish in std::mem::take(&mut self.queue) {
            let must_wait = publish.must_wait(now_ms) || waiting.contains(&publish.origin);
            if must_wait {
                waiting.push(publish.origin);
            }
            if must_wait || batch.len() >= SEQUENCE_ITEMS_MAX {
                kept.push_back(publish);
            } else {
                batch.push(publish);
            }
        }
        self.queue = kept;
        batch
    }
}

impl Room {
    /// Takes a publish in.
    pub(super) fn offer(&mut self, turn: &mut Turn<'_>, offer: Offer, is_probe: bool) {
        self.touch(turn);
        let writer = self.writer.get_or_insert_default();
        let patience_ms = u64::from(turn.shared.config.publish_ms_max);
        let deadline_ms = turn.now_ms() + if is_probe { patience_ms.min(PROBE_MS_MAX) } else { patience_ms };
        writer.expire_ms = Some(writer.expire_ms.map_or(deadline_ms, |expire| expire.min(deadline_ms)));
        let has_client_id = offer.client_id.is_some();
        let client_id = offer.client_id.unwrap_or_else(|| turn.shared.new_client_id());
        if has_client_id {
            let key = DedupeKey { user: offer.user.id.clone(), client_id: client_id.clone() };
            if let Some(others) = writer.keys.get_mut(&key) {
                turn.shared.stats.duplicates_total += 1;
                others.push(offer.origin);
                return;
            }
            writer.keys.insert(key, Vec::new());
        }
        turn.shared.publish_begins();
        writer.queue.push_back(Publish {
            origin: offer.origin,
            user: offer.user,
            content: offer.content,
            client_id,
            has_client_id,
            attempt: turn.shared.new_attempt(),
            timestamp: turn.now.unix_ms,
            received_us: offer.received_us,
            deadline_ms,
            is_answered: false,
            is_overtaken: false,
            is_probe,
            not_before_ms: 0,
            is_reading: false,
            except: Vec::new(),
        });
    }

    // What others ask of the writer.

    pub(super) fn has_queue(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.queue.is_empty() || !writer.sequencing.is_empty())
    }

    pub(super) fn has_unresolved(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.unresolved.is_empty())
    }

    /// This node has not given the seq up.
    pub(super) fn is_writing(&self, generation: u64, seq: u64) -> bool {
        self.writer.as_ref().is_some_and(|writer| {
            writer
                .written
                .get(&(generation, seq))
                .is_some_and(|written| !matches!(written.stage, Stage::Unresolved | Stage::Reading))
        })
    }

    /// What kept publishes from going on is over.
    pub(super) fn writer_may_go_on(&mut self, turn: &mut Turn<'_>) {
        if let Some(writer) = &mut self.writer {
            writer.pause_ms = 0;
            writer.retry_ms = writer.retry_ms.map(|_| turn.now_ms());
            for publish in &mut writer.queue {
                publish.not_before_ms = 0;
            }
        }
    }

    /// Something is to be tried again then.
    pub(super) fn writer_waits(&mut self, due_ms: u64) {
        if let Some(writer) = &mut self.writer {
            writer.retry_ms = Some(writer.retry_ms.map_or(due_ms, |retry| retry.min(due_ms)));
        }
    }

    // The pump and the flush.

    pub(super) fn pump_writer(&mut self, turn: &mut Turn<'_>) {
        if self.writer.as_ref().is_some_and(|writer| writer.is_empty()) {
            self.writer = None;
        }
        if self.has_unresolved() && self.writer.as_ref().is_some_and(|writer| writer.retry_ms.is_none()) {
            self.writer_waits(turn.now_ms() + BACK_OFF_MS);
            self.want_head();
        }
    }

    /// Retries that are due.
    pub(super) fn tick_writer(&mut self, turn: &mut Turn<'_>) {
        let now_ms = turn.now_ms();
        let Some(writer) = &mut self.writer else { return };
        if writer.pause_ms <= now_ms {
            writer.pause_ms = 0;
        }
        for publish in &mut writer.queue {
            if publish.not_before_ms <= now_ms {
                publish.not_before_ms = 0;
            }
        }
        if writer.retry_ms.is_some_and(|due| due <= now_ms) {
            writer.retry_ms = None;
            writer.publish_again = false;
        }
        if writer.expire_ms.is_some_and(|due| due <= now_ms) {
            self.expire_publishes(turn);
        }
    }

    /// A SEQ can go out: none is under way, nothing is being initialised, and for a `user:` room, whose position must
    /// be known before its first message, the position is.
    fn may_sequence(&self, now_ms: u64) -> bool {
        let Some(writer) = &self.writer else { return false };
        let is_free = writer.sequencing.is_empty() && self.init.is_none() && !self.init_wanted;
        let is_placed = !self.is_user() || self.receiver.is_known();
        is_free && is_placed && writer.pause_ms <= now_ms && writer.queue.iter().any(|one| !one.must_wait(now_ms))
    }

    pub(super) fn has_flush_work(&self, now: crate::Now) -> bool {
        let has_durable =
            |writer: &Writer| !writer.publish_again && !writer.durable.is_empty() && writer.fencing.is_empty();
        let has_durable = self.writer.as_deref().is_some_and(has_durable);
        has_durable || self.may_sequence(now.mono_ms())
    }

    pub(super) fn flush_sequence(&mut self, turn: &mut Turn<'_>) {
        if !self.may_sequence(turn.now_ms()) {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        let batch = writer.take_batch(turn.now_ms());
        if batch.is_empty() {
            return;
        }
        let item = |publish: &Publish| SequenceItem {
            key: publish.key(),
            attempt: publish.attempt,
            timestamp: publish.timestamp,
            except: publish.except.clone(),
        };
        let items = batch.iter().map(item).collect();
        writer.sequencing = batch;
        self.ask_bus(turn, BusAsked::Sequence, BusRequest::Sequence { room: self.id.clone(), items });
    }

    pub(super) fn send_publishes(&mut self, turn: &mut Turn<'_>) {
        let Some(writer) = self.writer.as_mut().filter(|writer| !writer.publish_again) else { return };
        if turn.shared.config.strict {
            self.fence(turn);
        } else {
            let durable = std::mem::take(&mut writer.durable);
            self.publish_places(turn, durable);
        }
    }

    /// PUB for these.
    fn publish_places(&mut self, turn: &mut Turn<'_>, mut durable: Vec<(u64, u64)>) {
        let Some(writer) = &mut self.writer else { return };
        let mut places = Vec::new();
        let mut items = Vec::new();
        durable.sort_unstable();
        for place in durable {
            let Some(written) = writer.written.get_mut(&place) else { continue };
            written.stage = Stage::Publishing;
            let publish = &written.publish;
            places.push(place);
            items.push(PublishItem {
                generation: place.0,
                seq: place.1,
                key: publish.key(),
                attempt: publish.attempt,
                payload: chat_json(&row_of(&self.id, place, publish)),
                received_us: publish.received_us,
            });
        }
        if !items.is_empty() {
            self.ask_bus(turn, BusAsked::Publish(places), BusRequest::Publish { room: self.id.clone(), items });
        }
    }

    // Append.

    fn append(&mut self, turn: &mut Turn<'_>, place: (u64, u64), publish: Publish) {
        turn.shared.rows.push(row_of(&self.id, place, &publish));
        if let Some(writer) = &mut self.writer {
            writer.written.insert(place, Box::new(Written { publish, stage: Stage::Appending }));
        }
    }

    /// The store failed: the same row again.
    pub(super) fn append_again(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        let place = (generation, seq);
        if let Some(written) = self.writer.as_ref().and_then(|writer| writer.written.get(&place)) {
            turn.shared.rows.push(row_of(&self.id, place, &written.publish));
        }
    }

    pub(super) fn appended(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        let place = (generation, seq);
        let Some(writer) = &mut self.writer else { return };
        let Some(written) = writer.written.get_mut(&place).filter(|one| one.stage == Stage::Appending) else { return };
        written.stage = Stage::Durable;
        writer.durable.push(place);
        if written.publish.received_us > 0 {
            let spent_us = turn.now.mono_us.saturating_sub(written.publish.received_us);
            turn.shared.stats.durable_us.saturating_record(spent_us);
        }
        if self.receiver.listens {
            self.recent.stage(row_of(&self.id, place, &written.publish));
        }
    }

    // PUB.

    pub(super) fn published(&mut self, turn: &mut Turn<'_>, places: &[(u64, u64)], reply: &BusReply, hint_ms: u32) {
        let now_ms = turn.now_ms();
        for (index, place) in places.iter().enumerate() {
            let Some(writer) = &mut self.writer else { return };
            let Some(written) = writer.written.get_mut(place) else { continue };
            match reply {
                BusReply::Published { answers, .. } if answers.get(index) == Some(&true) => {
                    writer.pause_ms = 0;
                    if let Some(written) = writer.written.remove(place) {
                        turn.shared.stats.published_total += 1;
                        self.ack(turn, &written.publish, place.0, place.1);
                    }
                }
                BusReply::Failed { .. } | BusReply::Refused { .. } => {
                    written.stage = Stage::Durable;
                    writer.durable.push(*place);
                    writer.publish_again = true;
                    self.writer_waits(now_ms + u64::from(hint_ms).max(BACK_OFF_MS));
                }
                // GONE, or the room is not live: what became of the seq must be found out.
                _ => {
                    written.stage = Stage::Unresolved;
                    writer.unresolved.insert(*place);
                    self.want_head();
                }
            }
        }
    }

    // RESOLVE.

    /// HEAD tells which seqs are decided.
    pub(super) fn head_for_writer(&mut self, turn: &mut Turn<'_>, head: &Head) {
        let Some(writer) = &mut self.writer else { return };
        let unresolved = writer.unresolved.clone();
        // The last first: of those that go back to the queue, each finds its successors there.
        for (generation, seq) in unresolved.into_iter().rev() {
            if seq <= head.stable {
                self.resolve(turn, generation, seq);
            } else if generation != head.generation {
                // Of an older generation, and beyond what the new one began with: dead.
                self.sequence_again(turn, generation, seq);
            }
        }
    }

    fn resolve(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        let Some(writer) = &mut self.writer else { return };
        writer.unresolved.remove(&(generation, seq));
        if let Some(written) = writer.written.get_mut(&(generation, seq)) {
            written.stage = Stage::Reading;
            self.ask_row(turn, Purpose::Resolve { generation, seq }, seq);
        }
    }

    /// Asks the store for the row at one seq.
    fn ask_row(&mut self, turn: &mut Turn<'_>, purpose: Purpose, seq: u64) {
        self.ask_store(turn, purpose, |ticket, room| StoreRequest::Page {
            ticket,
            room,
            after: seq - 1,
            before: seq + 1,
            limit: 1,
            bytes_max: u32::MAX,
            from: From::Oldest,
        });
    }

    pub(super) fn resolved(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64, reply: &StoreReply) {
        let place = (generation, seq);
        let Some(writer) = &mut self.writer else { return };
        let Some(written) = writer.written.get_mut(&place) else { return };
        let StoreReply::Page { rows, .. } = reply else {
            written.stage = Stage::Unresolved;
            writer.unresolved.insert(place);
            self.writer_waits(turn.now_ms() + u64::from(hint_ms(reply)).max(BACK_OFF_MS));
            return;
        };
        let attempt = written.publish.attempt;
        let is_mine = rows.iter().any(|read| read.row.generation == generation && read.row.attempt == attempt);
        if !is_mine {
            self.sequence_again(turn, generation, seq);
        } else if let Some(written) = writer.written.remove(&place) {
            turn.shared.stats.published_total += 1;
            self.ack(turn, &written.publish, generation, seq);
        }
    }

    /// The seq is not ours any more: the message needs another, before those that came in after it. One that its
    /// sender was told not to count on is let go, and so is one whose connection has sent another since that has its
    /// seq: what one connection sends keeps its order, so its client has to send it again.
    fn sequence_again(&mut self, turn: &mut Turn<'_>, generation: u64, seq: u64) {
        let Some(writer) = &mut self.writer else { return };
        writer.unresolved.remove(&(generation, seq));
        let Some(written) = writer.written.remove(&(generation, seq)) else { return };
        let publish = written.publish;
        let is_before = |other: &Publish| other.attempt.wrapping_sub(publish.attempt) > u64::MAX / 2;
        let under_way = writer.written.values().map(|written| &written.publish).chain(&writer.sequencing);
        let is_overtaken = |other: &Publish| other.origin == publish.origin && !is_before(other);
        if publish.is_answered || publish.is_overtaken || under_way.into_iter().any(is_overtaken) {
            self.give_up(turn, &publish, "the message was not stored");
            return;
        }
        let index = writer.queue.iter().take_while(|other| is_before(other)).count();
        writer.queue.insert(index, publish);
    }
}

fn row_of(room: &crate::names::RoomId, (generation, seq): (u64, u64), publish: &Publish) -> Row {
    Row {
        room: room.clone(),
        seq,
        generation,
        user: publish.user.id.clone(),
        username: publish.user.name.clone(),
        content: publish.content.clone(),
        client_id: publish.client_id.clone(),
        attempt: publish.attempt,
        timestamp: publish.timestamp,
    }
}

/// A row's content: it was text when it came in.
pub(super) fn text_of(content: &[u8]) -> &str {
    std::str::from_utf8(content).unwrap_or("")
}

/// The client-visible JSON of a message, encoded once for all who get it.
pub(super) fn chat_json(row: &Row) -> Bytes {
    let message_id = MessagePlace { epoch: row.generation, seq: row.seq }.encode(&row.room);
    let mut json = Vec::with_capacity(row.content.len() + 256);
    ServerMessage::ChatMessage(Chat {
        message_id: &message_id,
        room_id: &row.room,
        user_id: &row.user,
        username: &row.username,
        content: RawText::from_escaped(text_of(&row.content)),
        timestamp: row.timestamp,
        seq: row.seq,
        epoch: row.generation,
    })
    .write(&mut json);
    Bytes::from(json)
}
