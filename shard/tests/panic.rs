//! A panic on a shard's thread ends the process: a half-dead shard must not keep its listener.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/client.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod client;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod node;

use client::Client;
use node::{Node, Setting};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

#[test]
fn a_panic_in_a_shard_ends_the_process() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_panics", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a test asked for it"), "{output:?}");
}

#[test]
#[ignore = "run in a child by a_panic_in_a_shard_ends_the_process"]
fn child_that_panics() {
    let node = Node::start(&Setting::default());
    let _ = Client::connect(node.address, "panic");
    std::thread::park();
}
