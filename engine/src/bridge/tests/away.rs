//! History while the bus is away, of rooms whose place is not known: only what is certain to be decided is shown, and
//! the rest follows when the bus is back.

use super::world::{Page, World, config, connection, room};
use crate::bridge::{Answer, BridgeConfig, Call};
use crate::bus::{BusRequest, PENDING_MESSAGES_MAX};
use crate::mesh::{HistoryAsk, NextPage, ToBridge, ToShard};
use crate::names::ShardId;

const LAST: HistoryAsk = HistoryAsk::Last { limit: 50 };

fn since(seq: u64, epoch: u64) -> HistoryAsk {
    HistoryAsk::Since { seq, epoch: Some(epoch), limit: 50 }
}

/// The second node has published three messages, and one more after its bus began anew; then the bus went away. The first
/// node does not know the room.
fn without_bus() -> World {
    let mut world = World::pair();
    world.shard_at(1, ToBridge::Subscribe { room: room(), shard: ShardId(0) });
    for content in ["m1", "m2", "m3"] {
        world.publish_at(1, content, None);
    }
    world.lose_bus();
    world.publish_at(1, "m4", None);
    world.pass(2_000);
    assert_eq!(world.store.meta(&room()).bases, [(1, 1), (2, 4)]);
    world.bus_fails = Some(|_| true);
    world
}

fn later_ms(world: &World) -> Vec<Option<u16>> {
    let out = world.nodes[0].out.iter();
    out.filter_map(|(_, message)| match message {
        ToShard::HistoryPage { later_ms, .. } => Some(later_ms.map(u16::from)),
        _ => None,
    })
    .collect()
}

fn page_later(world: &mut World, ask: HistoryAsk) -> Page {
    world.ask(connection(0, 1), ask);
    world.pass(2_000);
    assert_eq!(later_ms(world), [Some(1_000)]);
    assert_eq!(world.histories_refused(), 0);
    let mut pages = world.take_pages();
    assert_eq!(pages.len(), 1, "one ask, one page");
    pages.remove(0)
}

fn follow(world: &mut World, next: NextPage) -> Page {
    world.ask(connection(0, 1), HistoryAsk::Next(next));
    world.pass(2_000);
    world.take_pages().remove(0)
}

/// The shard of who got the page asks again in vain, and once more when the bus is back.
fn rest_when_back(world: &mut World, page: Page) -> Page {
    let next = page.next.expect("the answer goes on");
    world.ask(connection(0, 1), HistoryAsk::Next(next.clone()));
    world.pass(2_000);
    assert_eq!((world.histories_refused(), world.take_pages().len()), (1, 0), "there is nothing new");
    world.bus_fails = None;
    follow(world, next)
}

#[test]
fn a_join_of_a_room_that_is_new_here_gets_what_is_certain_and_the_rest_when_the_bus_is_back() {
    let mut world = without_bus();
    world.subscribe(0);
    let page = page_later(&mut world, LAST);
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![1, 2, 3], (3, 2), (false, true, false)));
    let page = rest_when_back(&mut world, page);
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![4], (4, 2), (true, false, true)));
    world.publish_at(1, "m5", None);
    assert_eq!(world.delivered(0), [(5, "m5".to_owned())]);
}

#[test]
fn a_resume_goes_as_far_as_is_certain_and_one_from_beyond_waits() {
    let mut world = without_bus();
    world.subscribe(0);
    let page = page_later(&mut world, since(1, 1));
    assert_eq!((page.seqs(), page.flags()), (vec![2, 3], (false, true, false)));
    let mut next = vec![page.next.expect("the answer goes on")];
    let page = page_later(&mut world, since(3, 2));
    assert_eq!((page.seqs(), page.flags()), (vec![], (false, true, false)));
    next.extend(page.next);
    for (seq, epoch) in [(4, 2), (7, 1), (1, 3)] {
        let page = page_later(&mut world, since(seq, epoch));
        assert_eq!((page.seqs(), page.head(), page.flags()), (vec![], (seq, epoch), (false, true, false)));
        assert!(page.next.is_none(), "it is judged when the bus is back");
    }
    world.bus_fails = None;
    for next in next {
        let page = follow(&mut world, next);
        assert_eq!((page.seqs(), page.flags()), (vec![4], (true, false, true)));
    }
}

#[test]
fn what_may_be_undecided_is_not_shown() {
    let mut world = World::pair();
    world.shard_at(1, ToBridge::Subscribe { room: room(), shard: ShardId(0) });
    let certain = 10;
    for number in 1..=PENDING_MESSAGES_MAX + certain {
        world.publish_at(1, &format!("m{number}"), None);
    }
    world.bus_fails = Some(|request| !matches!(request, BusRequest::Sequence { .. }));
    world.publish_at(1, "stored and not published", None);
    world.bus_fails = Some(|_| true);
    let certain = certain + 1;
    world.subscribe(0);
    let reads = world.reads;
    for slot in 0..20 {
        world.ask(connection(0, slot), LAST);
    }
    world.pass(2_000);
    let pages = world.take_pages();
    assert_eq!((pages.len(), world.reads - reads), (20, 1), "one read for all");
    for page in pages {
        assert_eq!(page.seqs(), (1..=certain).collect::<Vec<_>>());
    }
    let call = |world: &mut World, after, before| {
        world.call(1, Call::History { room: room(), ask: HistoryAsk::Range { after, before, limit: 4 } });
        world.pass(2_000);
        let Some((1, Answer::History { rows, seq, complete, more, .. })) = world.nodes[0].answers.pop() else {
            panic!("an answer");
        };
        assert_eq!(seq, certain);
        (rows.iter().map(|read| read.row.seq).collect::<Vec<_>>(), complete, more)
    };
    assert_eq!(call(&mut world, None, None), (vec![8, 9, 10, 11], false, false), "there may be more");
    assert_eq!(call(&mut world, None, Some(6)), (vec![2, 3, 4, 5], true, false));
    assert_eq!(call(&mut world, Some(5), Some(8)), (vec![6, 7], true, false));
    assert_eq!(call(&mut world, Some(9), None), (vec![10, 11], false, false));
    assert_eq!(call(&mut world, Some(12), Some(20)), (vec![], false, false));
}

#[test]
fn a_new_room_is_empty_until_the_bus_is_back_and_that_is_said_once() {
    let mut world = World::with(BridgeConfig { cluster: true, ..config(7) });
    world.bus_fails = Some(|_| true);
    world.subscribe(0);
    let page = page_later(&mut world, LAST);
    assert_eq!((page.seqs(), page.head(), page.flags()), (vec![], (0, 0), (false, true, false)));
    let page = rest_when_back(&mut world, page);
    assert_eq!((page.seqs(), page.flags()), (vec![], (true, false, true)));
}

#[test]
fn without_bus_and_store_history_is_refused() {
    let mut world = without_bus();
    world.mood = super::world::Mood::Down;
    world.ask(connection(0, 1), LAST);
    world.pass(100);
    assert_eq!((world.histories_refused(), world.take_pages().len()), (1, 0));
    world.heal(false);
    world.nodes[0].out.clear();
    let page = page_later(&mut world, LAST);
    assert_eq!(page.seqs(), [1, 2, 3]);
}
