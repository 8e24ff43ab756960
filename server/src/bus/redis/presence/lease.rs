//! A node's lease: who it says it is, the beat as a command, and whether it may start at all.
//!
//! A lease is held by a life of a process. A process that crashed leaves it behind: where this machine can see that it is
//! gone, its successor takes the lease over at once; else it waits until the lease was silent for 25 s. A lease that goes
//! on being renewed meanwhile is another living process, and then this one must not start.

use super::calls::{int, list};
use super::scripts::Script;
use crate::bus::redis::connect::text;
use redis::{Cmd, Value};
use roomwire_engine::cluster::{Beaten, DeadLife, Lease, Life};
use serde::{Deserialize, Serialize};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a lease that is in the way is looked at, and for how long.
pub(super) const LOOK: Duration = Duration::from_secs(1);
pub(super) const LOOKS_MAX: u32 = 40;
/// A clock that is off by more is said.
pub(super) const SKEW_MS_MAX: i64 = 2_000;

/// Who this node is to the others.
#[derive(Clone, Debug)]
pub struct NodeCard {
    /// `node.id`.
    pub node: Arc<str>,
    /// Differs at each start.
    pub boot: u64,
    /// Which store it writes to: nodes of one cluster share one.
    pub store: String,
    /// Rooms of more users than this are told their count in place of who comes and goes; 0 means no limit.
    pub join_events_members_max: u32,
    process: Process,
}

/// A process, as others name it and as its own machine finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Process {
    node: String,
    host: String,
    pid: u32,
    since_ms: u64,
    store: String,
    /// The boot of the machine and the namespace in which the pid means something.
    machine: String,
    /// When the process began, in the machine's own ticks: tells it from a later one of the same pid.
    began: String,
}

impl NodeCard {
    /// The card of this process.
    #[must_use]
    pub fn new(node: &str, boot: u64, store: String, join_events_members_max: u32) -> NodeCard {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let pid = std::process::id();
        let began = began(pid).unwrap_or_default();
        let process = Process {
            node: node.to_owned(),
            host,
            pid,
            since_ms: unix_ms(),
            store: store.clone(),
            machine: machine(),
            began,
        };
        NodeCard { node: Arc::from(node), boot, store, join_events_members_max, process }
    }

    fn json(&self) -> String {
        // Strings and numbers only: nothing that could fail.
        serde_json::to_string(&self.process).unwrap_or_default()
    }

    /// How this node is marked in its own events.
    #[must_use]
    pub fn from(&self) -> String {
        format!("{}.{:x}", self.node, self.boot)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), space.display())
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold anything, so counting begins behind it.
fn began(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

impl Process {
    /// Whether this machine knows that the process has ended.
    fn has_ended(&self) -> bool {
        !self.began.is_empty() && self.machine == machine() && began(self.pid).is_none_or(|began| began != self.began)
    }

    fn describe(&self, now_ms: u64) -> String {
        let minutes = now_ms.saturating_sub(self.since_ms) / 60_000;
        let age = match minutes {
            0 => "less than a minute".to_owned(),
            1..120 => format!("{minutes} min"),
            _ => format!("{} h", minutes / 60),
        };
        format!("host {}, pid {}, up for {age}", self.host, self.pid)
    }
}

/// What a beat is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    Beat,
    Take { over: &'a str },
    Leave,
}

/// A beat. `memory` names the memory that answers, where it has no name yet.
pub(super) fn beat(card: &NodeCard, life: Life, what: What<'_>, walking: bool, memory: &str) -> Cmd {
    let (name, over) = match what {
        What::Beat => ("beat", ""),
        What::Take { over } => ("take", over),
        What::Leave => ("leave", ""),
    };
    let mut call = Script::Beat.on_nodes();
    call.arg(name).arg(&*card.node).arg(life.to_string()).arg(&card.store).arg(card.json()).arg(memory);
    call.arg(u8::from(walking)).arg(over);
    call
}

/// Keeps a dead life from being given to another node, or says that nothing is left of it.
pub(super) fn dead(dead: &DeadLife, is_reaped: bool) -> Cmd {
    let mut call = Script::Beat.on_nodes();
    call.arg(if is_reaped { "reaped" } else { "claim" }).arg("").arg(format!("{} {}", dead.node, dead.life));
    call
}

/// The answer to a beat.
pub(super) struct Answer {
    verdict: Verdict,
    other: Process,
    /// The life of whoever is in the way.
    pub(super) other_life: String,
    /// Its last beat, as text: only whether it changes matters.
    pub(super) other_beat: String,
    pub(super) now_ms: u64,
    memory: u64,
    nodes: u32,
    dead: Option<DeadLife>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Held,
    Lost,
    /// Another process has this node's id.
    Taken,
    /// Another node has another store.
    Store,
}

impl Answer {
    pub(super) fn of(value: &Value) -> Option<Answer> {
        let [verdict, card, life, beat, now, memory, nodes, dead] = list(value)? else { return None };
        let digest = sha1_smol::Sha1::from(text(memory)?).digest().bytes();
        let dead = text(dead)?.split_once(' ');
        Some(Answer {
            verdict: match text(verdict)? {
                "held" => Verdict::Held,
                "lost" => Verdict::Lost,
                "taken" => Verdict::Taken,
                "store" => Verdict::Store,
                _ => return None,
            },
            other: serde_json::from_str(text(card)?).unwrap_or_default(),
            other_life: text(life)?.to_owned(),
            other_beat: text(beat)?.to_owned(),
            now_ms: text(now)?.parse().ok()?,
            memory: u64::from_be_bytes(digest[..8].try_into().ok()?),
            nodes: u32::try_from(int(nodes)?).ok()?,
            dead: dead.map(|(node, life)| DeadLife { node: Arc::from(node), life: Arc::from(life) }),
        })
    }

    pub(super) fn is_held(&self) -> bool {
        self.verdict == Verdict::Held
    }

    /// Whether the lease in the way is one that a process of this machine left behind when it ended.
    pub(super) fn is_left_behind(&self) -> bool {
        self.verdict == Verdict::Taken && self.other.has_ended()
    }

    /// Why the node cannot run beside whoever is in the way: cause and cure.
    pub(super) fn refusal(&self, card: &NodeCard) -> String {
        let other = self.other.describe(self.now_ms);
        if self.verdict == Verdict::Taken {
            return format!(
                "node.id `{}` is taken: another process that is alive has it ({other}): give each node a node.id of its own",
                card.node
            );
        }
        let name = &self.other.node;
        if card.store.starts_with("embedded") || self.other.store.starts_with("embedded") {
            return format!(
                "node `{name}` ({other}) is alive on this Redis, and an embedded store knows only its own node's messages: a \
                 cluster needs store.kind = cql on every node; for one node alone stop the other, or give each a Redis of its own"
            );
        }
        format!(
            "node `{name}` ({other}) is alive on this Redis with another store ({}; here {}): the nodes of a cluster share one: \
             check store.cql.keyspace and store.cql.nodes, or give each cluster a Redis of its own",
            self.other.store, card.store
        )
    }

    /// As the contract has it. `sent_ms` and `heard_ms` are this machine's clock.
    pub(super) fn beaten(self, card: &NodeCard, sent_ms: u64, heard_ms: u64) -> Beaten {
        let lease = match self.verdict {
            Verdict::Held => Lease::Held,
            Verdict::Lost => Lease::Lost,
            Verdict::Taken | Verdict::Store => Lease::Taken(Arc::from(self.refusal(card))),
        };
        let here_ms = sent_ms / 2 + heard_ms / 2;
        let clock_ahead_ms = i64::try_from(self.now_ms).unwrap_or(0) - i64::try_from(here_ms).unwrap_or(0);
        Beaten { lease, memory: self.memory, clock_ahead_ms, nodes: self.nodes, dead: self.dead }
    }
}

/// This machine's clock.
pub(super) fn clock_ms() -> u64 {
    unix_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_this_machine_is_known_to_live_or_not() {
        let here = NodeCard::new("n1", 1, "embedded".to_owned(), 0).process;
        assert!(!here.has_ended());
        assert!(Process { began: "1".to_owned(), ..here.clone() }.has_ended(), "a later process of the same pid");
        assert!(Process { pid: u32::MAX, ..here.clone() }.has_ended());
        assert!(!Process { pid: u32::MAX, machine: "elsewhere".to_owned(), ..here.clone() }.has_ended());
        assert!(!Process { pid: u32::MAX, began: String::new(), ..here }.has_ended());
    }
}
