//! Stores without a node: rooms as JSON lines out of one store and into another, and what a store holds.
//!
//! `roomwire store export`, `import` and `stat` come here; a node never does. [`format`] is the lines, [`import`] the way
//! back, [`stat`] the figures. Both kinds of store do their part in `embedded/offline.rs` and `cql/offline.rs`.
//!
//! What is moved is everything that a room's future depends on: its generations with their bases and owner, its rows of
//! every generation with their attempts and client ids, voids, receipts, and what retention has left. So positions,
//! message ids, retries and pages mean the same in the new store. Memory is bounded whatever the size of the store.

pub mod format;
pub mod import;
pub mod stat;

use super::{StoreConfig, cql, embedded};
use format::{Header, Record, RoomFacts, Totals};
use roomwire_engine::names::matches_glob;
use stat::{Stat, StatAsk};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where an export puts its records.
pub(in crate::store) type Sink<'a> = dyn FnMut(&Record) -> Result<(), String> + 'a;

/// Called with what was done so far, as often as one likes.
pub type Progress<'a> = dyn FnMut(&Totals) + 'a;

/// How a room of a file stands to the one of its name in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Standing {
    /// The target has none.
    Absent,
    /// The target has it in the same state, or a part of it.
    Same,
    /// The target has another.
    Other {
        /// Its generation there.
        generation: u64,
    },
}

/// A store that was opened without a node.
pub struct Offline(Kind);

enum Kind {
    Embedded(embedded::offline::Offline),
    Cql(Box<cql::offline::Offline>),
}

impl Offline {
    /// Opens a store to read from it.
    ///
    /// # Errors
    /// One line for the operator: the directory is in use, the cluster cannot be reached, an import did not finish.
    pub fn open(config: StoreConfig) -> Result<Offline, String> {
        Offline::open_for(config, false)
    }

    /// Opens a store to import into it. An empty embedded one is made where there is none.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open_to_write(config: StoreConfig) -> Result<Offline, String> {
        Offline::open_for(config, true)
    }

    fn open_for(config: StoreConfig, to_write: bool) -> Result<Offline, String> {
        Ok(Offline(match config {
            StoreConfig::Embedded(config) => Kind::Embedded(embedded::offline::Offline::open(config, to_write)?),
            StoreConfig::Cql(config) => Kind::Cql(Box::new(cql::offline::Offline::open(config, to_write)?)),
        }))
    }

    fn source(&self) -> &'static str {
        match &self.0 {
            Kind::Embedded(_) => "embedded",
            Kind::Cql(_) => "cql",
        }
    }

    /// What the store holds.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn stat(&mut self, ask: &StatAsk<'_>) -> Result<Stat, String> {
        match &mut self.0 {
            Kind::Embedded(store) => store.stat(ask),
            Kind::Cql(store) => store.stat(ask),
        }
    }

    fn standings(&mut self, rooms: &[RoomFacts]) -> Result<Vec<Standing>, String> {
        match &mut self.0 {
            Kind::Embedded(store) => rooms.iter().map(|room| store.standing(room)).collect(),
            Kind::Cql(store) => store.standings(rooms),
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        match &mut self.0 {
            Kind::Embedded(store) => store.begin(),
            Kind::Cql(store) => store.begin(),
        }
    }

    fn put(&mut self, records: &[Record]) -> Result<(), String> {
        match &mut self.0 {
            Kind::Embedded(store) => store.put(records),
            Kind::Cql(store) => store.put(records),
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        match &mut self.0 {
            Kind::Embedded(store) => store.finish(),
            Kind::Cql(store) => store.finish(),
        }
    }
}

/// Writes every room whose name matches the glob, and says how much that was. `out` is whole only if this succeeds.
///
/// # Errors
/// One line for the operator.
pub fn export(
    store: &mut Offline,
    rooms: &str,
    out: &mut impl Write,
    progress: &mut Progress<'_>,
) -> Result<Totals, String> {
    let header = Header {
        source: store.source().to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: unix_ms(),
        rooms: rooms.to_owned(),
    };
    format::write(out, &Record::Header(header))?;
    let mut totals = Totals::default();
    let mut sink = |record: &Record| {
        totals.add(record);
        progress(&totals);
        format::write(out, record)
    };
    let wants = |room: &str| matches_glob(rooms, room);
    match &mut store.0 {
        Kind::Embedded(store) => store.export(&wants, &mut sink)?,
        Kind::Cql(store) => store.export(&wants, &mut sink)?,
    }
    format::write(out, &Record::End(totals))?;
    out.flush().map_err(|error| format!("cannot write: {error}"))?;
    Ok(totals)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
