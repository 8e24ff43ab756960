//! The bus of a node that stands alone: ORDERING.md's scripts under one owner, in process.
//!
//! Called by the bridge thread and by the simulator. It knows no store: a room that it does not hold is rebuilt by the
//! bridge under the next generation, so it may forget any room that has nothing pending, at any time. It does so only
//! when it holds more than [`LocalBus::DEDUPE_ENTRIES_MAX`] dedupe entries or [`LocalBus::ROOMS_MAX`] rooms, longest
//! idle first: each time that a forgotten room is written again costs it one generation in the store.
//!
//! No outcome depends on the order in which a hash map is walked.

use super::{
    Begun, BusEvent, BusReply, BusRequest, DEDUPE_MESSAGES, DedupeEntry, DedupeKey, Finished, Head,
    PENDING_MESSAGES_MAX, PublishItem, SequenceItem, Sequenced, Voiding,
};
use crate::Now;
use crate::names::RoomId;
use hashbrown::{HashMap, HashSet};
use std::collections::{BTreeMap, VecDeque};

/// How long an initialisation that was begun keeps others from beginning one.
const BEGIN_LEASE_MS: u64 = 2_000;
/// How long a room must have been left alone before it may be forgotten.
const FORGET_IDLE_MS: u64 = 60_000;
/// How many rooms one request looks at when too much is held.
const FORGET_LOOKS: usize = 4;

/// The bus of a node that stands alone.
#[derive(Debug, Default)]
pub struct LocalBus {
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
    pending: BTreeMap<u64, Pending>,
    dedupe: Dedupe,
    used_ms: u64,
}

#[derive(Debug)]
struct Pending {
    attempt: u64,
    key: DedupeKey,
    voiding: bool,
    since_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: u64,
    generation: u64,
    timestamp: u64,
}

/// The dedupe window, in two halves.
#[derive(Debug, Default)]
struct Dedupe {
    young: HashMap<DedupeKey, Entry>,
    old: HashMap<DedupeKey, Entry>,
    /// Seqs given since the halves were last exchanged.
    given: u64,
}

impl Dedupe {
    fn get(&self, key: &DedupeKey) -> Option<Entry> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Adds the entry of a new seq; every D seqs the old half goes, apart from what is pending.
    fn insert(&mut self, key: DedupeKey, entry: Entry, pending: &BTreeMap<u64, Pending>) {
        if self.given >= DEDUPE_MESSAGES {
            self.given = 0;
            let dropped = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.young.extend(
                dropped
                    .into_iter()
                    .filter(|(key, entry)| pending.get(&entry.seq).is_some_and(|pending| pending.key == *key)),
            );
        }
        self.given += 1;
        self.young.insert(key, entry);
    }

    /// Drops the entry of a voided seq.
    fn remove(&mut self, key: &DedupeKey, seq: u64) {
        for half in [&mut self.young, &mut self.old] {
            if half.get(key).is_some_and(|entry| entry.seq == seq) {
                half.remove(key);
            }
        }
    }
}

impl LocalBus {
    /// The most dedupe entries held (some 100 to 200 bytes each) before idle rooms are forgotten.
    pub const DEDUPE_ENTRIES_MAX: usize = 4_000_000;
    /// The most rooms held before idle rooms are forgotten.
    pub const ROOMS_MAX: usize = 1_000_000;

    /// A bus without any room: each is initialised at its first publish, under a new generation.
    #[must_use]
    pub fn new() -> LocalBus {
        LocalBus::default()
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
            BusRequest::Ephemeral { room, payload } => {
                if self.subscribed.contains(&room) {
                    events.push(BusEvent::Ephemeral { room, payload });
                }
                None
            }
            request => Some(self.script(now, request, events)),
        }
    }

    /// Forgets a room that has nothing pending; whether it did. The next request to it is answered with `NeedInit`.
    pub fn forget(&mut self, room: &RoomId) -> bool {
        if self.rooms.get(room).is_none_or(|room| !room.pending.is_empty()) {
            return false;
        }
        if let Some(room) = self.rooms.remove(room) {
            self.entries -= room.dedupe.len();
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
        let before = room.dedupe.len();
        room.used_ms = now.mono_ms();
        let start = events.len();
        let reply = room.run(now.mono_ms(), &id, request, events);
        self.entries = self.entries + room.dedupe.len() - before;
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

    fn run(&mut self, now_ms: u64, id: &RoomId, request: BusRequest, events: &mut Vec<BusEvent>) -> BusReply {
        match request {
            BusRequest::Begin { room, token } => BusReply::Begun { room, answer: self.begin(now_ms, token) },
            BusRequest::Finish { room, token, generation, last, dedupe } => {
                let answer = self.finish(token, generation, last, dedupe);
                if answer == Finished::Ok {
                    events.push(self.control(id, None));
                }
                BusReply::Finished { room, answer }
            }
            _ if !self.live => BusReply::NeedInit { room: id.clone() },
            BusRequest::Sequence { room, items } => {
                let answers = items.into_iter().map(|item| self.sequence(now_ms, item)).collect();
                BusReply::Sequenced { room, answers }
            }
            BusRequest::Publish { room, items } => {
                let answers = items.into_iter().map(|item| self.publish(id, item, events)).collect();
                BusReply::Published { room, answers }
            }
            BusRequest::Void1 { room, generation, seq, min_age_ms } => {
                BusReply::Voiding { room, seq, answer: self.void1(now_ms, generation, seq, min_age_ms) }
            }
            BusRequest::Void2 { room, generation, seq } => {
                let applied = generation == self.generation;
                if applied && let Some(pending) = self.pending.remove(&seq) {
                    self.dedupe.remove(&pending.key, seq);
                    events.push(self.control(id, Some(seq)));
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
            BusRequest::Subscribe { room } | BusRequest::Unsubscribe { room } | BusRequest::Ephemeral { room, .. } => {
                BusReply::Subscribed { room }
            }
        }
    }

    fn control(&self, id: &RoomId, void: Option<u64>) -> BusEvent {
        BusEvent::Control { room: id.clone(), generation: self.generation, base: self.base, void }
    }

    fn sequence(&mut self, now_ms: u64, item: SequenceItem) -> Sequenced {
        if let Some(Entry { seq, generation, timestamp }) = self.dedupe.get(&item.key) {
            return match self.pending.get(&seq).filter(|_| generation == self.generation) {
                Some(pending) if pending.attempt == item.attempt && !pending.voiding => {
                    Sequenced::Mine { generation, seq, timestamp }
                }
                Some(pending) => Sequenced::Wait { generation, seq, age_ms: now_ms.saturating_sub(pending.since_ms) },
                None => Sequenced::Done { generation, seq, timestamp },
            };
        }
        let generation = self.generation;
        if self.seq - self.stable() >= PENDING_MESSAGES_MAX
            && let Some((seq, pending)) = self.pending.first_key_value()
        {
            return Sequenced::Busy { generation, seq: *seq, age_ms: now_ms.saturating_sub(pending.since_ms) };
        }
        self.seq += 1;
        let (seq, timestamp) = (self.seq, item.timestamp);
        let pending = Pending { attempt: item.attempt, key: item.key.clone(), voiding: false, since_ms: now_ms };
        self.pending.insert(seq, pending);
        self.dedupe.insert(item.key, Entry { seq, generation, timestamp }, &self.pending);
        Sequenced::Mine { generation, seq, timestamp }
    }

    fn publish(&mut self, id: &RoomId, item: PublishItem, events: &mut Vec<BusEvent>) -> bool {
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
            // A repeat of a publish whose reply was lost.
            None => self
                .dedupe
                .get(&item.key)
                .is_some_and(|entry| entry.seq == item.seq && entry.generation == item.generation),
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

    fn finish(&mut self, token: u64, generation: u64, last: u64, dedupe: Vec<DedupeEntry>) -> Finished {
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
        // Into the old half: what is loaded stays for D more seqs, as ORDERING.md promises after a re-init.
        self.dedupe.old = dedupe
            .into_iter()
            .map(|DedupeEntry { key, seq, generation, timestamp }| (key, Entry { seq, generation, timestamp }))
            .collect();
        Finished::Ok
    }
}

#[cfg(test)]
mod tests;
