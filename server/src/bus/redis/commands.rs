//! Each request of the contract as one command, and Redis's answer as the contract's reply.

use super::connect::text;
use super::payload::signed;
use super::scripts::Script;
use redis::{Cmd, Value, cmd};
use roomwire_engine::bus::{
    Begun, BusReply, BusRequest, DedupeEntry, DedupeKey, Finished, Head, LogPage, PublishItem, SequenceItem, Sequenced,
    Voiding, row_of_payload,
};
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::{From, ReadRow};

/// The channel of hints that every node hears.
pub const CONTROL_CHANNEL: &str = "rw:ctl";

/// What commands need to know of this node.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// The last member of this node's own events.
    pub own_tail: String,
    /// Sharded pub/sub: a room's channel lies on the room's own cluster node.
    pub is_sharded: bool,
}

impl Dialect {
    /// The channel of a room. Without sharding it has the plain name that other software expects.
    #[must_use]
    pub fn channel(&self, room: &str) -> String {
        if self.is_sharded { format!("room:{{{room}}}") } else { format!("room:{room}") }
    }

    /// The room of a channel.
    #[must_use]
    pub fn room<'c>(&self, channel: &'c str) -> Option<&'c str> {
        let room = channel.strip_prefix("room:")?;
        if self.is_sharded { room.strip_prefix('{')?.strip_suffix('}') } else { Some(room) }
    }

    /// `PUBLISH`, or `SPUBLISH`.
    #[must_use]
    pub fn publish(&self) -> &'static str {
        if self.is_sharded { "SPUBLISH" } else { "PUBLISH" }
    }
}

/// What was asked, as far as its answer needs it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The room.
    pub room: RoomId,
    /// The kind of request.
    pub kind: Kind,
}

impl Asked {
    /// The request once more, if it has no answer and must not be lost.
    pub(super) fn again(&self) -> Option<BusRequest> {
        let Kind::LogRead { generation, seq, user } = &self.kind else { return None };
        Some(BusRequest::LogRead { room: self.room.clone(), generation: *generation, seq: *seq, user: user.clone() })
    }
}

/// The kind of a request, with what its reply repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after `BusRequest`; a count is that of the items")]
pub enum Kind {
    Sequence(usize),
    Publish(usize),
    Void1 { seq: u64 },
    Void2 { seq: u64 },
    Head,
    Begin,
    Finish,
    Retire,
    Ephemeral,
    Log,
    LogRead { generation: u64, seq: u64, user: UserId },
}

/// A request as a command. `key` is what the nodes vouch with. `None` for what is not sent here, or cannot be sent.
#[must_use]
pub fn command(dialect: &Dialect, key: &str, request: &BusRequest) -> Option<(Kind, Cmd)> {
    let room: &str = request.room();
    Some(match request {
        BusRequest::Sequence { items, .. } => (Kind::Sequence(items.len()), sequence(room, items)),
        BusRequest::Publish { items, .. } => (Kind::Publish(items.len()), publish(dialect, key, room, items)),
        BusRequest::Void1 { generation, seq, min_age_ms, .. } => {
            let mut call = Script::Void1.call(room);
            call.arg(generation).arg(seq).arg(min_age_ms);
            (Kind::Void1 { seq: *seq }, call)
        }
        BusRequest::Void2 { generation, seq, .. } => {
            let mut call = Script::Void2.call(room);
            call.arg(key).arg(room).arg(generation).arg(seq);
            (Kind::Void2 { seq: *seq }, call)
        }
        BusRequest::Head { .. } => (Kind::Head, Script::Head.call(room)),
        BusRequest::Begin { token, .. } => {
            let mut call = Script::Begin.call(room);
            call.arg(token);
            (Kind::Begin, call)
        }
        BusRequest::Finish { token, generation, last, dedupe, .. } => {
            let mut call = Script::Finish.call(room);
            call.arg(key).arg(room).arg(token).arg(generation).arg(last);
            for DedupeEntry { key, seq, generation, timestamp } in dedupe {
                call.arg(dedupe_field(key)).arg(format!("{seq}:{generation}:{timestamp}"));
            }
            (Kind::Finish, call)
        }
        BusRequest::Retire { generation, .. } => {
            let mut call = Script::Retire.call(room);
            call.arg(generation);
            (Kind::Retire, call)
        }
        BusRequest::Ephemeral { payload, .. } => {
            let mut publish = cmd(dialect.publish());
            publish.arg(dialect.channel(room)).arg(signed(payload, &dialect.own_tail)?);
            (Kind::Ephemeral, publish)
        }
        BusRequest::Log { after, before, limit, from, .. } => {
            let mut call = Script::Log.call(room);
            let from = if *from == From::Oldest { "oldest" } else { "newest" };
            call.arg(after).arg(before).arg(limit).arg(from);
            (Kind::Log, call)
        }
        BusRequest::LogRead { generation, seq, user, .. } => {
            let mut call = Script::LogRead.call(room);
            call.arg(generation).arg(seq).arg(&**user);
            (Kind::LogRead { generation: *generation, seq: *seq, user: user.clone() }, call)
        }
        BusRequest::Subscribe { .. } | BusRequest::Unsubscribe { .. } => return None,
    })
}

fn sequence(room: &str, items: &[SequenceItem]) -> Cmd {
    let mut call = Script::Sequence.call(room);
    for SequenceItem { key, attempt, timestamp, .. } in items {
        call.arg(dedupe_field(key)).arg(attempt).arg(timestamp);
    }
    call
}

fn publish(dialect: &Dialect, key: &str, room: &str, items: &[PublishItem]) -> Cmd {
    let mut call = Script::Publish.call(room);
    call.arg(key).arg(dialect.publish()).arg(dialect.channel(room));
    for item in items {
        call.arg(item.generation).arg(item.seq).arg(dedupe_field(&item.key)).arg(item.attempt).arg(&item.payload[..]);
    }
    call
}

/// Who and the client's id as one field: a user id has no `/`.
fn dedupe_field(key: &DedupeKey) -> String {
    format!("{}/{}", &*key.user, key.client_id)
}

/// The answer of Redis as a reply; `None` where it does not fit what was asked.
#[must_use]
pub fn reply(asked: &Asked, value: &Value) -> Option<BusReply> {
    let room = asked.room.clone();
    let word = match value {
        Value::Okay => Some("OK"),
        Value::SimpleString(word) => Some(word.as_str()),
        _ => None,
    };
    if word == Some("NEED_INIT") {
        return Some(BusReply::NeedInit { room });
    }
    if let Some(server) = word.and_then(|word| word.strip_prefix("ABSENT ")) {
        // Sixteen of a replication id's forty random digits tell servers apart.
        return Some(BusReply::Absent { room, server: u64::from_str_radix(server.get(..16)?, 16).ok()? });
    }
    Some(match &asked.kind {
        Kind::Sequence(count) => {
            let answers = list(value)?.iter().map(sequenced).collect::<Option<Vec<_>>>()?;
            (answers.len() == *count).then_some(BusReply::Sequenced { room, answers })?
        }
        Kind::Publish(count) => {
            let answers = list(value)?.iter().map(|answer| Some(number(answer)? == 1)).collect::<Option<Vec<_>>>()?;
            (answers.len() == *count).then_some(BusReply::Published { room, answers })?
        }
        Kind::Void1 { seq } => {
            let answer = match word? {
                "OK" => Voiding::Ok,
                "GONE" => Voiding::Gone,
                "DECIDED" => Voiding::Decided,
                "WAIT" => Voiding::Wait,
                _ => return None,
            };
            BusReply::Voiding { room, seq: *seq, answer }
        }
        Kind::Void2 { seq } => {
            let applied = match word? {
                "OK" => true,
                "GONE" => false,
                _ => return None,
            };
            BusReply::Voided { room, seq: *seq, applied }
        }
        Kind::Head => BusReply::Head { room, head: head(value)? },
        Kind::Begin => {
            let answer = match word? {
                "OK" => Begun::Ok,
                "LIVE" => Begun::Live,
                "WAIT" => Begun::Wait,
                _ => return None,
            };
            BusReply::Begun { room, answer }
        }
        Kind::Finish => {
            let answer = match word? {
                "OK" => Finished::Ok,
                "LIVE" => Finished::Live,
                "REFUSED" => Finished::Refused,
                _ => return None,
            };
            BusReply::Finished { room, answer }
        }
        Kind::Retire => (word? == "OK").then_some(BusReply::Retired { room })?,
        Kind::Log => {
            let log = Box::new(log(&asked.room, list(value)?)?);
            BusReply::Log { room, log }
        }
        Kind::Ephemeral | Kind::LogRead { .. } => return None,
    })
}

/// A page of the log. An entry that is no message of the room makes all of it worthless: the store has the truth.
fn log(room: &RoomId, values: &[Value]) -> Option<LogPage> {
    let [generation, floor, cut, entries @ ..] = values else { return None };
    let row = |entry: &[Value]| {
        let [Value::BulkString(payload), readers] = entry else { return None };
        let read_by = text(readers)?.split(' ').filter(|reader| !reader.is_empty()).map(Box::from).collect();
        Some(ReadRow { row: row_of_payload(room, payload)?, read_by })
    };
    let rows = entries.chunks(2).map(row).collect::<Option<Vec<_>>>()?;
    Some(LogPage { generation: number(generation)?, floor: number(floor)?, rows, cut: number(cut)? == 1 })
}

fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn numbers<const COUNT: usize>(value: &Value) -> Option<[u64; COUNT]> {
    let numbers: Vec<u64> = list(value)?.iter().map(number).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

fn sequenced(value: &Value) -> Option<Sequenced> {
    let [kind, generation, seq, rest] = numbers(value)?;
    Some(match kind {
        1 => Sequenced::Mine { generation, seq, timestamp: rest },
        2 => Sequenced::Wait { generation, seq, age_ms: rest },
        3 => Sequenced::Done { generation, seq, timestamp: rest },
        4 => Sequenced::Busy { generation, seq, age_ms: rest },
        _ => return None,
    })
}

fn head(value: &Value) -> Option<Head> {
    let [generation, base, seq, stable, pending, age_ms] = numbers(value)?;
    Some(Head { generation, base, seq, stable, pending: (pending != 0).then_some((pending, age_ms)) })
}
