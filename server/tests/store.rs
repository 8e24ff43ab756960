//! The embedded store against its contract (`roomwire_engine::store`), on real files: conditional writes, pages,
//! retention, `kill -9`, a torn last write, a full disk, a directory that is in use.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "shared/contract.rs"]
mod contract;
#[path = "support/directory.rs"]
mod directory;

use bytes::Bytes;
use contract::{Asker, row, rows};
use directory::TempDir;
use roomwire::store::embedded::{EmbeddedConfig, EmbeddedStore, Fsync, OpenError, spawn};
use roomwire::store::{Store, StoreState};
use roomwire_engine::store::{From, Row, StoreReply, StoreRequest};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn config(directory: &TempDir) -> EmbeddedConfig {
    EmbeddedConfig { reserve_bytes: 0, cache_bytes: 4 << 20, ..EmbeddedConfig::new(directory.0.clone()) }
}

fn newest_journal(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory.join("messages")).unwrap().map(|entry| entry.unwrap().path());
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max_by_key(number).unwrap()
}

/// Opens a store. A child process that another test is about to start holds a copy of our lock for a moment, so "in use"
/// counts only if it stays.
fn open_patiently(config: &EmbeddedConfig) -> Result<EmbeddedStore, OpenError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match spawn(config.clone(), Arc::new(|| {})) {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "a test makes a config for each start")]
fn open(config: EmbeddedConfig) -> Asker {
    Asker::of(Store::Embedded(open_patiently(&config).unwrap()), "")
}

/// Runs a part of the contract on a fresh directory.
fn check(part: fn(&mut Asker)) {
    let directory = TempDir::new("contract");
    part(&mut open(config(&directory)));
}

#[test]
fn pages_run_both_ways_and_say_when_they_were_cut() {
    check(contract::pages_run_both_ways_and_say_when_they_were_cut);
}

#[test]
fn pages_and_tails_cross_what_the_store_keeps_apart() {
    check(contract::pages_and_tails_cross_what_the_store_keeps_apart);
}

#[test]
fn an_append_never_overwrites_and_may_be_repeated() {
    check(contract::an_append_never_overwrites_and_may_be_repeated);
}

#[test]
fn rows_come_back_as_they_were() {
    check(contract::rows_come_back_as_they_were);
}

#[test]
fn the_row_of_the_highest_generation_counts_and_a_void_means_absent() {
    check(contract::the_row_of_the_highest_generation_counts_and_a_void_means_absent);
}

#[test]
fn as_many_voids_as_a_room_may_have_pending_fit_one_base() {
    check(contract::as_many_voids_as_a_room_may_have_pending_fit_one_base);
}

#[test]
fn a_reader_is_counted_once_and_only_with_a_message() {
    check(contract::a_reader_is_counted_once_and_only_with_a_message);
}

#[test]
fn generations_advance_once_and_bases_belong_to_their_owner() {
    let directory = TempDir::new("generations");
    contract::generations_advance_once_and_bases_belong_to_their_owner(&|| open(config(&directory)));
}

/// Retention is driven by its own clock of 100 ms steps; the test waits for the state that it must reach.
fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn retention_by_count_keeps_the_newest_and_says_what_is_gone() {
    let directory = TempDir::new("count");
    let mut store = open(config(&directory));
    store.advance("lobby", 0, 7);
    store.set_base("lobby", (1, 7), 1, &[]);
    assert!(store.append(rows("lobby", 1..=1_500)));
    store.receipt("lobby", 1, 3, "ada");
    drop(store);

    let config = EmbeddedConfig { messages_per_room_max: 100, ..config(&directory) };
    let mut store = open(config);
    until("a hundred are left", || store.seqs("lobby").len() == 100);
    let (page, _, oldest) = store.page("lobby", (0, u64::MAX), 1, From::Oldest);
    assert_eq!((page[0].row.seq, oldest), (1_401, 1_401));
    assert_eq!(store.room("lobby", 1).1, [1_500]);
}

#[test]
fn retention_by_age_leaves_the_newest_row_of_a_room() {
    let directory = TempDir::new("age");
    let mut store = open(EmbeddedConfig { retention_days: 1, ..config(&directory) });
    store.advance("lobby", 0, 7);
    let old = |row: Row| Row { timestamp: 1_000, ..row };
    assert!(store.append(rows("lobby", 1..=50).into_iter().map(old).collect()));
    drop(store);
    let mut store = open(EmbeddedConfig { retention_days: 1, ..config(&directory) });
    until("one is left", || store.seqs("lobby") == [50]);
    assert_eq!(store.page("lobby", (0, 9), 9, From::Oldest).2, 50);
    assert_eq!(store.room("lobby", 10).1, [50], "the room's numbers go on from here");
}

#[test]
fn a_directory_in_use_is_refused_with_the_pid_of_its_holder() {
    let directory = TempDir::new("in-use");
    let first = open(config(&directory));
    let error = spawn(config(&directory), Arc::new(|| {})).unwrap_err();
    assert!(matches!(error, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    drop(open(config(&directory)));
}

#[test]
fn a_newer_or_foreign_directory_is_refused() {
    let directory = TempDir::new("format");
    drop(open(config(&directory)));
    std::fs::write(directory.0.join("format"), "roomwire-store 2\n").unwrap();
    assert!(matches!(open_patiently(&config(&directory)), Err(OpenError::Newer { version: 2, known: 1, .. })));
    std::fs::write(directory.0.join("format"), "something else\n").unwrap();
    assert!(matches!(open_patiently(&config(&directory)), Err(OpenError::NotOurs { .. })));
}

#[test]
fn with_an_interval_the_journal_is_synced_later_and_at_the_end() {
    let directory = TempDir::new("interval");
    let config = EmbeddedConfig { fsync: Fsync::Interval { ms: 20 }, ..config(&directory) };
    let mut store = open(config.clone());
    assert!(store.append(rows("lobby", 1..=20)));
    drop(store);
    assert_eq!(open(config).seqs("lobby"), (1..=20).collect::<Vec<_>>());
}

// Crashes.

const CHILD_DIR: &str = "ROOMWIRE_TEST_STORE_DIR";

/// Appends to several rooms and says what was acked, until it is killed.
#[test]
#[ignore = "the child of `nothing_acked_is_lost_by_kill_9`"]
fn child_that_is_killed() {
    let Ok(directory) = std::env::var(CHILD_DIR) else { return };
    let mut store = open(EmbeddedConfig { reserve_bytes: 0, ..EmbeddedConfig::new(directory.into()) });
    let mut next = [0u64; 3];
    for (room, next) in next.iter_mut().enumerate() {
        *next = store.seqs(&format!("room{room}")).last().map_or(1, |last| last + 1);
    }
    let mut out = std::io::stdout();
    loop {
        // Several requests at once, so that they share commits.
        let mut sent = Vec::new();
        for (room, next) in next.iter_mut().enumerate() {
            store.ticket += 1;
            let rows = (*next..*next + 3).map(|seq| row(&format!("room{room}"), seq, 1)).collect();
            store.store.send(StoreRequest::Append { ticket: store.ticket, rows });
            sent.push((store.ticket, room, *next + 2));
            *next += 3;
        }
        for _ in 0..sent.len() {
            let StoreReply::Appended { ticket } = store.reply() else { panic!("not appended") };
            let (_, room, seq) = sent.iter().find(|(sent, _, _)| *sent == ticket).unwrap();
            writeln!(out, "acked {room} {seq}").unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn nothing_acked_is_lost_by_kill_9() {
    let directory = TempDir::new("kill");
    let mut acked = [0u64; 3];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, &directory.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Killed after some acks, at any point of the commit that follows them.
        let mut left = 3 + random % 60;
        for line in lines {
            let line = line.unwrap();
            let mut words = line.split(' ');
            if words.next() != Some("acked") {
                continue;
            }
            let (room, seq): (usize, u64) =
                (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap());
            acked[room] = acked[room].max(seq);
            left = left.saturating_sub(1);
            if left == 0 {
                // Lines still in the pipe were acked too: read on until its end.
                child.kill().unwrap();
                left = u64::MAX;
            }
        }
        child.wait().unwrap();

        let mut store = open(config(&directory));
        for (room, acked) in acked.iter().enumerate() {
            let seqs = store.seqs(&format!("room{room}"));
            assert!(seqs.len() as u64 >= *acked, "room {room}: {} rows, acked {acked}", seqs.len());
            assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "whole and in order");
        }
    }
    assert!(acked.iter().all(|acked| *acked > 10), "{acked:?}");
}

/// Ends the store's process state without a clean close, as a crash would: copies the files while it is open.
fn crashed_copy(of: &TempDir) -> TempDir {
    let copy = TempDir::new("copy");
    let status = Command::new("cp").arg("-a").arg(of.0.join(".")).arg(&copy.0).status().unwrap();
    assert!(status.success());
    copy
}

/// The journal's bytes without the preallocated zeros behind them.
fn journal_end(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

#[test]
fn a_torn_last_write_is_dropped_and_all_before_it_is_there() {
    let directory = TempDir::new("torn");
    let mut store = open(config(&directory));
    assert!(store.append(rows("lobby", 1..=20)));
    let before = journal_end(&newest_journal(&directory.0));
    assert!(store.append(vec![row("lobby", 21, 1)]));
    let after = journal_end(&newest_journal(&directory.0));
    assert!(after > before);

    let reopened = |damage: &dyn Fn(&mut std::fs::File)| {
        let copy = crashed_copy(&directory);
        let mut file = std::fs::OpenOptions::new().write(true).open(newest_journal(&copy.0)).unwrap();
        damage(&mut file);
        drop(file);
        let mut store = open(config(&copy));
        let seqs = store.seqs("lobby");
        assert_eq!(seqs[..20], (1..=20).collect::<Vec<_>>());
        // And it goes on from there, also over another start.
        assert!(store.append(vec![row("lobby", 22, 1)]));
        drop(store);
        assert_eq!(open(config(&copy)).seqs("lobby").last(), Some(&22));
        seqs.len()
    };
    assert_eq!(reopened(&|_| {}), 21);
    for cut in (before + 1..after).step_by(7).chain([after - 1]) {
        assert_eq!(reopened(&|file| file.set_len(cut).unwrap()), 20, "cut at {cut} of {after}");
    }
    for at in (before..after).step_by(5).chain([after - 1]) {
        // A part that did not make it to the disk: the preallocated file's zeros stand there.
        let seqs = reopened(&|file| {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&[0; 24]).unwrap();
        });
        assert_eq!(seqs, 20, "zeros at {at} of {before}..{after}");
    }
}

#[test]
fn damage_in_the_middle_of_the_journal_is_refused_not_cut() {
    let directory = TempDir::new("damaged");
    let mut store = open(config(&directory));
    assert!(store.append(rows("lobby", 1..=5)));
    let inside = journal_end(&newest_journal(&directory.0)) - 30;
    for seq in 6..=9 {
        assert!(store.append(vec![row("lobby", seq, 1)]));
    }
    let copy = crashed_copy(&directory);
    let mut file = std::fs::OpenOptions::new().write(true).open(newest_journal(&copy.0)).unwrap();
    file.seek(SeekFrom::Start(inside)).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    let error = open_patiently(&config(&copy)).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

// A full disk.

/// A small file system, or `None` (said aloud) where we may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<SmallDisk> {
        let directory = TempDir::new("disk");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&directory.0).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(directory)),
            Ok(output) => {
                println!("skipped: cannot mount a tmpfs: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: cannot run mount: {error}");
                None
            }
        }
    }

    fn config(&self, reserve_bytes: u64) -> EmbeddedConfig {
        EmbeddedConfig { reserve_bytes, ..EmbeddedConfig::new(self.0.0.join("data")) }
    }

    /// Takes space away, all but `left` bytes.
    fn fill(&self, left: u64) {
        let ballast = self.0.0.join("ballast");
        let mut file = std::fs::File::create(ballast).unwrap();
        let chunk = vec![1u8; 64 * 1024];
        while free_bytes(&self.0.0) > left + chunk.len() as u64 {
            file.write_all(&chunk).unwrap();
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

fn free_bytes(path: &Path) -> u64 {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
}

fn big_row(seq: u64) -> Row {
    Row { content: Bytes::from("x".repeat(60_000)), ..row("lobby", seq, 1) }
}

/// Appends until the store refuses; the last acked seq.
fn append_until_refused(store: &mut Asker, mut seq: u64) -> u64 {
    while store.append(vec![big_row(seq + 1)]) {
        seq += 1;
        assert!(seq < 10_000, "the disk never filled up");
    }
    seq
}

fn a_full_disk(reserve_bytes: u64, left: u64) {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let mut store = open(disk.config(reserve_bytes));
    assert!(store.append(rows("lobby", 1..=3)));
    disk.fill(left);
    let acked = append_until_refused(&mut store, 3);

    // Publishers are refused, readers go on.
    assert!(!store.append(vec![big_row(acked + 1)]));
    assert_eq!(store.seqs("lobby"), (1..=acked).collect::<Vec<_>>());
    until("the store says that it is degraded", || {
        store.seqs("lobby");
        matches!(store.state, StoreState::Degraded(_))
    });

    // It recovers by itself.
    disk.free();
    until("the store takes writes again", || store.append(vec![big_row(acked + 1)]));
    assert_eq!(store.seqs("lobby"), (1..=acked + 1).collect::<Vec<_>>());
    until("the store says that it is well", || {
        store.seqs("lobby");
        store.state == StoreState::Healthy
    });
    drop(store);
    let mut store = open(disk.config(reserve_bytes));
    assert_eq!(store.seqs("lobby"), (1..=acked + 1).collect::<Vec<_>>(), "also after a restart");
}

#[test]
fn a_full_disk_stops_publishers_at_the_reserve() {
    a_full_disk(8 << 20, 10 << 20);
}

#[test]
fn a_disk_that_is_really_full_stops_publishers_and_recovers() {
    a_full_disk(0, 1 << 20);
}
