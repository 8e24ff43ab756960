//! ORDERING.md's receiver: hands a room's messages to the shards with members, in order, each once, none left out.
//!
//! `next` is the seq to deliver next: everything below is decided and was delivered or skipped. `know` is a seq up to
//! which all is decided on the bus. What lies between is in `hold`, or is read from the store.
//!
//! A head is looked at when a hole shows (50 ms, then back off to 1 s), when something is in doubt (at most every 50 ms),
//! and in a cluster about every 10 s ([`super::looks`]): nothing else finds the loss of a last message.

use super::init::Survey;
use super::room::Room;
use super::shared::{BACK_OFF_MS_MAX, Purpose, Turn, back_off_ms, hint_ms};
use super::writer::chat_json;
use crate::bus::{BusEvent, Head, PENDING_MESSAGES_MAX, row_of_payload};
use crate::store::{From, ReadRow, RoomMeta, Row, StoreReply, StoreRequest};
use bytes::Bytes;
use roomwire_wire::message::HISTORY_MESSAGES_MAX;
use std::collections::BTreeMap;

/// The first look at a hole.
const HOLE_MS: u64 = 50;
/// How long a seq may be pending before it is voided.
pub(super) const PENDING_MS_MAX: u64 = 1_000;
/// How many rows of the tail tell where a room ends: W for what may be missing, and D for the dedupe window.
pub(super) const TAIL_ROWS: u32 = (PENDING_MESSAGES_MAX + crate::bus::DEDUPE_MESSAGES) as u32;

/// And how many tell whether there is more than a receiver has, with the room's facts.
const GLANCE_ROWS: u32 = 1;

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
    /// (generation, base) as the store had them, once they were asked for.
    pub(super) bases: Option<Box<[(u64, u64)]>>,
    /// When to look at the head.
    pub(super) check_ms: Option<u64>,
    hole_wait_ms: u64,
    /// When the store may be read again for what is missing.
    read_ms: Option<u64>,
    /// The number of the last HEAD whose answer is taken into account: `know` is no older.
    pub(super) checked: u64,
    /// When a doubt last made it look at the head.
    doubted_ms: u64,
    /// Names its entry in the list of heads to look at.
    pub(super) look: u64,
}

/// The store's view of a room that is not live on the bus.
#[derive(Debug, Default)]
struct ColdRead {
    /// Of the HEAD that was answered "not live".
    number: u64,
    /// Asked by a receiver that knows its place, and wants to know only whether there is more.
    is_glance: bool,
    meta: RoomMeta,
    tail: Vec<Row>,
    /// What the room's head is, if the bus says once more that the room is not live: nothing read was undecided then.
    last: Option<u64>,
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
        self.checked >= number && self.next > self.know && self.reading_hole.is_none()
    }

    /// The last seq that was delivered or skipped.
    pub(super) fn last(&self) -> u64 {
        self.next.saturating_sub(1)
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

    fn adopt(&mut self, generation: u64, base: u64) {
        if generation <= self.generation {
            return;
        }
        self.generation = generation;
        self.base = base;
        self.know = self.know.max(base.saturating_sub(1));
        self.hold.retain(|seq, held| held.generation >= generation || *seq < base);
        self.bases = None;
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
        if !receiver.is_known() || !receiver.listens {
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
        let receiver = &mut self.receiver;
        if !receiver.listens {
            return;
        }
        if !receiver.is_known() {
            // What does not fit here is found by the head's `stable`, or by the next message's.
            if receiver.early.len() < PENDING_MESSAGES_MAX as usize {
                receiver.early.push(event);
            }
            return;
        }
        match event {
            BusEvent::Message { generation, seq, base, stable, payload, received_us, .. } => {
                receiver.adopt(generation, base);
                if generation == receiver.generation {
                    receiver.know = receiver.know.max(stable);
                }
                self.hold(seq, Held { generation, payload: Some(payload), received_us });
            }
            BusEvent::Control { generation, base, void, .. } => {
                receiver.adopt(generation, base);
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
        let is_dead = held.generation < receiver.generation && seq >= receiver.base;
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
        self.receiver.checked = number;
        if self.receiver.position == Position::Asking {
            self.receiver.reading_cold = None;
            self.settle(turn, (head.generation, head.base, head.stable), None);
        } else if self.receiver.is_known() {
            self.receiver.adopt(head.generation, head.base);
            if head.generation == self.receiver.generation {
                self.receiver.know = self.receiver.know.max(head.stable);
            }
        }
        let someone_waits = self.receiver.has_hole() || self.has_unresolved();
        if let Some((seq, age_ms)) = head.pending
            && someone_waits
            && age_ms >= PENDING_MS_MAX
        {
            self.void_seq(turn, head.generation, seq);
        }
        self.head_for_writer(turn, &head);
    }

    /// The bus does not hold the room.
    pub(super) fn head_needs_init(&mut self, turn: &mut Turn<'_>, number: u64) {
        if self.init.is_none() && (self.has_unresolved() || self.has_queue()) {
            self.init_wanted = true;
        }
        if let Some(cold) = self.receiver.reading_cold.take_if(|cold| cold.last.is_some()) {
            self.cold_confirmed(turn, *cold);
            return;
        }
        let is_asking = self.receiver.position == Position::Asking;
        if is_asking && (self.init_wanted || self.init.as_ref().is_some_and(|init| init.failures == 0)) {
            // The head is asked for again when the room is live, or its initialisation has failed.
            self.receiver.position = Position::Unknown;
            return;
        }
        // One that knows its place may have missed messages of a bus that is gone: the store tells.
        let may_lack = self.receiver.is_known() && self.receiver.listens && self.init.is_none() && !self.init_wanted;
        if (is_asking || may_lack) && self.receiver.reading_cold.is_none() {
            let is_glance = !is_asking;
            self.receiver.reading_cold = Some(Box::new(ColdRead { number, is_glance, ..ColdRead::default() }));
            let window = if is_glance { GLANCE_ROWS } else { TAIL_ROWS };
            self.ask_store(turn, Purpose::Cold, |ticket, room| StoreRequest::ReadRoom { ticket, room, window });
        }
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

    // A room that is not live on the bus: its head is what the store has.

    pub(super) fn cold_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let Some(mut cold) = self.receiver.reading_cold.take() else { return };
        let StoreReply::Room { meta, tail, .. } = reply else {
            self.cold_failed(turn, hint_ms(&reply));
            return;
        };
        (cold.meta, cold.tail) = (meta, tail);
        if cold.is_glance {
            self.glanced(&cold);
            return;
        }
        let survey = Survey::of(&cold.meta, &cold.tail, 0);
        if survey.needs_oldest(&cold.meta) {
            self.receiver.reading_cold = Some(cold);
            self.ask_store(turn, Purpose::ColdOldest, oldest_request);
        } else {
            self.cold_surveyed(turn, cold, &survey);
        }
    }

    /// What a receiver that knows its place saw of a room that the bus has lost: a generation is made only if something
    /// is there that it does not have, be it a row that no generation will keep.
    fn glanced(&mut self, cold: &ColdRead) {
        let (meta, receiver) = (&cold.meta, &self.receiver);
        if !receiver.is_known() {
            // The position is asked for anew, and with it the whole tail.
            self.receiver.position = Position::Unknown;
            return;
        }
        let rows = cold.tail.iter().map(|row| row.seq);
        let bases = meta.bases.iter().map(|(_, base)| base.saturating_sub(1));
        let last = rows.chain(bases).chain(meta.voids.last().copied()).max().unwrap_or(0);
        // A client from another node may know a generation in which nothing was said yet.
        let is_behind = meta.generation > receiver.generation && self.someone_is_beyond();
        if last >= receiver.next || is_behind {
            self.init_wanted = true;
        } else {
            self.receiver.checked = self.receiver.checked.max(cold.number);
        }
    }

    pub(super) fn cold_oldest(&mut self, turn: &mut Turn<'_>, reply: &StoreReply) {
        let Some(cold) = self.receiver.reading_cold.take() else { return };
        let StoreReply::Page { oldest, .. } = reply else {
            self.cold_failed(turn, hint_ms(reply));
            return;
        };
        let survey = Survey::of(&cold.meta, &cold.tail, *oldest);
        self.cold_surveyed(turn, cold, &survey);
    }

    fn cold_failed(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        if self.receiver.position == Position::Asking {
            self.position_failed(turn, hint_ms);
            self.refuse_history(turn, hint_ms);
        }
        self.check_failed(turn);
    }

    fn cold_surveyed(&mut self, turn: &mut Turn<'_>, mut cold: Box<ColdRead>, survey: &Survey) {
        if self.receiver.position != Position::Asking {
            return;
        }
        // A generation without a base is one that is being made, or was given up: what lies behind its beginning may be
        // left out of it by who makes it, though it is here already.
        let (latest, base) = cold.meta.bases.last().copied().unwrap_or((0, 1));
        let is_being_made = latest != cold.meta.generation;
        // What came after the latest generation's beginning may have been pending on the bus that is gone, and a void of
        // it on its way to the store: only another generation keeps that out. A bus in this process takes its voids along.
        let is_open = turn.shared.config.cluster && survey.last >= base;
        if survey.missing.is_empty() && !is_being_made && !is_open {
            cold.last = Some(survey.last);
            self.receiver.reading_cold = Some(cold);
            self.want_head();
            return;
        }
        // Only an initialisation may decide what nobody decided yet.
        if self.init.is_some() {
            self.position_failed(turn, 0);
            self.refuse_history(turn, 0);
        } else {
            self.receiver.position = Position::Unknown;
            self.init_wanted = true;
        }
    }

    /// The room was not live before the read, nor after.
    fn cold_confirmed(&mut self, turn: &mut Turn<'_>, cold: ColdRead) {
        if self.receiver.position == Position::Asking {
            let (generation, base) = cold.meta.bases.last().copied().unwrap_or((0, 1));
            let last = cold.last.unwrap_or(0);
            self.settle(turn, (generation, base, last), Some(cold.meta.bases.into()));
        }
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
