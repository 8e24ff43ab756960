//! The whole binary for tests: a node as an operator would start it, and a client over a real socket.

#![allow(dead_code, reason = "each test uses a part of it")]

use serde_json::{Value as Json, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

#[path = "directory.rs"]
mod directory;
pub(crate) use directory::TempDir;

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running node. Killed when dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) lines: Receiver<String>,
    pub(crate) listen: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(dir).env_clear().args(["serve", "--dev"]);
    // Keys that a test sets again come later and win.
    command.args(["--set", "listen.addr=127.0.0.1:0", "--set", "http.addr=127.0.0.1:0", "--set", "shards=2"]);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Node {
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Node {
        Node::from(&mut command(dir, args))
    }

    pub(crate) fn from(command: &mut Command) -> Node {
        let mut child = command.spawn().expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut node = Node { child, lines, listen: ([127, 0, 0, 1], 0).into(), http: ([127, 0, 0, 1], 0).into() };
        let ready = node.line("\"ready\"");
        let addr = |key: &str| ready[key].as_str().and_then(|addr| addr.parse().ok()).expect("an address");
        (node.listen, node.http) = (addr("listen"), addr("http"));
        node
    }

    /// The next log line that holds `text`.
    pub(crate) fn line(&self, text: &str) -> Json {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no log line with {text}"));
            if line.contains(text) {
                return serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            }
        }
    }

    pub(crate) fn token(&self, dir: &Path, user: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
        command.current_dir(dir).env_clear().args(["token", "--dev", "--user", user]);
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("pids are small");
        // SAFETY: the child is ours and not reaped yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waitable") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The answer of the HTTP API: status line and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).expect("HTTP listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
    }
}

/// A client of a node.
pub(crate) struct Client(pub(crate) WebSocket<TcpStream>);

impl Client {
    /// Connects and reads `connected`.
    pub(crate) fn connect(node: &Node, token: &str) -> Client {
        let mut client = Client::upgrade(node, token);
        let connected = client.next("connected");
        assert!(connected["connectionId"].is_string(), "{connected}");
        client
    }

    pub(crate) fn upgrade(node: &Node, token: &str) -> Client {
        let stream = TcpStream::connect(node.listen).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let url = format!("ws://{}/?token={token}", node.listen);
        Client(tungstenite::client(url, stream).expect("upgraded").0)
    }

    pub(crate) fn send(&mut self, message: &Json) {
        self.0.send(Message::text(message.to_string())).expect("sent");
    }

    /// The next message of that type; others are passed over.
    pub(crate) fn next(&mut self, kind: &str) -> Json {
        loop {
            match self.0.read().unwrap_or_else(|error| panic!("waiting for {kind}: {error}")) {
                Message::Text(text) => {
                    let message: Json = serde_json::from_str(&text).expect("the server speaks JSON");
                    if message["type"] == kind {
                        return message;
                    }
                }
                Message::Close(frame) => panic!("waiting for {kind}: closed with {frame:?}"),
                _ => {}
            }
        }
    }

    /// Reads on to the close frame.
    pub(crate) fn closed(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.0.read().expect("a close frame") {
                return frame.expect("with a code");
            }
        }
    }

    pub(crate) fn publish(&mut self, room: &str, content: &str, client_id: &str) -> Json {
        self.send(&json!({ "type": "chat_message", "roomId": room, "content": content, "clientId": client_id }));
        self.next("ack")
    }

    pub(crate) fn join(&mut self, join: Json) -> Json {
        let mut join = join;
        join["type"] = json!("join_room");
        self.send(&join);
        self.next("room_history")
    }
}
