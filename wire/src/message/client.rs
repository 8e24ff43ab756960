//! What a client sends: read in one pass, without a copy unless a string has escapes.
//!
//! The pass only finds the fields and checks that the text is JSON; each value is then read as the type that the
//! message asks for. So a wrong type in one field still lets the answer carry the `clientId` of another.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    CLIENT_ID_CHARS_MAX, ClientMessage, ErrorCode, FieldLimits, HISTORY_MESSAGES_DEFAULT, HISTORY_MESSAGES_MAX,
    RawText, ReadChat, Rejection, WATCH_USERS_MAX,
};
use crate::id::{is_room_id, is_user_id};

/// Reads one text message of a client. Room and user ids are checked against their patterns; unknown fields are
/// ignored; `null` in an optional field counts as absent; of a field that stands twice, the last one counts.
///
/// # Errors
/// [`Rejection`], to be answered with `error`.
pub fn parse<'a>(text: &'a str, limits: &FieldLimits) -> Result<ClientMessage<'a>, Rejection<'a>> {
    let fields: Fields<'a> = match serde_json::from_str(text) {
        Ok(fields) => fields,
        Err(_) => return Err(Problem::new(ErrorCode::BadJson, "Message is not a JSON object").rejection(None)),
    };
    fields.message(limits).map_err(|problem| problem.rejection(fields.echoed_client_id()))
}

/// Reads a `chat_message` that the server wrote (from the bus's log, or another node). `None` for anything else.
#[must_use]
pub fn parse_chat(text: &str) -> Option<ReadChat<'_>> {
    let fields: ChatFields<'_> = serde_json::from_str(text).ok()?;
    (fields.kind == "chat_message").then_some(())?;
    Some(ReadChat {
        room_id: fields.room_id,
        user_id: fields.user_id,
        username: fields.username,
        content: RawText(literal(fields.content)?),
        timestamp: fields.timestamp,
        seq: fields.seq,
        epoch: fields.epoch,
    })
}

/// The fields of a `chat_message` as they stand in its JSON.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChatFields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    room_id: Cow<'a, str>,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    username: Cow<'a, str>,
    #[serde(borrow)]
    content: &'a RawValue,
    timestamp: u64,
    seq: u64,
    epoch: u64,
}

/// What is wrong, before the `clientId` is added.
#[derive(Debug)]
struct Problem {
    code: ErrorCode,
    message: &'static str,
    limit: Option<&'static str>,
}

impl Problem {
    fn new(code: ErrorCode, message: &'static str) -> Problem {
        Problem { code, message, limit: None }
    }

    fn bad(message: &'static str) -> Problem {
        Problem::new(ErrorCode::BadRequest, message)
    }

    fn too_large(message: &'static str, limit: &'static str) -> Problem {
        Problem { code: ErrorCode::TooLarge, message, limit: Some(limit) }
    }

    fn rejection(self, client_id: Option<Cow<'_, str>>) -> Rejection<'_> {
        Rejection { code: self.code, message: self.message, client_id, limit: self.limit }
    }
}

/// Every known field as it stands in the text.
#[derive(Debug, Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    room_id: Option<&'a RawValue>,
    content: Option<&'a RawValue>,
    client_id: Option<&'a RawValue>,
    message_id: Option<&'a RawValue>,
    since: Option<&'a RawValue>,
    epoch: Option<&'a RawValue>,
    history: Option<&'a RawValue>,
    before: Option<&'a RawValue>,
    after: Option<&'a RawValue>,
    limit: Option<&'a RawValue>,
    user_ids: Option<&'a RawValue>,
    token: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn message(&self, limits: &FieldLimits) -> Result<ClientMessage<'a>, Problem> {
        let kind = present(self.kind).ok_or(Problem::bad("type is missing"))?;
        let kind = string(kind).ok_or(Problem::bad("type must be a string"))?;
        match &*kind {
            "chat_message" => self.chat_message(limits),
            "typing" => Ok(ClientMessage::Typing { room_id: self.room_id()? }),
            "read_receipt" => self.read_receipt(),
            "join_room" => self.join_room(),
            "leave_room" => Ok(ClientMessage::LeaveRoom { room_id: self.room_id()? }),
            "history" => self.history(),
            "members" => Ok(ClientMessage::Members { room_id: self.room_id()? }),
            "watch_presence" => Ok(ClientMessage::WatchPresence { user_ids: self.user_ids()? }),
            "unwatch_presence" => Ok(ClientMessage::UnwatchPresence { user_ids: self.user_ids()? }),
            "refresh" => self.refresh(limits),
            "ping" => Ok(ClientMessage::Ping),
            _ => Err(Problem::new(ErrorCode::UnknownType, "type is unknown")),
        }
    }

    fn chat_message(&self, limits: &FieldLimits) -> Result<ClientMessage<'a>, Problem> {
        let (room_id, client_id) = (self.room_id()?, self.client_id()?);
        let content = present(self.content).ok_or(Problem::bad("content is missing"))?;
        let literal = literal(content).ok_or(Problem::bad("content must be a string"))?;
        if literal.is_empty() {
            return Err(Problem::bad("content is empty"));
        }
        if literal.len() > limits.content_bytes_max {
            return Err(Problem::too_large("content is too long", "content_bytes_max"));
        }
        // The one thing that the pass over the text lets through and that not every reader of JSON accepts.
        if !surrogates_are_paired(literal) {
            return Err(Problem::bad("content has half of a surrogate pair"));
        }
        Ok(ClientMessage::ChatMessage { room_id, content: RawText(literal), client_id })
    }

    fn read_receipt(&self) -> Result<ClientMessage<'a>, Problem> {
        let room_id = self.room_id()?;
        let message_id = present(self.message_id).ok_or(Problem::bad("messageId is missing"))?;
        let message_id = string(message_id).ok_or(Problem::bad("messageId must be a string"))?;
        Ok(ClientMessage::ReadReceipt { room_id, message_id })
    }

    fn join_room(&self) -> Result<ClientMessage<'a>, Problem> {
        let room_id = self.room_id()?;
        let since = number(self.since, "since must be a whole number from 0")?;
        let epoch = number(self.epoch, "epoch must be a whole number from 0")?;
        let history = number(self.history, "history must be a whole number from 0")?;
        Ok(ClientMessage::JoinRoom { room_id, since, epoch, history: page(history) })
    }

    fn history(&self) -> Result<ClientMessage<'a>, Problem> {
        let room_id = self.room_id()?;
        let before = number(self.before, "before must be a whole number from 0")?;
        let after = number(self.after, "after must be a whole number from 0")?;
        let limit = number(self.limit, "limit must be a whole number from 0")?;
        // A page of nothing would look like a range of which everything was voided.
        Ok(ClientMessage::History { room_id, before, after, limit: page(limit).max(1) })
    }

    fn refresh(&self, limits: &FieldLimits) -> Result<ClientMessage<'a>, Problem> {
        let token = present(self.token).ok_or(Problem::bad("token is missing"))?;
        let token = string(token).ok_or(Problem::bad("token must be a string"))?;
        if token.is_empty() {
            return Err(Problem::bad("token is empty"));
        }
        if token.len() > limits.token_bytes_max {
            return Err(Problem::too_large("token is too long", "token_bytes_max"));
        }
        Ok(ClientMessage::Refresh { token })
    }

    fn room_id(&self) -> Result<Cow<'a, str>, Problem> {
        let room_id = present(self.room_id).ok_or(Problem::bad("roomId is missing"))?;
        let room_id = string(room_id).ok_or(Problem::bad("roomId must be a string"))?;
        if !is_room_id(&room_id) {
            return Err(Problem::bad("roomId must be 1 to 128 of A-Z a-z 0-9 _ . : -"));
        }
        Ok(room_id)
    }

    fn client_id(&self) -> Result<Option<Cow<'a, str>>, Problem> {
        let Some(client_id) = present(self.client_id) else { return Ok(None) };
        let client_id = string(client_id).ok_or(Problem::bad("clientId must be a string"))?;
        if client_id.is_empty() || !is_short(&client_id) {
            return Err(Problem::bad("clientId must have 1 to 64 characters"));
        }
        Ok(Some(client_id))
    }

    /// The `clientId` for the answer to a message that was not taken.
    fn echoed_client_id(&self) -> Option<Cow<'a, str>> {
        string(self.client_id?).filter(|client_id| is_short(client_id))
    }

    fn user_ids(&self) -> Result<Vec<Cow<'a, str>>, Problem> {
        let raw = present(self.user_ids).ok_or(Problem::bad("userIds is missing"))?;
        let UserIds(user_ids) = serde_json::from_str(raw.get())
            .map_err(|_| Problem::bad("userIds must be a list of at most 500 strings"))?;
        if !user_ids.iter().all(|user_id| is_user_id(user_id)) {
            return Err(Problem::bad("a user id must be 1 to 123 of A-Z a-z 0-9 _ . : -"));
        }
        Ok(user_ids)
    }
}

/// `null` counts as absent.
fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// What stands between the quotes, if the value is a string.
fn literal(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"')
}

/// The string that the value is, or `None` if it is none. Borrowed if it has no escapes.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let literal = literal(raw)?;
    if !literal.contains('\\') {
        return Some(Cow::Borrowed(literal));
    }
    serde_json::from_str(raw.get()).ok().map(Cow::Owned)
}

fn number(raw: Option<&RawValue>, problem: &'static str) -> Result<Option<u64>, Problem> {
    let Some(raw) = present(raw) else { return Ok(None) };
    // JSON has no leading `+` or zeroes, so what `parse` takes is a plain whole number.
    raw.get().parse().map(Some).map_err(|_| Problem::bad(problem))
}

/// How many messages of history are asked for.
fn page(asked: Option<u64>) -> u32 {
    asked.map_or(HISTORY_MESSAGES_DEFAULT, |asked| {
        u32::try_from(asked).unwrap_or(HISTORY_MESSAGES_MAX).min(HISTORY_MESSAGES_MAX)
    })
}

fn is_short(client_id: &str) -> bool {
    // A character has at most four bytes: a long text need not be counted through.
    client_id.len() <= 4 * CLIENT_ID_CHARS_MAX && client_id.chars().count() <= CLIENT_ID_CHARS_MAX
}

/// Whether each `\u` escape of half a surrogate pair in a valid literal stands with its other half.
fn surrogates_are_paired(literal: &str) -> bool {
    let mut rest = literal;
    while let Some(at) = rest.find('\\') {
        rest = match surrogate(&rest[at..]) {
            None => &rest[at + 2..],
            Some(Surrogate::Low) => return false,
            Some(Surrogate::High) => match surrogate(&rest[at + 6..]) {
                Some(Surrogate::Low) => &rest[at + 12..],
                _ => return false,
            },
        }
    }
    true
}

enum Surrogate {
    High,
    Low,
}

/// Whether `text` begins with the escape of half a surrogate pair.
fn surrogate(text: &str) -> Option<Surrogate> {
    let [b'\\', b'u', b'd' | b'D', second, ..] = text.as_bytes() else { return None };
    match second {
        b'8' | b'9' | b'a' | b'b' | b'A' | b'B' => Some(Surrogate::High),
        b'c'..=b'f' | b'C'..=b'F' => Some(Surrogate::Low),
        _ => None,
    }
}

/// The names of the known fields.
enum Field {
    Kind,
    RoomId,
    Content,
    ClientId,
    MessageId,
    Since,
    Epoch,
    History,
    Before,
    After,
    Limit,
    UserIds,
    Token,
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_identifier(FieldVisitor)
    }
}

struct FieldVisitor;

impl Visitor<'_> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Field, E> {
        Ok(match name {
            "type" => Field::Kind,
            "roomId" => Field::RoomId,
            "content" => Field::Content,
            "clientId" => Field::ClientId,
            "messageId" => Field::MessageId,
            "since" => Field::Since,
            "epoch" => Field::Epoch,
            "history" => Field::History,
            "before" => Field::Before,
            "after" => Field::After,
            "limit" => Field::Limit,
            "userIds" => Field::UserIds,
            "token" => Field::Token,
            _ => Field::Unknown,
        })
    }
}

/// Written by hand because a derived one would take an array for an object and refuse a field that stands twice.
impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields<'de>, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(field) = map.next_key()? {
            let slot = match field {
                Field::Kind => &mut fields.kind,
                Field::RoomId => &mut fields.room_id,
                Field::Content => &mut fields.content,
                Field::ClientId => &mut fields.client_id,
                Field::MessageId => &mut fields.message_id,
                Field::Since => &mut fields.since,
                Field::Epoch => &mut fields.epoch,
                Field::History => &mut fields.history,
                Field::Before => &mut fields.before,
                Field::After => &mut fields.after,
                Field::Limit => &mut fields.limit,
                Field::UserIds => &mut fields.user_ids,
                Field::Token => &mut fields.token,
                Field::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *slot = Some(map.next_value()?);
        }
        Ok(fields)
    }
}

/// The list of a watch, read no further than its limit.
struct UserIds<'a>(Vec<Cow<'a, str>>);

impl<'de> Deserialize<'de> for UserIds<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UserIds<'de>, D::Error> {
        deserializer.deserialize_seq(UserIdsVisitor)
    }
}

struct UserIdsVisitor;

impl<'de> Visitor<'de> for UserIdsVisitor {
    type Value = UserIds<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UserIds<'de>, A::Error> {
        let mut user_ids = Vec::new();
        while let Some(raw) = list.next_element::<&RawValue>()? {
            if user_ids.len() == WATCH_USERS_MAX {
                return Err(serde::de::Error::custom("too many"));
            }
            user_ids.push(string(raw).ok_or_else(|| serde::de::Error::custom("not a string"))?);
        }
        Ok(UserIds(user_ids))
    }
}
