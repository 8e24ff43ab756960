//! What the node's bridge decides, pure: ORDERING.md's writer, receiver, resume, re-init and void, as state machines.
//!
//! The bridge thread of `server` and the simulator drive it: events in, effects out. It knows no Redis, no CQL, no
//! HTTP: only the contracts in [`crate::bus`] and [`crate::store`].
//!
//! Reading order: this file (what comes in and goes out, and which room it is for), `bridge/room.rs` (one room, and the
//! pump that moves it on), then a file per role of ORDERING.md: `writer`, `receiver`, `history` with `recent`, `init`,
//! `void`; `receipt` stands alone; `shared` is what the rooms of a bridge share, `looks` which of their heads to look at,
//! `pace` how many of them are begun anew at once.
//!
//! Memory: a room exists here while a shard is subscribed to it, while something of it is under way, and for
//! [`USER_ROOM_IDLE_MS`] after a message to a `user:` room. An idle subscribed room costs some 500 bytes. Recent messages
//! cost at most `recent_bytes_max` per room and [`RECENT_BYTES_TOTAL_MAX`] in all; publishes under way are at most
//! `publishes_max`.
//!
//! Hash maps here are never walked where order could show, so the same events give the same effects.

mod cluster;
mod history;
mod init;
mod looks;
mod pace;
mod receipt;
mod receiver;
mod recent;
mod room;
mod shared;
mod void;
mod writer;

#[cfg(test)]
mod tests;

use crate::Now;
use crate::bus::{BusEvent, BusReply, BusRequest};
use crate::cluster::{ClusterEvent, ClusterReply, ClusterRequest};
use crate::mesh::{Asker, HistoryAsk, ToBridge, ToShard};
use crate::names::{RoomId, ShardId, User, UserId, home};
use crate::stats::ShardStats;
use crate::store::{ReadRow, StoreReply, StoreRequest};
use bytes::Bytes;
pub use cluster::ClusterStats;
use cluster::{Cluster, Out, RosterAsk};
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use room::Room;
use roomwire_wire::close::CloseCode;
use roomwire_wire::message::ErrorCode;
use shared::{Admission, Asked, Origin, Shared, Turn};
use std::sync::Arc;

/// What the bridge is told at its start.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// How many shards the node has.
    pub shards: u16,
    /// This node's name, for the client ids that it makes (ORDERING.md rule 5).
    pub node: Arc<str>,
    /// Differs at each start; also seeds everything random.
    pub boot: u64,
    /// The most publishes under way; beyond, they are refused with `unavailable`.
    pub publishes_max: u32,
    /// The most milliseconds that a publish waits for the store before it is refused; it may still appear later, once.
    pub publish_ms_max: u32,
    /// The most rooms that are begun anew, or read whole for want of a bus that knows them, at once.
    pub inits_max: u32,
    /// The most content bytes of one page of history.
    pub page_bytes_max: u32,
    /// The most bytes of recent messages kept in memory per room with members here, for history and resume.
    pub recent_bytes_max: u32,
    /// The bus is shared with other nodes: events without a seq go to it too, and the heads of idle
    /// rooms are looked at, since a wake-up can get lost.
    pub cluster: bool,
    /// The bus keeps a log of recent messages: history is looked for there before the store is asked.
    pub bus_log: bool,
    /// ORDERING.md's strict mode: the store's generation is read between append and PUB.
    pub strict: bool,
}

/// What comes in.
#[derive(Debug)]
pub enum BridgeEvent {
    /// From a shard.
    Shard(ToBridge),
    /// A call of the HTTP API; answered with [`BridgeEffect::Answer`].
    Call {
        /// Pairs call and answer.
        call: u64,
        /// The call.
        what: Call,
    },
    /// The bus answered.
    BusReply(BusReply),
    /// The bus told.
    BusEvent(BusEvent),
    /// The shared bus answered, on who is where.
    ClusterReply(ClusterReply),
    /// The shared bus told, on who is where.
    ClusterEvent(ClusterEvent),
    /// The store answered.
    Store(StoreReply),
    /// Time passed: call it when `next_tick` is due.
    Tick,
    /// Drain: pass `ToShard::Drain` on to all shards; publishes are still taken until the last shard is drained.
    Drain {
        /// The window, in ms; 0 cuts it short.
        window_ms: u32,
    },
}

/// A call of the HTTP API, already checked for form.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is one route of docs/protocol.md, HTTP")]
pub enum Call {
    Publish { room: RoomId, user: User, content: Bytes, client_id: Option<Arc<str>>, received_us: u64 },
    History { room: RoomId, ask: HistoryAsk },
    Members { room: RoomId },
    Presence { user: UserId },
    Disconnect { user: UserId, code: CloseCode, reason: Arc<str> },
}

/// The answer to a [`Call`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each is one route of docs/protocol.md, HTTP")]
pub enum Answer {
    Published {
        message_id: Arc<str>,
        seq: u64,
        epoch: u64,
        timestamp: u64,
    },
    History {
        rows: Vec<ReadRow>,
        seq: u64,
        epoch: u64,
        complete: bool,
        more: bool,
    },
    /// Without `complete` the other nodes could not be asked.
    Members {
        count: u64,
        users: Vec<User>,
        complete: bool,
    },
    Presence {
        online: bool,
        connections: u32,
        nodes: Vec<Arc<str>>,
        complete: bool,
    },
    Disconnected,
    Refused {
        code: ErrorCode,
        message: &'static str,
        retry_after_ms: Option<u32>,
    },
}

/// What the driver has to do, in order.
#[derive(Debug)]
#[allow(missing_docs, reason = "named after where it goes")]
pub enum BridgeEffect {
    Shard(ShardId, ToShard),
    Bus(BusRequest),
    /// To the shared bus; a node on its own has none.
    Cluster(ClusterRequest),
    Store(StoreRequest),
    Answer {
        call: u64,
        answer: Answer,
    },
    /// A shard's figures came in.
    Stats(ShardId, Box<ShardStats>),
    /// Another process has taken this node's id: this one must end.
    Evicted {
        /// Who, in words.
        by: Arc<str>,
    },
    /// Every shard is drained and nothing is under way: the process may end.
    Finished,
}

/// Figures of the bridge, cumulative unless a name ends in `_now`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is a metric `roomwire_bridge_<name>`; docs/operations.md explains them")]
pub struct BridgeStats {
    pub rooms_now: u64,
    pub publishes_now: u64,
    pub published_total: u64,
    pub duplicates_total: u64,
    pub refused_total: u64,
    pub voided_total: u64,
    pub inits_total: u64,
    /// Rooms that wait for their turn to be begun anew, or looked at in the store.
    pub inits_waiting_now: u64,
    pub history_pages_total: u64,
    pub history_from_memory_total: u64,
    pub history_from_log_total: u64,
    pub receipts_total: u64,
    /// Whether the store refuses or is late: publishes are refused at once, apart from probes.
    pub store_degraded_now: bool,
    /// Whether the bus is away or does not answer: publishes are refused at once, apart from probes.
    pub bus_degraded_now: bool,
    /// Microseconds from a chat message's receipt on its shard to the store's word that it is durable.
    pub durable_us: Histogram<u64>,
}

/// How long a `user:` room is kept here after its last message.
pub const USER_ROOM_IDLE_MS: u64 = 10_000;
/// The most bytes of recent messages of all rooms together; beyond, rooms not lately asked lose theirs first.
pub const RECENT_BYTES_TOTAL_MAX: usize = 256 << 20;

/// The bridge of one node.
#[derive(Debug)]
pub struct Bridge {
    rooms: HashMap<RoomId, Room>,
    shared: Shared,
    /// `None` on a node of its own.
    cluster: Option<Box<Cluster>>,
    drain: Drain,
}

/// How far the drain has come.
#[derive(Debug, Default)]
struct Drain {
    draining: bool,
    drained: crate::names::ShardSet,
    finished: bool,
}

impl Bridge {
    /// A bridge that knows no room yet.
    #[must_use]
    pub fn new(config: BridgeConfig) -> Bridge {
        let cluster = config.cluster.then(|| Box::new(Cluster::new(&config)));
        Bridge { rooms: HashMap::new(), shared: Shared::new(config), cluster, drain: Drain::default() }
    }

    /// Takes one event; effects are appended in the order in which they must be carried out. `Sequence` and `Append`
    /// requests are gathered until [`Bridge::flush`].
    pub fn handle(&mut self, now: Now, event: BridgeEvent, effects: &mut Vec<BridgeEffect>) {
        match event {
            BridgeEvent::Shard(message) => self.shard(now, message, effects),
            BridgeEvent::Call { call, what } => self.call(now, call, what, effects),
            BridgeEvent::BusReply(reply) => {
                self.at(now, &reply.room().clone(), effects, |room, turn| room.bus_reply(turn, reply));
            }
            BridgeEvent::BusEvent(event) => self.bus_event(now, event, effects),
            BridgeEvent::ClusterReply(reply) => {
                self.with_cluster(now, effects, |cluster, out| cluster.reply(out, reply));
            }
            BridgeEvent::ClusterEvent(event) => {
                self.with_cluster(now, effects, |cluster, out| cluster.event(out, event));
            }
            BridgeEvent::Store(reply) => self.store_reply(now, reply, effects),
            BridgeEvent::Tick => self.tick(now, effects),
            BridgeEvent::Drain { window_ms } => {
                self.drain.draining = true;
                for shard in self.shards() {
                    effects.push(BridgeEffect::Shard(shard, ToShard::Drain { window_ms }));
                }
            }
        }
        self.call_up(now, effects);
        self.trim_recent();
        self.finish(effects);
    }

    /// Ends a turn: sends what was gathered as one batch per room (`Sequence`, `Publish`) and one for all (`Append`).
    pub fn flush(&mut self, now: Now, effects: &mut Vec<BridgeEffect>) {
        let dirty = std::mem::take(&mut self.shared.dirty);
        for id in &dirty {
            self.at(now, id, effects, Room::flush_sequence);
        }
        Turn { now, shared: &mut self.shared, effects }.flush_rows();
        for id in &dirty {
            self.at(now, id, effects, Room::flush_publish);
        }
        self.with_cluster(now, effects, Cluster::flush);
    }

    fn with_cluster(
        &mut self,
        now: Now,
        effects: &mut Vec<BridgeEffect>,
        act: impl FnOnce(&mut Cluster, &mut Out<'_>),
    ) {
        if let Some(cluster) = &mut self.cluster {
            let mut out = Out::new(now, effects, self.shared.config.shards);
            act(cluster, &mut out);
        }
    }

    /// When [`BridgeEvent::Tick`] is due, in ms of CLOCK_MONOTONIC; `None` while nothing waits.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<u64> {
        let cluster = self.cluster.as_ref().and_then(|cluster| cluster.next_tick_ms());
        [self.shared.next_tick_ms(), cluster].into_iter().flatten().min()
    }

    /// The cluster's figures; `None` on a node of its own.
    #[must_use]
    pub fn cluster_stats(&self) -> Option<&ClusterStats> {
        self.cluster.as_ref().map(|cluster| &cluster.stats)
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self) -> &BridgeStats {
        &self.shared.stats
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shared.config.shards).map(ShardId)
    }

    /// Lets a room that is known here do something, then moves it on, and lets go of it if it is done.
    fn at(
        &mut self,
        now: Now,
        id: &RoomId,
        effects: &mut Vec<BridgeEffect>,
        act: impl FnOnce(&mut Room, &mut Turn<'_>),
    ) {
        let Some(room) = self.rooms.get_mut(id) else { return };
        let mut turn = Turn { now, shared: &mut self.shared, effects };
        act(room, &mut turn);
        room.pump(&mut turn);
        if room.is_disposable(now) {
            room.dispose(&mut turn);
            self.rooms.remove(id);
        } else if let Some(due) = room.arm(now) {
            self.shared.set_timer(due, id);
        }
        self.shared.stats.rooms_now = self.rooms.len() as u64;
    }

    /// As [`Bridge::at`], for a room that need not be known yet.
    fn at_any(
        &mut self,
        now: Now,
        id: &RoomId,
        effects: &mut Vec<BridgeEffect>,
        act: impl FnOnce(&mut Room, &mut Turn<'_>),
    ) {
        if !self.rooms.contains_key(id) {
            self.rooms.insert(id.clone(), Room::new(id.clone()));
        }
        self.at(now, id, effects, act);
    }

    fn shard(&mut self, now: Now, message: ToBridge, effects: &mut Vec<BridgeEffect>) {
        match message {
            ToBridge::Publish { from, room, user, content, client_id, received_us } => {
                let item = writer::Offer { origin: Origin::Connection(from), user, content, client_id, received_us };
                self.publish(now, &room, item, effects);
            }
            ToBridge::Receipt { from, room, user, message_id } => {
                receipt::ask(&mut Turn { now, shared: &mut self.shared, effects }, from, room, user, message_id);
            }
            ToBridge::History { from, room, ask } => {
                let to = Origin::Connection(from);
                self.at_any(now, &room, effects, |room, turn| room.ask_history(turn, to, &ask));
            }
            ToBridge::Subscribe { room, shard } => {
                self.at_any(now, &room, effects, |room, turn| room.subscribe(turn, shard));
            }
            ToBridge::Unsubscribe { room, shard } => {
                self.at(now, &room, effects, |room, turn| room.unsubscribe(turn, shard));
            }
            ToBridge::Spread { room, payload } => {
                effects.push(BridgeEffect::Bus(BusRequest::Ephemeral { room, payload }));
            }
            ToBridge::MembersAnswer { room, asker, count, users } => {
                if let (Asker::Http(call), None) = (asker, &self.cluster) {
                    let answer = Answer::Members { count, users, complete: true };
                    effects.push(BridgeEffect::Answer { call, answer });
                } else {
                    let here = RosterAsk { asker, count, users };
                    self.with_cluster(now, effects, |cluster, out| cluster.ask_roster(out, &room, here));
                }
            }
            ToBridge::UserAnswer { call, user, online, connections } => match &mut self.cluster {
                None => {
                    let nodes = online.then(|| self.shared.config.node.clone()).into_iter().collect();
                    let answer = Answer::Presence { online, connections, nodes, complete: true };
                    effects.push(BridgeEffect::Answer { call, answer });
                }
                Some(_) => self.with_cluster(now, effects, |cluster, out| {
                    cluster.ask_user(out, call, user, online, connections);
                }),
            },
            ToBridge::UserChanged { user, online } => {
                self.with_cluster(now, effects, |cluster, out| cluster.user_changed(out, user, online));
            }
            ToBridge::Watch { user } => self.with_cluster(now, effects, |cluster, out| cluster.watch(out, user)),
            ToBridge::Unwatch { user } => self.with_cluster(now, effects, |cluster, _| cluster.unwatch(&user)),
            ToBridge::RosterChange { room, change } => {
                self.with_cluster(now, effects, |cluster, out| cluster.roster_change(out, room, change));
            }
            ToBridge::Announced { part, .. } => {
                self.with_cluster(now, effects, |cluster, out| cluster.announced(out, *part));
            }
            ToBridge::Stats { shard, stats } => effects.push(BridgeEffect::Stats(shard, stats)),
            ToBridge::Drained { shard } => {
                self.drain.drained.insert(shard);
            }
        }
    }

    fn call(&mut self, now: Now, call: u64, what: Call, effects: &mut Vec<BridgeEffect>) {
        let shards = self.shared.config.shards;
        match what {
            Call::Publish { room, user, content, client_id, received_us } => {
                let item = writer::Offer { origin: Origin::Http(call), user, content, client_id, received_us };
                self.publish(now, &room, item, effects);
            }
            Call::History { room, ask } => {
                self.at_any(now, &room, effects, |room, turn| room.ask_history(turn, Origin::Http(call), &ask));
            }
            Call::Members { room } => {
                let to = home(&room, shards);
                effects.push(BridgeEffect::Shard(to, ToShard::AskMembers { room, asker: Asker::Http(call) }));
            }
            Call::Presence { user } => {
                let to = home(&user, shards);
                effects.push(BridgeEffect::Shard(to, ToShard::AskUser { user, call }));
            }
            Call::Disconnect { user, code, reason } => {
                for shard in self.shards() {
                    let (user, reason) = (user.clone(), reason.clone());
                    effects.push(BridgeEffect::Shard(shard, ToShard::Disconnect { user, code, reason }));
                }
                effects.push(BridgeEffect::Answer { call, answer: Answer::Disconnected });
            }
        }
    }

    fn publish(&mut self, now: Now, room: &RoomId, offer: writer::Offer, effects: &mut Vec<BridgeEffect>) {
        let admission = self.shared.admit_publish(now);
        if let Admission::Refused(retry_after_ms) = admission {
            Turn { now, shared: &mut self.shared, effects }.refuse_publish(&offer, retry_after_ms);
            return;
        }
        let is_probe = admission == Admission::Probe;
        self.at_any(now, room, effects, |room, turn| room.offer(turn, offer, is_probe));
    }

    fn bus_event(&mut self, now: Now, event: BusEvent, effects: &mut Vec<BridgeEffect>) {
        let id = match &event {
            BusEvent::Message { room, .. }
            | BusEvent::Ephemeral { room, .. }
            | BusEvent::Control { room, .. }
            | BusEvent::Doubt { room } => room,
            BusEvent::Works => {
                self.shared.bus_works();
                return;
            }
            BusEvent::Lost => {
                self.with_cluster(now, effects, |cluster, out| cluster.lost(out));
                let mut all: Vec<RoomId> = self.rooms.keys().cloned().collect();
                all.sort();
                self.shared.looks.sweep(now, all);
                return;
            }
        };
        self.at(now, &id.clone(), effects, |room, turn| room.bus_event(turn, event));
    }

    fn store_reply(&mut self, now: Now, reply: StoreReply, effects: &mut Vec<BridgeEffect>) {
        let ticket = reply.ticket();
        let Some(asked) = self.shared.take_ticket(ticket) else { return };
        match asked {
            Asked::Append(places) => {
                let stored = Turn { now, shared: &mut self.shared, effects }.append_answered(&reply, &places);
                if stored {
                    for place in places {
                        self.at(now, &place.room, effects, |room, turn| {
                            room.appended(turn, place.generation, place.seq)
                        });
                    }
                }
            }
            Asked::Room(id, purpose) => {
                self.at(now, &id, effects, |room, turn| room.store_reply(turn, purpose, reply));
            }
            Asked::Receipt(receipt) => {
                let new = receipt::answered(&mut Turn { now, shared: &mut self.shared, effects }, &receipt, &reply);
                if new {
                    self.at_any(now, &receipt.room.clone(), effects, |room, turn| room.read(turn, &receipt));
                }
            }
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<BridgeEffect>) {
        while let Some(id) = self.shared.pop_timer(now) {
            self.at(now, &id.1, effects, |room, turn| room.tick(turn, id.0));
        }
        for (id, look) in self.shared.looks.due(now) {
            let is_listed = self.rooms.get(&id).is_some_and(|room| room.receiver.look == look);
            if is_listed || look == looks::ANY {
                self.at(now, &id, effects, |room, _| room.want_head());
            }
            if is_listed {
                self.shared.looks.add(now, id, look);
            }
        }
        for place in self.shared.pop_append_retries(now) {
            self.at(now, &place.room, effects, |room, turn| room.append_again(turn, place.generation, place.seq));
        }
    }

    /// Permits that are free go to the rooms that wait for one.
    fn call_up(&mut self, now: Now, effects: &mut Vec<BridgeEffect>) {
        while let Some((id, haste)) = self.shared.pace.next() {
            self.at(now, &id, effects, |room, turn| turn.shared.pace.take(&mut room.permit, haste));
        }
        self.shared.stats.inits_waiting_now = self.shared.pace.waiting() as u64;
    }

    /// Keeps [`RECENT_BYTES_TOTAL_MAX`]: the hand of a clock goes round the rooms that hold recent messages.
    fn trim_recent(&mut self) {
        let shared = &mut self.shared;
        if shared.recent_clock.len() > 2 * self.rooms.len() + 1_024 {
            let rooms = &self.rooms;
            shared.recent_clock.retain(|(id, stamp)| rooms.get(id).is_some_and(|room| room.recent.is_clocked(*stamp)));
        }
        while shared.recent_bytes > RECENT_BYTES_TOTAL_MAX {
            let Some((id, stamp)) = shared.recent_clock.pop_front() else { return };
            if let Some(room) = self.rooms.get_mut(&id).filter(|room| room.recent.is_clocked(stamp))
                && room.give_up_recent(shared)
            {
                shared.recent_clock.push_back((id, stamp));
            }
        }
    }

    fn finish(&mut self, effects: &mut Vec<BridgeEffect>) {
        if self.drain.draining
            && !self.drain.finished
            && self.shared.unanswered == 0
            && self.shards().all(|shard| self.drain.drained.contains(shard))
        {
            self.drain.finished = true;
            effects.push(BridgeEffect::Finished);
        }
    }
}
