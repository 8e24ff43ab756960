//! The reader thread: pages of history and whole rooms, from the tables that the writer lends it.

use super::layout::{self, Facts, Stored};
use super::tables::Tables;
use super::{Outbox, Queued};
use crate::store::StoreEvent;
use crossbeam_channel::{Receiver, Sender, select_biased};
use fjall::Guard;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{From, ReadRow, RoomMeta, Row, StoreReply, StoreRequest, Ticket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most readers listed with one message; a page must not grow with the size of the room.
const READ_BY_MAX: usize = 200;
/// What a failed read is told.
const RETRY_MS: u32 = 1_000;

/// Anything that can go wrong with a stored row.
pub(super) type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// From the writer to the reader.
pub(super) enum Control {
    /// Give the tables up, so that the database can close; then say so.
    Release(Sender<()>),
    /// Read from these.
    Use(Tables),
}

/// The reader thread.
pub(super) struct Reader {
    tables: Option<Tables>,
    requests: Receiver<Queued>,
    control: Receiver<Control>,
    outbox: Outbox,
    waiting: Arc<AtomicU64>,
}

impl Reader {
    pub(super) fn new(
        tables: Tables,
        requests: Receiver<Queued>,
        control: Receiver<Control>,
        outbox: Outbox,
        waiting: Arc<AtomicU64>,
    ) -> Reader {
        Reader { tables: Some(tables), requests, control, outbox, waiting }
    }

    /// Runs until the handle is dropped.
    pub(super) fn run(mut self) {
        let mut writer_gone = false;
        loop {
            let never = crossbeam_channel::never();
            let control = if writer_gone { &never } else { &self.control };
            select_biased! {
                recv(control) -> command => match command {
                    Ok(Control::Release(done)) => {
                        self.tables = None;
                        let _ = done.send(());
                    }
                    Ok(Control::Use(tables)) => self.tables = Some(tables),
                    Err(_) => writer_gone = true,
                },
                recv(self.requests) -> request => match request {
                    Ok((_, request)) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                        let reply = answer(self.tables.as_ref(), request);
                        self.outbox.put(StoreEvent::Reply(reply));
                        self.outbox.wake();
                    }
                    Err(_) => return,
                },
            }
        }
    }
}

fn answer(tables: Option<&Tables>, request: StoreRequest) -> StoreReply {
    let (ticket, read) = match request {
        StoreRequest::Page { ticket, room, after, before, limit, bytes_max, from } => {
            let range = Range { room, after, before, limit, bytes_max, from };
            (ticket, tables.map(|tables| page(tables, ticket, &range)))
        }
        StoreRequest::ReadRoom { ticket, room, window } => {
            (ticket, tables.map(|tables| read_room(tables, ticket, &room, window)))
        }
        StoreRequest::ReadGen { ticket, room } => {
            let generation = |tables| facts(tables, &room).map(|facts| facts.generation);
            (ticket, tables.map(|tables| Ok(StoreReply::Gen { ticket, generation: generation(tables)? })))
        }
        // The handle sends no other request here.
        StoreRequest::Append { ticket, .. }
        | StoreRequest::AdvanceGen { ticket, .. }
        | StoreRequest::SetBase { ticket, .. }
        | StoreRequest::Void { ticket, .. }
        | StoreRequest::Receipt { ticket, .. } => (ticket, None),
    };
    match read {
        Some(Ok(reply)) => reply,
        Some(Err(error)) => {
            tracing::error!(%error, "the store could not be read");
            StoreReply::Failed { ticket, retry_after_ms: RETRY_MS }
        }
        None => StoreReply::Failed { ticket, retry_after_ms: RETRY_MS },
    }
}

struct Range {
    room: RoomId,
    after: u64,
    before: u64,
    limit: u32,
    bytes_max: u32,
    from: From,
}

fn page(tables: &Tables, ticket: Ticket, range: &Range) -> Result<StoreReply, ReadError> {
    let oldest = facts(tables, &range.room)?.oldest;
    let empty = StoreReply::Page { ticket, rows: Vec::new(), cut: false, oldest };
    let Some(first) = range.after.checked_add(1) else { return Ok(empty) };
    if first >= range.before {
        return Ok(empty);
    }
    let guards = tables.messages.range(layout::seq_key(&range.room, first)..layout::seq_key(&range.room, range.before));
    let (rows, cut) = match range.from {
        From::Oldest => collect(range, guards)?,
        From::Newest => {
            let (mut rows, cut) = collect(range, guards.rev())?;
            rows.reverse();
            (rows, cut)
        }
    };
    let rows = with_readers(tables, &range.room, rows)?;
    Ok(StoreReply::Page { ticket, rows, cut, oldest })
}

/// Resolved rows in the order of `guards`, up to the range's limits, and whether more would have followed.
fn collect(range: &Range, guards: impl Iterator<Item = Guard>) -> Result<(Vec<Row>, bool), ReadError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut bytes = 0usize;
    let mut resolving = Resolving::default();
    // Takes a decided seq's row; `false` once the page is full.
    let mut take = |row: Row| {
        let room_left = rows.len() < range.limit as usize
            && (rows.is_empty() || bytes + row.content.len() <= range.bytes_max as usize);
        if room_left {
            bytes += row.content.len();
            rows.push(row);
        }
        room_left
    };
    for guard in guards {
        let (key, value) = guard.into_inner()?;
        let (seq, generation, _) = layout::place(&key).ok_or("a key of the table `messages` is too short")?;
        let stored = layout::decode_row(&range.room, seq, generation, &value)?;
        if let Some(row) = resolving.next(seq, stored)
            && !take(row)
        {
            return Ok((rows, true));
        }
    }
    let cut = resolving.finish().is_some_and(|row| !take(row));
    Ok((rows, cut))
}

/// resolve(seq): a marker means absent; else the row of the highest gen.
#[derive(Default)]
struct Resolving {
    seq: u64,
    best: Option<Row>,
    void: bool,
}

impl Resolving {
    /// Takes what stands in one place; gives the row of the seq before it, if that is now decided and has one.
    fn next(&mut self, seq: u64, stored: Stored) -> Option<Row> {
        let done = if seq == self.seq { None } else { self.finish() };
        self.seq = seq;
        match stored {
            Stored::Void => self.void = true,
            Stored::Message(row) if self.best.as_ref().is_none_or(|best| best.generation < row.generation) => {
                self.best = Some(row);
            }
            Stored::Message(_) => {}
        }
        done
    }

    fn finish(&mut self) -> Option<Row> {
        let done = std::mem::take(self);
        if done.void { None } else { done.best }
    }
}

/// Adds the readers, in one walk over the receipts of the rows' range.
fn with_readers(tables: &Tables, room: &RoomId, rows: Vec<Row>) -> Result<Vec<ReadRow>, ReadError> {
    let mut rows: Vec<ReadRow> = rows.into_iter().map(|row| ReadRow { row, read_by: Vec::new() }).collect();
    let mut index = 0;
    // A message with very many readers ends a walk; the next begins behind it.
    while let (Some(first), Some(last)) = (rows.get(index), rows.last()) {
        let range = layout::seq_key(room, first.row.seq)..layout::seq_key(room, last.row.seq.saturating_add(1));
        let mut full = false;
        for guard in tables.receipts.range(range) {
            let key = guard.key()?;
            let (seq, generation, user) = layout::place(&key).ok_or("a key of the table `receipts` is too short")?;
            while rows.get(index).is_some_and(|read| read.row.seq < seq) {
                index += 1;
            }
            let Some(read) = rows.get_mut(index) else { break };
            if (read.row.seq, read.row.generation) == (seq, generation) {
                read.read_by.push(std::str::from_utf8(user)?.into());
                full = read.read_by.len() >= READ_BY_MAX;
            }
            if full {
                break;
            }
        }
        if !full {
            break;
        }
        index += 1;
    }
    Ok(rows)
}

/// A room's facts; the default for a room that has none.
pub(super) fn facts(tables: &Tables, room: &str) -> Result<Facts, ReadError> {
    match tables.rooms.get(layout::room_prefix(room))? {
        Some(value) => Ok(layout::decode_facts(&value)?),
        None => Ok(Facts::default()),
    }
}

/// The facts, the tail of rows, and the voids from there on. Of a room whose rows have all expired the last seq counts
/// as void, so that its numbers never start again.
fn read_room(tables: &Tables, ticket: Ticket, room: &RoomId, window: u32) -> Result<StoreReply, ReadError> {
    let facts = facts(tables, room)?;
    let prefix = layout::room_prefix(room);
    let mut last = None;
    for guard in tables.messages.prefix(&prefix).rev() {
        let (key, value) = guard.into_inner()?;
        if !layout::is_void(&value) {
            last = layout::place(&key).map(|(seq, _, _)| seq);
            break;
        }
    }
    let first = last.unwrap_or(0).saturating_sub(u64::from(window)) + 1;
    let mut tail = Vec::new();
    let mut voids = Vec::new();
    for guard in tables.messages.range(layout::seq_key(room, first)..layout::seq_key(room, u64::MAX)) {
        let (key, value) = guard.into_inner()?;
        let (seq, generation, _) = layout::place(&key).ok_or("a key of the table `messages` is too short")?;
        match layout::decode_row(room, seq, generation, &value)? {
            Stored::Void => voids.push(seq),
            Stored::Message(row) => tail.push(row),
        }
    }
    if last.is_none() && facts.oldest > 1 {
        voids.insert(0, facts.oldest - 1);
        voids.sort_unstable();
    }
    voids.dedup();
    let meta = RoomMeta { generation: facts.generation, owner: facts.owner, bases: facts.bases, voids };
    Ok(StoreReply::Room { ticket, meta, tail })
}
