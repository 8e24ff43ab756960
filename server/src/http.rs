//! The HTTP API on the bridge thread (DESIGN.md, Wire protocol): admin calls behind a bearer key, health, metrics, and
//! in `--dev` the demo page.

use std::net::SocketAddr;
use std::sync::Arc;

/// What the HTTP API is told at its start.
#[derive(Clone)]
pub struct HttpConfig {
    /// Where to listen.
    pub addr: SocketAddr,
    /// The bearer key of `/v1`; without one those routes answer 403.
    pub key: Option<Arc<str>>,
    /// Whether a store or bus in trouble makes the node unready.
    pub ready_requires_backends: bool,
    /// The most bytes of a message's content; 0 means no limit.
    pub content_bytes_max: u32,
    /// This node's name.
    pub node: Arc<str>,
    /// The version that `/version` tells.
    pub version: &'static str,
    /// The demo page and its token mint; only with `--dev`.
    pub dev: Option<Dev>,
}

/// What `--dev` adds.
#[derive(Clone)]
pub struct Dev {
    /// Makes a token for a user name.
    pub mint: Arc<dyn Fn(&str) -> String + Send + Sync>,
}
