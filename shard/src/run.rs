//! One shard's thread, from its pinning to its last turn.

use crate::mesh::ShardMesh;
use roomwire_engine::limits::EngineConfig;
use roomwire_engine::names::ShardId;
use roomwire_engine::shard::Verify;
use std::net::SocketAddr;

/// What a shard is told at its start.
pub struct ShardConfig {
    /// Which one.
    pub shard: ShardId,
    /// The core to pin to.
    pub cpu: usize,
    /// Where to listen (SO_REUSEPORT).
    pub listen: SocketAddr,
    /// The backlog asked of `listen(2)`.
    pub backlog: u32,
    /// Buffers in the ring of provided buffers; a power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// Entries of the submission queue; the completion queue has `cq_entries`.
    pub sq_entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// For the engine.
    pub engine: EngineConfig,
    /// Checks tokens.
    pub verify: Verify,
    /// The shard's ends of the lanes.
    pub mesh: ShardMesh,
}

/// A started shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Where it listens: tells the port where port 0 was asked for.
    pub local_addr: SocketAddr,
    /// Its thread. It ends after the engine has drained, or with a panic, which must end the process.
    pub thread: std::thread::JoinHandle<()>,
}

/// Starts a shard's thread and waits until it listens.
///
/// # Errors
/// One line with cause and cure: the address is in use, the core cannot be pinned to, memlock is too low.
pub fn spawn(config: ShardConfig) -> Result<ShardHandle, std::io::Error> {
    let _ = config.shard;
    todo!()
}
