//! The bus of a node that stands alone: ORDERING.md's scripts under one owner, in process.
//!
//! Called by the bridge thread and by the simulator. It knows no store: a room that it does not hold is rebuilt by the
//! bridge under the next generation, so it may forget any room that has nothing pending, at any time. It does so only
//! when it holds more than [`LocalBus::DEDUPE_ENTRIES_MAX`] dedupe entries or [`LocalBus::ROOMS_MAX`] rooms, longest
//! idle first: each time that a forgotten room is written again costs it one generation in the store.
//!
//! Of a decided message it keeps a fingerprint only (`local/fingerprints.rs`), so it never answers `Done`, but `Perhaps`:
//! the row in the store tells.
//!
//! No outcome depends on the order in which a hash map is walked.

mod fingerprints;

use super::{
    Begun, BusEvent, BusReply, BusRequest, DEDUPE_MESSAGES, DedupeEntry, DedupeKey, Finished, Head,
    PENDING_MESSAGES_MAX, PublishItem, SequenceItem, Sequenced, Voiding,
};
use crate::Now;
use crate::names::{RoomId, UserId};
use fingerprints::{Fingerprint, Fingerprinter, Fingerprints};
use hashbrown::{HashMap, HashSet};
use std::collections::{BTreeMap, VecDeque};

/// How long an initialisation that was begun keeps others from beginning one.
const BEGIN_LEASE_MS: u64 = 2_000;
/// How long a room must have been left alone before it may be forgotten.
const FORGET_IDLE_MS: u64 = 60_000;
/// How many rooms one request looks at when too much is held.
const FORGET_LOOKS: usize = 4;

/// The bus of a node that stands alone.
#[derive(Debug)]
pub struct LocalBus {
    fingerprinter: Fingerprinter,
    rooms: HashMap<RoomId, Room>,
    subscribed: HashSet<RoomId>,
    /// Every room once, roughly in the order of last use: the hand of a clock that looks for idle rooms.
    clock: VecDeque<RoomId>,
    entries: usize,
}

/// `rw:{R}:h`, `:p` and `:d0`, `:d1` of one room. The server's identity needs no field: a start forgets every room.
#[derive(Debug, Default)]
struct Room {
    live: bool,
    generation: u64,
    base: u64,
    seq: u64,
    token: u64,
    token_ms: u64,
    /// Boxed, as an empty map keeps a node with room for eleven.
    pending: BTreeMap<u64, Box<Pending>>,
    /// W <= D: what is pending is in here too.
    dedupe: Fingerprints,
    used_ms: u64,
}

#[derive(Debug)]
struct Pending {
    attempt: u64,
    timestamp: u64,
    key: DedupeKey,
    voiding: bool,
    since_ms: u64,
}

const _: () = assert!(PENDING_MESSAGES_MAX <= DEDUPE_MESSAGES);

impl LocalBus {
    /// The most dedupe entries held (three bytes each) before idle rooms are forgotten.
    pub const DEDUPE_ENTRIES_MAX: usize = 100_000_000;
    /// The most rooms held before idle rooms are forgotten.
    pub const ROOMS_MAX: usize = 1_000_000;

    /// A bus without any room: each is initialised at its first publish, under a new generation.
    /// `seed` differs at each start, and no client knows it.
    #[must_use]
    pub fn new(seed: u64) -> LocalBus {
        LocalBus::with_fingerprint_bits(seed, 24)
    }

    /// As [`LocalBus::new`], with fingerprints of so few bits that different messages are taken for candidates often:
    /// for tests and the simulator.
    #[must_use]
    pub fn with_fingerprint_bits(seed: u64, bits: u32) -> LocalBus {
        LocalBus {
            fingerprinter: Fingerprinter::new(seed, bits),
            rooms: HashMap::new(),
            subscribed: HashSet::new(),
            clock: VecDeque::new(),
            entries: 0,
        }
    }

    /// How many rooms it holds.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Answers a request at once; what subscribers hear is appended to `events`, in order.
    pub fn handle(&mut self, now: Now, request: BusRequest, events: &mut Vec<BusEvent>) -> Option<BusReply> {
        match request {
            BusRequest::Subscribe { room } => {
                self.subscribed.insert(room.clone());
                Some(BusReply::Subscribed { room })
            }
            BusRequest::Unsubscribe { room } => {
                self.subscribed.remove(&room);
                None
            }
            // There is no other node, and the bridge does not ask this bus for a log.
            BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. } => None,
            request => Some(self.script(now, request, events)),
        }
    }

    /// Forgets a room that has nothing pending; whether it did. The next request to it is answered with `NeedInit`.
    pub fn forget(&mut self, room: &RoomId) -> bool {
        if self.rooms.get(room).is_none_or(|room| !room.pending.is_empty()) {
            return false;
        }
        if let Some(room) = self.rooms.remove(room) {
            self.entries -= room.dedupe.capacity();
        }
        true
    }

    /// Runs one script on one room.
    fn script(&mut self, now: Now, request: BusRequest, events: &mut Vec<BusEvent>) -> BusReply {
        let id = request.room().clone();
        let begins = matches!(request, BusRequest::Begin { .. });
        if begins && !self.rooms.contains_key(&id) {
            self.rooms.insert(id.clone(), Room::default());
            self.clock.push_back(id.clone());
        }
        let Some(room) = self.rooms.get_mut(&id) else {
            return match request {
                BusRequest::Finish { .. } => BusReply::Finished { room: id, answer: Finished::Refused },
                _ => BusReply::NeedInit { room: id },
            };
        };
        let before = room.dedupe.capacity();
        room.used_ms = now.mono_ms();
        let start = events.len();
        let reply = room.run(now.mono_ms(), &self.fingerprinter, request, events);
        self.entries = self.entries + room.dedupe.capacity() - before;
        if !self.subscribed.contains(&id) {
            events.truncate(start);
        }
        self.forget_idle(now.mono_ms());
        reply
    }

    /// While too much is held, looks at a few of the rooms that were longest not looked at, and forgets the idle ones.
    fn forget_idle(&mut self, now_ms: u64) {
        for _ in 0..FORGET_LOOKS {
            if self.entries <= Self::DEDUPE_ENTRIES_MAX && self.rooms.len() <= Self::ROOMS_MAX {
                return;
            }
            let Some(id) = self.clock.pop_front() else { return };
            let Some(room) = self.rooms.get(&id) else { continue };
            let idle = now_ms.saturating_sub(room.used_ms) >= FORGET_IDLE_MS;
            if !idle || !self.forget(&id) {
                self.clock.push_back(id);
            }
        }
    }
}

impl Room {
    fn stable(&self) -> u64 {
        self.pending.first_key_value().map_or(self.seq, |(seq, _)| seq - 1)
    }

    fn run(
        &mut self,
        now_ms: u64,
        fingerprinter: &Fingerprinter,
        request: BusRequest,
        events: &mut Vec<BusEvent>,
    ) -> BusReply {
        match request {
            BusRequest::Begin { room, token } => BusReply::Begun { room, answer: self.begin(now_ms, token) },
            BusRequest::Finish { room, token, generation, last, dedupe } => {
                let answer = self.finish(fingerprinter, token, (generation, last), dedupe);
                if answer == Finished::Ok {
                    events.push(self.control(&room, None));
                }
                BusReply::Finished { room, answer }
            }
            request if !self.live => BusReply::NeedInit { room: request.room().clone() },
            BusRequest::Sequence { room, items } => {
                let answers = self.sequence_all(now_ms, fingerprinter, items);
                BusReply::Sequenced { room, answers }
            }
            BusRequest::Publish { room, items } => {
                let answers = items.into_iter().map(|item| self.publish(&room, fingerprinter, item, events)).collect();
                BusReply::Published { room, answers }
            }
            BusRequest::Void1 { room, generation, seq, min_age_ms } => {
                BusReply::Voiding { room, seq, answer: self.void1(now_ms, generation, seq, min_age_ms) }
            }
            BusRequest::Void2 { room, generation, seq } => {
                let applied = generation == self.generation;
                if applied && self.pending.remove(&seq).is_some() {
                    self.dedupe.clear(seq);
                    events.push(self.control(&room, Some(seq)));
                }
                BusReply::Voided { room, seq, applied }
            }
            BusRequest::Head { room } => BusReply::Head { room, head: self.head(now_ms) },
            BusRequest::Retire { room, generation } => {
                if generation == self.generation {
                    self.live = false;
                    self.token = 0;
                }
                BusReply::Retired { room }
            }
            BusRequest::Log { room, .. } => BusReply::NeedInit { room },
            BusRequest::Subscribe { room }
            | BusRequest::Unsubscribe { room }
            | BusRequest::Ephemeral { room, .. }
            | BusRequest::LogRead { room, .. } => BusReply::Subscribed { room },
        }
    }

    fn control(&self, id: &RoomId, void: Option<u64>) -> BusEvent {
        BusEvent::Control { room: id.clone(), generation: self.generation, base: self.base, void }
    }

    /// A message that may be known is given no seq before that is clear, and no later one of its author either: else the
    /// later one, which may come from the same connection, would stand before it.
    fn sequence_all(&mut self, now_ms: u64, fingerprinter: &Fingerprinter, items: Vec<SequenceItem>) -> Vec<Sequenced> {
        let mut unclear: Vec<UserId> = Vec::new();
        let answers = items.into_iter().map(|item| {
            let fingerprint = fingerprinter.of(&item.key);
            if let Some(known) = self.known(now_ms, fingerprint, &item) {
                if matches!(known, Sequenced::Perhaps { .. }) {
                    unclear.push(item.key.user);
                }
                return known;
            }
            if unclear.contains(&item.key.user) {
                return Sequenced::Behind;
            }
            self.sequence(now_ms, fingerprint, item)
        });
        answers.collect()
    }

    /// What is known of a message: exact for a pending one, a guess for a decided one.
    fn known(&self, now_ms: u64, fingerprint: Fingerprint, item: &SequenceItem) -> Option<Sequenced> {
        let generation = self.generation;
        let mut perhaps = None;
        for seq in self.dedupe.find(fingerprint) {
            match self.pending.get(&seq) {
                Some(pending) if pending.key != item.key => {}
                Some(pending) if pending.attempt == item.attempt && !pending.voiding => {
                    return Some(Sequenced::Mine { generation, seq, timestamp: pending.timestamp });
                }
                Some(pending) => {
                    let age_ms = now_ms.saturating_sub(pending.since_ms);
                    return Some(Sequenced::Wait { generation, seq, age_ms });
                }
                None if item.except.contains(&seq) => {}
                None => perhaps = perhaps.or(Some(Sequenced::Perhaps { seq })),
            }
        }
        perhaps
    }

    /// Gives a message that is not known a seq.
    fn sequence(&mut self, now_ms: u64, fingerprint: Fingerprint, item: SequenceItem) -> Sequenced {
        let generation = self.generation;
        if self.seq - self.stable() >= PENDING_MESSAGES_MAX
            && let Some((seq, pending)) = self.pending.first_key_value()
        {
            return Sequenced::Busy { generation, seq: *seq, age_ms: now_ms.saturating_sub(pending.since_ms) };
        }
        self.seq += 1;
        let (seq, SequenceItem { key, attempt, timestamp, .. }) = (self.seq, item);
        let pending = Pending { attempt, timestamp, key, voiding: false, since_ms: now_ms };
        self.pending.insert(seq, Box::new(pending));
        self.dedupe.set(seq, fingerprint);
        Sequenced::Mine { generation, seq, timestamp }
    }

    fn publish(
        &mut self,
        id: &RoomId,
        fingerprinter: &Fingerprinter,
        item: PublishItem,
        events: &mut Vec<BusEvent>,
    ) -> bool {
        if item.generation != self.generation {
            return false;
        }
        match self.pending.get(&item.seq) {
            Some(pending) if pending.attempt == item.attempt && !pending.voiding => {
                self.pending.remove(&item.seq);
                events.push(BusEvent::Message {
                    room: id.clone(),
                    generation: self.generation,
                    seq: item.seq,
                    base: self.base,
                    stable: self.stable(),
                    payload: item.payload,
                    received_us: item.received_us,
                });
                true
            }
            Some(_) => false,
            // A repeat of a publish whose reply was lost. The fingerprint is proof enough: in one generation a seq is given
            // to one attempt only, which alone publishes at it, and a void leaves no fingerprint.
            None => self.dedupe.has(item.seq, fingerprinter.of(&item.key)),
        }
    }

    fn void1(&mut self, now_ms: u64, generation: u64, seq: u64, min_age_ms: u64) -> Voiding {
        if generation != self.generation {
            return Voiding::Gone;
        }
        match self.pending.get_mut(&seq) {
            None => Voiding::Decided,
            Some(pending) if !pending.voiding && now_ms.saturating_sub(pending.since_ms) < min_age_ms => Voiding::Wait,
            Some(pending) => {
                pending.voiding = true;
                Voiding::Ok
            }
        }
    }

    fn head(&self, now_ms: u64) -> Head {
        Head {
            generation: self.generation,
            base: self.base,
            seq: self.seq,
            stable: self.stable(),
            pending: self
                .pending
                .first_key_value()
                .map(|(seq, pending)| (*seq, now_ms.saturating_sub(pending.since_ms))),
        }
    }

    fn begin(&mut self, now_ms: u64, token: u64) -> Begun {
        if self.live {
            return Begun::Live;
        }
        if self.token != 0 && self.token != token && now_ms.saturating_sub(self.token_ms) < BEGIN_LEASE_MS {
            return Begun::Wait;
        }
        *self = Room { token, token_ms: now_ms, used_ms: now_ms, ..Room::default() };
        Begun::Ok
    }

    fn finish(
        &mut self,
        fingerprinter: &Fingerprinter,
        token: u64,
        (generation, last): (u64, u64),
        mut dedupe: Vec<DedupeEntry>,
    ) -> Finished {
        if self.live {
            return Finished::Live;
        }
        if self.token == 0 || self.token != token {
            return Finished::Refused;
        }
        self.live = true;
        self.token = 0;
        self.generation = generation;
        self.seq = last;
        self.base = last + 1;
        // Ascending, since what lies far below the latest is not kept.
        dedupe.sort_by_key(|entry| entry.seq);
        for entry in &dedupe {
            self.dedupe.set(entry.seq, fingerprinter.of(&entry.key));
        }
        Finished::Ok
    }
}

#[cfg(test)]
mod tests;
