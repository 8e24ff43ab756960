//! The node's figures as the bridge thread knows them, for metrics, health and `/v1/stats`.

use crate::bus::BusFigures;
use crate::store::StoreFigures;
use roomwire_engine::bridge::{BridgeStats, ClusterStats};
use roomwire_engine::stats::ShardStats;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A shard that was not heard for so long does not turn: its figures come once a second.
const SHARD_SILENT_MAX: Duration = Duration::from_secs(5);

/// What the node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all shards listen yet.
    Starting,
    /// It serves.
    Running,
    /// It was told to stop.
    Draining,
}

impl Phase {
    /// As it stands in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Draining => "draining",
        }
    }
}

/// A shard as last heard.
#[derive(Clone, Debug)]
pub struct ShardView {
    /// Its figures; `None` until the first came.
    pub stats: Option<Arc<ShardStats>>,
    /// When it was heard; at first when it was started.
    pub heard: Instant,
    /// The part of the last second that it was not asleep.
    pub busy_ratio: f64,
}

impl ShardView {
    /// A shard that was just started.
    #[must_use]
    pub fn new(now: Instant) -> ShardView {
        ShardView { stats: None, heard: now, busy_ratio: 0.0 }
    }

    /// Its figures came in.
    pub fn hear(&mut self, now: Instant, stats: ShardStats) {
        let busy_us = |stats: &ShardStats| stats.counters.driver.busy_us_total;
        if let Some(before) = &self.stats {
            let elapsed_us = now.saturating_duration_since(self.heard).as_micros() as f64;
            let busy = busy_us(&stats).saturating_sub(busy_us(before)) as f64;
            self.busy_ratio = if elapsed_us > 0.0 { (busy / elapsed_us).min(1.0) } else { 0.0 };
        }
        self.heard = now;
        self.stats = Some(Arc::new(stats));
    }

    /// Whether it was heard lately.
    #[must_use]
    pub fn turns(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= SHARD_SILENT_MAX
    }
}

/// How much of the time a thread ran, from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Busy {
    looked_us: u64,
    ran_us: u64,
    /// From 0 to 1; 0 until the second look.
    pub(super) ratio: f64,
}

impl Busy {
    /// `ran_us`: how long the thread has run since its start.
    pub(super) fn look(&mut self, now_us: u64, ran_us: u64) {
        let (elapsed_us, busy_us) = (now_us.saturating_sub(self.looked_us), ran_us.saturating_sub(self.ran_us));
        if self.looked_us > 0 && elapsed_us > 0 {
            self.ratio = (busy_us as f64 / elapsed_us as f64).min(1.0);
        }
        (self.looked_us, self.ran_us) = (now_us, ran_us);
    }
}

/// What boot's main thread looks at between signals, kept by the bridge thread.
#[derive(Debug)]
pub struct Vitals {
    started: Instant,
    /// When the bridge and every shard were last known to turn, in ms since `started`.
    turned_ms: AtomicU64,
    connections: AtomicU64,
}

impl Default for Vitals {
    fn default() -> Vitals {
        Vitals { started: Instant::now(), turned_ms: AtomicU64::new(0), connections: AtomicU64::new(0) }
    }
}

impl Vitals {
    /// Connections on all shards.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether the bridge and every shard turned lately.
    #[must_use]
    pub fn turns(&self) -> bool {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned) <= SHARD_SILENT_MAX
    }

    /// The bridge's word, about once a second for each shard. While a node starts or drains, shards are not asked.
    pub(super) fn look(&self, phase: Phase, shards: &[ShardView]) {
        let now = Instant::now();
        if phase != Phase::Running || shards.iter().all(|shard| shard.turns(now)) {
            let turned = now.saturating_duration_since(self.started).as_millis();
            self.turned_ms.store(u64::try_from(turned).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let connections =
            shards.iter().filter_map(|shard| shard.stats.as_ref()).map(|stats| stats.counters.connections_now);
        self.connections.store(connections.sum(), Ordering::Relaxed);
    }
}

/// How reloads of the configuration went.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is a metric `roomwire_config_<name>`; docs/operations.md explains them")]
pub struct ReloadFigures {
    pub applied_total: u64,
    pub refused_total: u64,
    pub refused_now: bool,
    pub restart_keys_now: u64,
}

/// Everything that the bridge thread knows, at one moment.
#[derive(Clone, Debug)]
pub struct NodeFigures {
    /// What the node is doing.
    pub phase: Phase,
    /// Where the shards listen, once they do.
    pub listen: Option<SocketAddr>,
    /// Since the bridge started.
    pub uptime: Duration,
    /// The shards, by number.
    pub shards: Vec<ShardView>,
    /// The state machine's.
    pub bridge: BridgeStats,
    /// The store's.
    pub store: Arc<StoreFigures>,
    /// The bus's.
    pub bus: BusFigures,
    /// Of the node among others; `None` on a node of its own.
    pub cluster: Option<ClusterStats>,
    /// Turns of the bridge thread.
    pub turns_total: u64,
    /// Microseconds that the bridge thread was not asleep.
    pub busy_us_total: u64,
    /// The part of the last half second that the bridge thread ran.
    pub busy_ratio: f64,
    /// `limits.connections_max` as it is now; 0: none.
    pub connections_max: u32,
    /// Of reloads.
    pub reloads: ReloadFigures,
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomwire_engine::stats::{Counters, latency_histogram};

    fn stats(busy_us_total: u64) -> ShardStats {
        let mut counters = Counters::default();
        counters.driver.busy_us_total = busy_us_total;
        ShardStats { counters, fanout_us: latency_histogram() }
    }

    #[test]
    fn the_busy_ratio_is_that_of_the_time_since_the_last_figures() {
        let start = Instant::now();
        let mut view = ShardView::new(start);
        view.hear(start + Duration::from_secs(1), stats(900_000));
        assert!(view.busy_ratio.abs() < 1e-9, "nothing to compare with yet");
        view.hear(start + Duration::from_secs(3), stats(1_400_000));
        assert!((view.busy_ratio - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_thread_is_as_busy_as_it_ran_since_the_last_look() {
        let mut busy = Busy::default();
        busy.look(5_000_000, 90_000);
        assert!(busy.ratio.abs() < 1e-9, "nothing to compare with yet");
        busy.look(6_000_000, 340_000);
        assert!((busy.ratio - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_silent_shard_does_not_turn() {
        let start = Instant::now();
        let view = ShardView::new(start);
        assert!(view.turns(start + SHARD_SILENT_MAX));
        assert!(!view.turns(start + SHARD_SILENT_MAX + Duration::from_millis(1)));
    }
}
