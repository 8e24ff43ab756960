//! What arrives on the channels, taken apart: our own messages, events of other nodes, JSON of other software, and what
//! must be dropped.
//!
//! Called by the subscriber for each message. Everything here may come from anyone who can publish: nothing is
//! believed that is not vouched for, and nothing larger than the limit is looked into.

use super::commands::CONTROL_CHANNEL;
use super::vouch::vouched;
use bytes::Bytes;
use roomwire_engine::bus::BusEvent;
use roomwire_engine::cluster::ClusterEvent;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_wire::id::is_user_id;
use serde::Deserialize;
use std::borrow::Cow;

/// Bytes that a payload may have beyond the content of a message.
pub const PAYLOAD_REST_BYTES_MAX: usize = 4 * 1024;
/// The most bytes of a payload where the content has no limit.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a payload was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is this node's own event, delivered here already.
    Own,
    /// It is larger than a message can be.
    TooLarge,
    /// It is no JSON object.
    NoObject,
    /// It has `seq` or `rw` like a message of ours, but no node vouches for it.
    NotOurs,
}

/// What this node needs to judge a payload.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The last member of this node's own events: `,"rw":{"from":"..."}}`.
    pub own_tail: String,
    /// The most bytes of a payload.
    pub bytes_max: usize,
}

/// A message's own members that matter here.
#[derive(Deserialize)]
struct Message {
    seq: u64,
    epoch: u64,
}

/// What `rw` holds in a message.
#[derive(Deserialize)]
struct Place {
    base: u64,
    stable: u64,
}

/// Members by which a foreign object would pass for a message.
#[derive(Deserialize)]
struct Claims {
    seq: Option<serde::de::IgnoredAny>,
    rw: Option<serde::de::IgnoredAny>,
}

/// A hint on `rw:ctl`.
#[derive(Deserialize)]
struct Control {
    room: String,
    #[serde(rename = "gen")]
    generation: u64,
    base: u64,
    void: Option<u64>,
}

/// What other software and the nodes say of users.
#[derive(Deserialize)]
struct Presence<'p> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'p, str>,
    #[serde(borrow, rename = "userId")]
    user: Cow<'p, str>,
}

/// The most bytes of what is said of a user.
const PRESENCE_BYTES_MAX: usize = 1_024;

/// What came on the channel of users; `None` for anything else than a user's coming or going.
#[must_use]
pub fn presence(payload: &[u8]) -> Option<ClusterEvent> {
    if payload.len() > PRESENCE_BYTES_MAX {
        return None;
    }
    let said: Presence<'_> = serde_json::from_slice(payload).ok()?;
    let online = match &*said.kind {
        "user_online" => true,
        "user_offline" => false,
        _ => return None,
    };
    is_user_id(&said.user).then(|| ClusterEvent::Presence { user: UserId::new(&said.user), online })
}

impl Judge {
    /// For the node that is known on the bus as `from`.
    #[must_use]
    pub fn new(from: &str, content_bytes_max: u32) -> Judge {
        let bytes_max = match content_bytes_max {
            0 => PAYLOAD_BYTES_MAX,
            content => content as usize + PAYLOAD_REST_BYTES_MAX,
        };
        Judge { own_tail: own_tail(from), bytes_max }
    }

    /// What came on a room's channel.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn room(&self, key: &str, channel: &str, room: RoomId, mut payload: Vec<u8>) -> Result<BusEvent, Dropped> {
        if payload.len() > self.bytes_max {
            return Err(Dropped::TooLarge);
        }
        if payload.ends_with(self.own_tail.as_bytes()) {
            return Err(Dropped::Own);
        }
        if let Some((message, place, end)) = message(key, channel, &payload) {
            payload.truncate(end);
            payload.push(b'}');
            return Ok(BusEvent::Message {
                room,
                generation: message.epoch,
                seq: message.seq,
                base: place.base,
                stable: place.stable,
                payload: Bytes::from(payload),
                received_us: 0,
            });
        }
        let end = event_end(&payload);
        if let Some(end) = end {
            payload.truncate(end);
            payload.push(b'}');
        }
        let is_object = payload.first() == Some(&b'{');
        match serde_json::from_slice::<Claims>(&payload) {
            Ok(Claims { seq: None, rw: None }) if is_object => {
                Ok(BusEvent::Ephemeral { room, payload: Bytes::from(payload) })
            }
            Ok(_) if is_object => Err(Dropped::NotOurs),
            _ => Err(Dropped::NoObject),
        }
    }

    /// What came on `rw:ctl`.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn control(&self, key: &str, payload: &[u8]) -> Result<BusEvent, Dropped> {
        if payload.len() > PAYLOAD_REST_BYTES_MAX {
            return Err(Dropped::TooLarge);
        }
        if vouched(key, CONTROL_CHANNEL, payload, b"\"}").is_none() {
            return Err(Dropped::NotOurs);
        }
        let Control { room, generation, base, void } =
            serde_json::from_slice(payload).map_err(|_| Dropped::NoObject)?;
        Ok(BusEvent::Control { room: RoomId::new(&room), generation, base, void })
    }
}

/// The last member of an event that the node `from` sends.
#[must_use]
pub fn own_tail(from: &str) -> String {
    format!(",\"rw\":{{\"from\":\"{from}\"}}}}")
}

/// An event's payload as it travels: with the sender's name as its last member.
#[must_use]
pub fn signed(payload: &[u8], own_tail: &str) -> Option<Vec<u8>> {
    let body = payload.strip_suffix(b"}")?;
    // An empty object has no member that a comma could follow.
    let tail = if body == b"{" { own_tail.get(1..)? } else { own_tail };
    Some([body, tail.as_bytes()].concat())
}

/// A message that a node vouches for: its place, and where the client-visible members end.
fn message(key: &str, channel: &str, payload: &[u8]) -> Option<(Message, Place, usize)> {
    let text = vouched(key, channel, payload, b"\"}}")?;
    let end = rfind(text, b",\"rw\":{")?;
    let place = [&text[end + b",\"rw\":".len()..text.len() - b",\"mac\":\"".len()], b"}"].concat();
    let message = [&text[..end], b"}"].concat();
    Some((serde_json::from_slice(&message).ok()?, serde_json::from_slice(&place).ok()?, end))
}

/// Where an event of another node ends without its `rw`, if it has one.
fn event_end(payload: &[u8]) -> Option<usize> {
    const MARK: &[u8] = b",\"rw\":{\"from\":\"";
    let body = payload.strip_suffix(b"\"}}")?;
    let end = rfind(body, MARK)?;
    let name = &body[end + MARK.len()..];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(byte);
    (!name.is_empty() && name.iter().all(plain)).then_some(end)
}

/// Where `what` begins for the last time.
fn rfind(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).rposition(|window| window == what)
}
