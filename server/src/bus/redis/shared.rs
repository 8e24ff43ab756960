//! What the connections of one bus share: the configuration, the nodes' key, figures and troubles, and the way to the
//! bridge.

use super::cluster::Range;
use super::commands::Dialect;
use super::config::{Address, RedisConfig, Servers};
use super::foreign;
use super::order::CallId;
use super::payload::{Judge, own_tail};
use crate::bus::{BusFigures, BusState};
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use roomwire_engine::cluster::{ClusterEvent, ClusterReply};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The least and the most time between two attempts to connect.
const BACK_OFF_MS: u64 = 50;
const BACK_OFF_MS_MAX: u64 = 1_000;

/// From a connection to the bridge. The lane is bounded: a connection waits for room, and reads no further meanwhile.
#[derive(Debug)]
pub(super) enum Inward {
    /// Answers to calls.
    Answered(Vec<(CallId, BusReply)>),
    /// Answers to subscriptions.
    Subscribed(Vec<BusReply>),
    /// Something heard.
    Event(BusEvent),
    /// Requests without an answer that may not have been carried out, and may be repeated.
    Again(Vec<BusRequest>),
    /// The masters of the cluster, and their slots.
    Topology(Vec<Range>),
    /// An answer on who is where.
    Cluster(ClusterReply),
    /// Something heard on who is where.
    ClusterEvent(ClusterEvent),
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Shared {
    /// The configuration.
    pub(super) config: RedisConfig,
    /// How commands are written.
    pub(super) dialect: Dialect,
    /// Judges what is heard.
    pub(super) judge: Judge,
    /// The way to the bridge.
    pub(super) inward: mpsc::Sender<Inward>,
    /// What this node would vouch with, if Redis held no key.
    own_key: Arc<str>,
    key: Mutex<Option<Arc<str>>>,
    figures: Mutex<BusFigures>,
    troubles: Mutex<BTreeMap<String, Arc<str>>>,
    foreign_said: Mutex<foreign::Said>,
    /// Rung when a cluster's slots may have moved.
    pub(super) doubt_topology: Notify,
    /// Nodes of the cluster, as configured and as learned; the first is asked first.
    nodes: Mutex<Vec<Address>>,
}

/// Everything runs on the bridge thread, so no lock is ever waited for; a panic ends the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For one bus.
    #[must_use]
    pub(super) fn new(config: RedisConfig, own_key: &str, inward: mpsc::Sender<Inward>) -> Shared {
        let dialect = Dialect { own_tail: own_tail(&config.from), is_sharded: config.is_sharded };
        let figures = BusFigures { is_remote: true, ..BusFigures::default() };
        Shared {
            nodes: Mutex::new(match &config.servers {
                Servers::Cluster(nodes) => nodes.clone(),
                _ => Vec::new(),
            }),
            doubt_topology: Notify::new(),
            judge: Judge::new(&config.from, config.content_bytes_max),
            dialect,
            config,
            inward,
            own_key: Arc::from(own_key),
            key: Mutex::new(None),
            figures: Mutex::new(figures),
            troubles: Mutex::default(),
            foreign_said: Mutex::default(),
        }
    }

    /// What the nodes vouch with, once it is known.
    #[must_use]
    pub(super) fn key(&self) -> Option<Arc<str>> {
        lock(&self.key).clone()
    }

    /// What Redis is to hold as the key, where it holds none: the one in use, so that an emptied Redis gets it back.
    #[must_use]
    pub(super) fn key_offered(&self) -> Arc<str> {
        self.key().unwrap_or_else(|| Arc::clone(&self.own_key))
    }

    /// Redis holds this key.
    pub(super) fn set_key(&self, key: &str) {
        let mut held = lock(&self.key);
        if held.as_deref() != Some(key) {
            *held = Some(Arc::from(key));
        }
    }

    /// The figures, to count.
    pub(super) fn count(&self, count: impl FnOnce(&mut BusFigures)) {
        count(&mut lock(&self.figures));
    }

    /// The figures, with the state.
    #[must_use]
    pub(super) fn figures(&self) -> BusFigures {
        let mut figures = lock(&self.figures).clone();
        figures.state = lock(&self.troubles)
            .values()
            .next()
            .map_or(BusState::Healthy, |cause| BusState::Degraded(Arc::clone(cause)));
        figures
    }

    /// Asks what was said of keys that are none of ours.
    pub(super) fn may_name(&self, ask: impl FnOnce(&mut foreign::Said) -> bool) -> bool {
        ask(&mut lock(&self.foreign_said))
    }

    /// A part of the bus is in trouble: said once in the log, and as long as it lasts in the figures.
    pub(super) fn trouble(&self, part: &str, cause: &str) {
        let before = lock(&self.troubles).insert(part.to_owned(), Arc::from(cause));
        if before.is_none_or(|before| *before != *cause) {
            tracing::warn!(part, cause, "the bus is in trouble");
        }
    }

    /// A part of the bus works.
    pub(super) fn works(&self, part: &str) {
        if lock(&self.troubles).remove(part).is_some() {
            tracing::info!(part, "the bus works again");
        }
    }
}

impl Shared {
    /// Whether the bus is a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.config.servers, Servers::Cluster(_))
    }

    /// Nodes of the cluster to ask.
    pub(super) fn nodes(&self) -> Vec<Address> {
        lock(&self.nodes).clone()
    }

    /// The next node of the cluster to try: each in its turn.
    pub(super) fn next_node(&self) -> Option<Address> {
        let mut nodes = lock(&self.nodes);
        nodes.first()?;
        nodes.rotate_left(1);
        nodes.last().cloned()
    }

    /// These are the masters now; configured nodes stay known.
    pub(super) fn learn_nodes<'a>(&'a self, masters: impl Iterator<Item = &'a Address>) {
        let Servers::Cluster(configured) = &self.config.servers else { return };
        let mut known: Vec<Address> = Vec::new();
        for node in masters.chain(configured) {
            if !known.contains(node) {
                known.push(node.clone());
            }
        }
        *lock(&self.nodes) = known;
    }
}

/// The wait before the next attempt, with full jitter above the least: nodes that lost Redis together must not come back
/// together.
#[must_use]
pub(super) fn back_off(failures: u32) -> Duration {
    let most = (BACK_OFF_MS << failures.min(8)).min(BACK_OFF_MS_MAX);
    let mut bytes = [0; 8];
    // Without random numbers the wait is the longest one.
    let share = getrandom::fill(&mut bytes).map_or(u64::MAX, |()| u64::from_ne_bytes(bytes));
    Duration::from_millis(BACK_OFF_MS / 2 + share % most.max(1))
}
