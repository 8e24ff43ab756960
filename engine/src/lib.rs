//! What one shard decides ([`Engine`]), and what the node's bridge decides ([`bridge::Bridge`]): pure state machines.
//!
//! Events and the time go in, effects come out. Three drivers run them: the io_uring driver and the bridge thread in
//! production, the simulator, and the unit tests.
//! What it never does: I/O, reading a clock, starting a thread, drawing randomness that no seed gave.

pub mod bridge;
pub mod bus;
pub mod cluster;
pub mod limits;
pub mod mesh;
pub mod names;
pub mod network;
pub mod shard;
pub mod stats;
pub mod store;

pub use shard::Engine;

/// One reading of the clocks, taken once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Microseconds of CLOCK_MONOTONIC: the same on all threads of a node.
    pub mono_us: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

impl Now {
    /// Milliseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn mono_ms(self) -> u64 {
        self.mono_us / 1000
    }
}
