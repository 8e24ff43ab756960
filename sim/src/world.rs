//! The main loop of a run: one small step at a time, chosen by chance, then a calm end in which all must come right.

use crate::client::Client;
use crate::network::{Link, SOCKET_BYTES_MAX};
use crate::node::{Links, Node};
use crate::oracle::{Oracle, Verdict};
use crate::random::{Random, mix};
use crate::store::{Mode, SimStore};
use crate::{Counts, Outcome, Plant};
use roomwire_engine::Now;
use roomwire_engine::bridge::{BridgeConfig, BridgeEvent};
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::names::{User, UserId};
use roomwire_engine::shard::{Ended, Identity, Verify};
use std::sync::Arc;

const ROOMS: [&str; 3] = ["general", "random", "a.b:c-d_e"];
/// Steps with faults.
const WILD_STEPS: u64 = 6_000;
/// Steps without faults, in which everything must come right.
const CALM_STEPS: u64 = 60_000;

/// Everything in a run.
pub struct World {
    seed: u64,
    random: Random,
    now: Now,
    engine_config: EngineConfig,
    bridge_config: BridgeConfig,
    verify: Verify,
    plant: Option<Plant>,
    node: Node,
    links: Links,
    store: SimStore,
    clients: Vec<Client>,
    oracle: Oracle,
    counts: Counts,
    trace: u64,
    mode_until_ms: u64,
    calm: bool,
}

impl World {
    /// A run's beginning: sizes and limits are drawn from the seed too.
    #[must_use]
    pub fn new(seed: u64, plant: Option<Plant>) -> World {
        let mut random = Random::new(seed);
        let now = Now { mono_us: 1_000_000_000, unix_ms: 1_795_000_000_000 };
        let queue_bytes_max = [6_000, 20_000, 256 * 1024][random.index(3)];
        let limits =
            Limits { messages_per_second_max: 0, connections_per_user_max: 0, queue_bytes_max, ..Limits::default() };
        let engine_config = EngineConfig {
            limits,
            heartbeat_ms: 30_000,
            presence_grace_ms: 5_000,
            node: Arc::from("sim"),
            shards: 1 + random.below(4) as u16,
            cluster: false,
            echo: false,
            allowed_origins: Arc::from(["*".to_owned()]),
            reject_by_http: false,
            seed: random.bits(),
        };
        let bridge_config = BridgeConfig {
            shards: engine_config.shards,
            node: Arc::from("sim"),
            boot: random.bits(),
            cluster: false,
            publishes_max: [8, 10_000][random.index(2)],
            publish_ms_max: 2_000,
            page_bytes_max: queue_bytes_max / 4,
            recent_bytes_max: [0, 2_000, 64 * 1024][random.index(3)],
            bus_log: false,
            strict: false,
        };
        let verify: Verify = Arc::new(|token, _| {
            Some(Identity {
                user: User { id: UserId::new(token), name: Arc::from(token) },
                expires_ms: None,
                grants: None,
            })
        });
        let clients = (0..4 + random.index(6)).map(Client::new).collect();
        World {
            seed,
            node: Node::new(&engine_config, bridge_config.clone(), &verify, now, plant),
            random,
            now,
            engine_config,
            bridge_config,
            verify,
            plant,
            links: Links::new(),
            store: SimStore::new(plant),
            clients,
            oracle: Oracle::default(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            mode_until_ms: 0,
            calm: false,
        }
    }

    /// Runs to the end, or to the first broken promise.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let broken = self.play().err();
        self.counts.acked = self.oracle.acked_count() as u64;
        self.counts.voids = ROOMS.iter().map(|room| self.store.voids(room) as u64).sum();
        Outcome { seed: self.seed, trace: self.trace, counts: self.counts, broken }
    }

    fn play(&mut self) -> Verdict {
        for _ in 0..WILD_STEPS {
            self.fault();
            self.act();
            self.step()?;
        }
        self.calm = true;
        self.store.mode = Mode::Well;
        for link in self.links.values_mut() {
            link.stalled = false;
        }
        for _ in 0..CALM_STEPS {
            self.step()?;
            self.reconnect_all();
            if self.is_settled() {
                return self.settle();
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
        }
        mix(&mut self.trace, &self.now.mono_us.to_le_bytes());
        for shard in 0..self.node.engines.len() {
            if self.node.engines[shard].next_tick_ms() <= self.now.mono_ms() {
                self.node.engines[shard].tick(self.now);
                self.node.collect(shard, &mut self.links);
            }
        }
        if self.node.bridge_tick_ms().is_some_and(|due| due <= self.now.mono_ms()) {
            self.node.tell_bridge(self.now, &mut self.random, &mut self.store, BridgeEvent::Tick);
        }
        for _ in 0..1 + self.random.below(6) {
            self.node.step_mesh(self.now, &mut self.random, &mut self.store, &mut self.links);
        }
        if self.random.one_in(2) {
            self.node.flush_bridge(self.now, &mut self.random, &mut self.store);
        }
        if let Some(reply) = self.store.poll(self.now.mono_ms(), &mut self.random) {
            self.node.tell_bridge(self.now, &mut self.random, &mut self.store, BridgeEvent::Store(reply));
            self.node.flush_bridge(self.now, &mut self.random, &mut self.store);
        }
        for _ in 0..3 {
            self.step_network()?;
        }
        Ok(())
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
        let (shard, connection) = key;
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.dropped {
            if !link.client_shut {
                self.clients[link.client].disconnected();
            }
            self.links.remove(&key);
            self.node.engines[shard].closed(connection);
            self.node.collect(shard, &mut self.links);
            return;
        }
        if !link.to_server.is_empty() {
            // A cut point anywhere: the most awkward reads are of one byte.
            let most = if self.random.one_in(4) { 1 + self.random.index(8) } else { 2_048 };
            let length = most.min(link.to_server.len());
            let mut bytes: Vec<u8> = link.to_server.drain(..length).collect();
            self.node.engines[shard].received(self.now, connection, &mut bytes);
            self.node.collect(shard, &mut self.links);
        } else if link.client_shut && !link.ended {
            link.ended = true;
            link.dropped = true;
            let how = if self.random.one_in(2) { Ended::Eof } else { Ended::Error };
            self.node.engines[shard].ended(self.now, connection, how);
            self.node.collect(shard, &mut self.links);
            return;
        }
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.in_flight.is_none() && link.wants_send {
            link.wants_send = false;
            link.in_flight = self.node.engines[shard].take_chunk(connection);
        } else if link.to_client.len() < SOCKET_BYTES_MAX
            && let Some(chunk) = link.in_flight.take()
        {
            link.to_client.extend_from_slice(chunk.as_ref());
            self.node.engines[shard].sent(self.now, connection, chunk);
            self.node.collect(shard, &mut self.links);
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

    /// Something goes wrong, now and then.
    fn fault(&mut self) {
        match self.random.below(600) {
            0 => self.crash(),
            1..=4 => self.cut(),
            5..=8 => {
                for link in self.links.values_mut() {
                    link.stalled = self.random.one_in(3);
                }
            }
            9 | 10 => {
                self.store.mode = [Mode::Slow, Mode::Refusing][self.random.index(2)];
                self.mode_until_ms = self.now.mono_ms() + self.random.below(4_000);
            }
            11..=14 => self.links.values_mut().for_each(|link| link.stalled = false),
            _ => {}
        }
    }

    /// `kill -9`, and a new process over the same store.
    fn crash(&mut self) {
        self.counts.crashes += 1;
        self.store.crash(&mut self.random);
        self.links.clear();
        for client in &mut self.clients {
            client.disconnected();
        }
        self.engine_config.seed = self.random.bits();
        self.bridge_config.boot = self.random.bits();
        self.now.mono_us += self.random.below(2_000_000);
        self.node = Node::new(&self.engine_config, self.bridge_config.clone(), &self.verify, self.now, self.plant);
    }

    /// A connection breaks: what was under way is lost, and the server learns of it later.
    fn cut(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let which = self.random.index(self.links.len());
        if let Some(link) = self.links.values_mut().nth(which).filter(|link| !link.client_shut) {
            self.counts.cuts += 1;
            link.client_shut = true;
            link.to_client.clear();
            if self.random.one_in(2) {
                link.to_server.clear();
            }
            self.clients[link.client].disconnected();
        }
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
            7..=30 if client.pending.len() < 40 => {
                client.publish(room, &mut self.random, now_ms, &mut link.to_server);
            }
            31..=40 => client.chatter(room, &mut self.random, &mut link.to_server),
            _ => {}
        }
    }

    fn connect(&mut self, which: usize) {
        let shard = self.random.index(self.node.engines.len());
        let Some(connection) = self.node.engines[shard].accepted(self.now, None) else { return };
        let mut link = Link::new(shard, connection, which);
        self.clients[which].connect(self.now.mono_ms(), &mut self.counts, &mut link.to_server);
        self.links.insert((shard, connection), link);
        self.node.collect(shard, &mut self.links);
    }

    fn reconnect_all(&mut self) {
        for which in 0..self.clients.len() {
            if !self.clients[which].connected {
                self.connect(which);
            }
        }
    }

    /// Whether nothing is under way and every client is where it wants to be.
    fn is_settled(&self) -> bool {
        self.store.is_idle()
            && self.node.is_quiet()
            && self.links.values().all(|link| {
                !link.wants_send && link.in_flight.is_none() && link.to_client.is_empty() && link.to_server.is_empty()
            })
            && self.clients.iter().all(|client| {
                client.connected
                    && client.pending.is_empty()
                    && client.rooms.values().all(|view| view.live || !view.wanted)
            })
    }

    /// The end: every member has every message, and the head counts are right.
    fn settle(&mut self) -> Verdict {
        for room in ROOMS {
            let rows = self.store.rows(room, 0, u64::MAX);
            for (seq, message_id) in self.oracle.acked_in(room) {
                if !rows.iter().any(|read| read.row.seq == seq) {
                    return Err(format!("promise 3: {room} {seq} {message_id} was acked and is gone"));
                }
            }
            for client in &self.clients {
                let Some(view) = client.rooms.get(room).filter(|view| view.wanted) else { continue };
                let has: Vec<u64> = view.messages.keys().copied().collect();
                let should: Vec<u64> = rows.iter().map(|read| read.row.seq).filter(|seq| *seq > view.from).collect();
                if has != should {
                    return Err(format!(
                        "promise 3: at the end {} has {has:?} of {room} and the store has {should:?}",
                        client.user
                    ));
                }
            }
        }
        self.settle_members()
    }

    /// Every client asks who is where; all must agree with what is true.
    fn settle_members(&mut self) -> Verdict {
        for client in &mut self.clients {
            client.members.clear();
        }
        for link in self.links.values_mut().filter(|link| !link.client_shut) {
            for room in ROOMS {
                self.clients[link.client].ask_members(room, &mut link.to_server);
            }
        }
        for _ in 0..20_000 {
            self.step()?;
            if self.clients.iter().all(|client| client.members.len() == ROOMS.len()) {
                break;
            }
        }
        for room in ROOMS {
            let mut users: Vec<&str> = self
                .clients
                .iter()
                .filter(|client| client.rooms.get(room).is_some_and(|view| view.live))
                .map(|client| client.user.as_str())
                .collect();
            users.sort_unstable();
            users.dedup();
            for client in &self.clients {
                let told = client.members.get(room).copied();
                if told != Some(users.len() as u64) {
                    return Err(format!("members: {} was told {told:?} of {room}, there are {users:?}", client.user));
                }
            }
        }
        Ok(())
    }
}
