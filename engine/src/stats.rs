//! What a shard counts. Plain single-writer numbers, handed out as a copy once a second.

use hdrhistogram::Histogram;
use roomwire_wire::close::CLOSE_TABLE;
use roomwire_wire::message::ErrorCode;

/// Limits whose crossings are counted, by the names of `limits::Limits`.
pub const LIMIT_NAMES: [&str; 15] = [
    "header_bytes_max",
    "handshake_ms_max",
    "message_bytes_max",
    "fragments_max",
    "assembly_ms_max",
    "messages_per_second_max",
    "messages_burst_max",
    "rooms_per_connection_max",
    "connections_per_user_max",
    "connections_per_address_max",
    "connections_max",
    "queue_bytes_max",
    "queue_ms_max",
    "content_bytes_max",
    "token_bytes_max",
];

/// Counters of one shard since its start, except where a name ends in `_now`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is a metric `roomwire_<name>`; docs/operations.md explains them")]
pub struct Counters {
    pub connections_now: u64,
    pub rooms_now: u64,
    pub users_now: u64,
    pub queue_bytes_now: u64,
    pub connects_total: u64,
    pub upgrades_total: u64,
    pub handshakes_refused_total: u64,
    pub proxies_refused_total: u64,
    pub auth_failures_total: u64,
    pub messages_received_total: u64,
    pub bytes_received_total: u64,
    pub frames_queued_total: u64,
    pub bytes_sent_total: u64,
    pub deliveries_total: u64,
    pub events_shed_total: u64,
    pub peers_vanished_total: u64,
    pub closes_total: [u64; CLOSE_TABLE.len()],
    pub errors_total: [u64; ErrorCode::ALL.len()],
    pub limits_crossed_total: [u64; LIMIT_NAMES.len()],
    /// Counted by the driver, not by the engine.
    pub driver: DriverCounters,
}

/// What the shard's driver counts.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is a metric `roomwire_<name>`; docs/operations.md explains them")]
pub struct DriverCounters {
    pub turns_total: u64,
    pub busy_us_total: u64,
    pub enters_total: u64,
    pub sends_total: u64,
    pub short_sends_total: u64,
    pub buffers_exhausted_total: u64,
    pub completions_overflowed_total: u64,
    pub accepts_paused_total: u64,
    pub mesh_spilled_now: u64,
    pub mesh_spilled_total: u64,
    pub reads_paused_total: u64,
}

/// A shard's figures at one moment.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Counters.
    pub counters: Counters,
    /// Microseconds from a chat message's receipt on its shard to the last send queued on this shard, since start.
    pub fanout_us: Histogram<u64>,
}

/// A histogram of microseconds: 1 us to 60 s at two digits (about 25 KB).
#[must_use]
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("constant bounds: 1 <= low, 2 * low <= high, digits <= 5")
}

impl Counters {
    /// Counts one crossing of the limit of that name.
    pub fn limit_crossed(&mut self, name: &str) {
        if let Some(index) = LIMIT_NAMES.iter().position(|limit| *limit == name) {
            self.limits_crossed_total[index] += 1;
        }
    }
}
