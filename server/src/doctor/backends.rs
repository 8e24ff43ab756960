//! What is elsewhere: Redis, Cassandra and the issuer's key set, as far as the configuration names them.

use super::Finding;
use crate::auth::Source;
use crate::auth::source::{Found, Reader};
use crate::boot::cql_config;
use crate::bus::redis::examine::{self as redis, Examined as Redis};
use crate::config::Settings;
use crate::config::types::StoreKind;
use crate::store::cql::examine::{self as cql, Examined as Cql};
use std::time::{Duration, Instant};

/// A round trip to Redis that takes longer than this shows: a message needs two.
const REDIS_SLOW: Duration = Duration::from_millis(2);
/// The same of a majority of Cassandra's copies: a message needs one.
const CQL_SLOW: Duration = Duration::from_millis(10);
/// Clocks that differ by more than this: a node's log warns too.
const CLOCK_MS_MAX: i64 = 2_000;
/// Below this Redis drops a node's subscription when a burst comes.
const SUBSCRIBER_BYTES_MIN: u64 = 64 << 20;
/// What is left of Redis' memory, in parts, before it is said.
const MEMORY_PART_LEFT: u64 = 5;

/// Looks at all.
pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(config) = &settings.redis {
        match redis::examine(config.clone()) {
            Ok(examined) => findings.extend(of_redis(&examined)),
            Err(why) => findings.push(Finding::fails(
                "redis",
                why,
                "every publish: the node starts, or not, and publishers are told `unavailable`",
                "as the line says; see docs/operations.md, Redis",
            )),
        }
    }
    if settings.config.store.kind == StoreKind::Cql {
        match cql::examine(&cql_config(settings)) {
            Ok(examined) => findings.extend(of_cql(&examined)),
            Err(why) => findings.push(Finding::fails(
                "cassandra",
                why,
                "every publish: the node starts, or not, and publishers are told `unavailable`",
                "as the line says; see docs/operations.md, Running Cassandra for Roomwire",
            )),
        }
    }
    findings.extend(settings.jwks.as_ref().map(key_set));
    findings
}

fn key_set(source: &Source) -> Finding {
    let began = Instant::now();
    match Reader::new(source.clone()).and_then(|mut reader| reader.read()) {
        Ok(Found::Set(set, _)) => {
            let skipped = set.skipped();
            let unused = if skipped.is_empty() { String::new() } else { format!("; not used: {}", skipped.join("; ")) };
            let took = millis(began.elapsed());
            Finding::fine("key set", format!("{} keys from {source} in {took:.0} ms{unused}", set.len()))
        }
        // Only a reader that has read before is told this.
        Ok(Found::Unchanged(_)) => Finding::unknown("key set", format!("{source}: unchanged")),
        Err(why) => Finding::fails(
            "key set",
            why,
            "every client with a token of this issuer: the node starts, and refuses them",
            "as the line says; see docs/operations.md, Keys of an issuer",
        ),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Median and 99th percentile; `times` ascending.
fn percentiles(times: &[Duration]) -> (Duration, Duration) {
    let at = |percent: usize| times.get(times.len() * percent / 100).or(times.last()).copied().unwrap_or_default();
    (at(50), at(99))
}

fn of_redis(redis: &Redis) -> Vec<Finding> {
    let (half, worst) = percentiles(&redis.round_trips);
    let found = format!(
        "{}: a round trip takes {:.2} ms, 99th percentile {:.2} ms",
        redis.address,
        millis(half),
        millis(worst)
    );
    let mut findings = vec![if half <= REDIS_SLOW {
        Finding::fine("redis", found)
    } else {
        let limits = format!("every message's latency: two round trips, {:.1} ms", 2.0 * millis(half));
        Finding::limits("redis", found, limits, "a Redis in the same zone as the nodes")
    }];
    findings.push(redis_memory(redis));
    findings.push(redis_clock(redis.clock_ahead_ms));
    findings.push(redis_subscribers(redis.subscriber_bytes_max));
    findings.extend(redis_replicas(redis));
    findings
}

fn redis_memory(redis: &Redis) -> Finding {
    let (used, most) = (redis.memory_used, redis.memory_max);
    if most == 0 {
        let found = format!("{} MiB used, no maxmemory", used >> 20);
        return Finding::fine("redis memory", found);
    }
    let found = format!("{} of {} MiB used, noeviction", used >> 20, most >> 20);
    // A room with recent messages takes some 0.1 MB.
    let rooms = most.saturating_sub(used) / 100_000;
    if most.saturating_sub(used) >= most / MEMORY_PART_LEFT {
        return Finding::fine("redis memory", found);
    }
    let limits = format!("active rooms to about {rooms} more; at the limit publishers are told `unavailable`");
    Finding::limits("redis memory", found, limits, format!("redis-cli config set maxmemory {}", most * 2))
}

fn redis_clock(ahead_ms: i64) -> Finding {
    let found = format!("the clock of Redis is {ahead_ms} ms ahead of this machine's");
    if ahead_ms.abs() <= CLOCK_MS_MAX {
        return Finding::fine("redis clock", found);
    }
    let limits = format!("message times and token expiry: off by {} ms between machines", ahead_ms.abs());
    Finding::limits("redis clock", found, limits, "timedatectl set-ntp true on both, or chrony")
}

fn redis_subscribers(bytes: Option<u64>) -> Finding {
    let name = "redis subscribers";
    match bytes {
        None => Finding::unknown(name, "client-output-buffer-limit cannot be asked by this user"),
        Some(bytes) if bytes == 0 || bytes >= SUBSCRIBER_BYTES_MIN => {
            Finding::fine(name, format!("client-output-buffer-limit pubsub is {} MiB", bytes >> 20))
        }
        Some(bytes) => Finding::limits(
            name,
            format!("client-output-buffer-limit pubsub is {} MiB", bytes >> 20),
            "bursts: a node that lags by more is dropped, and fetches what it missed from the store",
            "redis-cli config set client-output-buffer-limit \"pubsub 64mb 32mb 60\"",
        ),
    }
}

/// Only where somebody fails over: else there is nothing to lose.
fn redis_replicas(redis: &Redis) -> Option<Finding> {
    let (name, least) = ("redis replicas", redis.replicas_min?);
    if !redis.by_sentinel {
        return None;
    }
    let found = format!("{} connected, min-replicas-to-write is {least}", redis.replicas);
    if redis.replicas == 0 {
        let limits = "a failover: nobody is there to take over";
        return Some(Finding::limits(name, found, limits, "start a replica (replicaof in its redis.conf)"));
    }
    if least == 0 {
        let limits = "a split: what an old master accepts while it is cut off dies with it";
        let cure = "redis-cli config set min-replicas-to-write 1, and min-replicas-max-lag 2";
        return Some(Finding::limits(name, found, limits, cure));
    }
    Some(Finding::fine(name, found))
}

fn of_cql(cql: &Cql) -> Vec<Finding> {
    let (half, worst) = percentiles(&cql.reads);
    let nodes = cql.nodes;
    let found = format!(
        "{nodes} nodes, schema as it should be; a read takes {:.1} ms, 99th percentile {:.1} ms",
        millis(half),
        millis(worst)
    );
    let mut findings = vec![if half <= CQL_SLOW {
        Finding::fine("cassandra", found)
    } else {
        let limits = format!("every message's latency: {:.0} ms at least", millis(half));
        Finding::limits(
            "cassandra",
            found,
            limits,
            "nodes in the same region, with store.cql.dc set to their data centre",
        )
    }];
    findings.push(match cql.copies {
        None => Finding::unknown("cassandra copies", "the keyspace's replication strategy is not known"),
        Some(copies) if copies >= 3 => Finding::fine("cassandra copies", format!("{copies} of each message")),
        Some(copies) => Finding::limits(
            "cassandra copies",
            format!("{copies} of each message"),
            "durability: no node may be lost, as a majority of fewer than three copies is all of them",
            "ALTER KEYSPACE with three copies in each data centre, then nodetool repair",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn redis() -> Redis {
        Redis {
            address: "127.0.0.1:6379".to_owned(),
            round_trips: vec![Duration::from_micros(200); 50],
            clock_ahead_ms: 3,
            memory_used: 1 << 20,
            memory_max: 0,
            subscriber_bytes_max: Some(64 << 20),
            replicas: 1,
            replicas_min: Some(1),
            by_sentinel: true,
        }
    }

    fn verdict(findings: &[Finding], name: &str) -> Verdict {
        findings.iter().find(|finding| finding.name == name).map_or(Verdict::Unknown, |finding| finding.verdict)
    }

    #[test]
    fn a_good_redis_is_fine_and_each_bad_setting_is_named() {
        assert!(of_redis(&redis()).iter().all(|finding| finding.verdict == Verdict::Fine));
        let bad = Redis {
            round_trips: vec![Duration::from_millis(30); 50],
            clock_ahead_ms: -5_000,
            memory_used: 95 << 20,
            memory_max: 100 << 20,
            subscriber_bytes_max: Some(32 << 20),
            replicas_min: Some(0),
            ..redis()
        };
        let findings = of_redis(&bad);
        for name in ["redis", "redis memory", "redis clock", "redis subscribers", "redis replicas"] {
            assert_eq!(verdict(&findings, name), Verdict::Limits, "{name}");
        }
        assert!(findings.iter().all(|finding| !finding.limits.is_empty() && !finding.cure.is_empty()));
        assert!(findings[0].limits.contains("60.0 ms"), "{}", findings[0].limits);
        let alone = Redis { by_sentinel: false, replicas: 0, subscriber_bytes_max: None, ..redis() };
        assert_eq!(verdict(&of_redis(&alone), "redis subscribers"), Verdict::Unknown);
        assert!(of_redis(&alone).iter().all(|finding| finding.name != "redis replicas"));
    }

    #[test]
    fn few_copies_and_a_far_cluster_are_named() {
        let near = Cql { nodes: 3, reads: vec![Duration::from_millis(2); 30], copies: Some(3) };
        assert!(of_cql(&near).iter().all(|finding| finding.verdict == Verdict::Fine));
        let far = Cql { nodes: 1, reads: vec![Duration::from_millis(80); 30], copies: Some(1) };
        assert!(of_cql(&far).iter().all(|finding| finding.verdict == Verdict::Limits));
    }
}
