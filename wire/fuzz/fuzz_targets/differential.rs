//! Any bytes through our decoder and tungstenite's: they agree, apart from the differences listed in `peer`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomwire_wire::frame::Role;

#[path = "../../tests/peer/mod.rs"]
mod peer;

fuzz_target!(|data: &[u8]| {
    let Some((&first, stream)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    peer::compare(stream, usize::from(first >> 1) + 1, role);
});
