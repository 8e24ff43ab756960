//! The contract between the bridge and a bus (`local`, or `redis` in `server`), as data, and the local bus.
//!
//! Contract, for every implementation. The names are those of ORDERING.md, and so are the rules:
//! - **Order.** Each seq of a room is decided once per generation, published or void, in `Publish` and `Void2`.
//! - **Epoch.** A bus that lost a room's state, or never had it, answers `NeedInit`; the bridge then rebuilds the room
//!   from the store (`Begin`, the store's compare-and-set, `Finish`) under the next generation.
//! - **Idempotency.** `Sequence` of a (user, client id) seen before gives the old seq (`Done`) or `Wait`, never a new one,
//!   within the window of `DEDUPE_MESSAGES` to twice that many messages. A bus that keeps no ids may answer `Perhaps`
//!   instead of `Done`: the asker then reads the row, and asks again with that seq excepted if it is another message.
//! - **A lost wake-up** ([`BusEvent`]) loses nothing: seq is the truth. `Head` says what a receiver should have.
//! - **What is heard is vouched for**: the bus hands on no `Message` and no `Control` that our own scripts did not make
//!   (the redis bus checks a MAC over all of it). What passes for one becomes `Doubt`, which costs a look at the head and
//!   cannot change what is delivered.
//! - **When it is full**, or the other side is away, a request is answered with `Failed` (unknown outcome: repeat, or
//!   find out with `Head`); a request is never dropped in silence and never blocks.
//! - **What others do to one room's state** costs that room alone: it is answered with `Refused`.
//! - Every request is answered exactly once, in the order of the requests of one room. Those without a reply say so.

mod local;

pub use local::LocalBus;

use crate::names::{RoomId, UserId};
use crate::store::{From, ReadRow, Row};
use bytes::Bytes;
use std::sync::Arc;

/// W: how far `seq` may run ahead of `stable`.
pub const PENDING_MESSAGES_MAX: u64 = 2_048;
/// D: the least number of messages that the dedupe window spans.
pub const DEDUPE_MESSAGES: u64 = 2_048;

/// The most messages that the log of a shared bus keeps of a room.
pub const LOG_MESSAGES_MAX: u64 = 256;

/// Identifies a message across retries: who, and the client's id for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedupeKey {
    /// The author.
    pub user: UserId,
    /// The client's id, or one that the server made.
    pub client_id: Arc<str>,
}

/// One message that wants a seq.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub struct SequenceItem {
    pub key: DedupeKey,
    pub attempt: u64,
    pub timestamp: u64,
    /// Decided seqs that are known to hold other messages: not to be answered with `Perhaps`. Nearly always empty.
    pub except: Vec<u64>,
}

/// The answer for one [`SequenceItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum Sequenced {
    /// The seq is this attempt's to write.
    Mine { generation: u64, seq: u64, timestamp: u64 },
    /// Another attempt of the same message is under way at that seq since `age_ms`.
    Wait { generation: u64, seq: u64, age_ms: u64 },
    /// The message was published before, with these ids.
    Done { generation: u64, seq: u64, timestamp: u64 },
    /// The decided message at that seq may be this one: its row tells. No seq was given.
    Perhaps { seq: u64 },
    /// An earlier item of the same author was answered with `Perhaps`. No seq was given: ask again once that is clear.
    Behind,
    /// Too many are pending; the oldest since `age_ms`.
    Busy { generation: u64, seq: u64, age_ms: u64 },
}

/// One durable message to publish. `payload` is the client-visible JSON.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub struct PublishItem {
    pub generation: u64,
    pub seq: u64,
    pub key: DedupeKey,
    pub attempt: u64,
    pub payload: Bytes,
    /// When the message came in, for the latency histograms; 0 if unknown.
    pub received_us: u64,
}

/// One entry of the dedupe window, for `Finish`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub struct DedupeEntry {
    pub key: DedupeKey,
    pub seq: u64,
    pub generation: u64,
    pub timestamp: u64,
}

/// What the bridge asks. Each names one room; the bridge batches per room, the redis bus pipelines rooms.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum BusRequest {
    /// SEQ. Reply: `Sequenced`, one answer per item, in order.
    Sequence { room: RoomId, items: Vec<SequenceItem> },
    /// PUB. Reply: `Published`, one answer per item: whether it is published (now or before); `false` = GONE.
    Publish { room: RoomId, items: Vec<PublishItem> },
    /// VOID1. Reply: `Voiding`.
    Void1 { room: RoomId, generation: u64, seq: u64, min_age_ms: u64 },
    /// VOID2. Reply: `Voided`.
    Void2 { room: RoomId, generation: u64, seq: u64 },
    /// HEAD. Reply: `Head`.
    Head { room: RoomId },
    /// BEGIN. Reply: `Begun`.
    Begin { room: RoomId, token: u64 },
    /// FINISH. Reply: `Finished`.
    Finish { room: RoomId, token: u64, generation: u64, last: u64, dedupe: Vec<DedupeEntry> },
    /// RETIRE. Reply: `Retired`.
    Retire { room: RoomId, generation: u64 },
    /// Hear the room's events from now on. Reply: `Subscribed`. Idempotent.
    Subscribe { room: RoomId },
    /// Hear them no longer. No reply.
    Unsubscribe { room: RoomId },
    /// Send an event without a seq to every OTHER node with members, at most once; here it was delivered already. No
    /// reply. Asked only of a bus that is shared (`BridgeConfig::cluster`); the local bus does nothing.
    Ephemeral { room: RoomId, payload: Bytes },
    /// The recent log: messages with `after < seq < before`, at most `limit`, from that end. Reply: `Log`. Asked only
    /// of a shared bus, and only when the node's own memory does not do. `NeedInit` and `Failed` mean: ask the store.
    Log { room: RoomId, after: u64, before: u64, limit: u32, from: From },
    /// A stored receipt, for the log's readers. No reply; best effort, a bus that was away tries again.
    LogRead { room: RoomId, generation: u64, seq: u64, user: UserId },
}

/// What the bus answers.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum BusReply {
    Sequenced {
        room: RoomId,
        answers: Vec<Sequenced>,
    },
    Published {
        room: RoomId,
        answers: Vec<bool>,
    },
    Voiding {
        room: RoomId,
        seq: u64,
        answer: Voiding,
    },
    /// `false` = GONE.
    Voided {
        room: RoomId,
        seq: u64,
        applied: bool,
    },
    Head {
        room: RoomId,
        head: Head,
    },
    Begun {
        room: RoomId,
        answer: Begun,
    },
    Finished {
        room: RoomId,
        answer: Finished,
    },
    Retired {
        room: RoomId,
    },
    Subscribed {
        room: RoomId,
    },
    Log {
        room: RoomId,
        log: Box<LogPage>,
    },
    /// The room is not live: rebuild it. Stands in place of any reply but `Begun`, `Finished`, `Subscribed`.
    NeedInit {
        room: RoomId,
    },
    /// In place of `Head`, as `NeedInit`, but the bus has no trace of the room: since the server of that number began,
    /// nobody has begun it there.
    Absent {
        room: RoomId,
        server: u64,
    },
    /// The bus is well, but holds something in the room's place that is none of ours: nothing was changed, and this room
    /// alone cannot be served. Stands in place of any reply.
    Refused {
        room: RoomId,
    },
    /// Unknown outcome: the bus is away, full, or did not answer in time. Stands in place of any reply.
    Failed {
        room: RoomId,
        retry_after_ms: u32,
    },
}

/// The answer to VOID1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum Voiding {
    Ok,
    Gone,
    Decided,
    Wait,
}

/// The answer to HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub struct Head {
    pub generation: u64,
    pub base: u64,
    pub seq: u64,
    pub stable: u64,
    /// The lowest pending seq and since when, in ms; `None` when nothing is pending.
    pub pending: Option<(u64, u64)>,
}

/// The answer to BEGIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum Begun {
    Ok,
    Live,
    Wait,
}

/// The answer to FINISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum Finished {
    Ok,
    Live,
    Refused,
}

/// A part of a room's recent log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// The generation that the log is of: it is deleted when a new one begins.
    pub generation: u64,
    /// The log's floor: every decided, non-void seq above it is in the log.
    pub floor: u64,
    /// The messages of the range, ascending, with their readers, as [`row_of_payload`] reads them.
    pub rows: Vec<ReadRow>,
    /// The limit cut the page short.
    pub cut: bool,
}

/// Reads the client-visible JSON of a message, as `Publish` carried it. The row's `client_id` and `attempt`, which the
/// JSON does not have, are empty. `None` for anything that is not a message of that room.
#[must_use]
pub fn row_of_payload(room: &RoomId, payload: &[u8]) -> Option<Row> {
    let chat = roomwire_wire::message::parse_chat(std::str::from_utf8(payload).ok()?)?;
    (chat.room_id == **room).then(|| Row {
        room: room.clone(),
        seq: chat.seq,
        generation: chat.epoch,
        user: UserId::new(&chat.user_id),
        username: Arc::from(&*chat.username),
        content: Bytes::copy_from_slice(chat.content.as_str().as_bytes()),
        client_id: Arc::from(""),
        attempt: 0,
        timestamp: chat.timestamp,
    })
}

/// What a subscriber hears. Any of it may be lost, doubled or late.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum BusEvent {
    Message {
        room: RoomId,
        generation: u64,
        seq: u64,
        base: u64,
        stable: u64,
        payload: Bytes,
        received_us: u64,
    },
    Ephemeral {
        room: RoomId,
        payload: Bytes,
    },
    /// From `rw:ctl`: a new generation, or a voided seq.
    Control {
        room: RoomId,
        generation: u64,
        base: u64,
        void: Option<u64>,
    },
    /// Something on the room's channel passed for a message and no node vouches for it: look at the room's head.
    Doubt {
        room: RoomId,
    },
    /// The subscription was lost and made again: look at the head of every room.
    Lost,
    /// After a break requests can be asked again: nobody needs to find out by asking.
    Works,
}

impl BusRequest {
    /// The room that the request names.
    #[must_use]
    pub fn room(&self) -> &RoomId {
        match self {
            BusRequest::Sequence { room, .. }
            | BusRequest::Publish { room, .. }
            | BusRequest::Void1 { room, .. }
            | BusRequest::Void2 { room, .. }
            | BusRequest::Head { room }
            | BusRequest::Begin { room, .. }
            | BusRequest::Finish { room, .. }
            | BusRequest::Retire { room, .. }
            | BusRequest::Subscribe { room }
            | BusRequest::Unsubscribe { room }
            | BusRequest::Ephemeral { room, .. }
            | BusRequest::Log { room, .. }
            | BusRequest::LogRead { room, .. } => room,
        }
    }
}

impl BusReply {
    /// The room that the reply is for.
    #[must_use]
    pub fn room(&self) -> &RoomId {
        match self {
            BusReply::Sequenced { room, .. }
            | BusReply::Published { room, .. }
            | BusReply::Voiding { room, .. }
            | BusReply::Voided { room, .. }
            | BusReply::Head { room, .. }
            | BusReply::Begun { room, .. }
            | BusReply::Finished { room, .. }
            | BusReply::Retired { room }
            | BusReply::Subscribed { room }
            | BusReply::Log { room, .. }
            | BusReply::NeedInit { room }
            | BusReply::Absent { room, .. }
            | BusReply::Refused { room }
            | BusReply::Failed { room, .. } => room,
        }
    }
}
