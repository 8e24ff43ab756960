//! A new process over the same store: generations, positions, old client ids.

use super::world::{World, connection, room, user};
use crate::mesh::HistoryAsk;
use crate::store::{Row, StoreRequest};
use bytes::Bytes;
use std::sync::Arc;

#[test]
fn after_a_restart_seqs_go_on_under_the_next_generation_and_a_retry_finds_its_message() {
    let mut world = World::new();
    world.publish("one", Some("a"));
    let first = world.acks();
    world.restart();
    world.subscribe(0);
    world.publish("one", Some("a"));
    assert_eq!(world.acks(), first);
    assert_eq!(world.delivered(0), []);
    world.publish("two", Some("b"));
    assert_eq!(world.delivered(0), [(2, "two".to_owned())]);
    let meta = world.store.meta(&room());
    assert_eq!((meta.generation, meta.bases), (2, vec![(1, 1), (2, 2)]));
    assert_eq!(world.store.messages(&room())[1].row.generation, 2);
}

/// A room of 1, 2 and 4, whose 3 was under way when the node died.
fn room_with_a_hole() -> World {
    let mut world = World::new();
    world.publish("m1", None);
    world.publish("m2", None);
    world.store.handle(StoreRequest::Append {
        ticket: 0,
        rows: vec![Row {
            room: room(),
            seq: 4,
            generation: 1,
            user: user("ann").id,
            username: Arc::from("ANN"),
            content: Bytes::from_static(b"m4"),
            client_id: Arc::from("d"),
            attempt: 4,
            timestamp: 1,
        }],
    });
    world.restart();
    world
}

#[test]
fn what_a_crash_left_undecided_is_decided_before_anyone_reads_it() {
    let mut world = room_with_a_hole();
    world.subscribe(0);
    let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 2, epoch: Some(1), limit: 50 });
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![4], (4, 2), (true, false, true)));
    assert_eq!(world.store.meta(&room()).voids, [3]);
    world.publish("m4", Some("d"));
    assert_eq!(world.acks()[0].2, 4, "stored before the crash, so this is a retry");
    // The append that the dead node had sent comes after all: the seq stays void.
    world.publish("m5", None);
    let page = world.one_page(connection(0, 1), HistoryAsk::Range { after: Some(2), before: Some(4), limit: 50 });
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, false)));
}

#[test]
fn while_the_store_refuses_writes_what_is_undecided_is_not_read() {
    let mut world = room_with_a_hole();
    world.mood = super::world::Mood::RefusesWrites;
    world.subscribe(0);
    world.ask(connection(0, 1), HistoryAsk::Last { limit: 50 });
    world.pass(1_000);
    assert_eq!(world.take_pages().len(), 0);
    assert_eq!(world.histories_refused(), 1);
    world.heal(false);
    world.pass(2_000);
    let page = world.one_page(connection(0, 1), HistoryAsk::Last { limit: 50 });
    assert_eq!((page.seqs(), page.live), (vec![1, 2, 4], true));
}
