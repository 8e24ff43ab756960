//! The JSON messages of protocol v1, as typed enums with borrowed fields.
//!
//! A chat message's `content` is kept as the JSON string literal that the client sent and is never decoded or
//! encoded again: what one client wrote is, byte for byte, what the others read.
//!
//! Who calls it: `engine` and the server's HTTP side. What it never does: decide whether a user may do what it asks.

mod client;
mod server;

pub use client::{parse, parse_chat};

use std::borrow::Cow;

/// Limits on single fields.
#[derive(Clone, Copy, Debug)]
pub struct FieldLimits {
    /// The most bytes between the quotes of `content`; `usize::MAX` means no limit.
    pub content_bytes_max: usize,
    /// The most bytes of a token in `refresh`; `usize::MAX` means no limit.
    pub token_bytes_max: usize,
}

/// The longest `clientId`, in characters.
pub const CLIENT_ID_CHARS_MAX: usize = 64;
/// The most messages in one page of history, and the most that `history` and `limit` may ask for.
pub const HISTORY_MESSAGES_MAX: u32 = 1000;
/// How many messages of history a join brings if it does not say.
pub const HISTORY_MESSAGES_DEFAULT: u32 = 50;
/// The most users in one `watch_presence` or `unwatch_presence`.
pub const WATCH_USERS_MAX: usize = 500;

/// A JSON string literal without its quotes, exactly as it was sent: valid JSON, escapes untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawText<'a>(&'a str);

impl<'a> RawText<'a> {
    /// The text between the quotes, escapes untouched.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// `text` as it stands between the quotes of a JSON string; [`RawText::from_escaped`] takes it.
    #[must_use]
    pub fn escape(text: &str) -> Cow<'_, str> {
        server::escaped(text)
    }

    /// Trusts that `escaped` came from [`RawText::as_str`] (a row of the store, another thread).
    #[must_use]
    pub fn from_escaped(escaped: &'a str) -> RawText<'a> {
        RawText(escaped)
    }
}

/// What a client sends.
#[derive(Debug, PartialEq)]
#[allow(missing_docs, reason = "DESIGN's table of the wire protocol, docs/protocol.md")]
pub enum ClientMessage<'a> {
    JoinRoom { room_id: Cow<'a, str>, since: Option<u64>, epoch: Option<u64>, history: u32 },
    LeaveRoom { room_id: Cow<'a, str> },
    ChatMessage { room_id: Cow<'a, str>, content: RawText<'a>, client_id: Option<Cow<'a, str>> },
    Typing { room_id: Cow<'a, str> },
    ReadReceipt { room_id: Cow<'a, str>, message_id: Cow<'a, str> },
    History { room_id: Cow<'a, str>, before: Option<u64>, after: Option<u64>, limit: u32 },
    Members { room_id: Cow<'a, str> },
    WatchPresence { user_ids: Vec<Cow<'a, str>> },
    UnwatchPresence { user_ids: Vec<Cow<'a, str>> },
    Refresh { token: Cow<'a, str> },
    Ping,
}

/// The values of `error.code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the protocol's own names; docs/protocol.md explains each")]
pub enum ErrorCode {
    BadJson,
    BadRequest,
    UnknownType,
    Forbidden,
    NotFound,
    TooLarge,
    RateLimited,
    Unavailable,
    Draining,
}

impl ErrorCode {
    /// Every code, in the order of [`ErrorCode::index`].
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::BadJson,
        ErrorCode::BadRequest,
        ErrorCode::UnknownType,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::TooLarge,
        ErrorCode::RateLimited,
        ErrorCode::Unavailable,
        ErrorCode::Draining,
    ];

    /// The code as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "bad_json",
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::UnknownType => "unknown_type",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "not_found",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Draining => "draining",
        }
    }

    /// This code's position in [`ErrorCode::ALL`], for counters.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// A client's message that cannot be taken; the connection lives.
#[derive(Debug, PartialEq)]
pub struct Rejection<'a> {
    /// `bad_json`, `bad_request`, `unknown_type` or `too_large`.
    pub code: ErrorCode,
    /// What is wrong with which field, in plain words. Never contains the value itself.
    pub message: &'static str,
    /// The message's `clientId`, where it was a string of at most 64 characters.
    pub client_id: Option<Cow<'a, str>>,
    /// The limit that was crossed, if it was one: `content_bytes_max` or `token_bytes_max`.
    pub limit: Option<&'static str>,
}

/// The fields of a `chat_message`, live or in history.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "DESIGN's table of the wire protocol, docs/protocol.md")]
pub struct Chat<'a> {
    pub message_id: &'a str,
    pub room_id: &'a str,
    pub user_id: &'a str,
    pub username: &'a str,
    pub content: RawText<'a>,
    pub timestamp: u64,
    pub seq: u64,
    pub epoch: u64,
}

/// A `chat_message` as read back from its JSON; the id is that of (`epoch`, `seq`).
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "DESIGN's table of the wire protocol, docs/protocol.md")]
pub struct ReadChat<'a> {
    pub room_id: Cow<'a, str>,
    pub user_id: Cow<'a, str>,
    pub username: Cow<'a, str>,
    pub content: RawText<'a>,
    pub timestamp: u64,
    pub seq: u64,
    pub epoch: u64,
}

/// One message of a history page.
#[derive(Clone, Copy, Debug)]
pub struct HistoryEntry<'a> {
    /// The message.
    pub chat: Chat<'a>,
    /// Who has read it.
    pub read_by: &'a [Box<str>],
}

/// A user as listed in `members`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the protocol's own names")]
pub struct Member<'a> {
    pub user_id: &'a str,
    pub username: &'a str,
}

/// What the server sends. `write` gives one JSON object; the order of fields is that of DESIGN's table, `type` first.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "DESIGN's table of the wire protocol, docs/protocol.md")]
pub enum ServerMessage<'a> {
    /// `message` is "Welcome NAME!" with `username`.
    Connected {
        username: &'a str,
        timestamp: u64,
        user_id: &'a str,
        connection_id: &'a str,
        node: &'a str,
        heartbeat_ms: u64,
    },
    ChatMessage(Chat<'a>),
    Ack {
        client_id: &'a str,
        message_id: &'a str,
        room_id: &'a str,
        seq: u64,
        timestamp: u64,
    },
    RoomHistory {
        room_id: &'a str,
        messages: &'a [HistoryEntry<'a>],
        seq: u64,
        epoch: u64,
        complete: bool,
        more: bool,
    },
    UserJoined {
        user_id: &'a str,
        username: &'a str,
        room_id: &'a str,
        timestamp: u64,
    },
    UserLeft {
        user_id: &'a str,
        username: &'a str,
        room_id: &'a str,
        timestamp: u64,
    },
    Typing {
        user_id: &'a str,
        username: &'a str,
        room_id: &'a str,
        timestamp: u64,
    },
    ReadReceipt {
        user_id: &'a str,
        message_id: &'a str,
        room_id: &'a str,
        timestamp: u64,
    },
    /// `users` is `None` in the count that replaces join events in large rooms: then the field is left out.
    Members {
        room_id: &'a str,
        count: u64,
        users: Option<&'a [Member<'a>]>,
    },
    Presence {
        user_id: &'a str,
        online: bool,
        timestamp: u64,
    },
    Refreshed {
        expires_at: u64,
    },
    Pong {
        timestamp: u64,
    },
    Reconnect {
        after_ms: u64,
        reason: &'a str,
    },
    Error {
        code: ErrorCode,
        message: &'a str,
        client_id: Option<&'a str>,
        retry_after_ms: Option<u64>,
    },
}

#[cfg(test)]
mod tests;
