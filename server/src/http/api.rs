//! The calls under `/v1`: checked for form here, decided by the bridge.

use super::App;
use super::answer::{Problem, json_answer, message_answer};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use roomwire_engine::bridge::{Answer, Call};
use roomwire_engine::mesh::HistoryAsk;
use roomwire_engine::names::{RoomId, User, UserId};
use roomwire_engine::store::ReadRow;
use roomwire_shard::clock;
use roomwire_wire::close::CloseCode;
use roomwire_wire::id::{MessagePlace, USER_ROOM_PREFIX, is_room_id, is_user_id};
use roomwire_wire::message::{
    CLIENT_ID_CHARS_MAX, Chat, HISTORY_MESSAGES_DEFAULT, HISTORY_MESSAGES_MAX, HistoryEntry, RawText, ServerMessage,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// The longest name of a user, in bytes: as in tokens.
const USER_NAME_BYTES_MAX: usize = crate::auth::token::USER_NAME_BYTES_MAX;
/// The longest reason of a close, in bytes (RFC 6455 section 5.5).
const REASON_BYTES_MAX: usize = 123;

type Id = Result<Path<String>, PathRejection>;

/// The body of a publish. Unknown fields are ignored, as on a socket.
#[derive(Deserialize)]
struct PublishBody<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow, rename = "userId")]
    user_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    username: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "clientId")]
    client_id: Option<Cow<'a, str>>,
}

/// `POST /v1/rooms/{id}/messages`
pub(super) async fn publish(
    State(app): State<App>,
    id: Id,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let room = room_id(id)?;
    publish_in(&app, room, &bytes(body)?).await
}

/// `POST /v1/users/{id}/messages`
pub(super) async fn publish_to_user(
    State(app): State<App>,
    id: Id,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let user = user_id(id)?;
    publish_in(&app, RoomId::new(&format!("{USER_ROOM_PREFIX}{}", &*user)), &bytes(body)?).await
}

async fn publish_in(app: &App, room: RoomId, body: &[u8]) -> Result<Response, Problem> {
    // The clock of the whole node: the bridge's histogram begins here.
    let received_us = clock::now().mono_us;
    let content_bytes_max = match app.policy().content_bytes_max {
        0 => usize::MAX,
        bytes => bytes as usize,
    };
    let (user, content, client_id) = checked(body, content_bytes_max)?;
    match app.call(Call::Publish { room, user, content, client_id, received_us }).await? {
        Answer::Published { message_id, seq, epoch, timestamp } => Ok(json_answer(
            StatusCode::CREATED,
            &json!({ "messageId": &*message_id, "seq": seq, "epoch": epoch, "timestamp": timestamp }),
        )),
        other => Err(Problem::mismatch(&other)),
    }
}

fn checked(body: &[u8], content_bytes_max: usize) -> Result<(User, Bytes, Option<Arc<str>>), Problem> {
    let body: PublishBody<'_> = serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Problem::bad_request("content, userId, username and clientId must be strings")
        } else {
            Problem::bad_json("the body is not a JSON object")
        }
    })?;
    let literal = body.content.ok_or(Problem::bad_request("content is missing"))?.get();
    // Half of a surrogate pair passes as JSON; not every reader takes it.
    if !literal.starts_with('"') || serde_json::from_str::<Cow<'_, str>>(literal).is_err() {
        return Err(Problem::bad_request("content must be a string"));
    }
    let content = &literal[1..literal.len() - 1];
    if content.is_empty() {
        return Err(Problem::bad_request("content is empty"));
    }
    if content.len() > content_bytes_max {
        return Err(Problem::too_large("content is too long"));
    }
    let user_id = body.user_id.ok_or(Problem::bad_request("userId is missing"))?;
    if !is_user_id(&user_id) {
        return Err(Problem::bad_request("userId must match ^[A-Za-z0-9_.:-]{1,123}$"));
    }
    let username = body.username.unwrap_or_else(|| user_id.clone());
    if username.is_empty() || username.len() > USER_NAME_BYTES_MAX || username.chars().any(char::is_control) {
        return Err(Problem::bad_request("username must have 1 to 256 bytes and no control characters"));
    }
    if body.client_id.as_ref().is_some_and(|id| id.is_empty() || id.chars().count() > CLIENT_ID_CHARS_MAX) {
        return Err(Problem::bad_request("clientId must have 1 to 64 characters"));
    }
    let user = User { id: UserId::new(&user_id), name: Arc::from(&*username) };
    Ok((user, Bytes::copy_from_slice(content.as_bytes()), body.client_id.map(|id| Arc::from(&*id))))
}

/// The query of a page of history.
#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    before: Option<u64>,
    after: Option<u64>,
    limit: Option<u32>,
}

/// `GET /v1/rooms/{id}/messages`
pub(super) async fn history(
    State(app): State<App>,
    id: Id,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let room = room_id(id)?;
    let Query(query) =
        query.map_err(|_| Problem::bad_request("before, after and limit must be whole numbers from 0"))?;
    let limit = query.limit.unwrap_or(HISTORY_MESSAGES_DEFAULT).clamp(1, HISTORY_MESSAGES_MAX);
    let ask = match (query.after, query.before) {
        (None, None) => HistoryAsk::Last { limit },
        (after, before) => HistoryAsk::Range { after, before, limit },
    };
    match app.call(Call::History { room: room.clone(), ask }).await? {
        Answer::History { rows, seq, epoch, complete, more } => {
            let ids: Vec<String> = rows.iter().map(|read| message_id(&room, read)).collect();
            let messages: Vec<HistoryEntry<'_>> =
                rows.iter().zip(&ids).filter_map(|(read, id)| entry(&room, read, id)).collect();
            let (room_id, messages) = (&*room, &messages[..]);
            Ok(message_answer(&ServerMessage::RoomHistory { room_id, messages, seq, epoch, complete, more }))
        }
        other => Err(Problem::mismatch(&other)),
    }
}

fn message_id(room: &RoomId, read: &ReadRow) -> String {
    MessagePlace { epoch: read.row.generation, seq: read.row.seq }.encode(room)
}

/// `None` if the content is not UTF-8, which no row's is.
fn entry<'a>(room: &'a RoomId, read: &'a ReadRow, message_id: &'a str) -> Option<HistoryEntry<'a>> {
    let row = &read.row;
    let content = RawText::from_escaped(std::str::from_utf8(&row.content).ok()?);
    let chat = Chat {
        message_id,
        room_id: room,
        user_id: &row.user,
        username: &row.username,
        content,
        timestamp: row.timestamp,
        seq: row.seq,
        epoch: row.generation,
    };
    Some(HistoryEntry { chat, read_by: &read.read_by })
}

/// `GET /v1/rooms/{id}/members`
pub(super) async fn members(State(app): State<App>, id: Id) -> Result<Response, Problem> {
    let room = room_id(id)?;
    match app.call(Call::Members { room: room.clone() }).await? {
        Answer::Members { count, users, complete } => {
            let user = |user: &User| json!({ "userId": &*user.id, "username": &*user.name });
            let users: Vec<Value> = users.iter().map(user).collect();
            let answer = json!({
                "type": "members", "roomId": &*room, "count": count, "users": users, "complete": complete
            });
            Ok(json_answer(StatusCode::OK, &answer))
        }
        other => Err(Problem::mismatch(&other)),
    }
}

/// `GET /v1/users/{id}/presence`
pub(super) async fn presence(State(app): State<App>, id: Id) -> Result<Response, Problem> {
    let user = user_id(id)?;
    match app.call(Call::Presence { user: user.clone() }).await? {
        Answer::Presence { online, connections, nodes, complete } => {
            let status = if online { "online" } else { "offline" };
            let nodes: Vec<&str> = nodes.iter().map(|node| &**node).collect();
            let answer = json!({
                "userId": &*user, "status": status, "connections": connections, "nodes": nodes, "complete": complete
            });
            Ok(json_answer(StatusCode::OK, &answer))
        }
        other => Err(Problem::mismatch(&other)),
    }
}

/// The body of a disconnect; it may be left out.
#[derive(Default, Deserialize)]
struct DisconnectBody<'a> {
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
}

/// `POST /v1/users/{id}/disconnect`
pub(super) async fn disconnect(
    State(app): State<App>,
    id: Id,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let user = user_id(id)?;
    let body = bytes(body)?;
    let body: DisconnectBody<'_> = if body.is_empty() {
        DisconnectBody::default()
    } else {
        serde_json::from_slice(&body).map_err(|_| Problem::bad_json("the body is not a JSON object with a reason"))?
    };
    let code = CloseCode::Kicked;
    let reason = body.reason.unwrap_or(Cow::Borrowed(code.row().text));
    if reason.len() > REASON_BYTES_MAX {
        return Err(Problem::bad_request("reason must have at most 123 bytes"));
    }
    match app.call(Call::Disconnect { user: user.clone(), code, reason: Arc::from(&*reason) }).await? {
        Answer::Disconnected => Ok(json_answer(StatusCode::ACCEPTED, &json!({ "userId": &*user }))),
        other => Err(Problem::mismatch(&other)),
    }
}

fn room_id(id: Id) -> Result<RoomId, Problem> {
    match id {
        Ok(Path(id)) if is_room_id(&id) => Ok(RoomId::new(&id)),
        _ => Err(Problem::bad_request("a room id matches ^[A-Za-z0-9_.:-]{1,128}$")),
    }
}

fn user_id(id: Id) -> Result<UserId, Problem> {
    match id {
        Ok(Path(id)) if is_user_id(&id) => Ok(UserId::new(&id)),
        _ => Err(Problem::bad_request("a user id matches ^[A-Za-z0-9_.:-]{1,123}$")),
    }
}

fn bytes(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Problem::too_large("the body is too large")
        } else {
            Problem::bad_request("the body did not arrive whole")
        }
    })
}
