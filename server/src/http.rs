//! The HTTP API on the bridge thread (DESIGN.md, Wire protocol): calls behind a bearer key, health, metrics, and in
//! `--dev` the demo page. `docs/openapi.json` describes it; a test keeps both equal.
//!
//! Handlers hold no state of the node: they ask the driver ([`crate::bridge::Ask`]) and wait for its answer.

mod answer;
mod api;
mod capacity;
mod demo;
mod health;
mod key;
mod metrics;
mod stats;

#[cfg(test)]
mod tests;

use crate::auth::Jwks;
use crate::bridge::{Ask, NodeFigures};
use answer::Problem;
use arc_swap::{ArcSwap, Guard};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use roomwire_engine::bridge::{Answer, Call};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The most milliseconds of one call, its body's arrival included.
const CALL_TIME_MAX: Duration = Duration::from_secs(15);
/// Bytes of a body besides its content.
const BODY_REST_BYTES_MAX: usize = 4 * 1024;
/// The most bytes of a body where the content has no limit.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What of the HTTP API a reload may change.
#[derive(Clone, Default)]
pub struct HttpPolicy {
    /// The bearer key of `/v1`; without one those routes answer 403.
    pub key: Option<Arc<str>>,
    /// Whether a store or bus in trouble makes the node unready.
    pub ready_requires_backends: bool,
    /// The most bytes of a message's content; 0 means no limit.
    pub content_bytes_max: u32,
    /// The key set in use, for health and metrics.
    pub jwks: Option<Arc<Jwks>>,
}

/// What the HTTP API is told at its start.
#[derive(Clone)]
pub struct HttpConfig {
    /// Where to listen.
    pub addr: SocketAddr,
    /// What a reload may change.
    pub policy: Arc<ArcSwap<HttpPolicy>>,
    /// This node's name.
    pub node: Arc<str>,
    /// The version that `/version` tells.
    pub version: &'static str,
    /// The demo page and its token mint; only with `--dev`.
    pub dev: Option<Dev>,
}

/// Makes a token.
pub type MintToken = Arc<dyn Fn(&str, &str) -> String + Send + Sync>;

/// What `--dev` adds.
#[derive(Clone)]
pub struct Dev {
    /// Makes a token for a user id and the name that others see.
    pub mint: MintToken,
}

/// What every handler is given.
#[derive(Clone)]
struct App {
    config: Arc<HttpConfig>,
    asks: mpsc::Sender<Ask>,
}

/// Serves until `stop` fires; answers under way are finished.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    config: HttpConfig,
    asks: mpsc::Sender<Ask>,
    stop: oneshot::Receiver<()>,
) {
    let router = router(App { config: Arc::new(config), asks });
    let served = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => {
            let stopped = async {
                let _ = stop.await;
            };
            axum::serve(listener, router).with_graceful_shutdown(stopped).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP API has ended");
    }
}

/// Every route, as in `docs/openapi.json`; those of `--dev` stand in [`demo`].
fn router(app: App) -> Router {
    let calls = Router::new()
        .route("/v1/rooms/{id}/messages", post(api::publish).get(api::history))
        .route("/v1/rooms/{id}/members", get(api::members))
        .route("/v1/users/{id}/messages", post(api::publish_to_user))
        .route("/v1/users/{id}/presence", get(api::presence))
        .route("/v1/users/{id}/disconnect", post(api::disconnect))
        .route("/v1/stats", get(stats::stats))
        .route_layer(middleware::from_fn_with_state(app.clone(), key::require))
        .layer(middleware::from_fn_with_state(app.clone(), limit_body));
    let open = Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/version", get(health::version));
    let router = if app.config.dev.is_some() { calls.merge(open).merge(demo::routes()) } else { calls.merge(open) };
    router
        .fallback(|| async { Problem::not_found("there is nothing at this path") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::from_fn(limit_time))
        .with_state(app)
}

async fn limit_body(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let body_bytes_max = match app.policy().content_bytes_max {
        0 => BODY_BYTES_MAX,
        content => content as usize + BODY_REST_BYTES_MAX,
    };
    DefaultBodyLimit::max(body_bytes_max).apply(&mut request);
    next.run(request).await
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(CALL_TIME_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable("the node did not answer in time").into_response(),
    }
}

impl App {
    /// What holds now.
    fn policy(&self) -> Guard<Arc<HttpPolicy>> {
        self.config.policy.load()
    }

    /// Asks the state machine.
    async fn call(&self, what: Call) -> Result<Answer, Problem> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Call { what, answer })?;
        match answered.await {
            Ok(Answer::Refused { code, message, retry_after_ms }) => {
                Err(Problem::refused(code, message, retry_after_ms))
            }
            Ok(answer) => Ok(answer),
            Err(_) => Err(Problem::unavailable("the node stops")),
        }
    }

    async fn figures(&self) -> Result<Box<NodeFigures>, Problem> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Figures { answer })?;
        answered.await.map_err(|_| Problem::unavailable("the node stops"))
    }

    fn ask(&self, ask: Ask) -> Result<(), Problem> {
        self.asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Problem::unavailable("too many calls are waiting"),
            mpsc::error::TrySendError::Closed(_) => Problem::unavailable("the node stops"),
        })
    }
}

/// The figures as every handler wants them.
async fn figures(State(app): &State<App>) -> Result<Box<NodeFigures>, Problem> {
    app.figures().await
}
