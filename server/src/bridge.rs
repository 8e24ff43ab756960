//! The bridge thread: drives `roomwire_engine::bridge::Bridge` with the bus, the store, the mesh and the HTTP API.
//!
//! Who calls it: boot, once. One tokio current_thread runtime runs the driver's loop ([`driver`]) and the HTTP API;
//! nothing on it blocks. What it never does: touch a client's socket.

mod driver;
mod figures;

pub use figures::{NodeFigures, Phase, ReloadFigures, ShardView, Vitals};

use crate::bus::redis::RedisBus;
use crate::bus::{Bus, BusConfig};
use crate::http::{self, HttpConfig};
use crate::store::{self, OpenError, StoreConfig};
use crossbeam_channel::{Sender, unbounded};
use driver::Driver;
use roomwire_engine::bridge::{Answer, BridgeConfig, Call};
use roomwire_engine::bus::LocalBus;
use roomwire_engine::limits::Reload;
use roomwire_shard::mesh::{BridgeMesh, Doorbell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many calls of the HTTP API may wait for the driver; beyond, they are answered with 503.
const ASKS_MAX: usize = 256;
/// How long answers of the HTTP API that are under way may still take when the node stops.
const HTTP_STOP: Duration = Duration::from_millis(500);

/// What the bridge thread is told at its start.
pub struct BridgeSetup {
    /// For the state machine.
    pub bridge: BridgeConfig,
    /// The bridge's ends of the lanes.
    pub mesh: BridgeMesh,
    /// The bus.
    pub bus: BusConfig,
    /// The store to open.
    pub store: StoreConfig,
    /// The HTTP API.
    pub http: HttpConfig,
    /// The least time from one look at what the shards sent to the next.
    pub gather: Duration,
    /// `limits.connections_max`, for the figures; 0: none.
    pub connections_max: u32,
}

/// Why the bridge could not be started: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The bus cannot be used like this: cause and cure.
    #[error("{0}")]
    Bus(String),
    /// The address of the HTTP API could not be bound.
    #[error("http.addr {addr}: {error}")]
    Http {
        /// The address.
        addr: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The system refused a thread or an event descriptor.
    #[error("cannot start the bridge thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// From boot to the driver.
#[derive(Clone, Debug)]
enum Command {
    /// All shards listen, here.
    Started(SocketAddr),
    /// Drain within so many ms.
    Drain(u32),
    /// For all shards.
    Reload(Arc<Reload>),
    /// A reload has ended, well or not.
    Reloaded(ReloadFigures),
}

/// From the HTTP API to the driver. An asker whose answer is dropped hears that the node stops.
#[derive(Debug)]
pub enum Ask {
    /// For the state machine.
    Call {
        /// What.
        what: Call,
        /// Where the answer goes.
        answer: oneshot::Sender<Answer>,
    },
    /// The node's figures.
    Figures {
        /// Where they go.
        answer: oneshot::Sender<Box<NodeFigures>>,
    },
}

/// The bridge thread, seen from boot. It answers `/readyz` with 503 until [`BridgeHandle::started`].
#[derive(Debug)]
pub struct BridgeHandle {
    http_addr: SocketAddr,
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    vitals: Arc<Vitals>,
    thread: JoinHandle<()>,
}

/// Reaches for the bus, opens the store, binds the HTTP API and starts the thread. Call it before the shards are started.
///
/// # Errors
/// [`StartError`], for the operator.
pub fn spawn(setup: BridgeSetup) -> Result<BridgeHandle, StartError> {
    let BridgeSetup { bridge, mesh, bus, store, http, gather, connections_max } = setup;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let bus = match bus {
        // Clients see nothing of the boot number, so none can make ids whose fingerprints collide.
        BusConfig::Local => Bus::Local(LocalBus::new(bridge.boot)),
        BusConfig::Redis(config) => {
            Bus::Redis(Box::new(runtime.block_on(RedisBus::start(*config)).map_err(StartError::Bus)?))
        }
    };
    let bell = Arc::clone(mesh.doorbell());
    let store_bell = Arc::new(Doorbell::new()?);
    let rung = Arc::clone(&store_bell);
    let store = store::spawn(store, Arc::new(move || rung.ring()))?;

    let bound = |error| StartError::Http { addr: http.addr, error };
    let listener = std::net::TcpListener::bind(http.addr).map_err(bound)?;
    listener.set_nonblocking(true).map_err(bound)?;
    let http_addr = listener.local_addr().map_err(bound)?;

    // Boot sends a handful of commands in a node's life.
    let (commands, command_receiver) = unbounded();
    let (asks, ask_receiver) = mpsc::channel(ASKS_MAX);
    let vitals = Arc::new(Vitals::default());
    let inbox = (command_receiver, ask_receiver);
    let mut driver = Driver::new(bridge, mesh, bus, (store, store_bell), inbox, gather, Arc::clone(&vitals));
    driver.connections_max = connections_max;
    let run = move || {
        runtime.block_on(async move {
            let (stop, stopped) = oneshot::channel();
            let server = tokio::spawn(http::serve(listener, http, asks, stopped));
            driver.run().await;
            let _ = stop.send(());
            let _ = tokio::time::timeout(HTTP_STOP, server).await;
        });
    };
    let thread = std::thread::Builder::new().name("bridge".to_owned()).spawn(run)?;
    Ok(BridgeHandle { http_addr, commands, bell, vitals, thread })
}

impl BridgeHandle {
    /// Where the HTTP API listens: tells the port where port 0 was asked for.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// All shards listen, here: the node is ready.
    pub fn started(&self, listen: SocketAddr) {
        self.tell(Command::Started(listen));
    }

    /// Drains the node within the window; 0 cuts it short. May be repeated.
    pub fn drain(&self, window_ms: u32) {
        self.tell(Command::Drain(window_ms));
    }

    /// Passes on to the shards what was read anew.
    pub fn reload(&self, reload: Reload) {
        self.tell(Command::Reload(Arc::new(reload)));
    }

    /// How reloads went, for the figures.
    pub fn reloaded(&self, figures: ReloadFigures) {
        self.tell(Command::Reloaded(figures));
    }

    /// How the node does.
    #[must_use]
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Whether the thread has ended: after a drain, or because it failed. Boot looks at it between signals.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until every shard has drained and all that was under way is stored. `false` if the thread panicked.
    #[must_use]
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }

    fn tell(&self, command: Command) {
        // The receiver is gone only when the thread has ended, which `is_finished` tells.
        let _ = self.commands.send(command);
        self.bell.ring();
    }
}
