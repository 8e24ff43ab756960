//! SIGHUP on a whole node over real sockets: what changes, what does not, and that nobody is disconnected by it.

use serde_json::{Value as Json, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/node.rs"]
mod harness;
use harness::{Client, Node, PATIENCE, TempDir};

const OLD_SECRET: &str = "the first secret of these tests, long enough";
const NEW_SECRET: &str = "the other secret of these tests, long enough";
const OLD_KEY: &str = "the first key of the API";
const NEW_KEY: &str = "the other key of the API";

/// A node with a configuration file that the test writes anew.
struct Subject {
    node: Node,
    dir: TempDir,
}

/// The file's parts that a test may change.
struct File<'a> {
    secrets: &'a str,
    key: &'a str,
    rest: &'a str,
}

const FIRST: File<'_> =
    File { secrets: "secret = \"the first secret of these tests, long enough\"", key: OLD_KEY, rest: "" };

impl File<'_> {
    fn write(&self, dir: &Path) {
        let File { secrets, key, rest } = self;
        let text = format!("{rest}\n[auth]\n{secrets}\n[http]\nkey = \"{key}\"\naddr = \"127.0.0.1:0\"\n");
        std::fs::write(dir.join("roomwire.toml"), text).expect("writable");
    }
}

impl Subject {
    fn start(name: &str) -> Subject {
        let dir = TempDir::new(&format!("reload-{name}"));
        FIRST.write(&dir.0);
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
        command.current_dir(&dir.0).env_clear().args(["serve", "--config", "roomwire.toml"]);
        command.args(["--set", "shards=2", "--set", "listen.addr=127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Subject { node: Node::from(&mut command), dir }
    }

    fn token(&self, secret: &str, user: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
        command.current_dir(&self.dir.0).env_clear().env("JWT_SECRET", secret).args(["token", "--user", user]);
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// Writes the file and waits for the line that ends the reload.
    fn reload(&self, file: &File<'_>, line: &str) -> Json {
        file.write(&self.dir.0);
        self.node.signal(libc::SIGHUP);
        self.node.line(line)
    }

    /// The status of `/v1/stats` with this key.
    fn stats(&self, key: &str) -> u16 {
        let mut stream = TcpStream::connect(self.node.http).expect("HTTP listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let head =
            format!("GET /v1/stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The status of an upgrade from this origin.
    fn upgrade(&self, token: &str, origin: &str) -> u16 {
        self.upgraded(token, origin).0
    }

    /// The same, with the connection.
    fn upgraded(&self, token: &str, origin: &str) -> (u16, TcpStream) {
        let mut stream = TcpStream::connect(self.node.listen).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let head = format!(
            "GET /?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: {origin}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("answered");
        (String::from_utf8_lossy(&answer[9..]).parse().expect("a status"), stream)
    }

    fn is_refused(&self, token: &str) -> bool {
        // Read by hand: a good token gets `connected`, a bad one the close frame.
        let mut client = Client::upgrade(&self.node, token);
        client.0.read().expect("an answer").is_close()
    }

    fn has_metric(&self, line: &str) {
        eventually(line, || self.node.get("/metrics").1.lines().any(|it| it == line));
    }
}

/// The threads hear of a reload a moment after the line that tells of it.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn say(client: &mut Client, bytes: usize) -> Json {
    client.send(&json!({ "type": "chat_message", "roomId": "r", "content": "x".repeat(bytes), "clientId": "c" }));
    loop {
        let message = client.0.read().expect("an answer").into_text().expect("text");
        let message: Json = serde_json::from_str(&message).expect("the server speaks JSON");
        if message["type"] == "ack" || message["type"] == "error" {
            return message;
        }
    }
}

#[test]
fn sighup_changes_limits_origins_keys_and_log_level_and_disconnects_nobody() {
    let subject = Subject::start("all");
    let (old, new) = (subject.token(OLD_SECRET, "ann"), subject.token(NEW_SECRET, "ann"));
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&subject.node, &old)).collect();
    assert_eq!(say(&mut clients[0], 600)["type"], "ack");
    assert!(subject.is_refused(&new));
    assert_eq!((subject.upgrade(&old, "https://evil.example"), subject.stats(OLD_KEY)), (101, 200));

    // First both secrets, as an operator would who changes it.
    let both = format!("secret = \"{NEW_SECRET}\"\nsecond_secret = \"{OLD_SECRET}\"");
    let rest = "allowed_origins = [\"https://chat.example\"]\n[log]\nlevel = \"debug\"\n\
                [limits]\ncontent_bytes_max = 500\nmessage_bytes_max = 20000\nmessages_per_second_max = 5\nmessages_burst_max = 5";
    let second = File { secrets: &both, key: NEW_KEY, rest };
    let done = subject.reload(&second, "configuration reloaded");
    let changed = done["changed"].as_str().unwrap_or_default().to_owned();
    for key in
        ["allowed_origins", "auth.secret", "auth.second_secret", "http.key", "limits.content_bytes_max", "log.level"]
    {
        assert!(changed.split(", ").any(|it| it == key), "{key} in {changed}");
    }
    assert!(!done.to_string().contains("secret of these tests"), "{done}");
    assert!(!subject.is_refused(&new) && !subject.is_refused(&old));
    // Several, as each goes to one of two shards.
    eventually("403", || (0..8).all(|_| subject.upgrade(&old, "https://evil.example") == 403));
    assert_eq!(subject.upgrade(&old, "https://chat.example"), 101);
    assert_eq!((subject.stats(OLD_KEY), subject.stats(NEW_KEY)), (401, 200));
    // The connections of before are there, and live under the new limits.
    assert_eq!(say(&mut clients[0], 600)["code"], "too_large");
    let limited =
        |client: &mut Client| (0..7).map(|_| say(client, 10)).filter(|it| it["code"] == "rate_limited").count();
    assert!(clients.iter_mut().skip(1).all(|client| limited(client) >= 1));
    subject.has_metric("roomwire_config_reloads_total{result=\"applied\"} 1");

    // Then the new one alone.
    let only = format!("secret = \"{NEW_SECRET}\"");
    subject.reload(&File { secrets: &only, ..second }, "configuration reloaded");
    assert!(subject.is_refused(&old) && !subject.is_refused(&new));
    // The rate that they used up comes back.
    std::thread::sleep(Duration::from_millis(1_500));
    for client in &mut clients {
        client.send(&json!({ "type": "ping" }));
        client.next("pong");
    }
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let subject = Subject::start("bad");
    let token = subject.token(OLD_SECRET, "ann");
    let mut client = Client::connect(&subject.node, &token);
    let bad = [
        ("[limits]\ncontent_bytes_max = 500\nmesages_burst_max = 1", "did you mean `limits.messages_burst_max`?"),
        (
            "[limits]\ncontent_bytes_max = \"many\"",
            "roomwire.toml:2:1: `limits.content_bytes_max` expects a whole number",
        ),
        ("[limits\ncontent_bytes_max = 500", "roomwire.toml:1:"),
        ("[limits]\ncontent_bytes_max = 70000", "`limits.content_bytes_max` must not be above"),
        ("shards = 4\n[limits]\ncontent_bytes_max = 500\n[log]\nlevel = \"loud=very=much\"", "`log.level`"),
    ];
    for (rest, why) in bad {
        let said = subject.reload(&File { rest, ..FIRST }, "the old one stays");
        assert!(said.to_string().contains(&why.replace('"', "\\\"")), "{said}");
    }
    std::fs::remove_file(subject.dir.0.join("roomwire.toml")).expect("it is there");
    subject.node.signal(libc::SIGHUP);
    assert!(subject.node.line("the old one stays").to_string().contains("cannot be read"));
    subject.has_metric("roomwire_config_reload_refused 1");
    subject.has_metric("roomwire_config_reloads_total{result=\"refused\"} 6");
    // All is as it was.
    assert_eq!(say(&mut client, 600)["type"], "ack");
    assert!(!subject.is_refused(&token));
    assert_eq!(subject.stats(OLD_KEY), 200);
    // And a good file is taken again.
    subject.reload(&FIRST, "configuration reloaded");
    subject.has_metric("roomwire_config_reload_refused 0");
}

#[test]
fn keys_that_need_a_restart_are_named_and_the_others_taken() {
    let subject = Subject::start("restart");
    let token = subject.token(OLD_SECRET, "ann");
    let mut client = Client::connect(&subject.node, &token);
    let rest = "[limits]\ncontent_bytes_max = 500\n[heartbeat]\nsecs = 7\n[data]\ndir = \"elsewhere\"";
    let said = subject.reload(&File { rest, ..FIRST }, "need a restart");
    assert_eq!(said["keys"], "data.dir, heartbeat.secs");
    subject.node.line("configuration reloaded");
    subject.has_metric("roomwire_config_restart_keys 2");
    eventually("too_large", || say(&mut client, 600)["code"] == "too_large");
    assert!(!subject.dir.0.join("elsewhere").exists());
    subject.reload(&FIRST, "configuration reloaded");
    subject.has_metric("roomwire_config_restart_keys 0");
}

#[test]
fn a_limit_by_address_that_a_reload_brings_counts_who_comes_after_it() {
    let subject = Subject::start("address");
    let token = subject.token(OLD_SECRET, "ann");
    let mut before: Vec<Client> = (0..6).map(|_| Client::connect(&subject.node, &token)).collect();
    // One for each of two shards.
    let rest = "[limits]\nconnections_per_address_max = 2";
    subject.reload(&File { rest, ..FIRST }, "configuration reloaded");
    eventually("503", || {
        let after: Vec<_> = (0..8).map(|_| subject.upgraded(&token, "https://chat.example")).collect();
        let taken = after.iter().filter(|(status, _)| *status == 101).count();
        (1..=2).contains(&taken) && after.iter().all(|(status, _)| *status == 101 || *status == 503)
    });
    for client in &mut before {
        client.send(&json!({ "type": "ping" }));
        client.next("pong");
    }
}

#[test]
fn reloads_under_load_lose_nothing() {
    let subject = Subject::start("load");
    let token = subject.token(OLD_SECRET, "ann");
    let (mut one, mut other) = (Client::connect(&subject.node, &token), Client::connect(&subject.node, &token));
    for client in [&mut one, &mut other] {
        client.join(json!({ "roomId": "r" }));
    }
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(2) {
        let rest = format!("[limits]\nqueue_ms_max = {}", 5_000 + sent);
        File { rest: &rest, ..FIRST }.write(&subject.dir.0);
        subject.node.signal(libc::SIGHUP);
        one.publish("r", "hello", &format!("c{sent}"));
        sent += 1;
        assert_eq!(other.next("chat_message")["seq"], sent);
        // Under the rate of one connection.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(sent > 10, "{sent}");
}
