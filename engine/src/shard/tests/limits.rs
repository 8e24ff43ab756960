//! What a client may cost: rates, queues, rooms, connections; what crossing a limit does and counts.

use super::world::{World, frame};
use crate::limits::{Limits, Reload};
use crate::mesh::ToShard;
use crate::shard::Ended;
use crate::stats::LIMIT_NAMES;
use roomwire_wire::close::CloseCode;
use roomwire_wire::frame::Opcode;
use std::sync::Arc;

fn crossed(world: &World, name: &str) -> u64 {
    let index = LIMIT_NAMES.iter().position(|known| *known == name).expect("a known limit");
    world.engines.iter().map(|engine| engine.counters.limits_crossed_total[index]).sum()
}

#[test]
fn bad_messages_are_answered_with_their_code_and_the_connection_lives() {
    let mut world = World::with(1, |config| config.limits.content_bytes_max = 10);
    let ann = world.connect(0, "ann");
    let cases = [
        ("{", "error bad_json"),
        (r#"{"type":"dance"}"#, "error unknown_type"),
        (r#"{"type":"join_room","roomId":"a b"}"#, "error bad_request"),
        (r#"{"type":"chat_message","roomId":"r","content":7,"clientId":"c"}"#, "error bad_request c"),
        (r#"{"type":"chat_message","roomId":"r","content":"12345678901","clientId":"d"}"#, "error too_large d"),
        (r#"{"type":"ping"}"#, "pong"),
    ];
    for (text, answer) in cases {
        world.say(ann, text);
        assert_eq!(world.heard(ann), [answer], "{text}");
    }
    assert_eq!(crossed(&world, "content_bytes_max"), 1);
}

#[test]
fn too_many_messages_are_refused_with_their_client_id_and_pass_again_later() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    for n in 0..102 {
        world.say(ann, &format!(r#"{{"type":"chat_message","roomId":"r","content":"x","clientId":"c{n}"}}"#));
    }
    let heard = world.heard(ann);
    assert_eq!(heard.iter().filter(|line| line.starts_with("ack")).count(), 100);
    assert_eq!(heard[100..], ["error rate_limited c100", "error rate_limited c101"]);
    assert_eq!((crossed(&world, "messages_per_second_max"), crossed(&world, "messages_burst_max")), (2, 1));
    world.wait(1_000);
    world.say(ann, r#"{"type":"ping"}"#);
    assert_eq!(world.heard(ann), ["pong"]);
}

#[test]
fn three_times_the_rate_held_for_ten_seconds_closes() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let mut closed_after_ms = 0;
    for step in 0..300 {
        // Eight messages in 50 ms are 160 a second, where 50 are allowed.
        for _ in 0..8 {
            world.say(ann, r#"{"type":"ping"}"#);
        }
        world.wait(50);
        if world.heard(ann).contains(&"close 4029 Too many messages".to_owned()) {
            closed_after_ms = step * 50;
            break;
        }
    }
    assert!((9_000..=11_000).contains(&closed_after_ms), "{closed_after_ms}");
}

#[test]
fn pings_beyond_ten_a_second_are_answered_by_the_newest_and_a_flood_of_them_closes() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let pings: Vec<u8> = (0..30).flat_map(|n| frame(Opcode::Ping, format!("{n}").as_bytes())).collect();
    world.feed(ann, &pings);
    let at_once: Vec<String> = (0..10).map(|n| format!("pong {n}")).collect();
    assert_eq!(world.heard(ann), at_once);
    world.wait(300);
    assert_eq!(world.heard(ann), ["pong 29"]);
    for _ in 0..51 {
        world.feed(ann, &pings);
    }
    assert_eq!(world.heard(ann).last().map(String::as_str), Some("close 4029 Too many messages"));
}

#[test]
fn a_message_must_arrive_in_time_whatever_pings_come_between() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let text = frame(Opcode::Text, br#"{"type":"ping"}"#);
    world.feed(ann, &text[..9]);
    world.wait(9_000);
    world.feed(ann, &text[9..]);
    assert_eq!(world.heard(ann), ["pong"]);
    // A first fragment, then nothing but pings.
    world.feed(ann, &[0x01, 0x81, 0, 0, 0, 0, b'x']);
    for _ in 0..9 {
        world.wait(1_000);
        world.feed(ann, &frame(Opcode::Ping, b""));
    }
    assert_eq!(world.heard(ann).len(), 9);
    world.wait(1_400);
    let heard = world.heard(ann);
    assert!(heard.last().is_some_and(|line| line.starts_with("close 1008")), "{heard:?}");
    assert_eq!(crossed(&world, "assembly_ms_max"), 1);
}

#[test]
fn a_slow_reader_first_loses_events_and_is_then_closed_while_the_others_hear_all() {
    let mut world = World::with(1, |config| {
        config.limits.queue_bytes_max = 1_000;
        config.limits.messages_per_second_max = 0;
    });
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(ann, "r");
    world.join(bob, "r");
    world.heard(bob);
    world.clients[bob].blocked = true;
    world.chat(ann, "r", "in flight");
    for _ in 0..20 {
        world.say(ann, r#"{"type":"typing","roomId":"r"}"#);
    }
    let shed_before = world.engines[0].counters.events_shed_total;
    assert!(shed_before > 0, "what did not fit was shed at once");
    for n in 0..8 {
        world.chat(ann, "r", &n.to_string());
    }
    assert_eq!(world.engines[0].counters.closes_total[CloseCode::TooSlow.index()], 0, "events made room for messages");
    assert!(world.engines[0].counters.events_shed_total > shed_before);
    for n in 8..20 {
        world.chat(ann, "r", &n.to_string());
    }
    assert_eq!(world.engines[0].counters.closes_total[CloseCode::TooSlow.index()], 1);
    world.unblock(bob);
    let heard = world.heard(bob);
    assert_eq!(heard, ["chat_message 1 in flight", "close 4008 Reading too slowly, connect again and resume"]);
    assert!(world.clients[bob].shut);
    let chats = world.heard(ann).iter().filter(|line| line.starts_with("chat_message")).count();
    assert_eq!(chats, 21);
    assert!(crossed(&world, "queue_bytes_max") > 0);
    assert_eq!(world.engines[0].counters.queue_bytes_now, 0);
}

#[test]
fn a_slow_reader_that_takes_nothing_at_all_is_dropped_after_the_linger() {
    let mut world = World::with(1, |config| config.limits.queue_ms_max = 3_000);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(bob, "r");
    world.clients[bob].blocked = true;
    world.chat(ann, "r", "never taken");
    world.wait(2_900);
    assert!(world.engines[0].is_open(world.clients[bob].id));
    world.wait(900);
    assert!(!world.engines[0].is_open(world.clients[bob].id) && !world.clients[bob].gone);
    world.wait(2_200);
    assert!(world.clients[bob].gone);
    assert_eq!((crossed(&world, "queue_ms_max"), world.engines[0].counters.queue_bytes_now), (1, 0));
    assert_eq!(world.engines[0].tables()[..1], [1]);
}

#[test]
fn a_page_larger_than_the_queue_may_hold_does_not_close_its_reader() {
    let mut world = World::with(1, |config| config.limits.queue_bytes_max = 2_000);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.script.rooms.insert("r".to_owned(), vec![String::from("x"); 900]);
    world.heard(bob);
    world.clients[bob].blocked = true;
    world.say(bob, r#"{"type":"ping"}"#);
    world.say(bob, r#"{"type":"join_room","roomId":"r","since":0}"#);
    world.chat(ann, "r", "behind the page");
    assert!(world.engines[0].counters.queue_bytes_now > 6_000);
    world.unblock(bob);
    let heard = world.heard(bob);
    assert_eq!(heard, ["pong", "user_joined bob", "room_history 1..900", "chat_message 901 behind the page"]);
}

#[test]
fn the_next_page_is_asked_for_when_the_last_has_left_whatever_waits_behind_it() {
    let mut world = World::with(1, |config| config.limits.queue_bytes_max = 2_000);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.script.rooms.insert("r".to_owned(), vec![String::from("x"); 2_500]);
    world.script.page_messages = 2_000;
    world.clients[bob].blocked = true;
    world.say(bob, r#"{"type":"join_room","roomId":"r","since":0}"#);
    world.say(ann, r#"{"type":"typing","roomId":"r"}"#);
    world.pass_one(bob);
    assert_eq!((world.heard(bob), world.script.asks.len()), (vec!["user_joined bob".to_owned()], 1));
    // The page of more than 16 KiB leaves alone.
    world.pass_one(bob);
    assert_eq!((world.heard(bob), world.script.asks.len()), (vec!["room_history 1..2000 more".to_owned()], 2));
    world.chat(ann, "r", "x");
    world.unblock(bob);
    assert_eq!(world.heard(bob), ["typing ann", "room_history 2001..2500", "chat_message 2501 x"]);
}

#[test]
fn frames_that_wait_leave_together_up_to_16_kib() {
    let mut world = World::with(1, |config| config.limits.messages_per_second_max = 0);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(bob, "r");
    world.heard(bob);
    world.clients[bob].blocked = true;
    for n in 0..300 {
        world.chat(ann, "r", &n.to_string());
    }
    let before = world.clients[bob].chunks;
    world.unblock(bob);
    assert_eq!(world.heard(bob).len(), 300);
    // 300 frames of some 70 bytes: one was in flight, the others fill two chunks.
    assert_eq!(world.clients[bob].chunks - before, 3);
}

#[test]
fn a_connection_is_in_so_many_rooms_and_waits_for_so_much_history() {
    let mut world = World::with(1, |config| config.limits.messages_per_second_max = 0);
    let ann = world.connect(0, "ann");
    for n in 0..101 {
        world.join(ann, &format!("r{n}"));
    }
    assert_eq!(world.errors(ann), ["rate_limited"]);
    world.join(ann, "r5");
    world.say(ann, r#"{"type":"leave_room","roomId":"r7"}"#);
    world.join(ann, "r100");
    assert_eq!(world.errors(ann), [""; 0]);
    assert_eq!(crossed(&world, "rooms_per_connection_max"), 1);
    world.script.hold_history = true;
    for _ in 0..130 {
        world.say(ann, r#"{"type":"history","roomId":"r1"}"#);
    }
    assert_eq!(world.errors(ann), ["rate_limited"]);
    assert_eq!(world.script.held.len(), 1);
}

#[test]
fn a_shard_takes_its_part_of_the_connections_and_of_an_address() {
    let mut world = World::with(2, |config| {
        config.limits.connections_max = 6;
        config.limits.connections_per_address_max = 4;
    });
    let address = "10.0.0.1".parse().ok();
    let first = world.accept(0, address).expect("room");
    world.accept(0, address).expect("room");
    assert!(world.accept(0, address).is_none());
    assert!(world.engines[0].refusal().starts_with(b"HTTP/1.1 503 "));
    world.accept(0, None).expect("room");
    assert!(world.accept(0, None).is_none());
    assert_eq!((crossed(&world, "connections_per_address_max"), crossed(&world, "connections_max")), (1, 1));
    world.end(first, Ended::Eof);
    assert!(world.accept(0, address).is_some());
}

#[test]
fn zero_switches_a_limit_off() {
    let mut world = World::with(1, |config| {
        let join_events_members_max = 0;
        config.limits = crate::limits::Limits {
            header_bytes_max: 0,
            handshake_ms_max: 0,
            message_bytes_max: 0,
            fragments_max: 0,
            assembly_ms_max: 0,
            messages_per_second_max: 0,
            messages_burst_max: 0,
            rooms_per_connection_max: 0,
            connections_per_user_max: 0,
            connections_per_address_max: 0,
            connections_max: 0,
            queue_bytes_max: 0,
            queue_ms_max: 0,
            content_bytes_max: 0,
            token_bytes_max: 0,
            join_events_members_max,
        };
        config.heartbeat_ms = 0;
    });
    let waiting = world.accept(0, None).expect("room");
    let ann = world.connect(0, "ann");
    for n in 0..300 {
        world.join(ann, &format!("r{n}"));
    }
    assert_eq!(world.errors(ann), [""; 0]);
    world.chat(ann, "r1", &"x".repeat(100_000));
    assert_eq!(world.heard(ann).len(), 1);
    world.feed(ann, &[0x01, 0x81, 0, 0, 0, 0, b'x']);
    world.clients[ann].blocked = true;
    world.wait(120_000);
    assert!(world.engines[0].is_open(world.clients[ann].id) && !world.clients[waiting].gone);
    assert_eq!(world.heard(ann), [""; 0]);
}

#[test]
fn limits_of_a_reload_hold_at_once_and_nobody_is_closed_by_it() {
    let mut world = World::with(1, |config| config.limits.join_events_members_max = 3);
    let ann = world.connect(0, "ann");
    world.say(ann, r#"{"type":"chat_message","roomId":"r","content":"long enough","clientId":"a"}"#);
    assert!(world.heard(ann)[0].starts_with("ack a"));
    let limits = Limits {
        content_bytes_max: 5,
        connections_max: 1,
        connections_per_address_max: 1,
        messages_burst_max: 2,
        ..Limits::default()
    };
    let reload = Reload { limits, allowed_origins: Arc::from([String::from("https://a")]), reject_by_http: true };
    world.engines[0].mesh(world.now, ToShard::Reload(Arc::new(reload)));
    world.say(ann, r#"{"type":"chat_message","roomId":"r","content":"long enough","clientId":"b"}"#);
    assert_eq!(world.heard(ann), ["error too_large b"]);
    assert_eq!(world.accept(0, None), None, "the one place is taken, by a connection of before");
    for client_id in ["c", "d", "e"] {
        world.say(ann, &format!(r#"{{"type":"chat_message","roomId":"r","content":"x","clientId":"{client_id}"}}"#));
    }
    assert!(world.heard(ann).contains(&"error rate_limited e".to_owned()));
    world.wait(5_000);
    assert!(!world.heard(ann).iter().any(|line| line.starts_with("close")));
}
