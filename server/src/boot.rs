//! From settings to a running node, and from a signal to its end.
//!
//! Order: what can refuse comes first (kernel, port, data directory), then the bridge, then the shards, since a node that
//! accepts a client must be able to serve it. The main thread then only waits for signals.

mod reload;
mod secret;

use crate::auth::jwks::Start;
use crate::auth::{Authenticator, Current, Jwks, Mint};
use crate::bridge::{self, BridgeHandle, BridgeSetup, StartError};
use crate::bus::BusConfig;
use crate::bus::redis::{NodeCard, RedisConfig};
use crate::cli::Failure;
use crate::config::settings::{descriptor_limit, table_places};
use crate::config::types::{Fsync, Reject, StoreKind};
use crate::config::{Secret, Settings};
use crate::http::{Dev, HttpConfig, HttpPolicy};
use crate::logs::Filter;
use crate::memory;
use crate::signals::{Signal, Signals};
use crate::store::cql::{self, CqlConfig};
use crate::store::embedded::{self, EmbeddedConfig};
use crate::store::{OpenError, StoreConfig};
use crate::systemd::Manager;
use arc_swap::ArcSwap;
use reload::Live;
use roomwire_engine::bridge::BridgeConfig;
use roomwire_engine::limits::EngineConfig;
use roomwire_engine::names::ShardId;
use roomwire_engine::shard::Verify;
use roomwire_shard::mesh::{ShardMesh, mesh};
use roomwire_shard::run::{ShardConfig, ShardHandle};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use reload::ReadAgain;
pub use secret::dev_secret_path;

/// How long the main thread sleeps at most between two looks at the bridge.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_WHILE_DRAINING: Duration = Duration::from_millis(10);
/// The part of `drain.secs` that is kept for clients to answer the close (2 s) and for the store to finish.
const DRAIN_KEPT_MS: u32 = 3_000;
/// How long handshakes under way get to end before the drain, on a port that another node shares.
const HANDSHAKES: Duration = Duration::from_secs(1);
/// How long a node that was told to stop at once may still take.
const CUT_SHORT: Duration = Duration::from_millis(2_500);
/// How long a token of the demo page is valid: the page asks for a new one at each connection.
const DEV_TOKEN_SECS: u64 = 3_600;
/// How long the port of a process that was killed may stay taken: its ring holds the listener, and the kernel takes rings
/// apart a moment after their process is gone.
const PORT_LINGERS_MAX: Duration = Duration::from_millis(1_000);

/// Runs a node until it has drained after a signal. `again` reads the configuration anew at SIGHUP, `filter` is what is
/// logged.
///
/// # Errors
/// [`Failure`]: 78 where it can never start like this, 1 where trying again may help.
pub fn serve(settings: &Settings, echo: bool, (again, filter): (ReadAgain, Filter)) -> Result<(), Failure> {
    let signals = Signals::block().map_err(|error| Failure::runtime(format!("cannot block signals: {error}")))?;
    roomwire_shard::probe::probe().map_err(|unsupported| Failure::config(unsupported.to_string()))?;
    raise_descriptor_limit();
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if !settings.config.listen.share {
        refuse_taken_port(settings.listen)?;
    }
    let secret = secret::of(settings)?;
    let jwks = settings.jwks.clone().map(|source| Jwks::start(source, Start::Anyway)).transpose();
    let jwks = jwks.map_err(Failure::config)?;
    let authenticator = Current::new(authenticator(settings, secret.as_ref(), jwks.as_ref()));
    let http = Arc::new(ArcSwap::from_pointee(http_policy(settings, jwks.as_ref())));
    let (bridge, mut shards) = start(settings, &authenticator, &http, echo)?;
    let mut live = Live::new((again, filter), settings.clone(), (authenticator, jwks), http);
    let mut manager = Manager::of_environment();
    manager.ready(settings.shards);
    wait(&signals, bridge, &mut shards, &mut live, &mut manager)
}

/// Starts bridge and shards, and says where they listen.
fn start(
    settings: &Settings,
    authenticator: &Arc<Current>,
    http: &Arc<ArcSwap<HttpPolicy>>,
    echo: bool,
) -> Result<(BridgeHandle, Vec<ShardHandle>), Failure> {
    let config = &settings.config;
    let (lanes, bridge_lanes) =
        mesh(settings.shards).map_err(|error| Failure::runtime(format!("cannot make the mesh: {error}")))?;
    let bridge_config = bridge_config(settings)?;
    let bridge = bridge::spawn(BridgeSetup {
        gather: Duration::from_micros(u64::from(config.bridge.gather_us)),
        connections_max: config.limits.connections_max.unwrap_or(0),
        bus: bus_config(settings, bridge_config.boot),
        bridge: bridge_config,
        mesh: bridge_lanes,
        store: store_config(settings),
        http: http_config(settings, http, settings.dev.then_some(authenticator)),
    })
    .map_err(start_failure)?;
    let shards = start_shards(settings, lanes, &authenticator.verify(), echo)?;
    let listen = shards.first().map_or(settings.listen, |shard| shard.local_addr);
    bridge.started(listen);
    announce(settings, listen, bridge.http_addr(), echo);
    Ok((bridge, shards))
}

/// What will not be better at the next try is the operator's: 78.
fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Store(
            OpenError::Embedded(
                embedded::OpenError::Newer { .. }
                | embedded::OpenError::NotOurs { .. }
                | embedded::OpenError::HalfImported { .. }
                | embedded::OpenError::Damaged { .. },
            )
            | OpenError::Cql(cql::OpenError::Refused(_)),
        ) => Failure::config(error.to_string()),
        StartError::Bus(text) => Failure::config(text),
        StartError::Http { addr, error } if error.kind() == io::ErrorKind::AddrInUse => {
            Failure::runtime(taken("http.addr", addr))
        }
        _ => Failure::runtime(error.to_string()),
    }
}

fn shard_failure(shard: u16, shards: u16, error: &io::Error) -> Failure {
    match error.kind() {
        // The start-up probe sets up one ring; this host has no room for one per shard.
        io::ErrorKind::OutOfMemory => Failure::config(format!(
            "shard {shard}: {error}: the memlock limit is too low for {shards} shards; raise it with \
             LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (Docker) or `ulimit -l`"
        )),
        io::ErrorKind::PermissionDenied => Failure::config(format!("shard {shard}: {error}")),
        _ => Failure::runtime(format!("shard {shard}: {error}")),
    }
}

fn taken(key: &str, addr: SocketAddr) -> String {
    let port = addr.port();
    format!(
        "{key} {addr} is taken by another process: stop it (`ss -ltnp sport = {port}` names it), or choose another with --set {key}=..."
    )
}

fn start_shards(
    settings: &Settings,
    lanes: Vec<ShardMesh>,
    verify: &Verify,
    echo: bool,
) -> Result<Vec<ShardHandle>, Failure> {
    let config = &settings.config;
    let mut listen = settings.listen;
    let mut shards = Vec::new();
    for (shard, lane) in (0u16..).zip(lanes) {
        let handle = roomwire_shard::run::spawn(ShardConfig {
            shard: ShardId(shard),
            cpu: settings.cpus[usize::from(shard) % settings.cpus.len()],
            listen,
            backlog: config.listen.backlog,
            buffers: config.ring.buffers,
            buffer_bytes: config.ring.buffer_bytes,
            table: settings.has_tables.then(|| table_places(descriptor_limit().0)),
            sq_entries: config.ring.sq_entries,
            cq_entries: config.ring.cq_entries,
            gather: Duration::from_micros(u64::from(config.ring.gather_us)),
            engine: engine_config(settings, echo)?,
            verify: Arc::clone(verify),
            rest: memory::give_back,
            mesh: lane,
        })
        .map_err(|error| shard_failure(shard, settings.shards, &error))?;
        // Where port 0 was asked for, the kernel chose one for the first shard: the others share it.
        listen = handle.local_addr;
        shards.push(handle);
    }
    Ok(shards)
}

fn engine_config(settings: &Settings, echo: bool) -> Result<EngineConfig, Failure> {
    let config = &settings.config;
    Ok(EngineConfig {
        limits: config.limits.to_engine(),
        heartbeat_ms: config.heartbeat.secs * 1000,
        presence_grace_ms: config.presence.grace_ms,
        node: Arc::from(settings.node.as_str()),
        shards: settings.shards,
        cluster: settings.redis.is_some(),
        echo,
        allowed_origins: config.allowed_origins.0.clone().into(),
        reject_by_http: rejects_by_http(settings),
        proxies: settings.proxies.clone(),
        seed: random()?,
    })
}

fn bridge_config(settings: &Settings) -> Result<BridgeConfig, Failure> {
    let bridge = &settings.config.bridge;
    Ok(BridgeConfig {
        shards: settings.shards,
        node: Arc::from(settings.node.as_str()),
        boot: random()?,
        cluster: settings.redis.is_some(),
        publishes_max: bridge.publishes_max,
        publish_ms_max: bridge.publish_ms_max,
        inits_max: inits_max(settings),
        page_bytes_max: bridge.page_bytes_max,
        recent_bytes_max: bridge.recent_bytes_max,
        bus_log: settings.redis.is_some(),
        strict: settings.config.bus.strict,
    })
}

/// How many rooms are begun anew at once. A cluster's conditional writes are many times as dear as its appends, which need
/// most of what may be under way; the embedded store shares one commit among all.
fn inits_max(settings: &Settings) -> u32 {
    match settings.config.store.kind {
        StoreKind::Cql => (settings.config.store.cql.in_flight_max / 4).max(1),
        StoreKind::Embedded => 1_024,
    }
}

fn bus_config(settings: &Settings, boot: u64) -> BusConfig {
    match &settings.redis {
        None => BusConfig::Local,
        Some(redis) => {
            let limit = settings.config.limits.join_events_members_max;
            let card = NodeCard::new(&settings.node, boot, store_name(settings), limit);
            BusConfig::Redis(Box::new(RedisConfig { from: Arc::from(card.from()), card: Some(card), ..redis.clone() }))
        }
    }
}

/// Which store this is, for the other nodes: those of one cluster share one. Two embedded stores are never the same.
fn store_name(settings: &Settings) -> String {
    match settings.config.store.kind {
        StoreKind::Cql => format!("cql, keyspace {}", settings.config.store.cql.keyspace),
        StoreKind::Embedded => {
            let data_dir = settings.data_dir.canonicalize().unwrap_or_else(|_| settings.data_dir.clone());
            format!("embedded of {} in {}", settings.node, data_dir.display())
        }
    }
}

/// The store that the settings name.
pub fn store_config(settings: &Settings) -> StoreConfig {
    match settings.config.store.kind {
        StoreKind::Embedded => StoreConfig::Embedded(embedded_config(settings)),
        StoreKind::Cql => StoreConfig::Cql(cql_config(settings)),
    }
}

/// The cluster that the settings name.
pub fn cql_config(settings: &Settings) -> CqlConfig {
    let cql = &settings.config.store.cql;
    CqlConfig {
        dc: cql.dc.clone(),
        user: cql.user.clone(),
        password: cql.password.clone(),
        ca_file: cql.ca_file.as_ref().map(PathBuf::from),
        in_flight_max: cql.in_flight_max as usize,
        queue_max: cql.queue_max as usize,
        timeout: Duration::from_millis(u64::from(cql.timeout_ms)),
        speculate_after: Duration::from_millis(u64::from(cql.speculate_ms)),
        retention: Duration::from_secs(u64::from(settings.config.store.retention_days) * 86_400),
        ..CqlConfig::new(cql.nodes.clone(), cql.keyspace.clone())
    }
}

/// The embedded store of the settings.
pub fn embedded_config(settings: &Settings) -> EmbeddedConfig {
    let store = &settings.config.store;
    EmbeddedConfig {
        fsync: match store.fsync {
            Fsync::Always => embedded::Fsync::Always,
            Fsync::Interval => embedded::Fsync::Interval { ms: store.fsync_interval_ms },
        },
        retention_days: store.retention_days,
        messages_per_room_max: store.messages_per_room_max,
        reserve_bytes: store.reserve_bytes,
        cache_bytes: store.cache_bytes,
        ..EmbeddedConfig::new(settings.data_dir.clone())
    }
}

fn rejects_by_http(settings: &Settings) -> bool {
    settings.config.auth.reject == Reject::Http
}

fn authenticator(settings: &Settings, secret: Option<&Secret>, jwks: Option<&Arc<Jwks>>) -> Authenticator {
    let config = &settings.config;
    Authenticator::new(secret, jwks.cloned(), &config.auth, config.limits.token_bytes_max)
}

fn http_policy(settings: &Settings, jwks: Option<&Arc<Jwks>>) -> HttpPolicy {
    let http = &settings.config.http;
    HttpPolicy {
        key: http.key.as_ref().map(|key| Arc::from(key.expose())),
        ready_requires_backends: http.ready_requires_backends,
        content_bytes_max: settings.config.limits.content_bytes_max,
        jwks: jwks.cloned(),
    }
}

fn http_config(settings: &Settings, policy: &Arc<ArcSwap<HttpPolicy>>, dev: Option<&Arc<Current>>) -> HttpConfig {
    HttpConfig {
        addr: settings.http,
        policy: Arc::clone(policy),
        node: Arc::from(settings.node.as_str()),
        version: env!("CARGO_PKG_VERSION"),
        dev: dev.map(|authenticator| dev_pages(Arc::clone(authenticator))),
    }
}

/// What the demo page needs: tokens for whoever asks, which is why `--dev` stays on loopback.
fn dev_pages(authenticator: Arc<Current>) -> Dev {
    let mint = move |user: &str, name: &str| {
        let mint =
            Mint { user: user.to_owned(), name: Some(name.to_owned()), ttl_secs: DEV_TOKEN_SECS, rooms: Vec::new() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        authenticator.get().mint(&mint, u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).unwrap_or_default()
    };
    Dev { mint: Arc::new(mint) }
}

fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Failure::runtime(format!("no random numbers: {error}")))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn announce(settings: &Settings, listen: SocketAddr, http: SocketAddr, echo: bool) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.node,
        %listen,
        %http,
        shards = settings.shards,
        connections_max = settings.config.limits.connections_max,
        data = %settings.data_dir.display(),
        echo,
        "ready"
    );
    if settings.dev {
        let banner = format!(
            "\n  Roomwire is running. Insecure, local trial only: anyone on this machine may log in.\n\n  \
             Demo page   http://{http}/\n  \
             WebSocket   ws://{listen}/ws\n  \
             A token     roomwire token --dev --user alice\n  \
             Data        {}\n\n  \
             Open the demo page in two tabs. Stop with Ctrl-C.\n",
            settings.data_dir.display()
        );
        let _ = writeln!(io::stdout(), "{banner}");
    }
}

/// Raises the soft limit of open descriptors to the hard one, which `limits.connections_max` counts on.
fn raise_descriptor_limit() {
    let (soft, hard) = descriptor_limit();
    let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    // SAFETY: the kernel only reads the struct.
    if soft < hard && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        tracing::warn!(soft, hard, "the limit of open descriptors could not be raised");
    }
}

/// Shards bind with SO_REUSEPORT, which would let a second node of the same user take half of our clients in silence: so,
/// unless `listen.share` says that it is meant, ask once without it.
fn refuse_taken_port(addr: SocketAddr) -> Result<(), Failure> {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        // Connections of an earlier run that are still in TIME_WAIT do not count.
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())
    };
    let began = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if began.elapsed() > PORT_LINGERS_MAX {
                    return Err(Failure::runtime(taken("listen.addr", addr)));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // Whatever else is wrong, the shard's own attempt says it best.
            _ => return Ok(()),
        }
    }
}

/// A stop under way.
struct Stop {
    deadline: Instant,
    /// When clients are sent away and over how many ms, unless they are already.
    drain: Option<(Instant, u32)>,
    cut_short: bool,
}

/// Waits for signals until the node has drained.
fn wait(
    signals: &Signals,
    bridge: BridgeHandle,
    shards: &mut [ShardHandle],
    live: &mut Live,
    manager: &mut Manager,
) -> Result<(), Failure> {
    let mut stop: Option<Stop> = None;
    let shard_count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
    while !bridge.is_finished() {
        manager.look(bridge.vitals(), shard_count, stop.is_some());
        match signals.wait(if stop.is_some() { LOOK_WHILE_DRAINING } else { LOOK }) {
            Some(Signal::Stop) => {
                stop = Some(begin_stop(&bridge, shards, stop, live));
                manager.stopping(live.drain());
            }
            Some(Signal::Reload) => {
                manager.reloading();
                let outcome = live.reload(&bridge);
                manager.reloaded(outcome.err().map(|problems| problems.to_string().replace('\n', "; ")).as_deref());
            }
            None => {}
        }
        if let Some((_, window_ms)) = stop.as_mut().and_then(|stop| stop.drain.take_if(|(at, _)| Instant::now() >= *at))
        {
            bridge.drain(window_ms);
        }
        if stop.as_ref().is_some_and(|stop| Instant::now() >= stop.deadline) {
            // Every ack that left is on disk: nothing is lost by not waiting for the peers.
            tracing::warn!("drain.secs are over: stopping with connections open");
            std::process::exit(0);
        }
    }
    let told = stop.is_some();
    if !bridge.join() || !told {
        return Err(Failure::runtime("the bridge ended by itself: see the lines before"));
    }
    let deadline = stop.map_or_else(Instant::now, |stop| stop.deadline);
    while shards.iter().any(|shard| !shard.thread.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    tracing::info!("drained and stopped");
    Ok(())
}

/// The first signal drains, the second cuts it short.
fn begin_stop(bridge: &BridgeHandle, shards: &mut [ShardHandle], stop: Option<Stop>, live: &Live) -> Stop {
    let drain = live.drain();
    match stop {
        None => {
            let window_ms = drain_window_ms(drain);
            tracing::info!(drain_secs = drain.as_secs(), window_ms, "stopping: clients are sent away over the window");
            let mut at = Instant::now();
            if live.shares_port() {
                // Nobody is refused: whoever is in ends the handshake and is sent away like everybody else, whoever is not
                // gets in at the other node.
                shards.iter_mut().for_each(ShardHandle::stop_listening);
                at += HANDSHAKES;
            }
            // With drain.secs = 0 the closes still get the time that a cut-short stop has.
            Stop { deadline: at + drain.max(CUT_SHORT), drain: Some((at, window_ms)), cut_short: window_ms == 0 }
        }
        Some(stop) if !stop.cut_short => {
            tracing::info!("second signal: stopping at once");
            bridge.drain(0);
            Stop { deadline: stop.deadline.min(Instant::now() + CUT_SHORT), drain: None, cut_short: true }
        }
        Some(stop) => stop,
    }
}

/// Over how long clients are sent away: what `drain.secs` leaves, or half of it where it is short.
fn drain_window_ms(drain: Duration) -> u32 {
    let drain_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
    drain_ms - (drain_ms / 2).min(DRAIN_KEPT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_leaves_time_for_the_closes() {
        let window = |secs| drain_window_ms(Duration::from_secs(secs));
        assert_eq!([window(0), window(2), window(30), window(3600)], [0, 1_000, 27_000, 3_597_000]);
    }

    #[test]
    fn a_taken_port_is_refused_with_the_cure_even_if_it_was_bound_for_sharing() {
        let taken = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        taken.set_reuse_port(true).expect("reuse_port");
        taken.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("any port");
        taken.listen(1).expect("listens");
        let addr = taken.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an IP address");
        let failure = refuse_taken_port(addr).expect_err("it is taken");
        assert_eq!(failure.status, 1);
        assert!(
            failure.message.contains("is taken") && failure.message.contains("--set listen.addr"),
            "{}",
            failure.message
        );
        drop(taken);
        assert!(refuse_taken_port(addr).is_ok());
    }
}
