//! The requests of presence and rosters as pipelines, and Redis' answers as the contract's.
//!
//! What a life left behind is found by two sets: its users and its rooms. Each pipeline adds to them first and takes from
//! them last, so that they hold at least what stands elsewhere, wherever it breaks off. All keys of one command have one
//! hash tag, so that the same commands serve a Redis Cluster, one step of a request after the other.

use super::NodeCard;
use super::scripts::{Script, Tagged, life_key, life_tag, nodes_key, state_key};
use crate::bus::redis::commands::Dialect;
use crate::bus::redis::connect::text;
use crate::bus::redis::foreign::is_wrong_type;
use redis::{Cmd, Value, cmd};
use roomwire_engine::cluster::{DeadLife, Life, MemberChange, RoomAnswer, RoomChanges, UserChange, UserState};
use roomwire_engine::names::{RoomId, User, UserId};
use std::sync::Arc;

/// What is said of users, to every node and to other software.
pub(in crate::bus::redis) const PRESENCE_CHANNEL: &str = "presence:updates";
/// How long a user's keys live; they are written again every 100 s.
const USER_SECS: u64 = 300;
/// How long a roster lives; it is written again every 600 s.
const ROSTER_SECS: u64 = 1_800;
/// The most users of one script call, which Redis carries out at a stretch.
pub(super) const CALL_USERS_MAX: usize = 64;
/// The most users that an answer names.
const LISTED_USERS_MAX: usize = 100;

/// Commands in three steps: what must stand before, what is asked, what may go after.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) before: Vec<Tagged>,
    pub(super) asked: Vec<Tagged>,
    pub(super) after: Vec<Tagged>,
}

impl Calls {
    /// One command.
    pub(super) fn one(tag: impl Into<String>, command: Cmd) -> Calls {
        Calls { asked: vec![Tagged { tag: tag.into(), command }], ..Calls::default() }
    }

    pub(super) fn ask(&mut self, tag: impl Into<String>, command: Cmd) {
        self.asked.push(Tagged { tag: tag.into(), command });
    }
}

/// `SADD` or `SREM` on one of the sets of a life; nothing for nobody.
fn change_set(name: &str, (node, life, what): (&str, &str, &str), members: &[&str]) -> Option<Tagged> {
    let mut command = cmd(name);
    command.arg(life_key(node, life, what)).arg(members);
    (!members.is_empty()).then(|| Tagged { tag: life_tag(node, life), command })
}

/// `at_once`: how many users one script call may have; on a cluster each user has a place of its own.
pub(super) fn users(card: &NodeCard, at_once: usize, life: Life, changes: &[UserChange]) -> Calls {
    let life = life.to_string();
    let set = (&*card.node, life.as_str(), "users");
    let of = |online| -> Vec<&str> {
        changes.iter().filter(|change| change.online == online).map(|change| &*change.user).collect()
    };
    let mut calls = Calls::default();
    calls.before.extend(change_set("SADD", set, &of(true)));
    for part in changes.chunks(at_once) {
        let mut call = Script::Users.on_users(part.iter().map(|change| &*change.user));
        call.arg(PRESENCE_CHANNEL).arg(&*card.node).arg(&life).arg(USER_SECS);
        for change in part {
            let what = match (change.online, change.quiet) {
                (true, false) => '+',
                (true, true) => '=',
                (false, _) => '-',
            };
            call.arg(format!("{what}{}", &*change.user));
        }
        calls.ask(part.first().map(|change| state_key(&change.user)).unwrap_or_default(), call);
    }
    calls.after.extend(change_set("SREM", set, &of(false)));
    calls
}

/// How many nodes hold each user; `None` for one whose key is not ours.
pub(super) fn users_answer(values: &[Value], count: usize) -> Option<Vec<Option<u32>>> {
    let mut counts = Vec::with_capacity(count);
    for value in values {
        for number in list(value)? {
            counts.push(u32::try_from(int(number)?).ok());
        }
    }
    (counts.len() == count).then_some(counts)
}

pub(super) fn rosters(card: &NodeCard, dialect: &Dialect, life: Life, rooms: &[RoomChanges]) -> Calls {
    let life = life.to_string();
    let set = (&*card.node, life.as_str(), "rooms");
    let enters = |room: &&RoomChanges| room.changes.iter().any(|change| change.joined && change.edge);
    // A room that was left and entered again in one batch stays.
    let leaves = |room: &&RoomChanges| room.changes.last().is_some_and(|change| !change.joined && change.edge);
    let entered: Vec<&str> = rooms.iter().filter(enters).map(|room| &*room.room).collect();
    let left: Vec<&str> = rooms.iter().filter(leaves).map(|room| &*room.room).collect();
    let mut calls = Calls::default();
    calls.before.extend(change_set("SADD", set, &entered));
    for RoomChanges { room, changes } in rooms {
        let mut call = Script::Roster.on_room(room);
        call.arg(dialect.publish()).arg(dialect.channel(room)).arg(&**room).arg(&*card.node).arg(&life);
        call.arg(&dialect.own_tail).arg(card.join_events_members_max).arg(ROSTER_SECS);
        for MemberChange { user, joined, quiet, .. } in changes {
            let what = match (joined, quiet) {
                (true, false) => "+",
                (true, true) => "=",
                (false, _) => "-",
            };
            call.arg(what).arg(&*user.id).arg(&*user.name);
        }
        calls.ask(&**room, call);
    }
    calls.after.extend(change_set("SREM", set, &left));
    calls
}

pub(super) fn rosters_answer(values: &[Value], count: usize) -> Option<Vec<RoomAnswer>> {
    let answers: Vec<RoomAnswer> = values.iter().map(room_answer).collect::<Option<_>>()?;
    (answers.len() == count).then_some(answers)
}

fn room_answer(value: &Value) -> Option<RoomAnswer> {
    if is_wrong_type(value) {
        return Some(RoomAnswer { told: Vec::new(), counted: None, recount: false });
    }
    let [told, counted, again] = list(value)? else { return None };
    Some(RoomAnswer {
        told: list(told)?.iter().map(|told| Some(int(told)? == 1)).collect::<Option<_>>()?,
        counted: u64::try_from(int(counted)?).ok(),
        recount: int(again)? == 1,
    })
}

/// Fails, and is named, where the key is not ours.
pub(super) fn look_at_nodes(user: &UserId) -> Calls {
    let mut nodes = cmd("HLEN");
    nodes.arg(nodes_key(user));
    Calls::one(state_key(user), nodes)
}

pub(super) fn ask_users(users: &[UserId]) -> Calls {
    let mut calls = Calls::default();
    for user in users {
        let (mut exists, mut nodes) = (cmd("EXISTS"), cmd("HKEYS"));
        exists.arg(state_key(user));
        nodes.arg(nodes_key(user));
        calls.ask(state_key(user), exists);
        calls.ask(state_key(user), nodes);
    }
    calls
}

pub(super) fn users_are(values: &[Value], count: usize) -> Option<Vec<UserState>> {
    let states: Vec<UserState> = values
        .chunks_exact(2)
        .map(|pair| {
            let nodes = if is_wrong_type(&pair[1]) { &[] } else { items(&pair[1])? };
            let nodes: Vec<Arc<str>> = nodes.iter().map(|node| text(node).map(Arc::from)).collect::<Option<_>>()?;
            Some(UserState { online: int(&pair[0])? == 1 || !nodes.is_empty(), nodes })
        })
        .collect::<Option<_>>()?;
    (states.len() == count).then_some(states)
}

pub(super) fn ask_rosters(rooms: &[RoomId]) -> Calls {
    let mut calls = Calls::default();
    for room in rooms {
        let mut call = Script::Members.on_room(room);
        call.arg(LISTED_USERS_MAX);
        calls.ask(&**room, call);
    }
    calls
}

pub(super) fn roster(value: &Value) -> Option<(u64, Vec<User>)> {
    let (count, names) = list(value)?.split_first()?;
    let user = |pair: &[Value]| Some(User { id: UserId::new(text(&pair[0])?), name: Arc::from(text(&pair[1])?) });
    Some((u64::try_from(int(count)?).ok()?, names.chunks_exact(2).map(user).collect::<Option<_>>()?))
}

/// Removes users of a dead life.
pub(super) fn reap_users(dead: &DeadLife, at_once: usize, users: &[String]) -> Calls {
    let mut calls = Calls::default();
    for part in users.chunks(at_once) {
        let mut call = Script::Users.on_users(part.iter().map(String::as_str));
        call.arg(PRESENCE_CHANNEL).arg(&*dead.node).arg(&*dead.life).arg(USER_SECS);
        for user in part {
            call.arg(format!("-{user}"));
        }
        calls.ask(part.first().map(|user| state_key(user)).unwrap_or_default(), call);
    }
    let gone: Vec<&str> = users.iter().map(String::as_str).collect();
    calls.after.extend(change_set("SREM", (&dead.node, &dead.life, "users"), &gone));
    calls
}

/// Removes a part of the members of a dead life from a room.
pub(super) fn purge(card: &NodeCard, dialect: &Dialect, dead: &DeadLife, room: &str, cursor: &str) -> Cmd {
    let mut call = Script::Purge.on_room(room);
    call.arg(dialect.publish()).arg(dialect.channel(room)).arg(room).arg(&*dead.node).arg(&*dead.life);
    call.arg(card.join_events_members_max).arg(cursor);
    call
}

/// The next cursor, and how many were removed.
pub(super) fn purged(value: &Value) -> Option<(String, u64)> {
    if is_wrong_type(value) {
        return Some(("0".to_owned(), 0));
    }
    let [cursor, removed] = list(value)? else { return None };
    Some((text(cursor)?.to_owned(), u64::try_from(int(removed)?).ok()?))
}

pub(super) fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// A list, or a set of RESP3.
pub(super) fn items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) | Value::Set(values) => Some(values),
        _ => None,
    }
}

pub(super) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}
