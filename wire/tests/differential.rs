//! Our decoder and tungstenite's must agree on any stream; the exceptions are listed in `peer`.

mod peer;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use roomwire_wire::frame::{Opcode, Role, encode, encode_masked};

/// A frame that is mostly right: any first byte among those that mean something, any payload, sometimes text.
fn frame(role: Role) -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81u8, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a]),
        1 => Just(0x88u8),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        3 => "\\PC{0,20}".prop_map(String::into_bytes),
        2 => vec(any::<u8>(), 0..8),
        1 => (900u16..1100, "\\PC{0,10}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        1 => (0usize..5000).prop_map(|length| vec![b'x'; length]),
    ];
    (first, payload, any::<[u8; 4]>()).prop_map(move |(first, payload, mask)| {
        let mut out = Vec::new();
        match role {
            Role::Server => encode_masked(Opcode::Binary, &payload, mask, &mut out),
            Role::Client => encode(Opcode::Binary, &payload, &mut out),
        }
        out[0] = first;
        out
    })
}

proptest! {
    // The same cases each time; the fuzz target `differential` looks for new ones.
    #![proptest_config(ProptestConfig {
        cases: 1500,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn frames_of_a_client(
        frames in vec(frame(Role::Server), 0..8),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        piece in 1usize..64,
    ) {
        peer::compare(&damaged(&frames, damage), piece, Role::Server);
    }

    #[test]
    fn frames_of_a_server(
        frames in vec(frame(Role::Client), 0..8),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        piece in 1usize..64,
    ) {
        peer::compare(&damaged(&frames, damage), piece, Role::Client);
    }
}

/// The frames as one stream, in some cases with one byte changed.
fn damaged(frames: &[Vec<u8>], damage: Option<(prop::sample::Index, u8)>) -> Vec<u8> {
    let mut stream = frames.concat();
    if let (Some((index, byte)), false) = (damage, stream.is_empty()) {
        let index = index.index(stream.len());
        stream[index] = byte;
    }
    stream
}

#[test]
fn what_the_fuzzer_found_is_a_listed_difference() {
    // A pong whose length 0 stands in the 16-bit form.
    peer::compare(b"\x8a\xfe\x00\x00\x20\x00\x02\x00\x00", 4, Role::Server);
}
