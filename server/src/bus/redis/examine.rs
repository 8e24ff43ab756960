//! What `roomwire doctor` wants to know of Redis, without a bus: whether it can be one, how far away it is, and which of
//! its settings limit a node.

use super::connect::{NoPush, Session, check, master, open, text};
use super::shared::Shared;
use super::{RedisConfig, Servers};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value, cmd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// How many round trips are measured.
const ROUND_TRIPS: usize = 50;

/// What was found.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Where.
    pub address: String,
    /// How long an answer took, ascending.
    pub round_trips: Vec<Duration>,
    /// How far its clock is ahead of ours, in ms.
    pub clock_ahead_ms: i64,
    /// Bytes in use.
    pub memory_used: u64,
    /// `maxmemory`; 0: none.
    pub memory_max: u64,
    /// The bytes at which it drops a subscriber at once; 0: none. `None` where CONFIG is not allowed.
    pub subscriber_bytes_max: Option<u64>,
    /// Replicas that are connected.
    pub replicas: u64,
    /// `min-replicas-to-write`, where CONFIG is allowed.
    pub replicas_min: Option<u64>,
    /// Whether Sentinels name the master.
    pub by_sentinel: bool,
}

/// Looks at the Redis that the configuration names. It writes nothing there, apart from the cache of scripts.
///
/// # Errors
/// Why a node could not use it: one line, with the cure where only an operator can help.
pub fn examine(config: RedisConfig) -> Result<Examined, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(look(config))
}

async fn look(config: RedisConfig) -> Result<Examined, String> {
    // Nobody listens: it never becomes a bus.
    let (inward, _) = mpsc::channel(1);
    let shared = Shared::new(config, "", inward);
    let config = &shared.config;
    let address = master(&shared).await.map_err(|error| error.text().to_owned())?;
    let connection = open(config, &address, &config.login, config.database, None::<NoPush>).await;
    let mut session =
        Session { connection: connection.map_err(|error| error.text().to_owned())?, address: address.clone() };
    check(config, &shared.dialect, &mut session).await.map_err(|error| error.text().to_owned())?;
    let lost = |error: redis::RedisError| format!("Redis at {address}: {error}");
    let mut redis = session.connection;
    let mut round_trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        cmd("PING").query_async::<Value>(&mut redis).await.map_err(lost)?;
        round_trips.push(began.elapsed());
    }
    round_trips.sort_unstable();
    let mut ask = Pipeline::new();
    ask.cmd("TIME").cmd("INFO").arg("memory").cmd("INFO").arg("replication");
    let ((secs, micros), memory, replication): ((i64, i64), String, String) =
        ask.query_async(&mut redis).await.map_err(lost)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    Ok(Examined {
        address: address.to_string(),
        round_trips,
        clock_ahead_ms: (secs * 1_000 + micros / 1_000).saturating_sub(now_ms),
        memory_used: number(&memory, "used_memory"),
        memory_max: number(&memory, "maxmemory"),
        subscriber_bytes_max: setting(&mut redis, "client-output-buffer-limit")
            .await
            .and_then(|text| subscriber(&text)),
        replicas: number(&replication, "connected_slaves"),
        replicas_min: setting(&mut redis, "min-replicas-to-write").await.and_then(|text| text.parse().ok()),
        by_sentinel: matches!(config.servers, Servers::Sentinel { .. }),
    })
}

fn number(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// A setting; `None` where the user may not ask, as the recommended one may not.
async fn setting(redis: &mut MultiplexedConnection, name: &str) -> Option<String> {
    match cmd("CONFIG").arg("GET").arg(name).query_async::<Value>(redis).await.ok()? {
        Value::Map(pairs) => pairs.first().and_then(|(_, value)| text(value)).map(str::to_owned),
        Value::Array(values) => values.get(1).and_then(text).map(str::to_owned),
        _ => None,
    }
}

/// The hard limit of `normal 0 0 0 slave 256mb 64mb 60 pubsub 33554432 8388608 60`.
fn subscriber(limits: &str) -> Option<u64> {
    limits.split_whitespace().skip_while(|word| *word != "pubsub").nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_subscribers_is_found() {
        assert_eq!(subscriber("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"), Some(33_554_432));
        assert_eq!(subscriber("normal 0 0 0"), None);
    }
}
