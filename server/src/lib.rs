//! The `roomwire` binary as a library, so that tests can reach its parts: configuration, authentication, the bridge
//! thread with its store and HTTP API, boot and signals. It knows no client socket: those are `roomwire_shard`'s.

pub mod auth;
pub mod bridge;
pub mod config;
pub mod http;
pub mod store;
