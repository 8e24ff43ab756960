//! Keys of another application under names of ours. Redis answers a command on one with WRONGTYPE, and does not say which
//! key it was: that is found out here, and said in the log, once a minute for each key.
//!
//! Such a key costs what it stands for and nothing else: a room is refused, a roster is empty, a user's nodes are unknown.

use super::shared::Shared;
use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, Pipeline, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A key is not named again sooner.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// So many keys are remembered as named; with more, none is named until those are a minute old.
const SAID_MAX: usize = 100;

/// When each key was named last.
pub(super) type Said = HashMap<String, Instant>;

/// Whether Redis says that a key is of another type than the command wants.
pub(super) fn is_wrong_type(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == "WRONGTYPE")
}

/// Names the key that this command failed on.
pub(super) fn name(shared: &Arc<Shared>, connection: &MultiplexedConnection, command: &Cmd) {
    shared.count(|figures| figures.wrong_types_total += 1);
    let keys = keys(command);
    if !shared.may_name(|said| may_name(said, &keys)) {
        return;
    }
    let mut connection = connection.clone();
    tokio::spawn(async move {
        let kinds: Vec<(&String, &Kind)> = keys.iter().filter_map(|key| Some((key, kind(key)?))).collect();
        let mut ask = Pipeline::with_capacity(kinds.len());
        for (key, kind) in &kinds {
            ask.cmd(kind.length).arg(key);
        }
        // Where the connection is lost, the next failure finds out.
        let Ok(lengths) = connection.send_packed_commands(&ask, 0, kinds.len()).await else { return };
        for ((key, kind), length) in kinds.into_iter().zip(lengths) {
            if is_wrong_type(&length) {
                tracing::warn!(
                    key,
                    "another application's key stands in the place of ours, a {}, and what it stands for is refused: \
                     move that application to another database or prefix, and DEL the key",
                    kind.name
                );
            }
        }
    });
}

/// Whether none of these was named of late; from now on they are.
fn may_name(said: &mut Said, keys: &[String]) -> bool {
    said.retain(|_, at| at.elapsed() < SAID_AGAIN);
    if said.len() >= SAID_MAX || keys.iter().any(|key| said.contains_key(key)) {
        return false;
    }
    said.extend(keys.iter().map(|key| (key.clone(), Instant::now())));
    true
}

/// The keys of a command: of a script those that it declares, else the first argument.
fn keys(command: &Cmd) -> Vec<String> {
    let words: Vec<&[u8]> = command
        .args_iter()
        .map(|word| match word {
            Arg::Simple(word) => word,
            _ => &[],
        })
        .collect();
    let text = |word: &&[u8]| String::from_utf8_lossy(word).into_owned();
    if words.first() != Some(&&b"EVALSHA"[..]) {
        return words.get(1).map(text).into_iter().collect();
    }
    let count = words.get(2).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok()).unwrap_or(0);
    words.iter().skip(3).take(count).map(text).collect()
}

/// A type of Redis, and the command that asks for its length: for TYPE a user would need one right more.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    length: &'static str,
}

static HASH: Kind = Kind { name: "hash", length: "HLEN" };
static SORTED_SET: Kind = Kind { name: "sorted set", length: "ZCARD" };
static SET: Kind = Kind { name: "set", length: "SCARD" };
static STRING: Kind = Kind { name: "string", length: "STRLEN" };

/// What a key of ours is; `None` for one that is not ours alone.
fn kind(key: &str) -> Option<&'static Kind> {
    match key.strip_prefix("rw:")?.rsplit(':').next()? {
        "h" | "d0" | "d1" | "rb" | "m" | "n" | "leases" | "memory" => Some(&HASH),
        "p" | "log" | "beats" | "dead" => Some(&SORTED_SET),
        "users" | "rooms" => Some(&SET),
        "mc" => Some(&STRING),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripts::Script;
    use super::*;

    #[test]
    fn every_key_of_a_script_has_a_type() {
        let room = keys(&Script::Head.call("a:b"));
        assert_eq!((room.len(), room[0].as_str()), (6, "rw:{a:b}:h"));
        assert!(room.iter().all(|key| kind(key).is_some()), "{room:?}");
        assert_eq!(keys(redis::cmd("HKEYS").arg("rw:{presence:ada}:n")), ["rw:{presence:ada}:n"]);
        assert_eq!(kind("presence:ada"), None);
    }

    #[test]
    fn a_key_is_named_once_a_minute_and_only_so_many_are() {
        let mut said = Said::new();
        let key = |number: usize| vec![format!("rw:{{r{number}}}:h")];
        assert!(may_name(&mut said, &key(0)));
        assert!(!may_name(&mut said, &key(0)));
        assert_eq!((1..1_000).filter(|number| may_name(&mut said, &key(*number))).count(), SAID_MAX - 1);
    }
}
