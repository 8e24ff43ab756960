//! This shard's own users and what it watches for them: connections by user, watchers by watched user.

use super::Engine;
use super::connection::{NO_USER, WatchEntry};
use super::outbox::Kind;
use super::slab::Named;
use crate::mesh::ToShard;
use crate::names::{ConnectionId, User, UserId};
use bytes::Bytes;
use roomwire_wire::close::CloseCode;
use roomwire_wire::frame::Opcode;
use roomwire_wire::message::{ErrorCode, ServerMessage};
use smallvec::SmallVec;
use std::borrow::Cow;

/// The most users that one connection watches.
const WATCHES_MAX: usize = 1_000;

/// A user with connections on this shard: the members of the room `user:{id}` here.
#[derive(Debug)]
pub(super) struct LocalUser {
    /// The name is that of the latest token.
    pub(super) user: User,
    /// The number of this stay: what the home passed on to an earlier one is not for the connections of this one, since
    /// it may be the last before a gap.
    pub(super) stay: u32,
    connections: SmallVec<[u32; 4]>,
}

impl Named for LocalUser {
    fn name(&self) -> &str {
        &self.user.id
    }
}

/// A user whose presence connections of this shard watch.
#[derive(Debug)]
pub(super) struct Watched {
    user: UserId,
    watchers: SmallVec<[u32; 4]>,
}

impl Named for Watched {
    fn name(&self) -> &str {
        &self.user
    }
}

impl Engine {
    /// Adds a connection to its user; the user's slot.
    pub(super) fn enter_user(&mut self, user: User, id: ConnectionId) -> u32 {
        let name = user.name.clone();
        let stay = self.stays_begun;
        let slot =
            self.users.find_or_insert(&user.id.clone(), || LocalUser { user, stay, connections: SmallVec::new() });
        if let Some(local) = self.users.get_mut(slot) {
            if local.connections.is_empty() {
                self.stays_begun = stay.wrapping_add(1);
            }
            local.user.name = name;
            local.connections.push(id.slot);
        }
        slot
    }

    /// Takes a connection from its user, whom it returns.
    pub(super) fn leave_user(&mut self, id: ConnectionId) -> Option<UserId> {
        let slot = std::mem::replace(&mut self.connections.get_mut(id.slot)?.user, NO_USER);
        let local = self.users.get_mut(slot)?;
        local.connections.retain(|connection| *connection != id.slot);
        let user = local.user.id.clone();
        if local.connections.is_empty() {
            self.users.remove(slot);
        }
        Some(user)
    }

    /// A message of the room `user:{id}`, from the user's home, for who came with that stay.
    pub(super) fn deliver_to_user(&mut self, user: &str, stay: u32, payload: &Bytes, received_us: u64) {
        let local = self.users.find(user).and_then(|slot| self.users.get(slot));
        if local.is_none_or(|local| local.stay != stay) {
            return;
        }
        let delivered = self.send_to_user(user, payload, Kind::Kept);
        self.count_deliveries(delivered, received_us);
    }

    pub(super) fn send_to_user(&mut self, user: &str, payload: &Bytes, kind: Kind) -> u64 {
        let Some(slots) = self.slots_of_user(user) else { return 0 };
        let frame = self.framer.frame(Opcode::Text, payload);
        self.send_to_slots(&slots, &frame, kind);
        slots.len() as u64
    }

    fn slots_of_user(&self, user: &str) -> Option<SmallVec<[u32; 4]>> {
        self.users.find(user).and_then(|slot| self.users.get(slot)).map(|local| local.connections.clone())
    }

    pub(super) fn disconnect_user(&mut self, user: &str, code: CloseCode, reason: &str) {
        for slot in self.slots_of_user(user).unwrap_or_default() {
            if let Some(id) = self.connections.get(slot).map(|connection| connection.id) {
                self.close(id, code, reason);
            }
        }
    }

    pub(super) fn watch_presence(&mut self, id: ConnectionId, users: &[Cow<'_, str>]) {
        for user in users {
            let slot =
                self.watched.find_or_insert(user, || Watched { user: UserId::new(user), watchers: SmallVec::new() });
            let Some(connection) = self.connections.get_mut(id.slot) else { return };
            let Some(watched) = self.watched.get_mut(slot) else { return };
            let watches = &mut connection.rare_mut().watches;
            if !watches.iter().any(|entry| entry.watch == slot) {
                if watches.len() >= WATCHES_MAX {
                    if watched.watchers.is_empty() {
                        self.watched.remove(slot);
                    }
                    let message = "too many users are watched on this connection";
                    return self.error(id, ErrorCode::RateLimited, message, None, None);
                }
                watches.push(WatchEntry { watch: slot, position: watched.watchers.len() as u32 });
                watched.watchers.push(id.slot);
            }
            let user = watched.user.clone();
            let watch = ToShard::Watch { user: user.clone(), from: self.reference(id) };
            self.post_home(&user, watch);
        }
    }

    pub(super) fn unwatch_presence(&mut self, id: ConnectionId, users: &[Cow<'_, str>]) {
        for user in users {
            let Some(slot) = self.watched.find(user) else { continue };
            let Some(connection) = self.connections.get_mut(id.slot) else { return };
            let Some(rare) = connection.rare.as_mut() else { return };
            let Some(at) = rare.watches.iter().position(|entry| entry.watch == slot) else { continue };
            let entry = rare.watches.swap_remove(at);
            connection.tidy();
            self.forget_watcher(entry);
        }
    }

    /// Removes a watcher from the list of whom it watched; the one that takes its place is told its new position.
    pub(super) fn forget_watcher(&mut self, entry: WatchEntry) {
        let Some(watched) = self.watched.get_mut(entry.watch) else { return };
        watched.watchers.swap_remove(entry.position as usize);
        if let Some(moved) = watched.watchers.get(entry.position as usize) {
            let rare = self.connections.get_mut(*moved).and_then(|connection| connection.rare.as_mut());
            let moved = rare.and_then(|rare| rare.watches.iter_mut().find(|other| other.watch == entry.watch));
            if let Some(moved) = moved {
                moved.position = entry.position;
            }
        } else if watched.watchers.is_empty() {
            let user = watched.user.clone();
            self.watched.remove(entry.watch);
            let unwatch = ToShard::Unwatch { user: user.clone(), shard: self.shard };
            self.post_home(&user, unwatch);
        }
    }

    /// From the user's home: to all who watch the user here.
    pub(super) fn presence_changed(&mut self, user: &str, online: bool, timestamp: u64) {
        let Some(watched) = self.watched.find(user).and_then(|slot| self.watched.get(slot)) else { return };
        let slots = watched.watchers.clone();
        let frame = self.framer.message(&ServerMessage::Presence { user_id: user, online, timestamp });
        self.send_to_slots(&slots, &frame, Kind::Ephemeral);
    }
}
