//! The store's thread: a task for each request, the circuit, the figures.
//!
//! The *circuit* opens when requests fail one after another, or the cluster does not answer a probe: then requests are
//! refused at once, in place of waiting for a timeout each. While it is open, [`Worker::mend`] probes the session and
//! builds a new one; the driver alone would wait up to ten seconds between two attempts to connect. It closes with the
//! first probe that is answered, so that the store is back within a second of the cluster.

use super::link::{self, Link, Trouble};
use super::{CqlConfig, RETRY_MS, unix_ms};
use crate::store::{StoreEvent, StoreFigures, StoreState, Wake};
use crossbeam_channel::Sender;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{RoomMeta, StoreReply, StoreRequest};
use rustls::ClientConfig;
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, Semaphore};

/// So many requests that fail with none answered between them open the circuit.
const FAILURES_MAX: u32 = 8;
/// The pause between two attempts to mend.
const MEND_EVERY: Duration = Duration::from_millis(250);
/// A cluster of which nothing was heard for so long is probed, so that trouble shows before somebody publishes.
const PROBE_EVERY: Duration = Duration::from_secs(3);
const PROBE_MAX: Duration = Duration::from_secs(1);
/// How often figures are sent.
const FIGURES_EVERY: Duration = Duration::from_secs(1);
/// At the end, what is under way may take so long.
const END_MAX: Duration = Duration::from_secs(5);
/// Entries of each cache of facts about rooms; a full one is emptied.
pub(super) const CACHED_ROOMS_MAX: usize = 65_536;

/// What the thread is given.
pub(super) struct Setup {
    pub(super) config: CqlConfig,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) events: Sender<StoreEvent>,
    pub(super) wake: Wake,
}

/// What all tasks share. They run on one thread, so no lock is ever waited for.
pub(super) struct Worker {
    pub(super) config: CqlConfig,
    tls: Option<Arc<ClientConfig>>,
    link: Mutex<Option<Arc<Link>>>,
    permits: Semaphore,
    /// Why the circuit is open; `None` while it is closed.
    open_because: Mutex<Option<Arc<str>>>,
    /// The keyspace was seen without an import under way: one that begins later is no reason to leave the cluster.
    was_whole: AtomicBool,
    failures_in_row: AtomicU32,
    /// Unix milliseconds of the last answer of the cluster.
    heard_ms: AtomicU64,
    is_broken: Notify,
    pub(super) figures: Mutex<StoreFigures>,
    /// Buckets that are known to stand in `room_buckets`.
    pub(super) buckets: Mutex<HashSet<(RoomId, u64)>>,
    /// What retention has left of rooms, and when that was looked up.
    pub(super) floors: Mutex<HashMap<RoomId, (u64, Instant)>>,
    waiting: Arc<AtomicUsize>,
    events: Sender<StoreEvent>,
    wake: Wake,
}

/// Takes a lock. A task that panicked while it held one ends the process anyway (STYLE rule 14).
pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the handle is dropped.
pub(super) async fn run(
    setup: Setup,
    mut requests: UnboundedReceiver<StoreRequest>,
    first_word: Sender<Result<(), Trouble>>,
) {
    let worker = Arc::new(Worker::new(setup));
    let first = worker.connect().await;
    let refused = matches!(first, Err(Trouble::Refused(_)));
    // Nobody may be waiting any more.
    let _ = first_word.try_send(first);
    if refused {
        return;
    }
    let mender = tokio::spawn(Arc::clone(&worker).mend());
    let reporter = tokio::spawn(Arc::clone(&worker).watch());
    while let Some(request) = requests.recv().await {
        tokio::spawn(Arc::clone(&worker).serve(request));
    }
    let deadline = Instant::now() + END_MAX;
    while worker.waiting.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    mender.abort();
    reporter.abort();
}

impl Worker {
    /// A worker that is not connected yet. `run` makes one of it; the commands of `offline.rs` use its parts.
    pub(super) fn new(setup: Setup) -> Worker {
        let Setup { config, tls, waiting, events, wake } = setup;
        Worker {
            permits: Semaphore::new(config.in_flight_max.max(1)),
            config,
            tls,
            link: Mutex::new(None),
            open_because: Mutex::new(Some(Arc::from("connecting to Cassandra"))),
            was_whole: AtomicBool::new(false),
            failures_in_row: AtomicU32::new(0),
            heard_ms: AtomicU64::new(0),
            is_broken: Notify::new(),
            figures: Mutex::default(),
            buckets: Mutex::default(),
            floors: Mutex::default(),
            waiting,
            events,
            wake,
        }
    }

    /// Answers a request, within a bound.
    async fn serve(self: Arc<Worker>, request: StoreRequest) {
        let began = Instant::now();
        let ticket = request.ticket();
        let kind = Kind::of(&request);
        let reply = match self.link() {
            None => {
                locked(&self.figures).refused_total += 1;
                None
            }
            Some(link) => {
                let bound = if kind == Kind::Append { self.config.timeout } else { self.config.timeout * 2 };
                match tokio::time::timeout(bound, self.carry_out(&link, request)).await {
                    Ok(Ok(reply)) => Some(reply),
                    Ok(Err(trouble)) => self.failed(&trouble.to_string()),
                    Err(_) => {
                        locked(&self.figures).timeouts_total += 1;
                        self.failed(&format!("Cassandra did not answer within {} ms", bound.as_millis()))
                    }
                }
            }
        };
        if reply.is_some() {
            let mut figures = locked(&self.figures);
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
            match kind {
                Kind::Append => figures.append_us.saturating_record(took),
                Kind::Read => figures.read_us.saturating_record(took),
                Kind::Conditional => figures.conditional_us.saturating_record(took),
                Kind::Receipt => {}
            }
        }
        let reply = reply.unwrap_or(StoreReply::Failed { ticket, retry_after_ms: RETRY_MS });
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        // The receiver is gone only while the handle is dropped.
        let _ = self.events.send(StoreEvent::Reply(reply));
        (self.wake)();
    }

    async fn carry_out(&self, link: &Link, request: StoreRequest) -> Result<StoreReply, Trouble> {
        match request {
            StoreRequest::Append { ticket, rows } => {
                self.append(link, rows).await?;
                Ok(StoreReply::Appended { ticket })
            }
            StoreRequest::Page { ticket, room, after, before, limit, bytes_max, from } => {
                let range = super::read::Range { room, after, before, limit, bytes_max, from };
                let (rows, cut, oldest) = self.page(link, &range).await?;
                Ok(StoreReply::Page { ticket, rows, cut, oldest })
            }
            StoreRequest::ReadRoom { ticket, room, window } => {
                // A row belongs to a generation that was begun before it.
                if !self.was_begun(link, &room).await? {
                    return Ok(StoreReply::Room { ticket, meta: RoomMeta::default(), tail: Vec::new() });
                }
                // In this order: a base that is set meanwhile then judges rows that were there before it, never the
                // other way round.
                let tail = self.tail(link, &room, window).await?;
                let meta = self.read_meta(link, &room).await?;
                Ok(StoreReply::Room { ticket, meta, tail })
            }
            StoreRequest::ReadGen { ticket, room } => {
                let generation = self.read_generation(link, &room).await?;
                Ok(StoreReply::Gen { ticket, generation })
            }
            StoreRequest::AdvanceGen { ticket, room, expect, owner } => {
                let applied = self.advance(link, &room, expect, owner).await?;
                Ok(StoreReply::Compared { ticket, applied })
            }
            StoreRequest::SetBase { ticket, room, generation, owner, base, voids } => {
                let applied = self.set_base(link, &room, (generation, owner), base, &voids).await?;
                Ok(StoreReply::Compared { ticket, applied })
            }
            StoreRequest::Void { ticket, room, generation, seq } => {
                let applied = self.void(link, &room, generation, seq).await?;
                Ok(StoreReply::Compared { ticket, applied })
            }
            StoreRequest::Receipt { ticket, room, generation, seq, user } => {
                let (found, new) = self.receipt(link, &room, (generation, seq), &user).await?;
                Ok(StoreReply::Receipt { ticket, found, new })
            }
        }
    }

    /// Sends one statement, when its turn has come.
    pub(super) async fn execute(
        &self,
        link: &Link,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, Trouble> {
        let _permit = self.permit().await?;
        let result = link.session.execute_unpaged(statement, values).await?;
        self.heard();
        Ok(result)
    }

    /// One page of a statement's rows.
    pub(super) async fn execute_page(
        &self,
        link: &Link,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        from: PagingState,
    ) -> Result<(QueryResult, PagingStateResponse), Trouble> {
        let _permit = self.permit().await?;
        let page = link.session.execute_single_page(statement, values, from).await?;
        self.heard();
        Ok(page)
    }

    /// The right to have one more statement under way; it is counted as sent.
    pub(super) async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Trouble> {
        let permit = self.permits.acquire().await.map_err(|_| Trouble::Passing("the store ends".to_owned()))?;
        locked(&self.figures).statements_total += 1;
        Ok(permit)
    }

    /// The session, while the circuit is closed.
    fn link(&self) -> Option<Arc<Link>> {
        if locked(&self.open_because).is_some() { None } else { locked(&self.link).clone() }
    }

    /// The cluster has answered.
    pub(super) fn heard(&self) {
        self.failures_in_row.store(0, Ordering::Relaxed);
        self.heard_ms.store(unix_ms(), Ordering::Relaxed);
    }

    /// A request failed; many in a row open the circuit.
    fn failed(&self, why: &str) -> Option<StoreReply> {
        tracing::debug!(why, "a request of the store failed");
        locked(&self.figures).failures_total += 1;
        if self.failures_in_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.open_circuit(why);
        }
        None
    }

    fn open_circuit(&self, why: &str) {
        let mut open = locked(&self.open_because);
        if open.is_none() {
            tracing::warn!(why, "Cassandra is in trouble: the store refuses until it answers again");
            locked(&self.figures).circuit_opened_total += 1;
        }
        if open.as_deref() != Some(why) {
            *open = Some(Arc::from(why));
        }
        drop(open);
        self.is_broken.notify_one();
        self.report();
    }

    fn close_circuit(&self) {
        self.heard();
        if locked(&self.open_because).take().is_some() {
            tracing::info!("Cassandra answers");
        }
        self.report();
    }

    /// A new session in place of the one that is there.
    async fn connect(&self) -> Result<(), Trouble> {
        let opened = match link::open(&self.config, self.tls.clone()).await {
            Ok(link) if !self.was_whole.load(Ordering::Relaxed) => {
                link::check_whole(&link.session, &self.config.keyspace).await.map(|()| link)
            }
            other => other,
        };
        match opened {
            Ok(link) => {
                self.was_whole.store(true, Ordering::Relaxed);
                *locked(&self.link) = Some(Arc::new(link));
                self.close_circuit();
                Ok(())
            }
            Err(trouble) => {
                self.open_circuit(&trouble.to_string());
                Err(trouble)
            }
        }
    }

    /// Whether the session reaches a quorum.
    async fn probe(&self) -> Result<(), String> {
        let Some(link) = locked(&self.link).clone() else { return Err("not connected".to_owned()) };
        match tokio::time::timeout(PROBE_MAX, link.session.execute_unpaged(&link.statements.version, ())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("Cassandra did not answer within {} ms", PROBE_MAX.as_millis())),
        }
    }

    /// Closes the circuit whenever it is open and the cluster answers again.
    async fn mend(self: Arc<Worker>) {
        loop {
            while locked(&self.open_because).is_none() {
                self.is_broken.notified().await;
            }
            // Both at once: a session whose connections survived is the quickest, a new one the surest.
            let probe = self.probe();
            let mended = tokio::select! {
                biased;
                probed = probe => match probed {
                    Ok(()) => { self.close_circuit(); true }
                    Err(_) => self.connect().await.is_ok(),
                },
                connected = async { tokio::time::sleep(PROBE_MAX / 2).await; self.connect().await } => connected.is_ok(),
            };
            if !mended {
                tokio::time::sleep(MEND_EVERY).await;
            }
        }
    }

    /// Sends figures, and probes a cluster of which nothing was heard.
    async fn watch(self: Arc<Worker>) {
        loop {
            tokio::time::sleep(FIGURES_EVERY).await;
            self.report();
            let silent = unix_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed));
            if self.link().is_none() || u128::from(silent) < PROBE_EVERY.as_millis() {
                continue;
            }
            match self.probe().await {
                Ok(()) => self.heard(),
                Err(why) => self.open_circuit(&why),
            }
        }
    }

    fn report(&self) {
        let open = locked(&self.open_because).clone();
        let mut figures = locked(&self.figures);
        figures.queue_now = self.waiting.load(Ordering::Relaxed) as u64;
        figures.in_flight_now = (self.config.in_flight_max.max(1) - self.permits.available_permits()) as u64;
        figures.circuit_open_now = u64::from(open.is_some());
        figures.state = open.map_or(StoreState::Healthy, StoreState::Degraded);
        let _ = self.events.send(StoreEvent::Figures(Box::new(figures.clone())));
        drop(figures);
        (self.wake)();
    }
}

/// What a request is, for the figures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Append,
    Read,
    Conditional,
    Receipt,
}

impl Kind {
    fn of(request: &StoreRequest) -> Kind {
        match request {
            StoreRequest::Append { .. } => Kind::Append,
            StoreRequest::Page { .. } | StoreRequest::ReadRoom { .. } => Kind::Read,
            StoreRequest::ReadGen { .. }
            | StoreRequest::AdvanceGen { .. }
            | StoreRequest::SetBase { .. }
            | StoreRequest::Void { .. } => Kind::Conditional,
            StoreRequest::Receipt { .. } => Kind::Receipt,
        }
    }
}
