//! Who is online, over all shards; connections of one user.

use super::world::World;
use crate::mesh::{ToBridge, ToShard};
use crate::names::{UserId, home};
use crate::shard::Ended;

fn watch(users: &[&str]) -> String {
    serde_json::json!({ "type": "watch_presence", "userIds": users }).to_string()
}

#[test]
fn watchers_hear_the_state_now_and_each_change_with_grace_before_offline() {
    let mut world = World::new(3);
    let (eve, dan) = (world.connect(0, "eve"), world.connect(2, "dan"));
    let ann = world.connect(1, "ann");
    for client in [eve, dan] {
        world.say(client, &watch(&["ann", "bob"]));
        // Each home answers for its own.
        let mut heard = world.heard(client);
        heard.sort();
        assert_eq!(heard, ["presence ann online", "presence bob offline"]);
    }
    let ann2 = world.connect(2, "ann");
    let bob = world.connect(0, "bob");
    assert_eq!(world.heard(eve), ["presence bob online"], "a second tab changes nothing");
    world.end(ann, Ended::Eof);
    world.wait(6_000);
    assert_eq!(world.heard(eve), [""; 0]);
    world.end(ann2, Ended::Error);
    world.end(bob, Ended::Eof);
    world.wait(4_000);
    let ann3 = world.connect(1, "ann");
    world.wait(900);
    assert_eq!(world.heard(eve), [""; 0], "the grace is not over");
    world.wait(200);
    assert_eq!(world.heard(eve), ["presence bob offline"], "ann came back in time");
    assert_eq!(world.heard(dan), ["presence bob online", "presence bob offline"]);

    world.say(dan, r#"{"type":"unwatch_presence","userIds":["ann","nobody"]}"#);
    world.end(ann3, Ended::Eof);
    world.wait(5_200);
    assert_eq!(world.heard(eve), ["presence ann offline"]);
    assert_eq!(world.heard(dan), [""; 0]);
}

#[test]
fn a_watch_asked_twice_is_answered_twice_and_kept_once() {
    let mut world = World::new(2);
    let eve = world.connect(0, "eve");
    world.say(eve, &watch(&["ann", "ann"]));
    world.say(eve, &watch(&["ann"]));
    assert_eq!(world.heard(eve), ["presence ann offline"; 3]);
    world.connect(1, "ann");
    assert_eq!(world.heard(eve), ["presence ann online"]);
}

#[test]
fn watchers_that_die_in_any_order_leave_the_others_watching() {
    let mut world = World::new(2);
    let watchers: Vec<usize> = (0..9).map(|n| world.connect(0, &format!("w{n}"))).collect();
    for watcher in &watchers {
        world.say(*watcher, &watch(&["x", "ann", "y"]));
    }
    for gone in [8, 0, 3, 4] {
        world.end(watchers[gone], Ended::Eof);
    }
    world.say(watchers[1], r#"{"type":"unwatch_presence","userIds":["ann"]}"#);
    for watcher in [1, 2, 5, 6, 7] {
        world.heard(watchers[watcher]);
    }
    world.connect(1, "ann");
    for watcher in [2, 5, 6, 7] {
        assert_eq!(world.heard(watchers[watcher]), ["presence ann online"], "{watcher}");
    }
    assert_eq!(world.heard(watchers[1]), [""; 0]);
}

#[test]
fn one_connection_watches_a_thousand_users_and_no_more() {
    let mut world = World::new(1);
    let eve = world.connect(0, "eve");
    for hundred in 0..10 {
        let users: Vec<String> = (0..100).map(|n| format!("u{}", hundred * 100 + n)).collect();
        world.say(eve, &watch(&users.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    assert_eq!(world.errors(eve), [""; 0]);
    world.say(eve, &watch(&["one-more"]));
    world.say(eve, &watch(&["u5"]));
    assert_eq!(world.heard(eve), ["error rate_limited", "presence u5 offline"]);
    world.end(eve, Ended::Eof);
    world.wait(6_000);
    assert_eq!(world.engines[0].tables(), [0; 6]);
}

#[test]
fn a_user_has_so_many_connections_on_the_whole_node_and_not_one_more() {
    let mut world = World::with(2, |config| config.limits.connections_per_user_max = 3);
    let tabs: Vec<usize> = (0..3).map(|n| world.connect(n % 2, "ann")).collect();
    let fourth = world.accept(1, None).expect("room for one");
    world.feed(fourth, super::world::head("ann").as_bytes());
    assert_eq!(world.heard(fourth), ["connected ann", "close 1008 Too many connections of this user"]);
    world.connect(0, "bob");
    world.end(tabs[0], Ended::Eof);
    world.connect(0, "ann");
    let user = UserId::new("ann");
    world.mesh(home("ann", 2).0, ToShard::AskUser { user, call: 3 });
    assert!(matches!(world.script.answers[..], [ToBridge::UserAnswer { call: 3, online: true, connections: 3, .. }]));
}

#[test]
fn an_operator_disconnects_a_user_everywhere() {
    let mut world = World::new(2);
    let tabs = [world.connect(0, "ann"), world.connect(1, "ann"), world.connect(1, "ann")];
    let bob = world.connect(1, "bob");
    let code = roomwire_wire::close::CloseCode::Kicked;
    world.all(&ToShard::Disconnect { user: UserId::new("ann"), code, reason: "spam".into() });
    for tab in tabs {
        assert_eq!(world.heard(tab), ["close 4003 spam"]);
    }
    assert_eq!(world.heard(bob), [""; 0]);
}
