//! History and resume: pages, positions, what comes from memory and what from the store.

use super::world::{Mood, Page, World, config, connection, room};
use crate::bridge::{Answer, BridgeConfig, BridgeEvent, Call};
use crate::bus::BusEvent;
use crate::mesh::{HistoryAsk, NextPage, ToBridge, ToShard};
use crate::names::{ShardId, UserId};
use roomwire_wire::id::MessagePlace;
use std::sync::Arc;

fn since(seq: u64, epoch: u64) -> HistoryAsk {
    HistoryAsk::Since { seq, epoch: Some(epoch), limit: 50 }
}

fn last(limit: u32) -> HistoryAsk {
    HistoryAsk::Last { limit }
}

fn range(after: Option<u64>, before: Option<u64>, limit: u32) -> HistoryAsk {
    HistoryAsk::Range { after, before, limit }
}

/// A room with `count` messages, a member on shard 0, and all of it in memory.
fn room_of(count: u32) -> World {
    let mut world = World::new();
    world.subscribe(0);
    for number in 1..=count {
        world.publish(&format!("m{number}"), None);
    }
    world.nodes[0].out.clear();
    world
}

#[test]
fn a_room_without_messages_is_at_nought() {
    let mut world = World::new();
    world.subscribe(0);
    let page = world.one_page(connection(0, 1), last(50));
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![], (0, 0), (true, false, true)));
    let page = world.one_page(connection(0, 1), since(0, 0));
    assert_eq!(page.flags(), (true, false, true));
    let page = world.one_page(connection(0, 1), since(3, 1));
    assert_eq!(page.flags(), (false, false, true));
}

#[test]
fn a_join_gets_the_last_messages_and_is_live() {
    let mut world = room_of(5);
    let page = world.one_page(connection(0, 1), last(3));
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![3, 4, 5], (5, 1), (true, false, true)));
    let page = world.one_page(connection(0, 1), last(0));
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, true)));
    assert_eq!(world.reads, 0, "all from memory");
    let page = world.one_page(connection(1, 1), last(3));
    assert!(!page.live, "nothing is delivered to that shard");
}

#[test]
fn a_cold_room_is_read_once_for_all_who_join() {
    let mut world = room_of(5);
    world.restart();
    world.subscribe(0);
    world.mood = super::world::Mood::Hangs;
    for slot in 0..20 {
        world.ask(connection(0, slot), last(3));
    }
    world.heal(false);
    let pages = world.take_pages();
    assert_eq!(pages.len(), 20);
    for page in pages {
        assert_eq!((page.seqs(), page.head(), page.flags()), (vec![3, 4, 5], (5, 1), (true, false, true)));
    }
    assert_eq!(world.reads, 1);
    assert_eq!(world.store.meta(&room()).generation, 1, "reading does not begin a generation");
    // Memory now begins at seq 3, and goes on from there.
    world.publish("m6", None);
    let page = world.one_page(connection(0, 1), last(4));
    assert_eq!((page.seqs(), page.head()), (vec![3, 4, 5, 6], (6, 2)));
    assert_eq!(world.reads, 1);
    let page = world.one_page(connection(0, 1), last(5));
    assert_eq!(page.seqs(), [2, 3, 4, 5, 6]);
    assert_eq!(world.reads, 2);
}

#[test]
fn a_resume_gets_what_it_missed_then_live() {
    let mut world = room_of(5);
    let page = world.one_page(connection(0, 1), since(2, 1));
    assert_eq!((page.seqs(), page.flags()), (vec![3, 4, 5], (true, false, true)));
    let page = world.one_page(connection(0, 1), since(5, 1));
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, true)));
    let page = world.one_page(connection(0, 1), HistoryAsk::Since { seq: 4, epoch: None, limit: 50 });
    assert_eq!((page.seqs(), page.flags()), (vec![5], (true, false, true)));
}

#[test]
fn an_unknown_position_gets_the_last_messages_and_is_told() {
    let mut world = room_of(5);
    for ask in
        [HistoryAsk::Since { seq: 6, epoch: Some(1), limit: 2 }, HistoryAsk::Since { seq: 3, epoch: Some(2), limit: 2 }]
    {
        let page = world.one_page(connection(0, 1), ask);
        assert_eq!((page.seqs(), page.flags()), (vec![4, 5], (false, false, true)));
    }
}

#[test]
fn a_position_of_an_older_epoch_counts_up_to_the_base_of_the_next() {
    let mut world = room_of(2);
    for _ in 0..3 {
        world.restart();
        world.subscribe(0);
        world.publish("more", None);
    }
    // Generations 1: 1-2, 2: 3, 3: 4, 4: 5.
    world.nodes[0].out.clear();
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (2, 3), (3, 4), (4, 5)]);
    for (seq, epoch, is_valid) in [
        (2, 1, true),
        (3, 1, false),
        (3, 2, true),
        (4, 2, false),
        (4, 3, true),
        (5, 3, false),
        (5, 4, true),
        (5, 5, false),
    ] {
        let page = world.one_page(connection(0, 1), since(seq, epoch));
        assert_eq!(page.json["complete"] == true, is_valid, "{seq} {epoch}");
        let expected: Vec<u64> = if is_valid { (seq + 1..=5).collect() } else { (1..=5).collect() };
        assert_eq!(page.seqs(), expected, "{seq} {epoch}");
        assert!(page.live);
    }
}

#[test]
fn ranges_are_exclusive_and_without_after_the_newest_count() {
    let mut world = room_of(9);
    for (ask, seqs, more) in [
        (range(None, Some(5), 2), vec![3, 4], false),
        (range(None, None, 3), vec![7, 8, 9], false),
        (range(Some(2), None, 3), vec![3, 4, 5], false),
        (range(Some(2), Some(5), 50), vec![3, 4], false),
        (range(Some(4), Some(5), 50), vec![], false),
        (range(Some(8), Some(2), 50), vec![], false),
        (range(Some(20), None, 50), vec![], false),
        (range(None, Some(0), 50), vec![], false),
        (range(None, Some(u64::MAX), 1), vec![9], false),
    ] {
        let page = world.one_page(connection(0, 1), ask.clone());
        assert_eq!((page.seqs(), page.flags()), (seqs.clone(), (true, more, false)), "{ask:?}");
        // The same for one who is not a member, from the store.
        world.shard(ToBridge::Unsubscribe { room: room(), shard: ShardId(0) });
        let page = world.one_page(connection(0, 1), ask.clone());
        assert_eq!((page.seqs(), page.flags()), (seqs, (true, more, false)), "{ask:?}");
        world.subscribe(0);
    }
}

#[test]
fn pages_of_a_long_resume_are_asked_one_by_one_and_only_the_last_is_live() {
    let mut world = World::with(BridgeConfig { page_bytes_max: 4, recent_bytes_max: 600, ..config(1) });
    world.subscribe(0);
    for number in 1..=9 {
        world.publish(&format!("m{number}"), None);
    }
    let mut ask = since(1, 1);
    let mut seqs = Vec::new();
    let mut pages = 0;
    let end = loop {
        let page = world.one_page(connection(0, 1), ask);
        seqs.extend(page.seqs());
        pages += 1;
        let Some(next) = page.next.clone() else { break page };
        assert_eq!(page.flags(), (false, true, false));
        if pages == 2 {
            world.publish("while paging", None);
        }
        ask = HistoryAsk::Next(next);
    };
    assert_eq!(end.flags(), (true, false, true));
    assert_eq!(seqs, (2..=10).collect::<Vec<_>>());
    assert_eq!(pages, 5);
}

#[test]
fn a_limited_range_pages_until_its_limit() {
    let mut world = World::with(BridgeConfig { page_bytes_max: 4, ..config(1) });
    for number in 1..=9 {
        world.publish(&format!("m{number}"), None);
    }
    let page = world.one_page(connection(0, 1), range(Some(1), None, 3));
    assert_eq!((page.seqs(), page.flags()), (vec![2, 3], (false, true, false)));
    assert_eq!(page.next, Some(NextPage { after: 3, epoch: 1, before: None, left: 1, complete: true }));
    let page = world.one_page(connection(0, 1), HistoryAsk::Next(page.next.expect("a next page")));
    assert_eq!((page.seqs(), page.flags()), (vec![4], (true, false, false)));
    // The newest of a range come in one page, fewer if they are large.
    let page = world.one_page(connection(0, 1), range(None, None, 3));
    assert_eq!((page.seqs(), page.flags()), (vec![8, 9], (true, false, false)));
}

#[test]
fn messages_that_come_while_the_store_is_read_are_in_the_page_or_after_it() {
    let mut world = room_of(4);
    world.restart();
    world.subscribe(0);
    world.mood = super::world::Mood::Hangs;
    world.ask(connection(0, 1), last(50));
    world.heal(false);
    world.take_pages();
    world.restart();
    world.subscribe(0);
    world.publish("m5", None);
    world.nodes[0].out.clear();
    world.mood = super::world::Mood::Hangs;
    world.ask(connection(0, 1), last(50));
    world.publish("m6", None);
    // The append is carried out first, so m6 is delivered while the page is on its way.
    world.heal(true);
    let order: Vec<String> = world.nodes[0]
        .out
        .iter()
        .map(|(_, message)| match message {
            ToShard::Deliver { seq, .. } => format!("deliver {seq}"),
            ToShard::HistoryPage { live, .. } => format!("page {live}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(order, ["deliver 6", "page true"]);
    assert_eq!(world.take_pages()[0].seqs(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn what_retention_removed_is_told() {
    let mut world = room_of(9);
    world.store.retain(&room(), 6);
    world.restart();
    world.subscribe(0);
    let page = world.one_page(connection(0, 1), since(2, 1));
    assert_eq!((page.seqs(), page.flags()), (vec![6, 7, 8, 9], (false, false, true)));
    for _ in 0..2 {
        let page = world.one_page(connection(0, 1), last(50));
        assert_eq!((page.seqs(), page.flags()), (vec![6, 7, 8, 9], (false, false, true)));
    }
    for (ask, complete) in
        [(last(4), true), (since(5, 1), true), (since(4, 1), false), (range(Some(0), None, 2), false)]
    {
        let page = world.one_page(connection(0, 1), ask);
        assert_eq!(page.json["complete"] == true, complete);
    }
    assert!(world.store.meta(&room()).voids.is_empty(), "what is removed is not void");
}

#[test]
fn a_room_whose_messages_are_all_removed_goes_on_where_it_was() {
    let mut world = room_of(9);
    world.store.retain(&room(), 10);
    world.restart();
    world.subscribe(0);
    let page = world.one_page(connection(0, 1), last(50));
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![], (9, 1), (false, false, true)));
    world.publish("next", None);
    assert_eq!(world.delivered(0), [(10, "next".to_owned())]);
}

#[test]
fn a_receipt_is_kept_told_once_and_stands_in_every_later_page() {
    let mut world = room_of(3);
    let id = MessagePlace { epoch: 1, seq: 2 }.encode("lobby");
    let receipt = |of: &str, id: &str| ToBridge::Receipt {
        from: connection(0, 1),
        room: room(),
        user: UserId::new(of),
        message_id: Arc::from(id),
    };
    world.shard(receipt("bob", &id));
    world.shard(receipt("bob", &id));
    let events: Vec<String> = world.nodes[0]
        .out
        .drain(..)
        .map(|(shard, message)| match message {
            ToShard::Event { payload, .. } => format!("{} {}", shard.0, String::from_utf8_lossy(&payload)),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(events.len(), 1);
    assert!(events[0].starts_with("0 {\"type\":\"read_receipt\"") && events[0].contains(&id), "{}", events[0]);
    let read_by = |page: &super::world::Page| page.json["messages"][1]["readBy"].to_string();
    let page = world.one_page(connection(0, 1), last(50));
    assert_eq!(read_by(&page), "[\"bob\"]");
    assert_eq!(world.reads, 0);
    // From the store, with a receipt that overtakes the page.
    world.restart();
    world.subscribe(0);
    world.mood = super::world::Mood::Hangs;
    world.ask(connection(0, 1), last(50));
    world.heal(false);
    world.take_pages();
    world.restart();
    world.subscribe(0);
    world.one_page(connection(0, 1), last(1));
    world.mood = super::world::Mood::Hangs;
    world.ask(connection(0, 1), last(50));
    world.shard(receipt("cid", &id));
    world.heal(true);
    let page = world.take_pages().remove(0);
    assert_eq!(read_by(&page), "[\"bob\",\"cid\"]");
    let page = world.one_page(connection(0, 1), last(50));
    assert_eq!(read_by(&page), "[\"bob\",\"cid\"]");
    // Not this room's, not there, not an id.
    world.nodes[0].out.clear();
    for id in [
        MessagePlace { epoch: 1, seq: 2 }.encode("other"),
        MessagePlace { epoch: 1, seq: 9 }.encode("lobby"),
        "x".into(),
    ] {
        world.shard(receipt("bob", &id));
    }
    assert_eq!(world.refusals().iter().filter(|(code, ..)| code == "not_found").count(), 3);
}

#[test]
fn the_http_api_reads_history_of_a_room_without_members() {
    let mut world = room_of(3);
    world.restart();
    world.call(1, Call::History { room: room(), ask: range(None, None, 2) });
    let Some((1, Answer::History { rows, seq: 3, epoch: 1, complete: true, more: false })) =
        world.nodes[0].answers.pop()
    else {
        panic!("an answer");
    };
    assert_eq!(rows.iter().map(|read| read.row.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(world.nodes[0].bridge.stats().rooms_now, 0);
}

#[test]
fn a_page_that_cannot_be_read_is_refused_as_such_so_that_its_shard_asks_again() {
    let mut world = room_of(3);
    world.restart();
    world.mood = Mood::Down;
    world.ask(connection(0, 1), last(2));
    let refused = world.nodes[0].out.iter().find_map(|(shard, message)| match message {
        ToShard::HistoryRefused { to, room, code, retry_after_ms, .. } => {
            Some((*shard, *to, room.clone(), code.as_str(), retry_after_ms.is_some()))
        }
        _ => None,
    });
    assert_eq!(refused, Some((ShardId(0), connection(0, 1), room(), "unavailable", true)));
    assert!(world.refusals().is_empty());
}

#[test]
fn memory_holds_no_more_than_it_may() {
    let mut world = World::with(BridgeConfig { recent_bytes_max: 3 * 258, ..config(1) });
    world.subscribe(0);
    for number in 1..=9 {
        world.publish(&format!("m{number}"), None);
    }
    let page = world.one_page(connection(0, 1), last(3));
    assert_eq!((page.seqs(), world.reads), (vec![7, 8, 9], 0));
    let page = world.one_page(connection(0, 1), last(4));
    assert_eq!((page.seqs(), world.reads), (vec![6, 7, 8, 9], 1));
}

#[test]
fn a_page_says_the_epoch_of_its_place_and_not_of_what_is_still_to_come() {
    let mut world = World::pair();
    world.subscribe(0);
    world.publish("first", None);
    world.is_deaf = true;
    world.publish_at(1, "second", None);
    world.lose_bus();
    world.publish_at(1, "third", None);
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (2, 3)]);
    // The node hears of the second generation before it has read the end of the first.
    world.mood = Mood::Hangs;
    let control = BusEvent::Control { room: room(), generation: 2, base: 3, void: None };
    world.event(BridgeEvent::BusEvent(control));
    world.ask(connection(0, 1), since(1, 1));
    world.ask(connection(0, 2), last(50));
    world.heal(true);
    let pages = world.take_pages();
    let heads: Vec<(u64, u64)> = pages.iter().map(Page::head).collect();
    assert_eq!(heads, [(1, 1), (1, 1)]);
    world.pass(12_000);
    assert_eq!(world.delivered(0), [(1, "first".into()), (2, "second".into()), (3, "third".into())]);
    assert_eq!(world.one_page(connection(0, 3), last(1)).head(), (3, 2));
}
