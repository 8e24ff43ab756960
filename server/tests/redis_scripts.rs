//! Every answer of every script of the Redis bus, against a real Redis, and what is published on the way. The requests
//! are written and the answers read by the server's own code.

use redis::{Connection, ConnectionLike as _, Value};
use roomwire::bus::redis::commands::{Asked, CONTROL_CHANNEL, Dialect, command, reply};
use roomwire::bus::redis::payload::{Judge, own_tail};
use roomwire::bus::redis::scripts::Script;
use roomwire_engine::bus::{
    Begun, BusEvent, BusReply, BusRequest, DEDUPE_MESSAGES, DedupeEntry, DedupeKey, Finished, Head,
    PENDING_MESSAGES_MAX, PublishItem, SequenceItem, Sequenced, Voiding,
};
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::From;
use std::sync::Arc;
use std::time::Duration;

#[path = "support/redis.rs"]
mod support;
use support::RedisServer;

const KEY: &str = "0123456789abcdef0123456789abcdef";

struct World {
    server: RedisServer,
    connection: Connection,
    dialect: Dialect,
}

fn room() -> RoomId {
    RoomId::new("r:1")
}

fn key(id: &str) -> DedupeKey {
    DedupeKey { user: UserId::new("ada"), client_id: Arc::from(id) }
}

fn item(id: &str, attempt: u64) -> SequenceItem {
    SequenceItem { key: key(id), attempt, timestamp: 1_700_000_000_000 + attempt % 1_000, except: Vec::new() }
}

fn payload(generation: u64, seq: u64) -> String {
    format!(r#"{{"type":"chat_message","content":"\"}}","seq":{seq},"epoch":{generation}}}"#)
}

fn publish_item(generation: u64, seq: u64, id: &str, attempt: u64) -> PublishItem {
    let payload = payload(generation, seq).into_bytes().into();
    PublishItem { generation, seq, key: key(id), attempt, payload, received_us: 0 }
}

/// Attempts are 64 bits wide.
const BIG: u64 = u64::MAX - 1;

impl World {
    fn new() -> World {
        World::with(&[])
    }

    fn with(arguments: &[&str]) -> World {
        let server = RedisServer::start(arguments);
        let mut connection = server.connect();
        load(&mut connection);
        World { server, connection, dialect: Dialect { own_tail: own_tail("n.1"), is_sharded: false } }
    }

    /// A room that is live in `generation`, with `last` decided.
    fn live(generation: u64, last: u64) -> World {
        let mut world = World::new();
        world.begin_and_finish(7, generation, last, Vec::new());
        world
    }

    fn begin_and_finish(&mut self, token: u64, generation: u64, last: u64, dedupe: Vec<DedupeEntry>) {
        assert_eq!(self.begin(token), Begun::Ok);
        assert_eq!(self.finish(token, generation, last, dedupe), Finished::Ok);
    }

    fn ask(&mut self, request: &BusRequest) -> BusReply {
        let (kind, command) = command(&self.dialect, KEY, request).expect("a command");
        let value = self.connection.req_command(&command).expect("an answer");
        let asked = Asked { room: request.room().clone(), kind };
        reply(&asked, &value).unwrap_or_else(|| panic!("{request:?} was answered with {value:?}"))
    }

    fn sequence(&mut self, items: Vec<SequenceItem>) -> Vec<Sequenced> {
        match self.ask(&BusRequest::Sequence { room: room(), items }) {
            BusReply::Sequenced { answers, .. } => answers,
            other => panic!("{other:?}"),
        }
    }

    fn one(&mut self, id: &str, attempt: u64) -> Sequenced {
        self.sequence(vec![item(id, attempt)])[0].clone()
    }

    fn publish(&mut self, items: Vec<PublishItem>) -> Vec<bool> {
        match self.ask(&BusRequest::Publish { room: room(), items }) {
            BusReply::Published { answers, .. } => answers,
            other => panic!("{other:?}"),
        }
    }

    fn void1(&mut self, generation: u64, seq: u64, min_age_ms: u64) -> Voiding {
        match self.ask(&BusRequest::Void1 { room: room(), generation, seq, min_age_ms }) {
            BusReply::Voiding { answer, .. } => answer,
            other => panic!("{other:?}"),
        }
    }

    fn void2(&mut self, generation: u64, seq: u64) -> bool {
        match self.ask(&BusRequest::Void2 { room: room(), generation, seq }) {
            BusReply::Voided { applied, .. } => applied,
            other => panic!("{other:?}"),
        }
    }

    fn head(&mut self) -> Head {
        match self.ask(&BusRequest::Head { room: room() }) {
            BusReply::Head { head, .. } => head,
            other => panic!("{other:?}"),
        }
    }

    fn begin(&mut self, token: u64) -> Begun {
        match self.ask(&BusRequest::Begin { room: room(), token }) {
            BusReply::Begun { answer, .. } => answer,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, token: u64, generation: u64, last: u64, dedupe: Vec<DedupeEntry>) -> Finished {
        match self.ask(&BusRequest::Finish { room: room(), token, generation, last, dedupe }) {
            BusReply::Finished { answer, .. } => answer,
            other => panic!("{other:?}"),
        }
    }

    fn raw<T: redis::FromRedisValue>(&mut self, command: &str) -> T {
        let mut parts = command.split(' ');
        let mut all = redis::cmd(parts.next().expect("a name"));
        parts.for_each(|part| {
            all.arg(part);
        });
        all.query(&mut self.connection).expect(command)
    }
}

fn load(connection: &mut Connection) {
    for script in Script::ALL {
        connection.req_command(&script.load()).expect("it loads");
    }
}

#[test]
fn a_room_that_is_not_live_needs_an_initialisation() {
    let mut world = World::new();
    let mut servers = Vec::new();
    let mut all = |world: &mut World| {
        match world.ask(&BusRequest::Head { room: room() }) {
            BusReply::Absent { server, .. } => servers.push(Some(server)),
            BusReply::NeedInit { .. } => servers.push(None),
            other => panic!("{other:?}"),
        }
        let requests = [
            BusRequest::Sequence { room: room(), items: vec![item("a", 1)] },
            BusRequest::Publish { room: room(), items: vec![publish_item(1, 1, "a", 1)] },
            BusRequest::Void1 { room: room(), generation: 1, seq: 1, min_age_ms: 0 },
            BusRequest::Void2 { room: room(), generation: 1, seq: 1 },
            BusRequest::Retire { room: room(), generation: 1 },
        ];
        for request in &requests {
            assert!(matches!(world.ask(request), BusReply::NeedInit { .. }), "{request:?}");
        }
    };
    all(&mut world);
    assert_eq!(world.begin(5), Begun::Ok);
    all(&mut world);
    assert_eq!(world.finish(5, 1, 0, Vec::new()), Finished::Ok);
    assert_eq!(world.head(), Head { generation: 1, base: 1, seq: 0, stable: 0, pending: None });
    world.ask(&BusRequest::Retire { room: room(), generation: 1 });
    all(&mut world);
    let info: String = world.raw("INFO replication");
    let id = info.lines().find_map(|line| line.strip_prefix("master_replid:")).expect("it has one");
    let server = u64::from_str_radix(&id[..16], 16).expect("digits");
    assert_eq!(servers, [Some(server), None, None], "no trace of it only before its first BEGIN");
}

#[test]
fn begin_waits_for_a_young_one_and_refuses_a_live_room() {
    let mut world = World::new();
    assert_eq!(world.begin(BIG), Begun::Ok);
    assert_eq!(world.begin(BIG), Begun::Ok, "a repeat");
    assert_eq!(world.begin(BIG - 1), Begun::Wait, "text, not a number that rounds");
    assert_eq!(world.finish(BIG - 1, 1, 0, Vec::new()), Finished::Refused);
    std::thread::sleep(Duration::from_millis(2_050));
    assert_eq!(world.begin(6), Begun::Ok, "whoever began it is late");
    assert_eq!(world.finish(BIG, 1, 0, Vec::new()), Finished::Refused);
    assert_eq!(world.finish(6, 2, 10, Vec::new()), Finished::Ok);
    assert_eq!(world.finish(6, 2, 10, Vec::new()), Finished::Live, "a repeat");
    assert_eq!(world.begin(8), Begun::Live);
    assert_eq!(world.head(), Head { generation: 2, base: 11, seq: 10, stable: 10, pending: None });
}

#[test]
fn begin_wipes_what_the_room_had() {
    let mut world = World::live(1, 0);
    world.one("a", 1);
    world.one("b", 2);
    world.publish(vec![publish_item(1, 1, "a", 1)]);
    world.ask(&BusRequest::Retire { room: room(), generation: 1 });
    assert_eq!(world.begin(9), Begun::Ok);
    assert_eq!(world.raw::<Vec<String>>("KEYS rw:{r:1}:*"), ["rw:{r:1}:h"]);
    let entry = DedupeEntry { key: key("b"), seq: 2, generation: 1, timestamp: 5 };
    assert_eq!(world.finish(9, 2, 2, vec![entry]), Finished::Ok);
    assert_eq!(world.one("b", 3), Sequenced::Done { generation: 1, seq: 2, timestamp: 5 });
    assert_eq!(world.one("a", 4), Sequenced::Mine { generation: 2, seq: 3, timestamp: item("a", 4).timestamp });
}

#[test]
fn seq_gives_each_message_one_seq() {
    let mut world = World::live(3, 20);
    let stamp = |attempt| item("", attempt).timestamp;
    let answers = world.sequence(vec![item("a", BIG), item("b", 2), item("a", BIG), item("a", BIG - 1)]);
    assert_eq!(answers[0], Sequenced::Mine { generation: 3, seq: 21, timestamp: stamp(BIG) });
    assert_eq!(answers[1], Sequenced::Mine { generation: 3, seq: 22, timestamp: stamp(2) });
    assert_eq!(answers[2], answers[0], "the same attempt again");
    assert!(matches!(answers[3], Sequenced::Wait { generation: 3, seq: 21, .. }), "another attempt: {:?}", answers[3]);
    assert_eq!(world.publish(vec![publish_item(3, 21, "a", BIG)]), [true]);
    assert_eq!(world.one("a", 9), Sequenced::Done { generation: 3, seq: 21, timestamp: stamp(BIG) });
    assert_eq!(world.void1(3, 22, 0), Voiding::Ok);
    assert!(matches!(world.one("b", 2), Sequenced::Wait { seq: 22, .. }), "its own attempt, but it is being voided");
    let odd = SequenceItem {
        key: DedupeKey { user: UserId::new("a:b"), client_id: Arc::from("1:0:2:/ \n\"\u{e9}") },
        attempt: 4,
        timestamp: 1,
        except: Vec::new(),
    };
    assert_eq!(world.sequence(vec![odd.clone()])[0], Sequenced::Mine { generation: 3, seq: 23, timestamp: 1 });
    assert_eq!(world.sequence(vec![odd])[0], Sequenced::Mine { generation: 3, seq: 23, timestamp: 1 });
}

#[test]
fn head_tells_the_oldest_pending_and_its_age() {
    let mut world = World::live(1, 0);
    world.sequence(vec![item("a", 1), item("b", 2), item("c", 3)]);
    std::thread::sleep(Duration::from_millis(30));
    let head = world.head();
    assert_eq!((head.seq, head.stable), (3, 0));
    assert!(head.pending.is_some_and(|(seq, age_ms)| seq == 1 && (30..5_000).contains(&age_ms)), "{head:?}");
    assert_eq!(world.publish(vec![publish_item(1, 2, "b", 2)]), [true]);
    assert_eq!(world.head().stable, 0, "out of order");
    assert_eq!(world.publish(vec![publish_item(1, 1, "a", 1)]), [true]);
    let head = world.head();
    assert_eq!((head.stable, head.pending.map(|(seq, _)| seq)), (2, Some(3)));
}

#[test]
fn too_many_pending_are_refused_until_some_are_decided() {
    let mut world = World::live(1, 0);
    let all: Vec<SequenceItem> = (1..=PENDING_MESSAGES_MAX).map(|n| item(&format!("c{n}"), n)).collect();
    let last = world.sequence(all).pop();
    assert!(matches!(last, Some(Sequenced::Mine { seq: PENDING_MESSAGES_MAX, .. })));
    assert!(matches!(world.one("more", 1), Sequenced::Busy { generation: 1, seq: 1, .. }));
    assert_eq!(world.publish(vec![publish_item(1, 1, "c1", 1)]), [true]);
    assert!(matches!(world.one("more", 1), Sequenced::Mine { seq, .. } if seq == PENDING_MESSAGES_MAX + 1));
}

#[test]
fn the_dedupe_window_spans_d_to_twice_d_messages_and_keeps_what_is_pending() {
    let mut world = World::live(1, 0);
    world.one("pending", 1);
    world.one("first", 2);
    assert_eq!(world.publish(vec![publish_item(1, 2, "first", 2)]), [true]);
    let mut seq = 2;
    let write = |world: &mut World, count: u64, seq: &mut u64| {
        for chunk in (1..=count).collect::<Vec<_>>().chunks(500) {
            let ids: Vec<u64> = chunk
                .iter()
                .map(|_| {
                    *seq += 1;
                    *seq
                })
                .collect();
            let items = ids.iter().map(|n| item(&format!("c{n}"), *n)).collect();
            let given = world.sequence(items).len();
            let publishes = ids.iter().map(|n| publish_item(1, *n, &format!("c{n}"), *n)).collect();
            assert_eq!(world.publish(publishes), vec![true; given]);
        }
    };
    write(&mut world, DEDUPE_MESSAGES - 3, &mut seq);
    assert!(matches!(world.one("first", 3), Sequenced::Done { seq: 2, .. }), "within D");
    // The pending one keeps `stable` back, so no more than W may follow it: it is voided further down.
    assert_eq!(world.void1(1, 1, 0), Voiding::Ok);
    assert!(world.void2(1, 1));
    write(&mut world, 2 * DEDUPE_MESSAGES, &mut seq);
    world.one("late", 77);
    let late = seq + 1;
    assert!(matches!(world.one("first", 4), Sequenced::Mine { .. }), "beyond 2 D");
    write_others(&mut world, late + 1);
    assert!(matches!(world.one("late", 77), Sequenced::Mine { seq, .. } if seq == late), "pending over a rotation");
}

/// Fills up what may be pending after the seq `from - 1`, which turns the halves over.
fn write_others(world: &mut World, from: u64) {
    let items = (from..from + PENDING_MESSAGES_MAX - 8).map(|n| item(&format!("o{n}"), n)).collect();
    world.sequence(items);
}

#[test]
fn pub_publishes_once_and_refuses_what_is_not_its_own() {
    let mut world = World::live(2, 10);
    world.sequence(vec![item("a", 1), item("b", 2)]);
    let mut hearer = world.server.connect();
    let mut heard = hearer.as_pubsub();
    heard.subscribe("room:r:1").expect("subscribed");
    heard.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let answers = world.publish(vec![
        publish_item(1, 11, "a", 1),
        publish_item(2, 11, "a", 9),
        publish_item(2, 12, "b", 2),
        publish_item(2, 11, "a", 1),
        publish_item(2, 11, "a", 1),
        publish_item(2, 13, "c", 3),
    ]);
    let why = "old generation, other attempt, ok, ok, repeat, never given";
    assert_eq!(answers, [false, false, true, true, true, false], "{why}");
    let judge = Judge::new("n.1", 1_000);
    for (seq, stable) in [(12, 10), (11, 12)] {
        let message: Vec<u8> = heard.get_message().and_then(|message| message.get_payload()).expect("a message");
        let event = judge.room(KEY, "room:r:1", room(), message.clone()).expect("ours");
        let BusEvent::Message { generation: 2, seq: told, base: 11, stable: told_stable, payload: text, .. } = event
        else {
            panic!("{event:?}");
        };
        assert_eq!((told, told_stable, &text[..]), (seq, stable, payload(2, seq).as_bytes()));
        assert!(judge.room("another key", "room:r:1", room(), message.clone()).is_err());
        assert!(judge.room(KEY, "room:r:2", room(), message).is_err(), "copied to another room");
    }
    heard.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    assert!(heard.get_message().is_err(), "each once");
}

#[test]
fn a_voided_seq_is_gone_for_its_writer_and_announced_once() {
    let mut world = World::live(4, 0);
    world.sequence(vec![item("a", 1), item("b", 2)]);
    let mut hearer = world.server.connect();
    let mut heard = hearer.as_pubsub();
    heard.subscribe(CONTROL_CHANNEL).expect("subscribed");
    heard.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    assert_eq!(world.void1(3, 1, 0), Voiding::Gone);
    assert_eq!(world.void1(4, 9, 0), Voiding::Decided);
    assert_eq!(world.void1(4, 1, 60_000), Voiding::Wait);
    assert_eq!(world.void1(4, 1, 0), Voiding::Ok);
    assert_eq!(world.void1(4, 1, 60_000), Voiding::Ok, "a repeat, of whatever age");
    assert_eq!(world.publish(vec![publish_item(4, 1, "a", 1)]), [false]);
    assert!(!world.void2(3, 1));
    assert!(world.void2(4, 1));
    assert!(world.void2(4, 1), "a repeat");
    assert_eq!(world.void1(4, 1, 0), Voiding::Decided);
    assert_eq!(world.publish(vec![publish_item(4, 1, "a", 1)]), [false], "its dedupe entry went too");
    assert!(matches!(world.one("a", 5), Sequenced::Mine { seq: 3, .. }));
    let judge = Judge::new("n.1", 1_000);
    let text: Vec<u8> = heard.get_message().and_then(|message| message.get_payload()).expect("a hint");
    let hint = judge.control(KEY, &text).expect("ours");
    assert!(matches!(&hint, BusEvent::Control { generation: 4, base: 1, void: Some(1), .. }), "{hint:?}");
    assert!(judge.control("another key", &text).is_err());
    heard.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    assert!(heard.get_message().is_err(), "once");
}

#[test]
fn only_the_generation_that_is_meant_is_retired() {
    let mut world = World::live(2, 0);
    assert!(matches!(world.ask(&BusRequest::Retire { room: room(), generation: 1 }), BusReply::Retired { .. }));
    assert_eq!(world.head().generation, 2);
    assert!(matches!(world.ask(&BusRequest::Retire { room: room(), generation: 2 }), BusReply::Retired { .. }));
    assert_eq!(world.begin(8), Begun::Ok, "no token keeps the next one waiting");
}

#[test]
fn the_log_keeps_the_last_256_and_knows_its_floor() {
    let mut world = World::live(1, 100);
    for seq in 101..=400 {
        world.one(&format!("c{seq}"), seq);
        assert_eq!(world.publish(vec![publish_item(1, seq, &format!("c{seq}"), seq)]), [true]);
    }
    assert_eq!(world.raw::<u64>("ZCARD rw:{r:1}:log"), 256);
    assert_eq!(world.raw::<u64>("HGET rw:{r:1}:h lf"), 144);
    assert_eq!(world.raw::<Vec<String>>("ZRANGE rw:{r:1}:log 0 0"), [payload(1, 145)]);
    let mut large = publish_item(1, 401, "large", 1);
    large.payload = format!(r#"{{"content":"{}"}}"#, "x".repeat(5_000)).into_bytes().into();
    world.one("large", 1);
    assert_eq!(world.publish(vec![large]), [true]);
    assert_eq!(world.raw::<u64>("HGET rw:{r:1}:h lf"), 401, "what is too large for the log raises its floor");
}

#[test]
fn the_log_gives_pages_from_either_end_with_their_readers() {
    let mut world = World::live(1, 100);
    let chat = |seq: u64| {
        format!(
            r#"{{"type":"chat_message","messageId":"m{seq}","roomId":"r:1","userId":"ada","username":"Ada","content":"no {seq}","timestamp":5,"seq":{seq},"epoch":1}}"#
        )
    };
    for seq in 101..=110 {
        world.one(&format!("c{seq}"), seq);
        let mut item = publish_item(1, seq, &format!("c{seq}"), seq);
        item.payload = chat(seq).into_bytes().into();
        assert_eq!(world.publish(vec![item]), [true]);
    }
    let read = |world: &mut World, generation, seq, user| {
        let request = BusRequest::LogRead { room: room(), generation, seq, user: UserId::new(user) };
        let (_, command) = command(&world.dialect, KEY, &request).expect("a command");
        world.connection.req_command(&command).expect("an answer");
    };
    for (generation, seq, user) in [(1, 109, "bob"), (1, 109, "bo"), (1, 109, "bob"), (2, 110, "bob"), (1, 999, "bob")]
    {
        read(&mut world, generation, seq, user);
    }
    let mut page =
        |after, before, limit, from| match world.ask(&BusRequest::Log { room: room(), after, before, limit, from }) {
            BusReply::Log { log, .. } => {
                assert_eq!((log.generation, log.floor), (1, 100));
                let seqs: Vec<u64> = log.rows.iter().map(|read| read.row.seq).collect();
                (seqs, log.cut, log.rows)
            }
            other => panic!("{other:?}"),
        };
    let (seqs, cut, rows) = page(0, 1 << 50, 3, From::Newest);
    assert_eq!((seqs, cut), (vec![108, 109, 110], true));
    assert_eq!(rows[1].read_by, ["bob", "bo"].map(Box::<str>::from));
    assert!(rows[2].read_by.is_empty() && &rows[2].row.content[..] == b"no 110");
    assert_eq!(page(103, 107, 10, From::Oldest).0, [104, 105, 106]);
    let (seqs, cut, _) = page(100, 1 << 50, 10, From::Oldest);
    assert_eq!((seqs.len(), cut), (10, false));
    assert_eq!(page(100, 105, 2, From::Oldest).0, [101, 102]);
    assert!(page(110, 111, 5, From::Newest).0.is_empty());
}

#[test]
fn a_room_is_forgotten_when_nobody_writes_and_its_hash_goes_first() {
    let mut world = World::live(1, 0);
    world.one("a", 1);
    world.one("b", 2);
    world.publish(vec![publish_item(1, 1, "a", 1)]);
    let hash: i64 = world.raw("TTL rw:{r:1}:h");
    assert!(hash > 86_000, "{hash}");
    for rest in ["p", "d0", "log"] {
        let ttl: i64 = world.raw(&format!("TTL rw:{{r:1}}:{rest}"));
        assert!(ttl > hash + 1_800, "{rest}: {ttl}");
    }
    world.raw::<()>("EXPIRE rw:{r:1}:h 1000");
    world.raw::<()>("EXPIRE rw:{r:1}:d0 1001");
    world.one("c", 3);
    assert!(world.raw::<i64>("TTL rw:{r:1}:h") > 172_000);
    assert!(world.raw::<i64>("TTL rw:{r:1}:d0") > 176_000);
}

#[test]
fn a_restart_that_kept_the_data_and_a_failover_both_need_an_initialisation() {
    let mut world = World::with(&["--appendonly"]);
    world.begin_and_finish(1, 1, 0, Vec::new());
    world.one("a", 1);
    let replica = RedisServer::start(&["--replica-of", &world.server.port.to_string()]);
    let mut other = replica.connect();
    let copied = |other: &mut Connection| redis::cmd("EXISTS").arg("rw:{r:1}:p").query::<bool>(other).expect("answers");
    while !copied(&mut other) {
        std::thread::sleep(Duration::from_millis(20));
    }
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut other).expect("it is a master now");
    load(&mut other);
    let head = Script::Head.call("r:1");
    assert_eq!(other.req_command(&head).expect("answers"), Value::SimpleString("NEED_INIT".to_owned()));

    world.server.down();
    world.server.up();
    world.connection = world.server.connect();
    load(&mut world.connection);
    assert!(world.raw::<bool>("EXISTS rw:{r:1}:p"), "the data is there");
    assert!(matches!(world.ask(&BusRequest::Head { room: room() }), BusReply::NeedInit { .. }));
    assert_eq!(world.begin(2), Begun::Ok);
}
