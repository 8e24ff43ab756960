//! Real Redis servers for the tests, started by the project's own script on free ports, gone when dropped.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A server, a Sentinel or a cluster of `scripts/redis`.
#[derive(Debug)]
pub(crate) struct RedisServer {
    dir: PathBuf,
    arguments: Vec<String>,
    /// Where it listens; the first of a cluster's.
    pub(crate) port: u16,
}

fn script(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(root.join("scripts/redis")).args(arguments).output().expect("scripts/redis runs")
}

impl RedisServer {
    /// Starts one with these arguments of `scripts/redis up`.
    pub(crate) fn start(arguments: &[&str]) -> RedisServer {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("roomwire-redis-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = RedisServer { dir, arguments, port: 0 };
        server.up();
        server
    }

    /// Starts it again, where it was: with the same port, and without data unless it has `--appendonly`.
    pub(crate) fn up(&mut self) {
        let dir = self.dir.to_str().expect("a temporary directory is UTF-8").to_owned();
        let port = self.port.to_string();
        let mut all = vec!["up", "--dir", &dir];
        if self.port != 0 {
            all.extend(["--port", &port]);
        }
        all.extend(self.arguments.iter().map(String::as_str));
        let output = script(&all);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "scripts/redis {all:?}: {}", String::from_utf8_lossy(&output.stderr));
        self.port = text.lines().next().and_then(|line| line.parse().ok()).expect("a port");
    }

    /// Stops it.
    pub(crate) fn down(&self) {
        script(&["down", "--dir", self.dir.to_str().expect("a temporary directory is UTF-8")]);
    }

    /// Sends a signal, such as `-KILL`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.dir.join("pid")).expect("it runs");
        assert!(Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs").success());
    }

    /// A connection of the test's own.
    pub(crate) fn connect(&self) -> redis::Connection {
        let url = format!("redis://127.0.0.1:{}/?protocol=resp3", self.port);
        redis::Client::open(url).and_then(|client| client.get_connection()).expect("it answers")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.down();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
