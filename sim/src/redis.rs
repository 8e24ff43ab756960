//! The fake Redis: ORDERING.md's scripts on one server, which can lose what it holds or give way to a replica that lags.
//!
//! Each method is one script, carried out at once. What reaches it when, and what comes back, is [`link`]'s matter.
//! It is written anew from ORDERING.md, and shares nothing with the engine's local bus or the Lua of the server.

pub mod link;

use crate::Plant;
use crate::random::Random;
use roomwire_engine::bus::{
    Begun, BusEvent, BusReply, BusRequest, DedupeEntry, DedupeKey, Finished, Head, LOG_MESSAGES_MAX, LogPage,
    PublishItem, SequenceItem, Sequenced, Voiding, row_of_payload,
};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{From, ReadRow};
use std::collections::BTreeMap;

/// An initialisation keeps others away for so long.
const BEGIN_LEASE_MS: u64 = 2_000;

/// The server that all nodes talk to, and its replica.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    /// The server as it was when it began, and what has changed it since: the replica is made of these when it is
    /// needed, since that is rare.
    beginning: Server,
    changes: Vec<Change>,
    /// So many changes have reached the replica.
    replicated: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Script(u64, BusRequest),
    Forget(RoomId),
}

#[derive(Clone, Debug)]
struct Server {
    /// `master_replid`: another after each restart and failover.
    replid: u64,
    rooms: BTreeMap<RoomId, Room>,
    rules: Rules,
}

/// What is the same for all rooms of a run.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// D, and W too. Far smaller than a real one in most runs, so that it matters in a short run.
    pub window: u64,
    /// The rule that is left out.
    pub plant: Option<Plant>,
}

#[derive(Clone, Debug, Default)]
struct Room {
    server: u64,
    live: bool,
    generation: u64,
    base: u64,
    seq: u64,
    token: u64,
    token_ms: u64,
    pending: BTreeMap<u64, Pending>,
    young: BTreeMap<DedupeKey, Entry>,
    old: BTreeMap<DedupeKey, Entry>,
    given: u64,
    log: BTreeMap<u64, ReadRow>,
    log_floor: u64,
}

#[derive(Clone, Debug)]
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

impl Redis {
    /// A server that holds nothing.
    #[must_use]
    pub fn new(rules: Rules) -> Redis {
        Redis::beginning_with(Server { replid: 1, rooms: BTreeMap::new(), rules })
    }

    fn beginning_with(server: Server) -> Redis {
        Redis { beginning: server.clone(), server, changes: Vec::new(), replicated: 0 }
    }

    /// The replica catches up.
    pub fn replicate(&mut self) {
        self.replicated = self.changes.len();
    }

    /// It starts again, empty.
    pub fn restart(&mut self) {
        let Server { replid, rules, .. } = self.server;
        *self = Redis::beginning_with(Server { replid: replid + 1, rooms: BTreeMap::new(), rules });
    }

    /// The replica takes over with what it has. Gives the old master, which may not be dead.
    pub fn fail_over(&mut self) -> Redis {
        let mut replica = self.beginning.clone();
        for change in &self.changes[..self.replicated] {
            replica.apply(change.clone());
        }
        replica.replid += 1;
        std::mem::replace(self, Redis::beginning_with(replica))
    }

    /// Another application's FLUSHALL, or an operator's DEL, of one room.
    pub fn forget(&mut self, random: &mut Random) {
        let at = random.index(self.server.rooms.len().max(1));
        if let Some(room) = self.server.rooms.keys().nth(at).cloned() {
            self.lose(room);
        }
    }

    /// The same of a given room.
    pub fn lose(&mut self, room: RoomId) {
        self.server.rooms.remove(&room);
        self.changes.push(Change::Forget(room));
    }

    /// Its `master_replid`.
    #[must_use]
    pub fn replid(&self) -> u64 {
        self.server.replid
    }

    /// The generation and the seq of a room that is live.
    #[must_use]
    pub fn live(&self, room: &RoomId) -> Option<(u64, u64)> {
        let room = self.server.rooms.get(room).filter(|room| room.live && room.server == self.server.replid)?;
        Some((room.generation, room.seq))
    }

    /// Runs one script. What subscribers hear is appended to `events`.
    pub fn run(&mut self, now_ms: u64, request: BusRequest, events: &mut Vec<BusEvent>) -> Option<BusReply> {
        let changes_nothing =
            matches!(request, BusRequest::Head { .. } | BusRequest::Log { .. } | BusRequest::Ephemeral { .. });
        if !changes_nothing {
            self.changes.push(Change::Script(now_ms, request.clone()));
        }
        self.server.run(now_ms, request, events)
    }
}

impl Server {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Script(now_ms, request) => drop(self.run(now_ms, request, &mut Vec::new())),
            Change::Forget(room) => drop(self.rooms.remove(&room)),
        }
    }

    fn run(&mut self, now_ms: u64, request: BusRequest, events: &mut Vec<BusEvent>) -> Option<BusReply> {
        let (id, replid, rules) = (request.room().clone(), self.replid, self.rules);
        if let BusRequest::Begin { room, token } = request {
            let answer = self.begin(now_ms, &room, token);
            return Some(BusReply::Begun { room, answer });
        }
        let is_same_server = |room: &Room| room.server == replid || rules.plant == Some(Plant::TrustAnyServer);
        let has_trace = self.rooms.contains_key(&id);
        let room = self.rooms.get_mut(&id).filter(|room| is_same_server(room));
        if let BusRequest::Finish { room: id, token, generation, last, dedupe } = request {
            let Some(room) = room else {
                return Some(BusReply::Finished { room: id, answer: Finished::Refused });
            };
            let answer = room.finish(rules, token, generation, last, dedupe);
            if answer == Finished::Ok {
                events.push(room.control(&id, None));
            }
            return Some(BusReply::Finished { room: id, answer });
        }
        let is_answered = !matches!(request, BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. });
        if let BusRequest::Ephemeral { room, payload } = request {
            events.push(BusEvent::Ephemeral { room, payload });
            return None;
        }
        let Some(room) = room.filter(|room| room.live) else {
            if let BusRequest::Head { room } = request
                && !has_trace
            {
                return Some(BusReply::Absent { room, server: replid });
            }
            return is_answered.then_some(BusReply::NeedInit { room: id });
        };
        room.script(rules, now_ms, &id, request, events)
    }

    fn begin(&mut self, now_ms: u64, id: &RoomId, token: u64) -> Begun {
        let room = self.rooms.entry(id.clone()).or_default();
        let is_here = room.server == self.replid || self.rules.plant == Some(Plant::TrustAnyServer) && room.server != 0;
        if is_here && room.live {
            return Begun::Live;
        }
        if is_here && room.token != 0 && now_ms.saturating_sub(room.token_ms) < BEGIN_LEASE_MS {
            return Begun::Wait;
        }
        *room = Room { server: self.replid, token, token_ms: now_ms, ..Room::default() };
        Begun::Ok
    }
}

impl Room {
    fn stable(&self) -> u64 {
        self.pending.first_key_value().map_or(self.seq, |(seq, _)| seq - 1)
    }

    fn control(&self, id: &RoomId, void: Option<u64>) -> BusEvent {
        BusEvent::Control { room: id.clone(), generation: self.generation, base: self.base, void }
    }

    fn script(
        &mut self,
        rules: Rules,
        now_ms: u64,
        id: &RoomId,
        request: BusRequest,
        events: &mut Vec<BusEvent>,
    ) -> Option<BusReply> {
        let plant = rules.plant;
        Some(match request {
            BusRequest::Sequence { room, items } => {
                let answers = items.into_iter().map(|item| self.sequence(rules, now_ms, item)).collect();
                BusReply::Sequenced { room, answers }
            }
            BusRequest::Publish { room, items } => {
                let answers = items.into_iter().map(|item| self.publish(plant, id, item, events)).collect();
                BusReply::Published { room, answers }
            }
            BusRequest::Void1 { room, generation, seq, min_age_ms } => {
                let answer = self.void1(now_ms, generation, seq, min_age_ms);
                if answer == Voiding::Ok && plant == Some(Plant::VoidBeforeStore) {
                    self.void2(seq);
                    events.push(self.control(id, Some(seq)));
                }
                if answer == Voiding::Ok && plant == Some(Plant::ForgetVoidedEarly) {
                    self.forget(seq);
                }
                BusReply::Voiding { room, seq, answer }
            }
            BusRequest::Void2 { room, generation, seq } => {
                let applied = generation == self.generation;
                if applied && self.void2(seq) {
                    events.push(self.control(id, Some(seq)));
                }
                BusReply::Voided { room, seq, applied }
            }
            BusRequest::Head { room } => {
                let first = self.pending.first_key_value();
                let pending = first.map(|(seq, pending)| (*seq, now_ms.saturating_sub(pending.since_ms)));
                let stable = if plant == Some(Plant::StableIsSeq) { self.seq } else { self.stable() };
                let (generation, base, seq) = (self.generation, self.base, self.seq);
                BusReply::Head { room, head: Head { generation, base, seq, stable, pending } }
            }
            BusRequest::Retire { room, generation } => {
                if generation == self.generation && plant != Some(Plant::NeverRetire) {
                    self.live = false;
                    self.token = 0;
                }
                BusReply::Retired { room }
            }
            BusRequest::Log { room, after, before, limit, from } => {
                let log = self.log(after, before, limit as usize, from);
                BusReply::Log { room, log: Box::new(log) }
            }
            BusRequest::LogRead { generation, seq, user, .. } => {
                let read = self.log.get_mut(&seq).filter(|read| read.row.generation == generation)?;
                if !read.read_by.iter().any(|reader| **reader == *user) {
                    read.read_by.push(Box::from(&*user));
                }
                return None;
            }
            other => unreachable!("{other:?} was taken before"),
        })
    }

    fn known(&self, key: &DedupeKey) -> Option<Entry> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    fn sequence(&mut self, rules: Rules, now_ms: u64, item: SequenceItem) -> Sequenced {
        if let Some(Entry { seq, generation, timestamp }) = self.known(&item.key) {
            return match self.pending.get_mut(&seq).filter(|_| generation == self.generation) {
                Some(pending) if rules.plant == Some(Plant::TakeOverSeq) && !pending.voiding => {
                    pending.attempt = item.attempt;
                    Sequenced::Mine { generation, seq, timestamp }
                }
                Some(pending) if pending.attempt == item.attempt && !pending.voiding => {
                    Sequenced::Mine { generation, seq, timestamp }
                }
                Some(pending) => Sequenced::Wait { generation, seq, age_ms: now_ms.saturating_sub(pending.since_ms) },
                None => Sequenced::Done { generation, seq, timestamp },
            };
        }
        let generation = self.generation;
        if self.seq - self.stable() >= rules.window
            && let Some((seq, pending)) = self.pending.first_key_value()
        {
            return Sequenced::Busy { generation, seq: *seq, age_ms: now_ms.saturating_sub(pending.since_ms) };
        }
        self.seq += 1;
        let (seq, timestamp) = (self.seq, item.timestamp);
        let pending = Pending { attempt: item.attempt, key: item.key.clone(), voiding: false, since_ms: now_ms };
        self.pending.insert(seq, pending);
        if self.given >= rules.window {
            self.given = 0;
            let dropped = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            let is_pending = |entry: &Entry| self.pending.contains_key(&entry.seq);
            self.young.extend(dropped.into_iter().filter(|(_, entry)| is_pending(entry)));
            if rules.plant == Some(Plant::DropBothHalves) {
                self.old.clear();
            }
        }
        self.given += 1;
        self.young.insert(item.key, Entry { seq, generation, timestamp });
        Sequenced::Mine { generation, seq, timestamp }
    }

    fn publish(&mut self, plant: Option<Plant>, id: &RoomId, item: PublishItem, events: &mut Vec<BusEvent>) -> bool {
        if item.generation != self.generation && plant != Some(Plant::PublishAnyGeneration) {
            return false;
        }
        let is_open = |pending: &Pending| {
            pending.attempt == item.attempt && !pending.voiding
                || plant == Some(Plant::PublishVoiding)
                || plant == Some(Plant::PublishAnyGeneration)
        };
        match self.pending.get(&item.seq) {
            Some(pending) if is_open(pending) => {
                self.pending.remove(&item.seq);
                self.remember(id, item.seq, &item.payload);
                events.push(BusEvent::Message {
                    room: id.clone(),
                    generation: item.generation,
                    seq: item.seq,
                    base: self.base,
                    stable: self.stable(),
                    payload: item.payload,
                    received_us: 0,
                });
                true
            }
            Some(_) => false,
            None => {
                self.known(&item.key).is_some_and(|entry| entry.seq == item.seq && entry.generation == item.generation)
            }
        }
    }

    fn remember(&mut self, id: &RoomId, seq: u64, payload: &[u8]) {
        if let Some(row) = row_of_payload(id, payload) {
            self.log.insert(seq, ReadRow { row, read_by: Vec::new() });
        }
        // Far fewer than a real log keeps, so that its floor matters in a short run.
        while self.log.len() as u64 > LOG_MESSAGES_MAX / 16
            && let Some((seq, _)) = self.log.pop_first()
        {
            self.log_floor = self.log_floor.max(seq);
        }
    }

    fn log(&self, after: u64, before: u64, limit: usize, from: From) -> LogPage {
        let all = || self.log.iter().filter(|(seq, _)| **seq > after.max(self.log_floor) && **seq < before);
        let cut = all().count() > limit;
        let mut rows: Vec<ReadRow> = match from {
            From::Oldest => all().take(limit).map(|(_, read)| read.clone()).collect(),
            From::Newest => all().rev().take(limit).map(|(_, read)| read.clone()).collect(),
        };
        rows.sort_by_key(|read| read.row.seq);
        LogPage { generation: self.generation, floor: self.log_floor, rows, cut }
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

    /// Drops the dedupe entry of a pending seq.
    fn forget(&mut self, seq: u64) {
        let Some(key) = self.pending.get(&seq).map(|pending| pending.key.clone()) else { return };
        for half in [&mut self.young, &mut self.old] {
            if half.get(&key).is_some_and(|entry| entry.seq == seq) {
                half.remove(&key);
            }
        }
    }

    fn void2(&mut self, seq: u64) -> bool {
        self.forget(seq);
        self.pending.remove(&seq).is_some()
    }

    fn finish(&mut self, rules: Rules, token: u64, generation: u64, last: u64, dedupe: Vec<DedupeEntry>) -> Finished {
        if self.live {
            return Finished::Live;
        }
        if self.token != token && rules.plant != Some(Plant::FinishAnyToken) {
            return Finished::Refused;
        }
        *self = Room {
            server: self.server,
            live: true,
            generation,
            seq: last,
            base: last + 1,
            log_floor: last,
            ..Room::default()
        };
        if rules.plant != Some(Plant::ForgetClientIds) {
            self.old = dedupe
                .into_iter()
                .filter(|entry| entry.seq + rules.window > last)
                .map(|DedupeEntry { key, seq, generation, timestamp }| (key, Entry { seq, generation, timestamp }))
                .collect();
        }
        Finished::Ok
    }
}
