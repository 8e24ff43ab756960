//! Many rooms that the bus does not hold, all at once: the store is asked for some of them at a time.

use super::world::{Mood, World, config, connection, user};
use crate::bridge::BridgeConfig;
use crate::mesh::{HistoryAsk, ToBridge};
use crate::names::{RoomId, ShardId};
use bytes::Bytes;
use std::sync::Arc;

fn room(number: usize) -> RoomId {
    RoomId::new(&format!("room{number}"))
}

fn publish(number: usize) -> ToBridge {
    publish_as(number, &format!("m{number}"))
}

fn publish_as(number: usize, client_id: &str) -> ToBridge {
    ToBridge::Publish {
        from: connection(0, number as u32 + 1),
        room: room(number),
        user: user("ann"),
        content: Bytes::from_static(b"hello"),
        client_id: Some(Arc::from(client_id)),
        received_us: 1,
    }
}

fn world(inits_max: u32) -> World {
    World::with(BridgeConfig { inits_max, cluster: true, ..config(7) })
}

/// How many rooms' requests the store was sent by a node.
fn asked(world: &World, node: usize) -> usize {
    let mine = format!("{node} Store(ReadGen");
    world.trace.iter().filter(|line| line.starts_with(&mine)).count()
}

#[test]
fn rooms_are_begun_a_few_at_a_time_in_their_order() {
    let mut world = world(2);
    world.mood = Mood::Hangs;
    for number in 0..5 {
        world.shard(publish(number));
    }
    assert_eq!((asked(&world, 0), world.nodes[0].bridge.stats().inits_waiting_now), (2, 3));
    world.heal(false);
    let acked: Vec<String> = world.acks().into_iter().map(|ack| ack.0).collect();
    assert_eq!(acked.len(), 5, "{acked:?}");
    let begun: Vec<&String> = world.trace.iter().filter(|line| line.starts_with("0 Store(ReadGen")).collect();
    for (number, line) in begun.iter().enumerate() {
        assert!(line.contains(&format!("room{number}")), "{number} is {line}");
    }
    assert_eq!(world.nodes[0].bridge.stats().inits_waiting_now, 0);
}

#[test]
fn a_publisher_whose_room_does_not_get_its_turn_is_told_so_in_time() {
    let mut world = world(1);
    world.mood = Mood::Hangs;
    for number in 0..3 {
        world.shard(publish(number));
    }
    world.pass(4_900);
    assert_eq!(world.refusals(), []);
    world.pass(200);
    let refused: Vec<_> = world.refusals().into_iter().map(|(code, id, after)| (code, id, after.is_some())).collect();
    let expected: Vec<_> = (0..3).map(|n| ("unavailable".to_owned(), Some(format!("m{n}")), true)).collect();
    assert_eq!(refused, expected);
    world.heal(false);
    world.pass(1_000);
    for number in 0..3 {
        world.shard(publish(number));
    }
    world.pass(1_000);
    assert_eq!(world.acks().len(), 3);
}

#[test]
fn rooms_whose_attempts_fail_keep_nobody_from_trying() {
    let mut world = world(1);
    world.mood = Mood::Down;
    for number in 0..5 {
        // In one turn: a store that failed once has publishes refused.
        world.gather(publish(number));
    }
    world.run();
    assert_eq!(asked(&world, 0), 5);
    world.heal(false);
    world.pass(2_000);
    assert_eq!(world.acks().len(), 5);
}

#[test]
fn who_only_looks_stands_behind_those_for_whom_somebody_waits() {
    let mut world = world(1);
    for number in 0..4 {
        world.shard(ToBridge::Subscribe { room: room(number), shard: ShardId(0) });
        world.shard(publish(number));
    }
    world.mood = Mood::Hangs;
    world.trace.clear();
    world.lose_bus();
    world.pass(50);
    let looks = world.trace.iter().filter(|line| line.starts_with("0 Store(ReadRoom")).count();
    assert_eq!((looks, world.nodes[0].bridge.stats().inits_waiting_now), (1, 3));
    world.shard(publish(3));
    world.ask_of(connection(0, 9), room(2), HistoryAsk::Last { limit: 5 });
    world.heal(false);
    let first = world.trace.iter().filter(|line| line.starts_with("0 Store")).nth(1);
    assert!(first.is_some_and(|line| line.contains("ReadGen") && line.contains("room3")), "{first:?}");
    assert_eq!(world.nodes[0].bridge.stats().inits_waiting_now, 0);
}

#[test]
fn a_room_that_another_node_has_begun_meanwhile_is_not_begun_again() {
    let mut world = world(1);
    world.add_node(BridgeConfig { boot: 8, node: Arc::from("n2"), inits_max: 1, cluster: true, ..config(8) });
    world.mood = Mood::Hangs;
    world.shard_at(0, publish(1));
    world.shard_at(1, publish(0));
    world.shard_at(1, ToBridge::Subscribe { room: room(1), shard: ShardId(0) });
    world.shard_at(1, publish(2));
    world.shard_at(1, publish(1));
    assert_eq!((asked(&world, 0), asked(&world, 1)), (1, 1));
    world.heal(false);
    world.pass(1_000);
    assert_eq!((world.acks_at(0).len(), world.acks_at(1).len()), (1, 3));
    assert_eq!(asked(&world, 1), 2, "its own two rooms, and not the one that the other node began");
}

#[test]
fn a_read_of_the_store_from_before_a_join_does_not_count_for_one_that_waits_for_its_turn() {
    let mut world = world(1);
    world.mood = Mood::Hangs;
    for number in 0..2 {
        world.ask_of(connection(0, number), room(number as usize), HistoryAsk::Last { limit: 5 });
    }
    // The room listens from here on, and is read anew behind the other one, whose turn it is.
    world.shard(ToBridge::Subscribe { room: room(0), shard: ShardId(0) });
    world.ask_of(connection(0, 2), room(0), HistoryAsk::Last { limit: 5 });
    world.heal(false);
    let reads = world.trace.iter().filter(|line| line.starts_with("0 Store(ReadRoom") && line.contains("room0"));
    assert_eq!(reads.count(), 2);
    assert_eq!((world.take_pages().len(), world.nodes[0].bridge.stats().inits_waiting_now), (3, 0));
}

#[test]
fn a_bus_that_loses_many_rooms_does_not_flood_the_store() {
    let mut world = world(4);
    for number in 0..200 {
        world.shard(ToBridge::Subscribe { room: room(number), shard: ShardId(0) });
        world.shard(publish(number));
    }
    world.mood = Mood::Hangs;
    world.lose_bus();
    world.trace.clear();
    for number in 0..200 {
        world.gather(publish(number + 200));
    }
    world.run();
    world.pass(1_000);
    let store = |line: &&String| line.starts_with("0 Store");
    let under_way = world.trace.iter().filter(store).count();
    assert!(under_way <= 4, "{under_way} requests");
    for _ in 0..4 {
        world.heal(false);
        world.pass(2_000);
    }
    assert_eq!(world.acks().len(), 400);
}

#[test]
fn a_join_of_a_room_that_the_bus_lost_reads_one_row_and_not_the_whole_tail() {
    let mut world = world(4);
    world.shard(publish(0));
    world.restart();
    world.trace.clear();
    world.shard(ToBridge::Subscribe { room: room(0), shard: ShardId(0) });
    world.ask_of(connection(0, 1), room(0), HistoryAsk::Last { limit: 5 });
    let page = world.take_pages().remove(0);
    assert_eq!((page.seqs(), page.flags()), (vec![1], (true, false, true)));
    let reads: Vec<&String> = world.trace.iter().filter(|line| line.contains("ReadRoom")).collect();
    assert!(reads[0].contains("window: 1 "), "{reads:?}");
    // The next one finds a generation in which nothing was said yet: no other is begun.
    let generation = world.store.meta(&room(0)).generation;
    world.restart();
    world.shard(ToBridge::Subscribe { room: room(0), shard: ShardId(0) });
    world.ask_of(connection(0, 1), room(0), HistoryAsk::Last { limit: 5 });
    assert_eq!(world.take_pages().remove(0).seqs(), [1]);
    assert_eq!(world.store.meta(&room(0)).generation, generation);
}

fn store_requests(world: &World) -> usize {
    world.trace.iter().filter(|line| line.contains(" Store(")).count()
}

#[test]
fn a_room_that_nobody_writes_to_is_read_once_for_each_server_of_the_bus() {
    for (strict, is_deaf) in [(false, false), (false, true), (true, false)] {
        let mut world = World::with(BridgeConfig { inits_max: 4, cluster: true, strict, ..config(7) });
        world.add_node(BridgeConfig { boot: 8, node: Arc::from("n2"), cluster: true, ..config(8) });
        world.server = Some(1);
        world.shard(ToBridge::Subscribe { room: room(0), shard: ShardId(0) });
        let mut reads = vec![store_requests(&world)];
        for server in [1, 2] {
            world.server = Some(server);
            world.pass(60_000);
            reads.push(store_requests(&world));
        }
        assert_eq!(reads, if strict { [1, 7, 13] } else { [1, 1, 2] }, "strict {strict}: a look each 10 s, or none");
        world.is_deaf = is_deaf;
        for client_id in ["one", "two"] {
            world.shard_at(1, publish_as(0, client_id));
        }
        assert_eq!(world.acks_at(1).len(), 2);
        world.pass(if is_deaf { 11_000 } else { 0 });
        let seqs: Vec<u64> = world.delivered(0).into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(seqs, [1, 2], "deaf {is_deaf}");
    }
}
