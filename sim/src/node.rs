//! One running server process: its engines, its bridge, its bus, and the lanes between them.

use crate::Plant;
use crate::network::{self, SHARDS_MAX};
use crate::random::Random;
use crate::redis;
use crate::spoil::Spoil;
use crate::store::SimStore;
use roomwire_engine::Now;
use roomwire_engine::bridge::{Bridge, BridgeConfig, BridgeEffect, BridgeEvent};
use roomwire_engine::bus::{BusReply, BusRequest, LocalBus, row_of_payload};
use roomwire_engine::cluster::ClusterRequest;
use roomwire_engine::limits::EngineConfig;
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::{ConnectionId, RoomId, ShardId};
use roomwire_engine::shard::{Engine, Verify};
use roomwire_engine::store::StoreRequest;
use std::collections::{BTreeMap, VecDeque};

/// The most requests to the bus that one event may lead to.
const BUS_ASKS_MAX: u32 = 2_000;

/// Every connection, by shard, counted over all nodes, and name there.
pub type Links = BTreeMap<(usize, ConnectionId), network::Link>;

/// What a node's bridge publishes on.
#[derive(Debug)]
enum Bus {
    Local(Box<LocalBus>),
    Redis(redis::link::Link),
}

/// Where a node stands among others.
#[derive(Debug)]
pub struct Place {
    /// Its number.
    pub number: usize,
    /// Another for each process that ever ran.
    pub process: u64,
    /// It has others beside it, over Redis.
    pub is_clustered: bool,
}

/// The process.
#[derive(Debug)]
pub struct Node {
    /// One per shard.
    pub engines: Vec<Engine>,
    bridge: Bridge,
    bus: Bus,
    /// Where it stands.
    pub place: Place,
    /// It does nothing until then, and what is for its bridge waits.
    pub paused_until_ms: u64,
    /// What waits for the bridge.
    pub mail: VecDeque<BridgeEvent>,
    /// What the bridge asks about who is where.
    pub cluster_asks: VecDeque<ClusterRequest>,
    /// From a shard (row) to a shard (column); the bridge's own lanes are the last row.
    to_shards: Vec<Vec<VecDeque<ToShard>>>,
    to_bridge: Vec<VecDeque<ToBridge>>,
    plant: Option<Plant>,
    spoil: Spoil,
    /// It has just asked for something that happens only when something went wrong: a fault hits hardest now.
    pub is_exposed: bool,
    /// The generation of each room that the bus's head told of, and its base.
    heads: BTreeMap<RoomId, (u64, u64)>,
    /// The first rule that it broke, if any.
    pub broken: Option<String>,
}

impl Node {
    /// A fresh process.
    #[must_use]
    pub fn new(
        place: Place,
        engine: &EngineConfig,
        bridge: BridgeConfig,
        verify: &Verify,
        now: Now,
        plant: Option<Plant>,
    ) -> Node {
        let shards = usize::from(engine.shards);
        let engines = (0..engine.shards)
            .map(|shard| {
                let config = EngineConfig { seed: engine.seed.wrapping_add(u64::from(shard)), ..engine.clone() };
                Engine::new(ShardId(shard), config, verify.clone(), now)
            })
            .collect();
        // In every other run fingerprints of messages collide all the time.
        let bits = if bridge.boot.is_multiple_of(2) { 24 } else { 9 };
        Node {
            engines,
            bus: match place.is_clustered {
                false => Bus::Local(Box::new(LocalBus::with_fingerprint_bits(bridge.boot, bits))),
                true => Bus::Redis(redis::link::Link::default()),
            },
            spoil: Spoil::new(plant, place.process),
            is_exposed: false,
            heads: BTreeMap::new(),
            broken: None,
            place,
            paused_until_ms: 0,
            mail: VecDeque::new(),
            cluster_asks: VecDeque::new(),
            bridge: Bridge::new(bridge),
            to_shards: (0..=shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            to_bridge: (0..shards).map(|_| VecDeque::new()).collect(),
            plant,
        }
    }

    /// Its connections to Redis, if it has any.
    pub fn redis(&mut self) -> Option<&mut redis::link::Link> {
        match &mut self.bus {
            Bus::Local(_) => None,
            Bus::Redis(link) => Some(link),
        }
    }

    /// Carries out what an engine decided: marks the links, fills the lanes.
    pub fn collect(&mut self, shard: usize, links: &mut Links) {
        let global = self.place.number * SHARDS_MAX + shard;
        let effects = &mut self.engines[shard].effects;
        for connection in effects.sends.drain(..) {
            if let Some(link) = links.get_mut(&(global, connection)) {
                link.wants_send = true;
            }
        }
        for connection in effects.shutdowns.drain(..) {
            if let Some(link) = links.get_mut(&(global, connection)) {
                link.server_shut = true;
            }
        }
        for connection in effects.drops.drain(..) {
            if let Some(link) = links.get_mut(&(global, connection)) {
                link.dropped = true;
            }
        }
        for (to, message) in effects.shards.drain(..) {
            assert_ne!(usize::from(to.0), shard, "a shard does not queue to itself: {message:?}");
            self.to_shards[shard][usize::from(to.0)].push_back(message);
        }
        self.to_bridge[shard].extend(effects.bridge.drain(..));
    }

    /// Moves one message of one lane, chosen by chance. Whether there was one.
    pub fn step_mesh(&mut self, now: Now, random: &mut Random, store: &mut SimStore, links: &mut Links) -> bool {
        let shards = self.engines.len();
        let mut full: Vec<(usize, usize)> = Vec::new();
        for from in 0..=shards {
            full.extend((0..shards).filter(|to| !self.to_shards[from][*to].is_empty()).map(|to| (from, to)));
        }
        full.extend((0..shards).filter(|from| !self.to_bridge[*from].is_empty()).map(|from| (from, shards)));
        if full.is_empty() {
            return false;
        }
        let (from, to) = full[random.index(full.len())];
        if to == shards {
            // The bridge takes a batch before it flushes, as it does in production.
            for _ in 0..=random.below(4) {
                if let Some(message) = self.to_bridge[from].pop_front() {
                    self.tell_bridge(now, random, store, BridgeEvent::Shard(message));
                }
            }
        } else if let Some(message) = self.to_shards[from][to].pop_front() {
            self.engines[to].mesh(now, message);
            self.collect(to, links);
        }
        true
    }

    /// Gives the bridge an event and carries out what it decides.
    pub fn tell_bridge(&mut self, now: Now, random: &mut Random, store: &mut SimStore, event: BridgeEvent) {
        let mut effects = Vec::new();
        let event = match event {
            BridgeEvent::BusEvent(event) => BridgeEvent::BusEvent(self.spoil.hear_event(event)),
            event => event,
        };
        if let BridgeEvent::BusReply(reply) = &event {
            self.spoil.hear_reply(reply);
            if let BusReply::Head { room, head } = reply {
                self.heads.insert(room.clone(), (head.generation, head.base));
            }
        }
        self.bridge.handle(now, event, &mut effects);
        self.carry_out(now, random, store, effects);
    }

    /// Ends a turn of the bridge.
    pub fn flush_bridge(&mut self, now: Now, random: &mut Random, store: &mut SimStore) {
        let mut effects = Vec::new();
        self.bridge.flush(now, &mut effects);
        self.carry_out(now, random, store, effects);
    }

    /// When the bridge wants its tick, in ms.
    #[must_use]
    pub fn bridge_tick_ms(&self) -> Option<u64> {
        self.bridge.next_tick_ms()
    }

    /// Whether every lane is empty.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.to_shards.iter().flatten().all(VecDeque::is_empty)
            && self.to_bridge.iter().all(VecDeque::is_empty)
            && self.mail.is_empty()
            && self.paused_until_ms == 0
            && match &self.bus {
                Bus::Local(_) => true,
                Bus::Redis(link) => link.is_idle(),
            }
    }

    fn carry_out(&mut self, now: Now, random: &mut Random, store: &mut SimStore, effects: Vec<BridgeEffect>) {
        let mut queue = VecDeque::from(effects);
        let mut more = Vec::new();
        let mut events = Vec::new();
        let mut asked = 0;
        while let Some(effect) = queue.pop_front() {
            match effect {
                BridgeEffect::Shard(to, message) => self.post(random, usize::from(to.0), message),
                BridgeEffect::Store(request) => {
                    self.is_exposed |= matches!(
                        request,
                        StoreRequest::AdvanceGen { .. } | StoreRequest::SetBase { .. } | StoreRequest::Void { .. }
                    );
                    match self.spoil.ask_store(store, request) {
                        Ok(request) => store.submit(now.mono_ms(), random, self.place.process, request),
                        Err(reply) => self.mail.push_back(BridgeEvent::Store(reply)),
                    }
                }
                BridgeEffect::Bus(request) => {
                    self.is_exposed |= is_rare(&request);
                    let request = self.spoil.ask_bus(request);
                    let bus = match &mut self.bus {
                        Bus::Local(bus) => bus,
                        Bus::Redis(link) => {
                            link.ask(request);
                            continue;
                        }
                    };
                    let room = request.room().clone();
                    let reply = bus.handle(now, request, &mut events);
                    asked += 1;
                    assert!(asked <= BUS_ASKS_MAX, "bridge and bus go in circles over {room:?}: {reply:?}");
                    // The answer before the event, or after it: both happen with a real bus.
                    let late = random.one_in(2);
                    if let Some(reply) = reply.clone().filter(|_| !late) {
                        self.bridge.handle(now, BridgeEvent::BusReply(reply), &mut more);
                    }
                    for event in std::mem::take(&mut events) {
                        self.bridge.handle(now, BridgeEvent::BusEvent(event), &mut more);
                    }
                    if let Some(reply) = reply.filter(|_| late) {
                        self.bridge.handle(now, BridgeEvent::BusReply(reply), &mut more);
                    }
                    queue.extend(more.drain(..));
                }
                // The nodes here stand alone.
                BridgeEffect::Cluster(request) => self.cluster_asks.push_back(request),
                BridgeEffect::Evicted { .. } => {}
                BridgeEffect::Answer { .. } | BridgeEffect::Stats(..) | BridgeEffect::Finished => {}
            }
        }
    }

    /// Puts a message on the bridge's lane to a shard, with the planted bug if there is one.
    fn post(&mut self, random: &mut Random, to: usize, message: ToShard) {
        let bridge = self.engines.len();
        let lane = &mut self.to_shards[bridge][to];
        if let ToShard::Deliver { room, seq, payload, .. } = &message {
            // What an old generation published behind the beginning of one that is known is dead.
            if let Some((newest, base)) = self.heads.get(room).filter(|(_, base)| base <= seq)
                && let Some(row) = row_of_payload(room, payload).filter(|row| row.generation < *newest)
            {
                let (node, old, room) = (self.place.number, row.generation, &**room);
                self.broken =
                    Some(format!("promise 1: n{node} delivers {room} {seq} of {old}, though {newest} is from {base}"));
            }
            match self.plant {
                Some(Plant::LoseDelivery) if random.one_in(40) => return,
                Some(Plant::SwapDeliveries)
                    if random.one_in(4) && matches!(lane.back(), Some(ToShard::Deliver { .. })) =>
                {
                    let before = lane.len() - 1;
                    lane.insert(before, message);
                    return;
                }
                _ => {}
            }
        }
        lane.push_back(message);
    }
}

/// Scripts that run only when something went wrong.
fn is_rare(request: &BusRequest) -> bool {
    matches!(
        request,
        BusRequest::Begin { .. }
            | BusRequest::Finish { .. }
            | BusRequest::Void1 { .. }
            | BusRequest::Void2 { .. }
            | BusRequest::Retire { .. }
    )
}
