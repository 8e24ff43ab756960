//! Every configuration key as one struct: its name, type, default and text. The reference in docs/configuration.md,
//! the example file, the environment names and the checks of unknown keys are all made from it.

mod bus;
mod store;

pub use bus::{Bus, BusKind, Redis, Sentinel};
pub use store::{Cql, Fsync, Store, StoreKind};

use super::secret::Secret;
use roomwire_engine::limits::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The whole configuration of a node, as written; [`super::Settings`] is what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many shards (pinned threads) serve clients. Unset or 0: one per core that this process may use.
    #[schemars(extend("maximum" = 256))]
    pub shards: Option<u16>,
    /// Origins that a browser may connect from, compared exactly (`https://chat.example`); `*` allows all, which is safe
    /// because identity comes from a token and never from a cookie.
    pub allowed_origins: Origins,
    /// Where clients connect.
    pub listen: Listen,
    /// The HTTP API, metrics and health checks.
    pub http: Http,
    /// Where data lives.
    pub data: Data,
    /// This node.
    pub node: Node,
    /// Who may connect.
    pub auth: Auth,
    /// Where messages are kept.
    pub store: Store,
    /// Where rooms get their order, and how nodes hear each other.
    pub bus: Bus,
    /// The graceful stop.
    pub drain: Drain,
    /// Detection of dead connections.
    pub heartbeat: Heartbeat,
    /// Who is online.
    pub presence: Presence,
    /// Limits. 0 means no limit.
    pub limits: LimitsSection,
    /// The node's one bridge thread, which orders, stores and passes on messages.
    pub bridge: BridgeSection,
    /// The io_uring ring of each shard.
    pub ring: Ring,
    /// Logs.
    pub log: Log,
}

/// The value of `allowed_origins`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Origins(pub Vec<String>);

impl Default for Origins {
    fn default() -> Origins {
        Origins(vec!["*".to_owned()])
    }
}

/// Keys `listen.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address and port for WebSocket clients. `PORT` in the environment sets the port alone.
    #[schemars(extend("format" = "address"))]
    pub addr: String,
    /// Connections that the kernel may hold per shard until they are accepted; it caps this at `net.core.somaxconn`.
    #[schemars(extend("minimum" = 1))]
    pub backlog: u32,
    /// Whether a second node of this machine may listen on the same address, each taking a part of the new connections: for
    /// an upgrade in a cluster, the new node beside the old one. Off, the second one refuses to start. Wants
    /// `net.ipv4.tcp_migrate_req` at 1, or what waits in the old node's backlog is reset when it stops.
    pub share: bool,
    /// Whether each connection begins with a PROXY header (version 2), by which a balancer says who its client is: then
    /// `limits.connections_per_address_max` counts clients. Connections without one, and from elsewhere than `proxy_from`, are
    /// dropped.
    pub proxy_protocol: bool,
    /// With `listen.proxy_protocol`: the balancers, as addresses or networks.
    pub proxy_from: Networks,
}

/// The value of `listen.proxy_from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Networks(pub Vec<String>);

impl Default for Networks {
    fn default() -> Networks {
        // Loopback and what is never routed in public.
        let private = ["127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        Networks(private.map(str::to_owned).to_vec())
    }
}

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            addr: "0.0.0.0:8080".to_owned(),
            backlog: 4096,
            share: false,
            proxy_protocol: false,
            proxy_from: Networks::default(),
        }
    }
}

/// Keys `http.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port of the HTTP API, `/metrics`, `/livez` and `/readyz`. Keep it off the public network.
    #[schemars(extend("format" = "address"))]
    pub addr: String,
    /// The bearer key of `/v1/...`. Without one those routes refuse every call.
    pub key: Option<Secret>,
    /// Whether `/readyz` answers 503 while the store or the bus is in trouble. Off, it says `degraded` and stays 200, so
    /// that one sick backend does not take every node out of the balancer at once.
    pub ready_requires_backends: bool,
}

impl Default for Http {
    fn default() -> Http {
        Http { addr: "127.0.0.1:9090".to_owned(), key: None, ready_requires_backends: false }
    }
}

/// Keys `data.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// The directory of the embedded store; made if it is missing. One process at a time may hold it.
    pub dir: String,
}

impl Default for Data {
    fn default() -> Data {
        Data { dir: "roomwire-data".to_owned() }
    }
}

/// Keys `node.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// This node's name, shown to clients in `connected`. Unset: the host name.
    pub id: Option<String>,
}

/// What a client with a bad token gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Reject {
    /// The upgrade, then close 1008: what a browser can read.
    #[default]
    Close,
    /// 401 in place of the upgrade.
    Http,
}

/// Keys `auth.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The HS256 secret that tokens are signed with, 32 bytes or more. Make one with `openssl rand -base64 48`. Best given in
    /// the environment; `JWT_SECRET` is honoured too.
    pub secret: Option<Secret>,
    /// A second secret that counts as well: while the secret is changed, the old one or the next one.
    pub second_secret: Option<Secret>,
    /// The key set of an issuer (JWKS) whose tokens count, beside those of `auth.secret` or in their place: a file, read at
    /// the start and at a reload, or an `https://` address (`http://` on loopback), fetched again when its `Cache-Control` says,
    /// after 1 to 15 minutes, and when a token names a key that is not known, at most once a minute.
    pub jwks: Option<String>,
    /// A PEM file with the certificate authority of the address in `auth.jwks`. Unset: those that this machine trusts.
    pub jwks_ca_file: Option<String>,
    /// Whether a token must say when it expires.
    pub require_exp: bool,
    /// What a client with a bad token gets: `close` upgrades and closes with 1008, which a browser can read; `http` answers 401.
    pub reject: Reject,
    /// The issuer that a token's `iss` must name. Unset: `iss` is not looked at.
    pub issuer: Option<String>,
    /// The audience that a token's `aud` must contain. Unset: `aud` is not looked at.
    pub audience: Option<String>,
    /// Seconds of clock difference that `exp`, `nbf` and `iat` forgive.
    #[schemars(extend("maximum" = 600))]
    pub leeway_secs: u32,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            secret: None,
            second_secret: None,
            jwks: None,
            jwks_ca_file: None,
            require_exp: true,
            reject: Reject::Close,
            issuer: None,
            audience: None,
            leeway_secs: 30,
        }
    }
}

/// Keys `drain.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Seconds from SIGTERM to the end of the process; clients are sent away spread over most of it. 0: at
    /// once. With `--dev` 3.
    #[schemars(extend("maximum" = 3_600))]
    pub secs: u32,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { secs: 30 }
    }
}

/// Keys `heartbeat.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Heartbeat {
    /// Seconds without anything received after which a connection is pinged; as many more without an answer, and it is dropped.
    #[schemars(extend("minimum" = 1, "maximum" = 3_600))]
    pub secs: u32,
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat { secs: 30 }
    }
}

/// Keys `presence.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Presence {
    /// Milliseconds between the end of a user's last connection and `offline`.
    #[schemars(extend("maximum" = 600_000))]
    pub grace_ms: u32,
}

impl Default for Presence {
    fn default() -> Presence {
        Presence { grace_ms: 5_000 }
    }
}

/// Keys `limits.*`: [`Limits`] by the very same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// The most bytes of an HTTP upgrade head. Crossing it: 431.
    pub header_bytes_max: u32,
    /// The most milliseconds from accept to a complete upgrade head. Crossing it: 408.
    pub handshake_ms_max: u32,
    /// The most bytes of one message. Crossing it: close 1009.
    pub message_bytes_max: u32,
    /// The most frames of one message. Crossing it: close 1009.
    pub fragments_max: u32,
    /// The most milliseconds from a message's first byte to its last. Crossing it: close 1008.
    pub assembly_ms_max: u32,
    /// Messages a second that one connection may send on average. Crossing it: `rate_limited`; three times as much for 10 s: close 4029.
    pub messages_per_second_max: u32,
    /// Messages that one connection may send at once.
    pub messages_burst_max: u32,
    /// The most rooms that one connection may be in. Crossing it: `rate_limited`.
    pub rooms_per_connection_max: u32,
    /// The most connections of one user on this node. Crossing it: close 1008.
    pub connections_per_user_max: u32,
    /// The most connections from one IP address (IPv6: one /64) to this node. Crossing it: 503. Behind a balancer all clients
    /// share one address.
    pub connections_per_address_max: u32,
    /// The most connections of this node. Crossing it: 503. Unset: the descriptor limit less a reserve; from Linux 6.13 on that
    /// many for each shard.
    pub connections_max: Option<u32>,
    /// The most bytes that wait to be sent to one connection. Crossing it: ephemeral events go first, then close 4008.
    pub queue_bytes_max: u32,
    /// The most milliseconds that bytes wait to be sent to one connection. Crossing it: close 4008.
    pub queue_ms_max: u32,
    /// The most bytes of a `content`. Crossing it: `too_large`.
    pub content_bytes_max: u32,
    /// The most bytes of a token. Crossing it: "Authentication failed", or `too_large` in `refresh`.
    pub token_bytes_max: u32,
    /// Rooms of more members than this get one `members` count a second in place of `user_joined` and `user_left`.
    pub join_events_members_max: u32,
}

impl Default for LimitsSection {
    fn default() -> LimitsSection {
        let Limits {
            header_bytes_max,
            handshake_ms_max,
            message_bytes_max,
            fragments_max,
            assembly_ms_max,
            messages_per_second_max,
            messages_burst_max,
            rooms_per_connection_max,
            connections_per_user_max,
            connections_per_address_max,
            connections_max: _,
            queue_bytes_max,
            queue_ms_max,
            content_bytes_max,
            token_bytes_max,
            join_events_members_max,
        } = Limits::default();
        LimitsSection {
            header_bytes_max,
            handshake_ms_max,
            message_bytes_max,
            fragments_max,
            assembly_ms_max,
            messages_per_second_max,
            messages_burst_max,
            rooms_per_connection_max,
            connections_per_user_max,
            connections_per_address_max,
            connections_max: None,
            queue_bytes_max,
            queue_ms_max,
            content_bytes_max,
            token_bytes_max,
            join_events_members_max,
        }
    }
}

impl LimitsSection {
    /// The engine's limits; an unset `connections_max` becomes 0, none.
    #[must_use]
    pub fn to_engine(&self) -> Limits {
        Limits {
            header_bytes_max: self.header_bytes_max,
            handshake_ms_max: self.handshake_ms_max,
            message_bytes_max: self.message_bytes_max,
            fragments_max: self.fragments_max,
            assembly_ms_max: self.assembly_ms_max,
            messages_per_second_max: self.messages_per_second_max,
            messages_burst_max: self.messages_burst_max,
            rooms_per_connection_max: self.rooms_per_connection_max,
            connections_per_user_max: self.connections_per_user_max,
            connections_per_address_max: self.connections_per_address_max,
            connections_max: self.connections_max.unwrap_or(0),
            queue_bytes_max: self.queue_bytes_max,
            queue_ms_max: self.queue_ms_max,
            content_bytes_max: self.content_bytes_max,
            token_bytes_max: self.token_bytes_max,
            join_events_members_max: self.join_events_members_max,
        }
    }
}

/// Keys `bridge.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BridgeSection {
    /// The most publishes under way on this node; beyond, they are refused with `unavailable`.
    #[schemars(extend("minimum" = 1))]
    pub publishes_max: u32,
    /// The most milliseconds that a publish waits for the store before it is refused; it may still appear later, once.
    #[schemars(extend("minimum" = 10))]
    pub publish_ms_max: u32,
    /// The most content bytes of one page of history.
    #[schemars(extend("minimum" = 1024))]
    pub page_bytes_max: u32,
    /// The most bytes of recent messages kept in memory per room with members here, for history and resume.
    pub recent_bytes_max: u32,
    /// Microseconds from one look at what the shards sent to the next: what comes meanwhile shares a seq request, a
    /// commit and the wake-ups, which saves CPU under load. Sixteen messages from a shard end it at once, and what comes
    /// after a longer pause does not wait. 0: no pause.
    #[schemars(extend("maximum" = 100_000))]
    pub gather_us: u32,
}

impl Default for BridgeSection {
    fn default() -> BridgeSection {
        BridgeSection {
            publishes_max: 16_384,
            publish_ms_max: 5_000,
            page_bytes_max: 64 * 1024,
            recent_bytes_max: 32 * 1024,
            gather_us: 2_000,
        }
    }
}

/// Keys `ring.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ring {
    /// Receive buffers that all connections of a shard share; a power of two.
    #[schemars(extend("minimum" = 1, "maximum" = 32_768))]
    pub buffers: u16,
    /// Bytes of each receive buffer.
    #[schemars(extend("minimum" = 64, "maximum" = 1_048_576))]
    pub buffer_bytes: u32,
    /// Entries of the submission queue.
    #[schemars(extend("minimum" = 8, "maximum" = 32_768))]
    pub sq_entries: u32,
    /// Entries of the completion queue.
    #[schemars(extend("minimum" = 8, "maximum" = 65_536))]
    pub cq_entries: u32,
    /// The most microseconds for which a shard leaves input to gather between two looks at its sockets: what comes meanwhile
    /// shares a wake-up, which saves CPU under load. It waits as long as four inputs need to come at their present rate, and
    /// not at all if that is longer than this. 0: never.
    #[schemars(extend("maximum" = 100_000))]
    pub gather_us: u32,
}

impl Default for Ring {
    fn default() -> Ring {
        // A megabyte a shard. A buffer is taken only between the arrival of bytes and the turn that reads them, and the ring
        // is used round and round: more buffers would only make more memory resident and more cache cold.
        Ring { buffers: 512, buffer_bytes: 2048, sq_entries: 1024, cq_entries: 16_384, gather_us: 1_000 }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    /// The journal under systemd, `pretty` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Keys `log.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,roomwire=debug`. `RUST_LOG` is
    /// honoured too.
    pub level: String,
    /// How lines look: `auto` is `pretty` on a terminal and `json` elsewhere.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".to_owned(), format: LogFormat::Auto }
    }
}
