//! History while the bus is away, of a room whose place is not known here: what the store has of it, as far as it is
//! certain to be decided. [`super::History`] comes here when the place was asked for in vain.
//!
//! Two things are certain without the bus. All below the base of the latest generation was decided when that began. And
//! no bus gives a seq further than W beyond the oldest that is pending, so a row of that generation at S says that all
//! up to S - W was decided in it.
//!
//! A join gets that much, with `more: true`. Its shard asks again until the bus is back, and then the answer goes on
//! where it stopped: nothing is left out, nothing comes twice.

use super::{Ask, Found, From, History, Range, Reading, Want, hint_ms, history_json};
use crate::bridge::room::Room;
use crate::bridge::shared::{Origin, Purpose, Turn};
use crate::bridge::{Answer, BridgeEffect};
use crate::bus::PENDING_MESSAGES_MAX;
use crate::mesh::ToShard;
use crate::store::{ReadRow, RoomMeta, Row, StoreReply, StoreRequest};
use roomwire_wire::message::HISTORY_MESSAGES_MAX;
use std::num::NonZeroU16;

/// Whether history is answered without the bus.
#[derive(Debug, Default)]
pub(super) enum Away {
    #[default]
    No,
    /// The store is asked for what is certain.
    Asked,
    Decided(Box<Decided>),
}

/// What of a room is certain to be decided.
#[derive(Debug)]
pub(super) struct Decided {
    /// All up to here.
    last: u64,
    generation: u64,
    bases: Box<[(u64, u64)]>,
    /// The marker of a void may be written later than the void itself.
    voids: Box<[u64]>,
    /// The page that was read last: many who join at once ask for the same.
    page: Option<(Reading, u32, From, Page)>,
}

#[derive(Clone, Debug)]
struct Page {
    rows: Vec<ReadRow>,
    cut: bool,
    oldest: u64,
}

impl Decided {
    fn of(meta: RoomMeta, tail: &[Row]) -> Decided {
        let (generation, base) = meta.bases.last().copied().unwrap_or((0, 1));
        let latest = tail.iter().filter(|row| row.generation == generation).map(|row| row.seq).max().unwrap_or(0);
        let last = latest.saturating_sub(PENDING_MESSAGES_MAX).max(base.saturating_sub(1));
        Decided { last, generation, bases: meta.bases.into(), voids: meta.voids.into(), page: None }
    }

    /// Whether a client's position is one of this room's; `None` if it lies beyond what is certain.
    fn judge(&self, seq: u64, epoch: Option<u64>) -> Option<bool> {
        let epoch = epoch.unwrap_or(self.generation);
        if seq > self.last || epoch > self.generation {
            return None;
        }
        let after = self.bases.iter().filter(|(generation, _)| *generation > epoch).map(|(_, base)| *base).min();
        Some(after.is_none_or(|base| seq == 0 || seq < base))
    }

    fn found_before(&self, reading: &Reading, limit: u32, from: From) -> Option<Page> {
        let (of, its_limit, its_from, page) = self.page.as_ref()?;
        let is_same = (of.after, of.before, *its_limit, *its_from) == (reading.after, reading.before, limit, from);
        is_same.then(|| page.clone())
    }
}

/// When to ask again for what is not certain yet.
fn later_ms(turn: &Turn<'_>) -> Option<NonZeroU16> {
    NonZeroU16::new(u16::try_from(turn.shared.retry_after_ms()).unwrap_or(u16::MAX))
}

impl Ask {
    /// It follows a page that was given already.
    fn goes_on(&self) -> bool {
        match &self.want {
            Want::Since(place) => place.goes_on,
            Want::Page(range) => range.to_live && range.from == From::Oldest,
        }
    }
}

impl History {
    fn decided(&mut self) -> Option<&mut Decided> {
        match &mut self.away {
            Away::Decided(decided) => Some(decided),
            Away::No | Away::Asked => None,
        }
    }
}

impl Room {
    /// The bus is away, and the room's place is not known: what is certain is read from the store.
    pub(in crate::bridge) fn history_without_bus(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        let Some(history) = self.history.as_mut().filter(|history| matches!(history.away, Away::No)) else { return };
        history.reading = None;
        history.receipts.clear();
        // Who has what is certain waits for the rest.
        let (waiting, asks) = std::mem::take(&mut history.asks).into_iter().partition(Ask::goes_on);
        history.asks = asks;
        history.away = Away::Asked;
        let is_idle = history.asks.is_empty();
        for Ask { to, .. } in waiting {
            self.refuse_ask(turn, to, hint_ms);
        }
        if is_idle {
            self.history = None;
        } else {
            self.ask_store(turn, Purpose::Decided, |ticket, room| StoreRequest::ReadRoom { ticket, room, window: 1 });
        }
    }

    pub(in crate::bridge) fn decided_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let Some(history) = self.history.as_mut().filter(|history| matches!(history.away, Away::Asked)) else { return };
        match reply {
            StoreReply::Room { meta, tail, .. } => history.away = Away::Decided(Box::new(Decided::of(meta, &tail))),
            reply => self.refuse_history(turn, hint_ms(&reply)),
        }
    }

    /// Serves the first ask; `false` if there is nothing to do now.
    pub(super) fn serve_decided(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some(history) = &mut self.history else { return false };
        let Some(last) = history.decided().map(|decided| decided.last) else { return false };
        let Some(ask) = history.asks.pop_front() else {
            self.history = None;
            return false;
        };
        if ask.goes_on() {
            self.refuse_ask(turn, ask.to, 0);
            return true;
        }
        let Ask { to, want } = ask;
        let range = match want {
            Want::Page(range) => range,
            Want::Since(place) => match history.decided().and_then(|decided| decided.judge(place.seq, place.epoch)) {
                Some(is_valid) => place.range(is_valid),
                None => {
                    let epoch = place.epoch.or(history.decided().map(|decided| decided.generation));
                    self.post_nothing_yet(turn, to, (place.seq, epoch.unwrap_or(0)));
                    return true;
                }
            },
        };
        let (after, before) = (range.after, range.before.unwrap_or(u64::MAX).min(last + 1));
        if before <= after + 1 || range.left == 0 {
            let found =
                Found { rows: Vec::new(), covered: before.saturating_sub(1).max(after), complete: range.complete };
            self.post_decided(turn, to, &range, found);
            return true;
        }
        let (limit, from) = (range.left.min(HISTORY_MESSAGES_MAX), range.from);
        let reading = Reading { after, before, last, log: 0 };
        if let Some(page) = history.decided().and_then(|decided| decided.found_before(&reading, limit, from)) {
            self.post_page(turn, to, &range, &reading, page);
            return true;
        }
        history.asks.push_front(Ask { to, want: Want::Page(range) });
        history.reading = Some(reading);
        self.ask_page(turn, (after, before), limit, from);
        true
    }

    /// The store gave a page; `false` if it was asked for when the bus was there.
    pub(super) fn decided_page_read(&mut self, turn: &mut Turn<'_>, reading: Reading, reply: &StoreReply) -> bool {
        let Some(history) = &mut self.history else { return false };
        if history.decided().is_none() {
            return false;
        }
        let StoreReply::Page { rows, cut, oldest, .. } = reply else {
            self.refuse_history(turn, hint_ms(reply));
            return true;
        };
        let Some(Ask { to, want: Want::Page(range) }) = history.asks.pop_front() else { return true };
        let page = Page { rows: rows.clone(), cut: *cut, oldest: *oldest };
        if let Some(decided) = history.decided() {
            decided.page = Some((reading, range.left.min(HISTORY_MESSAGES_MAX), range.from, page.clone()));
        }
        self.post_page(turn, to, &range, &reading, page);
        true
    }

    fn post_page(&mut self, turn: &mut Turn<'_>, to: Origin, range: &Range, reading: &Reading, page: Page) {
        let Page { mut rows, cut, oldest } = page;
        let is_short = range.from == From::Oldest || !cut && rows.len() < range.left as usize;
        let complete = range.complete && !(oldest > range.after + 1 && is_short);
        let covered = match range.from {
            From::Oldest if cut => rows.last().map_or(range.after, |read| read.row.seq),
            _ => reading.before - 1,
        };
        if let Some(decided) = self.history.as_mut().and_then(|history| history.decided()) {
            rows.retain(|read| decided.voids.binary_search(&read.row.seq).is_err());
        }
        self.post_decided(turn, to, range, Found { rows, covered, complete });
    }

    /// Sends one page. What a join lacks follows when the bus is back; who only reads is told that more may be missing.
    fn post_decided(&mut self, turn: &mut Turn<'_>, to: Origin, range: &Range, found: Found) {
        let Some(decided) = self.history.as_mut().and_then(|history| history.decided()) else { return };
        let (last, epoch) = (decided.last, decided.generation);
        let generation = if last == 0 { 0 } else { epoch };
        let end = range.before.unwrap_or(u64::MAX).saturating_sub(1);
        let next = range.next(&found, epoch);
        let is_cut = found.covered < end.min(last) && next.left > 0 && range.from == From::Oldest;
        let more = range.to_live || is_cut;
        let next = more.then_some(next);
        let complete = !more && found.complete && end <= last;
        turn.shared.stats.history_pages_total += 1;
        match to {
            Origin::Http(call) => {
                let answer = Answer::History { rows: found.rows, seq: last, epoch: generation, complete, more };
                turn.effects.push(BridgeEffect::Answer { call, answer });
            }
            Origin::Connection(to) => {
                let payload = history_json(&self.id, &found.rows, (last, generation), complete, more);
                let later_ms = if range.to_live { later_ms(turn) } else { None };
                let page = ToShard::HistoryPage { to, room: self.id.clone(), payload, next, live: false, later_ms };
                turn.effects.push(BridgeEffect::Shard(to.shard, page));
            }
        }
    }

    /// A client that is further than what is certain here: its answer begins later, where it stands.
    pub(super) fn post_nothing_yet(&mut self, turn: &mut Turn<'_>, to: Origin, place: (u64, u64)) {
        let Origin::Connection(to) = to else { return self.refuse_ask(turn, to, 0) };
        let payload = history_json(&self.id, &[], place, false, true);
        let later_ms = later_ms(turn);
        let page = ToShard::HistoryPage { to, room: self.id.clone(), payload, next: None, live: false, later_ms };
        turn.effects.push(BridgeEffect::Shard(to.shard, page));
    }
}
