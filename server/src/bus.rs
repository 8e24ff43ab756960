//! Where the bridge takes the order of a room's messages from, and hears other nodes: `Local` is the bus of a node that
//! stands alone and answers inline; `Redis` is shared by all nodes of a cluster and answers later. The contract is
//! `roomwire_engine::bus`.
//!
//! The bridge's driver holds one. It never blocks: what cannot be asked now is answered with `Failed`.

pub mod redis;

use hdrhistogram::Histogram;
use roomwire_engine::bus::LocalBus;
use roomwire_engine::stats::latency_histogram;
use std::sync::Arc;

/// The bus of a node.
#[derive(Debug)]
pub enum Bus {
    /// In process.
    Local(LocalBus),
    /// Redis or Valkey.
    Redis(Box<redis::RedisBus>),
}

/// Which bus a node uses, and how to reach it.
#[derive(Clone, Debug)]
pub enum BusConfig {
    /// In process.
    Local,
    /// Redis or Valkey.
    Redis(Box<redis::RedisConfig>),
}

/// Whether a bus takes requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BusState {
    /// It does.
    #[default]
    Healthy,
    /// It does not, or not all of them; the text says why.
    Degraded(Arc<str>),
}

/// A bus's figures since the start, except where a name ends in `_now`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is a metric `roomwire_bus_<name>`; docs/operations.md explains them")]
pub struct BusFigures {
    pub state: BusState,
    /// Whether commands and events go through another process at all.
    pub is_remote: bool,
    pub connected_now: bool,
    pub subscriber_connected_now: bool,
    pub rooms_subscribed_now: u64,
    pub requests_waiting_now: u64,
    pub commands_total: u64,
    pub pipelines_total: u64,
    pub failures_total: u64,
    pub refused_total: u64,
    pub reconnects_total: u64,
    pub scripts_reloaded_total: u64,
    /// Commands that found a key of another type under a name of ours; the log names it.
    pub wrong_types_total: u64,
    pub resubscriptions_total: u64,
    pub events_total: u64,
    /// Payloads that were dropped, by reason: larger than a message can be, no JSON object, passing for one of ours.
    pub dropped_too_large_total: u64,
    pub dropped_no_object_total: u64,
    pub dropped_not_ours_total: u64,
    /// Events that did not fit the queue to the bridge; the heads of all rooms are looked at then.
    pub dropped_full_total: u64,
    /// Microseconds from a pipeline's start to its answer.
    pub pipeline_us: Histogram<u64>,
}

impl Default for BusFigures {
    fn default() -> BusFigures {
        BusFigures {
            state: BusState::Healthy,
            is_remote: false,
            connected_now: true,
            subscriber_connected_now: true,
            rooms_subscribed_now: 0,
            requests_waiting_now: 0,
            commands_total: 0,
            pipelines_total: 0,
            failures_total: 0,
            refused_total: 0,
            reconnects_total: 0,
            scripts_reloaded_total: 0,
            wrong_types_total: 0,
            resubscriptions_total: 0,
            events_total: 0,
            dropped_too_large_total: 0,
            dropped_no_object_total: 0,
            dropped_not_ours_total: 0,
            dropped_full_total: 0,
            pipeline_us: latency_histogram(),
        }
    }
}
