//! Whole requests, good and bad.

use super::*;

/// The request of RFC 6455 section 1.3, for `target`, with further lines.
fn request(target: &str, lines: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
    )
}

#[test]
fn the_example_of_rfc_6455_section_1_3() {
    let head = request("/ws", "Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n");
    let upgrade = parse(head.as_bytes()).expect("a good request");
    assert_eq!(upgrade.path, "/ws");
    assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(upgrade.origin, Some("http://example.com"));
    assert_eq!(upgrade.token, None);
    assert!(!upgrade.subprotocol);
    let mut out = Vec::new();
    encode_accept(&upgrade, &mut out);
    assert_eq!(
        String::from_utf8(out).expect("text"),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
}
