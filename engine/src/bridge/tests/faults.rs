//! Stores that fail, answer late or not at all; nodes that die; a bus that forgets: what the bridge makes of it.

use super::world::{Mood, World, config, connection, room};
use crate::bridge::{BridgeConfig, BridgeEvent};
use crate::bus::{BusEvent, BusRequest, LocalBus, PENDING_MESSAGES_MAX};
use crate::mesh::{HistoryAsk, ToBridge};
use crate::names::{RoomId, ShardId, UserId};
use bytes::Bytes;
use roomwire_wire::id::MessagePlace;
use std::sync::Arc;

const LAST: HistoryAsk = HistoryAsk::Last { limit: 50 };

#[test]
fn while_the_store_refuses_writes_publishers_are_told_and_readers_go_on() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.mood = Mood::RefusesWrites;
    world.publish("a", Some("a"));
    assert_eq!(world.refusals(), [], "it waits for the store");
    world.publish("b", Some("b"));
    assert_eq!(world.refusals(), [("unavailable".into(), Some("b".into()), Some(200))], "refused at once");
    assert!(world.nodes[0].bridge.stats().store_degraded_now);
    world.pass(6_000);
    let refused: Vec<_> = world.refusals().into_iter().map(|(_, id, retry)| (id, retry.is_some())).collect();
    assert_eq!(refused, [(Some("b".into()), true), (Some("a".into()), true)]);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.live), (vec![1], true));
    world.restart();
    world.subscribe(0);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.live), (vec![1], true), "from the store as well");
    // The first publish of a cold room hangs in its initialisation; its readers do not.
    world.publish("c", Some("c"));
    world.ask(connection(0, 1), LAST);
    world.pass(500);
    assert_eq!(world.take_pages().len(), 1);
    world.shard(ToBridge::Unsubscribe { room: room(), shard: ShardId(0) });
    world.subscribe(0);
    world.ask(connection(0, 1), LAST);
    world.pass(500);
    assert_eq!(world.take_pages().len(), 1);
    world.heal(false);
    world.pass(2_000);
    assert_eq!(world.delivered(0), [(2, "c".to_owned())]);
    assert!(!world.nodes[0].bridge.stats().store_degraded_now);
}

#[test]
fn a_refused_publish_may_appear_once_and_its_retry_gets_its_ids() {
    for mood in [Mood::RefusesWrites, Mood::LosesReplies, Mood::Down, Mood::Hangs] {
        let mut world = World::new();
        world.subscribe(0);
        world.publish("first", None);
        world.mood = mood;
        world.publish("a", Some("a"));
        world.pass(6_000);
        assert_eq!(world.refusals().len(), 1, "{mood:?}");
        assert!(world.nodes[0].bridge.stats().store_degraded_now, "{mood:?}");
        assert_eq!(world.delivered(0).len(), 1, "{mood:?}");
        world.heal(false);
        world.pass(2_000);
        assert_eq!(world.delivered(0), [(1, "first".into()), (2, "a".into())], "{mood:?}");
        assert_eq!(world.acks(), [], "its sender was told otherwise");
        world.publish("a", Some("a"));
        assert_eq!(world.acks().len(), 1);
        assert_eq!(world.acks()[0].2, 2);
        assert_eq!(world.delivered(0).len(), 2);
        assert_eq!(world.nodes[0].bridge.stats().publishes_now, 0);
    }
}

#[test]
fn a_probe_finds_out_that_the_store_is_well_again() {
    let mut world = World::new();
    world.mood = Mood::Down;
    world.publish("a", Some("a"));
    world.pass(6_000);
    assert_eq!(world.refusals().len(), 1);
    world.publish("b", Some("b"));
    world.publish("c", Some("c"));
    assert_eq!(world.refusals().len(), 2, "b is the probe, c is refused at once");
    world.heal(false);
    world.pass(2_000);
    assert_eq!(world.acks().iter().map(|ack| ack.0.as_str()).collect::<Vec<_>>(), ["b"]);
    world.publish("c", Some("c"));
    assert_eq!(world.acks().len(), 2);
}

#[test]
fn history_and_receipts_are_refused_only_when_the_store_fails_them() {
    let mut world = World::new();
    world.publish("a", None);
    world.mood = Mood::Down;
    world.ask(connection(0, 1), LAST);
    assert_eq!(world.histories_refused(), 1);
    world.subscribe(0);
    world.pass(500);
    world.ask(connection(0, 1), LAST);
    world.pass(500);
    assert_eq!((world.histories_refused(), world.refusals().len()), (2, 0));
    world.shard(ToBridge::Receipt {
        from: connection(0, 1),
        room: room(),
        user: UserId::new("bob"),
        message_id: Arc::from(MessagePlace { epoch: 1, seq: 1 }.encode("lobby")),
    });
    assert_eq!(world.refusals().len(), 1);
    world.heal(false);
    world.pass(2_000);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.live), (vec![1], true));
}

#[test]
fn a_room_that_the_bus_refuses_is_refused_alone_and_at_once() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.bus_refuses = Some(|request| *request.room() == room());
    world.publish("a", Some("a"));
    assert_eq!(world.refusals(), [("unavailable".into(), Some("a".into()), Some(1_000))]);
    assert!(!world.nodes[0].bridge.stats().bus_degraded_now, "the bus is well");
    let mut elsewhere = World::publish_message(connection(0, 1), "ann", "b", Some("b"));
    if let ToBridge::Publish { room, .. } = &mut elsewhere {
        *room = RoomId::new("elsewhere");
    }
    world.shard(elsewhere);
    assert_eq!(world.acks().len(), 1, "another room goes on");
    world.bus_refuses = None;
    world.publish("a", Some("a"));
    assert_eq!(world.delivered(0), [(1, "first".into()), (2, "a".into())]);
    assert_eq!(world.nodes[0].bridge.stats().publishes_now, 0);
}

#[test]
fn a_message_whose_publishing_the_bus_refuses_is_told_in_time_and_comes_when_the_room_is_ours_again() {
    let mut world = World::new();
    world.subscribe(0);
    world.bus_refuses = Some(|request| matches!(request, BusRequest::Publish { .. }));
    world.publish("a", Some("a"));
    world.pass(6_000);
    assert_eq!(world.refusals().len(), 1);
    assert_eq!(world.delivered(0), []);
    world.bus_refuses = None;
    world.pass(3_000);
    world.publish("a", Some("a"));
    assert_eq!(world.acks().len(), 1);
    let contents: Vec<String> = world.delivered(0).into_iter().map(|(_, content)| content).collect();
    assert_eq!(contents, ["a"], "once");
}

#[test]
fn answers_of_the_bus_that_are_lost_change_nothing() {
    let kinds: [fn(&BusRequest) -> bool; 6] = [
        |request| matches!(request, BusRequest::Sequence { .. }),
        |request| matches!(request, BusRequest::Publish { .. }),
        |request| matches!(request, BusRequest::Head { .. }),
        |request| matches!(request, BusRequest::Begin { .. }),
        |request| matches!(request, BusRequest::Finish { .. }),
        |_| true,
    ];
    for (number, kind) in kinds.into_iter().enumerate() {
        for is_done in [false, true] {
            let mut world = World::new();
            // Subscriptions are repeated at once, so they cannot fail for ever in this test.
            world.subscribe(0);
            world.shard(ToBridge::Unsubscribe { room: room(), shard: ShardId(0) });
            world.subscribe(0);
            world.bus_fails = Some(kind);
            if number == 5 {
                world.bus_fails = Some(|request| !matches!(request, BusRequest::Subscribe { .. }));
            }
            world.bus_fails_after = is_done;
            // In one turn: once the bus has failed, publishes are refused at once.
            for id in ["a", "b"] {
                world.gather(World::publish_message(connection(0, 1), "ann", id, Some(id)));
            }
            world.run();
            world.pass(1_000);
            world.bus_fails = None;
            world.pass(6_000);
            let contents = world.delivered(0);
            assert_eq!(contents, [(1, "a".into()), (2, "b".into())], "kind {number}, done {is_done}");
            let acks: Vec<(String, u64)> = world.acks().into_iter().map(|(id, _, seq)| (id, seq)).collect();
            assert_eq!(acks, [("a".into(), 1), ("b".into(), 2)], "kind {number}, done {is_done}");
        }
    }
}

#[test]
fn while_the_bus_is_away_publishers_are_told_at_once_and_history_goes_on() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.bus_fails = Some(|_| true);
    world.publish("a", Some("a"));
    assert!(world.nodes[0].bridge.stats().bus_degraded_now);
    world.publish("b", Some("b"));
    assert_eq!(world.refusals(), [("unavailable".into(), Some("b".into()), Some(200))]);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.live), (vec![1], true));
    world.pass(500);
    world.bus_fails = None;
    world.pass(1_000);
    assert!(!world.nodes[0].bridge.stats().bus_degraded_now);
    assert_eq!(world.delivered(0), [(1, "first".into()), (2, "a".into())]);
}

#[test]
fn a_probe_of_a_bus_that_is_away_is_answered_soon_and_is_the_only_one() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.bus_fails = Some(|_| true);
    world.publish("a", Some("a"));
    world.pass(300);
    assert_eq!(world.refusals(), [], "what was under way has patience");
    let refused = |world: &mut World, id: &str| {
        let before = world.refusals().len();
        world.publish(id, Some(id));
        world.pass(60);
        let refusals = world.refusals().split_off(before);
        assert!(refusals.iter().all(|(code, _, retry)| code == "unavailable" && retry.is_some()));
        refusals.into_iter().filter_map(|(_, id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(refused(&mut world, "probe"), ["probe"], "with the next SEQ");
    // The bus does not answer at all.
    world.bus_fails = None;
    world.bus_hangs = true;
    world.pass(1_000);
    assert_eq!(refused(&mut world, "b"), [""; 0], "the next probe");
    world.pass(800);
    assert_eq!(refused(&mut world, "c"), ["c"], "while it is under way no other is let through");
    world.pass(80);
    assert_eq!(world.refusals().last().map(|(_, id, _)| id.clone()), Some(Some("b".into())), "after a second");
    assert_eq!(world.refusals().len(), 3);
}

#[test]
fn too_many_pending_messages_wait_and_keep_their_order() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.mood = Mood::Hangs;
    let count = PENDING_MESSAGES_MAX + 100;
    for number in 0..count {
        world.gather(World::publish_message(connection(0, 1), "ann", &number.to_string(), None));
    }
    world.run();
    world.pass(100);
    world.heal(false);
    world.pass(100);
    let contents: Vec<String> = world.delivered(0).into_iter().skip(1).map(|(_, content)| content).collect();
    assert_eq!(contents, (0..count).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(world.nodes[0].bridge.stats().publishes_now, 0);
}

#[test]
fn appends_that_end_in_another_order_are_delivered_in_seq_order() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.mood = Mood::Hangs;
    for content in ["a", "b", "c"] {
        world.publish(content, None);
    }
    world.heal(true);
    assert_eq!(world.delivered(0)[1..], [(2, "a".into()), (3, "b".into()), (4, "c".into())]);
    assert_eq!(world.nodes[0].bridge.stats().history_from_memory_total, 0);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), world.reads), (vec![1, 2, 3, 4], 0), "memory is whole");
}

/// Two nodes; the first has been given seq 2 for "a", and its store hangs.
fn two_nodes() -> World {
    let mut world = World::pair();
    world.shard_at(1, ToBridge::Subscribe { room: room(), shard: ShardId(0) });
    world.subscribe(0);
    world.publish("first", None);
    world.mood = Mood::Hangs;
    world.publish("a", Some("a"));
    world.mood = Mood::Well;
    world
}

#[test]
fn a_seq_whose_node_died_is_voided_and_delivery_goes_on() {
    let mut world = two_nodes();
    world.kill(0);
    world.publish_at(1, "b", None);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into())], "2 is not decided");
    world.pass(900);
    assert_eq!(world.delivered_at(1, 0).len(), 1);
    world.pass(1_200);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into()), (3, "b".into())]);
    assert_eq!(world.store.meta(&room()).voids, [2]);
    assert_eq!(world.nodes[1].bridge.stats().voided_total, 1);
    world.heal(false);
    let rows: Vec<u64> = world.store.messages(&room()).iter().map(|read| read.row.seq).collect();
    assert_eq!(rows, [1, 3], "the append that came too late stays void");
}

#[test]
fn a_void_finds_out_that_a_store_is_well_again_where_no_publish_can() {
    let mut world = two_nodes();
    world.kill(0);
    world.publish_at(1, "b", None);
    world.mood = Mood::Down;
    world.pass(5_000);
    assert!(world.nodes[1].bridge.stats().store_degraded_now);
    let seals = |world: &World| world.trace.iter().filter(|line| line.starts_with("1 Bus(Void1")).count();
    assert_eq!(seals(&world), 1, "while the store is down nothing more is voided");
    world.mood = Mood::Well;
    world.pass(12_000);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into()), (3, "b".into())]);
    assert!(!world.nodes[1].bridge.stats().store_degraded_now);
}

#[test]
fn a_message_behind_a_seq_whose_node_died_arrives_though_its_event_was_lost_and_nobody_writes() {
    let mut world = two_nodes();
    world.kill(0);
    world.is_deaf = true;
    world.publish_at(1, "b", None);
    world.is_deaf = false;
    world.pass(12_000);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into()), (3, "b".into())]);
}

#[test]
fn a_retry_on_another_node_waits_for_the_first_attempt_or_its_void() {
    let mut world = two_nodes();
    world.publish_at(1, "a", Some("a"));
    assert_eq!(world.acks_at(1), []);
    world.heal(false);
    world.pass(100);
    assert_eq!(world.acks_at(1), world.acks_at(0), "the first attempt ended");

    let mut world = two_nodes();
    world.kill(0);
    world.publish_at(1, "a", Some("a"));
    world.pass(3_000);
    assert_eq!(world.acks_at(1).iter().map(|ack| ack.2).collect::<Vec<_>>(), [3]);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into()), (3, "a".into())]);
    world.heal(false);
    assert_eq!(world.store.messages(&room()).len(), 2);
}

#[test]
fn a_slow_writer_whose_seq_was_voided_takes_another() {
    let mut world = two_nodes();
    world.publish_at(1, "b", None);
    world.pass(2_000);
    assert_eq!(world.delivered_at(1, 0), [(1, "first".into()), (3, "b".into())], "voided by the other node");
    world.heal(false);
    world.pass(1_000);
    for node in [0, 1] {
        assert_eq!(world.delivered_at(node, 0), [(1, "first".into()), (3, "b".into()), (4, "a".into())]);
    }
    assert_eq!(world.acks_at(0).iter().map(|ack| ack.2).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_message_whose_seq_was_voided_does_not_come_after_later_ones_of_its_connection() {
    let mut world = two_nodes();
    world.publish("b", Some("b"));
    world.pass(2_000);
    assert_eq!(world.delivered(0), [(1, "first".into()), (3, "b".into())], "2 was voided");
    assert_eq!(world.acks().iter().map(|ack| ack.2).collect::<Vec<_>>(), [3]);
    world.heal(false);
    world.pass(1_000);
    assert_eq!(world.refusals().into_iter().map(|(_, id, _)| id).collect::<Vec<_>>(), [Some("a".to_owned())]);
    assert_eq!(world.delivered(0).len(), 2, "it is for its client to send it again");
    world.publish("a", Some("a"));
    assert_eq!(world.acks().last().map(|ack| ack.2), Some(4));
}

#[test]
fn a_bus_that_lost_everything_loses_nothing() {
    for order in [false, true] {
        let mut world = two_nodes();
        world.lose_bus();
        if order {
            // The other node initialises the room before the append is durable: seq 2 is dead with its generation.
            world.publish_at(1, "b", None);
        }
        world.heal(false);
        world.publish_at(1, "c", None);
        world.pass(12_000);
        let expected: &[(u64, String)] = if order {
            &[(1, "first".into()), (2, "b".into()), (3, "c".into()), (4, "a".into())]
        } else {
            &[(1, "first".into()), (2, "a".into()), (3, "c".into())]
        };
        let mut contents = world.delivered_at(0, 0);
        assert_eq!(contents, world.delivered_at(1, 0));
        if order {
            // Whether "a" or "c" comes first is not said.
            contents[2..].sort_by(|one, other| other.1.cmp(&one.1));
            assert_eq!(
                contents.iter().map(|(_, content)| content.as_str()).collect::<Vec<_>>(),
                ["first", "b", "c", "a"]
            );
        } else {
            assert_eq!(contents, expected);
        }
        assert_eq!(world.acks_at(0).len(), 1);
        let stored: Vec<u64> = world.store.messages(&room()).iter().map(|read| read.row.seq).collect();
        assert_eq!(stored, (1..=expected.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn the_same_events_give_the_same_effects() {
    let run = || {
        let mut world = two_nodes();
        world.publish_at(1, "b", Some("b"));
        world.pass(3_000);
        world.heal(true);
        world.pass(3_000);
        world.trace
    };
    assert_eq!(run(), run());
}

/// Seeded chance: two nodes, moods of the store, kills, a bus that loses all; at the end nothing is lost or doubled.
#[test]
fn whatever_happens_nothing_acked_is_lost_or_doubled() {
    for seed in 1..=300 {
        chance(seed);
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % count
    }
}

fn chance(seed: u64) {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let small = BridgeConfig { page_bytes_max: 40, recent_bytes_max: 2_000, ..config(seed * 1_000) };
    let mut world = World::with(BridgeConfig { cluster: true, ..small });
    world.add_node(BridgeConfig { cluster: true, ..config(seed * 1_000 + 500) });
    world.events_first = seed.is_multiple_of(2);
    let subscribe = |world: &mut World, node| {
        world.shard_at(node, ToBridge::Subscribe { room: room(), shard: ShardId(0) });
    };
    let mut acked: Vec<(String, String, u64)> = Vec::new();
    let mut delivered: Vec<Vec<(u64, String)>> = Vec::new();
    let reap = |world: &World, node: usize, acked: &mut Vec<_>, delivered: &mut Vec<_>| {
        acked.extend(world.acks_at(node));
        delivered.push(world.delivered_at(node, 0));
    };
    subscribe(&mut world, 0);
    subscribe(&mut world, 1);
    let mut bus_losses = 0;
    for _ in 0..120 {
        let node = chance.below(2) as usize;
        match chance.below(20) {
            0 => world.mood = Mood::RefusesWrites,
            1 => world.mood = Mood::Down,
            2 => world.mood = Mood::LosesReplies,
            3 | 4 => world.mood = Mood::Hangs,
            5..=7 => {
                let is_reversed = chance.below(2) == 0;
                world.heal(is_reversed);
            }
            8 => {
                reap(&world, node, &mut acked, &mut delivered);
                world.kill(node);
                subscribe(&mut world, node);
            }
            9 if bus_losses < 3 => {
                bus_losses += 1;
                world.lose_bus();
            }
            10..=12 => {
                let ms = chance.below(1_500);
                world.pass(ms);
            }
            13 => world.shard_at(node, ToBridge::History { from: connection(0, 1), room: room(), ask: LAST }),
            _ => {
                let id = format!("c{}", chance.below(30));
                world.publish_at(node, &id, Some(&id));
            }
        }
    }
    world.heal(false);
    world.pass(30_000);
    for node in 0..2 {
        world.publish_at(node, "last", None);
    }
    world.pass(30_000);
    for node in 0..2 {
        reap(&world, node, &mut acked, &mut delivered);
        assert_eq!(world.nodes[node].bridge.stats().publishes_now, 0, "seed {seed}, node {node}");
    }
    let stored = world.store.messages(&room());
    let contents: Vec<(u64, String)> =
        stored.iter().map(|read| (read.row.seq, String::from_utf8_lossy(&read.row.content).into_owned())).collect();
    for seen in &delivered {
        // Each shard saw a part of the one order, without a gap and without a repeat.
        let Some((first, last)) = seen.first().zip(seen.last()) else { continue };
        let expected: Vec<_> = contents.iter().filter(|(seq, _)| (first.0..=last.0).contains(seq)).cloned().collect();
        assert_eq!(*seen, expected, "seed {seed}");
    }
    assert_eq!(delivered[delivered.len() - 1].last(), contents.last(), "seed {seed}");
    assert_eq!(delivered[delivered.len() - 2].last(), contents.last(), "seed {seed}");
    for (client_id, message_id, seq) in &acked {
        let row = &stored.iter().find(|read| read.row.seq == *seq).expect("an acked message is stored").row;
        assert_eq!(*row.client_id, **client_id, "seed {seed}");
        assert_eq!(MessagePlace { epoch: row.generation, seq: *seq }.encode("lobby"), *message_id, "seed {seed}");
    }
    for number in 0..30 {
        let id = format!("c{number}");
        let times = stored.iter().filter(|read| *read.row.client_id == *id).count();
        assert!(times <= 1, "seed {seed}: {id} is stored {times} times");
    }
}

#[test]
fn what_was_held_of_a_dead_generation_is_not_delivered() {
    let mut world = World::new();
    world.subscribe(0);
    world.publish("first", None);
    world.event(BridgeEvent::BusEvent(BusEvent::Message {
        room: room(),
        generation: 1,
        seq: 3,
        base: 1,
        stable: 1,
        payload: Bytes::from_static(b"{\"seq\":3,\"content\":\"dead\"}"),
        received_us: 0,
    }));
    assert_eq!(world.delivered(0).len(), 1, "2 is missing");
    world.bus.forget(&room());
    world.publish("second", None);
    world.publish("third", None);
    assert_eq!(world.delivered(0), [(1, "first".into()), (2, "second".into()), (3, "third".into())]);
}

#[test]
fn a_client_that_is_further_than_its_new_node_waits_for_it_to_catch_up() {
    let mut world = World::pair();
    world.subscribe(0);
    world.publish("first", None);
    // The second node has not heard of 2 and 3 when their reader comes.
    world.is_deaf = true;
    world.publish_at(1, "second", None);
    world.publish_at(1, "third", None);
    world.is_deaf = false;
    assert_eq!(world.delivered(0).len(), 1);
    let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 3, epoch: Some(1), limit: 50 });
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, true)));
    assert_eq!(world.delivered(0).len(), 3);
    let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 9, epoch: Some(1), limit: 50 });
    assert_eq!((page.seqs(), page.flags()), (vec![1, 2, 3], (false, false, true)), "no node is that far");
}

#[test]
fn a_generation_that_is_being_made_keeps_rows_from_being_read_as_decided() {
    let mut world = World::new();
    world.publish("first", None);
    world.bus = crate::bus::LocalBus::new(3);
    // Another node has begun a generation, and has read the tail: what it did not see there it will not keep.
    let begins = crate::store::StoreRequest::AdvanceGen { ticket: 1, room: room(), expect: 1, owner: 99 };
    world.store.handle(begins);
    world.ask(connection(0, 1), LAST);
    world.pass(5_000);
    assert_eq!(world.take_pages().len(), 1);
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (3, 2)], "the reader made one that includes the row");
}

#[test]
fn a_void_on_its_way_when_the_bus_was_lost_takes_nothing_back_that_was_read() {
    let mut world = World::with(BridgeConfig { cluster: true, ..config(7) });
    world.publish("first", None);
    world.bus = crate::bus::LocalBus::new(3);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!(page.seqs(), [1]);
    // For all that the store says, 1 may have been pending on the bus that is gone, and being voided.
    let void = crate::store::StoreRequest::Void { ticket: 1, room: room(), generation: 1, seq: 1 };
    let crate::store::StoreReply::Compared { applied, .. } = world.store.handle(void) else { panic!("not compared") };
    assert!(!applied, "a later generation keeps it out");
    // What was decided by a generation's beginning is read without another one.
    world.bus = crate::bus::LocalBus::new(4);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!(page.seqs(), [1]);
    assert_eq!(world.store.meta(&room()).generation, 2);
}

#[test]
fn after_the_loss_of_the_bus_a_generation_is_made_only_if_the_store_has_more_than_was_delivered() {
    let mut world = World::pair();
    world.subscribe(0);
    world.publish("first", None);
    world.lose_bus();
    world.pass(12_000);
    assert_eq!(world.store.meta(&room()).generation, 1, "nothing is missing");
    world.publish("second", None);
    world.is_deaf = true;
    world.publish_at(1, "third", None);
    world.lose_bus();
    world.is_deaf = false;
    world.pass(12_000);
    assert_eq!(world.delivered(0).len(), 3);
    assert_eq!(world.store.meta(&room()).generation, 3);
}

#[test]
fn a_bus_that_comes_back_with_an_older_generation_than_one_that_is_known_serves_it_no_longer() {
    let mut world = World::with(BridgeConfig { cluster: true, ..config(7) });
    world.subscribe(0);
    world.publish("first", None);
    let replaced = std::mem::replace(&mut world.bus, LocalBus::new(9));
    world.lose_bus();
    world.publish("second", None);
    assert_eq!(world.store.meta(&room()).generation, 2);
    world.bus = replaced;
    world.event(BridgeEvent::BusEvent(BusEvent::Lost));
    world.run();
    world.publish("third", None);
    world.pass(2_000);
    let places: Vec<(u64, u64)> =
        world.store.messages(&room()).iter().map(|read| (read.row.seq, read.row.generation)).collect();
    assert_eq!(places, [(1, 1), (2, 2), (3, 3)]);
    let told = world.delivered(0);
    assert_eq!(told, [(1, "first".to_owned()), (2, "second".to_owned()), (3, "third".to_owned())]);
}
