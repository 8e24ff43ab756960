//! The store of a node that stands alone: fjall in the data directory, on two threads of its own.
//!
//! The *writer* takes all that waits, puts it into one batch, commits it with one fsync, and then answers: a group
//! commit. It alone writes, so its conditional requests need no lock. The *reader* answers pages and room reads from
//! the same tables, so that a long page of history never delays a commit, nor an fsync a page. A commit is visible to
//! the reader before it is answered, which is all that the contract asks of reads.
//!
//! A row becomes visible only after its batch is on disk: the batch is committed with its durability, never persisted
//! after the fact. So nothing that a power loss could take back is ever read, compared with or acked.
//!
//! When a write fails (a full disk, an I/O error), fjall refuses all further writes until it is opened again. The
//! writer then answers `Failed`, the reader goes on with the open tables, and once there is room again the writer cuts
//! the failed batch off the journal and opens the database in place.

mod group;
mod journal;
mod layout;
pub(super) mod offline;
mod read;
mod retain;
mod tables;
mod write;

use super::{StoreEvent, Wake};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use roomwire_engine::store::StoreRequest;
use roomwire_shard::mesh::Doorbell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use tables::{DataDir, IMPORTING};

/// When a commit is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// After the fsync: an acked message survives power loss.
    Always,
    /// After the write: an acked message survives `kill -9` of the process, but a power loss or a crash of the kernel
    /// may take the last `ms` milliseconds.
    Interval {
        /// Milliseconds between two fsyncs.
        ms: u32,
    },
}

/// What must stay free on the disk, unless the configuration says otherwise.
pub const RESERVE_BYTES: u64 = 256 << 20;
/// The cache of blocks, unless the configuration says otherwise.
pub const CACHE_BYTES: u64 = 16 << 20;

/// What the store is told at its start.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The data directory.
    pub dir: PathBuf,
    /// When a commit is answered.
    pub fsync: Fsync,
    /// Messages older than this many days are removed; 0 keeps them.
    pub retention_days: u32,
    /// Only so many of a room's last messages are kept; 0 keeps all.
    pub messages_per_room_max: u64,
    /// Writes are refused while the file system has less free than this.
    pub reserve_bytes: u64,
    /// Memory for blocks of recently read files.
    pub cache_bytes: u64,
    /// How many requests may wait at each of the store's threads; more wait with the bridge.
    pub queue_max: usize,
}

impl EmbeddedConfig {
    /// The defaults, for a data directory.
    #[must_use]
    pub fn new(dir: PathBuf) -> EmbeddedConfig {
        EmbeddedConfig {
            dir,
            fsync: Fsync::Always,
            retention_days: 0,
            messages_per_room_max: 0,
            reserve_bytes: RESERVE_BYTES,
            cache_bytes: CACHE_BYTES,
            queue_max: 4_096,
        }
    }
}

/// Why the store could not be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the directory.
    #[error("data directory {} is in use by {}: stop it, or set data.dir to another directory", path.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it, where it said.
        pid: Option<u32>,
    },
    /// Written by a newer Roomwire.
    #[error("data directory {} has format {version}, this version knows up to {known}: use a newer roomwire", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        version: u32,
        /// Ours.
        known: u32,
    },
    /// An import into it has not ended.
    #[error("data directory {path} holds an import that did not finish: run `roomwire store import` once more with the \
        whole file, or move the directory away to start empty (or remove {path}/{IMPORTING} to go on with what is there)",
        path = path.display())]
    HalfImported {
        /// The directory.
        path: PathBuf,
    },
    /// Not a data directory of Roomwire.
    #[error("{} is not a data directory of roomwire (its file `format` is missing or foreign): set data.dir to another", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// The database is damaged beyond a torn last write.
    #[error("the store in {} is damaged ({error}): restore it from a backup, or move it away to start empty", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What fjall said.
        error: String,
    },
    /// The file system said no.
    #[error("data directory {}: {error}{}", path.display(), cure(error))]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: std::io::Error,
    },
}

/// What to do about it, where that can be said.
fn cure(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ": make room there, or set data.dir to another disk"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            ": the user that the node runs as has to own it and be allowed to write there"
        }
        _ => "",
    }
}

/// A request on its way, with its time of arrival.
type Queued = (Instant, StoreRequest);

/// The bridge thread's end of the store. Nothing here blocks, apart from [`EmbeddedStore::close`].
#[derive(Debug)]
pub struct EmbeddedStore {
    writes: Lane,
    reads: Lane,
    events: Receiver<StoreEvent>,
    writer: Option<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
}

/// One bounded lane to a thread, with what did not fit, in order.
#[derive(Debug)]
struct Lane {
    sender: Option<Sender<Queued>>,
    /// Wakes the thread, where it sleeps by it.
    bell: Option<Arc<Doorbell>>,
    spilled: VecDeque<Queued>,
    /// Requests of both lanes that no thread has taken yet, for the figures.
    waiting: Arc<AtomicU64>,
}

impl Lane {
    fn send(&mut self, request: StoreRequest) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.spilled.push_back((Instant::now(), request));
        self.flush();
    }

    /// Moves what has spilled; whether anything is left.
    fn flush(&mut self) -> bool {
        let Some(sender) = &self.sender else { return false };
        if self.spilled.is_empty() {
            return false;
        }
        while let Some(request) = self.spilled.pop_front() {
            if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) = sender.try_send(request) {
                self.spilled.push_front(request);
                break;
            }
        }
        self.ring();
        !self.spilled.is_empty()
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }
}

/// Opens the store and starts its threads. `wake` is called after events were queued.
///
/// # Errors
/// [`OpenError`], for the operator.
pub fn spawn(config: EmbeddedConfig, wake: Wake) -> Result<EmbeddedStore, OpenError> {
    let directory = DataDir::claim(&config.dir)?;
    directory.check_whole()?;
    let tables = directory.open(&config)?;
    let (write_sender, write_receiver) = bounded(config.queue_max.max(1));
    let (read_sender, read_receiver) = bounded(config.queue_max.max(1));
    let (control_sender, control_receiver) = unbounded();
    // At most one event for each request that the bridge has under way, and one a second: bounded by the bridge.
    let (event_sender, events) = unbounded();
    let outbox = Outbox { events: event_sender, wake };
    let waiting = Arc::new(AtomicU64::new(0));
    let io = |error| OpenError::Io { path: config.dir.clone(), error };
    let bell = Arc::new(Doorbell::new().map_err(io)?);

    let reader = read::Reader::new(tables.clone(), read_receiver, control_receiver, outbox.clone(), waiting.clone());
    let writer = write::Writer::new(
        config,
        directory,
        tables,
        (write_receiver, Arc::clone(&bell)),
        control_sender,
        outbox,
        waiting.clone(),
    );
    let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| OpenError::Io { path: PathBuf::from("thread"), error })
    };
    Ok(EmbeddedStore {
        writes: Lane {
            sender: Some(write_sender),
            bell: Some(bell),
            spilled: VecDeque::new(),
            waiting: waiting.clone(),
        },
        reads: Lane { sender: Some(read_sender), bell: None, spilled: VecDeque::new(), waiting },
        events,
        reader: Some(start("store-read", Box::new(move || reader.run()))?),
        writer: Some(start("store-write", Box::new(move || writer.run()))?),
    })
}

impl EmbeddedStore {
    /// Passes a request on. What does not fit waits here, in order.
    pub fn send(&mut self, request: StoreRequest) {
        match request {
            StoreRequest::Page { .. } | StoreRequest::ReadRoom { .. } | StoreRequest::ReadGen { .. } => {
                self.reads.send(request);
            }
            _ => self.writes.send(request),
        }
    }

    /// Moves what had to wait; whether anything still waits.
    pub fn flush(&mut self) -> bool {
        // Both, always.
        self.writes.flush() | self.reads.flush()
    }

    /// Takes up to `most` events; how many.
    pub fn receive(&mut self, most: usize, events: &mut Vec<StoreEvent>) -> usize {
        let before = events.len();
        events.extend(self.events.try_iter().take(most));
        events.len() - before
    }

    /// Whether an event waits.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether a thread of the store has ended: a defect, since they end only with the handle.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let ended = |thread: &Option<JoinHandle<()>>| thread.as_ref().is_some_and(JoinHandle::is_finished);
        ended(&self.writer) || ended(&self.reader)
    }

    /// Ends the threads after what is under way, with a last fsync. Events not taken yet are lost.
    pub fn close(&mut self) {
        self.writes.sender = None;
        self.writes.ring();
        self.reads.sender = None;
        for thread in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// Where a thread of the store puts its events.
#[derive(Clone)]
struct Outbox {
    events: Sender<StoreEvent>,
    wake: Wake,
}

impl Outbox {
    /// Queues an event; the caller then calls [`Outbox::wake`] once for all.
    fn put(&self, event: StoreEvent) {
        // The receiver is gone only while the handle is dropped.
        let _ = self.events.send(event);
    }

    fn wake(&self) {
        (self.wake)();
    }
}
