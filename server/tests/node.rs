//! The whole binary, end to end: started as an operator would, spoken to over real sockets, killed, stopped.

use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

#[path = "support/node.rs"]
mod harness;
use harness::{Client, Node, PATIENCE, TempDir, command};

#[test]
fn an_echo_server_echoes_to_whoever_has_a_token() {
    let dir = TempDir::new("echo");
    let node = Node::start(&dir.0, &["--echo"]);
    let mut client = Client::upgrade(&node, &node.token(&dir.0, "alice"));
    for length in [0, 1, 125, 126, 2_047, 2_048, 2_049, 65_535] {
        let text = "é".repeat(length / 2);
        client.0.send(Message::text(text.clone())).expect("sent");
        assert_eq!(client.0.read().expect("echoed"), Message::text(text));
    }
    let mut stranger = Client::upgrade(&node, "nonsense");
    let frame = stranger.closed();
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1008, "Authentication failed"));
}

#[test]
fn two_clients_chat_and_the_history_survives_kill_9() {
    let dir = TempDir::new("chat");
    let node = Node::start(&dir.0, &[]);
    let (alice_token, bob_token) = (node.token(&dir.0, "alice"), node.token(&dir.0, "bob"));
    let (mut alice, mut bob) = (Client::connect(&node, &alice_token), Client::connect(&node, &bob_token));
    let empty = alice.join(json!({ "roomId": "lobby" }));
    assert_eq!((&empty["seq"], &empty["epoch"], &empty["complete"]), (&json!(0), &json!(0), &json!(true)));
    bob.join(json!({ "roomId": "lobby" }));
    let ack = alice.publish("lobby", "hello \"bob\"", "a1");
    let seen = bob.next("chat_message");
    assert_eq!(
        (&seen["content"], &seen["username"], &seen["seq"]),
        (&json!("hello \"bob\""), &json!("alice"), &json!(1))
    );
    assert_eq!(seen["messageId"], ack["messageId"]);
    assert_eq!(
        alice.publish("lobby", "hello \"bob\"", "a1")["messageId"],
        ack["messageId"],
        "a retry is the same message"
    );
    assert_eq!(bob.publish("lobby", "hi", "b1")["seq"], 2);
    drop(node);

    // The secret was kept, so a tab's token still counts, and its position too.
    let node = Node::start(&dir.0, &[]);
    let mut bob = Client::connect(&node, &bob_token);
    let missed = bob.join(json!({ "roomId": "lobby", "since": 1, "epoch": seen["epoch"] }));
    assert_eq!(missed["messages"].as_array().map(Vec::len), Some(1));
    assert_eq!((&missed["messages"][0]["content"], &missed["complete"]), (&json!("hi"), &json!(true)));
    let mut alice = Client::connect(&node, &alice_token);
    let ack = alice.publish("lobby", "back again", "a2");
    assert_eq!(ack["seq"], 3);
    assert_eq!(bob.next("chat_message")["content"], "back again");
}

#[test]
fn sigterm_sends_each_client_away_and_ends_with_0() {
    let dir = TempDir::new("drain");
    let mut node = Node::start(&dir.0, &["--set", "drain.secs=4"]);
    assert_eq!(node.get("/readyz").0, 200);
    let mut clients: Vec<Client> =
        (0..8).map(|number| Client::connect(&node, &node.token(&dir.0, &format!("user{number}")))).collect();
    node.signal(libc::SIGHUP);
    clients[0].send(&json!({ "type": "ping" }));
    clients[0].next("pong");
    let begun = Instant::now();
    node.signal(libc::SIGTERM);
    for client in &mut clients {
        let reconnect = client.next("reconnect");
        assert!(reconnect["afterMs"].as_u64().is_some_and(|ms| ms <= 4_000), "{reconnect}");
    }
    assert_eq!(node.get("/readyz").0, 503);
    // Publishing goes on until a connection is closed, and what is acked is kept.
    let ack = clients[7].publish("lobby", "last words", "w1");
    for client in &mut clients {
        assert_eq!(u16::from(client.closed().code), 1012);
        let _ = client.0.flush();
    }
    drop(clients);
    assert_eq!(node.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let node = Node::start(&dir.0, &[]);
    let history = Client::connect(&node, &node.token(&dir.0, "late")).join(json!({ "roomId": "lobby" }));
    assert_eq!(history["messages"][0]["messageId"], ack["messageId"]);
}

#[test]
fn a_handshake_under_way_is_finished_where_two_nodes_share_a_port() {
    let dir = TempDir::new("handshake");
    let mut node = Node::start(&dir.0, &["--set", "drain.secs=4", "--set", "listen.share=true"]);
    let request = format!(
        "GET /?token={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        node.token(&dir.0, "slow")
    );
    let (first, rest) = request.split_at(request.len() / 2);
    let mut stream = TcpStream::connect(node.listen).expect("the node listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(first.as_bytes()).expect("sent");
    while !node.get("/metrics").1.contains("roomwire_connects_total 1") {
        std::thread::sleep(Duration::from_millis(50));
    }
    node.signal(libc::SIGTERM);
    node.line("stopping");
    // Nobody else gets in.
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(node.listen).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
    }
    stream.write_all(rest.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let mut client = Client(WebSocket::from_raw_socket(stream, Role::Client, None));
    client.next("connected");
    client.next("reconnect");
    drop(client);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_second_signal_cuts_the_drain_short() {
    let dir = TempDir::new("short");
    let mut node = Node::start(&dir.0, &["--set", "drain.secs=600"]);
    let mut client = Client::connect(&node, &node.token(&dir.0, "alice"));
    node.signal(libc::SIGINT);
    client.next("reconnect");
    node.signal(libc::SIGINT);
    assert_eq!(u16::from(client.closed().code), 1012);
    drop(client);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_client_that_ignores_the_close_does_not_hold_the_node() {
    let dir = TempDir::new("deaf");
    let mut node = Node::start(&dir.0, &["--set", "drain.secs=1"]);
    let _deaf = Client::connect(&node, &node.token(&dir.0, "deaf"));
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn an_older_deployment_and_its_clients_work_unchanged() {
    let dir = TempDir::new("older");
    let secret = "the secret that the older server signed with";
    std::fs::write(dir.0.join("roomwire.toml"), "[listen]\naddr = \"127.0.0.1:1\"\n[http]\naddr = \"127.0.0.1:0\"\n")
        .expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(&dir.0).env_clear().args(["serve", "--config", "roomwire.toml"]);
    command.env("JWT_SECRET", secret).env("PORT", "0");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let node = Node::from(&mut command);
    // As an older issuer wrote it: a number for an id, and dates in whole seconds.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({ "id": 42, "username": "Old Client", "iat": now, "exp": now + 60 });
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed");

    let mut client = Client::upgrade(&node, &token);
    assert_eq!(client.next("connected")["message"], "Welcome Old Client!");
    client.send(&json!({ "type": "chat_message", "roomId": "general", "content": "before I join" }));
    client.send(&json!({ "type": "join_room", "roomId": "general" }));
    assert_eq!(client.next("user_joined")["userId"], "42");
    client.next("room_history");
    client.send(&json!({ "type": "typing", "roomId": "general" }));
    assert_eq!(client.next("typing")["username"], "Old Client");
    client.send(&json!({ "type": "chat_message", "roomId": "general", "content": "hello" }));
    let seen = client.next("chat_message");
    assert!(["before I join", "hello"].iter().any(|content| seen["content"] == *content), "{seen}");
    client.send(&json!({ "type": "ping" }));
    client.next("pong");
    assert_eq!(node.get("/dev/token?user=alice").0, 404, "no tokens for everyone outside --dev");
}

#[test]
fn what_is_taken_is_said_with_the_cure() {
    let dir = TempDir::new("taken");
    let node = Node::start(&dir.0, &[]);
    let refused = |dir: &Path, set: &str| {
        let output = command(dir, &["--set", set]).output().expect("the binary runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (status, stderr) = refused(&dir.0, "heartbeat.secs=30");
    assert_eq!(status, Some(1));
    assert!(stderr.contains("is in use by process") && stderr.contains(&node.child.id().to_string()), "{stderr}");

    let other = TempDir::new("taken-too");
    for (key, addr) in [("listen.addr", node.listen), ("http.addr", node.http)] {
        let (status, stderr) = refused(&other.0, &format!("{key}={addr}"));
        assert_eq!(status, Some(1));
        assert!(stderr.contains(&format!("{key} {addr} is taken")) && stderr.contains("--set"), "{stderr}");
    }
}

#[test]
fn no_token_reaches_the_log() {
    let dir = TempDir::new("quiet");
    let mut node = Node::start(&dir.0, &["--set", "log.level=trace"]);
    let token = node.token(&dir.0, "alice");
    let mut client = Client::connect(&node, &token);
    client.send(&json!({ "type": "refresh", "token": token }));
    client.next("refreshed");
    let forged = format!("{}x", &token[..token.len() - 1]);
    Client::upgrade(&node, &forged).closed();
    drop(client);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
    let secret = std::fs::read_to_string(dir.0.join("roomwire-data/dev-secret")).expect("kept");
    let lines: Vec<String> = node.lines.try_iter().collect();
    assert!(lines.iter().any(|line| line.contains("token refused")), "the reason is logged");
    let signature = token.rsplit('.').next().expect("three parts");
    for line in &lines {
        assert!(!line.contains(&signature[..20]) && !line.contains(secret.trim()), "{line}");
    }
}

#[path = "support/redis.rs"]
mod server;

fn on_redis(dir: &Path, port: u16, id: &str) -> Command {
    let url = format!("bus.redis.url=redis://127.0.0.1:{port}");
    let id = format!("node.id={id}");
    command(dir, &["--set", "bus.kind=redis", "--set", &url, "--set", &id])
}

#[test]
fn on_redis_a_node_id_is_one_living_process_and_an_embedded_store_one_node() {
    let redis = server::RedisServer::start(&[]);
    let (dir, other) = (TempDir::new("lease"), TempDir::new("lease-other"));
    let mut first = Node::from(&mut on_redis(&dir.0, redis.port, "n1"));
    let began = Instant::now();
    let refused = |id: &str| {
        let output = on_redis(&other.0, redis.port, id).output().expect("the binary starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = refused("n1");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("node.id `n1` is taken") && said.contains(&format!("pid {}", first.child.id())), "{said}");
    let (code, said) = refused("n2");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("store.kind = cql"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(15), "told within a beat or two");

    // Its successor on this machine sees that it is gone.
    let token = first.token(&dir.0, "ann");
    let mut ann = Client::connect(&first, &token);
    ann.send(&json!({"type": "join_room", "roomId": "r"}));
    ann.next("user_joined");
    std::thread::sleep(Duration::from_millis(300));
    first.signal(libc::SIGKILL);
    first.wait();
    let began = Instant::now();
    let mut second = Node::from(&mut on_redis(&dir.0, redis.port, "n1"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // What it left is cleared up by the successor.
    let deadline = Instant::now() + PATIENCE;
    let keys = || redis::cmd("KEYS").arg("*presence:ann*").query::<Vec<String>>(&mut redis.connect()).expect("keys");
    while !keys().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", keys());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut bob = Client::connect(&second, &token);
    bob.send(&json!({"type": "join_room", "roomId": "r"}));
    bob.next("room_history");
    bob.send(&json!({"type": "members", "roomId": "r"}));
    assert_eq!(bob.next("members")["count"], 1);
    let (status, body) = second.get("/metrics");
    assert!(status == 200 && body.contains("roomwire_cluster_nodes 1"), "{body}");
    // One that ends in order leaves no lease behind.
    second.signal(libc::SIGTERM);
    second.wait();
    let leases: Vec<String> = redis::cmd("HKEYS").arg("rw:{nodes}:leases").query(&mut redis.connect()).expect("a hash");
    assert_eq!(leases, [""; 0]);
}
