//! Retention on a real Cassandra, as short as a test can wait for: what has expired is said to be missing, and no number
//! comes a second time.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "support/cassandra.rs"]
mod cassandra;
#[path = "shared/contract.rs"]
#[allow(dead_code, reason = "what fills a store, not the contract")]
mod contract;

use contract::{Asker, row, rows};
use roomwire::store::Store;
use roomwire::store::cql::{CqlConfig, spawn};
use roomwire_engine::store::From;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long messages are kept here.
const RETENTION: Duration = Duration::from_secs(5);
/// No row of a test outlives this.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(name: &str) -> Option<CqlConfig> {
    let directory = cassandra::directory()?;
    Some(CqlConfig { retention: RETENTION, ..cassandra::keyspace(&directory, name) })
}

fn open(config: &CqlConfig) -> Asker {
    Asker::of(Store::Cql(spawn(config.clone(), Arc::new(|| {})).unwrap()), "")
}

/// Asks until the room's first message is this one, and then for what retention left.
fn until_first(store: &mut Asker, first: Option<u64>) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (page, _, oldest) = store.page("lobby", (0, u64::MAX), 1, From::Oldest);
        if page.first().map(|read| read.row.seq) == first {
            return oldest;
        }
        assert!(Instant::now() < deadline, "{:?} is still the first", page.first().map(|read| read.row.seq));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_has_expired_is_missing_and_known_to_be_so() {
    let Some(config) = config("expire") else { return };
    let mut store = open(&config);
    assert!(store.advance("lobby", 0, 7) && store.set_base("lobby", (1, 7), 1, &[]));
    assert!(store.append(rows("lobby", 1..=150)));
    assert_eq!(store.page("lobby", (0, 200), 1, From::Oldest).2, 0, "nothing is gone yet");
    // A receipt that comes late does not keep a row alive, nor makes one of its own.
    std::thread::sleep(RETENTION / 2);
    assert_eq!(store.receipt("lobby", 1, 150, "ada"), (true, true));
    assert!(store.append(rows("lobby", 151..=300)));

    assert_eq!(until_first(&mut store, Some(151)), 151, "and at once, not when it is looked for the next time");
    let (page, cut, oldest) = store.page("lobby", (100, 160), 99, From::Newest);
    assert_eq!((page.len(), cut, oldest), (9, false, 151), "so a client that was at 100 misses something");
    assert_eq!(store.receipt("lobby", 1, 150, "bob"), (false, false));
    assert_eq!(store.room("lobby", 10).1, (291..=300).collect::<Vec<_>>());

    assert_eq!(until_first(&mut store, None), 10_000, "numbers go on in the next bucket");
    assert_eq!(store.room("lobby", 10).1, [0; 0]);
    drop(store);
    let mut store = open(&config);
    assert_eq!(store.page("lobby", (0, u64::MAX), 1, From::Newest).2, 10_000, "also for a node that starts then");
    assert!(store.append(vec![row("lobby", 10_000, 2)]));
    assert_eq!(store.page("lobby", (0, u64::MAX), 9, From::Newest).2, 10_000);
}

#[test]
fn voids_and_lone_survivors_are_no_loss() {
    let Some(config) = config("alone") else { return };
    // Voided seqs at a room's beginning were never messages.
    let mut store = open(&config);
    assert!(store.advance("lobby", 0, 7) && store.set_base("lobby", (1, 7), 4, &[1, 2, 3]));
    assert!(store.append(rows("lobby", 4..=9)));
    assert_eq!(store.page("lobby", (0, 99), 1, From::Oldest).2, 0);
    // Messages of other ages: where clocks differ, one may outlive its neighbours.
    let forever = CqlConfig { retention: Duration::ZERO, ..config };
    let mut other = open(&forever);
    assert!(other.append(vec![row("lobby", 10, 1)]) && store.append(rows("lobby", 11..=40)));
    assert_eq!(until_first(&mut store, Some(10)), 10);
    let deadline = Instant::now() + PATIENCE;
    while store.seqs("lobby") != [10] {
        assert!(Instant::now() < deadline, "{:?}", store.seqs("lobby"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(store.page("lobby", (0, 99), 9, From::Newest).2, 10);
}
