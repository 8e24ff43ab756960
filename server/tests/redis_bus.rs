//! The Redis bus as the driver uses it, on real servers: order of replies, lost scripts, restarts, cut and late
//! connections, hostile publishers, failovers, logins.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use redis::Commands as _;
use roomwire::bus::redis::{Address, Login, RedisBus, RedisConfig, Servers, Told};
use roomwire::bus::{BusFigures, BusState};
use roomwire::config::Secret;
use roomwire_engine::bus::{
    Begun, BusEvent, BusReply, BusRequest, DedupeKey, Finished, PublishItem, SequenceItem, Sequenced,
};
use roomwire_engine::names::{RoomId, UserId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/redis.rs"]
mod server;
use proxy::Proxy;
use server::RedisServer;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(port: u16) -> RedisConfig {
    RedisConfig {
        servers: Servers::Single(address(port)),
        login: Login::default(),
        database: 0,
        tls: false,
        ca: None,
        is_sharded: false,
        timeout: Duration::from_secs(1),
        from: Arc::from("n1.abc"),
        card: None,
        content_bytes_max: 1_000,
    }
}

fn address(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

fn room(name: &str) -> RoomId {
    RoomId::new(name)
}

fn key(id: &str) -> DedupeKey {
    DedupeKey { user: UserId::new("ada"), client_id: Arc::from(id) }
}

fn head(name: &str) -> BusRequest {
    BusRequest::Head { room: room(name) }
}

fn sequence(name: &str, id: &str, attempt: u64) -> BusRequest {
    let items = vec![SequenceItem { key: key(id), attempt, timestamp: 5, except: Vec::new() }];
    BusRequest::Sequence { room: room(name), items }
}

fn publish(name: &str, generation: u64, seq: u64, id: &str, attempt: u64) -> BusRequest {
    let payload = format!(r#"{{"type":"chat_message","seq":{seq},"epoch":{generation}}}"#).into_bytes().into();
    let item = PublishItem { generation, seq, key: key(id), attempt, payload, received_us: 0 };
    BusRequest::Publish { room: room(name), items: vec![item] }
}

/// A bus, and the thread that drives it.
struct Driver {
    runtime: Runtime,
    bus: RedisBus,
    replies: VecDeque<BusReply>,
    events: VecDeque<BusEvent>,
}

impl Driver {
    fn start(config: RedisConfig) -> Result<Driver, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bus = runtime.block_on(RedisBus::start(config))?;
        Ok(Driver { runtime, bus, replies: VecDeque::new(), events: VecDeque::new() })
    }

    fn on(port: u16) -> Driver {
        Driver::start(config(port)).unwrap()
    }

    /// One turn.
    fn ask(&mut self, requests: impl IntoIterator<Item = BusRequest>) {
        requests.into_iter().for_each(|request| self.bus.ask(request));
        self.bus.flush();
    }

    /// Lets the connections work for so long, or until something comes.
    fn turn(&mut self, time: Duration) {
        let woken = async { tokio::time::timeout(time, self.bus.woken()).await };
        let _ = self.runtime.block_on(woken);
        let mut told = Vec::new();
        self.bus.receive(1_000, &mut told);
        for told in told {
            match told {
                Told::Reply(reply) => self.replies.push_back(reply),
                Told::Event(event) => self.events.push_back(event),
                Told::ClusterReply(_) | Told::ClusterEvent(_) => {}
            }
        }
        self.bus.flush();
    }

    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Driver) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: {:?}", self.bus.figures().state);
            self.turn(Duration::from_millis(20));
        }
    }

    fn reply(&mut self) -> BusReply {
        self.until("a reply", |driver| driver.replies.pop_front())
    }

    /// The next event apart from hints of generations and of the connection.
    fn event(&mut self) -> BusEvent {
        self.until("an event", |driver| {
            driver.events.pop_front().filter(|event| !matches!(event, BusEvent::Control { .. } | BusEvent::Works))
        })
    }

    /// Passes over all that is heard before `Lost`.
    fn lost(&mut self) {
        self.until("lost", |driver| {
            std::iter::from_fn(|| driver.events.pop_front()).find(|event| matches!(event, BusEvent::Lost))
        });
    }

    fn figures(&mut self, what: &str, holds: impl Fn(&BusFigures) -> bool) -> BusFigures {
        self.until(what, |driver| Some(driver.bus.figures()).filter(&holds))
    }

    fn healthy(&mut self) {
        self.figures("in sync", |figures| figures.state == BusState::Healthy && figures.subscriber_connected_now);
    }

    /// Makes a room live.
    fn init(&mut self, name: &str, generation: u64) {
        self.ask([BusRequest::Begin { room: room(name), token: 9 }]);
        assert!(matches!(self.reply(), BusReply::Begun { answer: Begun::Ok, .. }));
        let finish = BusRequest::Finish { room: room(name), token: 9, generation, last: 0, dedupe: Vec::new() };
        self.ask([finish]);
        assert!(matches!(self.reply(), BusReply::Finished { answer: Finished::Ok, .. }));
    }

    fn subscribe(&mut self, name: &str) {
        self.ask([BusRequest::Subscribe { room: room(name) }]);
        assert!(matches!(self.reply(), BusReply::Subscribed { .. }));
    }

    /// Publishes one message; its seq.
    fn write(&mut self, name: &str, id: &str) -> u64 {
        self.ask([sequence(name, id, 1)]);
        let (generation, seq) = match self.reply() {
            BusReply::Sequenced { answers, .. } => match answers[..] {
                [Sequenced::Mine { generation, seq, .. }] => (generation, seq),
                _ => panic!("{answers:?}"),
            },
            other => panic!("{other:?}"),
        };
        self.ask([publish(name, generation, seq, id, 1)]);
        assert!(matches!(self.reply(), BusReply::Published { answers, .. } if answers == [true]));
        seq
    }

    fn message(&mut self) -> (u64, u64) {
        self.until("a message", |driver| match driver.events.pop_front()? {
            BusEvent::Message { generation, seq, .. } => Some((generation, seq)),
            _ => None,
        })
    }
}

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
    assert!(matches!(of(&mut driver, "other"), BusReply::NeedInit { .. }));
    assert_eq!(driver.bus.figures().requests_waiting_now, 0);
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
    assert!(matches!(driver.reply(), BusReply::NeedInit { .. }));
    let figures = driver.bus.figures();
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
    assert!(matches!(driver.reply(), BusReply::NeedInit { .. }));
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
    let figures = driver.bus.figures();
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
        driver.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
    driver.lost();
    assert!(driver.bus.figures().dropped_full_total > 0);
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
    let BusState::Degraded(cause) = driver.bus.figures().state else { panic!("degraded") };
    assert!(cause.contains("127.0.0.1"), "{cause}");
    server.up();
    driver.healthy();
    driver.init("r", 1);
}

#[test]
fn what_only_the_operator_can_put_right_is_said_with_its_cure() {
    let refused = |config: RedisConfig| Driver::start(config).err().unwrap_or_default();
    let login = |user: Option<&str>, password: Option<&str>| Login {
        user: user.map(str::to_owned),
        password: password.map(|password| Secret::new(password.to_owned())),
    };
    let server = RedisServer::start(&["--conf", "requirepass right-password"]);
    let with = |login: Login| RedisConfig { login, ..config(server.port) };
    let text = refused(with(login(None, Some("wrong-password"))));
    assert!(text.contains("refuses the password") && text.contains("bus.redis.url"), "{text}");
    assert!(!text.contains("wrong-password"), "{text}");
    let text = refused(with(Login::default()));
    assert!(text.contains("wants a password"), "{text}");
    assert_eq!(refused(with(login(None, Some("right-password")))), "");

    let server = RedisServer::start(&["--conf", "maxmemory-policy allkeys-lru"]);
    let text = refused(config(server.port));
    assert!(text.contains("allkeys-lru") && text.contains("noeviction"), "{text}");

    let master = RedisServer::start(&[]);
    let replica = RedisServer::start(&["--replica-of", &master.port.to_string()]);
    let text = refused(config(replica.port));
    assert!(text.contains("is a replica") && text.contains("bus.redis.sentinel.nodes"), "{text}");
}

#[test]
fn an_acl_user_with_what_the_docs_list_will_do_and_one_without_is_told() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
    let rule = docs.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER roomwire ")).expect("in the docs");
    let rule = rule.replace("PASSWORD", "pw");
    let server = RedisServer::start(&[]);
    let set = |rule: &str| {
        let rules: Vec<&str> = rule.split(' ').collect();
        redis::cmd("ACL").arg("SETUSER").arg("roomwire").arg("reset").arg(rules).exec(&mut server.connect()).unwrap();
    };
    set(&rule);
    let login = Login { user: Some("roomwire".to_owned()), password: Some(Secret::new("pw".to_owned())) };
    let config = RedisConfig { login, ..config(server.port) };
    let mut driver = Driver::start(config.clone()).unwrap();
    driver.init("r", 1);
    driver.subscribe("r");
    driver.write("r", "a");
    assert_eq!(driver.message(), (1, 1));
    for (less, hint) in [("-zadd", "zadd"), ("-script", "script"), ("-publish", "publish"), ("-info", "INFO")] {
        set(&format!("{rule} {less}"));
        let text = Driver::start(config.clone()).err().unwrap_or_default();
        assert!(text.contains("docs/operations.md") && text.contains(hint), "{less}: {text}");
    }
}

#[test]
fn failovers_of_sentinel_are_followed_by_both_connections() {
    let mut servers = [RedisServer::start(&[]), RedisServer::start(&[])];
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(servers[0].port).exec(&mut servers[1].connect()).unwrap();
    let sentinel = RedisServer::start(&["--sentinel", &servers[0].port.to_string()]);
    let knows_replica = || {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("REPLICAS").arg("roomwire").query::<Vec<redis::Value>>(&mut sentinel.connect()).unwrap().len() == 1
    };
    let servers_named = |nodes: Vec<Address>, name: &str| RedisConfig {
        servers: Servers::Sentinel { nodes, master: name.to_owned(), login: Login::default() },
        ..config(0)
    };
    let text = Driver::start(servers_named(vec![address(sentinel.port)], "other")).err().unwrap_or_default();
    assert!(text.contains("bus.redis.sentinel.master_name"), "{text}");
    // A Sentinel that is gone does not keep the others from being asked.
    let nodes = vec![address(1), address(sentinel.port)];
    let mut driver = Driver::start(servers_named(nodes, "roomwire")).unwrap();
    driver.init("r", 1);
    driver.subscribe("r");
    driver.write("r", "a");
    assert_eq!(driver.message(), (1, 1));
    driver.until("a replica in sync", |_| knows_replica().then_some(()));
    for (round, signal) in [(1, "-KILL"), (2, "-STOP")] {
        let old = usize::from(round == 2);
        servers[old].signal(signal);
        let began = Instant::now();
        driver.figures("degraded", |figures| figures.state != BusState::Healthy);
        driver.lost();
        driver.healthy();
        let silence = began.elapsed();
        assert!(silence < Duration::from_secs(10), "{silence:?}");
        println!("{signal}: in sync {silence:?} after it (down-after-milliseconds 1000)");
        driver.ask([head("r")]);
        assert!(matches!(driver.reply(), BusReply::NeedInit { .. }), "another server");
        driver.init("r", round + 1);
        let seq = driver.write("r", "b");
        assert_eq!(driver.message(), (round + 1, seq));
        if round == 1 {
            // The old master comes back, and the Sentinel makes it a replica.
            servers[0].up();
            let is_replica = |server: &RedisServer| {
                redis::cmd("INFO")
                    .arg("replication")
                    .query::<String>(&mut server.connect())
                    .unwrap()
                    .contains("master_link_status:up")
            };
            driver.until("a replica again", |_| is_replica(&servers[0]).then_some(()));
        } else {
            servers[old].signal("-CONT");
            driver.turn(Duration::from_millis(100));
        }
    }
}

#[test]
fn tls_needs_the_right_authority_and_name() {
    let dir = std::env::temp_dir().join(format!("roomwire-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let make = |line: &str| {
        let output = std::process::Command::new("openssl").args(line.split(' ')).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    make("req -newkey rsa:2048 -nodes -subj /CN=redis -keyout redis.key -out redis.csr");
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n").unwrap();
    make("x509 -req -in redis.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out redis.pem");
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let plain = RedisServer::start(&[]);
    let port = plain.port + 1;
    let lines = [
        format!("tls-port {port}"),
        format!("tls-cert-file {}", file("redis.pem")),
        format!("tls-key-file {}", file("redis.key")),
        format!("tls-ca-cert-file {}", file("ca.pem")),
        "tls-auth-clients no".to_owned(),
    ];
    let arguments: Vec<&str> = lines.iter().flat_map(|line| ["--conf", line]).collect();
    let _server = RedisServer::start(&arguments);
    let ca = std::fs::read(dir.join("ca.pem")).unwrap();
    let with = |ca: Option<Vec<u8>>, host: &str| RedisConfig {
        servers: Servers::Single(Address { host: host.to_owned(), port }),
        tls: true,
        ca,
        ..config(0)
    };
    let mut driver = Driver::start(with(Some(ca.clone()), "127.0.0.1")).unwrap();
    driver.init("r", 1);
    driver.subscribe("r");
    driver.write("r", "a");
    assert_eq!(driver.message(), (1, 1));
    let text = Driver::start(with(None, "127.0.0.1")).err().unwrap_or_default();
    assert!(text.contains("bus.redis.ca_file"), "an unknown authority: {text}");
    let text = Driver::start(with(Some(ca), "localhost")).err().unwrap_or_default();
    assert!(text.contains("certificate") && text.contains("bus.redis.url"), "another name: {text}");
    let _ = std::fs::remove_dir_all(&dir);
}

/// Three masters on a row of ports.
fn on_cluster(server: &RedisServer, is_sharded: bool) -> RedisConfig {
    RedisConfig { servers: Servers::Cluster(vec![address(1), address(server.port + 1)]), is_sharded, ..config(0) }
}

/// Rooms of all three masters, on a bus that can be on any.
fn write_everywhere(one: &mut Driver, other: &mut Driver, prefix: &str, generation: u64) {
    for number in 0..12 {
        let name = format!("{prefix}{number}");
        one.init(&name, generation);
        one.subscribe(&name);
        other.subscribe(&name);
        assert_eq!(one.write(&name, "a"), 1);
        assert_eq!(one.message(), (generation, 1));
        assert_eq!(other.message(), (generation, 1));
    }
}

#[test]
fn a_redis_cluster_serves_each_room_where_its_slot_is() {
    let server = RedisServer::start(&["--cluster"]);
    for is_sharded in [false, true] {
        let mut one = Driver::start(on_cluster(&server, is_sharded)).unwrap();
        let second = RedisConfig { from: Arc::from("n2.def"), ..on_cluster(&server, is_sharded) };
        let mut other = Driver::start(second).unwrap();
        one.healthy();
        let prefix = if is_sharded { "s" } else { "p" };
        write_everywhere(&mut one, &mut other, prefix, 1);
        // All rooms in one turn: each master gets its part, and each room its own answer.
        one.ask((0..12).map(|number| head(&format!("{prefix}{number}"))));
        for _ in 0..12 {
            assert!(matches!(one.reply(), BusReply::Head { .. }));
        }
        assert_eq!(one.bus.figures().rooms_subscribed_now, 12);
    }
    let text = Driver::start(config(server.port)).err().unwrap_or_default();
    assert!(text.contains("bus.redis.cluster"), "{text}");
    let single = RedisServer::start(&[]);
    let wrong = RedisConfig { servers: Servers::Cluster(vec![address(single.port)]), ..config(0) };
    let text = Driver::start(wrong).err().unwrap_or_default();
    assert!(text.contains("tells no cluster's slots"), "{text}");
}

#[test]
fn slots_that_move_to_another_node_are_followed() {
    let server = RedisServer::start(&["--cluster"]);
    for is_sharded in [false, true] {
        let mut driver = Driver::start(on_cluster(&server, is_sharded)).unwrap();
        driver.healthy();
        let name = if is_sharded { "s" } else { "p" };
        driver.init(name, 1);
        driver.subscribe(name);
        driver.write(name, "a");
        driver.message();
        let mut seed = server.connect();
        let key = format!("rw:{{{name}}}:h");
        let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(&key).query(&mut seed).unwrap();
        let holder = (0..3).find(|index| holds(server.port + index, &key)).unwrap();
        let taker = (holder + 1) % 3;
        move_slot(server.port + holder, server.port + taker, slot);
        driver.until("the room at its new place", |driver| {
            driver.ask([head(name)]);
            match driver.reply() {
                BusReply::Head { .. } => Some(()),
                // Another server: it is not known whether it lost anything.
                BusReply::NeedInit { .. } => {
                    driver.init(name, 2);
                    Some(())
                }
                BusReply::Failed { .. } => None,
                other => panic!("{other:?}"),
            }
        });
        assert!(holds(server.port + taker, &key));
        driver.events.clear();
        let mut number = 0;
        driver.until("hears at its new place", |driver| {
            number += 1;
            driver.write(name, &format!("c{number}"));
            driver.turn(Duration::from_millis(50));
            driver.events.drain(..).find(|event| matches!(event, BusEvent::Message { generation: 2, .. }))
        });
        driver.healthy();
    }
}

fn on(port: u16) -> redis::Connection {
    redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap().get_connection().unwrap()
}

fn holds(port: u16, key: &str) -> bool {
    redis::cmd("EXISTS").arg(key).query::<bool>(&mut on(port)).unwrap_or(false)
}

/// As `redis-cli --cluster reshard` does it.
fn move_slot(from: u16, to: u16, slot: u16) {
    let (mut source, mut target) = (on(from), on(to));
    let id =
        |connection: &mut redis::Connection| redis::cmd("CLUSTER").arg("MYID").query::<String>(connection).unwrap();
    let (source_id, target_id) = (id(&mut source), id(&mut target));
    let set = |connection: &mut redis::Connection, what: &str, id: &str| {
        redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(what).arg(id).exec(connection).unwrap();
    };
    set(&mut target, "IMPORTING", &source_id);
    set(&mut source, "MIGRATING", &target_id);
    let keys: Vec<String> = redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(100).query(&mut source).unwrap();
    let mut migrate = redis::cmd("MIGRATE");
    migrate.arg("127.0.0.1").arg(to).arg("").arg(0).arg(5_000).arg("KEYS").arg(keys);
    migrate.exec(&mut source).unwrap();
    set(&mut target, "NODE", &target_id);
    set(&mut source, "NODE", &target_id);
}
