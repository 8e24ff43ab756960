//! The handshake, tokens, the close handshake.

use super::world::{START_MS, World, frame, head};
use crate::shard::Ended;
use roomwire_wire::frame::Opcode;
use std::sync::Arc;

#[test]
fn a_head_may_come_in_any_pieces_and_frames_right_behind_it_are_not_lost() {
    let mut bytes = head("ann").into_bytes();
    bytes.extend(frame(Opcode::Text, br#"{"type":"ping"}"#));
    for cut in 1..bytes.len() {
        let mut world = World::new(1);
        let client = world.accept(0, None).expect("room for one");
        world.feed(client, &bytes[..cut]);
        world.feed(client, &bytes[cut..]);
        assert_eq!(world.heard(client), ["connected ann", "pong"], "cut at {cut}");
    }
    let mut world = World::new(1);
    let client = world.accept(0, None).expect("room for one");
    for byte in bytes {
        world.feed(client, &[byte]);
    }
    assert_eq!(world.heard(client), ["connected ann", "pong"]);
}

#[test]
fn a_bad_token_is_told_by_a_close_frame_or_by_401() {
    let mut world = World::new(1);
    let client = world.accept(0, None).expect("room for one");
    world.feed(client, head("bad").as_bytes());
    assert_eq!(world.heard(client), ["close 1008 Authentication failed"]);
    assert!(world.clients[client].shut && !world.clients[client].gone);
    world.wait(2_500);
    assert!(world.clients[client].gone, "the peer does not close: it is dropped after two seconds");
    assert_eq!(world.engines[0].counters.auth_failures_total, 1);

    let mut world = World::with(1, |config| config.reject_by_http = true);
    let client = world.accept(0, None).expect("room for one");
    world.feed(client, head("bad").as_bytes());
    assert_eq!(world.heard(client), ["401"]);
    assert!(world.clients[client].shut);
}

#[test]
fn heads_that_are_too_large_too_slow_or_not_allowed_are_refused() {
    let mut world = World::with(1, |config| {
        config.limits.header_bytes_max = 400;
        config.limits.token_bytes_max = 20;
        config.allowed_origins = Arc::from([String::from("https://good.example")]);
    });
    let large = world.accept(0, None).expect("room");
    world.feed(large, format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(400)).as_bytes());
    assert_eq!(world.heard(large), ["431"]);

    let slow = world.accept(0, None).expect("room");
    world.feed(slow, b"GET / HT");
    world.wait(4_900);
    assert_eq!(world.heard(slow), [""; 0]);
    world.wait(400);
    assert_eq!(world.heard(slow), ["408"]);

    let origin = |origin: &str| head("ann").replace("Host: a\r\n", &format!("Host: a\r\nOrigin: {origin}\r\n"));
    let stranger = world.accept(0, None).expect("room");
    world.feed(stranger, origin("https://bad.example").as_bytes());
    assert_eq!(world.heard(stranger), ["403"]);
    let friend = world.accept(0, None).expect("room");
    world.feed(friend, origin("https://good.example").as_bytes());
    assert_eq!(world.heard(friend), ["connected ann"]);

    let long = world.accept(0, None).expect("room");
    world.feed(long, head(&"t".repeat(21)).as_bytes());
    assert_eq!(world.heard(long), ["close 1008 Authentication failed"]);

    let crossed = |name| world.engines[0].counters.limits_crossed_total[limit_index(name)];
    assert_eq!(["header_bytes_max", "handshake_ms_max", "token_bytes_max"].map(crossed), [1, 1, 1]);
}

fn limit_index(name: &str) -> usize {
    crate::stats::LIMIT_NAMES.iter().position(|known| *known == name).expect("a known limit")
}

#[test]
fn the_close_handshake_echoes_the_code_and_ends_the_connection() {
    let mut world = World::new(1);
    for (sent, heard) in [(&[][..], "close"), (&[0x03, 0xe8], "close 1000 "), (&[0x0f, 0xa0], "close 4000 ")] {
        let client = world.connect(0, "ann");
        world.join(client, "r");
        world.heard(client);
        world.feed(client, &frame(Opcode::Close, sent));
        assert_eq!(world.heard(client), [heard]);
        assert!(world.clients[client].shut && !world.clients[client].gone);
        // What comes behind a close frame is discarded.
        world.say(client, r#"{"type":"ping"}"#);
        assert_eq!(world.heard(client), [""; 0]);
        assert!(world.script.subscribed["r"].is_empty(), "it left its room");
        world.end(client, Ended::Eof);
    }
    assert_eq!((world.engines[0].counters.peers_vanished_total, world.engines[0].counters.connections_now), (0, 0));
}

#[test]
fn broken_frames_and_binary_ones_close_with_their_code() {
    let unmasked = [0x81, 0x02, b'h', b'i'].to_vec();
    let big = [0x81, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 1, 2, 3, 4].to_vec();
    let cases = [
        (frame(Opcode::Binary, b"x"), "close 1003"),
        (unmasked, "close 1002"),
        (big, "close 1009"),
        (frame(Opcode::Text, &[0xff]), "close 1007"),
    ];
    for (bytes, close) in cases {
        let mut world = World::new(1);
        let client = world.connect(0, "ann");
        world.feed(client, &bytes);
        let heard = world.heard(client);
        assert!(heard.len() == 1 && heard[0].starts_with(close), "{heard:?}");
    }
}

#[test]
fn echo_mode_gives_back_text_and_binary_and_nothing_else() {
    let mut world = World::with(1, |config| config.echo = true);
    let client = world.accept(0, None).expect("room for one");
    world.feed(client, head("ann").as_bytes());
    world.feed(client, &frame(Opcode::Text, b"hello"));
    world.feed(client, &frame(Opcode::Binary, &[0, 1]));
    world.feed(client, &frame(Opcode::Ping, b"p"));
    assert_eq!(world.heard(client), ["text hello", "binary 2", "pong p"]);
}

#[test]
fn a_token_that_expires_closes_the_connection_unless_it_is_refreshed() {
    let mut world = World::new(1);
    let token = |user: &str, ms: u64| format!("{user};exp={}", START_MS + ms);
    let ann = world.connect(0, &token("ann", 5_000));
    let bob = world.connect(0, &token("bob", 5_000));
    let refresh = |token: &str| format!(r#"{{"type":"refresh","token":"{token}"}}"#);
    world.say(ann, &refresh(&token("ann", 9_000)));
    assert_eq!(world.heard(ann), [format!("refreshed {}", START_MS + 9_000)]);
    world.say(bob, &refresh(&token("ann", 9_000)));
    world.say(bob, &refresh("bad"));
    assert_eq!(world.heard(bob), ["error forbidden", "error forbidden"]);
    world.wait(4_900);
    assert_eq!(world.heard(bob), [""; 0]);
    world.wait(300);
    assert_eq!(world.heard(bob), ["close 4001 Token expired"]);
    world.wait(3_600);
    assert_eq!(world.heard(ann), [""; 0]);
    world.wait(300);
    assert_eq!(world.heard(ann), ["close 4001 Token expired"]);
}

#[test]
fn every_connection_has_its_own_id() {
    let mut world = World::new(2);
    let mut engine_ids = std::collections::BTreeSet::new();
    for shard in [0, 1, 0, 1] {
        let client = world.accept(shard, None).expect("room");
        world.clients[client].blocked = true;
        world.feed(client, head("ann").as_bytes());
        world.unblock(client);
        let raw = world.raw_connected(client);
        assert!(engine_ids.insert(raw));
        world.end(client, Ended::Eof);
    }
}
