//! One or more bridges over one bus and one store, and what came out of them.

use crate::Now;
use crate::bridge::{Answer, Bridge, BridgeConfig, BridgeEffect, BridgeEvent, Call};
use crate::bus::{BusEvent, BusReply, BusRequest, LocalBus};
use crate::mesh::{HistoryAsk, NextPage, ToBridge, ToShard};
use crate::names::{ConnectionId, ConnectionRef, RoomId, ShardId, User, UserId};
use crate::store::memory::MemoryStore;
use crate::store::{StoreReply, StoreRequest};
use bytes::Bytes;
use roomwire_wire::message::ErrorCode;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

pub(super) const SHARDS: u16 = 2;

/// What the store does with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Well,
    /// Writes fail and have no effect; reads work, as on a full disk.
    RefusesWrites,
    /// All fails.
    Down,
    /// Writes fail, and take effect when the store is well again.
    LosesReplies,
    /// Nothing is answered until it is well again.
    Hangs,
}

/// A node: its bridge, and what it said to its shards and callers.
pub(super) struct Node {
    pub(super) bridge: Bridge,
    subscribed: HashSet<RoomId>,
    pub(super) out: Vec<(ShardId, ToShard)>,
    pub(super) answers: Vec<(u64, Answer)>,
    pub(super) is_finished: bool,
}

pub(super) struct World {
    pub(super) now: Now,
    pub(super) nodes: Vec<Node>,
    pub(super) bus: LocalBus,
    pub(super) store: MemoryStore,
    pub(super) mood: Mood,
    /// Requests that the store has not carried out yet, and whether they are still to be answered.
    pub(super) held: VecDeque<(usize, StoreRequest, bool)>,
    /// Kinds of bus requests that are answered with `Failed`, after or before they had their effect.
    pub(super) bus_fails: Option<fn(&BusRequest) -> bool>,
    pub(super) bus_fails_after: bool,
    /// What the bus answers with `Refused`.
    pub(super) bus_refuses: Option<fn(&BusRequest) -> bool>,
    /// What the bus is asked it does not answer.
    pub(super) bus_hangs: bool,
    /// Events reach the bridges before the reply of what caused them.
    pub(super) events_first: bool,
    /// No node hears any event.
    pub(super) is_deaf: bool,
    /// HEAD says "absent" in that server's name where a room is not live.
    pub(super) server: Option<u64>,
    queue: VecDeque<(usize, BridgeEffect)>,
    is_busy: bool,
    pub(super) reads: usize,
    pub(super) trace: Vec<String>,
    pub(super) config: BridgeConfig,
}

pub(super) fn config(boot: u64) -> BridgeConfig {
    BridgeConfig {
        shards: SHARDS,
        node: Arc::from("n1"),
        boot,
        cluster: false,
        publishes_max: 10_000,
        publish_ms_max: 5_000,
        inits_max: 4,
        page_bytes_max: 64 * 1024,
        recent_bytes_max: 64 * 1024,
        bus_log: false,
        strict: false,
    }
}

pub(super) fn connection(shard: u16, slot: u32) -> ConnectionRef {
    ConnectionRef { shard: ShardId(shard), connection: ConnectionId { slot, generation: 1 } }
}

pub(super) fn user(id: &str) -> User {
    User { id: UserId::new(id), name: Arc::from(id.to_uppercase()) }
}

pub(super) fn room() -> RoomId {
    RoomId::new("lobby")
}

fn is_write(request: &StoreRequest) -> bool {
    !matches!(request, StoreRequest::Page { .. } | StoreRequest::ReadRoom { .. })
}

impl World {
    pub(super) fn new() -> World {
        World::with(config(7))
    }

    /// Two nodes of a cluster.
    pub(super) fn pair() -> World {
        let mut world = World::with(BridgeConfig { cluster: true, ..config(7) });
        world.add_node(BridgeConfig { cluster: true, ..config(100) });
        world
    }

    pub(super) fn with(config: BridgeConfig) -> World {
        let mut world = World {
            now: Now { mono_us: 1_000_000, unix_ms: 1_700_000_000_000 },
            nodes: Vec::new(),
            bus: LocalBus::new(3),
            store: MemoryStore::new(),
            mood: Mood::Well,
            held: VecDeque::new(),
            bus_fails: None,
            bus_fails_after: false,
            bus_refuses: None,
            bus_hangs: false,
            events_first: false,
            is_deaf: false,
            server: None,
            queue: VecDeque::new(),
            is_busy: false,
            reads: 0,
            trace: Vec::new(),
            config: config.clone(),
        };
        world.add_node(config);
        world
    }

    pub(super) fn add_node(&mut self, config: BridgeConfig) {
        self.nodes.push(Node {
            bridge: Bridge::new(config),
            subscribed: HashSet::new(),
            out: Vec::new(),
            answers: Vec::new(),
            is_finished: false,
        });
    }

    /// `kill -9` and a new start: only what the store carried out is left.
    pub(super) fn restart(&mut self) {
        self.nodes.clear();
        self.held.clear();
        self.bus = LocalBus::new(3);
        self.config.boot += 1;
        self.add_node(self.config.clone());
    }

    /// The bus starts again, empty: subscriptions are made anew, and the nodes are told.
    pub(super) fn lose_bus(&mut self) {
        self.bus = LocalBus::new(3);
        for node in 0..self.nodes.len() {
            for room in self.nodes[node].subscribed.clone() {
                self.bus.handle(self.now, BusRequest::Subscribe { room }, &mut Vec::new());
            }
            self.event_at(node, BridgeEvent::BusEvent(BusEvent::Lost));
        }
        self.run();
    }

    /// One node dies; its requests to the store that were not carried out may still be, later.
    pub(super) fn kill(&mut self, node: usize) {
        self.config.boot += 1;
        let config = BridgeConfig { boot: self.config.boot, ..self.config.clone() };
        self.add_node(config);
        self.nodes.swap_remove(node);
        for (of, _, is_answered) in &mut self.held {
            *is_answered &= *of != node;
        }
    }

    pub(super) fn event(&mut self, event: BridgeEvent) {
        self.event_at(0, event);
        self.run();
    }

    pub(super) fn shard(&mut self, message: ToBridge) {
        self.event(BridgeEvent::Shard(message));
    }

    /// As [`World::shard`], without a flush: more of the same turn follows.
    pub(super) fn gather(&mut self, message: ToBridge) {
        self.event_at(0, BridgeEvent::Shard(message));
    }

    fn event_at(&mut self, node: usize, event: BridgeEvent) {
        let mut effects = Vec::new();
        self.nodes[node].bridge.handle(self.now, event, &mut effects);
        self.carry_out(node, effects);
    }

    /// Effects are carried out in their order, also those of events that come of them.
    fn carry_out(&mut self, node: usize, effects: Vec<BridgeEffect>) {
        let is_nested = !self.queue.is_empty() || self.is_busy;
        self.queue.extend(effects.into_iter().map(|effect| (node, effect)));
        if is_nested {
            return;
        }
        self.is_busy = true;
        while let Some((node, effect)) = self.queue.pop_front() {
            self.carry_out_one(node, effect);
        }
        self.is_busy = false;
    }

    /// Flushes until nothing more comes of it.
    pub(super) fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            for node in 0..self.nodes.len() {
                let mut effects = Vec::new();
                self.nodes[node].bridge.flush(self.now, &mut effects);
                is_quiet &= effects.is_empty();
                self.carry_out(node, effects);
            }
            if is_quiet {
                return;
            }
        }
    }

    fn carry_out_one(&mut self, node: usize, effect: BridgeEffect) {
        self.trace.push(format!("{node} {effect:?}"));
        match effect {
            BridgeEffect::Shard(shard, message) => self.nodes[node].out.push((shard, message)),
            BridgeEffect::Answer { call, answer } => self.nodes[node].answers.push((call, answer)),
            BridgeEffect::Stats(..) | BridgeEffect::Cluster(_) | BridgeEffect::Evicted { .. } => {}
            BridgeEffect::Finished => self.nodes[node].is_finished = true,
            BridgeEffect::Bus(request) => self.bus(node, request),
            BridgeEffect::Store(request) => self.store(node, request),
        }
    }

    fn bus(&mut self, node: usize, request: BusRequest) {
        let fails = self.bus_fails.is_some_and(|fails| fails(&request));
        match &request {
            BusRequest::Subscribe { room } => {
                self.nodes[node].subscribed.insert(room.clone());
            }
            BusRequest::Unsubscribe { room } => {
                self.nodes[node].subscribed.remove(room);
                if self.nodes.iter().any(|other| other.subscribed.contains(room)) {
                    return;
                }
            }
            _ => {}
        }
        if self.bus_hangs {
            return;
        }
        let is_head = matches!(request, BusRequest::Head { .. });
        let room = request.room().clone();
        if self.bus_refuses.is_some_and(|refuses| refuses(&request)) {
            self.event_at(node, BridgeEvent::BusReply(BusReply::Refused { room }));
            return;
        }
        let failed = BusReply::Failed { room, retry_after_ms: 10 };
        if fails && !self.bus_fails_after {
            self.event_at(node, BridgeEvent::BusReply(failed));
            return;
        }
        let mut events = Vec::new();
        let reply = self.bus.handle(self.now, request, &mut events);
        let mut reply = match reply {
            Some(_) if fails => Some(failed),
            Some(BusReply::NeedInit { room }) if self.server.is_some() && is_head => {
                self.server.map(|server| BusReply::Absent { room, server })
            }
            reply => reply,
        };
        if !self.events_first
            && let Some(reply) = reply.take()
        {
            self.event_at(node, BridgeEvent::BusReply(reply));
        }
        for event in events {
            self.tell(&event);
        }
        if let Some(reply) = reply {
            self.event_at(node, BridgeEvent::BusReply(reply));
        }
    }

    fn tell(&mut self, event: &BusEvent) {
        let (BusEvent::Message { room, .. } | BusEvent::Ephemeral { room, .. } | BusEvent::Control { room, .. }) =
            event
        else {
            return;
        };
        for node in 0..self.nodes.len() {
            if self.nodes[node].subscribed.contains(room) && !self.is_deaf {
                self.event_at(node, BridgeEvent::BusEvent(event.clone()));
            }
        }
    }

    fn store(&mut self, node: usize, request: StoreRequest) {
        if matches!(request, StoreRequest::Page { .. }) {
            self.reads += 1;
        }
        let ticket = request.ticket();
        let fails = match self.mood {
            Mood::Well => false,
            Mood::RefusesWrites | Mood::LosesReplies => is_write(&request),
            Mood::Down => true,
            Mood::Hangs => {
                self.held.push_back((node, request, true));
                return;
            }
        };
        if self.mood == Mood::LosesReplies && fails {
            self.held.push_back((node, request.clone(), false));
        }
        let reply = if fails { StoreReply::Failed { ticket, retry_after_ms: 100 } } else { self.store.handle(request) };
        self.event_at(node, BridgeEvent::Store(reply));
    }

    /// The store is well again; what it held takes effect, the latest first if `reversed`.
    pub(super) fn heal(&mut self, reversed: bool) {
        self.mood = Mood::Well;
        let mut held = std::mem::take(&mut self.held);
        if reversed {
            held.make_contiguous().reverse();
        }
        for (node, request, is_answered) in held {
            let reply = self.store.handle(request);
            if is_answered {
                self.event_at(node, BridgeEvent::Store(reply));
                self.run();
            }
        }
    }

    /// Time passes, with every tick that is due.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.mono_ms() + ms;
        loop {
            let due = self.nodes.iter().filter_map(|node| node.bridge.next_tick_ms()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.advance_to(due.max(self.now.mono_ms()));
            for node in 0..self.nodes.len() {
                self.event_at(node, BridgeEvent::Tick);
            }
            self.run();
        }
        self.advance_to(end);
    }

    fn advance_to(&mut self, mono_ms: u64) {
        let ms = mono_ms - self.now.mono_ms();
        self.now.mono_us += ms * 1_000;
        self.now.unix_ms += ms;
    }

    // What shards do.

    pub(super) fn subscribe(&mut self, shard: u16) {
        self.shard(ToBridge::Subscribe { room: room(), shard: ShardId(shard) });
    }

    pub(super) fn publish_message(from: ConnectionRef, of: &str, content: &str, client_id: Option<&str>) -> ToBridge {
        ToBridge::Publish {
            from,
            room: room(),
            user: user(of),
            content: Bytes::copy_from_slice(content.as_bytes()),
            client_id: client_id.map(Arc::from),
            received_us: 1,
        }
    }

    pub(super) fn publish(&mut self, content: &str, client_id: Option<&str>) {
        self.shard(World::publish_message(connection(0, 1), "ann", content, client_id));
    }

    pub(super) fn publish_at(&mut self, node: usize, content: &str, client_id: Option<&str>) {
        let message = World::publish_message(connection(0, 1), "ann", content, client_id);
        self.event_at(node, BridgeEvent::Shard(message));
        self.run();
    }

    pub(super) fn shard_at(&mut self, node: usize, message: ToBridge) {
        self.event_at(node, BridgeEvent::Shard(message));
        self.run();
    }

    pub(super) fn ask(&mut self, from: ConnectionRef, ask: HistoryAsk) {
        self.shard(ToBridge::History { from, room: room(), ask });
    }

    pub(super) fn ask_of(&mut self, from: ConnectionRef, room: RoomId, ask: HistoryAsk) {
        self.shard(ToBridge::History { from, room, ask });
    }

    pub(super) fn call(&mut self, call: u64, what: Call) {
        self.event(BridgeEvent::Call { call, what });
    }

    // What came out.

    /// What a shard was given of the room, as (seq, content).
    pub(super) fn delivered_at(&self, node: usize, shard: u16) -> Vec<(u64, String)> {
        let mine = self.nodes[node].out.iter().filter(|(to, _)| *to == ShardId(shard));
        mine.filter_map(|(_, message)| match message {
            ToShard::Deliver { seq, payload, .. } => {
                let json: serde_json::Value = serde_json::from_slice(payload).expect("our own JSON");
                assert_eq!(json["seq"].as_u64(), Some(*seq));
                Some((*seq, json["content"].as_str().expect("a content").to_owned()))
            }
            _ => None,
        })
        .collect()
    }

    pub(super) fn delivered(&self, shard: u16) -> Vec<(u64, String)> {
        self.delivered_at(0, shard)
    }

    /// Acks, as (client id, message id, seq).
    pub(super) fn acks_at(&self, node: usize) -> Vec<(String, String, u64)> {
        let out = self.nodes[node].out.iter();
        out.filter_map(|(_, message)| match message {
            ToShard::Published { client_id, message_id, seq, .. } => {
                Some((client_id.to_string(), message_id.to_string(), *seq))
            }
            _ => None,
        })
        .collect()
    }

    pub(super) fn acks(&self) -> Vec<(String, String, u64)> {
        self.acks_at(0)
    }

    /// Refusals, as (code, client id, retry after).
    pub(super) fn refusals(&self) -> Vec<(String, Option<String>, Option<u32>)> {
        let out = self.nodes[0].out.iter();
        out.filter_map(|(_, message)| match message {
            ToShard::Refused { client_id, code, retry_after_ms, .. } => {
                Some((code.as_str().to_owned(), client_id.as_deref().map(str::to_owned), *retry_after_ms))
            }
            _ => None,
        })
        .collect()
    }

    /// How many asks for history were refused for now.
    pub(super) fn histories_refused(&self) -> usize {
        let is_refused = |message: &ToShard| {
            matches!(message, ToShard::HistoryRefused { code: ErrorCode::Unavailable, retry_after_ms: Some(_), .. })
        };
        self.nodes[0].out.iter().filter(|(_, message)| is_refused(message)).count()
    }

    /// Takes the pages of history that were sent.
    pub(super) fn take_pages(&mut self) -> Vec<Page> {
        let out = std::mem::take(&mut self.nodes[0].out);
        let (pages, rest): (Vec<_>, Vec<_>) =
            out.into_iter().partition(|(_, message)| matches!(message, ToShard::HistoryPage { .. }));
        self.nodes[0].out = rest;
        pages.into_iter().filter_map(|(_, message)| Page::of(message)).collect()
    }

    pub(super) fn one_page(&mut self, from: ConnectionRef, ask: HistoryAsk) -> Page {
        self.ask(from, ask);
        let mut pages = self.take_pages();
        assert_eq!(pages.len(), 1, "one ask, one page");
        pages.remove(0)
    }
}

/// A page of history as a client sees it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) json: serde_json::Value,
    pub(super) next: Option<NextPage>,
    pub(super) live: bool,
}

impl Page {
    fn of(message: ToShard) -> Option<Page> {
        let ToShard::HistoryPage { payload, next, live, .. } = message else { return None };
        let json = serde_json::from_slice(&payload).expect("our own JSON");
        Some(Page { json, next, live })
    }

    pub(super) fn seqs(&self) -> Vec<u64> {
        let messages = self.json["messages"].as_array().expect("messages");
        messages.iter().map(|message| message["seq"].as_u64().expect("a seq")).collect()
    }

    pub(super) fn head(&self) -> (u64, u64) {
        (self.json["seq"].as_u64().expect("seq"), self.json["epoch"].as_u64().expect("epoch"))
    }

    pub(super) fn flags(&self) -> (bool, bool, bool) {
        (self.json["complete"] == true, self.json["more"] == true, self.live)
    }
}
