//! Any bytes as a PROXY header: no panic, and what was said of a part stands, whatever follows.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomwire_wire::handshake::{PROXY_BYTES_MAX, parse_proxy};

fuzz_target!(|data: &[u8]| {
    let whole = parse_proxy(data);
    for cut in 0..data.len().min(PROXY_BYTES_MAX + 1) {
        match parse_proxy(&data[..cut]) {
            Ok(None) => {}
            said => assert_eq!(said, whole),
        }
    }
    if let Ok(Some(header)) = whole {
        assert!(header.length <= data.len().min(PROXY_BYTES_MAX));
        assert_eq!(parse_proxy(&data[..header.length - 1]), Ok(None));
    }
});
