//! ORDERING.md's receiver: hands a room's messages to the shards with members, in order, each once, none left out.
//!
//! `next` is the seq to deliver next: everything below is decided and was delivered or skipped. `know` is a seq up to
//! which all is decided on the bus. What lies between is in `hold`, or is read from the store.
//!
//! A head is looked at when a hole shows (50 ms, then back off to 1 s), when something is in doubt (at most every 50 ms),
//! and in a cluster about every 10 s ([`super::looks`]): nothing else finds the loss of a last message.

mod cold;
mod cut_off;

use super::room::Room;
use super::shared::{BACK_OFF_MS_MAX, Purpose, Turn, back_off_ms, hint_ms};
use super::writer::chat_json;
use crate::bus::{BusEvent, Head, PENDING_MESSAGES_MAX, row_of_payload};
use crate::store::{From, ReadRow, StoreReply, StoreRequest};
use bytes::Bytes;
use cold::ColdRead;
use roomwire_wire::message::HISTORY_MESSAGES_MAX;
use std::collections::BTreeMap;

/// The first look at a hole.
const HOLE_MS: u64 = 50;
/// How long a seq may be pending before it is voided.
pub(super) const PENDING_MS_MAX: u64 = 1_000;
/// How many rows of the tail tell where a room ends: W for what may be missing, and D for the dedupe window.
pub(super) const TAIL_ROWS: u32 = (PENDING_MESSAGES_MAX + crate::bus::DEDUPE_MESSAGES) as u32;

/// Whether `next` means something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Unknown,
    /// HEAD is under way, or its answer was "not live" and the store is being read.
    Asking,
    Known,
}

/// Whether the bus has made the room's subscription: a position that was found before would miss what came between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Subscription {
    /// Not asked for, or it failed.
    #[default]
    None,
    Asked,
    Made,
}

/// A message that came before its turn; `payload` is `None` for a void.
#[derive(Debug)]
struct Held {
    generation: u64,
    payload: Option<Bytes>,
    received_us: u64,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// The room's events come from the bus.
    pub(super) listens: bool,
    pub(super) subscription: Subscription,
    position: Position,
    pub(super) generation: u64,
    pub(super) base: u64,
    next: u64,
    know: u64,
    hold: BTreeMap<u64, Held>,
    /// What was heard before the position was known.
    early: Vec<BusEvent>,
    /// The store is being read for what is missing up to here.
    reading_hole: Option<u64>,
    /// The store is being read for a room that is not live.
    reading_cold: Option<Box<ColdRead>>,
    /// The generation that was followed until others went by unheard: the store is asked where they began, and nothing is
    /// delivered meanwhile.
    passed: Option<u64>,
    reading_passed: bool,
    /// The store has rows of a later generation where this one is still served.
    is_stale: bool,
    /// (generation, base) as the store had them, once they were asked for.
    pub(super) bases: Option<Box<[(u64, u64)]>>,
    /// When to look at the head.
    pub(super) check_ms: Option<u64>,
    hole_wait_ms: u64,
    /// When the store may be read again for what is missing.
    read_ms: Option<u64>,
    /// The server of the bus that had no trace of the room when all that the store has of it was known here.
    absent_on: Option<u64>,
    /// The number of the last HEAD whose answer is taken into account: `know` is no older.
    pub(super) checked: u64,
    /// When a doubt last made it look at the head.
    doubted_ms: u64,
    /// Names its entry in the list of heads to look at.
    pub(super) look: u64,
}

impl Receiver {
    pub(super) fn listening(look: u64) -> Receiver {
        Receiver { listens: true, look, ..Receiver::default() }
    }

    pub(super) fn is_known(&self) -> bool {
        self.position == Position::Known
    }

    /// All that was decided when the HEAD of that number was answered is delivered.
    pub(super) fn has_checked(&self, number: u64) -> bool {
        let is_there = self.next > self.know && self.reading_hole.is_none() && self.passed.is_none();
        self.checked >= number && is_there
    }

    /// Generations went by unheard, and the store has not said yet where they began.
    pub(super) fn is_passed(&self) -> bool {
        self.passed.is_some()
    }

    /// The last seq that was delivered or skipped.
    pub(super) fn last(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// The generation that [`Receiver::last`] counts in; `None` if the store has to be asked. It is an earlier one than the
    /// bus serves while the end of that is still to be delivered.
    pub(super) fn epoch(&self) -> Option<u64> {
        if self.next >= self.base {
            return Some(self.generation);
        }
        let begun = self
            .bases
            .as_ref()?
            .iter()
            .filter(|(generation, base)| *generation <= self.generation && *base <= self.next);
        Some(begun.map(|(generation, _)| *generation).max().unwrap_or(0))
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading_hole.is_some() || self.reading_cold.is_some()
    }

    /// The position goes stale where the bus is not listened to.
    pub(super) fn forget_position(&mut self) {
        if self.position == Position::Known {
            self.position = Position::Unknown;
        }
    }

    fn has_hole(&self) -> bool {
        !self.hold.is_empty() && self.next > self.know
    }

    /// When the receiver must be looked at.
    pub(super) fn due_ms(&self) -> Option<u64> {
        [self.check_ms, self.read_ms].into_iter().flatten().min()
    }
}

impl Room {
    /// Looks for work after anything happened.
    pub(super) fn pump_receiver(&mut self, turn: &mut Turn<'_>) {
        let is_needed = self.receiver.listens || self.history.is_some();
        let is_due = self.receiver.check_ms.is_none_or(|due| due <= turn.now_ms());
        if self.receiver.listens && self.receiver.subscription == Subscription::None && is_due {
            self.ask_subscription(turn);
        }
        let receiver = &mut self.receiver;
        let may_ask = is_due && (!receiver.listens || receiver.subscription == Subscription::Made);
        let init_hangs = self.init.as_ref().is_none_or(|init| init.failures > 0);
        if receiver.position == Position::Unknown && is_needed && may_ask && init_hangs && !self.init_wanted {
            receiver.position = Position::Asking;
            self.want_head();
            return;
        }
        if !receiver.is_known() || !receiver.listens || self.read_passed(turn) {
            return;
        }
        self.drain_hold(turn);
        let receiver = &mut self.receiver;
        if receiver.next <= receiver.know && receiver.reading_hole.is_none() && receiver.read_ms.is_none() {
            receiver.reading_hole = Some(receiver.know);
            let (after, before) = (receiver.next - 1, receiver.know + 1);
            let bytes_max = turn.shared.config.page_bytes_max;
            self.ask_store(turn, Purpose::Hole, |ticket, room| StoreRequest::Page {
                ticket,
                room,
                after,
                before,
                limit: HISTORY_MESSAGES_MAX,
                bytes_max,
                from: From::Oldest,
            });
        } else if receiver.has_hole() && receiver.hole_wait_ms == 0 {
            receiver.hole_wait_ms = HOLE_MS;
            receiver.check_ms = Some(turn.now_ms() + HOLE_MS);
        }
    }

    /// The bus answered to a subscription.
    pub(super) fn subscribed(&mut self, turn: &mut Turn<'_>, is_made: bool, hint_ms: u32) {
        // Of several, left and joined again in between, the last one counts.
        if !self.receiver.listens || self.receiver.subscription != Subscription::Asked || self.has_asked_subscription()
        {
            return;
        }
        if is_made {
            self.receiver.subscription = Subscription::Made;
        } else {
            self.receiver.subscription = Subscription::None;
            self.position_failed(turn, hint_ms);
            self.history_without_bus(turn, hint_ms);
        }
    }

    /// A look at the head, or a read, may be due.
    pub(super) fn tick_receiver(&mut self, turn: &mut Turn<'_>) {
        let receiver = &mut self.receiver;
        if receiver.read_ms.is_some_and(|due| due <= turn.now_ms()) {
            receiver.read_ms = None;
        }
        if receiver.check_ms.is_none_or(|due| due > turn.now_ms()) {
            return;
        }
        receiver.check_ms = None;
        if !receiver.is_known() || !receiver.listens {
            return;
        }
        if receiver.has_hole() {
            receiver.hole_wait_ms = (receiver.hole_wait_ms * 2).clamp(HOLE_MS, BACK_OFF_MS_MAX);
            receiver.check_ms = Some(turn.now_ms() + receiver.hole_wait_ms);
        }
        self.want_head();
    }

    /// Something may be new: looks at the head, soon if it has just looked.
    pub(super) fn doubt(&mut self, turn: &mut Turn<'_>) {
        let (now_ms, receiver) = (turn.now_ms(), &mut self.receiver);
        if !receiver.listens || !receiver.is_known() {
            return;
        }
        if now_ms >= receiver.doubted_ms + HOLE_MS {
            receiver.doubted_ms = now_ms;
            self.want_head();
        } else {
            let due_ms = receiver.doubted_ms + HOLE_MS;
            receiver.check_ms = Some(receiver.check_ms.map_or(due_ms, |check| check.min(due_ms)));
        }
    }

    /// A message, a void or a new generation.
    pub(super) fn hear(&mut self, turn: &mut Turn<'_>, event: BusEvent) {
        if !self.receiver.listens {
            return;
        }
        if let BusEvent::Message { generation, .. } | BusEvent::Control { generation, .. } = &event
            && *generation > self.receiver.generation
        {
            self.begun_elsewhere(turn);
        }
        let receiver = &mut self.receiver;
        if !receiver.is_known() {
            // What does not fit here is found by the head's `stable`, or by the next message's.
            if receiver.early.len() < PENDING_MESSAGES_MAX as usize {
                receiver.early.push(event);
            }
            return;
        }
        match event {
            BusEvent::Message { generation, seq, base, stable, payload, received_us, .. } => {
                self.adopt(turn, generation, base);
                let receiver = &mut self.receiver;
                if generation == receiver.generation {
                    receiver.know = receiver.know.max(stable);
                }
                self.hold(seq, Held { generation, payload: Some(payload), received_us });
            }
            BusEvent::Control { generation, base, void, .. } => {
                self.adopt(turn, generation, base);
                if let Some(seq) = void {
                    self.hold(seq, Held { generation, payload: None, received_us: 0 });
                }
            }
            BusEvent::Ephemeral { .. } | BusEvent::Doubt { .. } | BusEvent::Lost | BusEvent::Works => {}
        }
        self.drain_hold(turn);
    }

    fn hold(&mut self, seq: u64, held: Held) {
        let receiver = &mut self.receiver;
        // Of generations before the last one only the store tells where they were cut off.
        let is_last = held.generation + 1 == receiver.generation;
        let is_dead = held.generation < receiver.generation && (seq >= receiver.base || !is_last);
        let is_old = seq < receiver.next;
        // The seq that is due always fits; any other that does not is read from the store in its turn.
        let fits = receiver.hold.len() < PENDING_MESSAGES_MAX as usize || seq == receiver.next;
        if is_dead || is_old || !fits {
            return;
        }
        if receiver.hold.get(&seq).is_none_or(|other| other.generation <= held.generation) {
            receiver.hold.insert(seq, held);
        }
    }

    fn drain_hold(&mut self, turn: &mut Turn<'_>) {
        if self.receiver.passed.is_some() {
            return;
        }
        while let Some(held) = self.receiver.hold.remove(&self.receiver.next) {
            let seq = self.receiver.next;
            self.receiver.next += 1;
            let row = self.recent.unstage(held.generation, seq);
            let Some(payload) = held.payload else { continue };
            let row = row.or_else(|| {
                let row = row_of_payload(&self.id, &payload)?;
                (row.seq == seq && row.generation == held.generation).then(|| ReadRow { row, read_by: Vec::new() })
            });
            self.recent.push(turn.shared, &self.id, seq, row);
            self.deliver(turn, seq, &payload, held.received_us);
        }
        if !self.receiver.has_hole() {
            self.receiver.hole_wait_ms = 0;
        }
    }

    /// The store gave what was missing up to `know`: what it does not have is void.
    pub(super) fn hole_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let receiver = &mut self.receiver;
        let Some(know) = receiver.reading_hole.take().filter(|_| receiver.is_known()) else { return };
        let StoreReply::Page { rows, cut, .. } = reply else {
            receiver.read_ms = Some(turn.now_ms() + back_off_ms(2, hint_ms(&reply)));
            self.check_failed(turn);
            return;
        };
        if self.is_of_later_generation(turn, &rows) {
            self.receiver.read_ms = Some(turn.now_ms() + back_off_ms(2, 0));
            return;
        }
        // `know` may have grown since; this page can only speak of what was decided when it was asked for.
        let end = if cut { rows.last().map_or(0, |read| read.row.seq) } else { know };
        for read in rows {
            let seq = read.row.seq;
            if seq < self.receiver.next {
                continue;
            }
            self.receiver.next = seq + 1;
            self.recent.unstage(read.row.generation, seq);
            let payload = chat_json(&read.row);
            self.recent.push(turn.shared, &self.id, seq, Some(read));
            self.deliver(turn, seq, &payload, 0);
        }
        self.receiver.next = self.receiver.next.max(end + 1);
        let next = self.receiver.next;
        self.receiver.hold.retain(|seq, _| *seq >= next);
    }

    // HEAD.

    pub(super) fn head(&mut self, turn: &mut Turn<'_>, number: u64, head: Head) {
        if self.is_older(head.generation) {
            if self.receiver.is_known() {
                self.adopt(turn, head.generation, head.base);
            }
            self.left_behind(turn, head.generation);
            return;
        }
        self.receiver.checked = number;
        self.receiver.absent_on = None;
        if self.receiver.position == Position::Asking {
            self.receiver.reading_cold = None;
            self.settle(turn, (head.generation, head.base, head.stable), None);
        } else if self.receiver.is_known() {
            self.adopt(turn, head.generation, head.base);
            if head.generation == self.receiver.generation {
                self.receiver.know = self.receiver.know.max(head.stable);
            }
        }
        self.begun_elsewhere(turn);
        let someone_waits = self.receiver.has_hole() || self.has_unresolved();
        if let Some((seq, age_ms)) = head.pending
            // What was published behind it may have been lost on its way here.
            && (someone_waits || self.receiver.listens && head.seq > seq)
            && age_ms >= PENDING_MS_MAX
        {
            self.void_seq(turn, head.generation, seq);
        }
        self.head_for_writer(turn, &head);
    }

    /// A later generation than this one is known here.
    pub(super) fn is_older(&self, generation: u64) -> bool {
        generation < self.receiver.generation.max(self.made)
    }

    /// The bus serves an older generation than one that is known here, which was made on a bus that stood in its place: what
    /// it would publish is dead.
    pub(super) fn left_behind(&mut self, turn: &mut Turn<'_>, generation: u64) {
        if self.receiver.position == Position::Asking {
            self.receiver.position = Position::Unknown;
        }
        self.retire(turn, generation);
    }

    pub(super) fn head_failed(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        let wait_ms = u64::from(hint_ms).clamp(HOLE_MS, BACK_OFF_MS_MAX);
        self.receiver.check_ms = Some(turn.now_ms() + wait_ms);
        if self.receiver.position == Position::Asking {
            self.position_failed(turn, hint_ms);
            self.history_without_bus(turn, hint_ms);
        }
        self.check_failed(turn);
        self.writer_waits(turn.now_ms() + wait_ms);
    }

    /// The position cannot be found now: the room asks again later.
    fn position_failed(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        self.receiver.position = Position::Unknown;
        let wait_ms = u64::from(hint_ms).clamp(HOLE_MS, BACK_OFF_MS_MAX);
        self.receiver.check_ms = Some(turn.now_ms() + wait_ms);
    }

    /// The room was initialised: whoever waited for that may ask again, and its generation is a new one.
    pub(super) fn position_may_be_asked(&mut self) {
        if self.receiver.position == Position::Unknown {
            self.receiver.check_ms = None;
        }
        if self.receiver.is_known() && self.receiver.listens || self.has_unresolved() {
            self.want_head();
        }
    }

    /// The position is found: all up to `last` is history, all after is delivered.
    fn settle(
        &mut self,
        turn: &mut Turn<'_>,
        (generation, base, last): (u64, u64, u64),
        bases: Option<Box<[(u64, u64)]>>,
    ) {
        let receiver = &mut self.receiver;
        receiver.position = Position::Known;
        receiver.generation = generation;
        receiver.base = base;
        receiver.next = last + 1;
        receiver.know = last;
        receiver.bases = bases;
        receiver.check_ms = None;
        receiver.hold.clear();
        let early = std::mem::take(&mut receiver.early);
        self.recent.clear(turn.shared, last);
        for event in early {
            self.hear(turn, event);
        }
    }
}

/// Asks what retention left of a room.
pub(super) fn oldest_request(ticket: u64, room: crate::names::RoomId) -> StoreRequest {
    StoreRequest::Page { ticket, room, after: 0, before: u64::MAX, limit: 1, bytes_max: 1, from: From::Oldest }
}
