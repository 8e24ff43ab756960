//! A node of real shards on real sockets, with the least of a bridge behind it: publishes are numbered and delivered
//! to the shards that subscribed, joins get an empty history.

use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::{RoomId, ShardId, User, UserId};
use roomwire_engine::shard::{Identity, Verify};
use roomwire_engine::stats::{Counters, DriverCounters};
use roomwire_shard::mesh::{BridgeMesh, mesh};
use roomwire_shard::run::{ShardConfig, ShardHandle, spawn};
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a test may set.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) shards: u16,
    pub(crate) buffers: u16,
    pub(crate) buffer_bytes: u32,
    pub(crate) table: Option<u32>,
    pub(crate) sq_entries: u32,
    pub(crate) cq_entries: u32,
    pub(crate) gather: Duration,
    pub(crate) echo: bool,
    pub(crate) heartbeat_ms: u32,
    pub(crate) limits: Limits,
}

impl Default for Setting {
    fn default() -> Setting {
        let limits = Limits {
            messages_per_second_max: 0,
            message_bytes_max: 1 << 20,
            connections_per_user_max: 0,
            queue_bytes_max: 0,
            queue_ms_max: 0,
            ..Limits::default()
        };
        let gather = Duration::from_millis(1);
        Setting {
            shards: 1,
            buffers: 64,
            buffer_bytes: 2048,
            table: roomwire_shard::probe::has_tables().then_some(4096),
            sq_entries: 256,
            cq_entries: 1024,
            gather,
            echo: true,
            heartbeat_ms: 30_000,
            limits,
        }
    }
}

/// The setting with sockets in tables, where the kernel has them, and with sockets that are descriptors.
pub(crate) fn both_ways(setting: &Setting) -> impl Iterator<Item = Setting> {
    let table = Setting::default().table;
    [None, table].into_iter().skip(usize::from(table.is_none())).map(|table| Setting { table, ..setting.clone() })
}

/// A running node.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    shards: Vec<ShardHandle>,
    bridge: Option<JoinHandle<BridgeMesh>>,
    stop: Arc<AtomicBool>,
    drain: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    stats: Arc<Mutex<Vec<Counters>>>,
}

impl Node {
    pub(crate) fn start(setting: &Setting) -> Node {
        let (meshes, bridge) = mesh(setting.shards).expect("eventfds");
        let mut listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut shards = Vec::new();
        for (number, mesh) in (0..).zip(meshes) {
            let verify: Verify = Arc::new(|token, _| {
                assert!(token != "panic", "a test asked for it");
                // The shard stands still for as long.
                if let Some(ms) = token.strip_prefix("stall-") {
                    std::thread::sleep(Duration::from_millis(ms.parse().expect("milliseconds")));
                }
                let user = User { id: UserId::new(token), name: Arc::from(token) };
                Some(Identity { user, expires_ms: None, grants: None })
            });
            let handle = spawn(ShardConfig {
                rest: || {},
                shard: ShardId(number),
                cpu: usize::from(number) % std::thread::available_parallelism().map_or(1, usize::from),
                listen,
                backlog: 4096,
                buffers: setting.buffers,
                buffer_bytes: setting.buffer_bytes,
                table: setting.table,
                sq_entries: setting.sq_entries,
                cq_entries: setting.cq_entries,
                gather: setting.gather,
                engine: EngineConfig {
                    limits: setting.limits.clone(),
                    heartbeat_ms: setting.heartbeat_ms,
                    presence_grace_ms: 100,
                    node: Arc::from("test"),
                    shards: setting.shards,
                    cluster: false,
                    echo: setting.echo,
                    allowed_origins: Arc::from([String::from("*")]),
                    reject_by_http: false,
                    proxies: None,
                    seed: 1,
                },
                verify,
                mesh,
            })
            .expect("the shard starts");
            listen = handle.local_addr;
            shards.push(handle);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let drain = Arc::new(AtomicBool::new(false));
        let stalled = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(Mutex::new(vec![Counters::default(); usize::from(setting.shards)]));
        let bridge = FakeBridge {
            mesh: bridge,
            stop: Arc::clone(&stop),
            drain: Arc::clone(&drain),
            stalled: Arc::clone(&stalled),
            stats: Arc::clone(&stats),
            seq: 0,
            subscribed: HashMap::new(),
        };
        let bridge = Some(std::thread::spawn(move || bridge.run()));
        Node { address: listen, shards, bridge, stop, drain, stalled, stats }
    }

    /// The shards' figures, added up: up to a second old.
    pub(crate) fn driver(&self) -> DriverCounters {
        let stats = self.stats.lock().expect("no panic while held");
        let mut sum = DriverCounters::default();
        for driver in stats.iter().map(|counters| &counters.driver) {
            sum.short_sends_total += driver.short_sends_total;
            sum.buffers_exhausted_total += driver.buffers_exhausted_total;
            sum.completions_overflowed_total += driver.completions_overflowed_total;
            sum.accepts_paused_total += driver.accepts_paused_total;
            sum.reads_paused_total += driver.reads_paused_total;
            sum.mesh_spilled_total += driver.mesh_spilled_total;
            sum.mesh_spilled_now += driver.mesh_spilled_now;
            sum.turns_total += driver.turns_total;
            sum.enters_total += driver.enters_total;
        }
        sum
    }

    /// Whether the bridge does nothing at all.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.stats.lock().expect("no panic while held").iter().map(|counters| counters.connections_now).sum()
    }

    /// Waits until the figures satisfy.
    pub(crate) fn wait_until(&self, what: &str, satisfied: impl Fn(&Node) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !satisfied(self) {
            assert!(Instant::now() < until, "{what}: not within 20 s; {:?}", self.driver());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Drains the node and waits for its threads.
    pub(crate) fn stop(mut self) {
        self.drain.store(true, Ordering::SeqCst);
        for shard in self.shards.drain(..) {
            shard.thread.join().expect("the shard ends by itself");
        }
        self.stop.store(true, Ordering::SeqCst);
        if let Some(bridge) = self.bridge.take() {
            bridge.join().expect("the bridge ends");
        }
    }
}

struct FakeBridge {
    mesh: BridgeMesh,
    stop: Arc<AtomicBool>,
    drain: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    stats: Arc<Mutex<Vec<Counters>>>,
    seq: u64,
    subscribed: HashMap<RoomId, HashSet<ShardId>>,
}

impl FakeBridge {
    fn run(mut self) -> BridgeMesh {
        let mut inbox = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            if self.stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            self.mesh.receive(1024, &mut inbox);
            let idle = inbox.is_empty();
            for message in inbox.drain(..) {
                self.handle(message);
            }
            if self.drain.swap(false, Ordering::SeqCst) {
                for shard in 0..self.stats.lock().expect("no panic while held").len() {
                    self.mesh.send(ShardId(shard as u16), ToShard::Drain { window_ms: 0 });
                }
            }
            self.mesh.flush();
            if idle {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        self.mesh
    }

    fn handle(&mut self, message: ToBridge) {
        match message {
            ToBridge::Stats { shard, stats } => {
                self.stats.lock().expect("no panic while held")[usize::from(shard.0)] = stats.counters;
            }
            ToBridge::Subscribe { room, shard } => {
                self.subscribed.entry(room).or_default().insert(shard);
            }
            ToBridge::History { from, room, .. } => {
                let payload = format!(r#"{{"type":"room_history","roomId":"{}","messages":[]}}"#, &*room).into();
                let page = ToShard::HistoryPage { to: from, room, payload, next: None, live: true, later_ms: None };
                self.mesh.send(from.shard, page);
            }
            ToBridge::Publish { room, content, received_us, .. } => {
                self.seq += 1;
                let content = String::from_utf8_lossy(&content).into_owned();
                let payload: bytes::Bytes = format!(
                    r#"{{"type":"chat_message","roomId":"{}","seq":{},"content":"{content}"}}"#,
                    &*room, self.seq
                )
                .into();
                for shard in self.subscribed.get(&room).into_iter().flatten() {
                    let (room, payload) = (room.clone(), payload.clone());
                    self.mesh.send(*shard, ToShard::Deliver { room, seq: self.seq, payload, received_us });
                }
            }
            _ => {}
        }
    }
}
