//! Strict mode: a bus whose place was taken by another publishes nothing.

use super::world::{Mood, World, config, connection, room, user};
use crate::bridge::BridgeConfig;
use crate::mesh::HistoryAsk;
use crate::store::{Row, StoreRequest};
use bytes::Bytes;
use std::sync::Arc;

/// The room is begun anew elsewhere: a second master took the bus's place, and the store knows.
fn begin_elsewhere(world: &mut World) {
    world.store.handle(StoreRequest::AdvanceGen { ticket: 0, room: room(), expect: 1, owner: 9 });
    let (generation, owner, base) = (2, 9, 2);
    world.store.handle(StoreRequest::SetBase { ticket: 0, room: room(), generation, owner, base, voids: Vec::new() });
}

fn generations(world: &World) -> Vec<(u64, u64)> {
    world.store.messages(&room()).iter().map(|read| (read.row.seq, read.row.generation)).collect()
}

#[test]
fn a_generation_that_the_store_has_left_behind_is_not_published() {
    for (strict, generation) in [(false, 1), (true, 3)] {
        let mut world = World::with(BridgeConfig { strict, ..config(7) });
        world.subscribe(0);
        world.publish("a", Some("a"));
        begin_elsewhere(&mut world);
        world.publish("b", Some("b"));
        world.pass(2_000);
        assert_eq!(world.delivered(0), [(1, "a".to_owned()), (2, "b".to_owned())], "once, strict {strict}");
        assert_eq!(world.acks().len(), 2);
        // Without the read it was acked in a generation that every later reader takes for dead.
        assert_eq!(generations(&world), [(1, 1), (2, generation)], "strict {strict}");
        assert_eq!(world.nodes[0].bridge.stats().publishes_now, 0);
    }
}

#[test]
fn a_store_that_cannot_say_the_generation_keeps_messages_waiting_not_lost() {
    let mut world = World::with(BridgeConfig { strict: true, ..config(7) });
    world.subscribe(0);
    world.publish("a", None);
    world.mood = Mood::Down;
    world.publish("b", Some("b"));
    world.pass(1_000);
    assert_eq!(world.delivered(0).len(), 1);
    world.heal(false);
    world.pass(2_000);
    assert_eq!(world.delivered(0), [(1, "a".to_owned()), (2, "b".to_owned())]);
    assert_eq!(world.acks().len(), 1);
}

#[test]
fn a_client_that_knows_a_later_generation_than_the_bus_is_served_under_a_new_one() {
    let mut world = World::with(BridgeConfig { cluster: true, ..config(7) });
    world.subscribe(0);
    world.publish("a", None);
    begin_elsewhere(&mut world);
    let row = Row {
        room: room(),
        seq: 2,
        generation: 2,
        user: user("ann").id,
        username: Arc::from("ANN"),
        content: Bytes::from_static(b"b"),
        client_id: Arc::from("b"),
        attempt: 4,
        timestamp: 1,
    };
    world.store.handle(StoreRequest::Append { ticket: 0, rows: vec![row] });
    let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 2, epoch: Some(2), limit: 50 });
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, true)));
    assert_eq!(world.store.meta(&room()).generation, 3);
    assert_eq!(world.delivered(0).len(), 2);
}
