//! What an observer makes of perfect servers, of spoilt ones, and of members who come and go.

use super::*;
use crate::dialect::Dialect;
use crate::layout::tests::{layout, plan};
use crate::plan::{Extras, Plan};
use crate::topology::Rooms;
use crate::topology::tests::ZIPF;

const ROOMS: Rooms = Rooms::Equal { rooms: 3, members: 4, publishers: 2 };

fn observer(rooms: Rooms, messages: u64, worker: u32, workers: u32) -> Observer {
    Observer::new(Rc::new(layout(rooms, messages, worker, workers)))
}

fn text(stamp: Stamp, seq: u64) -> String {
    let mut content = String::new();
    stamp.write(&mut content);
    format!(
        r#"{{"type":"chat_message","messageId":"m{seq}","content":"{content}:x","timestamp":1,"seq":{seq},"epoch":1}}"#
    )
}

/// Plays the schedule against the observers of `workers` workers, as a perfect server would, except that `spoil`
/// may change how often each delivery comes (for worker's connection, message).
fn play(rooms: Rooms, workers: u32, spoil: impl Fn(u32, u64) -> usize) -> Vec<Observer> {
    let mut observers: Vec<Observer> = (0..workers).map(|worker| observer(rooms, 50, worker, workers)).collect();
    let whole = layout(rooms, 50, 0, 1);
    let (mut walk, mut seqs, mut k) = (whole.schedule.walk(), vec![0_u64; whole.topology.rooms() as usize], 0);
    while let Some(planned) = walk.next(&whole.schedule, &whole.topology) {
        seqs[planned.room as usize] += 1;
        let stamp = Stamp { publisher: planned.publisher, number: planned.number, intended_ns: 1 };
        let text = text(stamp, seqs[planned.room as usize]);
        for observer in &mut observers {
            for local in 0..observer.layout.own_connections() {
                let connection = observer.layout.connection(local);
                if whole.topology.rooms_of(connection).contains(&planned.room) {
                    for _ in 0..spoil(connection, k) {
                        observer.observe(local, Event::Text { text: text.as_bytes(), at_ns: 2 });
                    }
                }
                if whole.topology.connection_of(planned.publisher) == connection {
                    let mut ack = String::from(r#"{"type":"ack","clientId":""#);
                    stamp.write(&mut ack);
                    ack.push_str(r#"","seq":1}"#);
                    observer.observe(local, Event::Text { text: ack.as_bytes(), at_ns: 2 });
                }
            }
        }
        k += 1;
    }
    observers
}

#[test]
fn a_perfect_server_gives_a_clean_and_complete_ledger_for_any_number_of_workers_and_any_rooms() {
    for workers in 1..=5 {
        for rooms in [ROOMS, ZIPF] {
            for observer in play(rooms, workers, |_, _| 1) {
                assert!(observer.is_complete(0));
                assert!(observer.deliveries.counts().is_clean(), "{:?}", observer.deliveries.counts());
                assert!(observer.acks.counts().is_clean(), "{:?}", observer.acks.counts());
            }
        }
    }
}

#[test]
fn one_delivery_lost_at_one_member_is_found() {
    let observers = play(ROOMS, 2, |connection, k| usize::from(!(connection == 5 && k == 10)));
    let lost: u64 = observers.iter().map(|observer| observer.deliveries.counts().lost()).sum();
    let breaks: u64 = observers.iter().map(|observer| observer.deliveries.counts().seq_breaks).sum();
    assert_eq!((lost, breaks), (1, 1));
}

#[test]
fn one_delivery_doubled_at_one_member_is_found() {
    let observers = play(ROOMS, 2, |connection, k| if connection == 5 && k == 10 { 2 } else { 1 });
    let doubled: u64 = observers.iter().map(|observer| observer.deliveries.counts().doubled).sum();
    assert_eq!(doubled, 1);
}

#[test]
fn a_message_of_another_room_is_stray() {
    let mut observer = observer(ROOMS, 50, 0, 1);
    let text = text(Stamp { publisher: 0, number: 0, intended_ns: 1 }, 1);
    observer.observe(11, Event::Text { text: text.as_bytes(), at_ns: 2 });
    assert_eq!(observer.deliveries.counts().stray, 1);
}

#[test]
fn only_the_window_is_measured_but_the_ledger_keeps_all() {
    let mut observer = observer(ROOMS, 50, 0, 1);
    observer.measure(100..200);
    for (number, intended_ns, at_ns) in [(0, 90, 110), (1, 150, 160), (2, 199, 250)] {
        let text = text(Stamp { publisher: 0, number, intended_ns }, u64::from(number) + 1);
        observer.observe(0, Event::Text { text: text.as_bytes(), at_ns });
    }
    assert_eq!(observer.deliveries.counts().arrived, 3);
    assert_eq!(observer.arrived_in_window, 2);
    let times = serde_json::to_value(observer.record.times()).expect("plain numbers");
    assert_eq!(times["delivery"][0][1], 2, "{times}");
}

#[test]
fn errors_and_reasons_are_counted_by_text_and_bounded() {
    let mut observer = observer(ROOMS, 50, 0, 1);
    for at in 0..100 {
        observer.observe(0, Event::Closed(format!("reason {at}")));
        observer.observe(0, Event::Text { text: br#"{"type":"error","code":"forbidden"}"#, at_ns: 1 });
    }
    assert_eq!(observer.closed.len(), TEXTS_MAX + 1);
    assert_eq!(observer.closed.values().sum::<u64>(), 100);
    assert_eq!(observer.complaints.values().copied().collect::<Vec<_>>(), [100]);
}

/// One room of a publisher and one that comes and goes.
fn moving(dialect: Dialect) -> Observer {
    let rooms = Rooms::Equal { rooms: 1, members: 2, publishers: 1 };
    let extras = Extras { moves: vec![Move::Reconnect], ..Extras::default() };
    Observer::new(Rc::new(Layout::new(Plan { dialect, extras, ..plan(rooms, 6, 0, 1) })))
}

fn stamp(number: u32) -> Stamp {
    Stamp { publisher: 0, number, intended_ns: 1 }
}

fn page(messages: &[String], seq: u64, more: bool) -> String {
    let messages = messages.join(",");
    format!(
        r#"{{"type":"room_history","roomId":"bench-test-0","messages":[{messages}],"seq":{seq},"epoch":1,"complete":true,"more":{more}}}"#
    )
}

#[test]
fn who_resumes_gets_what_it_missed_once_and_the_move_ends_with_the_last_page() {
    let mut observer = moving(Dialect::Roomwire);
    let hear = |observer: &mut Observer, text: &str| {
        observer.observe(1, Event::Text { text: text.as_bytes(), at_ns: 50 });
    };
    observer.expect_joins(1, 1, 20);
    hear(&mut observer, &page(&[], 0, false));
    assert_eq!(observer.joined, 1);
    hear(&mut observer, &text(stamp(0), 1));
    observer.begin_move(1, Move::Reconnect, 10);
    assert_eq!((observer.moving(), observer.position(1, 0)), (1, Position { seq: 1, epoch: 1 }));
    hear(&mut observer, r#"{"type":"connected","message":"Welcome"}"#);
    assert_eq!(std::mem::take(&mut observer.greeted), [1]);
    observer.expect_joins(1, 1, 20);
    // The page overlaps with what is known, as it may when a join crosses a delivery.
    hear(&mut observer, &page(&[text(stamp(0), 1), text(stamp(1), 2)], 3, true));
    assert!(observer.is_moving(1));
    hear(&mut observer, &page(&[text(stamp(2), 3)], 3, false));
    assert_eq!((observer.is_moving(1), observer.settled.as_slice(), observer.moving()), (false, [1].as_slice(), 0));
    for number in 3..6 {
        hear(&mut observer, &text(stamp(number), u64::from(number) + 1));
    }
    let counts = observer.deliveries.counts();
    assert_eq!((counts.arrived, counts.doubled, counts.out_of_order, counts.seq_breaks), (6, 0, 0, 0));
    assert_eq!(observer.record.counted(Counted::Resumed), 2);
    assert_eq!(observer.record.counted(Counted::Reconnects), 1);
}

#[test]
fn a_read_has_to_bring_as_many_messages_as_are_asked_for_without_a_gap() {
    let rooms = Rooms::Equal { rooms: 1, members: 1, publishers: 0 };
    let extras = Extras { moves: vec![Move::Read], history: 2, ..Extras::default() };
    let mut observer = Observer::new(Rc::new(Layout::new(Plan { extras, mode: Mode::Still, ..plan(rooms, 0, 0, 1) })));
    let mut read = |messages: &[String]| {
        observer.begin_move(0, Move::Read, 10);
        observer.expect_joins(0, 1, 20);
        observer.observe(0, Event::Text { text: page(messages, 9, false).as_bytes(), at_ns: 50 });
    };
    read(&[text(stamp(3), 8), text(stamp(4), 9)]);
    read(&[text(stamp(3), 8), text(stamp(4), 9)]);
    read(&[text(stamp(4), 9)]);
    read(&[text(stamp(3), 7), text(stamp(4), 9)]);
    assert_eq!((observer.moving(), observer.record.counted(Counted::Reads)), (0, 4));
    let complaints: Vec<&str> = observer.complaints.keys().map(String::as_str).collect();
    assert_eq!(complaints, ["a history of 1 messages", "a history of 2 messages, with a gap"]);
    assert!(observer.deliveries.counts().is_clean());
    let times = serde_json::to_value(observer.record.times()).expect("plain numbers");
    assert_eq!((&times["first_read"][0][1], &times["next_read"][0][1]), (&1.into(), &3.into()), "{times}");
}

#[test]
fn who_has_no_room_has_joined_and_comes_back_at_once() {
    let mut observer = moving(Dialect::Roomwire);
    observer.expect_joins(1, 0, 5);
    observer.begin_move(1, Move::Reconnect, 10);
    observer.expect_joins(1, 0, 30);
    assert_eq!((observer.joined, observer.moving(), observer.record.counted(Counted::Reconnects)), (1, 0, 1));
}

#[test]
fn what_a_room_held_before_the_run_is_not_in_the_ledger() {
    let mut observer = moving(Dialect::Roomwire);
    observer.expect_joins(1, 1, 20);
    observer.observe(1, Event::Text { text: page(&[text(stamp(0), 1)], 1, false).as_bytes(), at_ns: 50 });
    assert_eq!((observer.joined, observer.deliveries.counts().arrived), (1, 0));
    assert_eq!(observer.position(1, 0), Position { seq: 1, epoch: 1 });
}

#[test]
fn who_cannot_resume_may_miss_messages_but_gets_none_twice() {
    let mut observer = moving(Dialect::Plain);
    for number in [0, 3, 4, 4] {
        let text = text(stamp(number), 0).replace(r#","seq":0,"epoch":1"#, "");
        observer.observe(1, Event::Text { text: text.as_bytes(), at_ns: 50 });
    }
    let counts = observer.deliveries.counts();
    // Six are owed to the publisher only, and none has come to it.
    assert_eq!((counts.expected, counts.arrived, counts.doubled), (6, 0, 1));
}
