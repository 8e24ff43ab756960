//! The shard's thread: a pinned glommio executor that hosts our own io_uring data ring, the mesh, and the turn.
//!
//! Read `run` (the thread's life), then `turn` (what it does), then `accept`, `receive`, and what they stand on:
//! `ring`, `buffers`, `sockets`, `outbox`, `mesh`.
//!
//! Who calls it: `server`, which makes the mesh and starts one shard per core. What it never does: decide anything
//! about rooms or messages (that is `engine`), or know Redis, CQL, tokio, HTTP.

mod accept;
mod buffers;
pub mod clock;
mod doorbell;
mod gather;
mod listener;
pub mod mesh;
mod outbox;
pub mod probe;
mod receive;
mod ring;
pub mod run;
mod sends;
mod sockets;
mod turn;
