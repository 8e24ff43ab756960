//! Configuration: the keys ([`types`]), where their values come from ([`layers`]), and whether they make sense together
//! ([`settings`]).

mod bus;
mod cql;
pub mod keys;
pub mod layers;
pub mod secret;
pub mod settings;
pub mod show;
pub mod types;

pub use layers::{Layers, Problems, Sources};
pub use secret::Secret;
pub use settings::{Host, Settings};
pub use types::Config;
