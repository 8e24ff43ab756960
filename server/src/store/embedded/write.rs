//! The writer thread: group commit, the conditional requests, and what happens when the disk says no.

use super::group::{Group, Tops};
use super::read::{Control, ReadError};
use super::retain::Retention;
use super::tables::{DataDir, Tables};
use super::{EmbeddedConfig, Fsync, Outbox, Queued, journal};
use crate::store::{StoreEvent, StoreFigures, StoreState};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use roomwire_engine::store::{StoreReply, StoreRequest, Ticket};
use roomwire_shard::mesh::Doorbell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Requests of one commit: enough to share an fsync widely, few enough that the first does not wait for long.
const GROUP_REQUESTS_MAX: usize = 1_024;
/// Bytes of one commit, about.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often the thread looks around when nothing is asked of it.
const IDLE: Duration = Duration::from_millis(250);
/// How long a look at the free space counts.
const FREE_EVERY: Duration = Duration::from_millis(20);
/// How often the figures are sent.
const FIGURES_EVERY: Duration = Duration::from_secs(1);
/// The pause between two tries to open a database that failed.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
/// Free bytes without which a failed database is not opened again, whatever the reserve: opening writes a little.
const REOPEN_BYTES: u64 = 4 * 1024 * 1024;
/// What a refused write is told while the disk is full or broken.
const RETRY_MS: u32 = 1_000;
/// What a refused write is told while fjall is behind with its own files.
const RETRY_SOON_MS: u32 = 100;

/// The writer thread.
pub(super) struct Writer {
    config: EmbeddedConfig,
    directory: DataDir,
    /// `None` only between closing a failed database and opening it again.
    tables: Option<Tables>,
    requests: Receiver<Queued>,
    bell: Arc<Doorbell>,
    reader: Sender<Control>,
    outbox: Outbox,
    waiting: Arc<AtomicU64>,
    retention: Retention,
    tops: Tops,
    figures: StoreFigures,
    figures_sent: Instant,
    /// When the free space was looked at.
    looked: Option<Instant>,
    /// Set by a failed write until the database is open again.
    broken: Option<Broken>,
    /// When the journal is to be synced (`store.fsync = interval`).
    sync_due: Option<Instant>,
}

/// A database that fjall has closed for writing.
struct Broken {
    /// fjall's number of the batch that failed, if it was a commit of ours.
    cut_from: Option<u64>,
    /// Not before then.
    retry_at: Instant,
}

impl Writer {
    #[allow(clippy::too_many_arguments, reason = "called once, by `spawn`")]
    pub(super) fn new(
        config: EmbeddedConfig,
        directory: DataDir,
        tables: Tables,
        (requests, bell): (Receiver<Queued>, Arc<Doorbell>),
        reader: Sender<Control>,
        outbox: Outbox,
        waiting: Arc<AtomicU64>,
    ) -> Writer {
        let retention = Retention::new(&config);
        Writer {
            config,
            directory,
            tables: Some(tables),
            requests,
            bell,
            reader,
            outbox,
            waiting,
            retention,
            tops: Tops::new(),
            figures: StoreFigures::default(),
            figures_sent: Instant::now(),
            looked: None,
            broken: None,
            sync_due: None,
        }
    }

    /// Runs until the handle is dropped; then everything written is synced.
    pub(super) fn run(mut self) {
        let mut group = Vec::new();
        loop {
            let open = self.gather(&mut group);
            self.repair();
            self.commit_group(&mut group);
            self.sync();
            self.expire();
            self.report(false);
            if !open && self.requests.is_empty() {
                break;
            }
        }
        if let Some(tables) = self.tables.take()
            && self.broken.is_none()
            && let Err(error) = tables.database.persist(PersistMode::SyncAll)
        {
            tracing::error!(%error, "the store's last sync failed");
        }
    }

    /// Waits for a request, then takes all that are there. `false` once the handle is gone.
    fn gather(&mut self, group: &mut Vec<Queued>) -> bool {
        let wait = self.sync_due.map_or(IDLE, |due| IDLE.min(due.saturating_duration_since(Instant::now())));
        match self.next(wait) {
            Ok(request) => group.push(request),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
        let mut bytes = 0;
        while group.len() < GROUP_REQUESTS_MAX
            && bytes < GROUP_BYTES_MAX
            && let Ok(request) = self.requests.try_recv()
        {
            if let StoreRequest::Append { rows, .. } = &request.1 {
                bytes += rows.iter().map(|row| row.content.len()).sum::<usize>();
            }
            group.push(request);
        }
        true
    }

    /// The next request, waiting for one. By the bell and not by the channel, whose receive spins and yields before
    /// it sleeps: that is CPU which the shards could use.
    fn next(&self, wait: Duration) -> Result<Queued, TryRecvError> {
        let request = self.requests.try_recv();
        if !matches!(request, Err(TryRecvError::Empty)) {
            return request;
        }
        self.bell.arm();
        let mut request = self.requests.try_recv();
        if matches!(request, Err(TryRecvError::Empty)) {
            self.bell.wait(wait);
            request = self.requests.try_recv();
        }
        self.bell.disarm();
        request
    }

    fn commit_group(&mut self, requests: &mut Vec<Queued>) {
        if requests.is_empty() {
            return;
        }
        self.waiting.fetch_sub(requests.len() as u64, Ordering::Relaxed);
        if let Some(retry_after_ms) = self.refusal() {
            self.refuse(requests.drain(..).map(|(_, request)| request.ticket()), retry_after_ms);
            return;
        }
        let Some(tables) = self.tables.clone() else { return };
        let started = Instant::now();
        let mut group = Group::new(&tables, Some(&mut self.tops));
        for (arrived, request) in requests.drain(..) {
            let ticket = request.ticket();
            // `Failed` means unknown outcome: what of the request is in the batch already may stay there.
            let reply = group.apply(request).unwrap_or_else(|error| {
                tracing::error!(%error, "the store could not be read");
                StoreReply::Failed { ticket, retry_after_ms: RETRY_MS }
            });
            group.replies.push((arrived, reply));
        }
        let Group { batch, replies, appended, .. } = group;
        match self.commit(&tables, batch) {
            Ok(()) => {
                let now = Instant::now();
                self.figures.commits_total += 1;
                self.figures.rows_appended_total += appended;
                self.figures.commit_us.saturating_record(micros(started, now));
                for (arrived, reply) in replies {
                    if matches!(reply, StoreReply::Appended { .. }) {
                        self.figures.append_us.saturating_record(micros(arrived, now));
                    }
                    self.outbox.put(StoreEvent::Reply(reply));
                }
                self.outbox.wake();
            }
            Err(()) => self.refuse(replies.iter().map(|(_, reply)| reply.ticket()), RETRY_MS),
        }
    }

    /// Commits a batch of the group's or of retention's. On an error the database is broken until it is open again.
    fn commit(&mut self, tables: &Tables, batch: WriteBatch) -> Result<(), ()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mode = match self.config.fsync {
            Fsync::Always => PersistMode::SyncData,
            Fsync::Interval { ms } => {
                self.sync_due.get_or_insert_with(|| Instant::now() + Duration::from_millis(u64::from(ms)));
                PersistMode::Buffer
            }
        };
        let number = tables.database.seqno();
        batch.durability(Some(mode)).commit().map_err(|error| {
            // After `Poisoned` nothing of this batch was written; an earlier failure may have left something, at or
            // above the same number, since a failed batch is never made visible.
            self.fail(&error.to_string(), Some(number));
        })
    }

    fn fail(&mut self, error: &str, cut_from: Option<u64>) {
        tracing::error!(error, "the store cannot write; publishers are refused, readers go on");
        self.figures.failures_total += 1;
        self.broken = Some(Broken { cut_from, retry_at: Instant::now() });
        self.set_state(StoreState::Degraded(Arc::from(format!("a write failed: {error}"))));
    }

    /// Why writes are not taken now, as the time after which to try again.
    fn refusal(&mut self) -> Option<u32> {
        if self.broken.is_some() {
            return Some(RETRY_MS);
        }
        if !self.has_room() {
            return Some(RETRY_MS);
        }
        let congested = self.tables.as_ref().is_none_or(Tables::congested);
        if congested {
            self.set_state(StoreState::Degraded(Arc::from("the disk is too slow to write out what was stored")));
            return Some(RETRY_SOON_MS);
        }
        self.set_state(StoreState::Healthy);
        None
    }

    /// Whether the file system has more than the reserve; sets the state if not.
    fn has_room(&mut self) -> bool {
        let now = Instant::now();
        if self.broken.is_none()
            && self.figures.state == StoreState::Healthy
            && self.looked.is_some_and(|looked| now - looked < FREE_EVERY)
        {
            return true;
        }
        self.looked = Some(now);
        match self.directory.free_bytes() {
            Ok(free) => self.figures.free_bytes_now = free,
            // Not knowing is no reason to refuse: a really full disk answers the write.
            Err(_) => return true,
        }
        let wanted =
            if self.broken.is_some() { self.config.reserve_bytes.max(REOPEN_BYTES) } else { self.config.reserve_bytes };
        let room = self.figures.free_bytes_now >= wanted;
        if !room {
            let (free, wanted) = (self.figures.free_bytes_now >> 20, wanted >> 20);
            let text = format!("the disk is full: {free} MiB free, {wanted} MiB wanted (store.reserve_bytes)");
            self.set_state(StoreState::Degraded(Arc::from(text)));
        }
        room
    }

    fn refuse(&mut self, tickets: impl Iterator<Item = Ticket>, retry_after_ms: u32) {
        for ticket in tickets {
            self.outbox.put(StoreEvent::Reply(StoreReply::Failed { ticket, retry_after_ms }));
        }
        self.outbox.wake();
    }

    /// Opens a broken database again, in place, once there is room.
    fn repair(&mut self) {
        let Some(broken) = &self.broken else { return };
        let (cut_from, now) = (broken.cut_from, Instant::now());
        if now < broken.retry_at || !self.has_room() {
            return;
        }
        // Every handle has to go before fjall gives its lock back.
        if self.tables.take().is_some() {
            let (done, released) = bounded(1);
            if self.reader.send(Control::Release(done)).is_ok() {
                let _ = released.recv();
            }
        }
        match self.open_again(cut_from) {
            Ok(tables) => {
                let _ = self.reader.send(Control::Use(tables.clone()));
                self.tables = Some(tables);
                self.broken = None;
                self.figures.reopened_total += 1;
                self.set_state(StoreState::Healthy);
                tracing::info!("the store takes writes again");
            }
            Err(error) => {
                tracing::error!(%error, "the store could not be opened again; trying on");
                self.broken = Some(Broken { cut_from, retry_at: now + REOPEN_EVERY });
            }
        }
    }

    fn open_again(&self, cut_from: Option<u64>) -> Result<Tables, ReadError> {
        if let Some(number) = cut_from {
            journal::cut_from(&self.directory.database_path(), number)?;
        }
        Ok(self.directory.open(&self.config)?)
    }

    /// `store.fsync = interval`: the fsync that is due.
    fn sync(&mut self) {
        if self.sync_due.is_none_or(|due| due > Instant::now()) || self.broken.is_some() {
            return;
        }
        self.sync_due = None;
        let Some(tables) = &self.tables else { return };
        if let Err(error) = tables.database.persist(PersistMode::SyncData) {
            self.fail(&error.to_string(), None);
        }
    }

    /// One small step of retention, when one is due.
    fn expire(&mut self) {
        if self.broken.is_some() || !self.retention.is_due(Instant::now()) {
            return;
        }
        let Some(tables) = self.tables.clone() else { return };
        if tables.congested() {
            return;
        }
        let mut batch = tables.database.batch();
        match self.retention.step(&tables, &mut batch, unix_ms()) {
            Ok(removed) => {
                if self.commit(&tables, batch).is_ok() {
                    self.figures.rows_expired_total += removed;
                }
            }
            Err(error) => tracing::error!(%error, "retention could not read the store"),
        }
    }

    fn set_state(&mut self, state: StoreState) {
        let changed = self.figures.state != state;
        // A text that only differs in its numbers is not worth an event.
        let worth = std::mem::discriminant(&self.figures.state) != std::mem::discriminant(&state);
        if changed {
            self.figures.state = state;
        }
        if worth {
            self.report(true);
        }
    }

    fn report(&mut self, now: bool) {
        if !now && self.figures_sent.elapsed() < FIGURES_EVERY {
            return;
        }
        self.figures_sent = Instant::now();
        if !now && self.broken.is_none() && self.figures.state != StoreState::Healthy {
            // Nobody may be asking: notice by ourselves that there is room again.
            self.refusal();
        }
        self.figures.queue_now = self.waiting.load(Ordering::Relaxed);
        if let Ok(free) = self.directory.free_bytes() {
            self.figures.free_bytes_now = free;
        }
        if let Some(tables) = &self.tables {
            self.figures.cache_bytes_now = tables.database.cache_size();
            if let Ok(bytes) = tables.database.disk_space() {
                self.figures.disk_bytes_now = bytes;
            }
        }
        self.outbox.put(StoreEvent::Figures(Box::new(self.figures.clone())));
        self.outbox.wake();
        crate::memory::give_back();
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX).max(1)
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
