//! Where messages are kept. [`embedded`] is the store of a node that stands alone, [`cql`] that of a cluster; the
//! contract of both is `roomwire_engine::store`. [`transfer`] moves rooms between stores, without a node.
//!
//! The bridge thread holds a store's handle: requests in, events out, a wake-up when there is something to read.

pub mod cql;
pub mod embedded;
pub mod transfer;

use cql::{CqlConfig, CqlStore};
use embedded::{EmbeddedConfig, EmbeddedStore};

use hdrhistogram::Histogram;
use roomwire_engine::stats::latency_histogram;
use roomwire_engine::store::{StoreReply, StoreRequest};
use std::sync::Arc;

/// Wakes the bridge thread: something waits in the store's queue of events. Called from the store's threads.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The store to open.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// In the data directory.
    Embedded(EmbeddedConfig),
    /// In a cluster.
    Cql(CqlConfig),
}

/// Why a store could not be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded one.
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    /// The cluster's.
    #[error(transparent)]
    Cql(#[from] cql::OpenError),
}

/// The bridge thread's end of the store. Nothing here blocks, apart from the end of its threads when it is dropped.
#[derive(Debug)]
pub enum Store {
    /// In the data directory.
    Embedded(EmbeddedStore),
    /// In a cluster.
    Cql(CqlStore),
}

/// Opens the store and starts its threads. `wake` is called after events were queued.
///
/// # Errors
/// [`OpenError`], for the operator.
pub fn spawn(config: StoreConfig, wake: Wake) -> Result<Store, OpenError> {
    Ok(match config {
        StoreConfig::Embedded(config) => Store::Embedded(embedded::spawn(config, wake)?),
        StoreConfig::Cql(config) => Store::Cql(cql::spawn(config, wake)?),
    })
}

impl Store {
    /// Passes a request on.
    pub fn send(&mut self, request: StoreRequest) {
        match self {
            Store::Embedded(store) => store.send(request),
            Store::Cql(store) => store.send(request),
        }
    }

    /// Moves what had to wait; whether anything still waits.
    pub fn flush(&mut self) -> bool {
        match self {
            Store::Embedded(store) => store.flush(),
            Store::Cql(_) => false,
        }
    }

    /// Takes up to `most` events; how many.
    pub fn receive(&mut self, most: usize, events: &mut Vec<StoreEvent>) -> usize {
        match self {
            Store::Embedded(store) => store.receive(most, events),
            Store::Cql(store) => store.receive(most, events),
        }
    }

    /// Whether an event waits.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        match self {
            Store::Embedded(store) => store.has_mail(),
            Store::Cql(store) => store.has_mail(),
        }
    }

    /// Whether a thread of the store has ended: a defect, since they end only with the handle.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        match self {
            Store::Embedded(store) => store.is_dead(),
            Store::Cql(store) => store.is_dead(),
        }
    }
}

/// What a store tells the bridge thread.
#[derive(Debug)]
pub enum StoreEvent {
    /// The answer to a request.
    Reply(StoreReply),
    /// The store's figures, about once a second and at each change of its state.
    Figures(Box<StoreFigures>),
}

/// Whether a store takes writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It takes writes.
    #[default]
    Healthy,
    /// It refuses writes and goes on reading; the text says why.
    Degraded(Arc<str>),
}

/// A store's figures since its start, except where a name ends in `_now`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is a metric `roomwire_store_<name>`; docs/operations.md explains them")]
pub struct StoreFigures {
    pub state: StoreState,
    pub rows_appended_total: u64,
    pub commits_total: u64,
    pub failures_total: u64,
    pub reopened_total: u64,
    pub rows_expired_total: u64,
    pub statements_total: u64,
    pub timeouts_total: u64,
    pub refused_total: u64,
    pub circuit_opened_total: u64,
    pub circuit_open_now: u64,
    pub in_flight_now: u64,
    pub queue_now: u64,
    pub free_bytes_now: u64,
    pub disk_bytes_now: u64,
    /// Bytes in the embedded store's cache of blocks.
    pub cache_bytes_now: u64,
    /// Microseconds from the arrival of an append at the store to its answer.
    pub append_us: Histogram<u64>,
    /// Microseconds of one group commit: the write and, with `store.fsync = always`, its fsync.
    pub commit_us: Histogram<u64>,
    /// Microseconds of a page of history or the tail of a room from the cluster.
    pub read_us: Histogram<u64>,
    /// Microseconds of a conditional write (LWT) in the cluster.
    pub conditional_us: Histogram<u64>,
}

impl Default for StoreFigures {
    fn default() -> StoreFigures {
        StoreFigures {
            state: StoreState::Healthy,
            rows_appended_total: 0,
            commits_total: 0,
            failures_total: 0,
            reopened_total: 0,
            rows_expired_total: 0,
            statements_total: 0,
            timeouts_total: 0,
            refused_total: 0,
            circuit_opened_total: 0,
            circuit_open_now: 0,
            in_flight_now: 0,
            queue_now: 0,
            free_bytes_now: 0,
            disk_bytes_now: 0,
            cache_bytes_now: 0,
            append_us: latency_histogram(),
            commit_us: latency_histogram(),
            read_us: latency_histogram(),
            conditional_us: latency_histogram(),
        }
    }
}
