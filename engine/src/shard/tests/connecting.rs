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

/// What HAProxy sends before the first byte of a client at 203.0.113.7, with one more field behind the addresses.
const PROXIED: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10\xcb\x00\x71\x07\x0a\x00\x00\x01\x30\x39\x1f\x90\x04\x00\x01\x00";

fn behind_balancers(address_max: u32) -> World {
    World::with(1, |config| {
        config.proxies = Some(Arc::from(["10.0.0.0/8".parse().expect("a network")]));
        config.limits.connections_per_address_max = address_max;
    })
}

#[test]
fn a_balancer_s_word_may_come_in_any_pieces_and_the_client_s_bytes_follow_it() {
    let balancer = "10.0.0.1".parse().ok();
    let bytes = [PROXIED, head("ann").as_bytes(), &frame(Opcode::Text, br#"{"type":"ping"}"#)].concat();
    for cut in 0..=bytes.len() {
        let mut world = behind_balancers(0);
        let client = world.accept(0, balancer).expect("room for one");
        for piece in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|piece| !piece.is_empty()) {
            world.feed(client, piece);
        }
        assert_eq!(world.heard(client), ["connected ann", "pong"], "cut at {cut}");
    }
    let mut world = behind_balancers(0);
    let client = world.accept(0, balancer).expect("room for one");
    for byte in bytes {
        world.feed(client, &[byte]);
    }
    assert_eq!(world.heard(client), ["connected ann", "pong"]);
}

#[test]
fn only_balancers_may_say_who_a_client_is_and_they_must() {
    let mut world = behind_balancers(0);
    assert_eq!(world.accept(0, "203.0.113.7".parse().ok()), None, "a stranger who would speak for others");
    assert_eq!(world.accept(0, None), None);
    let balancer = "10.9.9.9".parse().ok();
    let mute = world.accept(0, balancer).expect("room");
    world.feed(mute, head("ann").as_bytes());
    assert!(world.clients[mute].gone && world.heard(mute).is_empty(), "dropped without an answer");
    let counters = &world.engines[0].counters;
    assert_eq!((counters.proxies_refused_total, counters.handshakes_refused_total), (3, 3));
    let slow = world.accept(0, balancer).expect("room");
    world.feed(slow, &PROXIED[..20]);
    world.wait(5_300);
    assert_eq!(world.heard(slow), ["408"], "the time of the handshake has begun");
}

#[test]
fn limits_by_address_count_the_client_and_not_its_balancer() {
    let mut world = behind_balancers(2);
    let balancer = "10.0.0.1".parse().ok();
    let connect = |world: &mut World, last: u8| {
        let client = world.accept(0, balancer).expect("room");
        let mut proxied = PROXIED.to_vec();
        proxied[19] = last;
        world.feed(client, &[&proxied[..], head("ann").as_bytes()].concat());
        let heard = world.heard(client);
        (client, heard)
    };
    assert_eq!(connect(&mut world, 7).1, ["connected ann"]);
    let (second, heard) = connect(&mut world, 7);
    assert_eq!(heard, ["connected ann"]);
    assert_eq!(connect(&mut world, 7).1, ["503"]);
    assert_eq!(connect(&mut world, 8).1, ["connected ann"]);
    world.end(second, Ended::Eof);
    assert_eq!(connect(&mut world, 7).1, ["connected ann"], "a place has become free");
}

#[test]
fn a_wall_clock_that_jumps_disconnects_nobody_and_delays_nothing() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, &format!("bob;exp={}", START_MS + 3_600_000)));
    for client in [ann, bob] {
        world.join(client, "r");
        world.heard(client);
    }
    let day_ms = 86_400_000;
    for jump in [1, -2, 1_i64] {
        world.now.unix_ms = world.now.unix_ms.saturating_add_signed(jump * day_ms);
        world.chat(ann, "r", "hello");
        let heard = world.heard(bob);
        assert!(heard.iter().any(|line| line.contains("hello")), "{heard:?}");
        world.wait(1_000);
        assert!(!world.heard(ann).iter().chain(&world.heard(bob)).any(|line| line.starts_with("close")));
    }
    // A token's end was reckoned when it came, by how long it had: it ends then, whatever the clock says by now.
    world.wait(20_000);
    world.say(bob, r#"{"type":"ping"}"#);
    assert!(world.heard(bob).contains(&"pong".to_owned()));
}
