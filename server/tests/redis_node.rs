//! A whole node on a real Redis: publish, history, trouble and recovery over HTTP, and refusals at the start.

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[path = "support/directory.rs"]
mod directory;
#[path = "support/redis.rs"]
mod support;
use directory::TempDir;
use support::RedisServer;

const KEY: &str = "0123456789abcdef";
/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    child: Child,
    http: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _dir: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(dir).env_clear().env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", port.to_string());
    command.args(["serve", "--dev", "--set", "shards=1", "--set", "listen.addr=127.0.0.1:0"]);
    command.args(["--set", "http.addr=127.0.0.1:0", "--set", &format!("http.key={KEY}")]);
    command.args(["--set", "bus.redis.timeout_ms=500", "--set", "bridge.publish_ms_max=1000"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Node {
    fn start(name: &str, port: u16) -> Node {
        let dir = TempDir::new(&format!("redis-node-{name}"));
        let mut child = command(&dir.0, port).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let ready = lines.find(|line| line.contains("\"ready\"")).expect("it gets ready");
        let ready: Value = serde_json::from_str(&ready).expect("a log line is JSON");
        let http = ready["http"].as_str().and_then(|addr| addr.parse().ok()).expect("an address");
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || lines.for_each(|line| kept.lock().expect("no panic").push(line)));
        Node { child, http, log, _dir: dir }
    }

    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.text(method, path, body);
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn text(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}");
        write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    fn publish(&self, id: &str) -> (u16, Value) {
        self.publish_to("lobby", id)
    }

    fn publish_to(&self, room: &str, id: &str) -> (u16, Value) {
        let body = json!({"content": format!("text of {id}"), "userId": "ada", "clientId": id});
        self.call("POST", &format!("/v1/rooms/{room}/messages"), &body.to_string())
    }

    fn status(&self) -> Value {
        self.call("GET", "/readyz", "").1["status"].clone()
    }

    /// Whether a warning of the log has all of these words.
    fn has_warned(&self, words: &[&str]) -> bool {
        let log = self.log.lock().expect("no panic");
        log.iter().any(|line| line.contains("WARN") && words.iter().all(|word| line.contains(word)))
    }

    /// The (epoch, seq) of each message.
    fn history(&self) -> Vec<(u64, u64)> {
        let (status, answer) = self.call("GET", "/v1/rooms/lobby/messages", "");
        assert_eq!(status, 200, "{answer}");
        let messages = answer["messages"].as_array().expect("messages");
        let number = |value: &Value| value.as_u64().expect("a number");
        messages.iter().map(|message| (number(&message["epoch"]), number(&message["seq"]))).collect()
    }

    fn until(&self, what: &str, holds: impl Fn(&Node) -> bool) -> Duration {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: {}", self.call("GET", "/readyz", "").1);
            std::thread::sleep(Duration::from_millis(50));
        }
        began.elapsed()
    }
}

#[test]
fn a_node_outlives_its_redis_and_goes_on_in_the_next_generation() {
    let mut redis = RedisServer::start(&[]);
    let node = Node::start("outlives", redis.port);
    for (id, seq) in [("a", 1), ("b", 2), ("b", 2), ("c", 3)] {
        let (status, answer) = node.publish(id);
        assert_eq!((status, &answer["seq"]), (201, &json!(seq)), "{answer}");
    }
    assert_eq!(node.history(), [(1, 1), (1, 2), (1, 3)]);
    assert_eq!(node.call("GET", "/readyz", "").1["status"], "ready");

    redis.down();
    node.until("degraded", |node| node.call("GET", "/readyz", "").1["status"] == "degraded");
    let (status, answer) = node.call("GET", "/readyz", "");
    assert!(
        status == 200 && answer["checks"]["bus"]["cause"].as_str().is_some_and(|cause| cause.contains("Redis")),
        "{answer}"
    );
    // Some find out, and wait for it as long as a publish may; all others are told at once to come back.
    let slow = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..40)
            .map(|number| {
                let node = &node;
                std::thread::sleep(Duration::from_millis(5));
                scope.spawn(move || {
                    let began = Instant::now();
                    let (status, answer) = node.publish(&format!("away{number}"));
                    assert_eq!(status, 503, "{answer}");
                    began.elapsed() > Duration::from_millis(150)
                })
            })
            .collect();
        publishers.into_iter().filter_map(|publisher| publisher.join().ok()).filter(|slow| *slow).count()
    });
    assert!(slow <= 4, "{slow} of 40 publishes waited");

    redis.up();
    let took = node.until("ready", |node| node.call("GET", "/readyz", "").1["status"] == "ready");
    node.until("publishes", |node| node.publish("d").0 == 201);
    assert!(took < Duration::from_secs(5), "in sync after {took:?}");
    let (status, answer) = node.publish("c");
    assert_eq!(
        (status, &answer["epoch"], &answer["seq"]),
        (201, &json!(1), &json!(3)),
        "a retry of long ago: {answer}"
    );
    let all = node.history();
    assert_eq!(&all[..3], [(1, 1), (1, 2), (1, 3)]);
    assert!(
        all[3..].iter().all(|(epoch, _)| *epoch == 2) && all[3..].windows(2).all(|two| two[0].1 < two[1].1),
        "{all:?}"
    );
}

#[test]
fn a_key_of_another_application_in_place_of_ours_costs_its_room_alone() {
    let redis = RedisServer::start(&[]);
    let node = Node::start("another", redis.port);
    let mut other = redis.connect();
    for key in ["h", "p", "d0", "d1", "log", "rb"] {
        let (room, name) = (format!("taken.{key}"), format!("rw:{{taken.{key}}}:{key}"));
        // Others may be written to all the time: by nothing of ours is the bus well again.
        assert_eq!(node.publish_to(&room, "before").0, 201);
        let _: () = redis::cmd("DEL").arg(&name).query(&mut other).expect("it answers");
        let _: () = redis::cmd("SET").arg(&name).arg("of another").query(&mut other).expect("it answers");
        let began = Instant::now();
        let (status, answer) = node.publish_to(&room, "meanwhile");
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{name}: {answer}");
        assert!(began.elapsed() < Duration::from_millis(1_500), "{name}: refused after {:?}", began.elapsed());
        assert_eq!(node.status(), "ready", "{name}");
        assert_eq!(node.publish_to("lobby", key).0, 201, "{name}: another room is refused, too");
        node.until("the key is named", |node| node.has_warned(&[&name, "another application"]));
        let _: () = redis::cmd("DEL").arg(&name).query(&mut other).expect("it answers");
        node.until("the room goes on", |node| node.publish_to(&room, "after").0 == 201);
    }
    let (_, metrics) = node.text("GET", "/metrics", "");
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("roomwire_bus_wrong_types_total ")).expect("counted");
    assert!(counted.parse::<u64>().expect("a number") >= 6, "{counted}");
}

#[test]
fn what_only_the_operator_can_put_right_ends_the_start_with_78() {
    let redis = RedisServer::start(&["--conf", "maxmemory-policy allkeys-lru"]);
    let dir = TempDir::new("redis-node-policy");
    let output = command(&dir.0, redis.port).output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("noeviction") && !text.contains("panicked"), "{text}");
}
