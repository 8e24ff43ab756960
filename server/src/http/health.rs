//! `/livez`, `/readyz`, `/version` (DESIGN.md, Health).

use super::answer::{Problem, json_answer};
use super::{App, figures};
use crate::bridge::{NodeFigures, Phase};
use crate::bus::BusState;
use crate::store::StoreState;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::time::Instant;

/// `GET /livez`: asks the shards only.
pub(super) async fn live(app: State<App>) -> Result<Response, Problem> {
    let figures = figures(&app).await?;
    let silent = silent_shards(&figures);
    // While the node starts, shards that do not exist yet cannot be silent.
    let live = figures.phase == Phase::Starting || silent.is_empty();
    let answer = json!({ "status": if live { "ok" } else { "dead" }, "silentShards": silent });
    Ok(json_answer(if live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &answer))
}

/// `GET /readyz`: whether new clients should come here.
pub(super) async fn ready(app: State<App>) -> Result<Response, Problem> {
    let figures = figures(&app).await?;
    let policy = app.policy();
    let keys = policy.jwks.as_ref().and_then(|jwks| jwks.trouble());
    let (ready, answer) = readiness(&figures, keys.as_deref(), policy.ready_requires_backends);
    Ok(json_answer(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &answer))
}

fn readiness(figures: &NodeFigures, keys: Option<&str>, requires_backends: bool) -> (bool, Value) {
    let silent = silent_shards(figures);
    let store = match &figures.store.state {
        StoreState::Healthy if figures.bridge.store_degraded_now => Some("the store answers late or not at all"),
        StoreState::Healthy => None,
        StoreState::Degraded(cause) => Some(&**cause),
    };
    let bus = match &figures.bus.state {
        BusState::Healthy if figures.bridge.bus_degraded_now => Some("the bus answers late or not at all"),
        BusState::Healthy => None,
        BusState::Degraded(cause) => Some(&**cause),
    };
    let is_degraded = store.is_some() || bus.is_some() || keys.is_some();
    let ready = figures.phase == Phase::Running && silent.is_empty() && !(is_degraded && requires_backends);
    let status = match figures.phase {
        Phase::Running if !silent.is_empty() => "stuck",
        Phase::Running if is_degraded => "degraded",
        Phase::Running => "ready",
        phase => phase.as_str(),
    };
    let backend = |cause: Option<&str>| match cause {
        None => json!({ "status": "ok" }),
        Some(cause) => json!({ "status": "degraded", "cause": cause }),
    };
    let shards = json!({ "status": if silent.is_empty() { "ok" } else { "silent" }, "silent": silent });
    let checks = json!({ "shards": shards, "store": backend(store), "bus": backend(bus), "keys": backend(keys) });
    (ready, json!({ "status": status, "checks": checks }))
}

/// `GET /version`
pub(super) async fn version(State(app): State<App>) -> Response {
    json_answer(StatusCode::OK, &json!({ "version": app.config.version, "node": &*app.config.node }))
}

fn silent_shards(figures: &NodeFigures) -> Vec<usize> {
    if figures.phase == Phase::Starting {
        return Vec::new();
    }
    let now = Instant::now();
    let silent = figures.shards.iter().enumerate().filter(|(_, shard)| !shard.turns(now));
    // A drained shard has ended and says nothing any more.
    silent.filter(|_| figures.phase == Phase::Running).map(|(shard, _)| shard).collect()
}
