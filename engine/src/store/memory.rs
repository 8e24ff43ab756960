//! The store's contract in its simplest form: in memory, at once, and never failing.
//!
//! The reference for what each request means; tests and the simulator put their faults around it. Its [`MemoryStore`]
//! outlives the bridge that used it, as a disk does.

use super::{From, ReadRow, RoomMeta, Row, StoreReply, StoreRequest};
use crate::names::RoomId;
use std::collections::{BTreeMap, BTreeSet};

/// Rooms and their rows, in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    rooms: BTreeMap<RoomId, Stored>,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    meta: RoomMeta,
    /// By (seq, generation).
    rows: BTreeMap<(u64, u64), ReadRow>,
    voids: BTreeSet<u64>,
    oldest: u64,
}

impl Stored {
    fn meta(&self) -> RoomMeta {
        RoomMeta { voids: self.voids.iter().copied().collect(), ..self.meta.clone() }
    }

    /// The row of the highest generation of each seq in the open range, void ones left out, ascending.
    fn resolved(&self, after: u64, before: u64) -> Vec<&ReadRow> {
        let mut rows: Vec<&ReadRow> = Vec::new();
        if before <= after.saturating_add(1) {
            return rows;
        }
        for ((seq, _), row) in self.rows.range((after + 1, 0)..(before, 0)) {
            if self.voids.contains(seq) {
                continue;
            }
            if rows.last().is_some_and(|last| last.row.seq == *seq) {
                rows.pop();
            }
            rows.push(row);
        }
        rows
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Carries out one request and answers it.
    pub fn handle(&mut self, request: StoreRequest) -> StoreReply {
        match request {
            StoreRequest::Append { ticket, rows } => {
                for row in rows {
                    self.append(row);
                }
                StoreReply::Appended { ticket }
            }
            StoreRequest::Page { ticket, room, after, before, limit, bytes_max, from } => {
                let (rows, cut) = self.page(&room, (after, before), limit, bytes_max, from);
                StoreReply::Page { ticket, rows, cut, oldest: self.rooms.get(&room).map_or(0, |room| room.oldest) }
            }
            StoreRequest::ReadRoom { ticket, room, window } => {
                let Some(room) = self.rooms.get(&room) else {
                    return StoreReply::Room { ticket, meta: RoomMeta::default(), tail: Vec::new() };
                };
                let last = room.rows.keys().next_back().map_or(0, |(seq, _)| *seq);
                let from = (last + 1).saturating_sub(u64::from(window));
                let tail = room.rows.range((from, 0)..).map(|(_, read)| read.row.clone()).collect();
                StoreReply::Room { ticket, meta: room.meta(), tail }
            }
            StoreRequest::ReadGen { ticket, room } => {
                StoreReply::Gen { ticket, generation: self.rooms.get(&room).map_or(0, |room| room.meta.generation) }
            }
            StoreRequest::AdvanceGen { ticket, room, expect, owner } => {
                let meta = &mut self.rooms.entry(room).or_default().meta;
                let mut applied = meta.generation == expect + 1 && meta.owner == owner;
                if meta.generation == expect {
                    meta.generation = expect + 1;
                    meta.owner = owner;
                    applied = true;
                }
                StoreReply::Compared { ticket, applied }
            }
            StoreRequest::SetBase { ticket, room, generation, owner, base, voids } => {
                let room = self.rooms.entry(room).or_default();
                let applied = room.meta.generation == generation && room.meta.owner == owner;
                if applied {
                    room.meta.bases.retain(|(of, _)| *of != generation);
                    room.meta.bases.push((generation, base));
                    room.voids.extend(voids);
                }
                StoreReply::Compared { ticket, applied }
            }
            StoreRequest::Void { ticket, room, generation, seq } => {
                let room = self.rooms.entry(room).or_default();
                let applied = room.meta.generation == generation;
                if applied {
                    room.voids.insert(seq);
                }
                StoreReply::Compared { ticket, applied }
            }
            StoreRequest::Receipt { ticket, room, generation, seq, user } => {
                let room = self.rooms.get_mut(&room);
                let row = room.and_then(|room| match room.voids.contains(&seq) {
                    true => None,
                    false => room.rows.get_mut(&(seq, generation)),
                });
                let Some(row) = row else {
                    return StoreReply::Receipt { ticket, found: false, new: false };
                };
                let new = !row.read_by.iter().any(|reader| **reader == *user);
                if new {
                    row.read_by.push(Box::from(&*user));
                }
                StoreReply::Receipt { ticket, found: true, new }
            }
        }
    }

    /// What retention does: removes the rows below `oldest`.
    pub fn retain(&mut self, room: &RoomId, oldest: u64) {
        if let Some(room) = self.rooms.get_mut(room) {
            room.rows.retain(|(seq, _), _| *seq >= oldest);
            room.oldest = oldest.max(room.oldest);
        }
    }

    /// All that members of a room may see of it, ascending; for tests.
    #[must_use]
    pub fn messages(&self, room: &RoomId) -> Vec<ReadRow> {
        self.rooms.get(room).map_or_else(Vec::new, |room| room.resolved(0, u64::MAX).into_iter().cloned().collect())
    }

    /// A room's facts; for tests.
    #[must_use]
    pub fn meta(&self, room: &RoomId) -> RoomMeta {
        self.rooms.get(room).map_or_else(RoomMeta::default, Stored::meta)
    }

    fn append(&mut self, row: Row) {
        let room = self.rooms.entry(row.room.clone()).or_default();
        room.rows.entry((row.seq, row.generation)).or_insert_with(|| ReadRow { row, read_by: Vec::new() });
    }

    fn page(&self, room: &RoomId, range: (u64, u64), limit: u32, bytes_max: u32, from: From) -> (Vec<ReadRow>, bool) {
        let Some(room) = self.rooms.get(room) else { return (Vec::new(), false) };
        let mut all = room.resolved(range.0, range.1);
        if from == From::Newest {
            all.reverse();
        }
        let mut bytes = 0;
        let mut rows: Vec<ReadRow> = Vec::new();
        for read in &all {
            bytes += read.row.content.len();
            if rows.len() >= limit as usize || !rows.is_empty() && bytes > bytes_max as usize {
                break;
            }
            rows.push((*read).clone());
        }
        let cut = rows.len() < all.len();
        if from == From::Newest {
            rows.reverse();
        }
        (rows, cut)
    }
}
