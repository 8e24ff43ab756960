//! The bridge thread with its real store and HTTP API, as boot starts it, but without shards: publish, history,
//! idempotency and generations over restarts, and its end.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use roomwire::bridge::{BridgeHandle, BridgeSetup, StartError, spawn};
use roomwire::bus::BusConfig;
use roomwire::http::{HttpConfig, HttpPolicy};
use roomwire::store::cql::CqlConfig;
use roomwire::store::embedded::{self, EmbeddedConfig};
use roomwire::store::{OpenError, StoreConfig};
use roomwire_engine::bridge::BridgeConfig;
use roomwire_shard::mesh::mesh;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "support/cassandra.rs"]
mod cassandra;
#[path = "support/directory.rs"]
mod directory;
use directory::TempDir;

const KEY: &str = "0123456789abcdef";

fn try_start(directory: &Path, boot: u64) -> Result<BridgeHandle, StartError> {
    let store = EmbeddedConfig { reserve_bytes: 0, ..EmbeddedConfig::new(directory.to_owned()) };
    try_start_on(StoreConfig::Embedded(store), boot)
}

fn try_start_on(store: StoreConfig, boot: u64) -> Result<BridgeHandle, StartError> {
    let (_, lanes) = mesh(0).unwrap();
    spawn(BridgeSetup {
        gather: std::time::Duration::from_millis(2),
        connections_max: 0,
        bridge: BridgeConfig {
            shards: 0,
            node: Arc::from("n1"),
            boot,
            cluster: false,
            publishes_max: 100,
            publish_ms_max: 5_000,
            inits_max: 16,
            page_bytes_max: 1 << 20,
            recent_bytes_max: 1 << 16,
            bus_log: false,
            strict: false,
        },
        mesh: lanes,
        bus: BusConfig::Local,
        store,
        http: HttpConfig {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            policy: Arc::new(arc_swap::ArcSwap::from_pointee(HttpPolicy {
                key: Some(Arc::from(KEY)),
                ready_requires_backends: false,
                content_bytes_max: 1_000,
                jwks: None,
            })),
            node: Arc::from("n1"),
            version: "0",
            dev: None,
        },
    })
}

fn start(directory: &Path, boot: u64) -> BridgeHandle {
    let bridge = try_start(directory, boot).unwrap();
    bridge.started(SocketAddr::from(([127, 0, 0, 1], 1)));
    bridge
}

fn call(bridge: &BridgeHandle, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(bridge.http_addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn publish(bridge: &BridgeHandle, number: u64) -> (u64, u64) {
    let body = json!({"content": format!("message {number}"), "userId": "ada", "clientId": format!("c{number}")});
    let (status, answer) = call(bridge, "POST", "/v1/rooms/lobby/messages", &body.to_string());
    assert_eq!(status, 201, "{answer}");
    (answer["seq"].as_u64().unwrap(), answer["epoch"].as_u64().unwrap())
}

fn stop(bridge: BridgeHandle) {
    bridge.drain(0);
    assert!(bridge.join());
}

#[test]
fn messages_and_their_numbers_go_on_over_restarts() {
    let directory = TempDir::new("bridge-restart");
    let bridge = start(&directory.0, 1);
    for number in 1..=3 {
        assert_eq!(publish(&bridge, number), (number, 1));
    }
    assert_eq!(publish(&bridge, 2), (2, 1), "a retry gets the old numbers");
    stop(bridge);

    let bridge = start(&directory.0, 2);
    let (_, page) = call(&bridge, "GET", "/v1/rooms/lobby/messages?limit=2", "");
    assert_eq!((&page["seq"], &page["epoch"]), (&json!(3), &json!(1)), "reading does not begin a generation");
    let seqs: Vec<_> = page["messages"].as_array().unwrap().iter().map(|message| message["seq"].clone()).collect();
    assert_eq!(seqs, [2, 3]);
    assert_eq!(publish(&bridge, 2), (2, 1), "a retry after the restart, too");
    assert_eq!(publish(&bridge, 4), (4, 2), "the first publish begins one");
    let (_, page) = call(&bridge, "GET", "/v1/rooms/lobby/messages?after=0", "");
    let contents: Vec<_> = page["messages"].as_array().unwrap().iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, ["message 1", "message 2", "message 3", "message 4"]);
    assert_eq!(page["complete"], true);
    stop(bridge);
}

#[test]
fn a_room_whose_messages_have_all_expired_goes_on_above_them_and_says_what_is_missing() {
    let Some(cluster) = cassandra::directory() else { return };
    let store = CqlConfig { retention: Duration::from_secs(4), ..cassandra::keyspace(&cluster, "expired") };
    let start = |boot| {
        let bridge = try_start_on(StoreConfig::Cql(store.clone()), boot).unwrap();
        bridge.started(SocketAddr::from(([127, 0, 0, 1], 1)));
        bridge
    };
    let bridge = start(1);
    for number in 1..=3 {
        assert_eq!(publish(&bridge, number), (number, 1));
    }
    let after = |bridge: &BridgeHandle, seq: u64| {
        let (status, page) = call(bridge, "GET", &format!("/v1/rooms/lobby/messages?after={seq}"), "");
        assert_eq!(status, 200, "{page}");
        page
    };
    assert_eq!(after(&bridge, 1)["complete"], true);
    stop(bridge);
    std::thread::sleep(Duration::from_secs(6));

    let bridge = start(2);
    let page = after(&bridge, 1);
    assert_eq!((&page["complete"], page["messages"].as_array().unwrap().len()), (&json!(false), 0), "{page}");
    let (seq, epoch) = publish(&bridge, 4);
    assert!(seq > 3 && epoch == 2, "{seq} of epoch {epoch}");
    let page = after(&bridge, 1);
    assert_eq!((&page["complete"], &page["messages"][0]["seq"]), (&json!(false), &json!(seq)), "{page}");
    assert_eq!(after(&bridge, seq - 1)["complete"], true);
    stop(bridge);
}

#[test]
fn the_node_is_ready_between_start_and_drain_and_its_figures_come_in() {
    let directory = TempDir::new("bridge-ready");
    let bridge = try_start(&directory.0, 1).unwrap();
    assert_eq!(call(&bridge, "GET", "/readyz", "").0, 503);
    bridge.started(SocketAddr::from(([127, 0, 0, 1], 1)));
    let deadline = Instant::now() + Duration::from_secs(10);
    while call(&bridge, "GET", "/readyz", "").0 != 200 {
        assert!(Instant::now() < deadline, "never ready");
    }
    publish(&bridge, 1);
    loop {
        let (_, stats) = call(&bridge, "GET", "/v1/stats", "");
        // The store sends its figures once a second.
        if stats["store"]["rowsAppended"] == 1 {
            assert_eq!(stats["bridge"]["published"], 1);
            assert_eq!(stats["latencyUs"]["storeAppend"]["count"], 1);
            break;
        }
        assert!(Instant::now() < deadline, "{stats}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!bridge.is_finished());
    stop(bridge);
}

#[test]
fn what_cannot_start_says_why() {
    let directory = TempDir::new("bridge-refused");
    let bridge = start(&directory.0, 1);
    let error = try_start(&directory.0, 2).unwrap_err();
    assert!(matches!(error, StartError::Store(OpenError::Embedded(embedded::OpenError::InUse { .. }))), "{error}");
    stop(bridge);
}
