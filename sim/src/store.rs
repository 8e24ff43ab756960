//! The fake store: the reference implementation of the contract, behind a queue that delays, refuses, and leaves
//! outcomes unknown. What it has applied is durable and survives a crash; what waits may be applied or lost.

use crate::Plant;
use crate::random::Random;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::memory::MemoryStore;
use roomwire_engine::store::{From, ReadRow, StoreReply, StoreRequest};
use roomwire_wire::id::MessagePlace;

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
    /// Answer with the outcome at that time.
    waiting: Vec<(u64, StoreRequest)>,
    /// Apply at that time; the answer was given before.
    late: Vec<(u64, StoreRequest)>,
    replies: Vec<StoreReply>,
    /// How it behaves now.
    pub mode: Mode,
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
            plant,
        }
    }

    /// Takes a request.
    pub fn submit(&mut self, now_ms: u64, random: &mut Random, request: StoreRequest) {
        if self.plant == Some(Plant::AckBeforeDurable)
            && let StoreRequest::Append { ticket, .. } = &request
        {
            self.replies.push(StoreReply::Appended { ticket: *ticket });
            self.late.push((now_ms + random.below(400), request));
            return;
        }
        match self.mode {
            Mode::Well => self.waiting.push((now_ms + random.below(4), request)),
            Mode::Slow => self.waiting.push((now_ms + random.below(4_000), request)),
            Mode::Refusing => {
                self.replies.push(StoreReply::Failed { ticket: request.ticket(), retry_after_ms: 200 });
                match random.below(4) {
                    0 => drop(self.durable.handle(request)),
                    1 => self.late.push((now_ms + random.below(3_000), request)),
                    _ => {}
                }
            }
        }
    }

    /// Applies what is due and gives one reply, if there is one, in any order.
    pub fn poll(&mut self, now_ms: u64, random: &mut Random) -> Option<StoreReply> {
        while let Some(index) = self.late.iter().position(|(due, _)| *due <= now_ms) {
            let (_, request) = self.late.remove(index);
            self.durable.handle(request);
        }
        let due: Vec<usize> = (0..self.waiting.len()).filter(|index| self.waiting[*index].0 <= now_ms).collect();
        if !due.is_empty() {
            let (_, request) = self.waiting.remove(due[random.index(due.len())]);
            let reply = self.durable.handle(request);
            self.replies.push(reply);
        }
        if self.replies.is_empty() { None } else { Some(self.replies.remove(random.index(self.replies.len()))) }
    }

    /// Whether anything is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.late.is_empty() && self.replies.is_empty()
    }

    /// The node died: what waited is applied or lost, and nobody hears the answers.
    pub fn crash(&mut self, random: &mut Random) {
        let lossy = self.plant == Some(Plant::AckBeforeDurable);
        for (_, request) in self.waiting.drain(..).chain(self.late.drain(..)) {
            if !lossy && random.one_in(2) {
                self.durable.handle(request);
            }
        }
        self.replies.clear();
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

    /// Whether the message of that id stands at that seq.
    pub fn is_durable(&mut self, room: &str, seq: u64, message_id: &str) -> bool {
        let Some(place) = MessagePlace::decode(room, message_id) else { return false };
        place.seq == seq && self.rows(room, seq - 1, seq + 1).iter().any(|read| read.row.generation == place.epoch)
    }

    /// How many seqs of a room are void.
    pub fn voids(&mut self, room: &str) -> usize {
        match self.durable.handle(StoreRequest::ReadRoom { ticket: 0, room: RoomId::new(room), window: 1 }) {
            StoreReply::Room { meta, .. } => meta.voids.len(),
            other => unreachable!("a room is answered with a room, not {other:?}"),
        }
    }
}
