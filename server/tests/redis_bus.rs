//! The Redis bus as the driver uses it, on real servers: order of replies, lost scripts, restarts, cut and late
//! connections, hostile publishers.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use redis::Commands as _;
use roomwire::bus::BusState;
use roomwire::bus::redis::RedisConfig;
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest, Sequenced};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "support/bus.rs"]
mod bus;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/redis.rs"]
mod server;
use bus::{Driver, Drives as _, config, head, room, sequence};
use proxy::Proxy;
use server::RedisServer;

#[test]
fn a_message_goes_round_and_reaches_another_node() {
    let server = RedisServer::start(&[]);
    let mut one = Driver::on(server.port);
    let mut other = Driver::start(RedisConfig { from: Arc::from("n2.def"), ..config(server.port) }).unwrap();
    one.init("r", 1);
    one.subscribe("r");
    other.subscribe("r");
    assert_eq!(one.write("r", "a"), 1);
    assert_eq!(one.message(), (1, 1));
    assert_eq!(other.message(), (1, 1));
    one.ask([BusRequest::Ephemeral { room: room("r"), payload: br#"{"type":"typing"}"#[..].into() }]);
    one.turn(Duration::from_millis(50));
    match other.event() {
        BusEvent::Ephemeral { payload, .. } => assert_eq!(&payload[..], br#"{"type":"typing"}"#),
        event => panic!("{event:?}"),
    }
    other.ask([BusRequest::Unsubscribe { room: room("r") }]);
    other.figures("left", |figures| figures.rooms_subscribed_now == 0);
    one.write("r", "b");
    assert_eq!(one.message(), (1, 2));
    other.turn(Duration::from_millis(100));
    assert!(other.events.is_empty());
}

#[test]
fn replies_come_in_the_order_of_a_rooms_requests_and_a_head_after_its_subscription() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 1);
    driver.ask([
        head("r"),
        BusRequest::Subscribe { room: room("r") },
        head("r"),
        sequence("r", "a", 1),
        BusRequest::Subscribe { room: room("r") },
        BusRequest::Retire { room: room("r"), generation: 1 },
        head("other"),
    ]);
    let of = |driver: &mut Driver, name: &str| {
        driver.until("a reply", |driver| {
            let place = driver.replies.iter().position(|reply| &**reply.room() == name)?;
            driver.replies.remove(place)
        })
    };
    assert!(matches!(of(&mut driver, "r"), BusReply::Head { .. }));
    assert!(matches!(of(&mut driver, "r"), BusReply::Subscribed { .. }));
    assert!(matches!(of(&mut driver, "r"), BusReply::Head { .. }));
    assert!(matches!(of(&mut driver, "r"), BusReply::Sequenced { .. }));
    assert!(matches!(of(&mut driver, "r"), BusReply::Subscribed { .. }));
    assert!(matches!(of(&mut driver, "r"), BusReply::Retired { .. }));
    assert!(matches!(of(&mut driver, "other"), BusReply::Absent { .. }));
    assert_eq!(driver.bus().figures().requests_waiting_now, 0);
}

#[test]
fn forgotten_scripts_are_loaded_again_without_a_failure() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 1);
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connect()).unwrap();
    driver.ask([head("r"), sequence("r", "a", 1), head("none")]);
    assert!(matches!(driver.reply(), BusReply::Head { .. }));
    assert!(matches!(driver.reply(), BusReply::Sequenced { .. }));
    assert!(matches!(driver.reply(), BusReply::Absent { .. }));
    let figures = driver.bus().figures();
    assert_eq!((figures.scripts_reloaded_total, figures.failures_total), (1, 0));
}

#[test]
fn a_restart_that_loses_all_is_noticed_and_every_room_subscribed_again() {
    let mut server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r0", 1);
    for number in 0..1_200 {
        driver.ask([BusRequest::Subscribe { room: room(&format!("r{number}")) }]);
    }
    for _ in 0..1_200 {
        assert!(matches!(driver.reply(), BusReply::Subscribed { .. }));
    }
    server.down();
    driver.figures("away", |figures| figures.state != BusState::Healthy && !figures.connected_now);
    let began = Instant::now();
    driver.ask([head("r0")]);
    assert!(matches!(driver.reply(), BusReply::Failed { retry_after_ms: 100.., .. }));
    assert!(began.elapsed() < Duration::from_millis(200), "refused at once");
    driver.ask([BusRequest::Subscribe { room: room("late") }, head("late")]);
    assert!(matches!(driver.reply(), BusReply::Failed { .. }), "a subscription that is not made fails");
    assert!(matches!(driver.reply(), BusReply::Failed { .. }));
    server.up();
    let began = Instant::now();
    driver.lost();
    driver.healthy();
    assert!(began.elapsed() < Duration::from_secs(5), "in sync after {:?}", began.elapsed());
    driver.ask([head("r0")]);
    assert!(matches!(driver.reply(), BusReply::Absent { .. }));
    driver.init("r0", 2);
    assert_eq!(driver.write("r0", "a"), 1);
    assert_eq!(driver.message(), (2, 1));
    let subscribed = redis::cmd("PUBSUB").arg("NUMSUB").arg("room:r1199").arg("room:late").query(&mut server.connect());
    assert_eq!(subscribed, Ok(vec![("room:r1199".to_owned(), 1), ("room:late".to_owned(), 1)]));
}

#[test]
fn a_killed_subscriber_comes_back_and_says_what_it_may_have_missed() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 1);
    driver.subscribe("r");
    let mut operator = server.connect();
    for round in 0..3 {
        let killed: u64 = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).query(&mut operator).unwrap();
        assert_eq!(killed, 1);
        let began = Instant::now();
        driver.lost();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        driver.write("r", &format!("c{round}"));
        assert_eq!(driver.message(), (1, round + 1));
    }
    let figures = driver.bus().figures();
    assert_eq!((figures.resubscriptions_total, figures.reconnects_total), (3, 0));
}

#[test]
fn late_and_cut_answers_are_never_taken_for_those_of_other_requests() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::start(server.port);
    let short = RedisConfig { timeout: Duration::from_millis(300), ..config(proxy.port) };
    let mut driver = Driver::start(short).unwrap();
    for number in 0..20 {
        driver.init(&format!("r{number}"), number + 1);
    }
    let (mut answered, mut failed) = (0, 0);
    for round in 0..60_u64 {
        match round % 6 {
            1 => proxy.delay(Duration::from_millis(round)),
            2 => proxy.hold(true),
            3 => proxy.cut(),
            4 => proxy.hold(false),
            _ => proxy.delay(Duration::ZERO),
        }
        let asked: Vec<u64> = (0..20).filter(|number| (number + round) % 3 != 0).collect();
        driver.ask(asked.iter().map(|number| head(&format!("r{number}"))));
        for _ in &asked {
            let reply = driver.reply();
            let number: u64 = reply.room()[1..].parse().unwrap();
            match reply {
                // Each room has a generation of its own: an answer to another would show.
                BusReply::Head { head, .. } => {
                    assert_eq!(head.generation, number + 1, "round {round}");
                    answered += 1;
                }
                BusReply::Failed { .. } => failed += 1,
                other => panic!("{other:?}"),
            }
        }
        driver.turn(Duration::from_millis(30));
    }
    assert!(answered > 100 && failed > 100, "{answered} answered, {failed} failed");
    proxy.hold(false);
    proxy.delay(Duration::ZERO);
    driver.healthy();
}

#[test]
fn a_server_that_hangs_is_given_up_after_the_timeout_and_found_again() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 1);
    server.signal("-STOP");
    let began = Instant::now();
    driver.ask([sequence("r", "a", 1)]);
    assert!(matches!(driver.reply(), BusReply::Failed { .. }), "unknown outcome");
    let took = began.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_millis(1_800)).contains(&took), "{took:?}");
    driver.figures("degraded", |figures| figures.state != BusState::Healthy);
    server.signal("-CONT");
    driver.healthy();
    // It was carried out after all: the same attempt gets the same seq.
    driver.ask([sequence("r", "a", 1)]);
    assert!(
        matches!(driver.reply(), BusReply::Sequenced { answers, .. } if matches!(answers[..], [Sequenced::Mine { seq: 1, .. }]))
    );
}

#[test]
fn what_others_publish_is_passed_on_or_dropped_and_counted_but_never_believed() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 3);
    driver.subscribe("r");
    let mut other = server.connect();
    let mut say = |text: &str| other.publish::<_, _, u64>("room:r", text).unwrap();
    say(r#"{"type":"news","of":"another server"}"#);
    match driver.event() {
        BusEvent::Ephemeral { payload, .. } => assert_eq!(&payload[..], br#"{"type":"news","of":"another server"}"#),
        event => panic!("{event:?}"),
    }
    for forged in [
        r#"{"seq":1,"epoch":3}"#.to_owned(),
        r#"{"seq":999999999999,"epoch":99,"rw":{"base":1,"stable":999999999999}}"#.to_owned(),
        format!(r#"{{"seq":1,"epoch":3,"rw":{{"base":1,"stable":9,"mac":"{}"}}}}"#, "0".repeat(40)),
        r#"{"type":"x","rw":7}"#.to_owned(),
    ] {
        say(&forged);
        assert!(matches!(driver.event(), BusEvent::Doubt { .. }), "{forged}");
    }
    for junk in ["", "{", "[1]", "null", "\u{0}", "{\"a\":}", "{}{}", "\"text\""] {
        say(junk);
    }
    say(&format!(r#"{{"a":"{}"}}"#, "x".repeat(6_000)));
    say(&format!(r#"{{"a":"{}"}}"#, "x".repeat(10 << 20)));
    say(&"[".repeat(5_000));
    let _: u64 = other.publish("rw:ctl", r#"{"room":"r","gen":99,"base":100}"#).unwrap();
    let figures = driver.figures("all counted", |figures| {
        figures.dropped_no_object_total + figures.dropped_too_large_total + figures.dropped_not_ours_total >= 16
    });
    assert_eq!(figures.dropped_not_ours_total, 5);
    assert_eq!((figures.dropped_too_large_total, figures.dropped_no_object_total), (2, 9));
    assert_eq!(driver.write("r", "a"), 1);
    assert_eq!(driver.message(), (3, 1));
    assert!(driver.events.is_empty());
}

#[test]
fn a_flood_costs_events_but_neither_memory_nor_the_connection() {
    let server = RedisServer::start(&[]);
    let mut driver = Driver::on(server.port);
    driver.init("r", 1);
    driver.subscribe("r");
    let port = server.port;
    let flood = std::thread::spawn(move || {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut other = client.get_connection().unwrap();
        for _ in 0..60 {
            let mut pipeline = redis::pipe();
            (0..1_000).for_each(|_| {
                pipeline.publish("room:r", r#"{"type":"flood"}"#).ignore();
            });
            pipeline.exec(&mut other).unwrap();
        }
    });
    // The bridge takes nothing meanwhile: only its connections run.
    while !flood.is_finished() {
        driver.idle(Duration::from_millis(50));
    }
    driver.lost();
    assert!(driver.bus().figures().dropped_full_total > 0);
    driver.write("r", "a");
    assert_eq!(driver.message(), (1, 1));
}

#[test]
fn a_node_starts_without_redis_and_comes_into_sync_when_there_is_one() {
    let mut server = RedisServer::start(&[]);
    server.down();
    let mut driver = Driver::on(server.port);
    driver.ask([head("r")]);
    assert!(matches!(driver.reply(), BusReply::Failed { .. }));
    let BusState::Degraded(cause) = driver.bus().figures().state else { panic!("degraded") };
    assert!(cause.contains("127.0.0.1"), "{cause}");
    server.up();
    driver.healthy();
    driver.init("r", 1);
}
