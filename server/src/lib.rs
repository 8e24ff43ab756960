//! The `roomwire` binary as a library, so that tests can reach its parts: configuration, authentication, the bridge
//! thread with its store and HTTP API, boot and signals. It knows no client socket: those are `roomwire_shard`'s.

pub mod auth;
pub mod boot;
pub mod bridge;
pub mod bus;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod http;
pub mod logs;
mod memory;
pub mod signals;
pub mod store;
pub mod systemd;
