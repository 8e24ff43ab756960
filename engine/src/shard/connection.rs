//! What a shard keeps of one connection: small while it is idle, the rest in a box while it is needed.

use super::Grant;
use super::outbox::NO_OUTBOX;
use super::rate::{MessageRate, PongRate};
use super::wheel::NEVER;
use crate::mesh::HistoryAsk;
use crate::names::{ConnectionId, RoomId};
use roomwire_wire::frame::{Decoder, Role};
use roomwire_wire::handshake::HeadScanner;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// No entry in the user table: not authenticated, or departed.
pub(super) const NO_USER: u32 = u32::MAX;

/// Where a connection is in its life. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its upgrade head has not arrived in full.
    Handshake,
    /// Upgraded and authenticated: frames go both ways.
    Open,
    /// Its last frame is queued; what comes in is discarded.
    Closing,
    /// Its last byte was sent and writing shut down; what comes in is discarded.
    Shut,
    /// The driver closes the socket; only `closed` is awaited.
    Dead,
}

/// One room of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoomEntry {
    /// In the shard's room table.
    pub(super) room: u32,
    /// In the room's member list.
    pub(super) position: u32,
}

/// One connection. An idle one owns no heap memory beyond this, apart from what its user and rooms cost.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) decoder: Decoder,
    pub(super) grants: Option<Arc<[Grant]>>,
    pub(super) rooms: SmallVec<[RoomEntry; 2]>,
    pub(super) rare: Option<Box<Rare>>,
    pub(super) messages: MessageRate,
    pub(super) id: ConnectionId,
    pub(super) user: u32,
    /// Its outbox while anything waits to be sent; else `NO_OUTBOX`.
    pub(super) outbox: u32,
    /// In `Handshake`: when it was accepted. In `Open`: when the drain closes it. Later: when it began to close.
    pub(super) mark: u32,
    /// When something was last received.
    pub(super) heard: u32,
    /// When its token expires.
    pub(super) expires: u32,
    /// When the message that is being assembled began.
    pub(super) assembling: u32,
    /// The tick of its entry in the wheel.
    pub(super) wheel: u32,
    pub(super) pongs: PongRate,
    pub(super) phase: Phase,
    /// A ping is out and nothing was received since.
    pub(super) pinged: bool,
    /// Named in `effects.sends`.
    pub(super) listed: bool,
    /// The driver has a chunk of it.
    pub(super) in_flight: bool,
    /// Its queue ran over; it is closed before the call into the engine returns.
    pub(super) slow: bool,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, tick: u32) -> Connection {
        Connection {
            decoder: Decoder::new(Role::Server),
            grants: None,
            rooms: SmallVec::new(),
            rare: None,
            messages: MessageRate::default(),
            id,
            user: NO_USER,
            outbox: NO_OUTBOX,
            mark: tick,
            heard: tick,
            expires: NEVER,
            assembling: NEVER,
            wheel: NEVER,
            pongs: PongRate::default(),
            phase: Phase::Handshake,
            pinged: false,
            listed: false,
            in_flight: false,
            slow: false,
        }
    }

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Frees the box of rare state if nothing is in it any more.
    pub(super) fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_empty()) {
            self.rare = None;
        }
    }

    pub(super) fn room_entry(&mut self, room: u32) -> Option<&mut RoomEntry> {
        self.rooms.iter_mut().find(|entry| entry.room == room)
    }
}

/// State that few connections have at a time.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// The part of the upgrade head that has arrived.
    pub(super) head: Option<PartialHead>,
    /// Joins that the rooms' homes have not answered, and what history they bring.
    pub(super) joins: Vec<(u32, HistoryAsk)>,
    /// Pages of history to ask for, one after the other; those that have to wait let others pass.
    pub(super) asks: VecDeque<PageAsk>,
    /// The page that the bridge was asked for.
    pub(super) asked: Option<PageAsk>,
    /// When the first of those that have to wait is due; 0 if none is.
    pub(super) ask_at: u32,
    /// Users whose presence is watched.
    pub(super) watches: Vec<WatchEntry>,
    /// The payload of the newest ping beyond the rate of pongs.
    pub(super) pong: Option<Box<[u8]>>,
}

impl Rare {
    fn is_empty(&self) -> bool {
        self.head.is_none()
            && self.joins.is_empty()
            && self.asks.is_empty()
            && self.asked.is_none()
            && self.watches.is_empty()
            && self.pong.is_none()
    }
}

/// An upgrade head that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct PartialHead {
    pub(super) bytes: Vec<u8>,
    pub(super) scanner: HeadScanner,
    /// It is the beginning of what a balancer puts before the head.
    pub(super) is_proxy: bool,
}

/// A page of history to ask for.
#[derive(Clone, Debug)]
pub(super) struct PageAsk {
    pub(super) room: RoomId,
    pub(super) ask: HistoryAsk,
    pub(super) purpose: Purpose,
    /// Not to be asked before; 0 if at once.
    pub(super) not_before: u32,
    /// The client knows that its history has to wait.
    pub(super) told: bool,
}

/// Why a page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For `join_room`: the last page makes the connection a live member.
    Join,
    /// For `history`.
    Read,
    /// For a join of a room that the connection has left since: the page is dropped when it comes.
    Abandoned,
}

/// One user that a connection watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchEntry {
    /// In the shard's table of watched users.
    pub(super) watch: u32,
    /// In that user's list of watchers.
    pub(super) position: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stays_small() {
        assert!(size_of::<Connection>() <= 160, "{}", size_of::<Connection>());
        assert_eq!(size_of::<Option<Connection>>(), size_of::<Connection>());
    }
}
