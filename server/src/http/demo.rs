//! The demo page of `--dev`: the page, its WebSocket URL, and tokens for whoever asks on this machine.

use super::answer::{Problem, json_answer};
use super::{App, figures};
use crate::auth::token::USER_NAME_BYTES_MAX;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use roomwire_wire::id::is_user_id;
use serde::Deserialize;
use serde_json::json;
use std::net::IpAddr;

/// How much of a name goes into its id.
const ID_PART_BYTES_MAX: usize = 64;

const PAGE: &str = include_str!("../../demo/index.html");

/// The routes that exist only with `--dev`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(page))
        .route("/dev/token", get(token))
        .route("/dev/config", get(config))
        .route_layer(middleware::from_fn(own_name_only))
}

/// A page of another site may point its own name at 127.0.0.1 and then read what we answer, tokens too. It cannot
/// choose the `Host` that the browser sends, so only an address or `localhost` is served.
async fn own_name_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_own_name) {
        next.run(request).await
    } else {
        Problem::forbidden("open the demo page by address, or as localhost").into_response()
    }
}

fn is_own_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

async fn page() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Html(PAGE)).into_response()
}

#[derive(Deserialize)]
struct TokenQuery {
    user: String,
}

async fn token(State(app): State<App>, query: Result<Query<TokenQuery>, QueryRejection>) -> Result<Response, Problem> {
    let Ok(Query(TokenQuery { user })) = query else { return Err(Problem::bad_request("user is missing")) };
    let name = user.trim();
    if name.is_empty() || name.len() > USER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Problem::bad_request("a user name has 1 to 256 bytes and no control characters"));
    }
    let Some(dev) = &app.config.dev else { return Err(Problem::not_found("only with --dev")) };
    Ok(json_answer(StatusCode::OK, &json!({ "token": (dev.mint)(&id_of(name), name) })))
}

/// The user id of a name: the name itself where it may be an id; else what may stay of it, and a hash that keeps "Ana B"
/// and "Ana-B" apart.
fn id_of(name: &str) -> String {
    if is_user_id(name) {
        return name.to_owned();
    }
    let kept: String = name
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' })
        .take(ID_PART_BYTES_MAX)
        .collect();
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{}.{hash:016x}", kept.trim_matches('-'))
}

/// Behind a balancer, which says so by `X-Forwarded-Host`, the WebSocket is where the page came from.
async fn config(app: State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let balancer = headers.get("x-forwarded-host").and_then(|host| host.to_str().ok()).filter(|host| is_own_name(host));
    if let Some(host) = balancer {
        return Ok(json_answer(StatusCode::OK, &json!({ "url": format!("ws://{host}/ws") })));
    }
    let figures = figures(&app).await?;
    let Some(listen) = figures.listen else { return Err(Problem::unavailable("the node is starting")) };
    Ok(json_answer(StatusCode::OK, &json!({ "url": format!("ws://{listen}/ws") })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_id_of_its_own() {
        assert_eq!(id_of("ada"), "ada");
        let names = ["Grace Hopper", "Grace-Hopper ", "Grace.Hopper!", "Zoë", "Zo", "李", "🙂", "grace hopper"];
        let ids: std::collections::BTreeSet<String> = names.iter().map(|name| id_of(name)).collect();
        assert_eq!(ids.len(), names.len());
        assert!(ids.iter().all(|id| is_user_id(id)), "{ids:?}");
        assert!(is_user_id(&id_of(&"é ".repeat(80))));
    }

    #[test]
    fn only_addresses_and_localhost_are_own_names() {
        for host in ["127.0.0.1:9090", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:9090", "[::1]", "10.0.0.7:80"] {
            assert!(is_own_name(host), "{host}");
        }
        for host in ["evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "", ":9090"] {
            assert!(!is_own_name(host), "{host}");
        }
    }
}
