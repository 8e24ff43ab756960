//! `GET /v1/stats`: the node's figures as JSON, for people and scripts.

use super::answer::{Problem, json_answer};
use super::capacity::Capacity;
use super::{App, figures};
use crate::bridge::{NodeFigures, ShardView};
use crate::store::StoreState;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hdrhistogram::Histogram;
use roomwire_engine::stats::latency_histogram;
use serde_json::{Value, json};
use std::time::Instant;

pub(super) async fn stats(app: State<App>) -> Result<Response, Problem> {
    let figures = figures(&app).await?;
    let mut answer = describe(&figures);
    let capacity = Capacity::of(&figures).await;
    answer["capacityUsed"] = capacity.resources().map(|(name, used)| (name.to_owned(), Value::from(used))).collect();
    answer["node"] = (*app.config.node).into();
    answer["version"] = app.config.version.into();
    Ok(json_answer(StatusCode::OK, &answer))
}

fn describe(figures: &NodeFigures) -> Value {
    let counters = || figures.shards.iter().filter_map(|shard| shard.stats.as_deref()).map(|stats| &stats.counters);
    let (bridge, store) = (&figures.bridge, &figures.store);
    let state = match &store.state {
        StoreState::Healthy => json!({ "status": "ok" }),
        StoreState::Degraded(cause) => json!({ "status": "degraded", "cause": &**cause }),
    };
    json!({
        "phase": figures.phase.as_str(),
        "listen": figures.listen.map(|listen| listen.to_string()),
        "uptimeMs": u64::try_from(figures.uptime.as_millis()).unwrap_or(u64::MAX),
        "connections": counters().map(|counters| counters.connections_now).sum::<u64>(),
        "messagesReceived": counters().map(|counters| counters.messages_received_total).sum::<u64>(),
        "deliveries": counters().map(|counters| counters.deliveries_total).sum::<u64>(),
        "shards": figures.shards.iter().enumerate().map(describe_shard).collect::<Vec<_>>(),
        "bridge": {
            "rooms": bridge.rooms_now,
            "publishes": bridge.publishes_now,
            "published": bridge.published_total,
            "duplicates": bridge.duplicates_total,
            "refused": bridge.refused_total,
            "voided": bridge.voided_total,
            "inits": bridge.inits_total,
            "historyPages": bridge.history_pages_total,
            "historyFromMemory": bridge.history_from_memory_total,
            "receipts": bridge.receipts_total,
        },
        "store": {
            "state": state,
            "rowsAppended": store.rows_appended_total,
            "commits": store.commits_total,
            "failures": store.failures_total,
            "reopened": store.reopened_total,
            "rowsExpired": store.rows_expired_total,
            "queue": store.queue_now,
            "inFlight": store.in_flight_now,
            "statements": store.statements_total,
            "timeouts": store.timeouts_total,
            "refused": store.refused_total,
            "circuitOpened": store.circuit_opened_total,
            "freeBytes": store.free_bytes_now,
            "diskBytes": store.disk_bytes_now,
        },
        "latencyUs": {
            "receiveToDurable": percentiles(&bridge.durable_us),
            "receiveToQueued": percentiles(&fanout(figures)),
            "storeAppend": percentiles(&store.append_us),
            "storeCommit": percentiles(&store.commit_us),
            "storeRead": percentiles(&store.read_us),
            "storeConditional": percentiles(&store.conditional_us),
        },
    })
}

fn describe_shard((shard, view): (usize, &ShardView)) -> Value {
    let counters = view.stats.as_deref().map(|stats| stats.counters.clone()).unwrap_or_default();
    let silent = Instant::now().saturating_duration_since(view.heard);
    json!({
        "shard": shard,
        "connections": counters.connections_now,
        "rooms": counters.rooms_now,
        "users": counters.users_now,
        "queueBytes": counters.queue_bytes_now,
        "busyRatio": view.busy_ratio,
        "heardMsAgo": u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
    })
}

/// All shards' histogram of receive to last send queued.
pub(super) fn fanout(figures: &NodeFigures) -> Histogram<u64> {
    let mut all = latency_histogram();
    for stats in figures.shards.iter().filter_map(|shard| shard.stats.as_deref()) {
        // All have the same bounds.
        let _ = all.add(&stats.fanout_us);
    }
    all
}

fn percentiles(histogram: &Histogram<u64>) -> Value {
    json!({
        "count": histogram.len(),
        "p50": histogram.value_at_quantile(0.5),
        "p95": histogram.value_at_quantile(0.95),
        "p99": histogram.value_at_quantile(0.99),
        "max": histogram.max(),
    })
}
