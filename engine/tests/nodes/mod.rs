//! The stage of `cluster.rs`: nodes, their clients, and a bus whose faults a test sets.

use bytes::Bytes;
use roomwire_engine::bridge::{Answer, Bridge, BridgeConfig, BridgeEffect, BridgeEvent, Call};
use roomwire_engine::bus::{BusEvent, LocalBus};
use roomwire_engine::cluster::memory::{MemoryCluster, Told};
use roomwire_engine::cluster::{ClusterEvent, ClusterReply};
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::names::{ConnectionId, ShardId, User, UserId};
use roomwire_engine::shard::{Ended, Identity, Verify};
use roomwire_engine::store::memory::MemoryStore;
use roomwire_engine::{Engine, Now};
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Item, Opcode, Role, encode_masked};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;

const SHARDS: u16 = 2;

/// One node.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    engines: Vec<Engine>,
    pub(crate) bridge: Bridge,
    bus: LocalBus,
    store: MemoryStore,
    answers: Vec<Answer>,
    /// Requests to the cluster get no answer.
    is_cut: bool,
    /// Answers and events wait.
    is_held: bool,
    held: VecDeque<BridgeEvent>,
    is_deaf: bool,
    is_paused: bool,
}

struct Client {
    node: usize,
    shard: usize,
    id: ConnectionId,
    bytes: Vec<u8>,
    decoder: Decoder,
    upgraded: bool,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) cluster: MemoryCluster,
    clients: Vec<Client>,
    now: Now,
    next_shard: usize,
    /// `+user` and `-user`, as the bus told them.
    pub(crate) events: Vec<String>,
    pub(crate) evicted: Vec<String>,
}

pub(crate) fn joined(user: &str) -> String {
    format!("user_joined {user}")
}

pub(crate) fn left(user: &str) -> String {
    format!("user_left {user}")
}

fn verify() -> Verify {
    Arc::new(|token, _| {
        let user = User { id: UserId::new(token), name: Arc::from(token.to_uppercase()) };
        Some(Identity { user, expires_ms: None, grants: None })
    })
}

impl World {
    pub(crate) fn new(nodes: usize) -> World {
        let mut world = World {
            nodes: Vec::new(),
            cluster: MemoryCluster::new(1),
            clients: Vec::new(),
            now: Now { mono_us: 77_000_000, unix_ms: 1_700_000_000_000 },
            next_shard: 0,
            events: Vec::new(),
            evicted: Vec::new(),
        };
        for n in 0..nodes {
            world.start(&format!("n{n}"), n as u64 + 1);
        }
        world
    }

    /// A node's start; its first beat takes its lease, as the server's boot does.
    pub(crate) fn start(&mut self, name: &str, boot: u64) {
        let limits = Limits { messages_per_second_max: 0, rooms_per_connection_max: 0, ..Limits::default() };
        let engine = EngineConfig {
            limits,
            heartbeat_ms: 0,
            presence_grace_ms: 5_000,
            node: Arc::from(name),
            shards: SHARDS,
            cluster: true,
            echo: false,
            allowed_origins: Arc::from([String::from("*")]),
            reject_by_http: false,
            proxies: None,
            seed: boot,
        };
        let bridge = BridgeConfig {
            shards: SHARDS,
            node: Arc::from(name),
            boot,
            cluster: true,
            publishes_max: 1_000,
            publish_ms_max: 5_000,
            inits_max: 16,
            page_bytes_max: 65_536,
            recent_bytes_max: 65_536,
            bus_log: false,
            strict: false,
        };
        let life = roomwire_engine::cluster::Life { boot, number: 1 };
        let take = roomwire_engine::cluster::ClusterRequest::Beat { life, take: true, walking: false };
        self.cluster.handle(self.now.mono_ms(), &Arc::from(name), take, &mut Vec::new());
        self.nodes.push(Some(Node {
            name: Arc::from(name),
            engines: (0..SHARDS).map(|n| Engine::new(ShardId(n), engine.clone(), verify(), self.now)).collect(),
            bridge: Bridge::new(bridge),
            bus: LocalBus::new(3),
            store: MemoryStore::default(),
            answers: Vec::new(),
            is_cut: false,
            is_held: false,
            held: VecDeque::new(),
            is_deaf: false,
            is_paused: false,
        }));
        self.run();
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    pub(crate) fn cut(&mut self, node: usize, is_cut: bool) {
        self.nodes[node].as_mut().unwrap().is_cut = is_cut;
        self.deaf(node, is_cut);
    }

    pub(crate) fn deaf(&mut self, node: usize, is_deaf: bool) {
        self.nodes[node].as_mut().unwrap().is_deaf = is_deaf;
    }

    pub(crate) fn pause(&mut self, node: usize, is_paused: bool) {
        self.nodes[node].as_mut().unwrap().is_paused = is_paused;
        if !is_paused {
            self.run();
        }
    }

    pub(crate) fn hold(&mut self, node: usize, is_held: bool) {
        let known = self.nodes[node].as_mut().unwrap();
        known.is_held = is_held;
        for event in std::mem::take(&mut known.held) {
            self.tell(node, event);
        }
        self.run();
    }

    pub(crate) fn lost(&mut self, node: usize) {
        self.tell(node, BridgeEvent::BusEvent(BusEvent::Lost));
        self.run();
    }

    pub(crate) fn call(&mut self, node: usize, what: Call) -> Answer {
        self.tell(node, BridgeEvent::Call { call: 1, what });
        self.run();
        self.nodes[node].as_mut().unwrap().answers.pop().expect("an answer")
    }

    pub(crate) fn connect(&mut self, node: usize, user: &str) -> usize {
        self.next_shard += 1;
        let shard = self.next_shard % usize::from(SHARDS);
        let now = self.now;
        let id = self.nodes[node].as_mut().unwrap().engines[shard].accepted(now, None).unwrap();
        let decoder = Decoder::new(Role::Client);
        self.clients.push(Client { node, shard, id, bytes: Vec::new(), decoder, upgraded: false });
        let client = self.clients.len() - 1;
        let head = format!(
            "GET /ws?token={user} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        self.feed(client, head.as_bytes());
        assert_eq!(self.heard(client), [format!("connected {user}")]);
        client
    }

    fn feed(&mut self, client: usize, bytes: &[u8]) {
        let Client { node, shard, id, .. } = self.clients[client];
        let now = self.now;
        self.nodes[node].as_mut().unwrap().engines[shard].received(now, id, &mut bytes.to_vec());
        self.run();
    }

    pub(crate) fn say(&mut self, client: usize, json: &str) {
        let mut bytes = Vec::new();
        encode_masked(Opcode::Text, json.as_bytes(), [1, 2, 3, 4], &mut bytes);
        self.feed(client, &bytes);
    }

    pub(crate) fn join(&mut self, client: usize, room: &str) {
        self.say(client, &format!(r#"{{"type":"join_room","roomId":"{room}"}}"#));
    }

    pub(crate) fn end(&mut self, client: usize) {
        let Client { node, shard, id, .. } = self.clients[client];
        let now = self.now;
        let engine = &mut self.nodes[node].as_mut().unwrap().engines[shard];
        engine.ended(now, id, Ended::Eof);
        engine.closed(id);
        self.run();
    }

    /// Lets time pass in steps of 50 ms.
    pub(crate) fn wait(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now.mono_us += 50_000;
            self.now.unix_ms += 50;
            let now = self.now;
            for node in self.nodes.iter_mut().flatten().filter(|node| !node.is_paused) {
                for engine in &mut node.engines {
                    if now.mono_ms() >= engine.next_tick_ms() {
                        engine.tick(now);
                    }
                }
            }
            for node in 0..self.nodes.len() {
                let known = self.nodes[node].as_ref().filter(|known| !known.is_paused);
                if known.is_some_and(|known| known.bridge.next_tick_ms().is_some_and(|due| due <= now.mono_ms())) {
                    self.tell(node, BridgeEvent::Tick);
                }
            }
            self.run();
        }
    }

    /// Carries out effects until there are none.
    fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            for node in 0..self.nodes.len() {
                if self.nodes[node].as_ref().is_some_and(|known| !known.is_paused) {
                    is_quiet &= !self.step(node);
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    fn step(&mut self, node: usize) -> bool {
        let mut any = false;
        for shard in 0..usize::from(SHARDS) {
            let known = self.nodes[node].as_mut().unwrap();
            let effects = std::mem::take(&mut known.engines[shard].effects);
            any |= !(effects.sends.is_empty() && effects.shards.is_empty() && effects.bridge.is_empty());
            for id in effects.sends {
                let engine = &mut known.engines[shard];
                let of = |client: &&mut Client| (client.node, client.shard, client.id) == (node, shard, id);
                if let Some(chunk) = engine.take_chunk(id) {
                    self.clients.iter_mut().find(of).unwrap().bytes.extend_from_slice(chunk.as_ref());
                    engine.sent(self.now, id, chunk);
                }
            }
            for (to, message) in effects.shards {
                known.engines[usize::from(to.0)].mesh(self.now, message);
            }
            for message in effects.bridge {
                self.tell(node, BridgeEvent::Shard(message));
            }
        }
        let mut effects = Vec::new();
        self.nodes[node].as_mut().unwrap().bridge.flush(self.now, &mut effects);
        any |= !effects.is_empty();
        self.carry_out(node, effects);
        any
    }

    fn tell(&mut self, node: usize, event: BridgeEvent) {
        let mut effects = Vec::new();
        self.nodes[node].as_mut().unwrap().bridge.handle(self.now, event, &mut effects);
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Vec<BridgeEffect>) {
        for effect in effects {
            let known = self.nodes[node].as_mut().unwrap();
            let now = self.now;
            match effect {
                BridgeEffect::Shard(to, message) => known.engines[usize::from(to.0)].mesh(now, message),
                BridgeEffect::Bus(request) => {
                    let mut events = Vec::new();
                    let reply = known.bus.handle(now, request, &mut events);
                    events.into_iter().for_each(|event| self.tell(node, BridgeEvent::BusEvent(event)));
                    reply.into_iter().for_each(|reply| self.tell(node, BridgeEvent::BusReply(reply)));
                }
                BridgeEffect::Store(request) => {
                    let reply = known.store.handle(request);
                    self.tell(node, BridgeEvent::Store(reply));
                }
                BridgeEffect::Cluster(request) => self.ask(node, request),
                BridgeEffect::Answer { answer, .. } => known.answers.push(answer),
                BridgeEffect::Evicted { .. } => self.evicted.push(known.name.to_string()),
                BridgeEffect::Stats(..) | BridgeEffect::Finished => {}
            }
        }
    }

    fn ask(&mut self, node: usize, request: roomwire_engine::cluster::ClusterRequest) {
        let known = self.nodes[node].as_ref().unwrap();
        if known.is_cut {
            return self.arrive(node, BridgeEvent::ClusterReply(request.unanswered()));
        }
        let (name, mut told) = (known.name.clone(), Vec::new());
        let reply: ClusterReply = self.cluster.handle(self.now.mono_ms(), &name, request, &mut told);
        for told in told {
            self.spread(node, &told);
        }
        self.arrive(node, BridgeEvent::ClusterReply(reply));
    }

    fn spread(&mut self, from: usize, told: &Told) {
        if let Told::All(ClusterEvent::Presence { user, online }) = told {
            self.events.push(format!("{}{}", if *online { '+' } else { '-' }, &**user));
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].as_ref().is_none_or(|known| known.is_deaf) {
                continue;
            }
            match told {
                Told::All(event) => self.arrive(node, BridgeEvent::ClusterEvent(event.clone())),
                Told::Room { room, payload, to_asker } if *to_asker || node != from => {
                    let (room, payload): (_, Bytes) = (room.clone(), payload.clone());
                    self.arrive(node, BridgeEvent::BusEvent(BusEvent::Ephemeral { room, payload }));
                }
                Told::Room { .. } => {}
            }
        }
    }

    /// What a paused process was sent is lost with its connection.
    fn arrive(&mut self, node: usize, event: BridgeEvent) {
        let known = self.nodes[node].as_mut().unwrap();
        if known.is_held {
            known.held.push_back(event);
        } else if !known.is_paused {
            self.tell(node, event);
        }
    }

    /// What the client heard since it was asked last, history left out.
    pub(crate) fn heard(&mut self, client: usize) -> Vec<String> {
        let lines = self.clients[client].decode();
        lines.into_iter().filter(|line| line != "room_history").collect()
    }

    /// As [`World::heard`], in no order: each home tells on its own.
    pub(crate) fn sorted(&mut self, client: usize) -> Vec<String> {
        let mut heard = self.heard(client);
        heard.sort();
        heard
    }

    /// Of that only who came and went.
    pub(crate) fn rooms(&mut self, client: usize) -> Vec<String> {
        self.heard(client).into_iter().filter(|line| line.starts_with("user_")).collect()
    }
}

impl Client {
    fn decode(&mut self) -> Vec<String> {
        let mut bytes = std::mem::take(&mut self.bytes);
        if !self.upgraded {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            bytes.drain(..end + 4);
            self.upgraded = true;
        }
        let limits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
        let mut input = Input::new(&mut bytes);
        let mut lines = Vec::new();
        while let Some(item) = self.decoder.next(&mut input, &limits).unwrap() {
            if let Item::Text(text) = item {
                lines.push(line(&serde_json::from_str(text).unwrap()));
            }
        }
        lines
    }
}

fn line(value: &Value) -> String {
    let field = |name: &str| value[name].as_str().map_or_else(|| value[name].to_string(), str::to_owned);
    match field("type").as_str() {
        "presence" => format!("presence {} {}", field("userId"), field("status")),
        "members" => {
            let id = |user: &Value| user["userId"].as_str().unwrap_or_default().to_owned();
            let users = value["users"].as_array().map(|users| users.iter().map(id).collect::<Vec<_>>().join(","));
            format!("members {} {}", field("count"), users.unwrap_or_else(|| "-".to_owned()))
        }
        "error" => format!("error {}", field("code")),
        "room_history" => "room_history".to_owned(),
        kind => format!("{kind} {}", field("userId")),
    }
}
