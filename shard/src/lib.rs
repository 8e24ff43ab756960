//! The shard's thread: a pinned glommio executor that hosts our own io_uring data ring, the mesh, and the turn.
//!
//! Who calls it: `server`, which makes the mesh and starts one shard per core. What it never does: decide anything
//! about rooms or messages (that is `engine`), or know Redis, CQL, tokio, HTTP.

pub mod mesh;
pub mod probe;
pub mod run;
