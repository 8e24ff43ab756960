//! History and resume: pages of what is decided, up to what the receiver has delivered, and never beyond.
//!
//! Asks of one room are served one after another, so that many joins of a cold room cost one read of the store: what
//! the first brings, the rest find in memory ([`super::recent`]). An ask waits until the room's position is known.
//!
//! A page has at most [`HISTORY_MESSAGES_MAX`] messages and, after the first, `page_bytes_max` bytes of content. An ask
//! for the newest messages is answered with one page: fewer than asked for, if they are large.
//!
//! `away` answers where the bus cannot say the room's position.

mod away;

use super::receiver::Receiver;
use super::recent::read_in;
use super::room::{BusAsked, Room};
use super::shared::{Origin, Purpose, Turn, hint_ms};
use super::{Answer, BridgeEffect};
use crate::bus::{BusReply, BusRequest, LOG_MESSAGES_MAX};
use crate::mesh::{HistoryAsk, NextPage, ToShard};
use crate::names::UserId;
use crate::store::{From, ReadRow, StoreReply, StoreRequest};
use away::Away;
use bytes::Bytes;
use roomwire_wire::id::MessagePlace;
use roomwire_wire::message::{
    Chat, ErrorCode, HISTORY_MESSAGES_DEFAULT, HISTORY_MESSAGES_MAX, HistoryEntry, RawText, ServerMessage,
};
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// The asks of one room.
#[derive(Debug, Default)]
pub(super) struct History {
    asks: VecDeque<Ask>,
    /// The store is being asked for the first of them.
    reading: Option<Reading>,
    /// Receipts that were stored while a page is read: the page may be from before.
    receipts: Vec<(u64, u64, UserId)>,
    /// The bus is away, and what is certain of the room is read from the store.
    away: Away,
}

#[derive(Debug)]
struct Ask {
    to: Origin,
    want: Want,
}

#[derive(Clone, Debug)]
enum Want {
    /// A position that is not judged yet: of a client that resumes, or of an answer that goes on to the live edge, since
    /// much may have become of the room between two of its pages.
    Since(Since),
    Page(Range),
}

#[derive(Clone, Copy, Debug)]
struct Since {
    seq: u64,
    epoch: Option<u64>,
    limit: u32,
    /// Nothing was missing so far.
    complete: bool,
    /// It follows a page that was given already.
    goes_on: bool,
    /// It lies beyond what was delivered here: judged once the HEAD of that number is.
    check: Option<u64>,
    /// And the store knows of no later generation than that HEAD.
    is_latest: bool,
}

impl Since {
    /// All from there on, or, where that is no place of the room, the newest messages.
    fn range(&self, is_valid: bool) -> Range {
        let (after, complete) = (self.seq, self.complete);
        let all = Range { after, before: None, left: u32::MAX, from: From::Oldest, complete, to_live: true };
        if is_valid {
            return all;
        }
        Range { after: 0, left: self.limit.min(HISTORY_MESSAGES_MAX), from: From::Newest, complete: false, ..all }
    }
}

/// A checked ask.
#[derive(Clone, Debug)]
struct Range {
    after: u64,
    before: Option<u64>,
    left: u32,
    from: From,
    complete: bool,
    /// The answer ends where live messages go on.
    to_live: bool,
}

impl Range {
    /// What would follow after a page of it, in the form in which it goes to the shard and comes back.
    fn next(&self, found: &Found, epoch: u64) -> NextPage {
        let given = u32::try_from(found.rows.len()).unwrap_or(u32::MAX);
        let left = if self.to_live { u32::MAX } else { self.left.saturating_sub(given) };
        let before = self.before.and_then(NonZeroU64::new);
        NextPage { after: found.covered, epoch, before, left, complete: found.complete }
    }
}

/// What the store was asked for.
#[derive(Clone, Copy, Debug)]
struct Reading {
    after: u64,
    before: u64,
    /// The last decided seq at that time.
    last: u64,
    /// Names the question to the bus's log; 0 for one to the store.
    log: u64,
}

/// Rows for one page, and up to which seq they speak.
struct Found {
    rows: Vec<ReadRow>,
    covered: u64,
    complete: bool,
}

impl History {
    /// A receipt was stored.
    pub(super) fn read(&mut self, generation: u64, seq: u64, user: &UserId) {
        if self.reading.is_some() {
            self.receipts.push((generation, seq, user.clone()));
        }
    }
}

fn want_of(ask: &HistoryAsk) -> Want {
    let newest = |after: u64, before: Option<u64>, limit: u32, to_live: bool| {
        let left = limit.min(HISTORY_MESSAGES_MAX);
        Want::Page(Range { after, before, left, from: From::Newest, complete: true, to_live })
    };
    match *ask {
        HistoryAsk::Last { limit } => newest(0, None, limit, true),
        HistoryAsk::Since { seq, epoch, limit } => {
            Want::Since(Since { seq, epoch, limit, complete: true, goes_on: false, check: None, is_latest: false })
        }
        HistoryAsk::Range { after: None, before, limit } => newest(0, before, limit, false),
        HistoryAsk::Range { after: Some(after), before, limit } => {
            let left = limit.min(HISTORY_MESSAGES_MAX);
            Want::Page(Range { after, before, left, from: From::Oldest, complete: true, to_live: false })
        }
        HistoryAsk::Next(NextPage { after, epoch, before: None, left: u32::MAX, complete }) => Want::Since(Since {
            seq: after,
            epoch: Some(epoch),
            limit: HISTORY_MESSAGES_DEFAULT,
            complete,
            goes_on: true,
            check: None,
            is_latest: false,
        }),
        HistoryAsk::Next(NextPage { after, before, left, complete, .. }) => {
            let before = before.map(NonZeroU64::get);
            Want::Page(Range { after, before, left, from: From::Oldest, complete, to_live: false })
        }
    }
}

impl Room {
    pub(super) fn ask_history(&mut self, turn: &mut Turn<'_>, to: Origin, ask: &HistoryAsk) {
        if self.is_user() {
            self.touch(turn);
        }
        if !self.receiver.listens {
            // Nobody keeps the position fresh.
            self.receiver.forget_position();
        }
        self.history.get_or_insert_default().asks.push_back(Ask { to, want: want_of(ask) });
    }

    /// Serves asks until one has to wait.
    pub(super) fn pump_history(&mut self, turn: &mut Turn<'_>) {
        loop {
            let Some(history) = &mut self.history else { return };
            if history.reading.is_some() || self.receiver.is_passed() {
                return;
            }
            if !self.receiver.is_known() {
                if self.serve_decided(turn) {
                    continue;
                }
                return;
            }
            history.away = Away::No;
            let Some(Ask { to, want }) = history.asks.pop_front() else {
                self.history = None;
                return;
            };
            if self.receiver.epoch().is_none() {
                self.read_bases(turn, Ask { to, want });
                return;
            }
            match want {
                Want::Since(place) if turn.shared.config.cluster && self.is_beyond(place.seq, place.epoch) => {
                    // The client was on another node, which may be further.
                    let number = place.check.unwrap_or(self.heads + 1);
                    let has_checked = self.receiver.has_checked(number);
                    if has_checked && place.is_latest {
                        self.serve_range(turn, to, place.range(false));
                        continue;
                    }
                    let want = Want::Since(Since { check: Some(number), ..place });
                    if has_checked {
                        self.read_generation(turn, Ask { to, want });
                        return;
                    }
                    if place.check.is_none() {
                        self.want_head();
                    }
                    self.history.get_or_insert_default().asks.push_front(Ask { to, want });
                    return;
                }
                Want::Since(place) => match self.judge(place.seq, place.epoch) {
                    Some(is_valid) => self.serve_range(turn, to, place.range(is_valid)),
                    None => self.read_bases(turn, Ask { to, want }),
                },
                Want::Page(range) => self.serve_range(turn, to, range),
            }
        }
    }

    /// What was delivered from `base` on was cut off: a read that is under way may show it, and a client whose place it
    /// was has none any more.
    pub(super) fn history_cut_off(&mut self, base: u64) {
        let Some(history) = &mut self.history else { return };
        if history.reading.take_if(|reading| reading.last >= base).is_some() {
            history.receipts.clear();
        }
        for ask in &mut history.asks {
            if let Want::Page(range) = &mut ask.want
                && range.to_live
                && range.after >= base
            {
                (range.after, range.left, range.from) = (0, HISTORY_MESSAGES_DEFAULT, From::Newest);
                range.complete = false;
            }
        }
    }

    /// Whether a client's position lies beyond all that is known here.
    fn is_beyond(&self, seq: u64, epoch: Option<u64>) -> bool {
        seq > self.receiver.last() || epoch.is_some_and(|epoch| epoch > self.receiver.generation)
    }

    /// Whether a client waits whose position lies beyond all that is known here.
    pub(super) fn someone_is_beyond(&self) -> bool {
        let first = self.history.as_ref().and_then(|history| history.asks.front());
        first.is_some_and(|ask| matches!(ask.want, Want::Since(Since { check: Some(_), .. })))
    }

    /// A position beyond the bus's own head is either none of this room's, or the bus was replaced by another and does not
    /// know it: the store tells.
    fn read_generation(&mut self, turn: &mut Turn<'_>, ask: Ask) {
        let last = self.receiver.last();
        let history = self.history.get_or_insert_default();
        history.asks.push_front(ask);
        history.reading = Some(Reading { after: 0, before: 0, last, log: 0 });
        self.ask_store(turn, Purpose::Latest, |ticket, room| StoreRequest::ReadGen { ticket, room });
    }

    pub(super) fn generation_read(&mut self, turn: &mut Turn<'_>, reply: &StoreReply) {
        let generation = self.receiver.generation;
        let next_head = self.heads + 1;
        let Some(history) = &mut self.history else { return };
        history.reading = None;
        history.receipts.clear();
        let StoreReply::Gen { generation: latest, .. } = reply else {
            self.refuse_history(turn, hint_ms(reply));
            return;
        };
        let Some(Ask { want: Want::Since(place), .. }) = history.asks.front_mut() else { return };
        place.is_latest = *latest <= generation;
        if !place.is_latest {
            place.check = Some(next_head);
            self.retire(turn, generation);
        }
    }

    /// What a client's position is to be compared with cannot be found now: its answer begins later.
    pub(super) fn check_failed(&mut self, turn: &mut Turn<'_>) {
        let Some(history) = &mut self.history else { return };
        let Some(Ask { to, want: Want::Since(Since { seq, epoch, check: Some(_), .. }) }) = history.asks.front() else {
            return;
        };
        let (to, place) = (*to, (*seq, epoch.unwrap_or(self.receiver.generation)));
        history.asks.pop_front();
        self.post_nothing_yet(turn, to, place);
    }

    /// Whether a client's position is one of this room's present; `None` if the store must be asked.
    fn judge(&self, seq: u64, epoch: Option<u64>) -> Option<bool> {
        let receiver = &self.receiver;
        if self.is_beyond(seq, epoch) {
            return Some(false);
        }
        let epoch = epoch.unwrap_or(receiver.generation);
        if epoch == receiver.generation || seq == 0 {
            return Some(true);
        }
        if epoch + 1 == receiver.generation {
            return Some(seq < receiver.base);
        }
        let bases = receiver.bases.as_deref()?;
        let after = bases.iter().filter(|(generation, _)| *generation > epoch).map(|(_, base)| *base).min();
        Some(seq < after.unwrap_or(receiver.base).min(receiver.base))
    }

    fn read_bases(&mut self, turn: &mut Turn<'_>, ask: Ask) {
        let last = self.receiver.last();
        let history = self.history.get_or_insert_default();
        history.asks.push_front(ask);
        history.reading = Some(Reading { after: 0, before: 0, last, log: 0 });
        self.ask_store(turn, Purpose::Bases, |ticket, room| StoreRequest::ReadRoom { ticket, room, window: 0 });
    }

    pub(super) fn bases_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let Some(history) = &mut self.history else { return };
        history.reading = None;
        history.receipts.clear();
        match reply {
            StoreReply::Room { meta, .. } => self.receiver.bases = Some(meta.bases.into()),
            reply => self.refuse_history(turn, hint_ms(&reply)),
        }
    }

    /// Answers from memory, or asks the bus's log if it may have all of the page, or else the store: a page comes from one
    /// of them, never from two.
    fn serve_range(&mut self, turn: &mut Turn<'_>, to: Origin, range: Range) {
        if let Some(found) = self.find_recent(turn.shared.config.page_bytes_max, &range) {
            turn.shared.stats.history_from_memory_total += 1;
            self.post(turn, to, &range, found);
            return;
        }
        let last = self.receiver.last();
        let (after, before) = (range.after, range.before.unwrap_or(u64::MAX).min(last + 1));
        let (limit, from) = (range.left.min(HISTORY_MESSAGES_MAX), range.from);
        self.history.get_or_insert_default().asks.push_front(Ask { to, want: Want::Page(range) });
        let mut reading = Reading { after, before, last, log: 0 };
        let is_logged = turn.shared.config.bus_log && self.receiver.may_be_logged(&reading, limit, from);
        if is_logged {
            reading.log = turn.shared.new_token();
        }
        self.history.get_or_insert_default().reading = Some(reading);
        if is_logged {
            let request = BusRequest::Log { room: self.id.clone(), after, before, limit, from };
            self.ask_bus(turn, BusAsked::Log(reading.log), request);
        } else {
            self.ask_page(turn, (after, before), limit, from);
        }
    }

    fn ask_page(&mut self, turn: &mut Turn<'_>, (after, before): (u64, u64), limit: u32, from: From) {
        let bytes_max = turn.shared.config.page_bytes_max;
        self.ask_store(turn, Purpose::Page, |ticket, room| StoreRequest::Page {
            ticket,
            room,
            after,
            before,
            limit,
            bytes_max,
            from,
        });
    }

    /// The bus's log answered: the page is taken from it if it is whole there, and of this generation.
    pub(super) fn log_read(&mut self, turn: &mut Turn<'_>, number: u64, reply: BusReply) {
        let Some(history) = &mut self.history else { return };
        let Some(reading) = history.reading.filter(|reading| reading.log == number) else { return };
        let Some(Want::Page(range)) = history.asks.front().map(|ask| &ask.want) else { return };
        let (limit, from) = (range.left.min(HISTORY_MESSAGES_MAX), range.from);
        if let BusReply::Log { log, .. } = reply
            && log.generation == self.receiver.generation
            && (log.floor <= reading.after || from == From::Newest && log.rows.len() >= limit as usize)
        {
            turn.shared.stats.history_from_log_total += 1;
            let is_cut = log.cut || log.floor > reading.after;
            self.page_read(turn, cut_page(&log.rows, is_cut, from, turn.shared.config.page_bytes_max));
            return;
        }
        history.reading = Some(Reading { log: 0, ..reading });
        self.ask_page(turn, (reading.after, reading.before), limit, from);
    }

    /// The page, if memory holds all of it.
    fn find_recent(&mut self, bytes_max: u32, range: &Range) -> Option<Found> {
        let last = self.receiver.last();
        let before = range.before.unwrap_or(u64::MAX).min(last + 1);
        let empty = Found { rows: Vec::new(), covered: before.saturating_sub(1), complete: range.complete };
        if before <= range.after + 1 || range.left == 0 {
            return Some(empty);
        }
        let floor = self.recent.floor();
        let limit = range.left.min(HISTORY_MESSAGES_MAX) as usize;
        if range.from == From::Oldest {
            if floor > range.after {
                return None;
            }
            let (rows, is_cut) = take_page(self.recent.range(range.after, before), limit, bytes_max);
            let covered = if is_cut { rows.last().map_or(range.after, |read| read.row.seq) } else { before - 1 };
            return Some(Found { rows, covered, complete: range.complete });
        }
        let (mut rows, is_cut) = take_page(self.recent.range(range.after, before).rev(), limit, bytes_max);
        // What is below the floor matters only if what is above does not fill the page.
        if floor > range.after && !is_cut && rows.len() < limit {
            return None;
        }
        rows.reverse();
        Some(Found { rows, ..empty })
    }

    pub(super) fn page_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let Some(history) = &mut self.history else { return };
        let Some(reading) = history.reading.take() else { return };
        if self.decided_page_read(turn, reading, &reply) {
            return;
        }
        let Some(history) = &mut self.history else { return };
        if !self.receiver.is_known() || self.receiver.is_passed() || self.receiver.epoch().is_none() {
            history.receipts.clear();
            return; // asked again once the position is known, and where generations began that went by unheard
        }
        let receipts = std::mem::take(&mut history.receipts);
        let StoreReply::Page { mut rows, cut, oldest, .. } = reply else {
            self.refuse_history(turn, hint_ms(&reply));
            return;
        };
        if self.is_of_later_generation(turn, &rows) {
            self.refuse_history(turn, 0);
            return;
        }
        let Some(history) = &mut self.history else { return };
        let Some(Ask { to, want: Want::Page(range) }) = history.asks.pop_front() else { return };
        for (generation, seq, user) in receipts {
            read_in(rows.iter_mut(), (generation, seq), &user);
        }
        let is_removed =
            oldest > range.after + 1 && (range.from == From::Oldest || !cut && rows.len() < range.left as usize);
        let complete = range.complete && !is_removed;
        let reaches_last = reading.before > reading.last && (range.from == From::Newest || !cut);
        if self.receiver.listens && reading.before > self.recent.floor() && (range.from == From::Newest || !cut) {
            let is_cut = cut && range.from == From::Newest;
            let from = if is_cut { rows.first().map(|read| read.row.seq - 1) } else { Some(reading.after) };
            if let Some(from) = from {
                // Below what retention left, memory must not claim to be complete.
                let from = from.max(oldest.saturating_sub(1));
                self.recent.extend_down(turn.shared, &self.id, from, &rows);
            }
        }
        let covered = match range.from {
            From::Oldest if cut => rows.last().map_or(range.after, |read| read.row.seq),
            _ => reading.before - 1,
        };
        let mut found = Found { rows, covered, complete };
        if reaches_last && range.before.is_none() {
            self.add_later(turn.shared.config.page_bytes_max, &range, &mut found);
        }
        self.post(turn, to, &range, found);
    }

    /// Adds what was delivered while the store was read.
    fn add_later(&mut self, bytes_max: u32, range: &Range, found: &mut Found) {
        let last = self.receiver.last();
        if found.covered >= last || self.recent.floor() > found.covered {
            return;
        }
        let limit = range.left.min(HISTORY_MESSAGES_MAX) as usize;
        let later: Vec<ReadRow> = self.recent.range(found.covered, last + 1).cloned().collect();
        let all = found.rows.iter().chain(&later);
        if range.from == From::Newest {
            let (mut rows, _) = take_page(all.rev(), limit, bytes_max);
            rows.reverse();
            (found.rows, found.covered) = (rows, last);
        } else {
            let (rows, is_cut) = take_page(all, limit, bytes_max);
            found.covered = if is_cut { rows.last().map_or(found.covered, |read| read.row.seq) } else { last };
            found.rows = rows;
        }
    }

    /// Sends one page, and says what follows.
    fn post(&mut self, turn: &mut Turn<'_>, to: Origin, range: &Range, found: Found) {
        turn.shared.stats.history_pages_total += 1;
        let last = self.receiver.last();
        let end = range.before.unwrap_or(u64::MAX).min(last + 1).saturating_sub(1);
        let next = range.next(&found, self.receiver.generation);
        let more = found.covered < end && next.left > 0 && (range.from == From::Oldest || range.to_live);
        let next = more.then_some(next);
        let complete = !more && found.complete;
        // A room without messages is at (0, 0), whatever its generation.
        let (seq, epoch) = (last, if last == 0 { 0 } else { self.receiver.epoch().unwrap_or(0) });
        match to {
            Origin::Http(call) => {
                let answer = Answer::History { rows: found.rows, seq, epoch, complete, more };
                turn.effects.push(BridgeEffect::Answer { call, answer });
            }
            Origin::Connection(to) => {
                let payload = history_json(&self.id, &found.rows, (seq, epoch), complete, more);
                let is_member = self.is_user() || self.shards.contains(to.shard);
                let live = range.to_live && !more && is_member;
                let page = ToShard::HistoryPage { to, room: self.id.clone(), payload, next, live, later_ms: None };
                turn.effects.push(BridgeEffect::Shard(to.shard, page));
            }
        }
    }

    /// The store, or the bus, cannot answer now.
    pub(super) fn refuse_history(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        let Some(history) = self.history.take() else { return };
        for ask in history.asks {
            self.refuse_ask(turn, ask.to, hint_ms);
        }
    }

    fn refuse_ask(&self, turn: &mut Turn<'_>, to: Origin, hint_ms: u32) {
        let (code, message) = (ErrorCode::Unavailable, "the history cannot be read now");
        let retry_after_ms = Some(hint_ms.max(turn.shared.retry_after_ms()));
        let Origin::Connection(to) = to else { return turn.refuse(to, None, (code, message), retry_after_ms) };
        // Named apart from other refusals: the shard has to know which answer ended, to ask again for a join.
        turn.shared.stats.refused_total += 1;
        let refused = ToShard::HistoryRefused { to, room: self.id.clone(), code, message, retry_after_ms };
        turn.effects.push(BridgeEffect::Shard(to.shard, refused));
    }
}

impl Receiver {
    /// Whether the bus's log may hold all of a page: it has the latest messages of this generation.
    fn may_be_logged(&self, reading: &Reading, limit: u32, from: From) -> bool {
        let (last, after, limit) = (reading.last, reading.after, u64::from(limit));
        let is_in_reach = after + LOG_MESSAGES_MAX >= last && after + 1 >= self.base;
        match from {
            From::Oldest => is_in_reach,
            From::Newest => {
                let to = last + 1 - reading.before.min(last + 1) + limit;
                is_in_reach || to <= LOG_MESSAGES_MAX && last + 1 >= self.base + to
            }
        }
    }
}

/// Rows as the store would have answered them, no more than fit one page.
fn cut_page(rows: &[ReadRow], is_cut: bool, from: From, bytes_max: u32) -> StoreReply {
    let (mut rows, is_shortened) = match from {
        From::Oldest => take_page(rows.iter(), usize::MAX, bytes_max),
        From::Newest => take_page(rows.iter().rev(), usize::MAX, bytes_max),
    };
    if from == From::Newest {
        rows.reverse();
    }
    StoreReply::Page { ticket: 0, rows, cut: is_cut || is_shortened, oldest: 0 }
}

/// The first rows that fit one page, and whether any were left.
fn take_page<'a>(rows: impl Iterator<Item = &'a ReadRow>, limit: usize, bytes_max: u32) -> (Vec<ReadRow>, bool) {
    let mut taken: Vec<ReadRow> = Vec::new();
    let mut bytes = 0;
    for read in rows {
        bytes += read.row.content.len();
        if taken.len() >= limit || !taken.is_empty() && bytes > bytes_max as usize {
            return (taken, true);
        }
        taken.push(read.clone());
    }
    (taken, false)
}

fn history_json(room: &str, rows: &[ReadRow], (seq, epoch): (u64, u64), complete: bool, more: bool) -> Bytes {
    let ids: Vec<String> =
        rows.iter().map(|read| MessagePlace { epoch: read.row.generation, seq: read.row.seq }.encode(room)).collect();
    let messages: Vec<HistoryEntry<'_>> = rows
        .iter()
        .zip(&ids)
        .map(|(read, id)| HistoryEntry { chat: chat_of(read, room, id), read_by: &read.read_by })
        .collect();
    let bytes: usize = rows.iter().map(|read| read.row.content.len() + 256).sum();
    let mut json = Vec::with_capacity(bytes + 128);
    ServerMessage::RoomHistory { room_id: room, messages: &messages, seq, epoch, complete, more }.write(&mut json);
    Bytes::from(json)
}

fn chat_of<'a>(read: &'a ReadRow, room: &'a str, message_id: &'a str) -> Chat<'a> {
    let row = &read.row;
    Chat {
        message_id,
        room_id: room,
        user_id: &row.user,
        username: &row.username,
        content: RawText::from_escaped(super::writer::text_of(&row.content)),
        timestamp: row.timestamp,
        seq: row.seq,
        epoch: row.generation,
    }
}
