//! The HTTP API over a real socket, with a driver that answers from a script; and `docs/openapi.json` against it.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use super::{Dev, HttpConfig, HttpPolicy, serve};
use crate::bridge::{Ask, NodeFigures, Phase, ReloadFigures, ShardView};
use crate::bus::BusFigures;
use crate::store::{StoreFigures, StoreState};
use arc_swap::ArcSwap;
use bytes::Bytes;
use roomwire_engine::bridge::{Answer, BridgeStats, Call};
use roomwire_engine::mesh::HistoryAsk;
use roomwire_engine::names::{RoomId, User, UserId};
use roomwire_engine::stats::{Counters, ShardStats, latency_histogram};
use roomwire_engine::store::{ReadRow, Row};
use roomwire_wire::message::ErrorCode;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

const KEY: &str = "open sesame";

/// A node of which only the HTTP API is real.
struct Node {
    addr: SocketAddr,
    figures: Arc<Mutex<NodeFigures>>,
    calls: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
}

fn with_policy(change: impl FnOnce(&mut HttpPolicy)) -> Arc<ArcSwap<HttpPolicy>> {
    let mut policy =
        HttpPolicy { key: Some(Arc::from(KEY)), ready_requires_backends: false, content_bytes_max: 1_000, jwks: None };
    change(&mut policy);
    Arc::new(ArcSwap::from_pointee(policy))
}

fn config() -> HttpConfig {
    HttpConfig {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        policy: with_policy(|_| {}),
        node: Arc::from("n1"),
        version: "1.2.3",
        dev: None,
    }
}

pub(super) fn figures() -> NodeFigures {
    let mut counters = Counters { connections_now: 3, connects_total: 10, ..Counters::default() };
    counters.closes_total[0] = 4;
    counters.limit_crossed("queue_bytes_max");
    let mut fanout_us = latency_histogram();
    fanout_us.record(300).unwrap();
    fanout_us.record(4_000_000).unwrap();
    let mut shard = ShardView::new(Instant::now());
    shard.hear(Instant::now(), ShardStats { counters, fanout_us });
    NodeFigures {
        phase: Phase::Running,
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
        uptime: Duration::from_secs(5),
        shards: vec![shard.clone(), shard],
        bridge: BridgeStats {
            rooms_now: 1,
            publishes_now: 0,
            published_total: 7,
            duplicates_total: 0,
            refused_total: 0,
            voided_total: 0,
            inits_total: 1,
            inits_waiting_now: 0,
            history_pages_total: 2,
            history_from_memory_total: 1,
            history_from_log_total: 0,
            receipts_total: 0,
            store_degraded_now: false,
            bus_degraded_now: false,
            durable_us: latency_histogram(),
        },
        store: Arc::new(StoreFigures::default()),
        bus: BusFigures::default(),
        cluster: None,
        turns_total: 9,
        busy_us_total: 10,
        busy_ratio: 0.1,
        connections_max: 60,
        reloads: ReloadFigures::default(),
    }
}

fn answer_to(call: &Call) -> Answer {
    match call {
        Call::Publish { content, .. } if &content[..] == b"busy" => {
            Answer::Refused { code: ErrorCode::Unavailable, message: "the store is full", retry_after_ms: Some(1_500) }
        }
        Call::Publish { .. } => Answer::Published { message_id: Arc::from("m1"), seq: 4, epoch: 2, timestamp: 99 },
        Call::History { room, .. } => {
            let row = Row {
                room: room.clone(),
                seq: 4,
                generation: 2,
                user: UserId::new("ada"),
                username: Arc::from("Ada \"the\" Lovelace"),
                content: Bytes::from_static(b"a \\u00e9 \\\"b\\\""),
                client_id: Arc::from("c"),
                attempt: 1,
                timestamp: 99,
            };
            let rows = vec![ReadRow { row, read_by: vec!["bob".into()] }];
            Answer::History { rows, seq: 4, epoch: 2, complete: true, more: false }
        }
        Call::Members { .. } => {
            let users = vec![User { id: UserId::new("ada"), name: Arc::from("Ada") }];
            Answer::Members { count: 1, users, complete: true }
        }
        Call::Presence { .. } => {
            Answer::Presence { online: true, connections: 2, nodes: vec![Arc::from("n1")], complete: true }
        }
        Call::Disconnect { .. } => Answer::Disconnected,
    }
}

impl Node {
    fn start(config: HttpConfig) -> Node {
        let listener = std::net::TcpListener::bind(config.addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (asks, mut asked) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let node = Node { addr, figures: Arc::new(Mutex::new(figures())), calls: Arc::default(), stop: Some(stop) };
        let (figures, calls) = (Arc::clone(&node.figures), Arc::clone(&node.calls));
        tokio::spawn(serve(listener, config, asks, stopped));
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                match ask {
                    Ask::Figures { answer } => drop(answer.send(Box::new(figures.lock().unwrap().clone()))),
                    Ask::Call { what, answer } => {
                        calls.lock().unwrap().push(format!("{what:?}"));
                        let _ = answer.send(answer_to(&what));
                    }
                }
            }
        });
        node
    }

    async fn send(&self, head: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let head = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses a body by its length may close before it was sent whole.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), answer[end + 4..].to_vec())
    }

    async fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}");
        let (status, head, body) = self.send(&head, body.as_bytes()).await;
        assert!(head.contains("content-type: application/json"), "{head}");
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn error(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, body) = self.json(method, path, body).await;
        let text = body["error"]["message"].as_str().unwrap();
        assert!(!text.is_empty());
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    }

    fn last_call(&self) -> String {
        self.calls.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

fn test(run: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
}

#[test]
fn a_message_is_published_as_it_was_written() {
    test(async {
        let node = Node::start(config());
        let body = r#"{"content":"a \u00e9 \"b\"","userId":"ada","username":"Ada","clientId":"c1","other":[1]}"#;
        let (status, answer) = node.json("POST", "/v1/rooms/lobby/messages", body).await;
        assert_eq!((status, answer), (201, json!({"messageId": "m1", "seq": 4, "epoch": 2, "timestamp": 99})));
        let call = node.last_call();
        assert!(call.contains(r#"content: b"a \\u00e9 \\\"b\\\"""#), "{call}");
        assert!(call.contains(r#"room: "lobby""#) && call.contains(r#"id: "ada", name: "Ada""#), "{call}");

        let (status, _) = node.json("POST", "/v1/users/bob/messages", r#"{"content":"x","userId":"ada"}"#).await;
        assert_eq!(status, 201);
        let call = node.last_call();
        assert!(call.contains(r#"room: "user:bob""#) && call.contains(r#"name: "ada""#), "{call}");
    });
}

#[test]
fn every_wrong_field_is_named_and_nothing_of_it_reaches_the_bridge() {
    test(async {
        let node = Node::start(config());
        let long = "x".repeat(1_001);
        let cases = [
            ("", 400, "bad_json"),
            ("[]", 400, "bad_request"),
            ("{\"content\":\"x\",\"userId\":\"ada\"", 400, "bad_json"),
            (r#"{"userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":null,"userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":7,"userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":["x"],"userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":"","userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":"\ud800","userId":"ada"}"#, 400, "bad_request"),
            (r#"{"content":"x"}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":7}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":""}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":"a b"}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":"ada","username":""}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":"ada","username":"\u0007"}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":"ada","clientId":""}"#, 400, "bad_request"),
            (r#"{"content":"x","userId":"ada","clientId":9}"#, 400, "bad_request"),
        ];
        for (body, status, code) in cases {
            assert_eq!(node.error("POST", "/v1/rooms/lobby/messages", body).await, (status, code.to_owned()), "{body}");
        }
        let large = format!(r#"{{"content":"{long}","userId":"ada"}}"#);
        assert_eq!(node.error("POST", "/v1/rooms/lobby/messages", &large).await, (413, "too_large".to_owned()));
        let larger = format!(r#"{{"content":"{}","userId":"ada"}}"#, "x".repeat(6_000));
        assert_eq!(node.error("POST", "/v1/rooms/lobby/messages", &larger).await, (413, "too_large".to_owned()));
        let client_id = format!(r#"{{"content":"x","userId":"ada","clientId":"{}"}}"#, "é".repeat(65));
        assert_eq!(node.error("POST", "/v1/rooms/lobby/messages", &client_id).await.0, 400);
        for path in ["/v1/rooms/a%20b/messages", "/v1/rooms/%ff/messages", "/v1/users/a%2fb/messages"] {
            let body = r#"{"content":"x","userId":"ada"}"#;
            assert_eq!(node.error("POST", path, body).await, (400, "bad_request".to_owned()), "{path}");
        }
        assert_eq!(node.last_call(), "");
        // The longest that is allowed.
        let fits = format!(r#"{{"content":"{}","userId":"ada"}}"#, "x".repeat(1_000));
        assert_eq!(node.json("POST", "/v1/rooms/lobby/messages", &fits).await.0, 201);
    });
}

#[test]
fn a_refusal_of_the_bridge_says_when_to_come_back() {
    test(async {
        let node = Node::start(config());
        let head = format!("POST /v1/rooms/a/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}");
        let (status, head, body) = node.send(&head, br#"{"content":"busy","userId":"ada"}"#).await;
        assert_eq!(status, 503);
        assert!(head.contains("retry-after: 2"), "{head}");
        let body: Value = serde_json::from_slice(&body).unwrap();
        let error = json!({"code": "unavailable", "message": "the store is full", "retryAfterMs": 1_500});
        assert_eq!(body, json!({ "error": error }));
    });
}

#[test]
fn history_members_presence_and_disconnect_are_passed_on() {
    test(async {
        let node = Node::start(config());
        let (status, page) = node.json("GET", "/v1/rooms/lobby/messages?after=3&limit=5000", "").await;
        assert_eq!(status, 200);
        assert_eq!(page["messages"][0]["content"], "a é \"b\"");
        assert_eq!(page["messages"][0]["readBy"], json!(["bob"]));
        let ask = HistoryAsk::Range { after: Some(3), before: None, limit: 1_000 };
        let call = Call::History { room: RoomId::new("lobby"), ask };
        assert_eq!(node.last_call(), format!("{call:?}"));
        node.json("GET", "/v1/rooms/lobby/messages", "").await;
        assert!(node.last_call().contains("Last { limit: 50 }"));
        assert_eq!(node.error("GET", "/v1/rooms/lobby/messages?before=x", "").await.0, 400);
        assert_eq!(node.error("GET", "/v1/rooms/lobby/messages?limit=-1", "").await.0, 400);

        let (_, members) = node.json("GET", "/v1/rooms/lobby/members", "").await;
        assert_eq!(members["users"], json!([{"userId": "ada", "username": "Ada"}]));
        assert_eq!((&members["count"], &members["complete"]), (&json!(1), &json!(true)));
        let (_, presence) = node.json("GET", "/v1/users/ada/presence", "").await;
        assert_eq!(
            presence,
            json!({"userId": "ada", "status": "online", "connections": 2, "nodes": ["n1"], "complete": true})
        );
        assert_eq!(node.json("POST", "/v1/users/ada/disconnect", "").await.0, 202);
        assert!(node.last_call().contains("Kicked") && node.last_call().contains("by an operator"));
        node.json("POST", "/v1/users/ada/disconnect", r#"{"reason":"bye"}"#).await;
        assert!(node.last_call().contains("\"bye\""));
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(124));
        assert_eq!(node.error("POST", "/v1/users/ada/disconnect", &long).await.0, 400);
        assert_eq!(node.error("POST", "/v1/users/ada/disconnect", "{").await.1, "bad_json");
    });
}

#[test]
fn without_the_key_nothing_under_v1_is_served_and_all_else_is() {
    test(async {
        let node = Node::start(config());
        for auth in ["", "\r\nAuthorization: Bearer open sesam", "\r\nAuthorization: Basic eDp5", "\r\nAuthorization: "]
        {
            let head = format!("GET /v1/stats HTTP/1.1\r\nHost: x{auth}");
            let (status, head, _) = node.send(&head, b"").await;
            assert_eq!(status, 401, "{auth}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
        }
        for path in ["/metrics", "/livez", "/readyz", "/version"] {
            assert_eq!(node.send(&format!("GET {path} HTTP/1.1\r\nHost: x"), b"").await.0, 200, "{path}");
        }
        assert_eq!(node.error("GET", "/v1/nothing", "").await, (404, "not_found".to_owned()));
        assert_eq!(node.error("DELETE", "/v1/stats", "").await, (405, "method_not_allowed".to_owned()));
        assert_eq!(node.error("GET", "/dev/token?user=ada", "").await.0, 404, "only with --dev");

        let keyless = Node::start(HttpConfig { policy: with_policy(|policy| policy.key = None), ..config() });
        assert_eq!(keyless.error("GET", "/v1/stats", "").await, (403, "forbidden".to_owned()));
        assert_eq!(keyless.calls.lock().unwrap().len(), 0);
    });
}

#[test]
fn ready_tells_starting_draining_stuck_and_degraded_apart() {
    test(async {
        let node = Node::start(config());
        let strict =
            Node::start(HttpConfig { policy: with_policy(|policy| policy.ready_requires_backends = true), ..config() });
        let set = |change: &dyn Fn(&mut NodeFigures)| {
            for node in [&node, &strict] {
                let mut fresh = figures();
                change(&mut fresh);
                *node.figures.lock().unwrap() = fresh;
            }
        };
        let status = async |node: &Node, path: &str| {
            let (status, body) = node.json("GET", path, "").await;
            (status, body["status"].as_str().unwrap().to_owned())
        };
        set(&|_| {});
        assert_eq!(status(&node, "/readyz").await, (200, "ready".to_owned()));
        set(&|figures| figures.phase = Phase::Starting);
        assert_eq!(status(&node, "/readyz").await, (503, "starting".to_owned()));
        assert_eq!(status(&node, "/livez").await, (200, "ok".to_owned()));
        set(&|figures| figures.phase = Phase::Draining);
        assert_eq!(status(&node, "/readyz").await, (503, "draining".to_owned()));
        assert_eq!(status(&node, "/livez").await, (200, "ok".to_owned()));

        let degraded = |figures: &mut NodeFigures| {
            let state = StoreState::Degraded(Arc::from("the disk is full"));
            figures.store = Arc::new(StoreFigures { state, ..StoreFigures::default() });
        };
        set(&degraded);
        assert_eq!(status(&node, "/readyz").await, (200, "degraded".to_owned()));
        assert_eq!(status(&strict, "/readyz").await, (503, "degraded".to_owned()));
        let (_, body) = node.json("GET", "/readyz", "").await;
        assert_eq!(body["checks"]["store"], json!({"status": "degraded", "cause": "the disk is full"}));
        assert_eq!(status(&strict, "/livez").await, (200, "ok".to_owned()));

        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(60)) else { return };
        set(&|figures| figures.shards[1].heard = long_ago);
        assert_eq!(status(&node, "/readyz").await, (503, "stuck".to_owned()));
        let (live, body) = node.json("GET", "/livez", "").await;
        assert_eq!((live, &body["silentShards"]), (503, &json!([1])));
    });
}

#[test]
fn metrics_are_summed_and_their_names_are_right() {
    test(async {
        let node = Node::start(config());
        let (status, head, body) = node.send("GET /metrics HTTP/1.1\r\nHost: x", b"").await;
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200);
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        for line in [
            "roomwire_connections 6",
            "roomwire_connections_max 60",
            "roomwire_capacity_resource_used_ratio{resource=\"connections\"} 0.1",
            "roomwire_connects_total 20",
            "roomwire_closes_total{code=\"1000\",reason=\"Goodbye\",fault=\"none\"} 8",
            "roomwire_limits_crossed_total{limit=\"queue_bytes_max\"} 2",
            "roomwire_errors_total{code=\"rate_limited\"} 0",
            "roomwire_shard_busy_ratio{shard=\"1\"} 0.0",
            "roomwire_bridge_published_total 7",
            "roomwire_store_degraded 0",
            "roomwire_auth_jwks_keys 0",
            "roomwire_auth_jwks_reads_total{result=\"failed\"} 0",
            "roomwire_build_info{version=\"1.2.3\",node=\"n1\"} 1",
            "roomwire_fanout_seconds_bucket{le=\"0.00025\"} 0",
            "roomwire_fanout_seconds_bucket{le=\"0.0005\"} 2",
            "roomwire_fanout_seconds_bucket{le=\"+Inf\"} 4",
            "roomwire_fanout_seconds_count 4",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("_total_total"), "{text}");
    });
}

#[test]
fn the_demo_page_gets_a_url_and_tokens_under_its_own_name_only() {
    test(async {
        let dev = Dev { mint: Arc::new(|id, name| format!("token of {id}, {name}")) };
        let node = Node::start(HttpConfig { dev: Some(dev), ..config() });
        let (status, head, page) = node.send("GET / HTTP/1.1\r\nHost: localhost:9090", b"").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/html"), "{head}");
        assert!(page.starts_with(b"<!doctype html>") || page.starts_with(b"<!DOCTYPE html>"));
        assert_eq!(node.json("GET", "/dev/token?user=ada", "").await, (200, json!({"token": "token of ada, ada"})));
        let (_, grant) = node.json("GET", "/dev/token?user=Zo%C3%AB+K", "").await;
        let token = grant["token"].as_str().unwrap();
        assert!(token.starts_with("token of zo--k.") && token.ends_with(", Zoë K"), "{token}");
        assert_eq!(node.json("GET", "/dev/config", "").await, (200, json!({"url": "ws://127.0.0.1:8080/ws"})));
        assert_eq!(node.error("GET", "/dev/token", "").await.0, 400);
        assert_eq!(node.error("GET", "/dev/token?user=%20", "").await.0, 400);
        let (status, _, _) = node.send("GET /dev/token?user=ada HTTP/1.1\r\nHost: evil.example", b"").await;
        assert_eq!(status, 403, "another site's name that points here");
        let balancer = "GET /dev/config HTTP/1.1\r\nHost: localhost:1\r\nX-Forwarded-Host: localhost:18080";
        let (_, _, body) = node.send(balancer, b"").await;
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"url": "ws://localhost:18080/ws"}));
        let stranger = "GET /dev/config HTTP/1.1\r\nHost: localhost:1\r\nX-Forwarded-Host: evil.example";
        let (_, _, body) = node.send(stranger, b"").await;
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"url": "ws://127.0.0.1:8080/ws"}));
        node.figures.lock().unwrap().listen = None;
        assert_eq!(node.error("GET", "/dev/config", "").await.0, 503);
    });
}

#[test]
fn a_node_that_stops_answers_what_is_under_way() {
    test(async {
        let mut node = Node::start(config());
        assert_eq!(node.json("GET", "/readyz", "").await.0, 200);
        node.stop.take().unwrap().send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(node.addr).await.is_ok() {
            assert!(Instant::now() < deadline, "it still accepts");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

// docs/openapi.json

fn document() -> Value {
    serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap()
}

/// What the API must answer for each operation, with a status that the document must name.
const OPERATIONS: [(&str, &str, &str, &str); 11] = [
    ("post", "/v1/rooms/{id}/messages", r#"{"content":"x","userId":"ada"}"#, "201"),
    ("get", "/v1/rooms/{id}/messages", "", "200"),
    ("get", "/v1/rooms/{id}/members", "", "200"),
    ("post", "/v1/users/{id}/messages", r#"{"content":"x","userId":"ada"}"#, "201"),
    ("get", "/v1/users/{id}/presence", "", "200"),
    ("post", "/v1/users/{id}/disconnect", "", "202"),
    ("get", "/v1/stats", "", "200"),
    ("get", "/metrics", "", "200"),
    ("get", "/livez", "", "200"),
    ("get", "/readyz", "", "200"),
    ("get", "/version", "", "200"),
];

#[test]
fn the_document_names_exactly_the_routes() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert((method.clone(), path.clone()));
        }
    }
    let served: BTreeSet<_> =
        OPERATIONS.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, served);
    // And the router's own list is no longer than that.
    let source = include_str!("../http.rs");
    let routes: BTreeSet<&str> = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(routes, OPERATIONS.iter().map(|(_, path, ..)| *path).collect());
}

#[test]
fn every_answer_has_the_fields_that_the_document_says() {
    test(async {
        let document = document();
        let node = Node::start(config());
        for (method, path, body, status) in OPERATIONS {
            if path == "/metrics" {
                continue;
            }
            let (got, answer) = node.json(&method.to_uppercase(), &path.replace("{id}", "x1"), body).await;
            assert_eq!(got.to_string(), status, "{method} {path}");
            let schema = &document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"];
            matches_schema(&document, schema, &answer, &format!("{method} {path}"));
        }
        let schema = json!({ "$ref": "#/components/schemas/Error" });
        let (_, answer) = node.json("GET", "/v1/nothing", "").await;
        matches_schema(&document, &schema, &answer, "an error");
        let codes = &document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"];
        for code in ErrorCode::ALL {
            assert!(codes.as_array().unwrap().contains(&code.as_str().into()), "{}", code.as_str());
        }
        // The demo's routes are no part of the contract.
        assert!(document["paths"].get("/dev/token").is_none());
    });
}

/// The part of JSON Schema that the document uses. Fields that the schema does not know are an error too.
fn matches_schema(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        let target = &document["components"]["schemas"][name];
        assert!(target.is_object(), "{reference} does not exist");
        return matches_schema(document, target, value, at);
    }
    if let Some(constant) = schema.get("const") {
        assert_eq!(value, constant, "{at}");
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{at}: {value}");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    let fits = types.iter().any(|kind| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: type {other}"),
    });
    assert!(fits, "{at}: {value} is not {types:?}");
    if let Some(fields) = value.as_object() {
        let properties = schema["properties"].as_object().unwrap();
        for (name, field) in fields {
            let property = properties.get(name).unwrap_or_else(|| panic!("{at}: {name} is not in the document"));
            matches_schema(document, property, field, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().unwrap() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at}: {name} is missing in {value}");
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        matches_schema(document, &schema["items"], item, &format!("{at}[{index}]"));
    }
}
