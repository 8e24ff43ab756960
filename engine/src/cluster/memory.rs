//! The contract in its simplest form: in memory, at once, and never failing. What the scripts do on Redis, for many nodes.
//!
//! The reference for what each request means; tests and the simulator put their faults around it.

use super::{
    Beaten, ClusterEvent, ClusterReply, ClusterRequest, DeadLife, Lease, Life, MemberChange, RoomAnswer, RoomChanges,
    UserState,
};
use crate::names::{RoomId, User, UserId};
use bytes::Bytes;
use roomwire_wire::message::ServerMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A node that was silent for so long is dead.
pub const SILENT_MS_MAX: u64 = 25_000;
/// What is left of an earlier life of a living node is removed so long after the node last asked to keep it.
const KEPT_MS: u64 = 60_000;
/// A dead life is given to another node to reap when the first has not come to its end by then.
const CLAIM_MS: u64 = 10_000;
/// A large room's count is told so often at most.
const RECOUNT_MS: u64 = 1_000;
const LISTED_USERS_MAX: usize = 100;

/// What the bus tells in the course of a request.
#[derive(Clone, Debug)]
pub enum Told {
    /// To every node, the asker too.
    All(ClusterEvent),
    /// To every other node with members of the room; to the asker too if `to_asker`.
    Room {
        /// The room.
        room: RoomId,
        /// The client-visible JSON.
        payload: Bytes,
        /// The asker's members have not heard of it.
        to_asker: bool,
    },
}

#[derive(Clone, Debug)]
struct Leased {
    life: String,
    boot: u64,
    beat_ms: u64,
}

#[derive(Clone, Debug)]
struct Roster {
    name: Arc<str>,
    lives: BTreeMap<Arc<str>, String>,
}

/// Leases, users and rosters of many nodes.
#[derive(Clone, Debug)]
pub struct MemoryCluster {
    memory: u64,
    leases: BTreeMap<Arc<str>, Leased>,
    /// When each dead life is given to a node to reap.
    dead: BTreeMap<(Arc<str>, String), u64>,
    users: BTreeMap<UserId, BTreeMap<Arc<str>, String>>,
    rooms: BTreeMap<RoomId, BTreeMap<UserId, Roster>>,
    counted: BTreeMap<RoomId, (u64, u64)>,
    /// Rooms of more users are told their count in place of who comes and goes; 0 means no limit.
    pub join_events_members_max: u64,
}

impl MemoryCluster {
    /// One that holds nothing; `memory` tells it from others.
    #[must_use]
    pub fn new(memory: u64) -> MemoryCluster {
        MemoryCluster {
            memory,
            leases: BTreeMap::new(),
            dead: BTreeMap::new(),
            users: BTreeMap::new(),
            rooms: BTreeMap::new(),
            counted: BTreeMap::new(),
            join_events_members_max: 0,
        }
    }

    /// Carries out one request of a node; `clock_ms` is the bus' own clock.
    pub fn handle(
        &mut self,
        clock_ms: u64,
        node: &Arc<str>,
        request: ClusterRequest,
        told: &mut Vec<Told>,
    ) -> ClusterReply {
        match request {
            ClusterRequest::Beat { life, take, walking } => {
                ClusterReply::Beaten(Some(self.beat(clock_ms, node, life, take, walking)))
            }
            ClusterRequest::Users { life, changes } => {
                let life = life.to_string();
                let mut counts = Vec::new();
                for change in changes {
                    counts.push(self.user(node, &life, &change.user, change.online, change.quiet, told));
                }
                ClusterReply::Users(Some(counts))
            }
            ClusterRequest::Rosters { life, rooms } => {
                let life = life.to_string();
                let answers = rooms.into_iter().map(|changes| self.room(clock_ms, node, &life, changes, told));
                ClusterReply::Rosters(Some(answers.collect()))
            }
            ClusterRequest::AskUsers { users } => {
                ClusterReply::UsersAre(Some(users.iter().map(|user| self.state(user)).collect()))
            }
            ClusterRequest::AskRoster { room } => {
                let roster = self.rooms.get(&room);
                let count = roster.map_or(0, |roster| roster.len() as u64);
                let user = |(id, known): (&UserId, &Roster)| User { id: id.clone(), name: known.name.clone() };
                let users = roster.into_iter().flatten().take(LISTED_USERS_MAX).map(user).collect();
                ClusterReply::Roster { room, answer: Some((count, users)) }
            }
            ClusterRequest::Reap { dead } => ClusterReply::Reaped(Some(self.reap(&dead, told))),
        }
    }

    /// Where a user is.
    #[must_use]
    pub fn state(&self, user: &UserId) -> UserState {
        let nodes: Vec<Arc<str>> = self.users.get(user).into_iter().flat_map(|lives| lives.keys().cloned()).collect();
        UserState { online: !nodes.is_empty(), nodes }
    }

    /// Who is in a room.
    #[must_use]
    pub fn members(&self, room: &RoomId) -> Vec<UserId> {
        self.rooms.get(room).into_iter().flat_map(|roster| roster.keys().cloned()).collect()
    }

    fn beat(&mut self, now_ms: u64, node: &Arc<str>, life: Life, take: bool, walking: bool) -> Beaten {
        let text = life.to_string();
        let mut lease = Lease::Lost;
        if let Some(held) = self.leases.get_mut(node) {
            if held.life == text {
                held.beat_ms = now_ms;
                lease = Lease::Held;
            } else if held.boot != life.boot {
                lease = Lease::Taken(Arc::from(held.life.as_str()));
            }
        }
        if take && lease == Lease::Lost {
            let taken = Leased { life: text, boot: life.boot, beat_ms: now_ms };
            if let Some(before) = self.leases.insert(node.clone(), taken) {
                self.dead.insert((node.clone(), before.life), now_ms + KEPT_MS);
            }
            lease = Lease::Held;
        }
        if walking {
            let own =
                |(of, earlier): &(Arc<str>, String)| of == node && earlier.starts_with(&format!("{:x}.", life.boot));
            for (_, due_ms) in self.dead.iter_mut().filter(|(dead, _)| own(dead)) {
                *due_ms = now_ms + KEPT_MS;
            }
        }
        let silent = self.leases.iter().filter(|(_, held)| held.beat_ms + SILENT_MS_MAX <= now_ms);
        for node in silent.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            if let Some(held) = self.leases.remove(&node) {
                self.dead.insert((node, held.life), now_ms);
            }
        }
        let mut dead = None;
        if lease == Lease::Held
            && let Some(((node, life), due_ms)) = self.dead.iter_mut().find(|(_, due_ms)| **due_ms <= now_ms)
        {
            *due_ms = now_ms + CLAIM_MS;
            dead = Some(DeadLife { node: node.clone(), life: Arc::from(life.as_str()) });
        }
        Beaten { lease, memory: self.memory, clock_ahead_ms: 0, nodes: self.leases.len() as u32, dead }
    }

    fn user(
        &mut self,
        node: &Arc<str>,
        life: &str,
        user: &UserId,
        online: bool,
        quiet: bool,
        told: &mut Vec<Told>,
    ) -> u32 {
        let lives = self.users.entry(user.clone()).or_default();
        let was_online = !lives.is_empty();
        if online {
            lives.insert(node.clone(), life.to_owned());
        } else if lives.get(node).is_some_and(|held| held == life) {
            lives.remove(node);
        }
        let count = lives.len() as u32;
        if count == 0 {
            self.users.remove(user);
        }
        if was_online != (count > 0) && !quiet {
            told.push(Told::All(ClusterEvent::Presence { user: user.clone(), online: count > 0 }));
        }
        count
    }

    fn room(
        &mut self,
        now_ms: u64,
        node: &Arc<str>,
        life: &str,
        changes: RoomChanges,
        told: &mut Vec<Told>,
    ) -> RoomAnswer {
        let limit = self.join_events_members_max;
        let roster = self.rooms.entry(changes.room.clone()).or_default();
        let mut answer = RoomAnswer::default();
        let mut counts = changes.changes.is_empty();
        for change in changes.changes {
            let before = roster.len() as u64;
            let is_edge = apply(roster, node, life, &change);
            let is_large = limit > 0 && before.max(roster.len() as u64) > limit;
            counts |= is_edge && is_large;
            let is_told = is_edge && !is_large && !change.quiet;
            if is_told {
                told.push(event(&changes.room, &change.user, change.joined, false));
            }
            answer.told.push(is_told);
        }
        let count = roster.len() as u64;
        if count == 0 {
            self.rooms.remove(&changes.room);
        }
        if counts {
            let last = self.counted.get(&changes.room).filter(|(at_ms, _)| at_ms + RECOUNT_MS > now_ms);
            answer.recount = last.is_some_and(|(_, last)| *last != count);
            if last.is_none() {
                self.counted.insert(changes.room.clone(), (now_ms, count));
                answer.counted = Some(count);
                let mut payload = Vec::new();
                ServerMessage::Members { room_id: &changes.room, count, users: None }.write(&mut payload);
                told.push(Told::Room { room: changes.room, payload: Bytes::from(payload), to_asker: false });
            }
        }
        answer
    }

    fn reap(&mut self, dead: &DeadLife, told: &mut Vec<Told>) -> (u64, u64) {
        let is_dead =
            |lives: &BTreeMap<Arc<str>, String>| lives.get(&dead.node).is_some_and(|life| **life == *dead.life);
        let users: Vec<UserId> =
            self.users.iter().filter(|(_, lives)| is_dead(lives)).map(|(user, _)| user.clone()).collect();
        for user in &users {
            self.user(&dead.node, &dead.life, user, false, false, told);
        }
        let mut members = 0;
        for (room, roster) in &mut self.rooms {
            let gone: BTreeSet<UserId> =
                roster.iter().filter(|(_, known)| is_dead(&known.lives)).map(|(user, _)| user.clone()).collect();
            members += gone.len() as u64;
            for id in gone {
                let name = roster.get(&id).map_or_else(|| Arc::from(""), |known| known.name.clone());
                let user = User { id, name };
                let change = MemberChange { user: user.clone(), joined: false, edge: false, quiet: false };
                if apply(roster, &dead.node, &dead.life, &change) {
                    told.push(event(room, &user, false, true));
                }
            }
        }
        self.rooms.retain(|_, roster| !roster.is_empty());
        self.dead.remove(&(dead.node.clone(), dead.life.to_string()));
        (users.len() as u64, members)
    }
}

/// Whether the user is new to the roster, or gone from it.
fn apply(roster: &mut BTreeMap<UserId, Roster>, node: &Arc<str>, life: &str, change: &MemberChange) -> bool {
    let id = &change.user.id;
    if change.joined {
        let is_new = !roster.contains_key(id);
        let known = roster
            .entry(id.clone())
            .or_insert_with(|| Roster { name: change.user.name.clone(), lives: BTreeMap::new() });
        known.name = change.user.name.clone();
        known.lives.insert(node.clone(), life.to_owned());
        return is_new;
    }
    let Some(known) = roster.get_mut(id) else { return false };
    if known.lives.get(node).is_some_and(|held| held == life) {
        known.lives.remove(node);
    }
    known.lives.is_empty() && roster.remove(id).is_some()
}

fn event(room: &RoomId, user: &User, joined: bool, to_asker: bool) -> Told {
    let (user_id, username, room_id, timestamp) = (&*user.id, &*user.name, &**room, 0);
    let message = if joined {
        ServerMessage::UserJoined { user_id, username, room_id, timestamp }
    } else {
        ServerMessage::UserLeft { user_id, username, room_id, timestamp }
    };
    let mut payload = Vec::new();
    message.write(&mut payload);
    Told::Room { room: room.clone(), payload: Bytes::from(payload), to_asker }
}
