//! The keys of `bus.*`: where rooms get their order, and how nodes hear each other.

use super::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum BusKind {
    /// In process, for one node.
    #[default]
    Local,
    /// Redis or Valkey, for one node or several.
    Redis,
}

/// Keys `bus.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bus {
    /// `local`: the node stands alone. `redis`: it shares its rooms with other nodes through Redis 7.0 or later, or Valkey.
    /// `REDIS_HOST` in the environment makes it `redis` too.
    pub kind: BusKind,
    /// Whether each batch of messages costs one more read of the store, which closes the gap that a split Redis leaves: without it,
    /// messages acknowledged by an old master that was cut off, while a new one served other nodes, can be lost.
    pub strict: bool,
    /// Redis or Valkey, with `bus.kind = "redis"`.
    pub redis: Redis,
}

/// Keys `bus.redis.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// Where Redis is: `redis://HOST:PORT`, or `rediss://` for TLS; `redis://USER:PASSWORD@HOST:PORT/DATABASE` in full. `REDIS_HOST`
    /// and `REDIS_PORT` in the environment set host and port. Never shown, since it may hold a password.
    pub url: Option<Secret>,
    /// The ACL user, where the URL names none. Unset: `default`.
    pub user: Option<String>,
    /// The password, where the URL has none.
    pub password: Option<Secret>,
    /// A file of PEM certificates to trust with TLS, in place of the system's.
    pub ca_file: Option<String>,
    /// Milliseconds that a connection or an answer of Redis may take.
    #[schemars(extend("minimum" = 100, "maximum" = 60_000))]
    pub timeout_ms: u32,
    /// Nodes of a Redis Cluster, each `HOST:PORT`; one that answers is enough to find the others. `bus.redis.url` then gives user
    /// and password only.
    pub cluster: Vec<String>,
    /// With `bus.redis.cluster`: a room's events pass only through the node that holds the room (sharded pub/sub, channel
    /// `room:{ID}`), not through all. It scales, and other software must use the same channels; all nodes must agree on it.
    pub sharded: bool,
    /// Redis Sentinel, which names the master: `bus.redis.url` then gives user, password and database only.
    pub sentinel: Sentinel,
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            url: None,
            user: None,
            password: None,
            ca_file: None,
            timeout_ms: 2_000,
            cluster: Vec::new(),
            sharded: false,
            sentinel: Sentinel::default(),
        }
    }
}

/// Keys `bus.redis.sentinel.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sentinel {
    /// The Sentinels, each `HOST:PORT`. Set: the master is whatever they name, and failovers are followed.
    pub nodes: Vec<String>,
    /// The name under which the Sentinels watch the master.
    pub master_name: String,
    /// The Sentinels' own ACL user.
    pub user: Option<String>,
    /// The Sentinels' own password.
    pub password: Option<Secret>,
}

impl Default for Sentinel {
    fn default() -> Sentinel {
        Sentinel { nodes: Vec::new(), master_name: "mymaster".to_owned(), user: None, password: None }
    }
}
