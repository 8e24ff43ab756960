//! Where messages are kept. [`embedded`] is the store of a node that stands alone; its contract is
//! `roomwire_engine::store`.
//!
//! The bridge thread holds a store's handle: requests in, events out, a wake-up when there is something to read.

pub mod embedded;

use hdrhistogram::Histogram;
use roomwire_engine::stats::latency_histogram;
use roomwire_engine::store::StoreReply;
use std::sync::Arc;

/// Wakes the bridge thread: something waits in the store's queue of events. Called from the store's threads.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

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
    pub queue_now: u64,
    pub free_bytes_now: u64,
    pub disk_bytes_now: u64,
    /// Microseconds from the arrival of an append at the store to its answer.
    pub append_us: Histogram<u64>,
    /// Microseconds of one group commit: the write and, with `store.fsync = always`, its fsync.
    pub commit_us: Histogram<u64>,
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
            queue_now: 0,
            free_bytes_now: 0,
            disk_bytes_now: 0,
            append_us: latency_histogram(),
            commit_us: latency_histogram(),
        }
    }
}
