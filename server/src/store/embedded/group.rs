//! One commit in the making: requests become changes of the tables, put into one batch.
//!
//! The writer makes a group for all that waits, an import for some thousand lines of its file. Nothing is committed here.

use super::layout::{self, Facts};
use super::read::ReadError;
use super::tables::Tables;
use fjall::OwnedWriteBatch as WriteBatch;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{Row, StoreReply, StoreRequest};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// The longest key that fjall takes is 65,535 bytes; a user id near that is no user id.
const USER_BYTES_MAX: usize = 32 * 1024;
/// What a request in the wrong queue is told.
const RETRY_MS: u32 = 1_000;

/// Rooms whose highest row is remembered; with more, all are forgotten, and each costs one look again.
const TOPS_MAX: usize = 100_000;

/// By room the highest (generation, seq) that this process has written. A row above it needs no look whether its place is
/// taken: the bus gives each place to one message, so what stands there already was written by this process, be it a
/// repeat or a void marker, and is not above. Each look costs filters and blocks of several files.
pub(super) type Tops = HashMap<RoomId, (u64, u64)>;

/// One commit in the making.
pub(super) struct Group<'a> {
    tables: &'a Tables,
    /// `None`: an import, which knows nothing of what was there.
    tops: Option<&'a mut Tops>,
    pub(super) batch: WriteBatch,
    /// What this batch writes, since the tables do not show it yet: places of rows and markers, voided seqs, receipts.
    places: HashSet<Vec<u8>>,
    voided: HashSet<Vec<u8>>,
    receipts: HashSet<Vec<u8>>,
    facts: HashMap<RoomId, Facts>,
    pub(super) replies: Vec<(Instant, StoreReply)>,
    pub(super) appended: u64,
}

impl<'a> Group<'a> {
    pub(super) fn new(tables: &'a Tables, mut tops: Option<&'a mut Tops>) -> Group<'a> {
        if let Some(tops) = &mut tops
            && tops.len() > TOPS_MAX
        {
            tops.clear();
        }
        Group {
            tables,
            tops,
            batch: tables.database.batch(),
            places: HashSet::new(),
            voided: HashSet::new(),
            receipts: HashSet::new(),
            facts: HashMap::new(),
            replies: Vec::new(),
            appended: 0,
        }
    }

    /// Puts a request's changes into the batch. On an error some of its rows may be in there, each of them whole.
    pub(super) fn apply(&mut self, request: StoreRequest) -> Result<StoreReply, ReadError> {
        Ok(match request {
            StoreRequest::Append { ticket, rows } => {
                for row in &rows {
                    self.append(row)?;
                }
                StoreReply::Appended { ticket }
            }
            StoreRequest::AdvanceGen { ticket, room, expect, owner } => {
                StoreReply::Compared { ticket, applied: self.advance(&room, expect, owner)? }
            }
            StoreRequest::SetBase { ticket, room, generation, owner, base, voids } => {
                StoreReply::Compared { ticket, applied: self.set_base(&room, (generation, owner), base, &voids)? }
            }
            StoreRequest::Void { ticket, room, generation, seq } => {
                let applied = self.facts(&room)?.generation == generation && generation != 0;
                if applied {
                    self.put_void(&room, seq, generation);
                }
                StoreReply::Compared { ticket, applied }
            }
            StoreRequest::Receipt { ticket, room, generation, seq, user } => {
                let (found, new) = self.receipt(&room, seq, generation, &user)?;
                StoreReply::Receipt { ticket, found, new }
            }
            // The handle sends reads to the reader.
            StoreRequest::Page { ticket, .. }
            | StoreRequest::ReadRoom { ticket, .. }
            | StoreRequest::ReadGen { ticket, .. } => StoreReply::Failed { ticket, retry_after_ms: RETRY_MS },
        })
    }

    /// Insert only: what stands in the row's place stays, be it a row of any attempt or a void marker.
    pub(super) fn append(&mut self, row: &Row) -> Result<(), ReadError> {
        let key = layout::row_key(&row.room, row.seq, row.generation);
        let place = (row.generation, row.seq);
        if !self.is_above(&row.room, place)
            && (self.places.contains(&key) || self.tables.messages.contains_key(&key)?)
        {
            return Ok(());
        }
        self.raise_top(&row.room, place);
        self.batch.insert(&self.tables.messages, key.clone(), layout::encode_row(row));
        self.places.insert(key);
        self.appended += 1;
        Ok(())
    }

    pub(super) fn facts(&self, room: &RoomId) -> Result<Facts, ReadError> {
        match self.facts.get(room) {
            Some(facts) => Ok(facts.clone()),
            None => super::read::facts(self.tables, room),
        }
    }

    pub(super) fn put_facts(&mut self, room: &RoomId, facts: Facts) {
        self.batch.insert(&self.tables.rooms, layout::room_prefix(room), layout::encode_facts(&facts));
        self.facts.insert(room.clone(), facts);
    }

    fn advance(&mut self, room: &RoomId, expect: u64, owner: u64) -> Result<bool, ReadError> {
        let mut facts = self.facts(room)?;
        let Some(next) = expect.checked_add(1) else { return Ok(false) };
        if facts.generation == expect {
            facts.generation = next;
            facts.owner = owner;
            self.put_facts(room, facts);
            return Ok(true);
        }
        // A repeat finds its own change.
        Ok(facts.generation == next && facts.owner == owner)
    }

    fn set_base(
        &mut self,
        room: &RoomId,
        (generation, owner): (u64, u64),
        base: u64,
        voids: &[u64],
    ) -> Result<bool, ReadError> {
        let mut facts = self.facts(room)?;
        if (facts.generation, facts.owner) != (generation, owner) || generation == 0 {
            return Ok(false);
        }
        match facts.bases.last_mut() {
            Some(last) if last.0 == generation => last.1 = base,
            _ => facts.bases.push((generation, base)),
        }
        // What retention has removed needs no marker: it stays absent without one.
        for seq in voids.iter().filter(|seq| **seq >= facts.oldest) {
            self.put_void(room, *seq, generation);
        }
        self.put_facts(room, facts);
        Ok(true)
    }

    fn is_above(&self, room: &RoomId, place: (u64, u64)) -> bool {
        self.tops.as_ref().and_then(|tops| tops.get(room)).is_some_and(|top| place > *top)
    }

    /// Also where the commit fails: what is below the top is looked at, so one too high costs nothing but looks.
    fn raise_top(&mut self, room: &RoomId, place: (u64, u64)) {
        let Some(tops) = &mut self.tops else { return };
        match tops.get_mut(room) {
            Some(top) => *top = place.max(*top),
            None => drop(tops.insert(room.clone(), place)),
        }
    }

    pub(super) fn put_void(&mut self, room: &RoomId, seq: u64, generation: u64) {
        self.raise_top(room, (generation, seq));
        let key = layout::row_key(room, seq, generation);
        self.batch.insert(&self.tables.messages, key.clone(), layout::encode_void());
        self.places.insert(key);
        self.voided.insert(layout::seq_key(room, seq));
    }

    /// Adds a reader to a row that is known to be there.
    pub(super) fn put_reader(&mut self, room: &RoomId, (seq, generation): (u64, u64), user: &str) {
        let key = layout::receipt_key(room, seq, generation, user);
        self.batch.insert(&self.tables.receipts, key, []);
    }

    /// Whether the row is there and not void, and whether the reader is new.
    fn receipt(&mut self, room: &RoomId, seq: u64, generation: u64, user: &str) -> Result<(bool, bool), ReadError> {
        if user.len() > USER_BYTES_MAX || !self.has_row(room, seq, generation)? {
            return Ok((false, false));
        }
        let key = layout::receipt_key(room, seq, generation, user);
        if self.receipts.contains(&key) || self.tables.receipts.contains_key(&key)? {
            return Ok((true, false));
        }
        self.batch.insert(&self.tables.receipts, key.clone(), []);
        self.receipts.insert(key);
        Ok((true, true))
    }

    /// Whether the row of (gen, seq) exists and no generation has voided that seq.
    fn has_row(&self, room: &RoomId, seq: u64, generation: u64) -> Result<bool, ReadError> {
        let wanted = layout::row_key(room, seq, generation);
        let prefix = layout::seq_key(room, seq);
        if self.voided.contains(&prefix) {
            return Ok(false);
        }
        let mut found = self.places.contains(&wanted);
        for guard in self.tables.messages.prefix(&prefix) {
            let (key, value) = guard.into_inner()?;
            if layout::is_void(&value) {
                return Ok(false);
            }
            found |= *key == *wanted;
        }
        Ok(found)
    }
}
