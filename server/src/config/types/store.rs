//! The keys of `store.*`: where messages are kept.

use super::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When the embedded store calls fsync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Fsync {
    /// Before each group of messages is acknowledged.
    #[default]
    Always,
    /// Every `store.fsync_interval_ms`.
    Interval,
}

/// Where messages are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum StoreKind {
    /// In the data directory of this node.
    #[default]
    Embedded,
    /// In Cassandra or ScyllaDB.
    Cql,
}

/// Keys `store.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Where messages are kept: `embedded`, in `data.dir`, for a node that stands alone; `cql`, in Cassandra or ScyllaDB,
    /// for a cluster. The keys `fsync` to `cache_bytes`, apart from `retention_days`, are for the embedded store.
    pub kind: StoreKind,
    /// `always`: a message is on disk before anyone sees it or it is acknowledged. `interval`: it survives the end of the
    /// process at any moment, but a power loss may take the last `store.fsync_interval_ms`.
    pub fsync: Fsync,
    /// Milliseconds between two fsyncs with `store.fsync = "interval"`.
    #[schemars(extend("minimum" = 1, "maximum" = 60_000))]
    pub fsync_interval_ms: u32,
    /// Days after which a message is removed; 0 keeps them for ever. With `cql` at most 7,300: it is each row's TTL.
    #[schemars(extend("maximum" = 36_500))]
    pub retention_days: u32,
    /// The most messages kept of one room, the oldest go first; 0 keeps all.
    pub messages_per_room_max: u64,
    /// Bytes that must stay free on the disk: below, publishes are refused while readers go on. 0 switches the guard off.
    pub reserve_bytes: u64,
    /// Bytes of memory that the store may use as cache.
    #[schemars(extend("minimum" = 1_048_576))]
    pub cache_bytes: u64,
    /// Cassandra or ScyllaDB, with `store.kind = "cql"`. `roomwire store migrate` makes keyspace and tables.
    pub cql: Cql,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            kind: StoreKind::Embedded,
            cql: Cql::default(),
            fsync: Fsync::Always,
            fsync_interval_ms: 100,
            retention_days: 0,
            messages_per_room_max: 0,
            reserve_bytes: 256 * 1024 * 1024,
            cache_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Keys `store.cql.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cql {
    /// Some nodes of the cluster, each `host` or `host:port` (9042); the others are found through them.
    pub nodes: Vec<String>,
    /// The keyspace: lower case letters, digits and `_`.
    pub keyspace: String,
    /// The data centre whose replicas are asked, for clusters of several. Unset: any.
    pub dc: Option<String>,
    /// The user, where the cluster asks for one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A PEM file with the certificate authority of the cluster's nodes. If set, connections use TLS.
    pub ca_file: Option<String>,
    /// The most statements under way at once; others wait their turn. At most a quarter as many rooms are begun anew at
    /// once after a loss of Redis.
    #[schemars(extend("minimum" = 1, "maximum" = 4_096))]
    pub in_flight_max: u32,
    /// The most requests that wait for the cluster; beyond, publishers are told `unavailable`.
    #[schemars(extend("minimum" = 64))]
    pub queue_max: u32,
    /// Milliseconds that an append may take before its outcome counts as unknown; a read of several statements, or a
    /// conditional write, may take twice as long. Keep it below half of `bridge.publish_ms_max`.
    #[schemars(extend("minimum" = 50, "maximum" = 60_000))]
    pub timeout_ms: u32,
    /// Milliseconds after which a read is sent to a second replica too; 0: never.
    #[schemars(extend("maximum" = 60_000))]
    pub speculate_ms: u32,
}

impl Default for Cql {
    fn default() -> Cql {
        Cql {
            nodes: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "roomwire".to_owned(),
            dc: None,
            user: None,
            password: None,
            ca_file: None,
            in_flight_max: 64,
            queue_max: 16_384,
            timeout_ms: 2_000,
            speculate_ms: 100,
        }
    }
}
