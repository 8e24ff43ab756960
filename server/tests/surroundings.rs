//! Bad surroundings: what a node says, and does, where the machine does not give it what it needs.

use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/node.rs"]
mod harness;
use harness::{Client, Node, TempDir, command};

/// The same command with so many descriptors, hard and soft.
fn with_descriptors(mut command: Command, descriptors: u64) -> Command {
    let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
    // SAFETY: between fork and exec only this one system call is made, with a struct that was copied into the closure.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn too_few_descriptors_for_what_was_asked_are_refused_and_without_asking_they_bound_the_connections() {
    let dir = TempDir::new("descriptors");
    // Of two shards: where the kernel counts for each, 128 of each are kept; else 256 and 16 for each.
    let possible = if roomwire_shard::probe::has_tables() { 2 * (1_024 - 128) } else { 1_024 - 256 - 32 };
    let asked = command(&dir.0, &["--set", "limits.connections_max=100000"]);
    let (status, said) = refused(with_descriptors(asked, 1_024));
    assert_eq!(status, Some(78), "{said}");
    assert!(
        said.contains("`limits.connections_max` is 100000") && said.contains(&format!("leaves {possible} for clients")),
        "{said}"
    );
    assert!(said.contains("LimitNOFILE"), "{said}");
    let (status, said) = refused(with_descriptors(command(&dir.0, &[]), 288));
    assert_eq!(status, Some(78), "{said}");
    assert!(said.contains("which leaves too few for clients"), "{said}");

    // The line of the start says what it came to.
    let mut child = with_descriptors(command(&dir.0, &[]), 1_024).spawn().expect("the binary starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let ready = stderr.lines().map_while(Result::ok).find(|line| line.contains("\"ready\"")).expect("it starts");
    assert!(ready.contains(&format!("\"connections_max\":{possible}")), "{ready}");
    child.kill().expect("it lives");
    child.wait().expect("waitable");
}

#[test]
fn without_a_journal_the_lines_go_to_standard_error() {
    if Path::new("/run/systemd/journal/socket").exists() {
        println!("skipped: this machine has a journal");
        return;
    }
    let dir = TempDir::new("journal");
    let file = std::fs::File::create(dir.0.join("stderr")).expect("writable");
    let stat =
        file.as_fd().try_clone_to_owned().map(std::fs::File::from).and_then(|file| file.metadata()).expect("a file");
    let mut command = command(&dir.0, &[]);
    // As systemd would say it of a stream to its journal.
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino())).stderr(Stdio::from(file));
    let mut child = command.spawn().expect("the binary starts");
    let deadline = Instant::now() + harness::PATIENCE;
    while !std::fs::read_to_string(dir.0.join("stderr")).is_ok_and(|text| text.contains("\"ready\"")) {
        assert!(Instant::now() < deadline && child.try_wait().expect("waitable").is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it lives");
    child.wait().expect("waitable");
}

/// A file system of its own, unmounted when dropped; `None` where this user may not mount.
struct Small(TempDir);

impl Small {
    fn mount(name: &str, bytes: u64) -> Option<Small> {
        let dir = TempDir::new(name);
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir.0).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Small(dir)),
            _ => {
                println!("skipped: cannot mount a tmpfs");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0.0).output();
    }
}

#[test]
fn a_disk_that_is_full_at_the_start_takes_no_messages_and_all_else_goes_on() {
    let Some(small) = Small::mount("full", 64 << 20) else { return };
    let dir = TempDir::new("full-node");
    let data = format!("data.dir={}", small.0.0.display());
    // What is kept in reserve is more than there is.
    let node = Node::start(&dir.0, &["--set", &data, "--set", "store.reserve_bytes=1073741824"]);
    let mut token = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    token.current_dir(&dir.0).env_clear().args(["token", "--dev", "--user", "ann", "--set", &data]);
    let token = String::from_utf8(token.output().expect("it runs").stdout).expect("UTF-8");
    let mut client = Client::connect(&node, token.trim());
    let history = client.join(json!({ "roomId": "r" }));
    assert_eq!(history["complete"], true);
    client.send(&json!({ "type": "chat_message", "roomId": "r", "content": "hello", "clientId": "c" }));
    let error = client.next("error");
    assert_eq!((&error["code"], &error["clientId"]), (&json!("unavailable"), &json!("c")), "{error}");
    assert!(error["retryAfterMs"].is_u64(), "{error}");
    let (status, body) = node.get("/readyz");
    assert!(status == 200 && body.contains("degraded") && body.contains("MiB"), "{body}");
    client.send(&json!({ "type": "ping" }));
    client.next("pong");
}

#[test]
fn a_disk_without_a_single_free_byte_refuses_the_start_with_its_cause() {
    let Some(small) = Small::mount("no-byte", 1 << 20) else { return };
    // Fills it to the last byte; what did not fit is of no interest.
    let _ = std::fs::write(small.0.0.join("filler"), vec![0; 2 << 20]);
    let dir = TempDir::new("no-byte-node");
    let data = format!("data.dir={}/data", small.0.0.display());
    let began = Instant::now();
    let (status, said) = refused(command(&dir.0, &["--set", &data]));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    assert!(said.lines().filter(|line| line.starts_with("roomwire:")).count() == 1, "{said}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_data_directory_that_may_not_be_written_is_named() {
    let dir = TempDir::new("unwritable");
    std::fs::write(dir.0.join("file"), "no directory").expect("writable");
    let (status, said) = refused(command(&dir.0, &["--set", "data.dir=file"]));
    assert!(matches!(status, Some(1 | 78)), "{status:?}: {said}");
    assert!(said.contains("file"), "{said}");
}
