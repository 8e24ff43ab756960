//! The rooms that this shard has members of: who they are here, and what reaches them.

use super::Engine;
use super::connection::{Connection, NO_USER, Purpose, RoomEntry};
use super::outbox::Kind;
use super::slab::{Named, Slab};
use crate::mesh::{HistoryAsk, ToBridge, ToShard};
use crate::names::{ConnectionId, RoomId};
use bytes::Bytes;
use roomwire_wire::frame::Opcode;
use roomwire_wire::id::USER_ROOM_PREFIX;
use roomwire_wire::message::ErrorCode;
use smallvec::SmallVec;
use std::rc::Rc;

/// One room with members on this shard.
#[derive(Debug)]
pub(super) struct LocalRoom {
    pub(super) id: RoomId,
    members: Vec<Member>,
    /// The bridge delivers the room's messages to this shard.
    subscribed: bool,
}

impl Named for LocalRoom {
    fn name(&self) -> &str {
        &self.id
    }
}

/// A connection in a room. Which of the connection's rooms this is, its entry there says by position.
#[derive(Clone, Copy, Debug)]
struct Member {
    slot: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The home has not counted it yet. It hears events, among them its own `user_joined`.
    Joining,
    /// Counted; its history is on the way. It hears events.
    Joined,
    /// Hears messages too: its history ended where they go on.
    Live,
}

impl Engine {
    /// `join_room` of a room that the connection may join.
    pub(super) fn join_room(&mut self, id: ConnectionId, room: &str, ask: HistoryAsk) {
        let known = self.rooms.find(room);
        let Some(connection) = self.connections.get(id.slot) else { return };
        let entry = known.and_then(|known| connection.rooms.iter().find(|entry| entry.room == known));
        if let Some(entry) = entry.copied() {
            return self.join_again(id, entry, ask);
        }
        let limit = self.config.limits.rooms_per_connection_max;
        if limit > 0 && connection.rooms.len() >= limit as usize {
            self.counters.limit_crossed("rooms_per_connection_max");
            return self.error(id, ErrorCode::RateLimited, "too many rooms on this connection", None, None);
        }
        let Some(user) = self.user_of(id) else { return };
        let slot = self.rooms.find_or_insert(room, || LocalRoom {
            id: RoomId::new(room),
            members: Vec::new(),
            subscribed: false,
        });
        let from = self.reference(id);
        let (Some(local), Some(connection)) = (self.rooms.get_mut(slot), self.connections.get_mut(id.slot)) else {
            return;
        };
        connection.rooms.push(RoomEntry { room: slot, position: local.members.len() as u32 });
        connection.rare_mut().joins.push((slot, ask));
        local.members.push(Member { slot: id.slot, state: State::Joining });
        let room = local.id.clone();
        self.post_home(&room.clone(), ToShard::Join { room, user, from });
    }

    /// A second `join_room` asks for history only: that is how a client resumes in place.
    fn join_again(&mut self, id: ConnectionId, entry: RoomEntry, ask: HistoryAsk) {
        let Some(local) = self.rooms.get(entry.room) else { return };
        let Some(connection) = self.connections.get_mut(id.slot) else { return };
        let mut joins = connection.rare.as_mut().map(|rare| rare.joins.iter_mut()).into_iter().flatten();
        if let Some((_, waiting)) = joins.find(|(room, _)| *room == entry.room) {
            *waiting = ask;
            return;
        }
        let room = local.id.clone();
        self.ask_page_if_few(id, room, ask, Purpose::Join);
    }

    /// The home knows of the join: from here on the room's messages are asked for.
    pub(super) fn join_answered(&mut self, id: ConnectionId, room: &str, joined: Option<&Bytes>) {
        if !self.is_open(id) {
            return;
        }
        let Some(slot) = self.rooms.find(room) else { return };
        let (Some(local), Some(connection)) = (self.rooms.get_mut(slot), self.connections.get_mut(id.slot)) else {
            return;
        };
        let Some(rare) = connection.rare.as_mut() else { return };
        let Some(at) = rare.joins.iter().position(|(joining, _)| *joining == slot) else { return };
        let (_, ask) = rare.joins.remove(at);
        connection.tidy();
        if let Some(joined) = joined {
            let frame = self.framer.frame(Opcode::Text, joined);
            self.outboxes.push(connection, &frame, Kind::Kept, &mut self.effects, &mut self.counters);
        }
        let Some(entry) = connection.room_entry(slot) else { return };
        if let Some(member) = local.members.get_mut(entry.position as usize) {
            member.state = State::Joined;
        }
        let room = local.id.clone();
        if !std::mem::replace(&mut local.subscribed, true) {
            self.effects.bridge.push(ToBridge::Subscribe { room: room.clone(), shard: self.shard });
        }
        self.ask_page(id, room, ask, Purpose::Join);
    }

    /// The connection's history ended where the room's messages go on.
    pub(super) fn go_live(&mut self, id: ConnectionId, room: &str) {
        let Some(slot) = self.rooms.find(room) else { return };
        let (Some(local), Some(connection)) = (self.rooms.get_mut(slot), self.connections.get_mut(id.slot)) else {
            return;
        };
        let Some(entry) = connection.room_entry(slot) else { return };
        if let Some(member) = local.members.get_mut(entry.position as usize).filter(|m| m.state == State::Joined) {
            member.state = State::Live;
        }
    }

    /// Takes the connection out of a room, here and at home. Constant time, however large the room is.
    pub(super) fn leave_room(&mut self, id: ConnectionId, slot: u32) {
        let Some(user) = self.user_of(id) else { return };
        let from = self.reference(id);
        let Some(connection) = self.connections.get_mut(id.slot) else { return };
        let Some(at) = connection.rooms.iter().position(|entry| entry.room == slot) else { return };
        let entry = connection.rooms.swap_remove(at);
        let Some(local) = self.rooms.get_mut(slot) else { return };
        let room = local.id.clone();
        if let Some(rare) = connection.rare.as_mut() {
            rare.forget_joins(slot, &room);
            connection.tidy();
        }
        remove_member(local, &mut self.connections, entry);
        if local.members.is_empty() {
            if local.subscribed {
                self.effects.bridge.push(ToBridge::Unsubscribe { room: room.clone(), shard: self.shard });
            }
            self.rooms.remove(slot);
        }
        self.post_home(&room.clone(), ToShard::Leave { room, user, from });
    }

    /// `leave_room`; leaving a room that one is not in changes nothing.
    pub(super) fn leave_room_by_name(&mut self, id: ConnectionId, room: &str) {
        if let Some(slot) = self.rooms.find(room) {
            self.leave_room(id, slot);
        }
    }

    /// A durable message: to all live members, framed once.
    pub(super) fn deliver(&mut self, room: &str, payload: &Bytes, received_us: u64) {
        if let Some(user) = room.strip_prefix(USER_ROOM_PREFIX) {
            return self.pass_to_user(user, payload, received_us);
        }
        let Some(slot) = self.rooms.find(room) else { return };
        let frame = self.framer.frame(Opcode::Text, payload);
        let delivered = self.fan_out(slot, &frame, Kind::Kept, |state| state == State::Live);
        self.count_deliveries(delivered, received_us);
    }

    /// An event without a seq: to all members, shed first.
    pub(super) fn event(&mut self, room: &str, payload: &Bytes) {
        if let Some(user) = room.strip_prefix(USER_ROOM_PREFIX) {
            return self.pass_event_to_user(user, room, payload);
        }
        if let Some(slot) = self.rooms.find(room) {
            let frame = self.framer.frame(Opcode::Text, payload);
            self.fan_out(slot, &frame, Kind::Ephemeral, |_| true);
        }
    }

    /// As [`Engine::event`], for all members but the connections of one user.
    pub(super) fn event_but(&mut self, room: &str, user: &str, payload: &Bytes) {
        let Some(slot) = self.rooms.find(room) else { return };
        let but = self.users.find(user).unwrap_or(NO_USER);
        let frame = self.framer.frame(Opcode::Text, payload);
        let Engine { rooms, connections, outboxes, effects, counters, .. } = self;
        let Some(local) = rooms.get(slot) else { return };
        for member in &local.members {
            if let Some(connection) = connections.get_mut(member.slot).filter(|known| known.user != but) {
                outboxes.push(connection, &frame, Kind::Ephemeral, effects, counters);
            }
        }
    }

    fn fan_out(&mut self, slot: u32, frame: &Rc<[u8]>, kind: Kind, to: impl Fn(State) -> bool) -> u64 {
        let Engine { rooms, connections, outboxes, effects, counters, .. } = self;
        let Some(local) = rooms.get(slot) else { return 0 };
        let mut delivered = 0;
        for member in local.members.iter().filter(|member| to(member.state)) {
            if let Some(connection) = connections.get_mut(member.slot) {
                outboxes.push(connection, frame, kind, effects, counters);
                delivered += 1;
            }
        }
        delivered
    }

    pub(super) fn count_deliveries(&mut self, delivered: u64, received_us: u64) {
        self.counters.deliveries_total += delivered;
        if delivered > 0 && received_us > 0 {
            self.fanout_us.saturating_record(self.now.mono_us.saturating_sub(received_us).max(1));
        }
    }

    /// A frame to each of these connections.
    pub(super) fn send_to_slots(&mut self, slots: &SmallVec<[u32; 4]>, frame: &Rc<[u8]>, kind: Kind) {
        let Engine { connections, outboxes, effects, counters, .. } = self;
        for slot in slots {
            if let Some(connection) = connections.get_mut(*slot) {
                outboxes.push(connection, frame, kind, effects, counters);
            }
        }
    }
}

/// Removes a member; the one that takes its place in the list is told its new position.
fn remove_member(local: &mut LocalRoom, connections: &mut Slab<Connection>, entry: RoomEntry) {
    local.members.swap_remove(entry.position as usize);
    let Some(moved) = local.members.get(entry.position as usize) else { return };
    if let Some(moved) = connections.get_mut(moved.slot).and_then(|moved| moved.room_entry(entry.room)) {
        moved.position = entry.position;
    }
}
