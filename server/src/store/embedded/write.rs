//! The writer thread: group commit, the conditional requests, and what happens when the disk says no.

use super::layout::{self, Facts};
use super::read::{Control, ReadError};
use super::retain::Retention;
use super::tables::{DataDir, Tables};
use super::{EmbeddedConfig, Fsync, Outbox, Queued, journal};
use crate::store::{StoreEvent, StoreFigures, StoreState};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{Row, StoreReply, StoreRequest, Ticket};
use roomwire_shard::mesh::Doorbell;
use std::collections::{HashMap, HashSet};
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
/// Rooms whose highest row is remembered; with more, all are forgotten, and each costs one look again.
const TOPS_MAX: usize = 100_000;
/// The longest key that fjall takes is 65,535 bytes; a user id near that is no user id.
const USER_BYTES_MAX: usize = 32 * 1024;

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

/// By room the highest (generation, seq) that this process has written. A row above it needs no look whether its place is
/// taken: the bus gives each place to one message, so what stands there already was written by this process, be it a
/// repeat or a void marker, and is not above. Each look costs filters and blocks of several files.
type Tops = HashMap<RoomId, (u64, u64)>;

/// One commit in the making.
struct Group<'a> {
    tables: &'a Tables,
    tops: &'a mut Tops,
    batch: WriteBatch,
    /// What this batch writes, since the tables do not show it yet: places of rows and markers, voided seqs, receipts.
    places: HashSet<Vec<u8>>,
    voided: HashSet<Vec<u8>>,
    receipts: HashSet<Vec<u8>>,
    facts: HashMap<RoomId, Facts>,
    replies: Vec<(Instant, StoreReply)>,
    appended: u64,
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
        let mut group = Group::new(&tables, &mut self.tops);
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
    }
}

impl<'a> Group<'a> {
    fn new(tables: &'a Tables, tops: &'a mut Tops) -> Group<'a> {
        if tops.len() > TOPS_MAX {
            tops.clear();
        }
        Group {
            tables,
            tops,
            batch: tables.database.batch(),
            places: HashSet::new(),
            voided: HashSet::new(),
            receipts: HashSet::new(),
            facts: HashMap::new(),
            replies: Vec::new(),
            appended: 0,
        }
    }

    /// Puts a request's changes into the batch. On an error some of its rows may be in there, each of them whole.
    fn apply(&mut self, request: StoreRequest) -> Result<StoreReply, ReadError> {
        Ok(match request {
            StoreRequest::Append { ticket, rows } => {
                for row in &rows {
                    self.append(row)?;
                }
                StoreReply::Appended { ticket }
            }
            StoreRequest::AdvanceGen { ticket, room, expect, owner } => {
                StoreReply::Compared { ticket, applied: self.advance(&room, expect, owner)? }
            }
            StoreRequest::SetBase { ticket, room, generation, owner, base, voids } => {
                StoreReply::Compared { ticket, applied: self.set_base(&room, (generation, owner), base, &voids)? }
            }
            StoreRequest::Void { ticket, room, generation, seq } => {
                let applied = self.facts(&room)?.generation == generation && generation != 0;
                if applied {
                    self.put_void(&room, seq, generation);
                }
                StoreReply::Compared { ticket, applied }
            }
            StoreRequest::Receipt { ticket, room, generation, seq, user } => {
                let (found, new) = self.receipt(&room, seq, generation, &user)?;
                StoreReply::Receipt { ticket, found, new }
            }
            // The handle sends reads to the reader.
            StoreRequest::Page { ticket, .. }
            | StoreRequest::ReadRoom { ticket, .. }
            | StoreRequest::ReadGen { ticket, .. } => StoreReply::Failed { ticket, retry_after_ms: RETRY_MS },
        })
    }

    /// Insert only: what stands in the row's place stays, be it a row of any attempt or a void marker.
    fn append(&mut self, row: &Row) -> Result<(), ReadError> {
        let key = layout::row_key(&row.room, row.seq, row.generation);
        let place = (row.generation, row.seq);
        let is_above = self.tops.get(&row.room).is_some_and(|top| place > *top);
        if !is_above && (self.places.contains(&key) || self.tables.messages.contains_key(&key)?) {
            return Ok(());
        }
        self.raise_top(&row.room, place);
        self.batch.insert(&self.tables.messages, key.clone(), layout::encode_row(row));
        self.places.insert(key);
        self.appended += 1;
        Ok(())
    }

    fn facts(&self, room: &RoomId) -> Result<Facts, ReadError> {
        match self.facts.get(room) {
            Some(facts) => Ok(facts.clone()),
            None => super::read::facts(self.tables, room),
        }
    }

    fn put_facts(&mut self, room: &RoomId, facts: Facts) {
        self.batch.insert(&self.tables.rooms, layout::room_prefix(room), layout::encode_facts(&facts));
        self.facts.insert(room.clone(), facts);
    }

    fn advance(&mut self, room: &RoomId, expect: u64, owner: u64) -> Result<bool, ReadError> {
        let mut facts = self.facts(room)?;
        let Some(next) = expect.checked_add(1) else { return Ok(false) };
        if facts.generation == expect {
            facts.generation = next;
            facts.owner = owner;
            self.put_facts(room, facts);
            return Ok(true);
        }
        // A repeat finds its own change.
        Ok(facts.generation == next && facts.owner == owner)
    }

    fn set_base(
        &mut self,
        room: &RoomId,
        (generation, owner): (u64, u64),
        base: u64,
        voids: &[u64],
    ) -> Result<bool, ReadError> {
        let mut facts = self.facts(room)?;
        if (facts.generation, facts.owner) != (generation, owner) || generation == 0 {
            return Ok(false);
        }
        match facts.bases.last_mut() {
            Some(last) if last.0 == generation => last.1 = base,
            _ => facts.bases.push((generation, base)),
        }
        // What retention has removed needs no marker: it stays absent without one.
        for seq in voids.iter().filter(|seq| **seq >= facts.oldest) {
            self.put_void(room, *seq, generation);
        }
        self.put_facts(room, facts);
        Ok(true)
    }

    /// Also where the commit fails: what is below the top is looked at, so one too high costs nothing but looks.
    fn raise_top(&mut self, room: &RoomId, place: (u64, u64)) {
        match self.tops.get_mut(room) {
            Some(top) => *top = place.max(*top),
            None => drop(self.tops.insert(room.clone(), place)),
        }
    }

    fn put_void(&mut self, room: &RoomId, seq: u64, generation: u64) {
        self.raise_top(room, (generation, seq));
        let key = layout::row_key(room, seq, generation);
        self.batch.insert(&self.tables.messages, key.clone(), layout::encode_void());
        self.places.insert(key);
        self.voided.insert(layout::seq_key(room, seq));
    }

    /// Whether the row is there and not void, and whether the reader is new.
    fn receipt(&mut self, room: &RoomId, seq: u64, generation: u64, user: &str) -> Result<(bool, bool), ReadError> {
        if user.len() > USER_BYTES_MAX || !self.has_row(room, seq, generation)? {
            return Ok((false, false));
        }
        let key = layout::receipt_key(room, seq, generation, user);
        if self.receipts.contains(&key) || self.tables.receipts.contains_key(&key)? {
            return Ok((true, false));
        }
        self.batch.insert(&self.tables.receipts, key.clone(), []);
        self.receipts.insert(key);
        Ok((true, true))
    }

    /// Whether the row of (gen, seq) exists and no generation has voided that seq.
    fn has_row(&self, room: &RoomId, seq: u64, generation: u64) -> Result<bool, ReadError> {
        let wanted = layout::row_key(room, seq, generation);
        let prefix = layout::seq_key(room, seq);
        if self.voided.contains(&prefix) {
            return Ok(false);
        }
        let mut found = self.places.contains(&wanted);
        for guard in self.tables.messages.prefix(&prefix) {
            let (key, value) = guard.into_inner()?;
            if layout::is_void(&value) {
                return Ok(false);
            }
            found |= *key == *wanted;
        }
        Ok(found)
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
