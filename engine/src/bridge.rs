//! What the node's bridge decides, pure: ORDERING.md's writer, receiver, resume, re-init and void, as state machines.
//!
//! The bridge thread of `server` and the simulator drive it: events in, effects out. It knows no Redis, no CQL, no
//! HTTP: only the contracts in [`crate::bus`] and [`crate::store`].

use crate::Now;
use crate::bus::{BusEvent, BusReply, BusRequest};
use crate::mesh::{HistoryAsk, ToBridge, ToShard};
use crate::names::{RoomId, ShardId, User, UserId};
use crate::stats::ShardStats;
use crate::store::{ReadRow, StoreReply, StoreRequest};
use bytes::Bytes;
use hdrhistogram::Histogram;
use roomwire_wire::close::CloseCode;
use roomwire_wire::message::ErrorCode;
use std::sync::Arc;

/// What the bridge is told at its start.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// How many shards the node has.
    pub shards: u16,
    /// This node's name, for the client ids that it makes (ORDERING.md rule 5).
    pub node: Arc<str>,
    /// Differs at each start; also seeds everything random.
    pub boot: u64,
    /// The most publishes under way; beyond, they are refused with `unavailable`.
    pub publishes_max: u32,
    /// The most milliseconds that a publish waits for the store before it is refused; it may still appear later, once.
    pub publish_ms_max: u32,
    /// The most content bytes of one page of history.
    pub page_bytes_max: u32,
    /// The most bytes of recent messages kept in memory per room with members here, for history and resume.
    pub recent_bytes_max: u32,
}

/// What comes in.
#[derive(Debug)]
pub enum BridgeEvent {
    /// From a shard.
    Shard(ToBridge),
    /// A call of the HTTP API; answered with [`BridgeEffect::Answer`].
    Call {
        /// Pairs call and answer.
        call: u64,
        /// The call.
        what: Call,
    },
    /// The bus answered.
    BusReply(BusReply),
    /// The bus told.
    BusEvent(BusEvent),
    /// The store answered.
    Store(StoreReply),
    /// Time passed: call it when `next_tick` is due.
    Tick,
    /// Drain: pass `ToShard::Drain` on to all shards; publishes are still taken until the last shard is drained.
    Drain {
        /// The window, in ms; 0 cuts it short.
        window_ms: u32,
    },
}

/// A call of the HTTP API, already checked for form.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is one route of docs/protocol.md, HTTP")]
pub enum Call {
    Publish { room: RoomId, user: User, content: Bytes, client_id: Option<Arc<str>>, received_us: u64 },
    History { room: RoomId, ask: HistoryAsk },
    Members { room: RoomId },
    Presence { user: UserId },
    Disconnect { user: UserId, code: CloseCode, reason: Arc<str> },
}

/// The answer to a [`Call`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each is one route of docs/protocol.md, HTTP")]
pub enum Answer {
    Published { message_id: Arc<str>, seq: u64, epoch: u64, timestamp: u64 },
    History { rows: Vec<ReadRow>, seq: u64, epoch: u64, complete: bool, more: bool },
    Members { count: u64, users: Vec<User> },
    Presence { online: bool, connections: u32 },
    Disconnected,
    Refused { code: ErrorCode, message: &'static str, retry_after_ms: Option<u32> },
}

/// What the driver has to do, in order.
#[derive(Debug)]
#[allow(missing_docs, reason = "named after where it goes")]
pub enum BridgeEffect {
    Shard(ShardId, ToShard),
    Bus(BusRequest),
    Store(StoreRequest),
    Answer {
        call: u64,
        answer: Answer,
    },
    /// A shard's figures came in.
    Stats(ShardId, Box<ShardStats>),
    /// Every shard is drained and nothing is under way: the process may end.
    Finished,
}

/// Figures of the bridge, cumulative unless a name ends in `_now`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is a metric `roomwire_bridge_<name>`; docs/operations.md explains them")]
pub struct BridgeStats {
    pub rooms_now: u64,
    pub publishes_now: u64,
    pub published_total: u64,
    pub duplicates_total: u64,
    pub refused_total: u64,
    pub voided_total: u64,
    pub inits_total: u64,
    pub history_pages_total: u64,
    pub history_from_memory_total: u64,
    pub receipts_total: u64,
    /// Whether the store refuses or is late: publishes are refused at once, apart from probes.
    pub store_degraded_now: bool,
    /// Microseconds from a chat message's receipt on its shard to the store's word that it is durable.
    pub durable_us: Histogram<u64>,
}

/// The bridge of one node.
#[derive(Debug)]
pub struct Bridge {
    config: BridgeConfig,
}

impl Bridge {
    /// A bridge that knows no room yet.
    #[must_use]
    pub fn new(config: BridgeConfig) -> Bridge {
        Bridge { config }
    }

    /// Takes one event; effects are appended in the order in which they must be carried out. `Sequence` and `Append`
    /// requests are gathered until [`Bridge::flush`].
    pub fn handle(&mut self, now: Now, event: BridgeEvent, effects: &mut Vec<BridgeEffect>) {
        let _ = (&self.config, now, event, effects);
        todo!()
    }

    /// Ends a turn: sends what was gathered as one batch per room (`Sequence`, `Publish`) and one for all (`Append`).
    pub fn flush(&mut self, now: Now, effects: &mut Vec<BridgeEffect>) {
        let _ = (now, effects);
        todo!()
    }

    /// When [`BridgeEvent::Tick`] is due, in ms of CLOCK_MONOTONIC; `None` while nothing waits.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<u64> {
        todo!()
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self) -> &BridgeStats {
        todo!()
    }
}
