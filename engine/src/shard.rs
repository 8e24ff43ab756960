//! The state machine of one shard: connections, rooms, fan-out, presence, resume, limits.
//!
//! The driver (io_uring, simulator, test) calls one `Engine` from one thread. Every call takes [`Now`], read once per
//! turn. Effects gather in [`Engine::effects`] until the driver has carried them out.

use crate::Now;
use crate::limits::EngineConfig;
use crate::mesh::{ToBridge, ToShard};
use crate::names::{ConnectionId, ShardId, User};
use crate::stats::Counters;
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Who a token says its bearer is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Unix ms at which the token expires, leeway included; `None` where `auth.require_exp` is off and it has none.
    pub expires_ms: Option<u64>,
    /// What the token allows; `None` means every room.
    pub grants: Option<Arc<[Grant]>>,
}

/// One entry of a token's `rooms` claim.
#[derive(Clone, Debug)]
pub struct Grant {
    /// A glob over room ids: `*` stands for any run of characters.
    pub room: Box<str>,
    /// May join, read history, members.
    pub join: bool,
    /// May publish, type, send receipts.
    pub publish: bool,
}

/// Checks a token at a Unix time in ms. Says nothing of why not: the implementation logs that, without the token.
pub type Verify = Arc<dyn Fn(&str, u64) -> Option<Identity> + Send + Sync>;

/// Bytes on their way out, taken by the driver for one send. Kept alive until the kernel is done with them.
#[derive(Debug)]
pub enum Chunk {
    /// One frame, shared with other receivers.
    Shared(Rc<[u8]>),
    /// Several frames of one connection, gathered; give it back with [`Engine::sent`] to be used again.
    Gathered(Vec<u8>),
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Chunk::Shared(frame) => frame,
            Chunk::Gathered(bytes) => bytes,
        }
    }
}

/// What the driver has to do. It takes the vectors' contents and leaves them empty, with their memory.
#[derive(Debug, Default)]
pub struct Effects {
    /// Connections that have something to send and no send under way: call [`Engine::take_chunk`]. Each at most once.
    pub sends: Vec<ConnectionId>,
    /// Connections whose last byte was sent: shut down writing, go on reading until the peer ends or a `drops` follows.
    pub shutdowns: Vec<ConnectionId>,
    /// Connections to close now, whatever is under way; then report [`Engine::closed`]. The slot is reused only after that.
    pub drops: Vec<ConnectionId>,
    /// To other shards.
    pub shards: Vec<(ShardId, ToShard)>,
    /// To the bridge.
    pub bridge: Vec<ToBridge>,
    /// Close the listener: the node drains.
    pub stop_accepting: bool,
}

/// Why a connection ended without the engine asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed its side.
    Eof,
    /// Reset, timed out, unreachable.
    Error,
}

/// One shard.
#[derive(Debug)]
pub struct Engine {
    /// What the driver has to do.
    pub effects: Effects,
    /// What was counted; the driver adds its own under `driver`.
    pub counters: Counters,
}

impl Engine {
    /// An engine without connections.
    #[must_use]
    pub fn new(shard: ShardId, config: EngineConfig, verify: Verify, now: Now) -> Engine {
        let _ = (shard, config, verify, now);
        todo!()
    }

    /// A socket was accepted. `None` when the node is full or the address has too many: send [`Engine::refusal`] if it
    /// fits at once, and close. `peer` is `None` where the driver cannot know it.
    pub fn accepted(&mut self, now: Now, peer: Option<IpAddr>) -> Option<ConnectionId> {
        let _ = (now, peer);
        todo!()
    }

    /// The HTTP answer (503, Retry-After) for a socket that was not taken.
    #[must_use]
    pub fn refusal(&self) -> &[u8] {
        todo!()
    }

    /// Bytes came in. They are unmasked in place; nothing is kept but a partial frame.
    pub fn received(&mut self, now: Now, connection: ConnectionId, bytes: &mut [u8]) {
        let _ = (now, connection, bytes);
        todo!()
    }

    /// The connection ended by itself. The driver then closes it and calls [`Engine::closed`].
    pub fn ended(&mut self, now: Now, connection: ConnectionId, how: Ended) {
        let _ = (now, connection, how);
        todo!()
    }

    /// The socket is closed and nothing is under way on it: the slot is free.
    pub fn closed(&mut self, connection: ConnectionId) {
        let _ = connection;
        todo!()
    }

    /// All that waits for the connection, up to 16 KiB (or one larger frame): for one send. `None` if nothing waits.
    pub fn take_chunk(&mut self, connection: ConnectionId) -> Option<Chunk> {
        let _ = connection;
        todo!()
    }

    /// A chunk was sent whole. The connection is named in `effects.sends` again if more waits.
    pub fn sent(&mut self, now: Now, connection: ConnectionId, chunk: Chunk) {
        let _ = (now, connection, chunk);
        todo!()
    }

    /// A message came from another thread.
    pub fn mesh(&mut self, now: Now, message: ToShard) {
        let _ = (now, message);
        todo!()
    }

    /// Time passed: deadlines, heartbeats, presence grace, drain pace, stats. Cheap when nothing is due.
    pub fn tick(&mut self, now: Now) {
        let _ = now;
        todo!()
    }

    /// When [`Engine::tick`] is due next, in ms of CLOCK_MONOTONIC: at most 100 ms ahead while there are connections.
    #[must_use]
    pub fn next_tick_ms(&self) -> u64 {
        todo!()
    }

    /// Microseconds from a chat message's receipt to the last send queued on this shard.
    #[must_use]
    pub fn fanout_us(&self) -> &Histogram<u64> {
        todo!()
    }

    /// Encodes a text frame once, for all its receivers on this shard.
    #[must_use]
    pub fn frame(payload: &Bytes) -> Rc<[u8]> {
        let _ = payload;
        todo!()
    }
}
