//! A room's home: its membership over all shards of the node. In a cluster the bridge is told of each user's coming and
//! going here, and says what of it the members are told.

use super::Engine;
use super::slab::{HashSeed, Named};
use crate::cluster::MemberChange;
use crate::mesh::{Asker, ToBridge, ToShard};
use crate::names::{ConnectionRef, RoomId, ShardId, User};
use bytes::Bytes;
use hashbrown::HashTable;
use roomwire_wire::id::USER_ROOM_PREFIX;
use roomwire_wire::message::{Member, ServerMessage};
use smallvec::SmallVec;

/// The most users that `members` lists.
const LISTED_USERS_MAX: usize = 100;
/// A roster is searched from end to end up to this size, and by hash beyond.
const SCANNED_USERS_MAX: usize = 16;
/// Milliseconds between two counts of a large room.
const RECOUNT_MS: u64 = 1_000;

/// Connections in a room by shard.
#[derive(Debug, Default)]
struct ShardCounts(SmallVec<[(ShardId, u32); 2]>);

impl ShardCounts {
    fn add(&mut self, shard: ShardId) {
        match self.0.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, count)) => *count += 1,
            None => self.0.push((shard, 1)),
        }
    }

    fn remove(&mut self, shard: ShardId) {
        let Some(at) = self.0.iter().position(|(known, _)| *known == shard) else { return };
        self.0[at].1 -= 1;
        if self.0[at].1 == 0 {
            self.0.swap_remove(at);
        }
    }

    fn shards(&self) -> SmallVec<[ShardId; 8]> {
        self.0.iter().map(|(shard, _)| *shard).collect()
    }
}

/// One room as its home knows it.
pub(super) struct RoomHome {
    room: RoomId,
    roster: Roster,
    shards: ShardCounts,
    /// Its count changed and is told when a second has passed since `counted_ms`.
    recount: bool,
    counted_ms: u64,
}

impl RoomHome {
    pub(super) fn room(&self) -> &RoomId {
        &self.room
    }

    /// The users from a place on, in the order in which a walk takes them.
    pub(super) fn users_from(&self, at: u32) -> impl Iterator<Item = &User> {
        self.roster.users.iter().skip(at as usize).map(|known| &known.user)
    }
}

impl Named for RoomHome {
    fn name(&self) -> &str {
        &self.room
    }
}

#[derive(Debug)]
struct RosterUser {
    user: User,
    connections: u32,
}

/// The users of a room, in an order that no hash decides.
#[derive(Debug, Default)]
struct Roster {
    users: Vec<RosterUser>,
    index: Option<HashTable<u32>>,
}

impl Roster {
    fn find(&self, user: &str, seed: &HashSeed) -> Option<usize> {
        let Some(index) = &self.index else {
            return self.users.iter().position(|known| &*known.user.id == user);
        };
        let is_it = |at: &u32| self.users.get(*at as usize).is_some_and(|known| &*known.user.id == user);
        index.find(seed.hash(user), is_it).map(|at| *at as usize)
    }

    /// Adds a connection; whether it is the user's first.
    fn add(&mut self, user: &User, seed: &HashSeed) -> bool {
        if let Some(at) = self.find(&user.id, seed) {
            self.users[at].connections += 1;
            self.users[at].user.name = user.name.clone();
            return false;
        }
        self.users.push(RosterUser { user: user.clone(), connections: 1 });
        let users = &self.users;
        let rehash = |at: &u32| users.get(*at as usize).map_or(0, |known| seed.hash(&known.user.id));
        if let Some(index) = &mut self.index {
            index.insert_unique(seed.hash(&user.id), (users.len() - 1) as u32, rehash);
        } else if users.len() > SCANNED_USERS_MAX {
            let mut index = HashTable::with_capacity(2 * users.len());
            for (at, known) in users.iter().enumerate() {
                index.insert_unique(seed.hash(&known.user.id), at as u32, rehash);
            }
            self.index = Some(index);
        }
        true
    }

    /// Removes a connection; the user, if it was its last, and the place that it left, which the last user now has.
    fn remove(&mut self, user: &str, seed: &HashSeed) -> Option<(User, usize)> {
        let at = self.find(user, seed)?;
        self.users[at].connections -= 1;
        if self.users[at].connections > 0 {
            return None;
        }
        let last = self.users.len() - 1;
        if let Some(index) = &mut self.index {
            if let Ok(entry) = index.find_entry(seed.hash(user), |known| *known as usize == at) {
                entry.remove();
            }
            let moved = seed.hash(&self.users[last].user.id);
            if let Some(position) = index.find_mut(moved, |known| *known as usize == last) {
                *position = at as u32;
            }
        }
        Some((self.users.swap_remove(at).user, at))
    }
}

impl Engine {
    /// A connection joins. `user_joined`, if due, reaches the joiner's shard before the answer does.
    pub(super) fn home_join(&mut self, room: &RoomId, user: &User, from: ConnectionRef) {
        let slot = self.room_homes.find_or_insert(room, || RoomHome {
            room: room.clone(),
            roster: Roster::default(),
            shards: ShardCounts::default(),
            recount: false,
            counted_ms: 0,
        });
        let spans_nodes = self.spans_nodes(room);
        let Some(home) = self.room_homes.get_mut(slot) else { return };
        home.shards.add(from.shard);
        let mut joined = None;
        if home.roster.add(user, &self.hash_seed) {
            let users = home.roster.users.len();
            if spans_nodes {
                joined = self.own_joined(room, user, users);
                self.report(room, user, true, users == 1);
            } else {
                self.tell_of(slot, users, user, joined_message);
            }
        }
        self.post(from.shard, ToShard::JoinAnswer { to: from, room: room.clone(), joined });
    }

    /// Whether other nodes have a part in the room's roster. The room of a user is the user's alone.
    pub(super) fn spans_nodes(&self, room: &str) -> bool {
        self.config.cluster && !room.starts_with(USER_ROOM_PREFIX)
    }

    /// The joiner's own `user_joined`, unless the room is too large for any.
    fn own_joined(&self, room: &RoomId, user: &User, users: usize) -> Option<Bytes> {
        let limit = self.config.limits.join_events_members_max as usize;
        (limit == 0 || users <= limit).then(|| json(&joined_message(&user.id, &user.name, room, self.now.unix_ms)))
    }

    /// Tells the bridge who came or went here: what that means on all nodes comes back as `roster_changed`.
    fn report(&mut self, room: &RoomId, user: &User, joined: bool, edge: bool) {
        let change = MemberChange { user: user.clone(), joined, edge, quiet: false };
        self.effects.bridge.push(ToBridge::RosterChange { room: room.clone(), change });
    }

    /// A user came to the room or left it on any node, for the first or the last time: the joiner has heard it.
    pub(super) fn roster_changed(&mut self, room: &str, user: &User, joined: bool) {
        let Some(slot) = self.room_homes.find(room) else { return };
        let Some(home) = self.room_homes.get(slot) else { return };
        let users = home.roster.users.len();
        if joined {
            self.tell_of(slot, users, user, joined_message);
        } else {
            self.tell_of(slot, users, user, left_message);
        }
    }

    /// The count of a large room over all nodes.
    pub(super) fn roster_counted(&mut self, room: &RoomId, count: u64) {
        let Some(slot) = self.room_homes.find(room) else { return };
        let payload = json(&ServerMessage::Members { room_id: room, count, users: None });
        self.post_to_members(slot, &payload);
    }

    /// A connection left or died.
    pub(super) fn home_leave(&mut self, room: &RoomId, user: &User, shard: ShardId) {
        let Some(slot) = self.room_homes.find(room) else { return };
        let Some(home) = self.room_homes.get_mut(slot) else { return };
        home.shards.remove(shard);
        let users = home.roster.users.len();
        let gone = home.roster.remove(&user.id, &self.hash_seed);
        let is_empty = home.roster.users.is_empty();
        if let Some((gone, at)) = gone {
            if self.spans_nodes(room) {
                self.report(room, &gone, false, is_empty);
                self.announce_moved(slot, at);
            } else if !is_empty {
                self.tell_of(slot, users, &gone, left_message);
            }
        }
        if is_empty {
            self.room_homes.remove(slot);
        }
    }

    /// A walk through the roster that has passed `at` and not yet the user who stands there now would miss them.
    fn announce_moved(&mut self, slot: u32, at: usize) {
        let Some(home) = self.room_homes.get(slot).filter(|_| self.walk.slot == slot) else { return };
        let walked = self.walk.at as usize;
        if let Some(moved) = home.roster.users.get(at).filter(|_| at < walked && home.roster.users.len() >= walked) {
            let change = MemberChange { user: moved.user.clone(), joined: true, edge: false, quiet: true };
            self.effects.bridge.push(ToBridge::RosterChange { room: home.room.clone(), change });
        }
    }

    /// Tells the room who came or went; in a large room only that its count changed, once a second, since else a mass
    /// reconnect costs the square of the room.
    fn tell_of(
        &mut self,
        slot: u32,
        users: usize,
        user: &User,
        event: impl for<'a> Fn(&'a str, &'a str, &'a str, u64) -> ServerMessage<'a>,
    ) {
        let limit = self.config.limits.join_events_members_max;
        let Some(home) = self.room_homes.get_mut(slot) else { return };
        if limit > 0 && users > limit as usize {
            if !std::mem::replace(&mut home.recount, true) {
                self.recounts.push(slot);
            }
            return;
        }
        let (room, shards) = (home.room.clone(), home.shards.shards());
        let message = event(&user.id, &user.name, &room, self.now.unix_ms);
        let payload = json(&message);
        if matches!(message, ServerMessage::UserJoined { .. }) && self.spans_nodes(&room) {
            for shard in shards {
                let (room, user, payload) = (room.clone(), user.id.clone(), payload.clone());
                self.post(shard, ToShard::EventBut { room, user, payload });
            }
        } else {
            self.post_to_members(slot, &payload);
        }
    }

    fn post_to_members(&mut self, slot: u32, payload: &Bytes) {
        let Some(home) = self.room_homes.get(slot) else { return };
        let room = home.room.clone();
        for shard in home.shards.shards() {
            self.post(shard, ToShard::Event { room: room.clone(), payload: payload.clone() });
        }
    }

    /// An ephemeral event for all members, on whichever shard.
    pub(super) fn spread(&mut self, room: &RoomId, payload: &Bytes) {
        if room.starts_with(USER_ROOM_PREFIX) {
            self.event(room, payload);
        } else if let Some(slot) = self.room_homes.find(room) {
            self.post_to_members(slot, payload);
        }
        self.spread_to_nodes(room, payload);
    }

    /// The same for members on other nodes, where there are any.
    fn spread_to_nodes(&mut self, room: &RoomId, payload: &Bytes) {
        if self.config.cluster {
            self.effects.bridge.push(ToBridge::Spread { room: room.clone(), payload: payload.clone() });
        }
    }

    /// Who is there?
    pub(super) fn home_members(&mut self, room: &RoomId, asker: Asker) {
        let home = self.room_homes.find(room).and_then(|slot| self.room_homes.get(slot));
        let users: &[RosterUser] = home.map_or(&[], |home| &home.roster.users);
        let count = users.len() as u64;
        let listed = &users[..users.len().min(LISTED_USERS_MAX)];
        match asker {
            Asker::Connection(to) if !self.spans_nodes(room) => {
                let listed: Vec<Member<'_>> =
                    listed.iter().map(|known| Member { user_id: &known.user.id, username: &known.user.name }).collect();
                let payload = json(&ServerMessage::Members { room_id: room, count, users: Some(&listed) });
                self.post(to.shard, ToShard::MembersAnswer { to, payload });
            }
            _ => {
                let (room, users) = (room.clone(), listed.iter().map(|known| known.user.clone()).collect());
                self.effects.bridge.push(ToBridge::MembersAnswer { room, asker, count, users });
            }
        }
    }

    /// Tells the counts of large rooms that are due.
    pub(super) fn recount(&mut self) {
        if self.recounts.is_empty() {
            return;
        }
        let now_ms = self.now.mono_ms();
        let mut later = Vec::new();
        for slot in std::mem::take(&mut self.recounts) {
            let Some(home) = self.room_homes.get_mut(slot).filter(|home| home.recount) else { continue };
            if now_ms < home.counted_ms + RECOUNT_MS {
                later.push(slot);
                continue;
            }
            (home.recount, home.counted_ms) = (false, now_ms);
            let count = home.roster.users.len() as u64;
            let payload = json(&ServerMessage::Members { room_id: &home.room, count, users: None });
            self.post_to_members(slot, &payload);
        }
        self.recounts = later;
    }
}

fn joined_message<'a>(user_id: &'a str, username: &'a str, room_id: &'a str, timestamp: u64) -> ServerMessage<'a> {
    ServerMessage::UserJoined { user_id, username, room_id, timestamp }
}

fn left_message<'a>(user_id: &'a str, username: &'a str, room_id: &'a str, timestamp: u64) -> ServerMessage<'a> {
    ServerMessage::UserLeft { user_id, username, room_id, timestamp }
}

/// A message that goes to other shards.
pub(super) fn json(message: &ServerMessage<'_>) -> Bytes {
    let mut payload = Vec::with_capacity(160);
    message.write(&mut payload);
    Bytes::from(payload)
}
