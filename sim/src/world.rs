//! The main loop of a run: one small step at a time, chosen by chance, then a calm end in which all must come right.

mod checks;
mod faults;
mod servers;
mod stories;

use crate::client::Client;
use crate::network::SHARDS_MAX;
use crate::network::{Link, SOCKET_BYTES_MAX};
use crate::node::{Links, Node, Place};
use crate::oracle::{Oracle, Verdict};
use crate::random::{Random, mix};
use crate::redis::link::Late;
use crate::redis::{Redis, Rules};
use crate::store::{Mode, SimStore};
use crate::{Counts, Outcome, Plant, Shape};
use roomwire_engine::Now;
use roomwire_engine::bridge::{BridgeConfig, BridgeEvent};
use roomwire_engine::bus::DEDUPE_MESSAGES;
use roomwire_engine::cluster::memory::MemoryCluster;
use roomwire_engine::cluster::{ClusterRequest, Life};
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::names::{User, UserId};
use roomwire_engine::shard::{Ended, Identity, Verify};
use std::sync::Arc;
use stories::Story;

const ROOMS: [&str; 3] = ["general", "random", "a.b:c-d_e"];
/// Steps with faults.
const WILD_STEPS: u64 = 6_000;
/// Steps without faults, in which everything must come right.
const CALM_STEPS: u64 = 60_000;
/// In a cluster all is right so long after the last fault: a lost last message waits for the next look at the head.
const CALM_MS_MAX: u64 = 70_000;
/// And what was acked has reached every member, though nobody writes, so long after it.
const REACHED_MS_MAX: u64 = 35_000;
/// How long a split may last into the calm, and when each side has to have its messages stored.
const CALM_SPLIT_MS: u64 = 15_000;

/// A message that one node does not hear of, after which Redis is lost and nobody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastWords {
    #[default]
    Unsaid,
    Said,
    Over,
}

/// Everything in a run.
pub struct World {
    seed: u64,
    random: Random,
    now: Now,
    engine_config: EngineConfig,
    bridge_config: BridgeConfig,
    verify: Verify,
    plant: Option<Plant>,
    shape: Shape,
    nodes: Vec<Node>,
    redis: Redis,
    /// A master that was replaced and lives on, with some of the nodes.
    old_redis: Option<Redis>,
    split_until_ms: u64,
    is_strict: bool,
    /// Splits happen in this run.
    may_split: bool,
    late: Late,
    /// A fault that waits for a node: which, and after how many steps.
    ambush: Option<(usize, u64)>,
    story: Option<Story>,
    roster: MemoryCluster,
    processes: u64,
    links: Links,
    store: SimStore,
    clients: Vec<Client>,
    oracle: Oracle,
    counts: Counts,
    trace: u64,
    mode_until_ms: u64,
    calm: bool,
    /// A node that hears no event.
    deaf: Option<usize>,
    last_words: LastWords,
    /// When each room was written to once more.
    goodbye_ms: Option<u64>,
}

impl World {
    /// A run's beginning: sizes and limits are drawn from the seed too.
    #[must_use]
    pub fn new(shape: Shape, seed: u64, plant: Option<Plant>) -> World {
        let mut random = Random::new(seed);
        let is_clustered = shape == Shape::Cluster;
        let now = Now { mono_us: 1_000_000_000, unix_ms: 1_795_000_000_000 };
        let queue_bytes_max = [6_000, 20_000, 256 * 1024][random.index(3)];
        let limits =
            Limits { messages_per_second_max: 0, connections_per_user_max: 0, queue_bytes_max, ..Limits::default() };
        let engine_config = EngineConfig {
            limits,
            heartbeat_ms: 30_000,
            presence_grace_ms: 5_000,
            node: Arc::from("sim"),
            shards: 1 + random.below(if is_clustered { 2 } else { 4 }) as u16,
            cluster: is_clustered,
            echo: false,
            allowed_origins: Arc::from(["*".to_owned()]),
            reject_by_http: false,
            proxies: None,
            seed: random.bits(),
        };
        let bridge_config = BridgeConfig {
            shards: engine_config.shards,
            node: Arc::from("sim"),
            boot: random.bits(),
            cluster: is_clustered,
            publishes_max: [8, 10_000][random.index(2)],
            publish_ms_max: 2_000,
            // Of a seed that is there already: one more draw would be another schedule.
            inits_max: [1, 2, 16][(engine_config.seed % 3) as usize],
            page_bytes_max: queue_bytes_max / 4,
            recent_bytes_max: [0, 2_000, 64 * 1024][random.index(3)],
            bus_log: is_clustered,
            strict: false,
        };
        // Half of the runs in strict mode, and a third with splits: without it these may cut messages off.
        let (is_strict, may_split) = (is_clustered && random.one_in(2), is_clustered && random.one_in(3));
        let bridge_config = BridgeConfig { strict: is_strict && plant != Some(Plant::NoFence), ..bridge_config };
        let window = if is_clustered { [8, 32, 256, DEDUPE_MESSAGES][random.index(4)] } else { DEDUPE_MESSAGES };
        let verify: Verify = Arc::new(|token, _| {
            Some(Identity {
                user: User { id: UserId::new(token), name: Arc::from(token) },
                expires_ms: None,
                grants: None,
            })
        });
        let clients = (0..4 + random.index(6)).map(Client::new).collect();
        let mut world = World {
            seed,
            nodes: Vec::new(),
            random,
            now,
            engine_config,
            bridge_config,
            verify,
            plant,
            shape,
            redis: Redis::new(Rules { window, plant }),
            old_redis: None,
            split_until_ms: 0,
            is_strict,
            may_split,
            late: Late::new(),
            ambush: None,
            story: Story::of(shape, seed),
            roster: MemoryCluster::new(1),
            processes: 0,
            links: Links::new(),
            store: SimStore::new(plant),
            clients,
            oracle: Oracle::new(window),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            mode_until_ms: 0,
            calm: false,
            deaf: None,
            last_words: LastWords::default(),
            goodbye_ms: None,
        };
        let nodes = if is_clustered { [2, 3, 2, 3, 1][world.random.index(5)] } else { 1 };
        for number in 0..nodes {
            let node = world.new_node(number);
            world.nodes.push(node);
        }
        world
    }

    /// A new process.
    fn new_node(&mut self, number: usize) -> Node {
        self.processes += 1;
        let is_clustered = self.shape == Shape::Cluster;
        let place = Place { number, process: self.processes, is_clustered };
        self.engine_config.seed = self.random.bits();
        self.bridge_config.boot = self.random.bits();
        if is_clustered {
            self.bridge_config.node = Arc::from(format!("n{number}"));
            let take = ClusterRequest::Beat {
                life: Life { boot: self.bridge_config.boot, number: 1 },
                take: true,
                walking: false,
            };
            self.roster.handle(self.now.mono_ms(), &self.bridge_config.node, take, &mut Vec::new());
        }
        Node::new(place, &self.engine_config, self.bridge_config.clone(), &self.verify, self.now, self.plant)
    }

    /// Runs to the end, or to the first broken promise.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let broken = self.play().err();
        self.counts.acked = self.oracle.acked_count() as u64;
        for room in ROOMS {
            let (voids, generation) = self.store.facts(room);
            self.counts.voids += voids;
            self.counts.generations += generation;
        }
        Outcome { seed: self.seed, trace: self.trace, counts: self.counts, broken }
    }

    fn play(&mut self) -> Verdict {
        for _ in 0..WILD_STEPS {
            self.fault();
            self.act();
            self.step()?;
        }
        self.calm_down();
        let calm_ms = self.now.mono_ms();
        for _ in 0..CALM_STEPS {
            self.step()?;
            self.reconnect_all();
            let spent_ms = self.now.mono_ms() - calm_ms;
            if self.shape == Shape::Cluster && self.goodbye_ms.is_none() {
                self.calm_cluster(calm_ms, spent_ms)?;
                continue;
            }
            if !self.is_settled() {
                continue;
            }
            match self.check_rows() {
                Ok(()) if self.shape == Shape::Node => return self.settle_members(),
                Err(broken) if self.shape == Shape::Node || spent_ms > CALM_MS_MAX => {
                    return Err(broken);
                }
                Ok(()) => return Ok(()),
                Err(_) => {}
            }
        }
        let waiting: usize = self.clients.iter().map(|client| client.pending.len()).sum();
        Err(format!(
            "promise 6: after {CALM_STEPS} calm steps {waiting} messages are not acked, or a client is not live"
        ))
    }

    /// One small step of the machinery.
    fn step(&mut self) -> Verdict {
        self.counts.steps += 1;
        let micros = if self.random.one_in(50) { self.random.below(200_000) } else { self.random.below(2_000) };
        self.now.mono_us += micros;
        self.now.unix_ms += micros / 1000;
        if !self.calm && self.now.mono_ms() > self.mode_until_ms {
            self.store.mode = Mode::Well;
            self.store.cut_off.clear();
        }
        mix(&mut self.trace, &self.now.mono_us.to_le_bytes());
        if let Some((process, reply)) = self.store.poll(self.now.mono_ms(), &mut self.random)
            && let Some(node) = self.nodes.iter_mut().find(|node| node.place.process == process)
        {
            node.mail.push_back(BridgeEvent::Store(reply));
        }
        if self.shape == Shape::Cluster {
            self.step_redis();
            self.step_ambush();
        }
        for number in 0..self.nodes.len() {
            if self.nodes[number].paused_until_ms <= self.now.mono_ms() {
                self.nodes[number].paused_until_ms = 0;
                self.step_node(number);
            }
            if let Some(broken) = self.nodes[number].broken.take() {
                return Err(broken);
            }
        }
        for _ in 0..2 + self.nodes.len() {
            self.step_network()?;
        }
        Ok(())
    }

    fn step_node(&mut self, number: usize) {
        let (now, node) = (self.now, &mut self.nodes[number]);
        for shard in 0..node.engines.len() {
            if node.engines[shard].next_tick_ms() <= now.mono_ms() {
                node.engines[shard].tick(now);
                node.collect(shard, &mut self.links);
            }
        }
        if node.bridge_tick_ms().is_some_and(|due| due <= now.mono_ms()) {
            node.tell_bridge(now, &mut self.random, &mut self.store, BridgeEvent::Tick);
        }
        for _ in 0..1 + self.random.below(6) {
            node.step_mesh(now, &mut self.random, &mut self.store, &mut self.links);
        }
        while let Some(request) = node.cluster_asks.pop_front() {
            let name = Arc::from(format!("n{number}"));
            let reply = match node.redis().is_some_and(|link| link.is_down()) {
                true => request.unanswered(),
                false => self.roster.handle(now.mono_ms(), &name, request, &mut Vec::new()),
            };
            node.tell_bridge(now, &mut self.random, &mut self.store, BridgeEvent::ClusterReply(reply));
        }
        if self.random.one_in(2) {
            node.flush_bridge(now, &mut self.random, &mut self.store);
        }
        if let Some(event) = node.mail.pop_front() {
            node.tell_bridge(now, &mut self.random, &mut self.store, event);
            node.flush_bridge(now, &mut self.random, &mut self.store);
        }
    }

    /// Moves bytes of one link, chosen by chance.
    fn step_network(&mut self) -> Verdict {
        if self.links.is_empty() {
            return Ok(());
        }
        let which = self.random.index(self.links.len());
        let Some(key) = self.links.keys().nth(which).copied() else { return Ok(()) };
        self.server_side(key);
        self.client_side(key)
    }

    /// What the io_uring driver would do for this connection.
    fn server_side(&mut self, key: (usize, roomwire_engine::names::ConnectionId)) {
        let (global, connection) = key;
        let (number, shard) = (global / SHARDS_MAX, global % SHARDS_MAX);
        let node = &mut self.nodes[number];
        let Some(link) = self.links.get_mut(&key).filter(|_| node.paused_until_ms == 0) else { return };
        if link.dropped {
            if !link.client_shut {
                self.clients[link.client].disconnected();
            }
            self.links.remove(&key);
            node.engines[shard].closed(connection);
            node.collect(shard, &mut self.links);
            return;
        }
        if !link.to_server.is_empty() {
            // A cut point anywhere: the most awkward reads are of one byte.
            let most = if self.random.one_in(4) { 1 + self.random.index(8) } else { 2_048 };
            let mut bytes = link.receive(most);
            node.engines[shard].received(self.now, connection, &mut bytes);
            node.collect(shard, &mut self.links);
        } else if link.client_shut && !link.ended {
            link.ended = true;
            link.dropped = true;
            let how = if self.random.one_in(2) { Ended::Eof } else { Ended::Error };
            node.engines[shard].ended(self.now, connection, how);
            node.collect(shard, &mut self.links);
            return;
        }
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.in_flight.is_none() && link.wants_send {
            link.wants_send = false;
            link.in_flight = node.engines[shard].take_chunk(connection);
        } else if link.to_client.len() < SOCKET_BYTES_MAX
            && let Some(chunk) = link.in_flight.take()
        {
            link.to_client.extend_from_slice(chunk.as_ref());
            node.engines[shard].sent(self.now, connection, chunk);
            node.collect(shard, &mut self.links);
        }
    }

    fn client_side(&mut self, key: (usize, roomwire_engine::names::ConnectionId)) -> Verdict {
        let Some(link) = self.links.get_mut(&key) else { return Ok(()) };
        if link.stalled || link.client_shut {
            return Ok(());
        }
        let client = &mut self.clients[link.client];
        let length = if self.random.one_in(3) { self.random.index(64) } else { link.to_client.len() };
        let bytes: Vec<u8> = link.to_client.drain(..length.min(link.to_client.len())).collect();
        mix(&mut self.trace, &bytes);
        let now_ms = self.now.mono_ms();
        client.receive(bytes, now_ms, &mut self.store, &mut self.oracle, &mut self.counts, &mut link.to_server)?;
        client.retry(now_ms, &mut link.to_server);
        if client.closed.is_some() || (link.server_shut && link.in_flight.is_none() && link.to_client.is_empty()) {
            link.client_shut = true;
            client.disconnected();
        }
        Ok(())
    }

    /// One client does something.
    fn act(&mut self) {
        let which = self.random.index(self.clients.len());
        let room = ROOMS[self.random.index(ROOMS.len())];
        if !self.clients[which].connected {
            if self.random.one_in(8) {
                self.connect(which);
            }
            return;
        }
        let Some(link) = self.links.values_mut().find(|link| link.client == which && !link.client_shut) else { return };
        let client = &mut self.clients[which];
        let now_ms = self.now.mono_ms();
        match self.random.below(100) {
            0..=5 => client.join(room, &mut link.to_server),
            6 => client.leave(room, &mut link.to_server),
            7 if client.pending.len() < 40 => {
                let room = client.own_room();
                client.publish(&room, &mut self.random, now_ms, &mut link.to_server);
            }
            8..=30 if client.pending.len() < 40 => {
                client.publish(room, &mut self.random, now_ms, &mut link.to_server);
            }
            31..=40 => client.chatter(room, &mut self.random, &mut link.to_server),
            _ => {}
        }
    }

    fn connect(&mut self, which: usize) {
        let number = self.random.index(self.nodes.len());
        let node = &mut self.nodes[number];
        let shard = self.random.index(node.engines.len());
        if node.paused_until_ms > 0 {
            return; // its listener's queue: the client gives up and tries another
        }
        let Some(connection) = node.engines[shard].accepted(self.now, None) else { return };
        let global = number * SHARDS_MAX + shard;
        let mut link = Link::new(global, connection, which);
        self.clients[which].connect(self.now.mono_ms(), &mut self.counts, &mut link.to_server);
        self.links.insert((global, connection), link);
        node.collect(shard, &mut self.links);
    }

    fn reconnect_all(&mut self) {
        for which in 0..self.clients.len() {
            if !self.clients[which].connected {
                self.connect(which);
            }
        }
    }
}
