//! Draining: the node parts from its connections, each at its own time within the window.

use super::Engine;
use super::connection::Phase;
use super::outbox::Kind;
use super::wheel::{NEVER, TICK_MS};
use crate::mesh::ToBridge;
use crate::names::ConnectionId;
use roomwire_wire::close::CloseCode;
use roomwire_wire::message::ServerMessage;

/// Milliseconds at the end of the window that are left for leaving and for closing handshakes.
const CLOSING_MS: u32 = 1_000;
/// Milliseconds after its own time that a client has to go by itself: one that obeys must not lose a race against the close.
const LEAVE_MS: u32 = 500;
const _: () = assert!(LEAVE_MS < CLOSING_MS);

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    /// The bridge was told that the last connection is gone.
    announced: bool,
}

impl Engine {
    /// Stops accepting and tells each client when to come back; with a window of 0, closes all at once. A second call
    /// can only cut the window short.
    pub(super) fn drain(&mut self, window_ms: u32) {
        let is_first = self.drain.is_none();
        if is_first {
            self.drain = Some(Drain { announced: false });
            self.effects.stop_accepting = true;
        }
        let connections = self.open_connections();
        if window_ms == 0 {
            for id in connections {
                self.close(id, CloseCode::Restart, CloseCode::Restart.row().text);
            }
        } else if is_first {
            self.spread_over(window_ms.saturating_sub(CLOSING_MS), &connections);
        }
        self.announce_drained();
    }

    /// All that are not on their way out. Those in the handshake are refused at once.
    fn open_connections(&mut self) -> Vec<ConnectionId> {
        let slots = 0..self.connections.end();
        let all: Vec<_> =
            slots.filter_map(|slot| self.connections.get(slot)).map(|known| (known.id, known.phase)).collect();
        let mut open = Vec::with_capacity(all.len());
        for (id, phase) in all {
            match phase {
                Phase::Handshake => self.close(id, CloseCode::Restart, ""),
                Phase::Open => open.push(id),
                Phase::Closing | Phase::Shut | Phase::Dead => {}
            }
        }
        open
    }

    /// Evenly, with a jitter of one share, so that the clients reach the other nodes as a steady stream.
    fn spread_over(&mut self, window_ms: u32, connections: &[ConnectionId]) {
        let count = connections.len() as u64;
        for (position, id) in (0_u64..).zip(connections) {
            let from = position * u64::from(window_ms) / count;
            let until = (position + 1) * u64::from(window_ms) / count;
            let after_ms = from + u64::from(self.random.below((until - from) as u32 + 1));
            let tick = self.tick + ((after_ms + u64::from(LEAVE_MS)) / TICK_MS) as u32 + 1;
            self.send(*id, &ServerMessage::Reconnect { after_ms, reason: "draining" }, Kind::Kept);
            if let Some(connection) = self.connection_mut(*id) {
                connection.mark = tick.min(NEVER - 1);
            }
            self.arm(*id);
        }
    }

    /// Says once that the last connection is gone.
    pub(super) fn announce_drained(&mut self) {
        let Some(drain) = self.drain.as_mut() else { return };
        if self.connections.len() == 0 && !std::mem::replace(&mut drain.announced, true) {
            self.effects.bridge.push(ToBridge::Drained { shard: self.shard });
        }
    }
}
