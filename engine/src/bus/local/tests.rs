//! Each answer of each script.

use super::*;
use crate::names::UserId;
use bytes::Bytes;
use std::sync::Arc;

/// A bus, a clock, and what subscribers heard.
struct World {
    bus: LocalBus,
    now: Now,
    heard: Vec<BusEvent>,
}

fn room() -> RoomId {
    RoomId::new("r")
}

fn key(id: &str) -> DedupeKey {
    DedupeKey { user: UserId::new("ann"), client_id: Arc::from(id) }
}

impl World {
    /// A bus whose room is subscribed and not live.
    fn cold() -> World {
        let mut world = World { bus: LocalBus::new(5), now: Now::default(), heard: Vec::new() };
        world.pass(1);
        assert!(matches!(world.ask(BusRequest::Subscribe { room: room() }), Some(BusReply::Subscribed { .. })));
        world
    }

    /// A bus whose room is live in generation 3, with 9 as its last seq.
    fn live() -> World {
        let mut world = World::cold();
        assert_eq!(world.begin(1), Begun::Ok);
        assert_eq!(world.finish(1, 9, Vec::new()), Finished::Ok);
        world.heard.clear();
        world
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
    }

    fn ask(&mut self, request: BusRequest) -> Option<BusReply> {
        self.bus.handle(self.now, request, &mut self.heard)
    }

    fn begin(&mut self, token: u64) -> Begun {
        match self.ask(BusRequest::Begin { room: room(), token }) {
            Some(BusReply::Begun { answer, .. }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, token: u64, last: u64, dedupe: Vec<DedupeEntry>) -> Finished {
        match self.ask(BusRequest::Finish { room: room(), token, generation: 3, last, dedupe }) {
            Some(BusReply::Finished { answer, .. }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn sequence(&mut self, id: &str, attempt: u64) -> Sequenced {
        let items = vec![SequenceItem { key: key(id), attempt, timestamp: 1_000 + attempt, except: Vec::new() }];
        match self.ask(BusRequest::Sequence { room: room(), items }) {
            Some(BusReply::Sequenced { answers, .. }) => answers[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, generation: u64, seq: u64, id: &str, attempt: u64) -> bool {
        let payload = Bytes::from(id.to_owned());
        let items = vec![PublishItem { generation, seq, key: key(id), attempt, payload, received_us: 5 }];
        match self.ask(BusRequest::Publish { room: room(), items }) {
            Some(BusReply::Published { answers, .. }) => answers[0],
            other => panic!("{other:?}"),
        }
    }

    fn void1(&mut self, generation: u64, seq: u64, min_age_ms: u64) -> Voiding {
        match self.ask(BusRequest::Void1 { room: room(), generation, seq, min_age_ms }) {
            Some(BusReply::Voiding { answer, .. }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn void2(&mut self, generation: u64, seq: u64) -> bool {
        match self.ask(BusRequest::Void2 { room: room(), generation, seq }) {
            Some(BusReply::Voided { applied, .. }) => applied,
            other => panic!("{other:?}"),
        }
    }

    fn head(&mut self) -> Option<Head> {
        match self.ask(BusRequest::Head { room: room() }) {
            Some(BusReply::Head { head, .. }) => Some(head),
            Some(BusReply::NeedInit { .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    /// What was heard since the last call, in short.
    fn heard(&mut self) -> Vec<String> {
        let show = |event| match event {
            BusEvent::Message { generation, seq, base, stable, payload, received_us: 5, .. } => {
                format!("message {generation} {seq} base {base} stable {stable} {}", String::from_utf8_lossy(&payload))
            }
            BusEvent::Control { generation, base, void, .. } => {
                format!("control {generation} base {base} void {void:?}")
            }
            other => format!("{other:?}"),
        };
        self.heard.drain(..).map(show).collect()
    }
}

fn mine(seq: u64, attempt: u64) -> Sequenced {
    Sequenced::Mine { generation: 3, seq, timestamp: 1_000 + attempt }
}

#[test]
fn a_room_that_is_not_live_answers_need_init() {
    let mut world = World::cold();
    for initialising in [false, true] {
        for request in [
            BusRequest::Sequence { room: room(), items: Vec::new() },
            BusRequest::Publish { room: room(), items: Vec::new() },
            BusRequest::Void1 { room: room(), generation: 1, seq: 1, min_age_ms: 0 },
            BusRequest::Void2 { room: room(), generation: 1, seq: 1 },
            BusRequest::Head { room: room() },
            BusRequest::Retire { room: room(), generation: 1 },
        ] {
            assert!(matches!(world.ask(request), Some(BusReply::NeedInit { .. })), "{initialising}");
        }
        assert_eq!(world.finish(8, 0, Vec::new()), Finished::Refused, "not its token");
        assert_eq!(world.begin(7), Begun::Ok);
    }
}

#[test]
fn begin_waits_for_another_for_two_seconds_and_fences_it_after() {
    let mut world = World::cold();
    assert_eq!(world.begin(1), Begun::Ok);
    assert_eq!(world.begin(1), Begun::Ok, "a repeat");
    assert_eq!(world.begin(2), Begun::Wait);
    world.pass(2_000);
    assert_eq!(world.begin(2), Begun::Ok);
    assert_eq!(world.finish(1, 0, Vec::new()), Finished::Refused);
    assert_eq!(world.finish(2, 4, Vec::new()), Finished::Ok);
    assert_eq!(world.heard(), ["control 3 base 5 void None"]);
    assert_eq!(world.head(), Some(Head { generation: 3, base: 5, seq: 4, stable: 4, pending: None }));
    assert_eq!(world.begin(3), Begun::Live);
    assert_eq!(world.finish(2, 4, Vec::new()), Finished::Live, "a repeat");
}

#[test]
fn seqs_rise_by_one_and_each_is_published_once() {
    let mut world = World::live();
    assert_eq!(world.sequence("a", 1), mine(10, 1));
    assert_eq!(world.sequence("b", 2), mine(11, 2));
    world.pass(30);
    let pending = Head { generation: 3, base: 10, seq: 11, stable: 9, pending: Some((10, 30)) };
    assert_eq!(world.head(), Some(pending));
    assert!(world.publish(3, 11, "b", 2));
    assert!(world.publish(3, 10, "a", 1));
    assert_eq!(world.heard(), ["message 3 11 base 10 stable 9 b", "message 3 10 base 10 stable 11 a"]);
    assert!(world.publish(3, 10, "a", 1), "a repeat is answered alike");
    assert_eq!(world.heard(), Vec::<String>::new(), "and not heard again");
}

#[test]
fn a_repeat_of_sequence_gets_the_seq_waits_or_is_done() {
    let mut world = World::live();
    assert_eq!(world.sequence("a", 1), mine(10, 1));
    assert_eq!(world.sequence("a", 1), mine(10, 1), "the same attempt, its reply was lost");
    world.pass(40);
    assert_eq!(world.sequence("a", 2), Sequenced::Wait { generation: 3, seq: 10, age_ms: 40 });
    world.publish(3, 10, "a", 1);
    assert_eq!(world.sequence("a", 2), Sequenced::Perhaps { seq: 10 }, "its row tells");
    let other = DedupeKey { user: UserId::new("bob"), client_id: Arc::from("a") };
    let items = vec![SequenceItem { key: other, attempt: 3, timestamp: 0, except: Vec::new() }];
    let reply = world.ask(BusRequest::Sequence { room: room(), items });
    assert!(
        matches!(reply, Some(BusReply::Sequenced { answers, .. }) if matches!(answers[0], Sequenced::Mine { seq: 11, .. }))
    );
}

#[test]
fn publish_is_refused_to_all_but_the_attempt_that_has_the_seq() {
    let mut world = World::live();
    world.sequence("a", 1);
    assert!(!world.publish(2, 10, "a", 1), "another generation");
    assert!(!world.publish(3, 10, "a", 2), "another attempt");
    assert!(!world.publish(3, 12, "c", 1), "never given");
    assert_eq!(world.void1(3, 10, 0), Voiding::Ok);
    assert!(!world.publish(3, 10, "a", 1), "being voided");
    assert_eq!(world.heard(), Vec::<String>::new());
}

#[test]
fn a_void_takes_two_steps_and_gives_the_message_another_seq() {
    let mut world = World::live();
    world.sequence("a", 1);
    world.pass(500);
    assert_eq!(world.void1(2, 10, 0), Voiding::Gone);
    assert_eq!(world.void1(3, 9, 0), Voiding::Decided);
    assert_eq!(world.void1(3, 10, 1_000), Voiding::Wait);
    world.pass(500);
    assert_eq!(world.void1(3, 10, 1_000), Voiding::Ok);
    assert_eq!(world.void1(3, 10, 1_000), Voiding::Ok, "any node may repeat it");
    assert!(matches!(world.sequence("a", 1), Sequenced::Wait { seq: 10, .. }), "its writer waits for the second step");
    assert_eq!(world.head().map(|head| head.stable), Some(9), "not decided yet");
    assert!(!world.void2(2, 10));
    assert!(world.void2(3, 10));
    assert_eq!(world.heard(), ["control 3 base 10 void Some(10)"]);
    assert!(world.void2(3, 10), "a repeat");
    assert_eq!(world.heard(), Vec::<String>::new());
    assert_eq!(world.head().map(|head| head.stable), Some(10));
    assert_eq!(world.sequence("a", 1), mine(11, 1));
    assert!(!world.publish(3, 10, "a", 1));
}

#[test]
fn at_most_w_are_pending() {
    let mut world = World::live();
    for number in 0..PENDING_MESSAGES_MAX {
        assert!(matches!(world.sequence(&number.to_string(), number), Sequenced::Mine { .. }));
    }
    world.pass(7);
    assert_eq!(world.sequence("more", 9_999), Sequenced::Busy { generation: 3, seq: 10, age_ms: 7 });
    assert_eq!(world.sequence("3", 3), mine(13, 3), "what is known is answered all the same");
    // One in the middle does not move what is stable.
    assert!(world.publish(3, 13, "3", 3));
    assert!(matches!(world.sequence("more", 9_999), Sequenced::Busy { .. }));
    assert!(world.publish(3, 10, "0", 0));
    assert_eq!(world.sequence("more", 9_999), mine(10 + PENDING_MESSAGES_MAX, 9_999));
}

#[test]
fn the_dedupe_window_spans_d_messages_or_a_little_more() {
    let mut world = World::live();
    world.sequence("pending", 1);
    world.sequence("first", 2);
    world.publish(3, 11, "first", 2);
    let mut known_until = 0;
    for number in 0..3 * DEDUPE_MESSAGES {
        // The pending seq holds back `stable`: W further ones and no more.
        if number == DEDUPE_MESSAGES - 100 {
            assert!(world.publish(3, 10, "pending", 1));
        }
        let id = format!("n{number}");
        let Sequenced::Mine { seq, .. } = world.sequence(&id, 3) else { panic!("a seq") };
        world.publish(3, seq, &id, 3);
        if world.bus.rooms[&room()].dedupe.find(world.bus.fingerprinter.of(&key("first"))).any(|seq| seq == 11) {
            known_until = number + 1;
        }
    }
    assert!((DEDUPE_MESSAGES - 1..=2 * DEDUPE_MESSAGES).contains(&known_until), "{known_until}");
    assert!(world.bus.entries <= 2 * DEDUPE_MESSAGES as usize);
    assert_eq!(world.bus.entries, world.bus.rooms[&room()].dedupe.capacity());
}

#[test]
fn what_finish_loads_is_known() {
    let mut world = World::cold();
    world.begin(1);
    let entry = |id: &str, seq| DedupeEntry { key: key(id), seq, generation: 2, timestamp: 77 };
    world.finish(1, 9, vec![entry("new", 9), entry("old", 4)]);
    for number in 0..DEDUPE_MESSAGES - 6 {
        let id = format!("n{number}");
        let Sequenced::Mine { seq, .. } = world.sequence(&id, 3) else { panic!("a seq") };
        world.publish(3, seq, &id, 3);
    }
    assert_eq!(world.sequence("old", 9), Sequenced::Perhaps { seq: 4 });
    assert_eq!(world.sequence("new", 9), Sequenced::Perhaps { seq: 9 });
}

/// A world whose fingerprints are all the same.
fn colliding() -> World {
    let mut world = World::cold();
    world.bus = LocalBus::with_fingerprint_bits(5, 0);
    world.begin(1);
    world.finish(1, 9, Vec::new());
    world
}

fn ask(world: &mut World, items: &[(&str, &str, &[u64])]) -> Vec<Sequenced> {
    let item = |(user, id, except): &(&str, &str, &[u64])| SequenceItem {
        key: DedupeKey { user: UserId::new(user), client_id: Arc::from(*id) },
        attempt: 1,
        timestamp: 1_001,
        except: except.to_vec(),
    };
    let items = items.iter().map(item).collect();
    match world.ask(BusRequest::Sequence { room: room(), items }) {
        Some(BusReply::Sequenced { answers, .. }) => answers,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pending_messages_whose_fingerprints_collide_are_told_apart() {
    let mut world = colliding();
    assert_eq!(world.sequence("a", 1), mine(10, 1));
    assert_eq!(world.sequence("b", 1), mine(11, 1));
    assert_eq!(world.sequence("a", 1), mine(10, 1));
    assert!(matches!(world.sequence("b", 2), Sequenced::Wait { seq: 11, .. }));
}

#[test]
fn a_decided_message_with_the_same_fingerprint_is_a_candidate_until_it_is_excepted() {
    let mut world = colliding();
    world.sequence("a", 1);
    world.publish(3, 10, "a", 1);
    let perhaps = |seq| Sequenced::Perhaps { seq };
    assert_eq!(ask(&mut world, &[("ann", "b", &[])]), [perhaps(10)]);
    assert_eq!(ask(&mut world, &[("ann", "b", &[10])]), [mine(11, 1)]);
    assert!(world.publish(3, 11, "b", 1));
    assert_eq!(ask(&mut world, &[("ann", "c", &[10])]), [perhaps(11)]);
    // A voided seq holds nothing.
    assert_eq!(ask(&mut world, &[("ann", "c", &[10, 11])]), [mine(12, 1)]);
    world.void1(3, 12, 0);
    world.void2(3, 12);
    assert!(!world.publish(3, 12, "c", 1), "gone");
    assert_eq!(ask(&mut world, &[("ann", "c", &[10, 11])]), [mine(13, 1)]);
}

#[test]
fn behind_a_candidate_its_author_gets_no_seq_and_others_do() {
    let mut world = colliding();
    world.sequence("a", 1);
    world.publish(3, 10, "a", 1);
    let answers = ask(
        &mut world,
        &[("ann", "x", &[]), ("ann", "y", &[10]), ("bob", "z", &[10]), ("ann", "x2", &[]), ("cy", "", &[10])],
    );
    let perhaps = Sequenced::Perhaps { seq: 10 };
    assert_eq!(answers, [perhaps.clone(), Sequenced::Behind, mine(11, 1), perhaps, mine(12, 1)]);
}

#[test]
fn a_retired_generation_must_be_initialised_again() {
    let mut world = World::live();
    assert!(matches!(world.ask(BusRequest::Retire { room: room(), generation: 2 }), Some(BusReply::Retired { .. })));
    assert!(world.head().is_some());
    world.ask(BusRequest::Retire { room: room(), generation: 3 });
    assert_eq!(world.head(), None);
    assert_eq!(world.begin(5), Begun::Ok);
}

#[test]
fn only_subscribers_hear() {
    let mut world = World::live();
    let ephemeral = || BusRequest::Ephemeral { room: room(), payload: Bytes::from_static(b"{}") };
    assert!(world.ask(ephemeral()).is_none());
    assert_eq!(world.heard.len(), 0, "there is no other node");
    world.sequence("a", 1);
    assert!(world.publish(3, 10, "a", 1));
    assert_eq!(world.heard.len(), 1);
    assert!(world.ask(BusRequest::Unsubscribe { room: room() }).is_none());
    world.sequence("b", 2);
    assert!(world.publish(3, 11, "b", 2));
    assert_eq!(world.heard.len(), 1);
}

#[test]
fn a_room_with_nothing_pending_can_be_forgotten() {
    let mut world = World::live();
    world.sequence("a", 1);
    assert!(!world.bus.forget(&room()), "a seq is pending");
    world.publish(3, 10, "a", 1);
    assert!(world.bus.forget(&room()));
    assert!(!world.bus.forget(&room()));
    assert_eq!((world.head(), world.bus.rooms(), world.bus.entries), (None, 0, 0));
}

#[test]
fn when_too_much_is_held_idle_rooms_are_forgotten_first() {
    let mut world = World::live();
    let other = RoomId::new("busy");
    world.ask(BusRequest::Begin { room: other.clone(), token: 1 });
    world.pass(FORGET_IDLE_MS);
    // As if many entries were held elsewhere.
    world.bus.entries += LocalBus::DEDUPE_ENTRIES_MAX + 1;
    world.ask(BusRequest::Finish { room: other.clone(), token: 1, generation: 1, last: 0, dedupe: Vec::new() });
    assert_eq!(world.bus.rooms(), 1);
    world.ask(BusRequest::Head { room: other.clone() });
    assert!(world.bus.rooms.contains_key(&other), "in use");
}
