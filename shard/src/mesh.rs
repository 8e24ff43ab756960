//! The lock-free lanes between threads and their doorbells (DESIGN.md, Shape 3 and 6).

use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::ShardId;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// An eventfd that wakes one sleeping thread. Written only on the edge from awake to asleep-with-work.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// Arms the bell before the owner sleeps; the owner then looks at its inbox once more. `false`: do not sleep.
    pub fn arm(&self) {
        todo!()
    }

    /// The owner is awake: nobody needs to ring.
    pub fn disarm(&self) {
        todo!()
    }

    /// Wakes the owner if it sleeps. Never blocks.
    pub fn ring(&self) {
        todo!()
    }

    /// Reads the eventfd empty; for owners that poll it (the bridge).
    pub fn clear(&self) {
        todo!()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A shard's ends of all lanes.
#[derive(Debug)]
pub struct ShardMesh {}

/// The bridge's ends of all lanes. `send` spills in order rather than drop or block; `flush` moves spilled messages
/// on and rings each bell once.
#[derive(Debug)]
pub struct BridgeMesh {}

impl BridgeMesh {
    /// Takes up to `most` messages, fairly over the shards, into `inbox`; how many.
    pub fn receive(&mut self, most: usize, inbox: &mut Vec<ToBridge>) -> usize {
        let _ = (most, inbox);
        todo!()
    }

    /// Queues a message to a shard.
    pub fn send(&mut self, to: ShardId, message: ToShard) {
        let _ = (to, message);
        todo!()
    }

    /// Ends a turn: moves spilled messages on, rings the bells. Whether anything is still spilled.
    pub fn flush(&mut self) -> bool {
        todo!()
    }

    /// Whether any lane to the bridge holds a message.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        todo!()
    }

    /// The bridge's own bell.
    #[must_use]
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        todo!()
    }
}

/// Makes the mesh of a node: one bounded lane for each ordered pair of threads, one bell per thread.
///
/// # Errors
/// From `eventfd(2)`.
pub fn mesh(shards: u16) -> std::io::Result<(Vec<ShardMesh>, BridgeMesh)> {
    let _ = shards;
    todo!()
}
