//! Strict mode: a bus whose place was taken by another publishes nothing.

use super::world::{Mood, World, config, room};
use crate::bridge::BridgeConfig;
use crate::store::StoreRequest;

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
