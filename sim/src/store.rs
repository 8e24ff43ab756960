//! The fake store: the reference implementation of the contract, behind a queue that delays, refuses, and leaves
//! outcomes unknown. What it has applied is durable and survives a crash; what waits may be applied, later, or lost.

use crate::Plant;
use crate::random::Random;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::memory::MemoryStore;
use roomwire_engine::store::{From, ReadRow, Row, StoreReply, StoreRequest};
use roomwire_wire::id::MessagePlace;
use std::collections::{BTreeMap, BTreeSet};

/// How the store behaves for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers within a few milliseconds.
    Well,
    /// Answers within seconds.
    Slow,
    /// Answers `Failed`; half of the requests are applied all the same, at once or later.
    Refusing,
}

/// The store of a run.
#[derive(Debug)]
pub struct SimStore {
    durable: MemoryStore,
    /// Answer the process with the outcome at that time.
    waiting: Vec<(u64, u64, StoreRequest)>,
    /// Apply at that time; the answer was given before, or there is nobody to give it to.
    late: Vec<(u64, StoreRequest)>,
    replies: Vec<(u64, StoreReply)>,
    /// How it behaves now.
    pub mode: Mode,
    /// Processes that cannot reach it.
    pub cut_off: BTreeSet<u64>,
    plant: Option<Plant>,
}

impl SimStore {
    /// An empty store.
    #[must_use]
    pub fn new(plant: Option<Plant>) -> SimStore {
        SimStore {
            durable: MemoryStore::default(),
            waiting: Vec::new(),
            late: Vec::new(),
            replies: Vec::new(),
            mode: Mode::Well,
            cut_off: BTreeSet::new(),
            plant,
        }
    }

    /// Takes a request of a process.
    pub fn submit(&mut self, now_ms: u64, random: &mut Random, process: u64, request: StoreRequest) {
        if self.plant == Some(Plant::AckBeforeDurable)
            && let StoreRequest::Append { ticket, .. } = &request
        {
            self.replies.push((process, StoreReply::Appended { ticket: *ticket }));
            self.late.push((now_ms + random.below(400), request));
            return;
        }
        let mode = if self.cut_off.contains(&process) { Mode::Refusing } else { self.mode };
        match mode {
            Mode::Well => self.waiting.push((now_ms + random.below(4), process, request)),
            Mode::Slow => self.waiting.push((now_ms + random.below(4_000), process, request)),
            Mode::Refusing => {
                self.replies.push((process, StoreReply::Failed { ticket: request.ticket(), retry_after_ms: 200 }));
                match random.below(4) {
                    0 => drop(self.apply(request)),
                    1 => self.late.push((now_ms + random.below(3_000), request)),
                    _ => {}
                }
            }
        }
    }

    /// Applies what is due and gives one reply and whose it is, if there is one, in any order.
    pub fn poll(&mut self, now_ms: u64, random: &mut Random) -> Option<(u64, StoreReply)> {
        while let Some(index) = self.late.iter().position(|(due, _)| *due <= now_ms) {
            let (_, request) = self.late.remove(index);
            self.apply(request);
        }
        let due: Vec<usize> = (0..self.waiting.len()).filter(|index| self.waiting[*index].0 <= now_ms).collect();
        if !due.is_empty() {
            let (_, process, request) = self.waiting.remove(due[random.index(due.len())]);
            let reply = self.apply(request);
            self.replies.push((process, reply));
        }
        if self.replies.is_empty() { None } else { Some(self.replies.remove(random.index(self.replies.len()))) }
    }

    /// Whether anything is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.late.is_empty() && self.replies.is_empty()
    }

    /// A process died: what it waited for is applied, now or later, or lost, and nobody hears the answers.
    pub fn crash(&mut self, now_ms: u64, process: u64, random: &mut Random) {
        let (mine, others) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, of, _)| *of == process);
        self.waiting = others;
        let mine: Vec<(u64, u64, StoreRequest)> = mine;
        for (_, _, request) in mine {
            match random.below(4) {
                0 => drop(self.apply(request)),
                1 => self.late.push((now_ms + random.below(5_000), request)),
                _ => {}
            }
        }
        if self.plant == Some(Plant::AckBeforeDurable) {
            self.late.clear();
        }
        self.replies.retain(|(of, _)| *of != process);
    }

    /// Carries out a request, with the planted bug if there is one.
    fn apply(&mut self, mut request: StoreRequest) -> StoreReply {
        match (self.plant, &mut request) {
            (Some(Plant::VoidAnyGeneration), StoreRequest::Void { room, generation, .. }) => {
                *generation = self.durable.meta(room).generation;
            }
            (Some(Plant::LeaveHoles), StoreRequest::SetBase { voids, .. }) => voids.clear(),
            (
                Some(plant @ (Plant::RowsBeatVoids | Plant::LowestGeneration)),
                StoreRequest::Page { ticket, room, after, before, .. },
            ) => return self.wrong_page(plant, *ticket, room, *after, *before),
            (Some(Plant::ForgetBases), StoreRequest::ReadRoom { .. }) => {
                let mut reply = self.durable.handle(request);
                revive(&mut reply);
                return reply;
            }
            _ => {}
        }
        self.durable.handle(request)
    }

    /// A page as a reader who breaks a rule would see it.
    fn wrong_page(&mut self, plant: Plant, ticket: u64, room: &RoomId, after: u64, before: u64) -> StoreReply {
        let whole = StoreRequest::ReadRoom { ticket, room: room.clone(), window: u32::MAX };
        let StoreReply::Room { meta, tail, .. } = self.durable.handle(whole) else {
            unreachable!("a room is answered with a room")
        };
        let mut rows: BTreeMap<u64, ReadRow> = BTreeMap::new();
        for row in tail.into_iter().filter(|row| row.seq > after && row.seq < before) {
            let is_void = meta.voids.contains(&row.seq) && plant != Plant::RowsBeatVoids;
            if !is_void && (plant == Plant::RowsBeatVoids || !rows.contains_key(&row.seq)) {
                rows.insert(row.seq, ReadRow { row, read_by: Vec::new() });
            }
        }
        StoreReply::Page { ticket, rows: rows.into_values().collect(), cut: false, oldest: 0 }
    }

    /// The resolved rows with `after < seq < before`.
    pub fn rows(&mut self, room: &str, after: u64, before: u64) -> Vec<ReadRow> {
        let request = StoreRequest::Page {
            ticket: 0,
            room: RoomId::new(room),
            after,
            before,
            limit: u32::MAX,
            bytes_max: u32::MAX,
            from: From::Oldest,
        };
        match self.durable.handle(request) {
            StoreReply::Page { rows, .. } => rows,
            other => unreachable!("a page is answered with a page, not {other:?}"),
        }
    }

    /// The message of that id, if it stands at that seq.
    pub fn message(&mut self, room: &str, seq: u64, message_id: &str) -> Option<Row> {
        let place = MessagePlace::decode(room, message_id).filter(|place| place.seq == seq)?;
        let read = self.rows(room, seq - 1, seq + 1).pop()?;
        Some(read.row).filter(|row| row.generation == place.epoch)
    }

    /// Whether the message of that id was cut off: a later generation began at or below its seq, or the seq is void.
    #[must_use]
    pub fn is_dead(&self, room: &str, message_id: &str) -> bool {
        let Some(place) = MessagePlace::decode(room, message_id) else { return false };
        let meta = self.durable.meta(&RoomId::new(room));
        meta.voids.contains(&place.seq)
            || meta.bases.iter().any(|(later, base)| *later > place.epoch && *base <= place.seq)
    }

    /// The seqs with `after < seq < before` whose message was not cut off.
    pub fn alive(&mut self, room: &str, after: u64, before: u64) -> Vec<u64> {
        let rows = self.rows(room, after, before).into_iter();
        let id = |read: &ReadRow| MessagePlace { epoch: read.row.generation, seq: read.row.seq }.encode(room);
        rows.filter(|read| !self.is_dead(room, &id(read))).map(|read| read.row.seq).collect()
    }

    /// Where generations later than that one begin, at the lowest.
    #[must_use]
    pub fn base_after(&self, room: &str, generation: u64) -> Option<u64> {
        let bases = self.durable.meta(&RoomId::new(room)).bases;
        bases.iter().filter(|(later, _)| *later > generation).map(|(_, base)| *base).min()
    }

    /// How many seqs of a room are void, and its generation.
    #[must_use]
    pub fn facts(&self, room: &str) -> (u64, u64) {
        let meta = self.durable.meta(&RoomId::new(room));
        (meta.voids.len() as u64, meta.generation)
    }
}

/// Makes rows of a generation that has ended look as if they were of the last one.
fn revive(reply: &mut StoreReply) {
    let StoreReply::Room { meta, tail, .. } = reply else { return };
    let Some((last, _)) = meta.bases.last().copied() else { return };
    let seqs: BTreeSet<u64> = tail.iter().filter(|row| row.generation == last).map(|row| row.seq).collect();
    for row in tail.iter_mut().filter(|row| !seqs.contains(&row.seq)) {
        row.generation = last;
    }
}
