//! Bytes to frames to messages, and back.
//!
//! What lives here: the HTTP/1.1 upgrade head ([`handshake`]), RFC 6455 frames ([`frame`]), the JSON messages of
//! protocol v1 ([`message`]), names that travel on the wire ([`id`]) and the one table of close codes ([`close`]).
//! Who calls it: `engine` for every byte of a connection; `bench` and `sim` as clients.
//! What it never does: I/O, reading a clock, keeping memory for a connection that is between two frames.

pub mod close;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod message;

/// The same cases in every run; the fuzz targets look for new ones.
#[cfg(test)]
fn seeded() -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases: 512,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    }
}
