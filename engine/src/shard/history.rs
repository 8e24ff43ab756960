//! Pages of history: one at a time for each connection, asked for when the one before has left its queue.
//!
//! So a client that reads slowly is never sent more than one page ahead, and a page needs no part of the queue's limit.

use super::Engine;
use super::connection::{PageAsk, Purpose, Rare};
use super::outbox::Kind;
use super::wheel::ticks;
use crate::mesh::{HistoryAsk, NextPage, ToBridge};
use crate::names::{ConnectionId, RoomId};
use bytes::Bytes;
use roomwire_wire::message::ErrorCode;
use std::num::NonZeroU16;

/// The most requests for history that wait on one connection; joins of new rooms come on top, they have their own limit.
const ASKS_MAX: usize = 128;
/// When a refused page is asked for again, if the refusal does not say.
const RETRY_MS: u32 = 1_000;

impl Rare {
    /// The connection left the room: what its join asked for is not wanted any more.
    pub(super) fn forget_joins(&mut self, slot: u32, room: &RoomId) {
        self.joins.retain(|(joining, _)| *joining != slot);
        self.asks.retain(|ask| ask.purpose != Purpose::Join || ask.room != *room);
        if let Some(asked) = self.asked.as_mut().filter(|asked| asked.purpose == Purpose::Join && asked.room == *room) {
            asked.purpose = Purpose::Abandoned;
        }
    }
}

impl Engine {
    /// Queues a request for history, unless too many wait; then the client is told.
    pub(super) fn ask_page_if_few(&mut self, id: ConnectionId, room: RoomId, ask: HistoryAsk, purpose: Purpose) {
        let waiting =
            self.connection(id).and_then(|connection| connection.rare.as_ref()).map_or(0, |rare| rare.asks.len());
        if waiting >= ASKS_MAX {
            let message = "too many requests for history wait on this connection";
            self.error(id, ErrorCode::RateLimited, message, None, Some(RETRY_MS));
        } else {
            self.ask_page(id, room, ask, purpose);
        }
    }

    /// Queues a request for history behind those that wait.
    pub(super) fn ask_page(&mut self, id: ConnectionId, room: RoomId, ask: HistoryAsk, purpose: Purpose) {
        let Some(connection) = self.connections.get_mut(id.slot) else { return };
        connection.rare_mut().asks.push_back(PageAsk { room, ask, purpose, not_before: 0, told: false });
        self.ask_next_page(id);
    }

    /// Asks the bridge for the next page, if none is under way or queued.
    pub(super) fn ask_next_page(&mut self, id: ConnectionId) {
        let (from, tick) = (self.reference(id), self.tick);
        let Engine { connections, outboxes, effects, .. } = self;
        let Some(connection) = connections.get_mut(id.slot).filter(|connection| connection.id == id) else { return };
        if outboxes.has_pages(connection) {
            return;
        }
        let Some(rare) = connection.rare.as_mut().filter(|rare| rare.asked.is_none()) else { return };
        if rare.asks.is_empty() {
            return connection.tidy();
        }
        let due = rare.asks.iter().position(|ask| ask.not_before <= tick);
        if let Some(next) = due.and_then(|due| rare.asks.remove(due)) {
            effects.bridge.push(ToBridge::History { from, room: next.room.clone(), ask: next.ask.clone() });
            rare.asked = Some(next);
        } else {
            rare.ask_at = rare.asks.iter().map(|ask| ask.not_before).min().unwrap_or(0);
            self.arm(id);
        }
    }

    /// A page came. It stands in the queue before everything that is delivered from here on.
    pub(super) fn history_page(
        &mut self,
        id: ConnectionId,
        room: &RoomId,
        payload: &Bytes,
        (next, live, later_ms): (Option<NextPage>, bool, Option<NonZeroU16>),
    ) {
        let Some(asked) = self.take_asked(id, room) else { return };
        if asked.purpose == Purpose::Abandoned {
            return self.ask_next_page(id);
        }
        // One that says only that the answer has to wait is sent once.
        if later_ms.is_none() || next.is_some() || !asked.told {
            self.send_payload(id, payload, Kind::Page);
        }
        if let Some(later_ms) = later_ms {
            let ask = next.map_or(asked.ask, HistoryAsk::Next);
            return self.ask_later(id, PageAsk { ask, ..asked }, u32::from(later_ms.get()));
        }
        if asked.purpose == Purpose::Join && live {
            self.go_live(id, room);
        }
        if let (Some(next), Some(connection)) = (next, self.connection_mut(id)) {
            connection.rare_mut().asks.push_front(PageAsk { ask: HistoryAsk::Next(next), told: false, ..asked });
        }
        self.ask_next_page(id);
    }

    /// The store has no answer now. A join's page is asked for again by the shard: a member must go live some time.
    pub(super) fn history_refused(
        &mut self,
        id: ConnectionId,
        room: &RoomId,
        code: ErrorCode,
        message: &'static str,
        retry_after_ms: Option<u32>,
    ) {
        let Some(asked) = self.take_asked(id, room) else { return };
        if asked.purpose != Purpose::Abandoned && !asked.told {
            self.error(id, code, message, None, retry_after_ms);
        }
        if asked.purpose == Purpose::Join {
            self.ask_later(id, asked, retry_after_ms.unwrap_or(RETRY_MS));
        } else {
            self.ask_next_page(id);
        }
    }

    /// The same again after a while; meanwhile others have their turn.
    fn ask_later(&mut self, id: ConnectionId, asked: PageAsk, later_ms: u32) {
        let not_before = self.tick + ticks(later_ms);
        if let Some(connection) = self.connection_mut(id) {
            connection.rare_mut().asks.push_back(PageAsk { not_before, told: true, ..asked });
        }
        self.ask_next_page(id);
    }

    fn take_asked(&mut self, id: ConnectionId, room: &RoomId) -> Option<PageAsk> {
        let rare = self.connection_mut(id)?.rare.as_mut()?;
        rare.asked.take_if(|asked| asked.room == *room)
    }

    /// The time to ask again has come.
    pub(super) fn retry_page(&mut self, id: ConnectionId) {
        let tick = self.tick;
        let Some(rare) = self.connection_mut(id).and_then(|connection| connection.rare.as_mut()) else { return };
        if rare.ask_at != 0 && rare.ask_at <= tick {
            rare.ask_at = 0;
            self.ask_next_page(id);
        }
    }
}
