//! Every limit that an operator may set, and the relations between them. 0 means no limit.

use crate::network::Network;
use std::sync::Arc;

/// Limits, with FACTS' production defaults. Each name is the key `limits.<name>` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
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
    /// The most connections from one IP address (IPv6: one /64) to one node. Crossing it: 503.
    pub connections_per_address_max: u32,
    /// The most connections of this node. Crossing it: 503.
    pub connections_max: u32,
    /// The most bytes that wait to be sent to one connection. Crossing it: ephemeral events go first, then close 4008.
    pub queue_bytes_max: u32,
    /// The most milliseconds that bytes wait to be sent to one connection. Crossing it: close 4008.
    pub queue_ms_max: u32,
    /// The most bytes of a `content`. Crossing it: `too_large`.
    pub content_bytes_max: u32,
    /// The most bytes of a token. Crossing it: "Authentication failed", or `too_large` in `refresh`.
    pub token_bytes_max: u32,
    /// Rooms of more members than this get a `members` count a second in place of `user_joined` and `user_left`.
    pub join_events_members_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_bytes_max: 8 * 1024 + 1024,
            handshake_ms_max: 5_000,
            message_bytes_max: 64 * 1024,
            fragments_max: 1_024,
            assembly_ms_max: 10_000,
            messages_per_second_max: 50,
            messages_burst_max: 100,
            rooms_per_connection_max: 100,
            connections_per_user_max: 100,
            connections_per_address_max: 0,
            connections_max: 0,
            queue_bytes_max: 256 * 1024,
            queue_ms_max: 10_000,
            content_bytes_max: 32 * 1024,
            token_bytes_max: 8 * 1024,
            join_events_members_max: 500,
        }
    }
}

/// What a running engine is told anew. Connections stay as they are; what they do next is judged by it.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The limits, but for `join_events_members_max`: rooms keep the one of the start.
    pub limits: Limits,
    /// As in [`EngineConfig`].
    pub allowed_origins: Arc<[String]>,
    /// As in [`EngineConfig`].
    pub reject_by_http: bool,
}

/// What a shard's engine is told at its start.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The limits. `connections_max` and `connections_per_address_max` are divided among the shards by the engine.
    pub limits: Limits,
    /// Milliseconds without anything received before a ping; as long again before the connection is dropped.
    pub heartbeat_ms: u32,
    /// Milliseconds between a user's last connection and `offline`.
    pub presence_grace_ms: u32,
    /// This node's name.
    pub node: Arc<str>,
    /// How many shards the node has.
    pub shards: u16,
    /// Other nodes share the bus: presence, rosters and ephemeral events go to the bridge as well.
    pub cluster: bool,
    /// Answer each message with itself, and nothing else: for conformance runs.
    pub echo: bool,
    /// Exact origins that may connect; `*` allows all.
    pub allowed_origins: Arc<[String]>,
    /// Refuse a bad token with 401 in place of upgrade and close 1008.
    pub reject_by_http: bool,
    /// Balancers that must say who their client is, by the PROXY protocol (version 2), before its first byte. `None`: clients
    /// come by themselves.
    pub proxies: Option<Arc<[Network]>>,
    /// Seeds everything that is random in an engine: spread of pings and drains, keys of hash maps.
    pub seed: u64,
}
