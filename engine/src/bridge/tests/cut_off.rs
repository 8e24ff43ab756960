//! A later generation that begins below what was delivered: a Redis that was replaced had lived on with this node.

use super::world::{Mood, World, config, connection, room, user};
use crate::bridge::{BridgeConfig, BridgeEvent};
use crate::bus::BusEvent;
use crate::mesh::HistoryAsk;
use crate::store::{Row, StoreRequest};
use bytes::Bytes;
use roomwire_wire::id::MessagePlace;
use std::sync::Arc;

const LAST: HistoryAsk = HistoryAsk::Last { limit: 50 };

fn split(recent_bytes_max: u32) -> World {
    split_with(BridgeConfig { recent_bytes_max, ..config(7) })
}

/// Three messages were delivered; the other side began a generation after the first, and published one more.
fn split_with(config: BridgeConfig) -> World {
    let mut world = World::with(config);
    world.subscribe(0);
    for content in ["m1", "m2", "m3"] {
        world.publish(content, None);
    }
    world.store.handle(StoreRequest::AdvanceGen { ticket: 0, room: room(), expect: 1, owner: 9 });
    let (generation, owner, base) = (2, 9, 2);
    world.store.handle(StoreRequest::SetBase { ticket: 0, room: room(), generation, owner, base, voids: Vec::new() });
    world.store.handle(StoreRequest::Append {
        ticket: 0,
        rows: vec![Row {
            room: room(),
            seq: 2,
            generation: 2,
            user: user("bob").id,
            username: Arc::from("BOB"),
            content: Bytes::from_static(b"other"),
            client_id: Arc::from("o"),
            attempt: 99,
            timestamp: 1,
        }],
    });
    world
}

fn begun() -> BridgeEvent {
    BridgeEvent::BusEvent(BusEvent::Control { room: room(), generation: 2, base: 2, void: None })
}

fn published() -> BridgeEvent {
    let id = MessagePlace { epoch: 2, seq: 2 }.encode(&room());
    let payload = format!(
        r#"{{"type":"chat_message","messageId":"{id}","roomId":"lobby","userId":"bob","username":"BOB","content":"other","timestamp":1,"seq":2,"epoch":2}}"#
    );
    BridgeEvent::BusEvent(BusEvent::Message {
        room: room(),
        generation: 2,
        seq: 2,
        base: 2,
        stable: 2,
        payload: Bytes::from(payload),
        received_us: 0,
    })
}

fn other() -> (u64, String) {
    (2, "other".to_owned())
}

#[test]
fn what_takes_the_place_of_what_was_cut_off_is_delivered() {
    for recent_bytes_max in [0, 64 * 1024] {
        for is_told in [true, false] {
            let mut world = split(recent_bytes_max);
            if is_told {
                world.event(begun());
                let page = world.one_page(connection(0, 1), LAST);
                assert_eq!((page.seqs(), page.head(), page.flags()), (vec![1], (1, 2), (true, false, true)));
            }
            world.event(published());
            assert_eq!(world.delivered(0).len(), 4);
            assert_eq!(world.delivered(0)[3], other());
            let page = world.one_page(connection(0, 1), LAST);
            assert_eq!((page.seqs(), page.head()), (vec![1, 2], (2, 2)));
            assert_eq!(page.json["messages"][1]["content"], "other");
            // Whoever was shown what is gone is told that something is missing.
            let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 3, epoch: Some(1), limit: 50 });
            assert_eq!((page.seqs(), page.flags()), (vec![1, 2], (false, false, true)));
        }
    }
}

#[test]
fn a_page_that_is_being_read_meanwhile_does_not_show_it() {
    let mut world = split(0);
    world.mood = Mood::Hangs;
    world.ask(connection(0, 1), LAST);
    world.event(begun());
    world.heal(false);
    let page = world.take_pages().remove(0);
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![1], (1, 2), (true, false, true)));
    world.event(published());
    assert_eq!(world.delivered(0)[3], other());
}

#[test]
fn what_only_the_earlier_generation_had_decided_is_not_read() {
    let mut world = split(0);
    // It heard of 9, and is about to read what lies before.
    world.mood = Mood::Hangs;
    let late = BusEvent::Message {
        room: room(),
        generation: 1,
        seq: 9,
        base: 1,
        stable: 8,
        payload: Bytes::from_static(b"{}"),
        received_us: 0,
    };
    world.event(BridgeEvent::BusEvent(late));
    world.event(begun());
    world.heal(false);
    world.pass(500);
    assert_eq!(world.delivered(0).len(), 3, "of 2 nobody has said that it is decided");
    world.event(published());
    assert_eq!(world.delivered(0)[3], other());
}

#[test]
fn of_generations_that_went_by_unheard_the_store_tells_where_they_began() {
    let mut world = split_with(BridgeConfig { cluster: true, ..config(7) });
    world.store.handle(StoreRequest::AdvanceGen { ticket: 0, room: room(), expect: 2, owner: 8 });
    let (generation, owner, base) = (3, 8, 3);
    world.store.handle(StoreRequest::SetBase { ticket: 0, room: room(), generation, owner, base, voids: Vec::new() });
    world.mood = Mood::Down;
    world.event(BridgeEvent::BusEvent(BusEvent::Control { room: room(), generation: 3, base: 3, void: None }));
    world.ask(connection(0, 1), LAST);
    world.pass(500);
    assert_eq!((world.delivered(0).len(), world.take_pages().len()), (3, 0));
    world.heal(false);
    world.pass(1_000);
    assert_eq!(world.delivered(0)[3..], [other()]);
    // The bus here is the old one, which is not served any more: another generation is begun on it.
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.head()), (vec![1, 2], (2, 4)));
}

#[test]
fn a_node_whose_bus_is_the_old_one_shows_no_mixture_and_leaves_it() {
    let mut world = split_with(BridgeConfig { cluster: true, recent_bytes_max: 0, ..config(7) });
    world.ask(connection(0, 1), LAST);
    assert_eq!((world.take_pages().len(), world.histories_refused()), (0, 1));
    world.pass(1_000);
    assert_eq!(world.delivered(0)[3..], [other()]);
    let page = world.one_page(connection(0, 1), LAST);
    assert_eq!((page.seqs(), page.head()), (vec![1, 2], (2, 3)));
    world.publish("m4", Some("d"));
    assert_eq!(world.delivered(0)[4..], [(3, "m4".to_owned())]);
}

#[test]
fn an_event_from_before_a_generation_that_went_by_unheard_is_not_taken_for_what_stands_there() {
    let mut world = World::pair();
    world.subscribe(0);
    world.publish("first", None);
    world.is_deaf = true;
    for content in ["second", "third"] {
        world.lose_bus();
        world.publish_at(1, content, None);
    }
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (2, 2), (3, 3)]);
    world.mood = Mood::Hangs;
    world.event(BridgeEvent::BusEvent(BusEvent::Control { room: room(), generation: 3, base: 3, void: None }));
    // The first generation's master went on for a while: the second one cut this off.
    let id = MessagePlace { epoch: 1, seq: 2 }.encode(&room());
    let payload = Bytes::from(format!(
        r#"{{"type":"chat_message","messageId":"{id}","roomId":"lobby","userId":"ann","username":"ANN","content":"cut off","timestamp":1,"seq":2,"epoch":1}}"#
    ));
    let (generation, seq, base, stable) = (1, 2, 1, 2);
    let old = BusEvent::Message { room: room(), generation, seq, base, stable, payload, received_us: 0 };
    world.event(BridgeEvent::BusEvent(old));
    world.heal(false);
    world.pass(12_000);
    let all: Vec<(u64, String)> = vec![(1, "first".into()), (2, "second".into()), (3, "third".into())];
    assert_eq!(world.delivered(0), all);
}
