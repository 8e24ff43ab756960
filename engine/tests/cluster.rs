//! Several nodes, each with its engines and its bridge, over one `MemoryCluster`: who is where, through deaths, pauses
//! and a bus that goes away or forgets.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod nodes;

use nodes::{World, joined, left};
use roomwire_engine::bridge::{Answer, Call};
use roomwire_engine::cluster::memory::MemoryCluster;
use roomwire_engine::names::{RoomId, UserId};

fn watch(users: &[&str]) -> String {
    serde_json::json!({ "type": "watch_presence", "userIds": users }).to_string()
}

#[test]
fn a_user_is_online_from_the_first_connection_on_any_node_to_the_last_with_grace() {
    let mut world = World::new(2);
    let eve = world.connect(0, "eve");
    world.say(eve, &watch(&["ann", "bob"]));
    assert_eq!(world.sorted(eve), ["presence ann offline", "presence bob offline"]);
    let bob = world.connect(1, "bob");
    let ann = [world.connect(1, "ann"), world.connect(0, "ann")];
    assert_eq!(world.heard(eve), ["presence bob online", "presence ann online"]);
    world.end(ann[1]);
    world.wait(7_000);
    assert_eq!(world.heard(eve), [""; 0], "ann is still on the other node");
    world.end(ann[0]);
    world.end(bob);
    world.wait(4_000);
    let back = world.connect(0, "bob");
    world.wait(3_000);
    assert_eq!(world.heard(eve), ["presence ann offline"], "bob came back in time, on another node");
    world.end(back);
    world.wait(6_000);
    assert_eq!(world.heard(eve), ["presence bob offline"]);
    assert_eq!(world.events, ["+eve", "+bob", "+ann", "-ann", "-bob"], "each said once");
}

#[test]
fn a_watch_finds_who_is_on_another_node_already() {
    let mut world = World::new(3);
    world.connect(2, "ann");
    let eve = world.connect(0, "eve");
    world.say(eve, &watch(&["ann", "zoe"]));
    world.say(eve, &watch(&["ann"]));
    assert_eq!(world.sorted(eve), ["presence ann online", "presence ann online", "presence zoe offline"]);
}

#[test]
fn the_api_tells_the_nodes_of_a_user_and_what_is_not_known() {
    let mut world = World::new(3);
    world.connect(2, "ann");
    world.connect(0, "ann");
    let ask = |world: &mut World, node| match world.call(node, Call::Presence { user: UserId::new("ann") }) {
        Answer::Presence { online, connections, nodes, complete } => {
            (online, connections, nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(","), complete)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(&mut world, 0), (true, 1, "n0,n2".to_owned(), true));
    assert_eq!(ask(&mut world, 1), (true, 0, "n0,n2".to_owned(), true));
    world.cut(0, true);
    world.wait(3_000);
    assert_eq!(ask(&mut world, 0), (true, 1, "n0".to_owned(), false));
}

#[test]
fn who_comes_and_goes_is_told_once_on_all_nodes_and_the_joiner_hears_itself_at_once() {
    let mut world = World::new(2);
    let ann = world.connect(0, "ann");
    world.join(ann, "r");
    assert_eq!(world.rooms(ann), [joined("ann")]);
    // The bus is slow to answer: the joiner does not wait for it.
    world.hold(1, true);
    let bob = world.connect(1, "bob");
    world.join(bob, "r");
    assert_eq!(world.rooms(bob), [joined("bob")]);
    world.hold(1, false);
    assert_eq!(world.rooms(bob), [""; 0], "and hears of itself once");
    assert_eq!(world.rooms(ann), [joined("bob")]);
    let cat = world.connect(1, "cat");
    world.join(cat, "r");
    let bob2 = world.connect(0, "bob");
    world.join(bob2, "r");
    for (client, heard) in [(ann, "cat"), (bob, "cat"), (cat, "cat"), (bob2, "bob")] {
        assert_eq!(world.rooms(client), [joined(heard)]);
    }
    world.end(bob);
    assert_eq!(world.rooms(ann), [""; 0], "bob is still there, on the other node");
    world.end(bob2);
    for client in [ann, cat] {
        assert_eq!(world.rooms(client), [left("bob")]);
    }
    world.say(ann, r#"{"type":"members","roomId":"r"}"#);
    assert_eq!(world.heard(ann), ["members 2 ann,cat"]);
    world.say(cat, r#"{"type":"members","roomId":"r"}"#);
    assert_eq!(world.heard(cat), ["members 2 cat,ann"], "those of the own node come first");
}

#[test]
fn large_rooms_are_told_counts_over_all_nodes() {
    let mut world = World::new(2);
    world.cluster.join_events_members_max = 3;
    let clients: Vec<usize> = (0..8).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    for client in &clients {
        world.join(*client, "r");
    }
    world.wait(2_500);
    assert_eq!(world.heard(clients[7]).last().map(String::as_str), Some("members 8 -"));
    assert_eq!(world.heard(clients[6]).last().map(String::as_str), Some("members 8 -"));
    let counts = world.heard(clients[0]).iter().filter(|line| line.starts_with("members")).count();
    assert!((2..=4).contains(&counts), "{counts}");
    for client in &clients[4..] {
        world.end(*client);
    }
    world.wait(2_500);
    assert_eq!(world.heard(clients[0]).last().map(String::as_str), Some("members 4 -"));
    world.end(clients[3]);
    world.wait(100);
    world.heard(clients[0]);
    world.end(clients[2]);
    assert_eq!(world.rooms(clients[0]), [left("u2")], "small again");
}

#[test]
fn the_users_of_a_killed_node_go_offline_once_within_thirty_seconds() {
    let mut world = World::new(3);
    let eve = world.connect(0, "eve");
    world.join(eve, "r");
    let users: Vec<String> = (0..40).map(|n| format!("u{n}")).collect();
    for user in &users {
        let client = world.connect(2, user);
        world.join(client, "r");
    }
    world.connect(1, "u7");
    world.say(eve, &watch(&["u3", "u7"]));
    world.heard(eve);
    world.events.clear();
    world.wait(20_000);
    world.kill(2);
    world.wait(22_000);
    assert_eq!(world.events, [""; 0], "it may yet come back");
    world.wait(8_000);
    assert_eq!(world.events.len(), 39, "each once, and not the one who is on another node");
    assert_eq!(
        world.heard(eve).iter().filter(|line| line.starts_with("presence")).collect::<Vec<_>>(),
        ["presence u3 offline"]
    );
    assert_eq!(world.cluster.members(&RoomId::new("r")).len(), 1);
    assert_eq!(world.nodes[0].as_ref().unwrap().bridge.cluster_stats().unwrap().nodes_now, 2);
    let reaped: u64 =
        world.nodes.iter().flatten().map(|node| node.bridge.cluster_stats().unwrap().nodes_reaped_total).sum();
    assert_eq!(reaped, 1);
}

#[test]
fn a_node_that_was_paused_announces_itself_again() {
    let mut world = World::new(2);
    let (eve, ann) = (world.connect(0, "eve"), world.connect(1, "ann"));
    world.join(eve, "r");
    world.join(ann, "r");
    world.say(eve, &watch(&["ann"]));
    world.heard(eve);
    world.pause(1, true);
    world.wait(40_000);
    assert_eq!(world.sorted(eve), ["presence ann offline".to_owned(), left("ann")]);
    world.pause(1, false);
    world.wait(1_000);
    let heard = world.heard(eve);
    assert!(heard.contains(&"presence ann online".to_owned()) && heard.contains(&joined("ann")), "{heard:?}");
    assert_eq!(world.cluster.members(&RoomId::new("r")).len(), 2);
    world.wait(120_000);
    assert_eq!(world.cluster.state(&UserId::new("ann")).nodes.len(), 1, "what was left of its earlier life is gone");
    assert_eq!(world.heard(eve), [""; 0]);
}

#[test]
fn a_bus_that_forgot_is_told_everything_again_and_nobody_else_hears_of_it() {
    let mut world = World::new(2);
    let eve = world.connect(0, "eve");
    let mut clients = Vec::new();
    for n in 0..1_500 {
        let client = world.connect(1, &format!("u{n}"));
        if n < 700 {
            world.join(client, "big");
        }
        world.join(client, &format!("r{}", n % 50));
        clients.push(client);
    }
    world.say(eve, &watch(&["u1", "u2", "nobody"]));
    world.heard(eve);
    world.events.clear();
    let before = world.cluster.clone();
    world.cluster = MemoryCluster::new(2);
    world.wait(20_000);
    for n in 0..1_500 {
        assert!(world.cluster.state(&UserId::new(&format!("u{n}"))).online, "u{n}");
    }
    for room in (0..50).map(|n| format!("r{n}")).chain(["big".to_owned()]) {
        let room = RoomId::new(&room);
        assert_eq!(world.cluster.members(&room), before.members(&room));
    }
    assert_eq!(world.events, [""; 0]);
    assert_eq!(world.heard(eve), [""; 0]);
}

#[test]
fn a_roster_that_changes_while_it_is_announced_again_ends_up_right() {
    let mut world = World::new(1);
    let mut clients: Vec<usize> = (0..1_600).map(|n| world.connect(0, &format!("u{n}"))).collect();
    for client in &clients {
        world.join(*client, "big");
    }
    world.cluster = MemoryCluster::new(2);
    for _ in 0..60 {
        world.wait(50);
        for _ in 0..10 {
            let at = (clients.len() * 7 / 11) % clients.len();
            world.end(clients.swap_remove(at));
            world.end(clients.swap_remove(0));
        }
    }
    world.wait(5_000);
    assert_eq!(world.cluster.members(&RoomId::new("big")).len(), clients.len());
}

#[test]
fn while_the_bus_is_away_the_node_goes_by_what_it_knows_and_catches_up_after() {
    let mut world = World::new(2);
    let (eve, dan) = (world.connect(0, "eve"), world.connect(1, "dan"));
    let ann = world.connect(0, "ann");
    world.join(eve, "r");
    world.join(dan, "r");
    world.join(ann, "r");
    world.say(eve, &watch(&["ann", "bob"]));
    world.say(dan, &watch(&["ann", "bob"]));
    world.heard(eve);
    world.heard(dan);
    world.events.clear();
    world.cut(0, true);
    world.wait(3_000);
    let bob = world.connect(0, "bob");
    world.join(bob, "r");
    assert_eq!(world.sorted(eve), ["presence bob online".to_owned(), joined("bob")]);
    world.say(eve, r#"{"type":"members","roomId":"r"}"#);
    assert_eq!(world.heard(eve), ["members 3 eve,ann,bob"]);
    world.end(ann);
    world.wait(6_000);
    assert_eq!(world.heard(eve), [left("ann"), "presence ann offline".to_owned()]);
    assert_eq!(world.heard(dan), [""; 0]);
    world.cut(0, false);
    world.wait(1_000);
    assert_eq!(
        world.sorted(dan),
        ["presence ann offline".to_owned(), "presence bob online".to_owned(), joined("bob"), left("ann")]
    );
    assert_eq!(world.heard(eve), [""; 0], "told already");
    assert_eq!(world.cluster.members(&RoomId::new("r")).len(), 3);
}

#[test]
fn what_was_missed_of_watched_users_is_asked_again() {
    let mut world = World::new(2);
    let (eve, ann) = (world.connect(0, "eve"), world.connect(1, "ann"));
    world.say(eve, &watch(&["ann", "bob"]));
    world.heard(eve);
    world.deaf(0, true);
    world.end(ann);
    world.connect(1, "bob");
    world.wait(6_000);
    assert_eq!(world.heard(eve), [""; 0]);
    world.deaf(0, false);
    world.lost(0);
    world.wait(16_000);
    assert_eq!(world.sorted(eve), ["presence ann offline", "presence bob online"]);
}

#[test]
fn a_second_process_of_the_same_name_ends_the_one_that_was_silent() {
    let mut world = World::new(1);
    world.pause(0, true);
    world.wait(30_000);
    world.start("n0", 900);
    world.wait(5_000);
    world.pause(0, false);
    world.wait(3_000);
    assert_eq!(world.evicted, ["n0"]);
    assert!(world.nodes[0].as_ref().unwrap().bridge.next_tick_ms().is_none());
}

#[test]
fn users_and_rosters_are_announced_again_well_before_they_run_out() {
    let mut world = World::new(1);
    for n in 0..60 {
        let client = world.connect(0, &format!("u{n}"));
        world.join(client, "r");
    }
    let before = world.nodes[0].as_ref().unwrap().bridge.cluster_stats().unwrap().announced_again_total;
    world.wait(160_000);
    let stats = world.nodes[0].as_ref().unwrap().bridge.cluster_stats().unwrap().clone();
    assert!(stats.announced_again_total - before >= 60, "{stats:?}");
    world.wait(640_000);
    let stats = world.nodes[0].as_ref().unwrap().bridge.cluster_stats().unwrap().clone();
    // Eight or nine cycles of the users, one or two of the rosters, and never more.
    assert!((7 * 60..=11 * 60).contains(&stats.announced_again_total), "{stats:?}");
    assert_eq!(stats.lives_total, 1);
}

#[test]
fn changes_that_do_not_fit_while_the_bus_is_away_are_made_good_by_a_new_life() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.join(ann, "stays");
    world.join(ann, "goes");
    world.cut(0, true);
    world.wait(3_000);
    world.say(ann, r#"{"type":"leave_room","roomId":"goes"}"#);
    let bob = world.connect(0, "bob");
    for n in 0..33_000 {
        world.join(bob, &format!("x{}", n % 7));
        world.say(bob, &format!(r#"{{"type":"leave_room","roomId":"x{}"}}"#, n % 7));
    }
    world.cut(0, false);
    world.wait(70_000);
    assert_eq!(world.cluster.members(&RoomId::new("stays")).len(), 1);
    assert_eq!(world.cluster.members(&RoomId::new("goes")).len(), 0);
    assert_eq!(world.nodes[0].as_ref().unwrap().bridge.cluster_stats().unwrap().lives_total, 2);
}
