//! Configuration: the keys ([`types`]), where their values come from, and whether they make sense together.

pub mod secret;
pub mod types;

pub use secret::Secret;
pub use types::Config;
