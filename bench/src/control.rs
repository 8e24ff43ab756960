//! What coordinator and worker say to each other, as lines of JSON: the plan and [`Go`] on the worker's stdin,
//! [`FromWorker`] on its stdout.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::histogram::LatencyCounts;
use crate::ledger::Counts;
use crate::timed::{Counted, Timed};

/// Start the schedule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Go {
    /// CLOCK_MONOTONIC, the same for all workers.
    pub(crate) start_ns: u64,
}

/// A worker's news.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromWorker {
    Progress(Progress),
    /// All connections are open, authenticated and have joined.
    Ready,
    /// The run is over. Boxed: it is far larger than the rest.
    Result(Box<WorkerResult>),
    /// The run cannot go on.
    Failed(String),
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) open: u64,
    pub(crate) joined: u64,
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
}

/// What one worker measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerResult {
    /// Messages that this worker was to send.
    pub(crate) scheduled: u64,
    /// Messages that it gave to the kernel, whenever that was.
    pub(crate) sent: u64,
    /// Messages of the measured window.
    pub(crate) scheduled_in_window: u64,
    /// Of those, given to the kernel before the window ended.
    pub(crate) sent_in_window: u64,
    /// Messages that arrived while the window lasted.
    pub(crate) arrived_in_window: u64,
    /// What began in the window.
    pub(crate) times: BTreeMap<Timed, LatencyCounts>,
    pub(crate) counts: BTreeMap<Counted, u64>,
    pub(crate) deliveries: Counts,
    pub(crate) acks: Counts,
    /// Connections that ended, by reason.
    pub(crate) closed: Vec<(String, u64)>,
    /// `error` messages and messages that the bench does not know, by text.
    pub(crate) complaints: Vec<(String, u64)>,
    /// Share of a core that this worker used in the window.
    pub(crate) cpu_share: f64,
    /// Share of the window in which this worker could run but had no core.
    pub(crate) waiting_share: f64,
}
