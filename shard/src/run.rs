//! One shard's thread, from its pinning to its last turn.

use crate::accept::Acceptor;
use crate::buffers::Buffers;
use crate::clock;
use crate::listener;
use crate::mesh::ShardMesh;
use crate::ring::DataRing;
use crate::turn::{Driver, Next};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use roomwire_engine::Engine;
use roomwire_engine::limits::EngineConfig;
use roomwire_engine::names::ShardId;
use roomwire_engine::shard::Verify;
use socket2::SockRef;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

/// glommio's rings carry its own timers and whatever runs in the background: small, for the sake of memlock.
const EXECUTOR_RING_DEPTH: usize = 16;

/// The least that glommio registers for file I/O, which we do not do.
const EXECUTOR_IO_BYTES: usize = 64 * 1024;

/// The shard has its thread to itself. Were this timer to fire before the executor has begun to run the shard, it would never
/// do so.
const NEVER_PREEMPTED: Duration = Duration::from_secs(365 * 86_400);

/// What a shard is told at its start.
pub struct ShardConfig {
    /// Which one.
    pub shard: ShardId,
    /// The core to pin to.
    pub cpu: usize,
    /// Where to listen (SO_REUSEPORT).
    pub listen: SocketAddr,
    /// The backlog asked of `listen(2)`.
    pub backlog: u32,
    /// Buffers in the ring of provided buffers; a power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// Places in the ring's own table of sockets, at most the limit of open descriptors, which the kernel applies to each
    /// table. `None`: each socket is a descriptor of the process. See [`crate::probe::has_tables`].
    pub table: Option<u32>,
    /// Entries of the submission queue; the completion queue has `cq_entries`.
    pub sq_entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// The least time from one look at the sockets to the next under load; zero: none.
    pub gather: Duration,
    /// For the engine.
    pub engine: EngineConfig,
    /// Checks tokens.
    pub verify: Verify,
    /// Called about once a second by a shard that is about to sleep: gives freed memory back.
    pub rest: fn(),
    /// The shard's ends of the lanes.
    pub mesh: ShardMesh,
}

/// A started shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Where it listens: tells the port where port 0 was asked for.
    pub local_addr: SocketAddr,
    /// Its thread. It ends after the engine has drained. A panic in it ends the process.
    pub thread: std::thread::JoinHandle<()>,
    /// The listener once more, until it is shut down.
    listener: Option<OwnedFd>,
}

impl ShardHandle {
    /// Nobody new gets in from now on; who is in goes on. What waits in the backlog moves to another listener of the address
    /// where net.ipv4.tcp_migrate_req is 1, and is reset where it is 0.
    pub fn stop_listening(&mut self) {
        if let Some(listener) = self.listener.take() {
            // The shard hears of it by the EINVAL of its accept.
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
        }
    }
}

/// Starts a shard's thread and waits until it listens.
///
/// # Errors
/// One line with cause and cure: the address is in use, memlock is too low, the ring cannot be set up.
pub fn spawn(config: ShardConfig) -> Result<ShardHandle, io::Error> {
    let (listener, local_addr) = listener::listen(config.listen, config.backlog)?;
    let again = listener.try_clone()?;
    let (started, starts) = mpsc::channel();
    let shard = config.shard;
    let thread = std::thread::Builder::new().name(format!("shard-{}", shard.0)).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| live(config, listener, &started)));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => String::from("panicked"),
        };
        // A half-dead shard that still owned a listener would swallow its share of the clients (STYLE, rule 14).
        tracing::error!(shard = shard.0, reason, "a shard failed; the process ends");
        std::process::abort();
    })?;
    match starts.recv() {
        Ok(Ok(())) => Ok(ShardHandle { local_addr, thread, listener: Some(again) }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(io::Error::other("the shard's thread ended before it started")),
    }
}

/// The thread's life. What fails before the shard turns is told to `spawn`; what fails after is the result.
fn live(config: ShardConfig, listener: OwnedFd, started: &mpsc::Sender<io::Result<()>>) -> io::Result<()> {
    let executor = match executor(config.shard, config.cpu) {
        Ok(executor) => executor,
        Err(error) => {
            let _ = started.send(Err(error));
            return Ok(());
        }
    };
    let started = started.clone();
    executor.run(async move {
        match begin(config, listener) {
            Ok(driver) => {
                let _ = started.send(Ok(()));
                drive(driver)
            }
            Err(error) => {
                let _ = started.send(Err(error));
                Ok(())
            }
        }
    })
}

/// An executor pinned to the core; not pinned, with a warning, where the machine does not let us.
fn executor(shard: ShardId, cpu: usize) -> io::Result<LocalExecutor> {
    let make = |placement| {
        LocalExecutorBuilder::new(placement)
            .name("shard")
            .ring_depth(EXECUTOR_RING_DEPTH)
            .io_memory(EXECUTOR_IO_BYTES)
            .preempt_timer(NEVER_PREEMPTED)
            .make()
    };
    make(Placement::Fixed(cpu))
        .or_else(|error| {
            tracing::warn!(shard = shard.0, cpu, %error, "cannot pin the shard's thread; it runs unpinned");
            make(Placement::Unbound)
        })
        .map_err(|error| io::Error::other(format!("cannot start the executor of shard {}: {error}", shard.0)))
}

/// Everything that the turn needs, made on the thread that will use it, as the ring has a single issuer.
fn begin(config: ShardConfig, listener: OwnedFd) -> io::Result<Driver> {
    let ring = DataRing::new(config.sq_entries, config.cq_entries, config.table)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot set up the data ring: {error}")))?;
    let buffers = Buffers::new(&ring.submitter(), config.buffers, config.buffer_bytes)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot register the receive buffers: {error}")))?;
    let engine = Engine::new(config.shard, config.engine, config.verify, clock::now());
    let acceptor = Acceptor::new(listener, config.table.unwrap_or(u32::MAX));
    let mut driver = Driver::new(engine, ring, buffers, config.mesh, acceptor, config.gather, config.rest);
    driver.hear_bell();
    Ok(driver)
}

/// Turns until the engine has drained. Never gives the thread back to the executor, on which nothing else runs: with
/// glommio 0.9 a thread that lost its core for a preemption timer's time just then slept for ever
/// (docs/decisions/0001-sleep-in-the-data-ring.md).
fn drive(mut driver: Driver) -> io::Result<()> {
    loop {
        match driver.turn()? {
            Next::Turn => {}
            Next::Sleep { until_us } => driver.sleep(until_us)?,
            Next::End => return Ok(()),
        }
    }
}
