//! The driver's loop: one turn takes what all sides left, lets the state machine decide, and carries it out.
//!
//! A turn: commands, mesh, store, bus, HTTP, tick; then flush and carry out until nothing is left; then the lanes. The
//! clocks are read once. The local bus answers inline; its replies and events feed the state machine in the same turn.
//! The Redis bus is sent what the turn asked at its end, and answers in a later one.

use super::figures::{Busy, NodeFigures, Phase, ReloadFigures, ShardView, Vitals};
use super::{Ask, Command};
use crate::bus::redis::Told;
use crate::bus::{Bus, BusFigures};
use crate::store::{Store, StoreEvent, StoreFigures, StoreState};
use crossbeam_channel::Receiver;
use roomwire_engine::Now;
use roomwire_engine::bridge::{Answer, Bridge, BridgeConfig, BridgeEffect, BridgeEvent};
use roomwire_engine::bus::{BusEvent, BusRequest};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::ShardId;
use roomwire_shard::clock;
use roomwire_shard::mesh::{BridgeMesh, Doorbell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// The most that one turn takes from each side, so that no side starves another.
const TURN_MESSAGES_MAX: usize = 1_024;
/// Gathering ends before its time when a shard has sent so many messages: a commit is shared widely enough by then, and
/// under more load nobody waits longer than it takes them to come.
const GATHER_MESSAGES: usize = 16;
/// The most rounds of flush and carry-out in one turn; what is left goes on in the next.
const TURN_ROUNDS_MAX: usize = 64;
/// A shard or a store that makes room rings nobody: look again after so long while something is spilled.
const SPILL_RETRY: Duration = Duration::from_millis(1);
/// The longest sleep: the store's threads are looked after.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How often the node's vitals are told.
const LOOK_EVERY_US: u64 = 500_000;

/// How long the other nodes may take to hear that this one ends.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// The bridge thread's state.
pub(super) struct Driver {
    bridge: Bridge,
    bus: Bus,
    mesh: BridgeMesh,
    store: Store,
    store_bell: Arc<Doorbell>,
    /// The least time from one look at what the shards sent to the next: what comes meanwhile shares a batch.
    gather_us: u64,
    /// The mail of the shards is not looked at before then, unless it is much.
    mail_due_us: u64,
    commands: Receiver<Command>,
    asks: mpsc::Receiver<Ask>,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    next_call: u64,
    effects: Vec<BridgeEffect>,
    phase: Phase,
    listen: Option<SocketAddr>,
    shards: Vec<ShardView>,
    vitals: Arc<Vitals>,
    /// Boot's main thread is told how the node does then.
    look_due_us: u64,
    store_figures: Arc<StoreFigures>,
    started: Instant,
    turns_total: u64,
    busy_us_total: u64,
    busy: Busy,
    /// `limits.connections_max`, for the figures.
    pub(super) connections_max: u32,
    reloads: ReloadFigures,
    finished: bool,
    /// Kept between turns for their memory.
    inbox: Vec<ToBridge>,
    store_events: Vec<StoreEvent>,
    bus_events: Vec<BusEvent>,
    bus_told: Vec<Told>,
}

/// The doorbell as something to poll.
struct Bell(Arc<Doorbell>);

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn poll(bell: &Arc<Doorbell>) -> std::io::Result<AsyncFd<Bell>> {
    // SAFETY: the bell owns its eventfd and keeps it open and the same for as long as it lives, which is longer than
    // the registration: `AsyncFd` drops the registration first.
    let registered = unsafe { AsyncFd::register_with_interest(Bell(Arc::clone(bell)), Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// Ends when the bell has rung.
async fn rung(bell: &AsyncFd<Bell>) {
    if let Ok(mut ready) = bell.readable().await {
        ready.clear_ready();
    }
    bell.get_ref().0.clear();
}

impl Driver {
    pub(super) fn new(
        config: BridgeConfig,
        mesh: BridgeMesh,
        bus: Bus,
        (store, store_bell): (Store, Arc<Doorbell>),
        (commands, asks): (Receiver<Command>, mpsc::Receiver<Ask>),
        gather: Duration,
        vitals: Arc<Vitals>,
    ) -> Driver {
        let started = Instant::now();
        Driver {
            shards: (0..config.shards).map(|_| ShardView::new(started)).collect(),
            bridge: Bridge::new(config),
            bus,
            mesh,
            store,
            store_bell,
            gather_us: gather.as_micros().try_into().unwrap_or(u64::MAX),
            mail_due_us: 0,
            commands,
            asks,
            calls: HashMap::new(),
            next_call: 0,
            effects: Vec::new(),
            phase: Phase::Starting,
            listen: None,
            vitals,
            look_due_us: 0,
            store_figures: Arc::default(),
            started,
            turns_total: 0,
            busy_us_total: 0,
            busy: Busy::default(),
            connections_max: 0,
            reloads: ReloadFigures::default(),
            finished: false,
            inbox: Vec::new(),
            store_events: Vec::new(),
            bus_events: Vec::new(),
            bus_told: Vec::new(),
        }
    }

    /// Runs until the node has drained, or the store's threads have died.
    pub(super) async fn run(mut self) {
        let bells = poll(self.mesh.doorbell()).and_then(|mail| Ok((mail, poll(&self.store_bell)?)));
        let (mail_bell, store_bell) = match bells {
            Ok(bells) => bells,
            Err(error) => {
                tracing::error!(%error, "the bridge cannot poll its doorbells");
                return;
            }
        };
        while !self.finished {
            if self.store.is_dead() {
                tracing::error!("the store's threads have ended: the node cannot keep messages and stops");
                return;
            }
            let began = clock::now();
            let spilled = self.turn(began);
            if began.mono_us >= self.look_due_us {
                self.look_due_us = began.mono_us + LOOK_EVERY_US;
                self.vitals.look(self.phase, &self.shards);
                self.busy.look(began.mono_us, clock::thread_us());
            }
            let ended = clock::now();
            self.busy_us_total += ended.mono_us.saturating_sub(began.mono_us);
            if self.finished {
                break;
            }
            // While mail gathers nobody wakes us for a little of it.
            let gathers = ended.mono_us < self.mail_due_us;
            let wanted = if gathers { GATHER_MESSAGES } else { 1 };
            mail_bell.get_ref().0.arm_at(wanted);
            self.store_bell.arm();
            let ask = if self.has_work(wanted) {
                // The HTTP API has its go.
                tokio::task::yield_now().await;
                None
            } else {
                self.sleep(&mail_bell, &store_bell, ended, spilled).await
            };
            mail_bell.get_ref().0.disarm();
            self.store_bell.disarm();
            if let Some(ask) = ask {
                self.take_ask(clock::now(), ask);
            }
        }
        if let Bus::Redis(bus) = &self.bus {
            let _ = tokio::time::timeout(FAREWELL_MAX, bus.leave()).await;
        }
        // Dropping the store ends its threads after a last sync.
        self.mesh.flush();
    }

    /// Sleeps until somebody rings, asks, or something is due.
    async fn sleep(
        &mut self,
        mail_bell: &AsyncFd<Bell>,
        store_bell: &AsyncFd<Bell>,
        now: Now,
        spilled: bool,
    ) -> Option<Ask> {
        let mut wait = if spilled { SPILL_RETRY } else { SLEEP_MAX };
        if let Some(due_ms) = self.bridge.next_tick_ms() {
            wait = wait.min(Duration::from_millis(due_ms.saturating_sub(now.mono_ms())));
        }
        if now.mono_us < self.mail_due_us {
            wait = wait.min(Duration::from_micros(self.mail_due_us - now.mono_us));
        }
        tokio::select! {
            () = rung(mail_bell) => None,
            () = rung(store_bell) => None,
            () = bus_woken(&mut self.bus) => None,
            // Closed for ever once the HTTP API has ended.
            ask = self.asks.recv(), if !self.asks.is_closed() => ask,
            () = tokio::time::sleep(wait) => None,
        }
    }

    /// Whether another turn has something to do at once; mail counts from so many messages on a lane.
    fn has_work(&self, wanted: usize) -> bool {
        !self.effects.is_empty()
            || !self.commands.is_empty()
            || !self.asks.is_empty()
            || self.mesh.holds(wanted)
            || self.store.has_mail()
            || matches!(&self.bus, Bus::Redis(bus) if bus.has_work())
    }

    /// One turn; whether something is spilled on a lane.
    fn turn(&mut self, now: Now) -> bool {
        self.turns_total += 1;
        for command in self.commands.try_iter().collect::<Vec<_>>() {
            self.command(now, command);
        }
        if now.mono_us >= self.mail_due_us || self.mesh.holds(GATHER_MESSAGES) {
            self.take_mail(now);
        }
        self.take_store_events(now);
        self.take_bus(now);
        while let Ok(ask) = self.asks.try_recv() {
            self.take_ask(now, ask);
        }
        if self.bridge.next_tick_ms().is_some_and(|due| due <= now.mono_ms()) {
            self.decide(now, BridgeEvent::Tick);
        }
        self.settle(now);
        if let Bus::Redis(bus) = &mut self.bus {
            bus.flush();
        }
        // Both, always.
        self.store.flush() | self.mesh.flush()
    }

    fn take_mail(&mut self, now: Now) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let taken = self.mesh.receive(TURN_MESSAGES_MAX, &mut inbox);
        for message in inbox.drain(..) {
            self.decide(now, BridgeEvent::Shard(message));
        }
        self.inbox = inbox;
        // A full batch is followed at once.
        if taken > 0 && taken < TURN_MESSAGES_MAX {
            self.mail_due_us = now.mono_us + self.gather_us;
        }
    }

    fn decide(&mut self, now: Now, event: BridgeEvent) {
        self.bridge.handle(now, event, &mut self.effects);
    }

    fn command(&mut self, now: Now, command: Command) {
        match command {
            Command::Started(listen) => {
                self.listen = Some(listen);
                if self.phase == Phase::Starting {
                    self.phase = Phase::Running;
                }
                let heard = Instant::now();
                self.shards.iter_mut().for_each(|shard| shard.heard = heard);
            }
            Command::Reload(reload) => {
                self.connections_max = reload.limits.connections_max;
                for shard in (0..).map(ShardId).take(self.shards.len()) {
                    self.mesh.send(shard, ToShard::Reload(Arc::clone(&reload)));
                }
            }
            Command::Reloaded(figures) => self.reloads = figures,
            Command::Drain(window_ms) => {
                self.phase = Phase::Draining;
                self.decide(now, BridgeEvent::Drain { window_ms });
            }
        }
    }

    fn take_store_events(&mut self, now: Now) {
        let mut events = std::mem::take(&mut self.store_events);
        self.store.receive(TURN_MESSAGES_MAX, &mut events);
        for event in events.drain(..) {
            match event {
                StoreEvent::Reply(reply) => self.decide(now, BridgeEvent::Store(reply)),
                StoreEvent::Figures(figures) => {
                    if let StoreState::Degraded(cause) = &figures.state
                        && self.store_figures.state == StoreState::Healthy
                    {
                        tracing::warn!(%cause, "the store takes no writes");
                    }
                    self.store_figures = Arc::from(figures);
                }
            }
        }
        self.store_events = events;
    }

    fn take_bus(&mut self, now: Now) {
        let Bus::Redis(bus) = &mut self.bus else { return };
        let mut told = std::mem::take(&mut self.bus_told);
        bus.receive(TURN_MESSAGES_MAX, &mut told);
        for told in told.drain(..) {
            match told {
                Told::Reply(reply) => self.decide(now, BridgeEvent::BusReply(reply)),
                Told::Event(event) => self.decide(now, BridgeEvent::BusEvent(event)),
                Told::ClusterReply(reply) => self.decide(now, BridgeEvent::ClusterReply(reply)),
                Told::ClusterEvent(event) => self.decide(now, BridgeEvent::ClusterEvent(event)),
            }
        }
        self.bus_told = told;
    }

    fn take_ask(&mut self, now: Now, ask: Ask) {
        match ask {
            Ask::Call { what, answer } => {
                self.next_call += 1;
                let call = self.next_call;
                self.calls.insert(call, answer);
                self.decide(now, BridgeEvent::Call { call, what });
                self.forget_gone_askers();
            }
            Ask::Figures { answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(Box::new(self.figures()));
            }
        }
    }

    /// An asker that gave up leaves a dead entry if its answer never comes: looked at now and then.
    fn forget_gone_askers(&mut self) {
        if self.next_call.is_multiple_of(1_024) {
            self.calls.retain(|_, answer| !answer.is_closed());
        }
    }

    fn figures(&self) -> NodeFigures {
        NodeFigures {
            phase: self.phase,
            listen: self.listen,
            uptime: self.started.elapsed(),
            shards: self.shards.clone(),
            bridge: self.bridge.stats().clone(),
            store: Arc::clone(&self.store_figures),
            bus: match &self.bus {
                Bus::Local(_) => BusFigures::default(),
                Bus::Redis(bus) => bus.figures(),
            },
            cluster: self.bridge.cluster_stats().cloned(),
            turns_total: self.turns_total,
            busy_us_total: self.busy_us_total,
            busy_ratio: self.busy.ratio,
            connections_max: self.connections_max,
            reloads: self.reloads,
        }
    }

    /// Flushes the state machine and carries out its effects, until it has none left.
    fn settle(&mut self, now: Now) {
        for _ in 0..TURN_ROUNDS_MAX {
            self.bridge.flush(now, &mut self.effects);
            if self.effects.is_empty() {
                return;
            }
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.carry_out(now, effect);
            }
            if self.effects.is_empty() {
                self.effects = effects;
            }
        }
    }

    fn carry_out(&mut self, now: Now, effect: BridgeEffect) {
        match effect {
            BridgeEffect::Shard(shard, message) => self.mesh.send(shard, message),
            BridgeEffect::Bus(request) => self.ask_bus(now, request),
            // Only a node in a cluster asks, and its bus is not the local one.
            BridgeEffect::Cluster(request) => match &mut self.bus {
                Bus::Local(_) => self.decide(now, BridgeEvent::ClusterReply(request.unanswered())),
                Bus::Redis(bus) => bus.ask_cluster(request),
            },
            BridgeEffect::Store(request) => self.store.send(request),
            BridgeEffect::Answer { call, answer } => {
                if let Some(asker) = self.calls.remove(&call) {
                    let _ = asker.send(answer);
                }
            }
            BridgeEffect::Stats(shard, stats) => {
                if let Some(view) = self.shards.get_mut(usize::from(shard.0)) {
                    view.hear(Instant::now(), *stats);
                }
            }
            BridgeEffect::Evicted { by } => {
                tracing::error!("this node cannot go on: {by}");
                self.finished = true;
            }
            BridgeEffect::Finished => self.finished = true,
        }
    }
    fn ask_bus(&mut self, now: Now, request: BusRequest) {
        let bus = match &mut self.bus {
            Bus::Local(bus) => bus,
            Bus::Redis(bus) => return bus.ask(request),
        };
        let mut events = std::mem::take(&mut self.bus_events);
        let reply = bus.handle(now, request, &mut events);
        for event in events.drain(..) {
            self.decide(now, BridgeEvent::BusEvent(event));
        }
        self.bus_events = events;
        if let Some(reply) = reply {
            self.decide(now, BridgeEvent::BusReply(reply));
        }
    }
}

/// Ends when the bus has something to tell; the local one never has.
async fn bus_woken(bus: &mut Bus) {
    match bus {
        Bus::Local(_) => std::future::pending().await,
        Bus::Redis(bus) => bus.woken().await,
    }
}
