//! The CQL store on a real Cassandra: the contract, the schema, races, a cluster that hangs or dies.
//!
//! It is the one of `support/cassandra.rs`; without it these tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "support/cassandra.rs"]
mod cassandra;
#[path = "shared/contract.rs"]
mod contract;
#[path = "support/directory.rs"]
mod directory;

use contract::{Asker, row, rows};
use directory::TempDir;
use roomwire::config::Secret;
use roomwire::store::cql::migrate::{Migrated, Replication, migrate};
use roomwire::store::cql::{CqlConfig, OpenError, spawn};
use roomwire::store::{Store, StoreEvent, StoreState};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{StoreReply, StoreRequest};
use scylla::client::session_builder::SessionBuilder;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Tests that stop the cluster have it for themselves.
static CLUSTER: RwLock<()> = RwLock::new(());

/// A keyspace of this run, with the schema in it; tests keep apart by the names of their rooms.
fn config(directory: &Path) -> CqlConfig {
    static MADE: OnceLock<String> = OnceLock::new();
    let keyspace = MADE.get_or_init(|| {
        let keyspace = format!("t{}", std::process::id());
        let migrated = migrate(&cassandra::config(directory, &keyspace), &Replication::Everywhere(1)).unwrap();
        assert_eq!(migrated, Migrated { from: 0, to: 1, made_keyspace: true });
        keyspace
    });
    cassandra::config(directory, keyspace)
}

fn open(config: &CqlConfig, prefix: &str) -> Asker {
    Asker::of(Store::Cql(spawn(config.clone(), Arc::new(|| {})).unwrap()), prefix)
}

fn shared() -> RwLockReadGuard<'static, ()> {
    CLUSTER.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    CLUSTER.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs a part of the contract, its rooms named after it.
fn check(name: &str, part: fn(&mut Asker)) {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    part(&mut open(&config(&directory), name));
}

#[test]
fn pages_run_both_ways_and_say_when_they_were_cut() {
    check("pages.", contract::pages_run_both_ways_and_say_when_they_were_cut);
}

#[test]
fn pages_and_tails_cross_what_the_store_keeps_apart() {
    check("cross.", contract::pages_and_tails_cross_what_the_store_keeps_apart);
}

#[test]
fn an_append_never_overwrites_and_may_be_repeated() {
    check("append.", contract::an_append_never_overwrites_and_may_be_repeated);
}

#[test]
fn rows_come_back_as_they_were() {
    check("odd.", contract::rows_come_back_as_they_were);
}

#[test]
fn the_row_of_the_highest_generation_counts_and_a_void_means_absent() {
    check("resolve.", contract::the_row_of_the_highest_generation_counts_and_a_void_means_absent);
}

#[test]
fn as_many_voids_as_a_room_may_have_pending_fit_one_base() {
    check("voids.", contract::as_many_voids_as_a_room_may_have_pending_fit_one_base);
}

#[test]
fn a_reader_is_counted_once_and_only_with_a_message() {
    check("readers.", contract::a_reader_is_counted_once_and_only_with_a_message);
}

#[test]
fn generations_advance_once_and_bases_belong_to_their_owner() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let config = config(&directory);
    contract::generations_advance_once_and_bases_belong_to_their_owner(&|| open(&config, "generations."));
}

#[test]
fn migrating_again_changes_nothing_and_a_wrong_keyspace_password_or_ca_is_one_line() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let config = config(&directory);
    let again = migrate(&config, &Replication::Everywhere(1)).unwrap();
    assert_eq!(again, Migrated { from: 1, to: 1, made_keyspace: false });

    let refused = |config: CqlConfig, word: &str| {
        let error = spawn(config, Arc::new(|| {})).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, OpenError::Refused(_)) && text.contains(word) && text.lines().count() == 1, "{text}");
        text
    };
    refused(CqlConfig { keyspace: "nowhere".to_owned(), ..config.clone() }, "roomwire store migrate");
    let wrong =
        refused(CqlConfig { password: Some(Secret::new("sesame".to_owned())), ..config.clone() }, "store.cql.password");
    assert!(!wrong.contains("sesame"));
    refused(CqlConfig { user: None, password: None, ..config.clone() }, "store.cql.user");
    refused(CqlConfig { ca_file: Some("missing.pem".into()), ..config.clone() }, "missing.pem");

    let tls = CqlConfig { ca_file: Some(directory.join("ca.pem")), ..config };
    assert!(open(&tls, "tls.").append(rows("lobby", 1..=1)), "and over TLS");
}

/// Runs statements of the test's own.
fn run(config: &CqlConfig, statements: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session = SessionBuilder::new().known_nodes(&config.nodes).user("cassandra", "cassandra");
        let session = session.build().await.unwrap();
        for statement in statements {
            session.query_unpaged(statement.as_str(), ()).await.unwrap();
        }
    });
}

/// How a node starts on it: its exit status, and what it says.
fn start(config: &CqlConfig) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    let folder = TempDir::new("store-cql-version");
    command
        .current_dir(&folder.0)
        .env_clear()
        .env("ROOMWIRE_STORE__CQL__PASSWORD", "cassandra")
        .args(["serve", "--dev"]);
    let sets = [
        "shards=1".to_owned(),
        "listen.addr=127.0.0.1:0".to_owned(),
        "http.addr=127.0.0.1:0".to_owned(),
        "store.kind=cql".to_owned(),
        "store.cql.user=cassandra".to_owned(),
        format!("store.cql.nodes={}", config.nodes.join(",")),
        format!("store.cql.keyspace={}", config.keyspace),
    ];
    let output = command.args(sets.iter().flat_map(|set| ["--set", set])).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_schema_of_another_version_ends_the_start_with_both_versions_and_the_cure() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let config = cassandra::keyspace(&directory, "version");
    let table = format!("{}.schema_version", config.keyspace);
    let cases = [
        (
            0,
            format!("DELETE FROM {table} WHERE name = 'roomwire'"),
            "this roomwire needs 1: run `roomwire store migrate`",
        ),
        (
            2,
            format!("INSERT INTO {table} (name, version, applied_at) VALUES ('roomwire', 2, toTimestamp(now()))"),
            "this roomwire knows up to 1: upgrade it",
        ),
    ];
    for (version, statement, cure) in cases {
        run(&config, &[statement]);
        let (status, said) = start(&config);
        assert_eq!(status, Some(78), "{said}");
        assert!(said.contains(&format!("{} has schema version {version}, {cure}", config.keyspace)), "{said}");
        assert!(
            !said.contains("panicked") && said.lines().filter(|line| line.starts_with("roomwire: ")).count() == 1,
            "{said}"
        );
    }
    let error = migrate(&config, &Replication::Everywhere(1)).unwrap_err();
    assert!(
        error.contains("schema version 2, this roomwire knows up to 1"),
        "an older migrate keeps its hands off: {error}"
    );
}

#[test]
fn of_two_who_advance_a_generation_one_succeeds() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let config = config(&directory);
    let (mut one, mut other) = (open(&config, "race."), open(&config, "race."));
    for round in 0..20 {
        let room = one.named(&format!("room{round}"));
        let ask = |asker: &mut Asker, owner: u64| {
            let room = room.clone();
            asker.store.send(StoreRequest::AdvanceGen { ticket: owner, room, expect: 0, owner });
        };
        ask(&mut one, 1);
        ask(&mut other, 2);
        let applied = |reply: StoreReply| match reply {
            StoreReply::Compared { applied, .. } => Some(applied),
            // Both waited for each other: an unknown outcome, which a repeat decides.
            StoreReply::Failed { .. } => None,
            other => panic!("{other:?}"),
        };
        let mut won = [applied(one.reply()), applied(other.reply())];
        for (place, asker) in [&mut one, &mut other].into_iter().enumerate() {
            while won[place].is_none() {
                ask(asker, place as u64 + 1);
                won[place] = applied(asker.reply());
            }
        }
        assert_ne!(won[0], won[1], "round {round}");
        let owner = if won[0] == Some(true) { 1 } else { 2 };
        assert_eq!(one.room(&format!("room{round}"), 0).0.owner, owner);
    }
}

fn signal(directory: &Path, signal: &str) {
    let pid = std::fs::read_to_string(directory.join("node1/pid")).unwrap();
    assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
}

/// Appends until it succeeds; how long that took.
fn time_to_append(store: &mut Asker, seq: u64) -> Duration {
    let began = Instant::now();
    while !store.append(vec![row("lobby", seq, 1)]) {
        assert!(began.elapsed() < Duration::from_secs(30), "never came back: {:?}", store.state);
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

#[test]
fn a_cluster_that_hangs_fails_requests_in_time_and_is_used_again_at_once() {
    let Some(directory) = cassandra::directory() else { return };
    let _alone = alone();
    let config = CqlConfig { timeout: Duration::from_millis(500), queue_max: 200, ..config(&directory) };
    for (round, seconds) in [(0, 2), (1, 12)] {
        let mut store = open(&config, &format!("hang{round}."));
        assert!(store.append(vec![row("lobby", 1, 1)]));
        signal(&directory, "-STOP");
        let began = Instant::now();
        assert!(!store.append(vec![row("lobby", 2, 1)]), "unknown outcome");
        assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
        // Many at once: all are answered within the bound, and those that are too many at once.
        let sent = Instant::now();
        for ticket in 1_000..1_400 {
            let row = roomwire_engine::store::Row { room: store.named("lobby"), ..row("lobby", ticket, 1) };
            store.store.send(StoreRequest::Append { ticket, rows: vec![row] });
        }
        for _ in 0..400 {
            assert!(matches!(store.reply(), StoreReply::Failed { .. }));
        }
        assert!(sent.elapsed() < Duration::from_millis(1_500), "{:?}", sent.elapsed());
        // The circuit is open: now nobody waits.
        let began = Instant::now();
        assert!(!store.append(vec![row("lobby", 3, 1)]));
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(sent.elapsed()));
        signal(&directory, "-CONT");
        let took = time_to_append(&mut store, 4);
        println!("after {seconds} s of silence back in {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let seqs = store.seqs("lobby");
        assert!(seqs.contains(&1) && seqs.contains(&4), "{seqs:?}");
    }
}

#[test]
fn a_cluster_that_dies_is_degraded_and_used_again_when_it_is_back() {
    let Some(directory) = cassandra::directory() else { return };
    let _alone = alone();
    let config = config(&directory);
    let mut store = open(&config, "dies.");
    assert!(store.append(rows("lobby", 1..=100)));
    signal(&directory, "-KILL");
    assert!(!store.append(vec![row("lobby", 101, 1)]));
    // A node may also be started while it is away.
    let mut late = open(&config, "dies.");
    assert!(!late.append(vec![row("lobby", 102, 1)]));
    wait_for_state(&mut late, |state| matches!(state, StoreState::Degraded(_)));
    wait_for_state(&mut store, |state| matches!(state, StoreState::Degraded(_)));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cassandra");
    assert!(Command::new(script).args(["up", "--dir"]).arg(&directory).status().unwrap().success());
    for asker in [&mut store, &mut late] {
        let took = time_to_append(asker, 103);
        println!("after its restart back in {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        wait_for_state(asker, |state| *state == StoreState::Healthy);
    }
    assert_eq!(store.seqs("lobby")[..100], (1..=100).collect::<Vec<_>>(), "what was acked is there");
}

fn wait_for_state(store: &mut Asker, is_reached: impl Fn(&StoreState) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut events = Vec::new();
    loop {
        store.store.receive(16, &mut events);
        for event in events.drain(..) {
            if let StoreEvent::Figures(figures) = event
                && is_reached(&figures.state)
            {
                return;
            }
        }
        assert!(Instant::now() < deadline, "the state never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_message_is_one_insert() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let mut store = open(&config(&directory), "count.");
    for room in ["a", "b"] {
        assert!(store.append(vec![row(room, 1, 1)]));
    }
    let before = statements(&mut store);
    for seq in 2..=51 {
        let ticket = seq;
        let row = roomwire_engine::store::Row { room: RoomId::new("count.a"), ..row("a", seq, 1) };
        store.store.send(StoreRequest::Append { ticket, rows: vec![row] });
    }
    for _ in 0..50 {
        assert!(matches!(store.reply(), StoreReply::Appended { .. }));
    }
    assert_eq!(statements(&mut store) - before, 50);
}

/// The figure, once it has come that covers all that was answered.
fn statements(store: &mut Asker) -> u64 {
    let mut figure = 0;
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut events = Vec::new();
        let mut heard = false;
        while !heard {
            store.store.receive(16, &mut events);
            for event in events.drain(..) {
                if let StoreEvent::Figures(figures) = event {
                    (figure, heard) = (figures.statements_total, true);
                }
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    figure
}

#[test]
fn a_message_keeps_a_thousand_readers_and_no_others_are_announced() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let mut store = open(&config(&directory), "thousand.");
    assert!(store.advance("lobby", 0, 7) && store.append(rows("lobby", 1..=1)));
    for reader in 0..1_000 {
        assert_eq!(store.receipt("lobby", 1, 1, &format!("reader{reader}")), (true, true));
    }
    assert_eq!(store.receipt("lobby", 1, 1, "reader1000"), (true, false));
    assert_eq!(store.receipt("lobby", 1, 1, "reader7"), (true, false));
}

#[test]
fn doctor_finds_the_keyspace_its_copies_and_how_far_it_is() {
    let Some(directory) = cassandra::directory() else { return };
    let _shared = shared();
    let config = config(&directory);
    let examined = roomwire::store::cql::examine::examine(&config).unwrap();
    assert_eq!((examined.nodes, examined.copies), (1, Some(1)));
    assert!(examined.reads.is_sorted() && !examined.reads.is_empty());
    let elsewhere = CqlConfig { keyspace: "nothing_here".to_owned(), ..config };
    let why = roomwire::store::cql::examine::examine(&elsewhere).unwrap_err();
    assert!(why.contains("roomwire store migrate"), "{why}");
}
