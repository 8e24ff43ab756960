//! A user's home: the user's connections over all shards of the node, and who watches.

use super::Engine;
use super::members::ShardCounts;
use super::outbox::Kind;
use super::slab::Named;
use crate::mesh::{ToBridge, ToShard};
use crate::names::{ConnectionRef, ShardId, ShardSet, UserId, home};
use bytes::Bytes;
use roomwire_wire::id::USER_ROOM_PREFIX;

/// One user as the user's home knows it. Kept while anyone is connected, in grace, or watching.
#[derive(Debug)]
pub(super) struct UserHome {
    user: UserId,
    shards: ShardCounts,
    watchers: Option<Box<ShardSet>>,
    /// The grace that runs since the last connection ended; 0 for none.
    grace: u32,
}

impl UserHome {
    fn is_online(&self) -> bool {
        !self.shards.is_empty() || self.grace != 0
    }

    fn is_idle(&self) -> bool {
        !self.is_online() && self.watchers.is_none()
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

impl Engine {
    fn user_home(&mut self, user: &UserId) -> u32 {
        self.user_homes.find_or_insert(user, || UserHome {
            user: user.clone(),
            shards: ShardCounts::default(),
            watchers: None,
            grace: 0,
        })
    }

    pub(super) fn home_user_up(&mut self, user: &UserId, from: ConnectionRef) {
        let slot = self.user_home(user);
        let limit = self.config.limits.connections_per_user_max;
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        let was_online = known.is_online();
        known.grace = 0;
        known.shards.add(from.shard);
        let crossed = limit > 0 && known.shards.total() > limit;
        if !was_online {
            self.tell_watchers(slot, true);
        }
        if crossed {
            self.post(from.shard, ToShard::TooManyConnections { to: from });
        }
    }

    pub(super) fn home_user_down(&mut self, user: &UserId, shard: ShardId) {
        let Some(slot) = self.user_homes.find(user) else { return };
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        if !known.shards.remove(shard) || !known.shards.is_empty() {
            return;
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
            self.tell_watchers(grace.slot, false);
            self.free_if_idle(grace.slot);
        }
    }

    fn free_if_idle(&mut self, slot: u32) {
        if self.user_homes.get(slot).is_some_and(UserHome::is_idle) {
            self.user_homes.remove(slot);
        }
    }

    fn tell_watchers(&mut self, slot: u32, online: bool) {
        let timestamp = self.now.unix_ms;
        let Some(known) = self.user_homes.get(slot) else { return };
        let Some(watchers) = known.watchers.as_deref().copied() else { return };
        let user = known.user.clone();
        for shard in watchers.iter() {
            self.post(shard, ToShard::PresenceChanged { user: user.clone(), online, timestamp });
        }
    }

    pub(super) fn home_watch(&mut self, user: &UserId, from: ConnectionRef) {
        let slot = self.user_home(user);
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        known.watchers.get_or_insert_default().insert(from.shard);
        let online = known.is_online();
        self.post(from.shard, ToShard::PresenceAnswer { to: from, user: user.clone(), online });
    }

    pub(super) fn home_unwatch(&mut self, user: &UserId, shard: ShardId) {
        let Some(slot) = self.user_homes.find(user) else { return };
        let Some(known) = self.user_homes.get_mut(slot) else { return };
        if let Some(watchers) = known.watchers.as_mut() {
            watchers.remove(shard);
            if watchers.is_empty() {
                known.watchers = None;
            }
        }
        self.free_if_idle(slot);
    }

    pub(super) fn home_ask_user(&mut self, user: &UserId, call: u64) {
        let known = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot));
        let (online, connections) = known.map_or((false, 0), |known| (known.is_online(), known.shards.total()));
        self.effects.bridge.push(ToBridge::UserAnswer { call, online, connections });
    }

    /// A message of the room `user:{id}`: to every shard with connections of the user.
    pub(super) fn pass_to_user(&mut self, user: &str, payload: &Bytes, received_us: u64) {
        let Some(known) = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot)) else { return };
        let (user, shards) = (known.user.clone(), known.shards.shards());
        for shard in shards {
            self.post(shard, ToShard::DeliverToUser { user: user.clone(), payload: payload.clone(), received_us });
        }
    }

    /// An event in the room `user:{id}`: to the connections here and, at the user's home, to the other shards too.
    pub(super) fn pass_event_to_user(&mut self, user: &str, room: &str, payload: &Bytes) {
        debug_assert_eq!(room.strip_prefix(USER_ROOM_PREFIX), Some(user));
        if home(user, self.config.shards) == self.shard {
            let known = self.user_homes.find(user).and_then(|slot| self.user_homes.get(slot));
            let shards = known.map(|known| known.shards.shards()).unwrap_or_default();
            let room = crate::names::RoomId::new(room);
            for shard in shards.into_iter().filter(|shard| *shard != self.shard) {
                self.effects.shards.push((shard, ToShard::Event { room: room.clone(), payload: payload.clone() }));
            }
        }
        self.send_to_user(user, payload, Kind::Ephemeral);
    }
}
