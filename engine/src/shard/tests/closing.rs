//! Heartbeats, draining, figures: what time does to connections.

use super::world::{World, frame, head};
use crate::mesh::ToShard;
use crate::shard::Ended;
use roomwire_wire::frame::Opcode;

#[test]
fn a_silent_peer_is_pinged_and_then_dropped_and_a_busy_one_never() {
    let mut world = World::new(1);
    let (silent, busy, answers) = (world.connect(0, "ann"), world.connect(0, "bob"), world.connect(0, "cat"));
    for _ in 0..24 {
        world.wait(1_000);
        world.say(busy, r#"{"type":"ping"}"#);
    }
    assert_eq!(world.heard(silent), [""; 0], "no ping before 25 s");
    for _ in 0..7 {
        world.wait(1_000);
        world.say(busy, r#"{"type":"ping"}"#);
    }
    assert_eq!((world.heard(silent), world.heard(answers)), (vec!["ping 0".to_owned()], vec!["ping 0".to_owned()]));
    world.feed(answers, &frame(Opcode::Pong, b""));
    for _ in 0..30 {
        world.wait(1_000);
        world.say(busy, r#"{"type":"ping"}"#);
    }
    assert!(world.clients[silent].gone && !world.clients[answers].gone && !world.clients[busy].gone);
    assert_eq!(world.heard(silent), [""; 0]);
    assert_eq!(world.heard(busy), ["pong"; 61]);
    assert_eq!(world.engines[0].counters.peers_vanished_total, 1);
}

#[test]
fn who_is_pinged_late_after_a_stall_has_the_whole_time_for_the_answer() {
    let mut world = World::new(1);
    let (silent, answers) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.wait(10_000);
    // The shard stands still for more than two heartbeats.
    world.now.mono_us += 70_000_000;
    world.wait(1_000);
    assert_eq!((world.heard(silent), world.heard(answers)), (vec!["ping 0".to_owned()], vec!["ping 0".to_owned()]));
    world.wait(28_000);
    assert!(!world.clients[silent].gone && !world.clients[answers].gone);
    world.feed(answers, &frame(Opcode::Pong, b""));
    world.wait(2_000);
    assert!(world.clients[silent].gone && !world.clients[answers].gone);
}

#[test]
fn first_pings_are_spread_over_the_last_sixth_of_the_heartbeat() {
    let mut world = World::new(1);
    let clients: Vec<usize> = (0..300).map(|n| world.connect(0, &format!("u{n}"))).collect();
    world.wait(24_900);
    let mut pinged = 0;
    for second in 25..31 {
        world.wait(1_000);
        let now = clients.iter().filter(|client| !world.heard(**client).is_empty()).count();
        assert!(now < 120, "{now} pings in second {second}");
        pinged += now;
    }
    assert_eq!(pinged, 300);
}

/// Drains a node of two shards with 60 clients that stay; when each said `reconnect`, and when it was closed.
fn drain(window_ms: u32) -> Vec<(u64, u64)> {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..60).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    let mut times = vec![(0, 0); 60];
    world.all(&ToShard::Drain { window_ms });
    for (n, client) in clients.iter().enumerate() {
        let heard = world.heard(*client);
        let [line] = &heard[..] else { panic!("{heard:?}") };
        times[n].0 = line.strip_prefix("reconnect ").and_then(|ms| ms.parse().ok()).expect("a time");
    }
    for step in 1..=u64::from(window_ms) / 50 {
        world.wait(50);
        for (n, client) in clients.iter().enumerate() {
            match world.heard(*client).first().map(String::as_str) {
                None => {}
                Some("close 1012 Server restarts, connect again") => {
                    times[n].1 = step * 50;
                    world.end(*client, Ended::Eof);
                }
                Some(other) => panic!("{other}"),
            }
        }
    }
    assert_eq!(world.script.drained.len(), 2, "each shard says once that it is drained");
    world.wait(2_000);
    assert_eq!(world.script.drained.len(), 2);
    times
}

#[test]
fn a_drain_gives_each_client_its_own_time_and_closes_it_half_a_second_later() {
    let times = drain(10_000);
    for (said_ms, closed_ms) in &times {
        // One that obeys is away by then, and does not take the close for a fault.
        let later = said_ms + 500..=said_ms + 750;
        assert!(later.contains(closed_ms), "{said_ms} {closed_ms}");
        assert!(*closed_ms <= 9_800, "within the window");
    }
    // Spread evenly: about as many in each third of the nine seconds.
    for third in 0..3 {
        let count = times.iter().filter(|(said, _)| said / 3_001 == third).count();
        assert!((14..=26).contains(&count), "{count} in third {third}");
    }
}

#[test]
fn a_draining_node_still_publishes_but_takes_nobody_new() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(bob, "r");
    let half = world.accept(0, None).expect("room");
    world.feed(half, b"GET / HTTP/1.1\r\n");
    world.mesh(0, ToShard::Drain { window_ms: 30_000 });
    assert_eq!(world.heard(half), ["503"]);
    assert!(world.answer_of(half).contains("Retry-After: "));
    assert!(world.stopped_accepting);
    assert!(world.accept(0, None).is_none());
    world.heard(ann);
    world.heard(bob);
    world.chat(ann, "r", "last words");
    assert_eq!(world.heard(bob), ["chat_message 1 last words"]);
    // A second signal cuts it short.
    world.mesh(0, ToShard::Drain { window_ms: 0 });
    for client in [ann, bob] {
        assert_eq!(world.heard(client), ["close 1012 Server restarts, connect again"]);
    }
    assert!(world.script.drained.is_empty(), "the sockets are still there");
    world.wait(2_500);
    assert_eq!(world.script.drained, [0]);
    assert!(world.script.subscribed["r"].is_empty());
}

#[test]
fn a_node_without_clients_is_drained_at_once() {
    let mut world = World::new(1);
    world.mesh(0, ToShard::Drain { window_ms: 30_000 });
    assert_eq!(world.script.drained, [0]);
}

#[test]
fn messages_queued_before_a_close_are_sent_before_it() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(bob, "r");
    world.heard(bob);
    world.clients[bob].blocked = true;
    world.chat(ann, "r", "one");
    world.chat(ann, "r", "two");
    world.mesh(0, ToShard::Drain { window_ms: 0 });
    world.unblock(bob);
    let heard = world.heard(bob);
    let closed = "close 1012 Server restarts, connect again";
    assert_eq!(heard, ["chat_message 1 one", "chat_message 2 two", closed]);
    assert!(world.clients[bob].shut);
}

#[test]
fn the_handle_of_a_dead_connection_never_reaches_its_successor() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.join(ann, "r");
    world.script.hold_history = true;
    world.say(ann, r#"{"type":"history","roomId":"r"}"#);
    let old = world.clients[ann].id;
    world.end(ann, Ended::Error);
    let bob = world.accept(0, None).expect("room");
    world.feed(bob, head("bob").as_bytes());
    assert_eq!(world.clients[bob].id.slot, old.slot);
    world.answer_held();
    assert_eq!(world.heard(bob), ["connected bob"]);
    world.engines[0].received(world.now, old, &mut frame(Opcode::Text, b"{"));
    world.engines[0].ended(world.now, old, Ended::Eof);
    world.engines[0].closed(old);
    world.run();
    world.say(bob, r#"{"type":"ping"}"#);
    assert_eq!(world.heard(bob), ["pong"]);
}

#[test]
fn figures_are_told_once_a_second() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.join(ann, "r");
    world.chat(ann, "r", "x");
    world.wait(1_100);
    let stats = world.script.stats.take().expect("a second has passed");
    let counters = &stats.counters;
    assert_eq!((counters.connections_now, counters.rooms_now, counters.users_now), (1, 1, 1));
    assert_eq!((counters.messages_received_total, counters.deliveries_total, stats.fanout_us.len()), (2, 1, 1));
    assert!(counters.bytes_sent_total > 0 && counters.queue_bytes_now == 0);
    world.wait(500);
    assert!(world.script.stats.is_none());
}

#[test]
fn the_same_seed_and_the_same_script_give_the_same_bytes() {
    let run = || {
        let mut world = World::new(3);
        let clients: Vec<usize> = (0..30).map(|n| world.connect(n % 3, &format!("u{}", n / 2))).collect();
        let mut log = Vec::new();
        for round in 0..5 {
            for (n, client) in clients.iter().enumerate() {
                world.join(*client, &format!("r{}", (n * 7 + round) % 5));
                world.chat(*client, &format!("r{}", n % 5), "x");
            }
            world.wait(9_000);
            log.extend(clients.iter().flat_map(|client| world.heard(*client)));
        }
        world.all(&ToShard::Drain { window_ms: 5_000 });
        world.wait(6_000);
        log.extend(clients.iter().flat_map(|client| world.heard(*client)));
        log
    };
    assert_eq!(run(), run());
}
