//! Any bytes as a head: no panic, the end is found alike in pieces and at once, an upgrade has a sound answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomwire_wire::handshake::{HeadScanner, encode_accept, parse};

fuzz_target!(|head: &[u8]| {
    let end = HeadScanner::default().find_end(head);
    let mut scanner = HeadScanner::default();
    assert_eq!((0..=head.len()).find_map(|length| scanner.find_end(&head[..length])), end);
    let mut out = Vec::new();
    match parse(&head[..end.unwrap_or(head.len())]) {
        Ok(upgrade) => {
            assert!(matches!(upgrade.path, "/" | "/ws") && upgrade.token.as_deref() != Some(""));
            encode_accept(&upgrade, &mut out);
            assert!(out.starts_with(b"HTTP/1.1 101 "));
        }
        Err(refusal) => {
            refusal.encode(&mut out);
            assert!(out.starts_with(format!("HTTP/1.1 {} ", refusal.status()).as_bytes()));
        }
    }
});
