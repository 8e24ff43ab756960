//! What systemd hears of a node, with a socket of this test in systemd's place: ready, status, watchdog, stop.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/directory.rs"]
mod directory;
use directory::TempDir;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that believes systemd started it with `WatchdogSec=1`.
struct Node {
    child: Child,
    manager: UnixDatagram,
    _dir: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    fn start(name: &str) -> Node {
        let dir = TempDir::new(&format!("systemd-{name}"));
        let socket = dir.0.join("notify");
        let manager = UnixDatagram::bind(&socket).expect("a socket");
        manager.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let child = Command::new(env!("CARGO_BIN_EXE_roomwire"))
            .current_dir(&dir.0)
            .env_clear()
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "1000000")
            .args(["serve", "--dev", "--set", "listen.addr=127.0.0.1:0", "--set", "http.addr=127.0.0.1:0"])
            .args(["--set", "shards=2", "--set", "drain.secs=5"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Node { child, manager, _dir: dir }
    }

    /// The next message, if one comes within a tenth of a second.
    fn heard(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Waits for a message that holds `text`.
    fn hear(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(message) = self.heard().filter(|message| message.contains(text)) {
                return message;
            }
        }
        panic!("systemd did not hear {text}");
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids are small")
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not reaped yet.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// The thread of a shard.
    fn shard_thread(&self) -> i32 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it lives");
        let mut tasks = tasks.map_while(Result::ok).map(|task| task.path());
        let is_shard =
            |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with("shard"));
        let shard = tasks.find(is_shard).expect("a shard's thread");
        shard.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a thread id")
    }
}

/// One thread of a process that stands still while the others go on, as after a fault. It goes on when dropped.
struct Stopped(i32);

impl Stopped {
    fn new(thread: i32) -> Stopped {
        let no_data = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the requests take no pointer; the thread belongs to a child of this process.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, no_data, no_data), 0, "a child may be traced");
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, no_data, no_data), 0);
            assert_eq!(libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL), thread);
        }
        Stopped(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let no_data = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: takes no pointer; where the thread is gone it only answers ESRCH.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, no_data, no_data) };
    }
}

#[test]
fn it_says_ready_feeds_the_watchdog_and_says_that_it_stops() {
    let mut node = Node::start("life");
    assert!(node.hear("READY=1").contains("STATUS=serving: 0 connections on 2 shards"));
    node.hear("WATCHDOG=1");
    node.signal(libc::SIGHUP);
    assert!(node.hear("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(node.hear("READY=1").contains("STATUS=configuration reloaded"));
    node.signal(libc::SIGTERM);
    assert!(node.hear("STOPPING=1").contains("EXTEND_TIMEOUT_USEC=15000000"));
    assert!(node.child.wait().expect("waitable").success());
}

#[test]
fn a_shard_that_does_not_turn_starves_the_watchdog() {
    let node = Node::start("stuck");
    node.hear("WATCHDOG=1");
    let _stopped = Stopped::new(node.shard_thread());
    node.hear("STATUS=a shard does not turn");
    // Whatever was fed before that word is read; nothing may follow it.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let heard = node.heard().unwrap_or_default();
        assert!(!heard.contains("WATCHDOG=1"), "fed while a shard stands still");
    }
}
