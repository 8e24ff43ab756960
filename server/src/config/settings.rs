//! From values to settings: what the host decides, and the relations between keys.

use super::layers::{Layers, Problems};
use super::secret::Secret;
use super::types::{Config, LimitsSection};
use super::{bus, cql};
use crate::auth::Source;
use crate::auth::source::Reader;
use crate::auth::token::SECRET_BYTES_MIN;
use crate::bus::redis::RedisConfig;
use roomwire_engine::network::Network;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use toml::Value;

/// Descriptors kept for everything that is not a client's socket: the store's files, listeners, rings, HTTP.
const DESCRIPTORS_KEPT: u64 = 256;
/// And for each shard on top: its rings, its bell, its listener.
const DESCRIPTORS_KEPT_PER_SHARD: u64 = 16;
/// The most places that the kernel gives to one ring's table of sockets.
const TABLE_PLACES_MAX: u64 = 1 << 20;
/// Places of each table kept for connections that are refused or on their way out.
const TABLE_PLACES_KEPT: u64 = 128;
/// A node that could hold fewer connections than this is misconfigured.
const CONNECTIONS_MIN: u64 = 64;
/// What a frame needs besides its content: names, ids, times.
const ENVELOPE_BYTES: u64 = 4 * 1024;

/// `drain.secs` of a local trial.
const DEV_DRAIN_SECS: i64 = 3;

/// What this machine and process give.
#[derive(Clone, Debug)]
pub struct Host {
    /// The cores that this process may use (`sched_getaffinity`).
    pub cpus: Vec<usize>,
    /// The hard limit of open descriptors.
    pub descriptors_max: u64,
    /// Whether each shard keeps its sockets in a table of its own, for which that limit holds once more.
    pub has_tables: bool,
    /// The host name.
    pub name: String,
}

impl Host {
    /// Asks the kernel.
    #[must_use]
    pub fn read() -> Host {
        Host {
            cpus: usable_cpus(),
            descriptors_max: descriptor_limit().1,
            has_tables: roomwire_shard::probe::has_tables(),
            name: host_name(),
        }
    }
}

/// A configuration that makes sense, with what the host decides filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All values; `shards`, `node.id` and `limits.connections_max` are set.
    pub config: Config,
    /// Where each came from.
    pub layers: Layers,
    /// `listen.addr`.
    pub listen: SocketAddr,
    /// `http.addr`.
    pub http: SocketAddr,
    /// `listen.proxy_from`, where `listen.proxy_protocol` is on.
    pub proxies: Option<Arc<[Network]>>,
    /// `shards`, at least 1.
    pub shards: u16,
    /// `node.id`.
    pub node: String,
    /// `data.dir`.
    pub data_dir: PathBuf,
    /// `bus.redis.*`, where it is the bus.
    pub redis: Option<RedisConfig>,
    /// `auth.jwks`, where it is set.
    pub jwks: Option<Source>,
    /// The cores to pin to.
    pub cpus: Vec<usize>,
    /// See [`Host::has_tables`].
    pub has_tables: bool,
    /// A local trial: loopback only, demo page, a secret of its own.
    pub dev: bool,
    /// Things that are allowed but deserve a word.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Resolves and checks.
    ///
    /// # Errors
    /// Every relation that does not hold.
    pub fn resolve(layers: Layers, host: &Host, dev: bool) -> Result<Settings, Problems> {
        Settings::resolve_with(layers, host, dev, !dev)
    }

    /// The same for `roomwire store ...`, which neither signs nor checks a token.
    ///
    /// # Errors
    /// Every relation that does not hold.
    pub fn resolve_for_store(layers: Layers, host: &Host) -> Result<Settings, Problems> {
        Settings::resolve_with(layers, host, false, false)
    }

    fn resolve_with(mut layers: Layers, host: &Host, dev: bool, wants_secret: bool) -> Result<Settings, Problems> {
        derive_from_host(&mut layers, host, dev);
        let config: Config = Value::Table(layers.table()).try_into().map_err(|error: toml::de::Error| {
            // Each value was checked against its kind, so this shows a key whose kind and type differ.
            Problems(vec![format!("configuration: {}", error.message())])
        })?;
        let mut problems = Problems::default();
        let listen = address(&config.listen.addr, "listen.addr", &mut problems);
        let http = address(&config.http.addr, "http.addr", &mut problems);
        let shards = config.shards.unwrap_or(1).max(1);
        check_addresses(listen, http, dev, &mut problems);
        check_names(&config, &mut problems);
        check_secrets(&config, wants_secret, &mut problems);
        let jwks = key_set(&config, &mut problems);
        check_limits(&config, &mut problems);
        cql::check(&config, &mut problems);
        check_connections(&config, &layers, host, shards, &mut problems);
        let redis = bus::resolve(&config, &mut problems);
        let proxies = proxies(&config, &mut problems);
        if !problems.0.is_empty() {
            return Err(problems);
        }
        let mut warnings = Vec::new();
        if usize::from(shards) > host.cpus.len() {
            let cores = host.cpus.len();
            warnings.push(format!("{shards} shards on {cores} usable cores: some share a core, which costs latency"));
        }
        Ok(Settings {
            listen,
            http,
            proxies,
            shards,
            node: config.node.id.clone().unwrap_or_default(),
            data_dir: PathBuf::from(&config.data.dir),
            redis,
            jwks,
            cpus: host.cpus.clone(),
            has_tables: host.has_tables,
            dev,
            warnings,
            config,
            layers,
        })
    }

    /// `auth.secret`; in `--dev` boot makes one where there is none.
    #[must_use]
    pub fn secret(&self) -> Option<&Secret> {
        self.config.auth.secret.as_ref()
    }
}

fn derive_from_host(layers: &mut Layers, host: &Host, dev: bool) {
    let unset_or_zero =
        |layers: &Layers, path: &str| layers.get(path).is_none_or(|entry| entry.value.as_integer() == Some(0));
    if unset_or_zero(layers, "shards") {
        layers.derive("shards", Value::Integer(host.cpus.len().clamp(1, 256) as i64), "one per usable core");
    }
    if layers.get("node.id").is_none() {
        layers.derive("node.id", Value::String(host.name.clone()), "host name");
    }
    let shards = layers.get("shards").and_then(|entry| entry.value.as_integer()).unwrap_or(1).unsigned_abs();
    if layers.get("limits.connections_max").is_none() {
        let most = connections_possible(host.descriptors_max, host.has_tables, shards).min(u64::from(u32::MAX));
        let of_each = if host.has_tables { " of each shard" } else { "" };
        let from = format!("descriptor limit {}{of_each} less a reserve", host.descriptors_max);
        layers.derive("limits.connections_max", Value::Integer(most as i64), &from);
    }
    if dev && !layers.is_set("drain.secs") {
        // Whoever presses Ctrl-C at a local trial wants it gone; the tabs come back by themselves.
        layers.derive("drain.secs", Value::Integer(DEV_DRAIN_SECS), "--dev");
    }
    if dev && !layers.is_set("listen.addr") {
        let port = layers.get("listen.addr").and_then(|entry| entry.value.as_str()?.parse::<SocketAddr>().ok());
        let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.map_or(8080, |addr| addr.port()));
        layers.derive("listen.addr", Value::String(addr.to_string()), "--dev");
    }
}

/// The connections for which a limit of open descriptors has room. It holds for the process and, where shards have tables
/// of sockets, for each of those.
pub(crate) fn connections_possible(descriptors_max: u64, has_tables: bool, shards: u64) -> u64 {
    let left = descriptors_max.saturating_sub(descriptors_kept(shards));
    if has_tables && left > 0 {
        return shards * u64::from(table_places(descriptors_max)).saturating_sub(TABLE_PLACES_KEPT);
    }
    left
}

/// Places in the table of each shard under such a limit of open descriptors.
pub(crate) fn table_places(descriptors_max: u64) -> u32 {
    descriptors_max.min(TABLE_PLACES_MAX) as u32
}

/// The limit of open descriptors that so many connections need, and the number of shards, where these are too few for
/// any limit.
pub(crate) fn descriptors_wanted(has_tables: bool, shards: u64, connections: u64) -> (u64, Option<u64>) {
    let kept = descriptors_kept(shards);
    if !has_tables {
        return (connections + kept, None);
    }
    let wanted = connections.div_ceil(shards) + TABLE_PLACES_KEPT;
    let more = (wanted > TABLE_PLACES_MAX).then(|| connections.div_ceil(TABLE_PLACES_MAX - TABLE_PLACES_KEPT));
    (wanted.min(TABLE_PLACES_MAX).max(kept + 1), more)
}

/// Descriptors that a node with so many shards keeps for other things than clients.
pub(crate) fn descriptors_kept(shards: u64) -> u64 {
    DESCRIPTORS_KEPT + DESCRIPTORS_KEPT_PER_SHARD * shards
}

fn address(text: &str, key: &str, problems: &mut Problems) -> SocketAddr {
    text.parse().unwrap_or_else(|_| {
        problems.0.push(format!("`{key}` expects an IP address and port"));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

/// Whose word counts about who a client is.
fn proxies(config: &Config, problems: &mut Problems) -> Option<Arc<[Network]>> {
    let networks = &config.listen.proxy_from.0;
    let mut parsed = Vec::with_capacity(networks.len());
    for text in networks {
        match text.parse::<Network>() {
            Ok(network) => parsed.push(network),
            Err(form) => problems.0.push(format!("`listen.proxy_from` expects {form}, got \"{text}\"")),
        }
    }
    if !config.listen.proxy_protocol {
        return None;
    }
    if networks.is_empty() {
        problems.0.push("`listen.proxy_from` is empty, so nobody could connect: name the balancers".to_owned());
    }
    Some(parsed.into())
}

fn check_addresses(listen: SocketAddr, http: SocketAddr, dev: bool, problems: &mut Problems) {
    let overlap = listen.ip() == http.ip() || listen.ip().is_unspecified() || http.ip().is_unspecified();
    if overlap && listen.port() == http.port() && listen.port() != 0 {
        problems
            .0
            .push(format!("`listen.addr` and `http.addr` both want port {}: give them different ones", listen.port()));
    }
    for (key, addr) in [("listen.addr", listen), ("http.addr", http)] {
        if dev && !addr.ip().is_loopback() {
            problems.0.push(format!(
                "--dev listens on loopback only, but `{key}` is {addr}: leave it out, or leave out --dev"
            ));
        }
    }
}

fn check_names(config: &Config, problems: &mut Problems) {
    let id = config.node.id.as_deref().unwrap_or_default();
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    if id.is_empty() || id.len() > 64 || !id.bytes().all(valid) {
        problems.0.push("`node.id` expects 1 to 64 of the characters A-Z a-z 0-9 _ . : -".to_owned());
    }
    if config.data.dir.is_empty() {
        problems.0.push("`data.dir` must not be empty".to_owned());
    }
    for (key, value) in [("auth.issuer", &config.auth.issuer), ("auth.audience", &config.auth.audience)] {
        if value.as_deref() == Some("") {
            problems.0.push(format!("`{key}` must not be empty: leave it out to not check it"));
        }
    }
    if config.allowed_origins.0.is_empty() {
        problems.0.push("`allowed_origins` is empty, so no browser could connect: use [\"*\"] to allow all".to_owned());
    }
    for origin in config.allowed_origins.0.iter().filter(|origin| *origin != "*") {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        if host.is_empty() || host.contains(['/', ' ', '*']) {
            let form = "scheme, host and port without a path, such as https://chat.example";
            problems.0.push(format!("`allowed_origins` expects {form}, or *, got \"{origin}\""));
        }
    }
    if tracing_subscriber::EnvFilter::try_new(&config.log.level).is_err() {
        problems.0.push(format!("`log.level` expects a level or a filter, got \"{}\"", config.log.level));
    }
}

fn check_secrets(config: &Config, wants_secret: bool, problems: &mut Problems) {
    match &config.auth.secret {
        None if !wants_secret => {}
        None if config.auth.jwks.is_some() => {
            if config.auth.second_secret.is_some() {
                problems.0.push("`auth.second_secret` is set, but `auth.secret` is not".to_owned());
            }
        }
        None => problems.0.push(
            "no `auth.secret`: set JWT_SECRET or ROOMWIRE_AUTH__SECRET to the secret that your tokens are signed with; \
             make one with `openssl rand -base64 48`, or name your issuer's key set with `auth.jwks`, or try Roomwire locally \
             with `roomwire serve --dev`"
                .to_owned(),
        ),
        Some(secret) if secret.expose().len() < SECRET_BYTES_MIN => problems.0.push(format!(
            "`auth.secret` has {} bytes, which can be guessed: it needs {SECRET_BYTES_MIN} or more; make one with `openssl rand -base64 48`",
            secret.expose().len()
        )),
        Some(_) => {}
    }
    if config.auth.second_secret.as_ref().is_some_and(|secret| secret.expose().len() < SECRET_BYTES_MIN) {
        problems.0.push(format!("`auth.second_secret` needs {SECRET_BYTES_MIN} bytes or more, as `auth.secret` does"));
    }
    if config.http.key.as_ref().is_some_and(|key| key.expose().len() < 16) {
        problems.0.push("`http.key` needs 16 bytes or more; make one with `openssl rand -hex 24`".to_owned());
    }
}

/// The key set. A file must be there and right; what is at an address is asked when the node starts.
fn key_set(config: &Config, problems: &mut Problems) -> Option<Source> {
    let source = Source::of(&config.auth).unwrap_or_else(|problem| {
        problems.0.push(problem);
        None
    });
    if let Some(file @ Source::File(_)) = &source
        && let Err(why) = Reader::new(file.clone()).and_then(|mut reader| reader.read())
    {
        problems.0.push(format!("`auth.jwks`: {why}"));
    }
    source
}

/// Where 0 means no limit, it counts as more than any number.
fn or_endless(limit: u32) -> u64 {
    if limit == 0 { u64::MAX } else { u64::from(limit) }
}

fn check_limits(config: &Config, problems: &mut Problems) {
    let limits = &config.limits;
    let LimitsSection { content_bytes_max, message_bytes_max, token_bytes_max, header_bytes_max, .. } = *limits;
    let mut at_most = |less: u64, more: u64, line: &str| {
        if less > more {
            problems.0.push(line.to_owned());
        }
    };
    if content_bytes_max != 0 {
        let line = "`limits.content_bytes_max` must not be above `limits.message_bytes_max`: the content is part of the message";
        at_most(u64::from(content_bytes_max), or_endless(message_bytes_max), line);
    }
    if token_bytes_max != 0 {
        let line = "`limits.header_bytes_max` must be at least 512 above `limits.token_bytes_max`: the token is part of the head";
        at_most(u64::from(token_bytes_max) + 512, or_endless(header_bytes_max), line);
        let line =
            "`limits.token_bytes_max` must be at least 64 below `limits.message_bytes_max`: `refresh` carries a token";
        at_most(u64::from(token_bytes_max) + 64, or_endless(message_bytes_max), line);
    }
    let content = or_endless(content_bytes_max).min(or_endless(message_bytes_max));
    let page = u64::from(config.bridge.page_bytes_max).saturating_add(content).saturating_add(ENVELOPE_BYTES);
    let line = "`limits.queue_bytes_max` must hold a page of history and a message: at least `bridge.page_bytes_max` + \
                `limits.content_bytes_max` + 4096";
    at_most(page, or_endless(limits.queue_bytes_max), line);
    if limits.messages_per_second_max != 0 && limits.messages_burst_max == 0 {
        problems.0.push(
            "`limits.messages_burst_max` must be 1 or more while `limits.messages_per_second_max` is set".to_owned(),
        );
    }
    if !config.ring.buffers.is_power_of_two() {
        problems.0.push(format!("`ring.buffers` expects a power of two, got {}", config.ring.buffers));
    }
    if config.ring.cq_entries < config.ring.sq_entries {
        problems.0.push("`ring.cq_entries` must not be below `ring.sq_entries`".to_owned());
    }
}

fn check_connections(config: &Config, layers: &Layers, host: &Host, shards: u16, problems: &mut Problems) {
    let possible = connections_possible(host.descriptors_max, host.has_tables, u64::from(shards));
    let limit = host.descriptors_max;
    let or = if host.has_tables { "; or use more shards, as it holds for each" } else { "" };
    let cure = format!("raise it with `ulimit -Hn`, or LimitNOFILE= in the unit{or}");
    if possible < CONNECTIONS_MIN {
        problems.0.push(format!("the limit of open descriptors is {limit}, which leaves too few for clients: {cure}"));
    } else if layers.is_set("limits.connections_max") {
        let wanted = u64::from(config.limits.connections_max.unwrap_or(0));
        if wanted > possible {
            problems.0.push(format!(
                "`limits.connections_max` is {wanted}, but the limit of open descriptors, {limit}, leaves {possible} for clients: {cure}"
            ));
        }
    }
}

fn usable_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given, into memory that is ours.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return vec![0];
    }
    // SAFETY: the set is initialised and every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// The soft and the hard limit of open descriptors.
#[must_use]
pub fn descriptor_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// The host name, with anything that a node name may not have replaced.
fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the kernel writes at most the length given.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let length = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    let name = String::from_utf8_lossy(&buffer[..length]);
    let valid = |letter: char| if letter.is_ascii_alphanumeric() || "_.-".contains(letter) { letter } else { '-' };
    let name: String = name.chars().map(valid).take(64).collect();
    if result != 0 || name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
