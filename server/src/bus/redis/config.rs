//! How to reach Redis, resolved from the configuration.

use super::presence::NodeCard;
use crate::config::Secret;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Name or IP address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Reads `host:port`, `host` or `[v6]:port`.
    #[must_use]
    pub fn parse(text: &str, default_port: u16) -> Option<Address> {
        let text = text.trim();
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        (!host.is_empty() && port != 0 && host.bytes().all(valid)).then(|| Address { host: host.to_owned(), port })
    }
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Single(Address),
    /// Whatever the Sentinels call the master.
    Sentinel {
        /// The Sentinels.
        nodes: Vec<Address>,
        /// The name that they know the master by.
        master: String,
        /// The Sentinels' own user and password.
        login: Login,
    },
    /// A Redis Cluster, found through any of these.
    Cluster(Vec<Address>),
}

/// A user and a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// The ACL user; none means `default`.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
}

/// What the bus is told at its start.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where the server is.
    pub servers: Servers,
    /// Who we are there.
    pub login: Login,
    /// The database; 0 on a cluster.
    pub database: i64,
    /// Whether connections are TLS.
    pub tls: bool,
    /// PEM certificates to trust in place of the system's.
    pub ca: Option<Vec<u8>>,
    /// `SPUBLISH` and `SSUBSCRIBE` in place of `PUBLISH` and `SUBSCRIBE`.
    pub is_sharded: bool,
    /// How long a connection, and an answer, may take.
    pub timeout: Duration,
    /// This node as others see it on the bus: node id and boot.
    pub from: Arc<str>,
    /// Who this node is to the others; without it the bus carries rooms only.
    pub card: Option<NodeCard>,
    /// The most bytes of a message's content; 0 means no limit.
    pub content_bytes_max: u32,
}
