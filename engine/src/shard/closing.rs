//! How a connection ends: its last frame, the shutdown, and what it leaves behind in rooms and tables.

use super::Engine;
use super::connection::{NO_USER, Phase};
use super::outbox::{Kind, NO_OUTBOX};
use crate::mesh::ToShard;
use crate::names::ConnectionId;
use roomwire_wire::close::CloseCode;
use roomwire_wire::frame::{Decoder, Role, encode_close};
use roomwire_wire::handshake::Refusal;
use std::rc::Rc;

/// Ticks that a closing peer is given to take what was queued, and then again to close its side.
pub(super) const LINGER_TICKS: u32 = 20;

impl Engine {
    /// Closes an open connection after what is queued for it; one that is not upgraded yet is refused.
    pub(super) fn close(&mut self, id: ConnectionId, code: CloseCode, reason: &str) {
        match self.connection(id).map(|connection| connection.phase) {
            Some(Phase::Handshake) => {
                self.refuse(id, Refusal::Unavailable { retry_after_secs: super::RETRY_AFTER_SECS })
            }
            Some(Phase::Open) => {
                self.counters.closes_total[code.index()] += 1;
                let last = self.framer.raw(|out| encode_close(code as u16, reason, out));
                self.finish(id, &last);
            }
            _ => {}
        }
    }

    /// The queue ran over or grew old: what waits is dropped, the client resumes from its last seq.
    pub(super) fn close_slow(&mut self, id: ConnectionId) {
        let Engine { connections, outboxes, counters, .. } = self;
        let Some(connection) = connections.get_mut(id.slot).filter(|connection| connection.id == id) else { return };
        if connection.phase == Phase::Open {
            connection.slow = false;
            outboxes.drop_waiting(connection, counters);
            self.close(id, CloseCode::TooSlow, CloseCode::TooSlow.row().text);
        }
    }

    pub(super) fn close_flood(&mut self, id: ConnectionId) {
        self.counters.limit_crossed("messages_per_second_max");
        self.close(id, CloseCode::RateLimit, CloseCode::RateLimit.row().text);
    }

    pub(super) fn too_many_connections(&mut self, id: ConnectionId) {
        if self.is_open(id) {
            self.counters.limit_crossed("connections_per_user_max");
            self.close(id, CloseCode::Policy, "Too many connections of this user");
        }
    }

    /// Queues the last bytes for the peer; from here on what it sends is discarded.
    pub(super) fn finish(&mut self, id: ConnectionId, last: &Rc<[u8]>) {
        self.depart(id);
        self.send_frame(id, last, Kind::Control);
        let tick = self.tick;
        if let Some(connection) = self.connection_mut(id) {
            connection.phase = Phase::Closing;
            connection.mark = tick;
        }
        self.arm(id);
    }

    /// Its last byte is sent: shut down writing, and wait for the peer to close its side.
    pub(super) fn shut_if_drained(&mut self, id: ConnectionId) {
        let tick = self.tick;
        let Some(connection) = self.connection_mut(id) else { return };
        if connection.outbox == NO_OUTBOX && connection.phase == Phase::Closing {
            connection.phase = Phase::Shut;
            connection.mark = tick;
            self.effects.shutdowns.push(id);
            self.arm(id);
        }
    }

    /// The peer did not take its last bytes, or did not close, in time.
    pub(super) fn drop_now(&mut self, id: ConnectionId) {
        self.bury(id);
        self.effects.drops.push(id);
    }

    /// Nothing more is sent or received; only the slot is still taken.
    pub(super) fn bury(&mut self, id: ConnectionId) {
        self.depart(id);
        let Engine { connections, outboxes, counters, .. } = self;
        if let Some(connection) = connections.get_mut(id.slot).filter(|connection| connection.id == id) {
            connection.phase = Phase::Dead;
            outboxes.release(connection, counters);
        }
    }

    /// Takes the connection out of its rooms and of its user, and frees what it held besides its queue.
    fn depart(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.decoder = Decoder::new(Role::Server);
        connection.grants = None;
        let watches = connection.rare.take().map(|rare| rare.watches).unwrap_or_default();
        if connection.user == NO_USER {
            return;
        }
        for watch in watches.into_iter().rev() {
            self.forget_watcher(watch);
        }
        while let Some(entry) = self.connection(id).and_then(|connection| connection.rooms.last().copied()) {
            self.leave_room(id, entry.room);
        }
        let Some(user) = self.leave_user(id) else { return };
        if !self.config.echo {
            let down = ToShard::UserDown { user: user.clone(), from: self.reference(id) };
            self.post_home(&user, down);
        }
    }
}
