//! Any bytes, read whole and read in pieces: no panic, and the same items and verdict both ways.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Role};

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 4096, fragments_max: 16 };

/// The items as text, the violation last if there was one.
fn decode<'p>(role: Role, pieces: impl Iterator<Item = &'p [u8]>) -> Vec<String> {
    let mut decoder = Decoder::new(role);
    let mut items = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut input = Input::new(&mut bytes);
        loop {
            match decoder.next(&mut input, &LIMITS) {
                Ok(Some(item)) => items.push(format!("{item:?}")),
                Ok(None) => break,
                Err(violation) => {
                    items.push(format!("{violation:?}"));
                    return items;
                }
            }
        }
        assert!(input.is_empty());
    }
    items
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, stream)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let piece = usize::from(first >> 1) + 1;
    assert_eq!(decode(role, std::iter::once(stream)), decode(role, stream.chunks(piece)));
});
