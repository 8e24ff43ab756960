//! Publishing: order, acks, retries, limits.

use super::world::{Mood, SHARDS, World, config, connection, room, user};
use crate::bridge::{Answer, BridgeConfig, BridgeEvent, Call};
use crate::bus::LocalBus;
use crate::mesh::{Asker, ToBridge, ToShard};
use crate::names::{RoomId, ShardId, UserId, home};
use bytes::Bytes;
use roomwire_wire::close::CloseCode;
use roomwire_wire::id::MessagePlace;
use std::sync::Arc;

#[test]
fn a_message_is_stored_then_delivered_to_each_shard_with_members_then_acked() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("hello", Some("a"));
    assert_eq!(world.delivered(0), [(1, "hello".to_owned())]);
    assert_eq!(world.delivered(1), []);
    let id = MessagePlace { epoch: 1, seq: 1 }.encode("lobby");
    assert_eq!(world.acks(), [("a".to_owned(), id, 1)]);
    world.subscribe(1);
    world.publish("again", None);
    assert_eq!(world.delivered(1), [(2, "again".to_owned())]);
    assert_eq!(world.acks().len(), 1, "no ack without a client id");
    let append = world.trace.iter().position(|line| line.contains("Append")).expect("an append");
    let publish = world.trace.iter().position(|line| line.contains("Bus(Publish")).expect("a publish");
    assert!(append < publish);
    let stats = world.nodes[0].bridge.stats();
    assert_eq!((stats.published_total, stats.inits_total, stats.publishes_now, stats.durable_us.len()), (2, 1, 0, 2));
}

#[test]
fn one_turn_is_one_sequence_one_append_and_one_publish() {
    let mut world = World::new();
    world.publish("first", None);
    world.trace.clear();
    for number in 0..50 {
        world.gather(World::publish_message(connection(0, 1), "ann", &number.to_string(), None));
    }
    world.run();
    let count = |what: &str| world.trace.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("0 Bus(Sequence"), count("0 Store(Append"), count("0 Bus(Publish")), (1, 1, 1));
    let stored: Vec<String> =
        world.store.messages(&room()).iter().map(|read| String::from_utf8_lossy(&read.row.content).into()).collect();
    assert_eq!(stored[1..], (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn what_one_connection_sends_keeps_its_order_over_the_first_initialisation() {
    let mut world = World::new();
    world.subscribe(0);
    world.mood = Mood::Hangs;
    for number in 0..20 {
        world.publish(&number.to_string(), None);
    }
    world.mood = Mood::Well;
    world.heal(false);
    let contents: Vec<String> = world.delivered(0).into_iter().map(|(_, content)| content).collect();
    assert_eq!(contents, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_retry_gets_the_ids_of_the_first_attempt_under_way_or_done() {
    let mut world = World::new();
    world.subscribe(0);
    world.gather(World::publish_message(connection(0, 1), "ann", "x", Some("a")));
    world.gather(World::publish_message(connection(1, 2), "ann", "x", Some("a")));
    world.run();
    world.publish("x", Some("a"));
    let acks = world.acks();
    assert_eq!(acks.len(), 3);
    assert!(acks.iter().all(|ack| *ack == acks[0]));
    assert_eq!(world.delivered(0).len(), 1);
    assert_eq!(world.nodes[0].bridge.stats().duplicates_total, 2);
    // Another user's message of the same id is another message.
    world.shard(World::publish_message(connection(0, 3), "bob", "y", Some("a")));
    assert_eq!(world.delivered(0).len(), 2);
}

#[test]
fn beyond_the_limit_publishes_are_refused() {
    let mut world = World::with(BridgeConfig { publishes_max: 2, ..config(1) });
    for id in ["a", "b", "c"] {
        world.gather(World::publish_message(connection(0, 1), "ann", "x", Some(id)));
    }
    world.run();
    assert_eq!(world.acks().len(), 2);
    assert_eq!(world.refusals(), [("unavailable".to_owned(), Some("c".to_owned()), Some(1_000))]);
}

#[test]
fn a_message_to_a_user_goes_to_the_users_home() {
    let mut world = World::new();
    let user_room = RoomId::new("user:bob");
    for number in 0..3 {
        world.shard(ToBridge::Publish {
            from: connection(0, 1),
            room: user_room.clone(),
            user: user("ann"),
            content: Bytes::from(format!("n{number}")),
            client_id: None,
            received_us: 0,
        });
    }
    let home = home("bob", SHARDS);
    assert_eq!(world.delivered(home.0).len(), 3);
    assert_eq!(world.nodes[0].out.len(), 3, "and nowhere else");
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 1);
    world.pass(20_000);
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 0, "nothing is kept of an idle user");
    assert_eq!(world.nodes[0].bridge.next_tick_ms(), None);
}

#[test]
fn a_home_that_subscribes_to_its_users_room_is_told_from_where_on_it_hears_all() {
    let mut world = World::pair();
    let room = RoomId::new("user:bob");
    let at_home = home("bob", SHARDS);
    for _ in 0..2 {
        world.shard(ToBridge::Subscribe { room: room.clone(), shard: at_home });
        let (room, content) = (room.clone(), Bytes::from_static(b"x"));
        let from = connection(0, 1);
        let message = ToBridge::Publish { from, room, user: user("ann"), content, client_id: None, received_us: 0 };
        world.shard_at(1, message);
        world.shard(ToBridge::Unsubscribe { room: RoomId::new("user:bob"), shard: at_home });
    }
    let heard: Vec<Option<u64>> = world.nodes[0]
        .out
        .iter()
        .filter(|(to, _)| *to == at_home)
        .filter_map(|(_, message)| match message {
            ToShard::UserSubscribed { user } => (&**user == "bob").then_some(None),
            ToShard::Deliver { seq, .. } => Some(Some(*seq)),
            _ => None,
        })
        .collect();
    assert_eq!(heard, [None, Some(1), None, Some(2)]);
}

#[test]
fn retries_of_what_is_stored_do_not_keep_a_store_that_is_well_again_from_being_found_so() {
    let mut world = World::new();
    world.subscribe(0);
    let stored = ["a", "b", "c"];
    for client_id in stored {
        world.publish(client_id, Some(client_id));
    }
    world.mood = Mood::Hangs;
    world.publish("lost", None);
    world.pass(6_000);
    assert!(world.nodes[0].bridge.stats().store_degraded_now);
    world.held.clear();
    world.mood = Mood::Well;
    for client_id in stored {
        world.publish(client_id, Some(client_id));
    }
    world.publish("d", Some("d"));
    let acked: Vec<String> = world.acks().into_iter().map(|ack| ack.0).collect();
    assert_eq!(acked[3..], ["a", "b", "c", "d"]);
    assert!(!world.nodes[0].bridge.stats().store_degraded_now);
}

#[test]
fn a_room_without_members_is_kept_only_while_it_is_written() {
    let mut world = World::new();
    world.publish("x", None);
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 0);
    world.subscribe(0);
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 1);
    world.shard(ToBridge::Unsubscribe { room: room(), shard: ShardId(0) });
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 0);
}

#[test]
fn an_idle_room_with_members_sets_no_timer() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("x", None);
    world.pass(60_000);
    assert_eq!(world.nodes[0].bridge.next_tick_ms(), None);
    world.trace.clear();
    world.pass(600_000);
    assert_eq!(world.trace, Vec::<String>::new());
}

#[test]
fn a_room_that_the_bus_forgot_goes_on_under_the_next_generation() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("x", Some("a"));
    assert!(world.bus.forget(&room()));
    world.publish("x", Some("a"));
    world.publish("y", None);
    assert_eq!(world.delivered(0), [(1, "x".to_owned()), (2, "y".to_owned())]);
    let acks = world.acks();
    assert_eq!(acks[0], acks[1]);
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (2, 2)]);
}

#[test]
fn the_http_api_publishes_and_asks_through_the_bridge() {
    let mut world = World::new();
    let publish = |client_id: Option<&str>| Call::Publish {
        room: room(),
        user: user("app"),
        content: Bytes::from_static(b"x"),
        client_id: client_id.map(Arc::from),
        received_us: 0,
    };
    world.call(1, publish(None));
    world.call(2, publish(Some("a")));
    world.call(3, publish(Some("a")));
    let seqs: Vec<(u64, u64)> = world.nodes[0]
        .answers
        .iter()
        .map(|(call, answer)| match answer {
            Answer::Published { seq, .. } => (*call, *seq),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, [(1, 1), (2, 2), (3, 2)]);

    world.call(4, Call::Members { room: room() });
    let (to, asked) = world.nodes[0].out.pop().expect("the home is asked");
    assert_eq!(to, home("lobby", SHARDS));
    assert!(matches!(asked, ToShard::AskMembers { asker: Asker::Http(4), .. }));
    let asker = Asker::Http(4);
    world.shard(ToBridge::MembersAnswer { room: room(), asker, count: 1, users: vec![user("ann")] });
    assert!(matches!(world.nodes[0].answers.last(), Some((4, Answer::Members { count: 1, .. }))));

    world.call(5, Call::Presence { user: UserId::new("ann") });
    assert!(matches!(world.nodes[0].out.pop(), Some((_, ToShard::AskUser { call: 5, .. }))));
    let user = UserId::new("ann");
    world.shard(ToBridge::UserAnswer { call: 5, user, online: true, connections: 2 });
    let Some((5, Answer::Presence { online: true, connections: 2, nodes, complete: true })) =
        world.nodes[0].answers.last()
    else {
        panic!("{:?}", world.nodes[0].answers)
    };
    assert_eq!(nodes[..], [Arc::from("n1")]);

    let (code, reason) = (CloseCode::Kicked, Arc::from("bye"));
    world.call(6, Call::Disconnect { user: UserId::new("ann"), code, reason });
    assert_eq!(world.nodes[0].out.len(), usize::from(SHARDS));
    assert!(matches!(world.nodes[0].answers.last(), Some((6, Answer::Disconnected))));
}

#[test]
fn a_drain_ends_when_every_shard_is_drained_and_nothing_is_under_way() {
    let mut world = World::new();
    world.publish("x", None);
    world.event(BridgeEvent::Drain { window_ms: 1_000 });
    world.mood = Mood::Hangs;
    world.publish("y", Some("a"));
    for shard in 0..SHARDS {
        world.shard(ToBridge::Drained { shard: ShardId(shard) });
    }
    assert!(!world.nodes[0].is_finished);
    world.heal(false);
    assert!(world.nodes[0].is_finished);
    assert_eq!(world.acks().len(), 1);
}

/// A world whose bus takes each decided message for a candidate.
fn colliding() -> World {
    let mut world = World::new();
    world.bus = LocalBus::with_fingerprint_bits(3, 0);
    world.subscribe(0);
    world
}

#[test]
fn messages_whose_fingerprints_collide_are_told_apart_by_their_rows() {
    let mut world = colliding();
    for id in ["a", "b", "c"] {
        world.publish(id, Some(id));
    }
    world.publish("b", Some("b"));
    world.publish("", None);
    let seqs: Vec<(String, u64)> = world.acks().into_iter().map(|(id, _, seq)| (id, seq)).collect();
    let expected = [("a", 1), ("b", 2), ("c", 3), ("b", 2)];
    assert_eq!(seqs, expected.map(|(id, seq)| (id.to_owned(), seq)));
    assert_eq!(world.delivered(0).len(), 4);
    let stats = world.nodes[0].bridge.stats();
    assert_eq!((stats.published_total, stats.duplicates_total, stats.publishes_now), (4, 1, 0));
}

#[test]
fn a_connection_keeps_its_order_while_a_candidate_is_read() {
    let mut world = colliding();
    world.publish("first", Some("first"));
    world.mood = Mood::Hangs;
    let one = connection(0, 1);
    world.gather(World::publish_message(one, "ann", "second", Some("second")));
    world.gather(World::publish_message(one, "ann", "third", None));
    world.gather(World::publish_message(connection(1, 2), "bob", "other", None));
    world.run();
    world.shard(World::publish_message(one, "ann", "fourth", None));
    world.pass(100);
    for _ in 0..20 {
        world.heal(true);
        world.mood = Mood::Hangs;
        world.run();
    }
    world.mood = Mood::Well;
    world.heal(false);
    let contents: Vec<String> = world.delivered(0).into_iter().map(|(_, content)| content).collect();
    let of_one: Vec<&String> = contents.iter().filter(|content| *content != "other").collect();
    assert_eq!(of_one, ["first", "second", "third", "fourth"]);
    assert_eq!(contents.len(), 5);
}

#[test]
fn a_candidate_that_cannot_be_read_waits_and_is_refused_in_the_end() {
    let mut world = colliding();
    world.publish("first", Some("a"));
    world.mood = Mood::Down;
    world.publish("first", Some("a"));
    world.pass(1_000);
    assert_eq!((world.acks().len(), world.refusals().len()), (1, 0));
    world.mood = Mood::Well;
    world.pass(1_000);
    let acks = world.acks();
    assert_eq!((acks.len(), world.delivered(0).len()), (2, 1));
    assert_eq!(acks[0], acks[1]);
    world.mood = Mood::Hangs;
    world.publish("first", Some("a"));
    world.pass(6_000);
    assert_eq!(world.refusals().len(), 1);
    world.heal(false);
    assert_eq!((world.acks().len(), world.nodes[0].bridge.stats().publishes_now), (2, 0));
}
