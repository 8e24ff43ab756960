//! A user's home: the user's connections over all shards of the node, and who watches. In a cluster it also tells the
//! bridge of the user's coming and going here, and hears of it from other nodes while anybody here watches.

use super::Engine;
use super::outbox::Kind;
use super::slab::Named;
use crate::mesh::{ToBridge, ToShard};
use crate::names::{ConnectionRef, RoomId, ShardId, ShardSet, UserId, home};
use bytes::Bytes;
use roomwire_wire::id::USER_ROOM_PREFIX;
use smallvec::SmallVec;

/// One user as the user's home knows it. Kept while anyone is connected, in grace, or watching.
#[derive(Debug)]
pub(super) struct UserHome {
    user: UserId,
    stays: SmallVec<[Stay; 1]>,
    /// Subscriptions to the user's room that the bridge has not answered yet: what it delivers is of an earlier one.
    subscribing: u32,
    watch: Option<Box<Watch>>,
    /// The grace that runs since the last connection ended; 0 for none.
    grace: u32,
}

/// A user on one shard, from the first connection there to the last.
#[derive(Clone, Copy, Debug)]
struct Stay {
    shard: ShardId,
    /// By that shard's count.
    number: u32,
    connections: u32,
}

/// Who watches a user.
#[derive(Debug, Default)]
struct Watch {
    shards: ShardSet,
    elsewhere: Elsewhere,
    /// Who waits for the first answer of the other nodes.
    waiting: Vec<ConnectionRef>,
}

/// Whether a watched user who is not here is online on another node; on a node of its own nobody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Elsewhere {
    #[default]
    No,
    Yes,
    /// The user just went from here: watchers were told online, and hear of it if the other nodes say otherwise.
    Asked,
}

impl UserHome {
    pub(super) fn user(&self) -> &UserId {
        &self.user
    }

    fn connections(&self) -> u32 {
        self.stays.iter().map(|stay| stay.connections).sum()
    }

    /// Online here: the grace counts.
    pub(super) fn is_online(&self) -> bool {
        !self.stays.is_empty() || self.grace != 0
    }

    /// Online as its watchers were told.
    fn is_seen(&self) -> bool {
        self.is_online() || self.watch.as_ref().is_some_and(|watch| watch.elsewhere != Elsewhere::No)
    }

    fn is_idle(&self) -> bool {
        !self.is_online() && self.watch.is_none() && self.subscribing == 0
    }
}

impl Named for UserHome {
    fn name(&self) -> &str {
        &self.user
    }
}

/// A user who goes offline unless back by then. Every grace is as long as the other, so they end in the order in which
/// they began.
#[derive(Debug)]
pub(super) struct Grace {
    ends_ms: u64,
    slot: u32,
    /// Tells a grace that still runs from one that was ended by a new connection.
    number: u32,
}

/// The room of a user's own messages. On a node that stands alone they all pass the bridge anyway; in a cluster it has
/// to listen for them.
fn user_room(user: &UserId) -> RoomId {
    RoomId::new(&format!("{USER_ROOM_PREFIX}{}", &**user))
}

impl Engine {
    fn user_home(&mut self, user: &UserId) -> u32 {
        self.user_homes.find_or_insert(user, || UserHome {
            user: user.clone(),
            stays: SmallVec::new(),
            subscribing: 0,
            watch: None,
            grace: 0,
        })
    }

    pub(super) fn home_user_up(&mut self, user: &UserId, from: ConnectionRef, stay: u32) {
        let slot = self.user_home(user);
        let limit = self.config.limits.connections_per_user_max;
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        let (was_online, was_seen) = (known.is_online(), known.is_seen());
        known.grace = 0;
        let subscribes = known.stays.is_empty() && self.config.cluster;
        known.subscribing += u32::from(subscribes);
        match known.stays.iter_mut().find(|stay| stay.shard == from.shard) {
            Some(stay) => stay.connections += 1,
            None => known.stays.push(Stay { shard: from.shard, number: stay, connections: 1 }),
        }
        let crossed = limit > 0 && known.connections() > limit;
        if !was_online && self.config.cluster {
            self.effects.bridge.push(ToBridge::UserChanged { user: user.clone(), online: true });
        }
        if !was_seen {
            self.tell_watchers(slot, true);
        }
        if crossed {
            self.post(from.shard, ToShard::TooManyConnections { to: from });
        }
        if subscribes {
            let (room, shard) = (user_room(user), self.shard);
            self.effects.bridge.push(ToBridge::Subscribe { room, shard });
        }
    }

    pub(super) fn home_user_subscribed(&mut self, user: &str) {
        let Some(slot) = self.user_homes.find(user) else { return };
        if let Some(known) = self.user_homes.get_mut(slot) {
            known.subscribing = known.subscribing.saturating_sub(1);
        }
        self.free_if_idle(slot);
    }

    pub(super) fn home_user_down(&mut self, user: &UserId, shard: ShardId) {
        let Some(slot) = self.user_homes.find(user) else { return };
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        let Some(at) = known.stays.iter().position(|stay| stay.shard == shard) else { return };
        known.stays[at].connections -= 1;
        if known.stays[at].connections > 0 {
            return;
        }
        known.stays.swap_remove(at);
        if !known.stays.is_empty() {
            return;
        }
        if self.config.cluster {
            let (room, shard) = (user_room(user), self.shard);
            self.effects.bridge.push(ToBridge::Unsubscribe { room, shard });
        }
        // Never 0, which stands for none.
        self.graces_begun = self.graces_begun.checked_add(1).unwrap_or(1);
        known.grace = self.graces_begun;
        let ends_ms = self.now.mono_ms() + u64::from(self.config.presence_grace_ms);
        self.graces.push_back(Grace { ends_ms, slot, number: known.grace });
    }

    /// Ends the graces that are over.
    pub(super) fn end_graces(&mut self) {
        let now_ms = self.now.mono_ms();
        while self.graces.front().is_some_and(|grace| grace.ends_ms <= now_ms) {
            let Some(grace) = self.graces.pop_front() else { return };
            let Some(known) = self.user_homes.get_mut(grace.slot) else { continue };
            if known.grace != grace.number {
                continue;
            }
            known.grace = 0;
            if self.config.cluster {
                if let Some(watch) = known.watch.as_mut() {
                    watch.elsewhere = Elsewhere::Asked;
                }
                self.effects.bridge.push(ToBridge::UserChanged { user: known.user.clone(), online: false });
            } else {
                self.tell_watchers(grace.slot, false);
            }
            self.free_if_idle(grace.slot);
        }
    }

    /// What the other nodes say. It counts while the user is not here.
    pub(super) fn home_user_elsewhere(&mut self, user: &str, online: bool) {
        let Some(slot) = self.user_homes.find(user) else { return };
        let Some(known) = self.user_homes.get_mut(slot).filter(|known| !known.is_online()) else { return };
        let was_seen = known.is_seen();
        let Some(watch) = known.watch.as_mut() else { return };
        watch.elsewhere = if online { Elsewhere::Yes } else { Elsewhere::No };
        if was_seen != online || !watch.waiting.is_empty() {
            self.tell_watchers(slot, online);
        }
    }

    fn free_if_idle(&mut self, slot: u32) {
        if self.user_homes.get(slot).is_some_and(UserHome::is_idle) {
            self.user_homes.remove(slot);
        }
    }

    /// Tells all who watch. While some wait for their first answer, nobody else watches: they get it as an answer.
    fn tell_watchers(&mut self, slot: u32, online: bool) {
        let timestamp = self.now.unix_ms;
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        let Some(watch) = known.watch.as_mut() else { return };
        let (user, waiting) = (known.user.clone(), std::mem::take(&mut watch.waiting));
        let watchers = if waiting.is_empty() { watch.shards } else { ShardSet::default() };
        for to in waiting {
            self.post(to.shard, ToShard::PresenceAnswer { to, user: user.clone(), online });
        }
        for shard in watchers.iter() {
            self.post(shard, ToShard::PresenceChanged { user: user.clone(), online, timestamp });
        }
    }

    pub(super) fn home_watch(&mut self, user: &UserId, from: ConnectionRef) {
        let slot = self.user_home(user);
        let cluster = self.config.cluster;
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        let is_new = known.watch.is_none();
        let is_online = known.is_online();
        let watch = known.watch.get_or_insert_default();
        watch.shards.insert(from.shard);
        if cluster && is_new {
            self.effects.bridge.push(ToBridge::Watch { user: user.clone() });
        }
        if cluster && !is_online && (is_new || !watch.waiting.is_empty()) {
            watch.waiting.push(from);
            return;
        }
        let online = known.is_seen();
        self.post(from.shard, ToShard::PresenceAnswer { to: from, user: user.clone(), online });
    }

    pub(super) fn home_unwatch(&mut self, user: &UserId, shard: ShardId) {
        let Some(slot) = self.user_homes.find(user) else { return };
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        if let Some(watch) = known.watch.as_mut() {
            watch.shards.remove(shard);
            if watch.shards.is_empty() {
                known.watch = None;
                if self.config.cluster {
                    self.effects.bridge.push(ToBridge::Unwatch { user: user.clone() });
                }
            }
        }
        self.free_if_idle(slot);
    }

    pub(super) fn home_ask_user(&mut self, user: &UserId, call: u64) {
        let known = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot));
        let (online, connections) = known.map_or((false, 0), |known| (known.is_online(), known.connections()));
        let user = user.clone();
        self.effects.bridge.push(ToBridge::UserAnswer { call, user, online, connections });
    }

    /// A message of the room `user:{id}`: to every shard with connections of the user.
    pub(super) fn pass_to_user(&mut self, user: &str, payload: &Bytes, received_us: u64) {
        let Some(known) = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot)) else { return };
        if known.subscribing > 0 {
            return;
        }
        let (user, stays) = (known.user.clone(), known.stays.clone());
        for Stay { shard, number: stay, .. } in stays {
            let (user, payload) = (user.clone(), payload.clone());
            self.post(shard, ToShard::DeliverToUser { user, stay, payload, received_us });
        }
    }

    /// An event in the room `user:{id}`: to the connections here and, at the user's home, to the other shards too.
    pub(super) fn pass_event_to_user(&mut self, user: &str, room: &str, payload: &Bytes) {
        debug_assert_eq!(room.strip_prefix(USER_ROOM_PREFIX), Some(user));
        if home(user, self.config.shards) == self.shard {
            let known = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot));
            let stays = known.map(|known| known.stays.clone()).unwrap_or_default();
            let room = RoomId::new(room);
            for Stay { shard, .. } in stays.into_iter().filter(|stay| stay.shard != self.shard) {
                self.effects.shards.push((shard, ToShard::Event { room: room.clone(), payload: payload.clone() }));
            }
        }
        self.send_to_user(user, payload, Kind::Ephemeral);
    }
}
