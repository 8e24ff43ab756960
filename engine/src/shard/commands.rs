//! What a client may ask for, and what each message sets off.

use super::connection::Purpose;
use super::outbox::Kind;
use super::rate::Verdict;
use super::wheel::{NEVER, TICK_MS};
use super::{Engine, Grant};
use crate::mesh::{Asker, HistoryAsk, ToBridge, ToShard};
use crate::names::{ConnectionId, RoomId, matches_glob};
use bytes::Bytes;
use roomwire_wire::id::USER_ROOM_PREFIX;
use roomwire_wire::message::{ClientMessage, ErrorCode, Member, RawText, ServerMessage, parse};
use std::sync::Arc;

/// What a token allows in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// Join, read history and members.
    Join,
    /// Publish, type, send receipts.
    Publish,
}

impl Engine {
    /// One text message.
    pub(super) fn text(&mut self, id: ConnectionId, text: &str) {
        let limits = self.field_limits;
        if !self.is_within_rate(id, || client_id_of(text, &limits)) {
            return;
        }
        match parse(text, &limits) {
            Ok(message) => self.command(id, message),
            Err(rejection) => {
                if let Some(limit) = rejection.limit {
                    self.counters.limit_crossed(limit);
                }
                self.error(id, rejection.code, rejection.message, rejection.client_id.as_deref(), None);
            }
        }
    }

    /// Counts a message against the connection's rate; whether it may pass. If not, the client was told.
    pub(super) fn is_within_rate(&mut self, id: ConnectionId, client_id: impl FnOnce() -> Option<String>) -> bool {
        let (mono_us, tick) = (self.now.mono_us, self.tick);
        let (rate, burst) = (self.config.limits.messages_per_second_max, self.config.limits.messages_burst_max);
        let Some(connection) = self.connection_mut(id) else { return false };
        match connection.messages.message(mono_us, tick, rate, burst) {
            Verdict::Pass => true,
            Verdict::Refuse { retry_after_ms, first } => {
                self.counters.limit_crossed("messages_per_second_max");
                if first {
                    self.counters.limit_crossed("messages_burst_max");
                }
                let client_id = client_id();
                let message = "too many messages a second";
                self.error(id, ErrorCode::RateLimited, message, client_id.as_deref(), Some(retry_after_ms));
                false
            }
            Verdict::Flood => {
                self.close_flood(id);
                false
            }
        }
    }

    fn command(&mut self, id: ConnectionId, message: ClientMessage<'_>) {
        match message {
            ClientMessage::JoinRoom { room_id, since, epoch, history } => {
                let ask = match since {
                    Some(seq) => HistoryAsk::Since { seq, epoch, limit: history },
                    None => HistoryAsk::Last { limit: history },
                };
                self.join(id, &room_id, ask);
            }
            ClientMessage::LeaveRoom { room_id } => self.leave_room_by_name(id, &room_id),
            ClientMessage::ChatMessage { room_id, content, client_id } => {
                self.publish(id, &room_id, content, client_id.as_deref());
            }
            ClientMessage::Typing { room_id } => self.typing(id, &room_id),
            ClientMessage::ReadReceipt { room_id, message_id } => self.receipt(id, &room_id, &message_id),
            ClientMessage::History { room_id, before, after, limit } => {
                if self.is_allowed(id, &room_id, Right::Join, None) {
                    let ask = HistoryAsk::Range { after, before, limit };
                    self.ask_page_if_few(id, RoomId::new(&room_id), ask, Purpose::Read);
                }
            }
            ClientMessage::Members { room_id } => self.members(id, &room_id),
            ClientMessage::WatchPresence { user_ids } => self.watch_presence(id, &user_ids),
            ClientMessage::UnwatchPresence { user_ids } => self.unwatch_presence(id, &user_ids),
            ClientMessage::Refresh { token } => self.refresh(id, &token),
            ClientMessage::Ping => {
                let timestamp = self.now.unix_ms;
                self.send(id, &ServerMessage::Pong { timestamp }, Kind::Kept);
            }
        }
    }

    /// Whether the token allows it; if not, the client was told. The server's own rooms are for their user alone.
    fn is_allowed(&mut self, id: ConnectionId, room: &str, right: Right, client_id: Option<&str>) -> bool {
        let Some(connection) = self.connection(id) else { return false };
        let allowed = match room.strip_prefix(USER_ROOM_PREFIX) {
            Some(owner) => self.users.get(connection.user).is_some_and(|local| &*local.user.id == owner),
            None => connection.grants.as_ref().is_none_or(|grants| grants.iter().any(|grant| grant.gives(room, right))),
        };
        if !allowed {
            self.error(id, ErrorCode::Forbidden, "the token does not allow this in this room", client_id, None);
        }
        allowed
    }

    fn join(&mut self, id: ConnectionId, room: &str, ask: HistoryAsk) {
        if !self.is_allowed(id, room, Right::Join, None) {
            return;
        }
        if room.starts_with(USER_ROOM_PREFIX) {
            // Each connection is in its user's room from the start.
            self.ask_page_if_few(id, RoomId::new(room), ask, Purpose::Read);
        } else {
            self.join_room(id, room, ask);
        }
    }

    fn publish(&mut self, id: ConnectionId, room: &str, content: RawText<'_>, client_id: Option<&str>) {
        if !self.is_allowed(id, room, Right::Publish, client_id) {
            return;
        }
        let Some(user) = self.user_of(id) else { return };
        let publish = ToBridge::Publish {
            from: self.reference(id),
            room: RoomId::new(room),
            user,
            content: Bytes::copy_from_slice(content.as_str().as_bytes()),
            client_id: client_id.map(Arc::from),
            received_us: self.now.mono_us,
        };
        self.effects.bridge.push(publish);
    }

    fn typing(&mut self, id: ConnectionId, room: &str) {
        if !self.is_allowed(id, room, Right::Publish, None) {
            return;
        }
        let Some(user) = self.user_of(id) else { return };
        let typing = ServerMessage::Typing {
            user_id: &user.id,
            username: &user.name,
            room_id: room,
            timestamp: self.now.unix_ms,
        };
        let spread = ToShard::Spread { room: RoomId::new(room), payload: super::members::json(&typing) };
        // A user's room is kept by the user's home.
        self.post_home(room.strip_prefix(USER_ROOM_PREFIX).unwrap_or(room), spread);
    }

    fn receipt(&mut self, id: ConnectionId, room: &str, message_id: &str) {
        if !self.is_allowed(id, room, Right::Publish, None) {
            return;
        }
        let Some(user) = self.user_of(id) else { return };
        let receipt = ToBridge::Receipt {
            from: self.reference(id),
            room: RoomId::new(room),
            user: user.id,
            message_id: Arc::from(message_id),
        };
        self.effects.bridge.push(receipt);
    }

    fn members(&mut self, id: ConnectionId, room: &str) {
        if !self.is_allowed(id, room, Right::Join, None) {
            return;
        }
        if room.starts_with(USER_ROOM_PREFIX) {
            let Some(user) = self.user_of(id) else { return };
            let users = [Member { user_id: &user.id, username: &user.name }];
            let members = ServerMessage::Members { room_id: room, count: 1, users: Some(&users) };
            return self.send(id, &members, Kind::Kept);
        }
        let ask = ToShard::AskMembers { room: RoomId::new(room), asker: Asker::Connection(self.reference(id)) };
        self.post_home(room, ask);
    }

    /// A new token for the same user. A bad one changes nothing: the connection lives until its old one expires.
    fn refresh(&mut self, id: ConnectionId, token: &str) {
        let identity = (self.verify)(token, self.now.unix_ms);
        let Some(user) = self.user_of(id) else { return };
        let Some(identity) = identity else {
            self.counters.auth_failures_total += 1;
            return self.error(id, ErrorCode::Forbidden, "Authentication failed", None, None);
        };
        if identity.user.id != user.id {
            return self.error(id, ErrorCode::Forbidden, "the token is for another user", None, None);
        }
        let expires = self.expiry_tick(identity.expires_ms);
        let slot = self.connection(id).map(|connection| connection.user);
        if let Some(local) = slot.and_then(|slot| self.users.get_mut(slot)) {
            local.user.name = identity.user.name;
        }
        if let Some(connection) = self.connection_mut(id) {
            connection.grants = identity.grants;
            connection.expires = expires;
        }
        self.arm(id);
        // A token that never expires says so with 0.
        self.send(id, &ServerMessage::Refreshed { expires_at: identity.expires_ms.unwrap_or(0) }, Kind::Kept);
    }

    /// The tick of a Unix time.
    pub(super) fn expiry_tick(&self, expires_ms: Option<u64>) -> u32 {
        let Some(expires_ms) = expires_ms else { return NEVER };
        let ticks = expires_ms.saturating_sub(self.now.unix_ms) / TICK_MS + 1;
        u32::try_from(ticks).ok().and_then(|ticks| self.tick.checked_add(ticks)).unwrap_or(NEVER)
    }
}

impl Grant {
    fn gives(&self, room: &str, right: Right) -> bool {
        let has = match right {
            Right::Join => self.join,
            Right::Publish => self.publish,
        };
        has && matches_glob(&self.room, room)
    }
}

/// The `clientId` of a message that is refused unread.
fn client_id_of(text: &str, limits: &roomwire_wire::message::FieldLimits) -> Option<String> {
    match parse(text, limits) {
        Ok(ClientMessage::ChatMessage { client_id, .. }) => client_id.map(std::borrow::Cow::into_owned),
        Ok(_) => None,
        Err(rejection) => rejection.client_id.map(std::borrow::Cow::into_owned),
    }
}
