//! A Redis Cluster: which node serves which slot, asked at the start, at every sign of a change, and now and then.
//!
//! The bus keeps one command connection per master and sends each room's commands to the one that serves the room's slot.
//! While a slot moves its commands fail and are tried again: they are never sent on by hand, so that none is carried out
//! twice behind our back.

use super::config::{Address, Servers};
use super::connect::{ConnectError, NoPush, open};
use super::shared::{Inward, Shared};
use redis::{Value, cmd};
use std::sync::Arc;
use std::time::Duration;

/// How many slots every cluster has.
pub(super) const SLOTS: usize = 16_384;
/// How often the nodes are asked without a sign of a change.
const LOOK: Duration = Duration::from_secs(5);
/// The least time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(200);

/// A part of the slots, and the master that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Address,
}

/// The slot of a hash tag: CRC-16/XMODEM of what stands between the braces.
pub(super) fn slot(tag: &str) -> usize {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    });
    usize::from(crc) % SLOTS
}

/// Asks the known nodes, one after the other, who serves what.
///
/// # Errors
/// That of the last node asked.
pub(super) async fn topology(shared: &Shared) -> Result<Vec<Range>, ConnectError> {
    let mut last = ConnectError::Operator("bus.redis.cluster names no node".to_owned());
    for node in shared.nodes() {
        match ask(shared, &node).await {
            Ok(ranges) => {
                shared.learn_nodes(ranges.iter().map(|range| &range.master));
                return Ok(ranges);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(shared: &Shared, node: &Address) -> Result<Vec<Range>, ConnectError> {
    let config = &shared.config;
    let mut connection = open(config, node, &config.login, 0, None::<NoPush>).await?;
    let mut slots = cmd("CLUSTER");
    slots.arg("SLOTS");
    let value = connection.send_packed_command(&slots).await;
    let value = value.map_err(|error| ConnectError::Away(format!("Redis at {node}: {error}")))?;
    if let Value::ServerError(error) = &value {
        let details = error.details().unwrap_or_default();
        return Err(ConnectError::Operator(format!(
            "Redis at {node} tells no cluster's slots ({} {details}): check bus.redis.cluster, or leave it out",
            error.code()
        )));
    }
    match ranges(&value, node) {
        Some(ranges) if !ranges.is_empty() => Ok(ranges),
        _ => Err(ConnectError::Away(format!("Redis at {node} knows of no node that serves slots"))),
    }
}

/// CLUSTER SLOTS: `[first, last, [host, port, ...], replicas...]` each. A host may be left out: it is the asked node's.
fn ranges(value: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(entries) = value else { return None };
    let range = |entry: &Value| {
        let Value::Array(parts) = entry else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = super::connect::text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&asked.host);
        let slot = |number: &i64| u16::try_from(*number).ok().filter(|slot| usize::from(*slot) < SLOTS);
        let master = Address { host: host.to_owned(), port: u16::try_from(*port).ok()? };
        Some(Range { first: slot(first)?, last: slot(last)?, master })
    };
    entries.iter().map(range).collect()
}

/// Looks again for as long as the bus lives, and tells it what has changed.
pub(super) async fn follow(shared: Arc<Shared>, mut known: Vec<Range>) {
    debug_assert!(matches!(shared.config.servers, Servers::Cluster(_)), "asked for on a cluster only");
    while !shared.inward.is_closed() {
        tokio::time::sleep(LOOK_MIN).await;
        let _ = tokio::time::timeout(LOOK, shared.doubt_topology.notified()).await;
        match topology(&shared).await {
            Ok(mut ranges) => {
                ranges.sort_by_key(|range| range.first);
                shared.works("cluster");
                if ranges != known {
                    known.clone_from(&ranges);
                    let _ = shared.inward.send(Inward::Topology(ranges)).await;
                }
            }
            Err(error) => shared.trouble("cluster", error.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT tells them.
        assert_eq!([slot("foo"), slot("123456789"), slot("lobby")], [12_182, 12_739, slot("lobby")]);
        assert!(slot("") == 0 && slot("user:ada") < SLOTS);
    }

    #[test]
    fn a_node_that_knows_no_name_of_its_own_is_the_asked_one() {
        let asked = Address { host: "seed".to_owned(), port: 7_000 };
        let node = |host: Value| Value::Array(vec![host, Value::Int(7_001), Value::BulkString(b"id".to_vec())]);
        let entry = |host| Value::Array(vec![Value::Int(0), Value::Int(16_383), node(host)]);
        let host =
            |value| ranges(&Value::Array(vec![entry(value)]), &asked).map(|ranges| ranges[0].master.host.clone());
        assert_eq!(host(Value::Nil).as_deref(), Some("seed"));
        assert_eq!(host(Value::BulkString(b"10.0.0.1".to_vec())).as_deref(), Some("10.0.0.1"));
        assert_eq!(ranges(&Value::Array(vec![Value::Nil]), &asked), None);
    }
}
