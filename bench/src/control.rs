//! What coordinator and worker say to each other, as lines of JSON: the plan and [`Go`] on the worker's stdin,
//! [`FromWorker`] on its stdout.

use serde::{Deserialize, Serialize};

use crate::histogram::LatencyCounts;
use crate::ledger::Counts;

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
    /// From the intended send time to the arrival at each receiver.
    pub(crate) delivery: LatencyCounts,
    /// Of those, from a publisher on one node to a receiver on another.
    pub(crate) delivery_across: LatencyCounts,
    /// From the intended send time to the ack at the publisher.
    pub(crate) ack: LatencyCounts,
    /// From the intended send time to the call that sent: the bench's own delay.
    pub(crate) send_lag: LatencyCounts,
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
