//! `GET /metrics`: the shards' plain counters, the bridge's and the store's, summed when scraped.

use super::answer::Problem;
use super::capacity::Capacity;
use super::stats::fanout;
use super::{App, figures};
use crate::auth::KeyFigures;
use crate::bridge::NodeFigures;
use crate::bus::BusState;
use crate::store::StoreState;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use roomwire_engine::stats::{Counters, LIMIT_NAMES, ShardStats};
use roomwire_wire::close::CLOSE_TABLE;
use roomwire_wire::message::ErrorCode;
use std::fmt;

/// The text format that `encode` writes.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Upper bounds of the histograms' buckets, in microseconds.
const BUCKETS_US: [u64; 18] = [
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000,
];

pub(super) async fn metrics(app: State<App>) -> Result<Response, Problem> {
    let figures = figures(&app).await?;
    let capacity = Capacity::of(&figures).await;
    let mut registry = Registry::with_prefix("roomwire");
    registry.register_collector(Box::new(Scrape {
        figures,
        capacity,
        keys: app.policy().jwks.as_ref().map(|jwks| jwks.figures()).unwrap_or_default(),
        version: app.config.version,
        node: app.config.node.to_string(),
    }));
    let mut text = String::new();
    match prometheus_text::encode(&mut text, &registry) {
        Ok(()) => Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()),
        Err(_) => Err(Problem::unavailable("the metrics could not be written")),
    }
}

#[derive(Debug)]
struct Scrape {
    figures: Box<NodeFigures>,
    capacity: Capacity,
    keys: KeyFigures,
    version: &'static str,
    node: String,
}

/// Labels of one time series.
struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// Writes metric families. Names of counters come without `_total`: the encoder adds it.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (Vec<(&'l str, &'l str)>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            family.encode_family(&Labels(&labels))?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: impl Iterator<Item = (String, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (text, value) in series {
            family.encode_family(&Labels(&[(label, &text)]))?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn seconds(&mut self, name: &str, help: &str, histogram: &Histogram<u64>) -> fmt::Result {
        let mut buckets = Vec::with_capacity(BUCKETS_US.len());
        let mut low = 0;
        for high in BUCKETS_US {
            buckets.push((high as f64 / 1e6, histogram.count_between(low, high)));
            low = high + 1;
        }
        let sum = histogram.mean() * histogram.len() as f64 / 1e6;
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(sum, histogram.len(), &buckets, None)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let labels = [("version", self.version), ("node", &self.node)];
        writer
            .0
            .encode_descriptor("build_info", "Always 1: which version runs here", None, MetricType::Gauge)?
            .encode_family(&Labels(&labels))?
            .encode_gauge(&1i64)?;
        self.capacity(&mut writer)?;
        self.reloads(&mut writer)?;
        self.keys(&mut writer)?;
        self.connections(&mut writer)?;
        self.reasons(&mut writer)?;
        self.shards(&mut writer)?;
        self.bridge(&mut writer)?;
        self.store(&mut writer)?;
        self.cluster(&mut writer)?;
        self.bus(&mut writer)
    }
}

impl Scrape {
    fn stats(&self) -> impl Iterator<Item = &ShardStats> {
        self.figures.shards.iter().filter_map(|shard| shard.stats.as_deref())
    }

    fn sum(&self, value: impl Fn(&Counters) -> u64) -> u64 {
        self.stats().map(|stats| value(&stats.counters)).sum()
    }

    fn capacity(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let help = "The used part of the resource of which least is left: connections, memory, cpu or descriptors";
        writer
            .0
            .encode_descriptor("capacity_used_ratio", help, None, MetricType::Gauge)?
            .encode_gauge(&self.capacity.tightest())?;
        let resources = self.capacity.resources().map(|(name, used)| (name.to_owned(), used));
        writer.gauges("capacity_resource_used_ratio", "The used part of each resource", "resource", resources)?;
        writer.gauge("connections_max", "limits.connections_max; 0: none", u64::from(self.figures.connections_max))
    }

    fn reloads(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let reloads = &self.figures.reloads;
        let results = [("applied", reloads.applied_total), ("refused", reloads.refused_total)];
        let series = results.into_iter().map(|(result, value)| (vec![("result", result)], value));
        writer.counters("config_reloads", "Times that the configuration was read again", series)?;
        let help = "1 while the file on disk is one that the last reload refused";
        writer.gauge("config_reload_refused", help, u64::from(reloads.refused_now))?;
        let help = "Keys that have changed on disk and wait for a restart";
        writer.gauge("config_restart_keys", help, reloads.restart_keys_now)
    }

    fn keys(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let keys = &self.keys;
        writer.gauge("auth_jwks_keys", "Keys of the issuer in use", keys.keys_now)?;
        let help = "1 while the last fetch of the key set failed";
        writer.gauge("auth_jwks_failing", help, u64::from(keys.failing_now))?;
        let results = [("read", keys.read_total), ("unchanged", keys.unchanged_total), ("failed", keys.failed_total)];
        let series = results.into_iter().map(|(result, count)| (vec![("result", result)], count));
        writer.counters("auth_jwks_reads", "Times that the key set was read or fetched", series)?;
        let help = "Tokens that named a key which is not known";
        writer.counter("auth_jwks_unknown_kids", help, keys.unknown_kids_total)
    }

    fn connections(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.gauge("connections", "Open connections", self.sum(|it| it.connections_now))?;
        writer.gauge("shard_rooms", "Rooms with members, counted once per shard", self.sum(|it| it.rooms_now))?;
        writer.gauge("shard_users", "Users with connections, counted once per shard", self.sum(|it| it.users_now))?;
        writer.gauge("send_queue_bytes", "Bytes that wait to be sent", self.sum(|it| it.queue_bytes_now))?;
        writer.counter("connects", "Connections accepted", self.sum(|it| it.connects_total))?;
        writer.counter("upgrades", "Connections that became a WebSocket", self.sum(|it| it.upgrades_total))?;
        let refused = self.sum(|it| it.handshakes_refused_total);
        writer.counter("handshakes_refused", "Upgrade requests refused", refused)?;
        let strangers = self.sum(|it| it.proxies_refused_total);
        writer.counter("proxies_refused", "Connections not from a balancer, or without its PROXY header", strangers)?;
        writer.counter("auth_failures", "Tokens refused", self.sum(|it| it.auth_failures_total))?;
        writer.counter("messages_received", "Messages from clients", self.sum(|it| it.messages_received_total))?;
        writer.counter("bytes_received", "Bytes from clients", self.sum(|it| it.bytes_received_total))?;
        writer.counter("frames_queued", "Frames queued to clients", self.sum(|it| it.frames_queued_total))?;
        writer.counter("bytes_sent", "Bytes sent to clients", self.sum(|it| it.bytes_sent_total))?;
        writer.counter("deliveries", "Chat messages queued to receivers", self.sum(|it| it.deliveries_total))?;
        let shed = self.sum(|it| it.events_shed_total);
        writer.counter("events_shed", "Ephemeral events not queued to a slow consumer", shed)?;
        let vanished = self.sum(|it| it.peers_vanished_total);
        writer.counter("peers_vanished", "Connections that ended without a close", vanished)?;
        writer.seconds("fanout_seconds", "From a message's receipt to its last send queued", &fanout(&self.figures))
    }

    /// What was refused or ended, by its reason.
    fn reasons(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let codes: Vec<String> = CLOSE_TABLE.iter().map(|row| (row.code as u16).to_string()).collect();
        let closes = CLOSE_TABLE.iter().zip(&codes).enumerate().map(|(index, (row, code))| {
            let labels = vec![("code", code.as_str()), ("reason", row.text), ("fault", row.fault)];
            (labels, self.sum(|it| it.closes_total[index]))
        });
        writer.counters("closes", "Connections that the server closed, by close code", closes)?;
        let errors = ErrorCode::ALL
            .iter()
            .map(|code| (vec![("code", code.as_str())], self.sum(|it| it.errors_total[code.index()])));
        writer.counters("errors", "Messages answered with an error, by its code", errors)?;
        let limits = LIMIT_NAMES
            .iter()
            .enumerate()
            .map(|(index, name)| (vec![("limit", *name)], self.sum(|it| it.limits_crossed_total[index])));
        writer.counters("limits_crossed", "Limits crossed, by the name of the limit", limits)
    }

    fn shards(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let shards = || self.figures.shards.iter().enumerate().map(|(shard, view)| (shard.to_string(), view));
        let of = |value: fn(&Counters) -> u64| {
            shards().map(move |(shard, view)| {
                (shard, view.stats.as_deref().map_or(0.0, |stats| value(&stats.counters) as f64))
            })
        };
        let busy = shards().map(|(shard, view)| (shard, view.busy_ratio));
        writer.gauges("shard_busy_ratio", "The part of the last second that a shard did not sleep", "shard", busy)?;
        writer.gauges("shard_connections", "Open connections", "shard", of(|it| it.connections_now))?;
        writer.gauges(
            "shard_mesh_spilled",
            "Messages that wait for a lane",
            "shard",
            of(|it| it.driver.mesh_spilled_now),
        )?;
        writer.counter("shard_turns", "Turns of all shards", self.sum(|it| it.driver.turns_total))?;
        writer.counter("shard_enters", "Calls of io_uring_enter", self.sum(|it| it.driver.enters_total))?;
        writer.counter("shard_sends", "Sends submitted", self.sum(|it| it.driver.sends_total))?;
        writer.counter(
            "shard_short_sends",
            "Sends that took a part only",
            self.sum(|it| it.driver.short_sends_total),
        )?;
        let exhausted = self.sum(|it| it.driver.buffers_exhausted_total);
        writer.counter("shard_buffers_exhausted", "Receives that found no buffer", exhausted)?;
        let overflowed = self.sum(|it| it.driver.completions_overflowed_total);
        writer.counter("shard_completions_overflowed", "Completions that did not fit the queue", overflowed)?;
        let paused = self.sum(|it| it.driver.accepts_paused_total);
        writer.counter("shard_accepts_paused", "Times that no descriptor was left to accept with", paused)?;
        let spilled = self.sum(|it| it.driver.mesh_spilled_total);
        writer.counter("shard_mesh_spills", "Messages that did not fit a lane at once", spilled)?;
        let paused = self.sum(|it| it.driver.reads_paused_total);
        writer.counter("shard_reads_paused", "Times that a shard stopped reading since its lanes were full", paused)
    }

    fn bridge(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (figures, bridge) = (&self.figures, &self.figures.bridge);
        writer.gauge("bridge_rooms", "Rooms known to the bridge", bridge.rooms_now)?;
        writer.gauge("bridge_publishes", "Publishes under way", bridge.publishes_now)?;
        writer.counter("bridge_published", "Messages stored and published", bridge.published_total)?;
        writer.counter("bridge_duplicates", "Retries answered with the old ids", bridge.duplicates_total)?;
        writer.counter("bridge_refused", "Publishes refused", bridge.refused_total)?;
        writer.counter("bridge_voided", "Seqs voided", bridge.voided_total)?;
        writer.counter("bridge_inits", "Rooms initialised", bridge.inits_total)?;
        let waiting = bridge.inits_waiting_now;
        writer.gauge("bridge_inits_waiting", "Rooms that wait for their turn to be initialised", waiting)?;
        writer.counter("bridge_history_pages", "Pages of history", bridge.history_pages_total)?;
        let memory = bridge.history_from_memory_total;
        writer.counter("bridge_history_from_memory", "Pages of history that needed no store", memory)?;
        let log = bridge.history_from_log_total;
        writer.counter("bridge_history_from_log", "Pages of history from the recent log of a shared bus", log)?;
        writer.counter("bridge_receipts", "Read receipts", bridge.receipts_total)?;
        writer
            .0
            .encode_descriptor(
                "bridge_busy_ratio",
                "The part of the last half second that the bridge thread ran",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&figures.busy_ratio)?;
        writer.counter("bridge_turns", "Turns of the bridge thread", figures.turns_total)?;
        writer.counter("bridge_busy_us", "Microseconds that the bridge thread did not sleep", figures.busy_us_total)?;
        writer.seconds("durable_seconds", "From a message's receipt to its being durable", &bridge.durable_us)
    }

    fn store(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let store = &self.figures.store;
        let degraded = self.figures.bridge.store_degraded_now || store.state != StoreState::Healthy;
        writer.gauge("store_degraded", "1 while the store takes no writes", u64::from(degraded))?;
        writer.gauge("store_queue", "Requests that wait for the store", store.queue_now)?;
        writer.gauge("store_free_bytes", "Free bytes of the store's file system", store.free_bytes_now)?;
        writer.gauge("store_disk_bytes", "Bytes of the store's files", store.disk_bytes_now)?;
        writer.gauge("store_cache_bytes", "Bytes in the store's cache of blocks", store.cache_bytes_now)?;
        writer.counter("store_rows_appended", "Messages stored", store.rows_appended_total)?;
        writer.counter("store_commits", "Group commits", store.commits_total)?;
        writer.counter("store_failures", "Failed requests of the store", store.failures_total)?;
        self.cluster_store(writer)?;
        writer.counter(
            "store_reopened",
            "Times that the store was opened again after a failed write",
            store.reopened_total,
        )?;
        writer.counter("store_rows_expired", "Messages removed by retention", store.rows_expired_total)?;
        writer.seconds(
            "store_append_seconds",
            "From an append's arrival at the store to its answer",
            &store.append_us,
        )?;
        writer.seconds("store_commit_seconds", "One group commit, its fsync included", &store.commit_us)
    }
    fn cluster(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let Some(cluster) = &self.figures.cluster else { return Ok(()) };
        writer.gauge("cluster_nodes", "Nodes alive on this Redis", cluster.nodes_now)?;
        writer.gauge("cluster_away", "1 while nothing can be said to the other nodes", u64::from(cluster.away_now))?;
        let help = "How far the clock of the Redis machine is ahead of this one's";
        let ahead = cluster.clock_ahead_ms_now as f64 / 1_000.0;
        writer
            .0
            .encode_descriptor("cluster_clock_ahead_seconds", help, None, MetricType::Gauge)?
            .encode_gauge(&ahead)?;
        writer.gauge("cluster_changes_waiting", "Changes on their way to Redis", cluster.changes_waiting_now)?;
        writer.gauge("cluster_watched_users", "Users watched by clients here", cluster.watched_users_now)?;
        let changes = [("users", cluster.user_changes_total), ("members", cluster.member_changes_total)];
        let series = changes.into_iter().map(|(of, value)| (vec![("of", of)], value));
        writer.counters("cluster_changes", "Users and members who came or went here", series)?;
        let help = "Users and members announced again, so that nothing runs out or after a loss";
        writer.counter("cluster_announced_again", help, cluster.announced_again_total)?;
        writer.counter(
            "cluster_lives",
            "Times that all was announced anew, the start included",
            cluster.lives_total,
        )?;
        writer.counter(
            "cluster_nodes_reaped",
            "Dead nodes that this one cleared up after",
            cluster.nodes_reaped_total,
        )?;
        let reaped = [("users", cluster.users_reaped_total), ("members", cluster.members_reaped_total)];
        let series = reaped.into_iter().map(|(of, value)| (vec![("of", of)], value));
        writer.counters("cluster_reaped", "Users and members of dead nodes that this one removed", series)
    }

    /// What only `store.kind = "cql"` has.
    fn cluster_store(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let store = &self.figures.store;
        writer.gauge("store_circuit_open", "1 while requests are refused unasked", store.circuit_open_now)?;
        writer.counter("store_circuit_opened", "Times that the circuit opened", store.circuit_opened_total)?;
        writer.gauge("store_in_flight", "Statements under way", store.in_flight_now)?;
        writer.counter("store_statements", "Statements sent to the cluster", store.statements_total)?;
        writer.counter("store_timeouts", "Requests without an answer in time", store.timeouts_total)?;
        writer.counter("store_refused", "Requests refused unasked", store.refused_total)?;
        writer.seconds("store_read_seconds", "One page of history or tail of a room", &store.read_us)?;
        writer.seconds("store_conditional_seconds", "One conditional write", &store.conditional_us)
    }

    fn bus(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let bus = &self.figures.bus;
        if !bus.is_remote {
            return Ok(());
        }
        let degraded = self.figures.bridge.bus_degraded_now || bus.state != BusState::Healthy;
        writer.gauge("bus_degraded", "1 while the bus is in trouble", u64::from(degraded))?;
        writer.gauge("bus_connected", "1 while commands can be sent", u64::from(bus.connected_now))?;
        let hears = u64::from(bus.subscriber_connected_now);
        writer.gauge("bus_subscriber_connected", "1 while events of other nodes are heard", hears)?;
        writer.gauge("bus_rooms_subscribed", "Rooms that the node listens to", bus.rooms_subscribed_now)?;
        writer.gauge("bus_requests_waiting", "Requests that are not answered yet", bus.requests_waiting_now)?;
        writer.counter("bus_commands", "Commands sent", bus.commands_total)?;
        writer.counter("bus_pipelines", "Pipelines sent", bus.pipelines_total)?;
        writer.counter("bus_failures", "Commands of unknown outcome, or refused by Redis", bus.failures_total)?;
        writer.counter(
            "bus_refused",
            "Requests refused at once: no connection, or too many wait",
            bus.refused_total,
        )?;
        writer.counter("bus_reconnects", "Times that the command connection was lost", bus.reconnects_total)?;
        writer.counter(
            "bus_scripts_reloaded",
            "Times that Redis had forgotten the scripts",
            bus.scripts_reloaded_total,
        )?;
        let wrong = bus.wrong_types_total;
        writer.counter(
            "bus_wrong_types",
            "Commands that found a key of another application in place of ours",
            wrong,
        )?;
        let again = bus.resubscriptions_total;
        writer.counter("bus_resubscriptions", "Times that all channels were subscribed to again", again)?;
        writer.counter("bus_events", "Payloads heard on the channels", bus.events_total)?;
        let dropped = [
            ("too_large", bus.dropped_too_large_total),
            ("no_object", bus.dropped_no_object_total),
            ("not_ours", bus.dropped_not_ours_total),
            ("full", bus.dropped_full_total),
        ];
        let series = dropped.into_iter().map(|(reason, count)| (vec![("reason", reason)], count));
        writer.counters("bus_dropped", "Payloads dropped, by reason", series)?;
        writer.seconds("bus_pipeline_seconds", "From a pipeline's start to its answer", &bus.pipeline_us)
    }
}
