//! The contract between the bridge and a store (`embedded` now, `cql` later), as data: requests and replies.
//!
//! Contract, for every implementation (ORDERING.md, Store):
//! - A reply is sent exactly once for each request, in any order. `Failed` means *unknown outcome*: the effect may
//!   still appear later. Every request may be repeated.
//! - `Appended` means durable: the rows survive `kill -9` (and, with `store.fsync = always`, power loss).
//! - Insert only: an append of a row whose (room, seq, gen) exists with the same `attempt` changes nothing; a row is
//!   never overwritten by one of another attempt.
//! - `AdvanceGen`, `SetBase` and `Void` are conditional (compare-and-set) and linearizable per room.
//! - Reads see every row whose append was answered before the read was asked.

pub mod memory;

use crate::names::{RoomId, UserId};
use bytes::Bytes;
use std::sync::Arc;

/// Pairs a reply with its request.
pub type Ticket = u64;

/// One stored message. The void markers are kept apart, in [`RoomMeta`] and as marks in the rows' own place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The room.
    pub room: RoomId,
    /// The room's message number.
    pub seq: u64,
    /// The generation in which it was written; the wire's `epoch`.
    pub generation: u64,
    /// The author.
    pub user: UserId,
    /// The author's name at that time.
    pub username: Arc<str>,
    /// The content, a JSON string literal without its quotes (`wire::message::RawText`).
    pub content: Bytes,
    /// The client's id of the message, or one that the server made (ORDERING.md rule 5).
    pub client_id: Arc<str>,
    /// Unique per attempt of a server to write it.
    pub attempt: u64,
    /// Unix milliseconds of creation.
    pub timestamp: u64,
}

/// A row as read, with its readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRow {
    /// The row.
    pub row: Row,
    /// Users who sent a receipt.
    pub read_by: Vec<Box<str>>,
}

/// A room's rare facts: its generations and its voided seqs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomMeta {
    /// The latest generation; 0 for a room that never had one.
    pub generation: u64,
    /// The token of who advanced to it.
    pub owner: u64,
    /// The first seq of each generation whose base is set: (gen, base), ascending.
    pub bases: Vec<(u64, u64)>,
    /// Voided seqs, ascending.
    pub voids: Vec<u64>,
}

/// Which end of a range a page is cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The oldest rows of the range.
    Oldest,
    /// The newest rows of the range.
    Newest,
}

/// What the bridge asks of the store.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names, and the variants' docs")]
pub enum StoreRequest {
    /// Make rows durable, of many rooms. Reply: `Appended`.
    Append { ticket: Ticket, rows: Vec<Row> },
    /// Resolved rows (the row of the highest gen for each seq, void ones left out) with `after < seq < before`, at
    /// most `limit` of them and, after the first, at most `bytes_max` of content. Reply: `Page`.
    Page { ticket: Ticket, room: RoomId, after: u64, before: u64, limit: u32, bytes_max: u32, from: From },
    /// The room's generations and voids, and the tail: every row (all generations) with `seq > last - window`, where
    /// `last` is the highest seq of any row; the tail's rows may come without `username` and `content`. Of a room that never
    /// had a generation nothing is expected: nobody can have written in it.
    /// The facts are read after the tail: who reads rows that a re-init under way did not see has to see that it is. Reply: `Room`.
    ReadRoom { ticket: Ticket, room: RoomId, window: u32 },
    /// The room's generation, linearizable with the compare-and-sets below (cql: a serial read). Reply: `Gen`.
    ReadGen { ticket: Ticket, room: RoomId },
    /// Compare-and-set: gen from `expect` to `expect + 1`, owner = `owner`. Reply: `Compared`.
    AdvanceGen { ticket: Ticket, room: RoomId, expect: u64, owner: u64 },
    /// Compare-and-set, if gen = `generation` and owner = `owner`: base of `generation` = `base`, and these voids. Reply: `Compared`.
    SetBase { ticket: Ticket, room: RoomId, generation: u64, owner: u64, base: u64, voids: Vec<u64> },
    /// Compare-and-set, if gen = `generation`: void `seq`, and write its marker. Reply: `Compared`.
    Void { ticket: Ticket, room: RoomId, generation: u64, seq: u64 },
    /// Add a reader to the row of (gen, seq), if that row exists and is not void. Reply: `Receipt`.
    Receipt { ticket: Ticket, room: RoomId, generation: u64, seq: u64, user: UserId },
}

/// What the store answers.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "ORDERING.md's own names, and the variants' docs")]
pub enum StoreReply {
    /// All rows are durable.
    Appended { ticket: Ticket },
    /// Rows in ascending order of seq, and whether the limits cut the page short; `oldest` is the lowest seq that
    /// retention has left in the room: 0 if nothing was ever removed, the last removed seq + 1 if nothing is left.
    Page { ticket: Ticket, rows: Vec<ReadRow>, cut: bool, oldest: u64 },
    /// A room's facts and its tail, ascending.
    Room { ticket: Ticket, meta: RoomMeta, tail: Vec<Row> },
    /// The latest generation; 0 for a room that never had one.
    Gen { ticket: Ticket, generation: u64 },
    /// Whether the condition held and the change was made (also `true` when a repeat finds its own change).
    Compared { ticket: Ticket, applied: bool },
    /// Whether the row was there, and whether the reader is new.
    Receipt { ticket: Ticket, found: bool, new: bool },
    /// Unknown outcome. `retry_after_ms` is the store's guess.
    Failed { ticket: Ticket, retry_after_ms: u32 },
}

impl StoreRequest {
    /// Pairs the request with its reply.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        match self {
            StoreRequest::Append { ticket, .. }
            | StoreRequest::Page { ticket, .. }
            | StoreRequest::ReadRoom { ticket, .. }
            | StoreRequest::ReadGen { ticket, .. }
            | StoreRequest::AdvanceGen { ticket, .. }
            | StoreRequest::SetBase { ticket, .. }
            | StoreRequest::Void { ticket, .. }
            | StoreRequest::Receipt { ticket, .. } => *ticket,
        }
    }
}

impl StoreReply {
    /// Pairs the reply with its request.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        match self {
            StoreReply::Appended { ticket }
            | StoreReply::Page { ticket, .. }
            | StoreReply::Room { ticket, .. }
            | StoreReply::Gen { ticket, .. }
            | StoreReply::Compared { ticket, .. }
            | StoreReply::Receipt { ticket, .. }
            | StoreReply::Failed { ticket, .. } => *ticket,
        }
    }
}
