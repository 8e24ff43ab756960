//! The store of a cluster: Cassandra or ScyllaDB, by CQL, on a thread of its own.
//!
//! The bridge thread holds a [`CqlStore`]: requests in, events out, nothing blocks. The thread runs a tokio runtime of
//! its own ([`worker`]), so that neither a long page nor the driver's work on its connections ever delays the bridge's
//! loop. Each request becomes a task: [`write`] appends and receipts, [`meta`] the conditional writes, [`read`] pages and
//! tails. [`link`] is one session with its prepared statements; [`migrate`] makes the tables, [`offline`] serves the commands
//! that move rooms between stores.
//!
//! Each request is answered within a bound, whatever the cluster does: a request beyond `queue_max`, or while the circuit
//! is open, with `Failed` at once; one that takes too long with `Failed` then, which means *unknown outcome*.

pub mod examine;
mod link;
mod meta;
pub mod migrate;
pub(super) mod offline;
mod read;
mod worker;
mod write;

use super::{StoreEvent, Wake};
use crate::config::Secret;
use crossbeam_channel::Receiver;
use link::Trouble;
use roomwire_engine::store::{StoreReply, StoreRequest};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Seqs per partition of the table `messages`.
const BUCKET_SEQS: u64 = 10_000;
/// What a request that could not be taken is told.
const RETRY_MS: u32 = 500;
/// How long a start waits to learn whether the cluster and its schema will do; then the node starts without.
const START_WAIT: Duration = Duration::from_secs(8);

/// What the store is told at its start.
#[derive(Clone, Debug)]
pub struct CqlConfig {
    /// Nodes to begin with, each `host` or `host:port`; the others are found through them.
    pub nodes: Vec<String>,
    /// The keyspace, made by `roomwire store migrate`.
    pub keyspace: String,
    /// The data centre whose replicas are asked; any if unset.
    pub dc: Option<String>,
    /// Who logs in, where the cluster asks for it.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A PEM file with the certificate authorities of the cluster; TLS is used if it is set.
    pub ca_file: Option<PathBuf>,
    /// Statements under way at once; the others wait.
    pub in_flight_max: usize,
    /// Requests not answered yet; beyond, they fail at once.
    pub queue_max: usize,
    /// How long a statement may take; a request of several statements twice as long.
    pub timeout: Duration,
    /// A read that has no answer after so long is sent to a second replica too; zero: never.
    pub speculate_after: Duration,
    /// Messages older than this are removed; zero keeps them. The configuration has no less than a day.
    pub retention: Duration,
}

const DAY: Duration = Duration::from_secs(86_400);

impl CqlConfig {
    /// Rows of that age may still be there, whatever clocks and earlier configurations say; older ones may have gone.
    fn kept_surely(&self) -> Duration {
        let least = if self.retention.is_zero() { DAY } else { self.retention.min(DAY) };
        // Clocks differ; a room that nobody can have written to for hours is not in the middle of its first append; and
        // Cassandra counts lives in whole seconds, so a row may go up to one early.
        (least / 8 * 7).saturating_sub(Duration::from_secs(1))
    }

    /// The defaults, for these nodes and this keyspace.
    #[must_use]
    pub fn new(nodes: Vec<String>, keyspace: String) -> CqlConfig {
        CqlConfig {
            nodes,
            keyspace,
            dc: None,
            user: None,
            password: None,
            ca_file: None,
            in_flight_max: 64,
            queue_max: 16_384,
            timeout: Duration::from_secs(2),
            speculate_after: Duration::from_millis(100),
            retention: Duration::ZERO,
        }
    }
}

/// Why the store could not be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It answers, and will not do until somebody changes something.
    #[error("{0}")]
    Refused(String),
    /// The system refused a thread.
    #[error("cannot start the store's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The bridge thread's end of the store. Nothing here blocks, apart from [`CqlStore::close`].
#[derive(Debug)]
pub struct CqlStore {
    requests: Option<UnboundedSender<StoreRequest>>,
    /// Requests that are not answered yet.
    waiting: Arc<AtomicUsize>,
    queue_max: usize,
    events: Receiver<StoreEvent>,
    /// Answers to what was not taken.
    refused: VecDeque<StoreEvent>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread and waits for its first word about the cluster. One that cannot be reached is no error: the store
/// is degraded until it can. `wake` is called after events were queued.
///
/// # Errors
/// [`OpenError`], for the operator: a wrong password, a missing keyspace, a schema of another version.
pub fn spawn(config: CqlConfig, wake: Wake) -> Result<CqlStore, OpenError> {
    let tls = link::tls(&config).map_err(OpenError::Refused)?;
    // Bounded by `queue_max`, which the handle counts.
    let (requests, receiver) = unbounded_channel();
    let (event_sender, events) = crossbeam_channel::unbounded();
    let (first_word, heard) = crossbeam_channel::bounded(1);
    let waiting = Arc::new(AtomicUsize::new(0));
    let queue_max = config.queue_max;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let setup = worker::Setup { config, tls, waiting: Arc::clone(&waiting), events: event_sender, wake };
    let thread = std::thread::Builder::new()
        .name("store-cql".to_owned())
        .spawn(move || runtime.block_on(worker::run(setup, receiver, first_word)))?;
    let mut store = CqlStore {
        requests: Some(requests),
        waiting,
        queue_max,
        events,
        refused: VecDeque::new(),
        thread: Some(thread),
    };
    // Without a word in time the cluster hangs: that is trouble of the kind that may pass.
    match heard.recv_timeout(START_WAIT) {
        Ok(Err(Trouble::Refused(why))) => {
            store.close();
            Err(OpenError::Refused(why))
        }
        _ => Ok(store),
    }
}

impl CqlStore {
    /// Passes a request on, or refuses it where too many wait.
    pub fn send(&mut self, request: StoreRequest) {
        let ticket = request.ticket();
        let sent = self.waiting.load(Ordering::Relaxed) < self.queue_max
            && self.requests.as_ref().is_some_and(|requests| {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                requests.send(request).is_ok()
            });
        if !sent {
            let reply = StoreReply::Failed { ticket, retry_after_ms: RETRY_MS };
            self.refused.push_back(StoreEvent::Reply(reply));
        }
    }

    /// Takes up to `most` events; how many.
    pub fn receive(&mut self, most: usize, events: &mut Vec<StoreEvent>) -> usize {
        let before = events.len();
        events.extend(self.refused.drain(..self.refused.len().min(most)));
        events.extend(self.events.try_iter().take(most - (events.len() - before)));
        events.len() - before
    }

    /// Whether an event waits.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        !self.events.is_empty() || !self.refused.is_empty()
    }

    /// Whether the thread has ended: a defect, since it ends only with the handle.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the thread after what is under way, which is bounded. Events not taken yet are lost.
    pub fn close(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

impl Drop for CqlStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs what a command asks of the cluster.
fn blocking<T>(
    config: &CqlConfig,
    run: impl AsyncFnOnce(&CqlConfig, Option<Arc<rustls::ClientConfig>>) -> Result<T, Trouble>,
) -> Result<T, String> {
    let tls = link::tls(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(run(config, tls)).map_err(|trouble| trouble.to_string())
}

/// A number as CQL's bigint. Seqs and generations are below 2^48 and 2^32 (`wire::id::MessagePlace`); an open end of a
/// range becomes the greatest.
fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A bigint as the number that it was.
fn number(bigint: i64) -> u64 {
    u64::try_from(bigint).unwrap_or(0)
}

/// The time now, as Unix milliseconds.
fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
