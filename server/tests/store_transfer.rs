//! `roomwire store export`, `import` and `stat`: round trips between real stores, and all that must not pass for whole.
//!
//! With the cluster of `ROOMWIRE_TEST_CASSANDRA` (see `store_cql.rs`) the way through Cassandra too.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "support/cassandra.rs"]
mod cassandra;
#[path = "shared/contract.rs"]
#[allow(dead_code, reason = "what fills a store, not the contract")]
mod contract;
#[path = "support/node.rs"]
mod harness;

use contract::{Asker, odd_row, row};
use harness::{Client, Node, TempDir};
use roomwire::store::cql::CqlConfig;
use roomwire::store::embedded::{EmbeddedConfig, OpenError, spawn};
use roomwire::store::transfer::format::Totals;
use roomwire::store::transfer::import::{check, import_file, import_stream};
use roomwire::store::transfer::stat::StatAsk;
use roomwire::store::transfer::{Offline, export};
use roomwire::store::{Store, StoreConfig};
use roomwire_engine::store::From;
use serde_json::{Value, json};
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

/// Readers of one message: more than one line holds.
const MANY_READERS: u64 = 1_200;

fn embedded(directory: &TempDir) -> EmbeddedConfig {
    EmbeddedConfig { reserve_bytes: 0, cache_bytes: 4 << 20, ..EmbeddedConfig::new(directory.0.join("data")) }
}

fn open(config: &EmbeddedConfig) -> Asker {
    Asker::of(Store::Embedded(spawn(config.clone(), Arc::new(|| {})).unwrap()), "")
}

/// Rooms with all that a store can hold: generations with voids at their seams, rows that died, odd texts, receipts, a
/// room over a bucket's end, one that has nothing but its generation.
fn fill(store: &mut Asker, readers: u64) {
    assert!(store.advance("lobby", 0, 71) && store.set_base("lobby", (1, 71), 1, &[]));
    assert!(store.append((1..=20).map(|seq| row("lobby", seq, 1)).collect()));
    assert!(store.advance("lobby", 1, u64::MAX) && store.set_base("lobby", (2, u64::MAX), 24, &[19, 21, 22]));
    let odd = |seq, content| odd_row("lobby", seq, 2, content);
    assert!(store.append(vec![odd(24, ""), odd(25, r"\u0041 \n \\ 'x'; caf\u00e9"), odd(26, &"é".repeat(20_000))]));
    assert!(store.append(vec![row("lobby", 24, 1)]), "a row of a generation that was over");
    assert!(store.void("lobby", 2, 27));
    for reader in 0..readers {
        assert_eq!(store.receipt("lobby", 1, 5, &format!("reader{reader:04}")), (true, true));
    }
    store.receipt("lobby", 2, 26, "ada");

    assert!(store.advance("long", 0, 5) && store.set_base("long", (1, 5), 1, &[]));
    assert!(store.append((9_000..=10_100).map(|seq| row("long", seq, 1)).collect()));
    assert!(store.advance("user:ada", 0, 6) && store.set_base("user:ada", (1, 6), 1, &[]));
    assert!(store.append(vec![row("user:ada", 1, 1)]));
    assert!(store.advance("begun", 0, 8));
}

const FILLED: Totals = Totals { rooms: 4, messages: 20 + 4 + 1_101 + 1, voids: 4, receipts: MANY_READERS + 1 };

fn exported(config: StoreConfig, rooms: &str) -> (String, Totals) {
    let mut out = Vec::new();
    let totals = export(&mut Offline::open(config).unwrap(), rooms, &mut out, &mut |_| {}).unwrap();
    (String::from_utf8(out).unwrap(), totals)
}

fn imported(config: StoreConfig, rooms: &str, text: &str) -> Result<Totals, String> {
    import_file(&mut Offline::open_to_write(config).unwrap(), rooms, &mut Cursor::new(text), &mut |_| {})
}

/// The lines behind the header, each room's together: stores keep their rooms in orders of their own.
fn body(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Both hold the same records.
fn same(one: &str, other: &str) {
    let (one, other) = (body(one), body(other));
    let differ = one.iter().zip(&other).find(|(one, other)| one != other);
    assert!(differ.is_none() && one.len() == other.len(), "{} and {} lines: {differ:?}", one.len(), other.len());
}

/// A directory with a filled store, and its export.
fn source(name: &str) -> (TempDir, String) {
    let directory = TempDir::new(name);
    let config = embedded(&directory);
    fill(&mut open(&config), MANY_READERS);
    let (text, totals) = exported(StoreConfig::Embedded(config), "*");
    assert_eq!(totals, FILLED);
    (directory, text)
}

#[test]
fn what_one_directory_exports_another_imports_and_twice_is_once() {
    let (_source, text) = source("round");
    let directory = TempDir::new("round-target");
    let target = StoreConfig::Embedded(embedded(&directory));
    for round in 0..2 {
        assert_eq!(imported(target.clone(), "*", &text), Ok(FILLED), "round {round}");
        let (again, totals) = exported(target.clone(), "*");
        same(&again, &text);
        assert_eq!(totals, FILLED, "round {round}");
    }
    let mut store = open(&embedded(&directory));
    let (page, _, oldest) = store.page("lobby", (0, 99), 99, From::Oldest);
    assert_eq!((page.len(), oldest), (22, 0));
    assert_eq!(page[0].row, row("lobby", 1, 1));
    assert_eq!(page[4].read_by.len(), 200, "as many as one answer lists");
    assert_eq!(store.receipt("lobby", 1, 5, "reader1199"), (true, false), "known already");
    let (meta, _) = store.room("lobby", 100);
    assert_eq!((meta.generation, meta.owner, meta.bases), (2, u64::MAX, vec![(1, 1), (2, 24)]));
    assert_eq!(meta.voids, [19, 21, 22, 27]);
}

#[test]
fn rooms_can_be_chosen_on_both_ways() {
    let (source, text) = source("choose");
    let lobby = Totals { rooms: 1, messages: 24, voids: 4, receipts: MANY_READERS + 1 };
    let (chosen, totals) = exported(StoreConfig::Embedded(embedded(&source)), "lob*");
    assert_eq!(totals, lobby);
    for (file, rooms) in [(&chosen, "*"), (&text, "lob*")] {
        let directory = TempDir::new("chosen");
        let target = StoreConfig::Embedded(embedded(&directory));
        assert_eq!(imported(target.clone(), rooms, file), Ok(lobby));
        same(&exported(target, "*").0, &chosen);
    }
}

#[test]
fn a_room_in_another_state_is_refused_and_nothing_is_changed() {
    let (_source, text) = source("conflict");
    let directory = TempDir::new("conflict-target");
    let target = StoreConfig::Embedded(embedded(&directory));
    let mut store = open(&embedded(&directory));
    assert!(store.advance("user:ada", 0, 9) && store.append(vec![row("user:ada", 1, 1)]));
    drop(store);
    let before = exported(target.clone(), "*");
    let error = imported(target.clone(), "*", &text).unwrap_err();
    assert!(
        error.contains("user:ada (epoch 1 there, 1 in the file)") && error.contains("Nothing was imported"),
        "{error}"
    );
    same(&exported(target.clone(), "*").0, &before.0);
    assert!(imported(target.clone(), "l*", &text).is_ok(), "the others may come");

    // A store that was used since is not put back.
    let mut store = open(&embedded(&directory));
    assert!(store.advance("lobby", 2, 12) && store.set_base("lobby", (3, 12), 28, &[]));
    drop(store);
    let error = imported(target, "lobby", &text).unwrap_err();
    assert!(error.contains("lobby (epoch 3 there, 2 in the file)") && error.contains("--room"), "{error}");
}

#[test]
fn a_bad_file_is_refused_with_its_line_before_anything_is_written() {
    let (_source, text) = source("bad");
    let directory = TempDir::new("bad-target");
    let target = StoreConfig::Embedded(embedded(&directory));
    let lines: Vec<&str> = text.lines().collect();
    let without = |left_out: usize| {
        let kept = lines.iter().enumerate().filter(|(place, _)| *place != left_out).map(|(_, line)| *line);
        kept.collect::<Vec<_>>().join("\n")
    };
    let last = lines.len() - 1;
    let message = lines.iter().position(|line| line.contains("\"seq\":7,")).unwrap();
    let room = lines.iter().position(|line| line.contains("\"room\"") && line.contains("\"lobby\"")).unwrap();
    let cases = [
        (without(last), "its end"),
        (text[..text.len() / 2].to_owned(), "line "),
        (without(message), "the end counts"),
        (without(0), "line 1:"),
        (without(room), "another room than"),
        (text.replacen("message 7", "message \u{7}7", 1), "line "),
        (text.replacen("\"seq\":7,", "\"seq\":8,", 1), "messageId"),
        (format!("{text}{text}"), "follows the end"),
        (format!("{}\n{}", lines[0], lines[0]), "line 2"),
        (String::new(), "line 1"),
        ("\u{0}\u{1}".repeat(9_000_000), "16 MiB"),
        (text.replacen("\"version\":1", "\"version\":7", 1), "use a newer one"),
    ];
    for (bad, word) in cases {
        let error = imported(target.clone(), "*", &bad).unwrap_err();
        let is_one_line = error.lines().count() == 1 && error.len() < 600;
        assert!(error.contains(word) && error.contains("Nothing was imported") && is_one_line, "{word}: {error}");
        assert!(check(None, "*", &mut Cursor::new(&bad), &mut |_| {}).is_err());
        assert_eq!(exported(target.clone(), "*").1, Totals::default(), "{word}");
    }
    drop(open(&embedded(&directory)));
    assert_eq!(check(None, "*", &mut Cursor::new(&text), &mut |_| {}), Ok(FILLED));
}

#[test]
fn a_pipe_that_breaks_leaves_a_store_on_which_no_node_starts_until_it_is_whole() {
    let (_source, text) = source("pipe");
    let directory = TempDir::new("pipe-target");
    let target = StoreConfig::Embedded(embedded(&directory));
    let stream = |text: &str| {
        let mut store = Offline::open_to_write(target.clone()).unwrap();
        import_stream(&mut store, "*", &mut Cursor::new(text), &mut |_| {})
    };
    assert!(stream("not ours").is_err());
    drop(open(&embedded(&directory)));

    let half: String = text.lines().take(1_100).map(|line| format!("{line}\n")).collect();
    assert!(stream(&half).unwrap_err().contains("cut short"));
    let error = spawn(embedded(&directory), Arc::new(|| {})).unwrap_err();
    assert!(matches!(error, OpenError::HalfImported { .. }), "{error}");
    assert!(error.to_string().contains("roomwire store import") && error.to_string().lines().count() == 1, "{error}");
    assert!(Offline::open(target.clone()).is_err(), "and nothing half is exported");

    assert_eq!(stream(&text), Ok(FILLED));
    drop(open(&embedded(&directory)));
    same(&exported(target, "*").0, &text);
}

#[test]
fn figures_are_estimated_or_counted() {
    let (source, _) = source("stat");
    let wants = |_: &str| true;
    let mut store = Offline::open(StoreConfig::Embedded(embedded(&source))).unwrap();
    let stat = store.stat(&StatAsk { wants: &wants, exact: true, rooms: 2 }).unwrap();
    assert_eq!((stat.rooms, stat.messages, stat.is_exact), (4, FILLED.messages, true));
    let largest: Vec<(&str, Option<u64>)> =
        stat.largest.iter().map(|room| (&*room.room, room.last.map(|(seq, _)| seq))).collect();
    assert_eq!(largest, [("long", Some(10_100)), ("lobby", Some(26))]);
    assert!(stat.bytes > 0 && stat.oldest.is_some() && stat.newest.is_some());
    let stat = store.stat(&StatAsk { wants: &wants, exact: false, rooms: 2 }).unwrap();
    assert_eq!((stat.messages, stat.is_exact), (26 + 1_101 + 1, false));
}

fn open_cql(config: &CqlConfig) -> Asker {
    Asker::of(Store::Cql(roomwire::store::cql::spawn(config.clone(), Arc::new(|| {})).unwrap()), "")
}

#[test]
fn the_way_through_cassandra_and_back_changes_nothing() {
    let Some(cluster) = cassandra::directory() else { return };
    let directory = TempDir::new("cql");
    // A cluster keeps a thousand readers of a message.
    fill(&mut open(&embedded(&directory)), 1_000);
    let (text, totals) = exported(StoreConfig::Embedded(embedded(&directory)), "*");
    let config = cassandra::keyspace(&cluster, "xthrough");
    let target = StoreConfig::Cql(config.clone());
    for round in 0..2 {
        assert_eq!(imported(target.clone(), "*", &text), Ok(totals), "round {round}");
    }
    let (through, through_totals) = exported(target.clone(), "*");
    same(&through, &text);
    assert_eq!(through_totals, totals);
    let back = TempDir::new("cql-back");
    assert_eq!(imported(StoreConfig::Embedded(embedded(&back)), "*", &through), Ok(totals));
    same(&exported(StoreConfig::Embedded(embedded(&back)), "*").0, &text);

    let mut store = open_cql(&config);
    let (page, _, oldest) = store.page("lobby", (0, 99), 99, From::Oldest);
    assert_eq!((page.len(), oldest), (22, 0));
    assert_eq!(store.receipt("lobby", 1, 5, "reader0999"), (true, false), "known already");
    let (meta, tail) = store.room("lobby", 3);
    assert_eq!((meta.generation, meta.owner, meta.bases), (2, u64::MAX, vec![(1, 1), (2, 24)]));
    assert_eq!((meta.voids, tail), (vec![19, 21, 22, 27], vec![24, 24, 25, 26]));

    let wants = |_: &str| true;
    let mut offline = Offline::open(target.clone()).unwrap();
    let stat = offline.stat(&StatAsk { wants: &wants, exact: true, rooms: 1 }).unwrap();
    assert_eq!((stat.rooms, stat.messages, &*stat.largest[0].room), (4, totals.messages, "long"));

    // It was used since: the file is older.
    assert!(store.advance("lobby", 2, 12));
    let error = imported(target, "*", &text).unwrap_err();
    assert!(
        error.contains("lobby (epoch 3 there, 2 in the file)") && error.contains("Nothing was imported"),
        "{error}"
    );
}

#[test]
fn a_keyspace_that_is_half_imported_lets_no_node_start_and_a_running_one_go_on() {
    let Some(cluster) = cassandra::directory() else { return };
    let (_source, text) = source("cql-half");
    let config = cassandra::keyspace(&cluster, "xhalf");
    let mut running = open_cql(&config);
    assert!(running.advance("other", 0, 3) && running.append(vec![row("other", 1, 1)]));
    let half: String = text.lines().take(1_100).map(|line| format!("{line}\n")).collect();
    let mut target = Offline::open_to_write(StoreConfig::Cql(config.clone())).unwrap();
    import_stream(&mut target, "*", &mut Cursor::new(half), &mut |_| {}).unwrap_err();
    let error = roomwire::store::cql::spawn(config.clone(), Arc::new(|| {})).unwrap_err().to_string();
    assert!(error.contains("did not finish") && error.lines().count() == 1, "{error}");
    assert!(running.append(vec![row("other", 2, 1)]));
    import_stream(&mut target, "*", &mut Cursor::new(&text), &mut |_| {}).unwrap();
    assert_eq!(open_cql(&config).seqs("user:ada"), [1]);
}

#[test]
fn what_retention_had_removed_stays_known_in_cassandra() {
    let Some(cluster) = cassandra::directory() else { return };
    let directory = TempDir::new("floor");
    let mut store = open(&embedded(&directory));
    assert!(store.advance("lobby", 0, 7) && store.set_base("lobby", (1, 7), 1, &[]));
    assert!(store.append((1..=1_500).map(|seq| row("lobby", seq, 1)).collect()));
    drop(store);
    let kept = EmbeddedConfig { messages_per_room_max: 100, ..embedded(&directory) };
    let mut store = open(&kept);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while store.seqs("lobby").len() > 100 {
        assert!(std::time::Instant::now() < deadline, "retention never came");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(store);
    let (text, totals) = exported(StoreConfig::Embedded(embedded(&directory)), "*");
    assert_eq!(totals.messages, 100);
    let config = cassandra::keyspace(&cluster, "xfloor");
    imported(StoreConfig::Cql(config.clone()), "*", &text).unwrap();
    let mut store = open_cql(&config);
    let (page, _, oldest) = store.page("lobby", (0, u64::MAX), 1, From::Oldest);
    assert_eq!((page[0].row.seq, oldest), (1_401, 1_401));
    same(&exported(StoreConfig::Cql(config), "*").0, &text);
}

// The commands, as an operator runs them, and a node on what they made.

fn roomwire(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(directory).env_clear().args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_node_on_the_imported_store_goes_on_where_the_client_was() {
    let (old, new) = (TempDir::new("moves"), TempDir::new("moved"));
    let mut node = Node::start(&old.0, &["--set", "drain.secs=1"]);
    let token = node.token(&old.0, "alice");
    let (mut alice, mut bob) = (Client::connect(&node, &token), Client::connect(&node, &node.token(&old.0, "bob")));
    bob.join(json!({ "roomId": "lobby" }));
    let first = alice.publish("lobby", "one \\ \"two\"", "c1");
    let position = bob.next("chat_message");
    let second = alice.publish("lobby", "three", "c2");
    alice.send(&json!({ "type": "read_receipt", "roomId": "lobby", "messageId": first["messageId"] }));
    bob.next("read_receipt");

    let data = "data.dir=roomwire-data";
    let in_use = roomwire(&old.0, &["store", "export", "--set", data]);
    assert_eq!(in_use.status.code(), Some(1));
    assert!(said(&in_use).contains(&format!("in use by process {}", node.child.id())), "{}", said(&in_use));
    assert_eq!(roomwire(&new.0, &["store", "export", "--set", data]).status.code(), Some(1), "there is none");
    assert!(!new.0.join("roomwire-data").exists(), "and none is made by looking");
    node.signal(libc::SIGTERM);
    drop((alice, bob));
    node.wait();

    let made = roomwire(&old.0, &["store", "export", "--set", data, "--output", "rooms.jsonl"]);
    assert!(
        made.status.success() && said(&made).contains("exported 1 room, 2 messages, 1 receipt, 0 voids"),
        "{}",
        said(&made)
    );
    let again = roomwire(&old.0, &["store", "export", "--set", data, "--output", "rooms.jsonl"]);
    assert!(!again.status.success() && said(&again).contains("is there already"), "{}", said(&again));
    let file = old.0.join("rooms.jsonl");
    let file = file.to_str().unwrap();
    let checked = roomwire(&new.0, &["store", "import", "--check", file]);
    assert!(checked.status.success() && said(&checked).contains("every line is good"), "{}", said(&checked));
    let done = roomwire(&new.0, &["store", "import", "--set", data, file]);
    assert!(done.status.success() && said(&done).contains("imported 1 room"), "{}", said(&done));
    let stat = roomwire(&new.0, &["store", "stat", "--set", data, "--json"]);
    let stat: Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert_eq!((&stat["rooms"], &stat["largest"][0]["seq"]), (&json!(1), &json!(2)));

    let node = Node::start(&new.0, &[]);
    let mut alice = Client::connect(&node, &node.token(&new.0, "alice"));
    let missed = alice.join(json!({ "roomId": "lobby", "since": position["seq"], "epoch": position["epoch"] }));
    assert_eq!(missed["messages"].as_array().unwrap().len(), 1, "{missed}");
    assert_eq!((&missed["messages"][0]["messageId"], &missed["complete"]), (&second["messageId"], &json!(true)));
    let retried = alice.publish("lobby", "three", "c2");
    assert_eq!(
        (&retried["messageId"], &retried["seq"]),
        (&second["messageId"], &json!(2)),
        "a retry is the same message"
    );
    assert_eq!(alice.publish("lobby", "four", "c3")["seq"], 3);
    alice.send(&json!({ "type": "history", "roomId": "lobby" }));
    let all = alice.next("room_history");
    assert_eq!(all["messages"][0]["content"], "one \\ \"two\"");
    assert_eq!(all["messages"][0]["readBy"], json!(["alice"]));
}
