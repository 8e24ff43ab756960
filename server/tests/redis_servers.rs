//! The Redis bus on the servers that an operator may run: refusals with their cure, ACL users, Sentinel, TLS, Redis Cluster.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use roomwire::bus::BusState;
use roomwire::bus::redis::{Address, Login, RedisConfig, Servers};
use roomwire::config::Secret;
use roomwire_engine::bus::{BusEvent, BusReply};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "support/bus.rs"]
mod bus;
#[path = "support/redis.rs"]
mod server;
use bus::{Driver, Drives as _, address, config, head};
use server::RedisServer;

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
        timeout: Duration::from_secs(2),
        ..config(0)
    };
    let named = || {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg("roomwire");
        ask.query::<(String, u16)>(&mut sentinel.connect()).unwrap().1
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
        let new = servers[1 - old].port;
        driver.until("another master", |_| (named() == new).then_some(()));
        let found = began.elapsed();
        driver.lost();
        driver.healthy();
        let silence = began.elapsed();
        println!("{signal}: another master after {found:?}, in sync after {silence:?} (down-after-milliseconds 1000)");
        // An attempt to connect to the old one, which hangs, is given up as soon as there is another.
        assert!(silence - found < Duration::from_millis(1_500), "{found:?}, {silence:?}");
        // The command connection may hear of it a moment after the other one.
        driver.until("another server", |driver| {
            driver.ask([head("r")]);
            matches!(driver.reply(), BusReply::NeedInit { .. } | BusReply::Absent { .. }).then_some(())
        });
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
                    // A Sentinel that makes it a replica ends its clients' connections.
                    .is_ok_and(|info| info.contains("master_link_status:up"))
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
        assert_eq!(one.bus().figures().rooms_subscribed_now, 12);
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
