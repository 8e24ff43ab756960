//! What the server sends: JSON written by hand, straight into the buffer that is framed.

use std::borrow::Cow;

use super::{Chat, HistoryEntry, Member, RawText, ServerMessage};

impl ServerMessage<'_> {
    /// Appends the message as one JSON object.
    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            ServerMessage::Connected { username, timestamp, user_id, connection_id, node, heartbeat_ms } => {
                let mut object = Object::message(out, "connected");
                object.key("message").extend_from_slice(b"\"Welcome ");
                write_escaped(username, object.out);
                object.out.extend_from_slice(b"!\"");
                object
                    .number("timestamp", timestamp)
                    .string("userId", user_id)
                    .string("connectionId", connection_id)
                    .string("node", node)
                    .number("heartbeatMs", heartbeat_ms)
                    .end();
            }
            ServerMessage::ChatMessage(chat) => {
                out.reserve(chat_bytes(&chat));
                write_chat(&mut Object::message(out, "chat_message"), &chat).end();
            }
            ServerMessage::Ack { client_id, message_id, room_id, seq, timestamp } => Object::message(out, "ack")
                .string("clientId", client_id)
                .string("messageId", message_id)
                .string("roomId", room_id)
                .number("seq", seq)
                .number("timestamp", timestamp)
                .end(),
            ServerMessage::RoomHistory { room_id, messages, seq, epoch, complete, more } => {
                let mut object = Object::message(out, "room_history");
                object.string("roomId", room_id);
                write_list(object.key("messages"), messages, write_history_entry);
                object
                    .number("seq", seq)
                    .number("epoch", epoch)
                    .boolean("complete", complete)
                    .boolean("more", more)
                    .end();
            }
            ServerMessage::UserJoined { user_id, username, room_id, timestamp } => {
                write_user_event("user_joined", user_id, username, room_id, timestamp, out);
            }
            ServerMessage::UserLeft { user_id, username, room_id, timestamp } => {
                write_user_event("user_left", user_id, username, room_id, timestamp, out);
            }
            ServerMessage::Typing { user_id, username, room_id, timestamp } => {
                write_user_event("typing", user_id, username, room_id, timestamp, out);
            }
            ServerMessage::ReadReceipt { user_id, message_id, room_id, timestamp } => {
                Object::message(out, "read_receipt")
                    .string("userId", user_id)
                    .string("messageId", message_id)
                    .string("roomId", room_id)
                    .number("timestamp", timestamp)
                    .end();
            }
            ServerMessage::Members { room_id, count, users } => {
                let mut object = Object::message(out, "members");
                object.string("roomId", room_id).number("count", count);
                if let Some(users) = users {
                    write_list(object.key("users"), users, write_member);
                }
                object.end();
            }
            ServerMessage::Presence { user_id, online, timestamp } => Object::message(out, "presence")
                .string("userId", user_id)
                .string("status", if online { "online" } else { "offline" })
                .number("timestamp", timestamp)
                .end(),
            ServerMessage::Refreshed { expires_at } => {
                Object::message(out, "refreshed").number("expiresAt", expires_at).end();
            }
            ServerMessage::Pong { timestamp } => Object::message(out, "pong").number("timestamp", timestamp).end(),
            ServerMessage::Reconnect { after_ms, reason } => {
                Object::message(out, "reconnect").number("afterMs", after_ms).string("reason", reason).end();
            }
            ServerMessage::Error { code, message, client_id, retry_after_ms } => {
                let mut object = Object::message(out, "error");
                object.string("code", code.as_str()).string("message", message);
                if let Some(client_id) = client_id {
                    object.string("clientId", client_id);
                }
                if let Some(retry_after_ms) = retry_after_ms {
                    object.number("retryAfterMs", retry_after_ms);
                }
                object.end();
            }
        }
    }
}

/// Space for a chat message without escapes in its names: what stands between the values, and three numbers.
fn chat_bytes(chat: &Chat<'_>) -> usize {
    let texts = [chat.message_id, chat.room_id, chat.user_id, chat.username, chat.content.as_str()];
    texts.iter().map(|text| text.len()).sum::<usize>() + 192
}

fn write_chat<'o, 'b>(object: &'o mut Object<'b>, chat: &Chat<'_>) -> &'o mut Object<'b> {
    object
        .string("messageId", chat.message_id)
        .string("roomId", chat.room_id)
        .string("userId", chat.user_id)
        .string("username", chat.username)
        .raw_text("content", chat.content)
        .number("timestamp", chat.timestamp)
        .number("seq", chat.seq)
        .number("epoch", chat.epoch)
}

fn write_history_entry(entry: &HistoryEntry<'_>, out: &mut Vec<u8>) {
    let mut object = Object::plain(out);
    write_chat(&mut object, &entry.chat);
    write_list(object.key("readBy"), entry.read_by, |user_id, out| write_string(user_id, out));
    object.end();
}

fn write_member(member: &Member<'_>, out: &mut Vec<u8>) {
    Object::plain(out).string("userId", member.user_id).string("username", member.username).end();
}

fn write_user_event(kind: &str, user_id: &str, username: &str, room_id: &str, timestamp: u64, out: &mut Vec<u8>) {
    Object::message(out, kind)
        .string("userId", user_id)
        .string("username", username)
        .string("roomId", room_id)
        .number("timestamp", timestamp)
        .end();
}

/// An object under way. Keys are our own and need no escapes.
struct Object<'b> {
    out: &'b mut Vec<u8>,
    /// What comes before the next key.
    separator: u8,
}

impl<'b> Object<'b> {
    fn plain(out: &'b mut Vec<u8>) -> Object<'b> {
        Object { out, separator: b'{' }
    }

    fn message(out: &'b mut Vec<u8>, kind: &str) -> Object<'b> {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Object { out, separator: b',' }
    }

    /// Writes a key; the caller writes its value.
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn string(&mut self, key: &str, value: &str) -> &mut Self {
        write_string(value, self.key(key));
        self
    }

    fn raw_text(&mut self, key: &str, value: RawText<'_>) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(value.as_str().as_bytes());
        out.push(b'"');
        self
    }

    fn number(&mut self, key: &str, value: u64) -> &mut Self {
        write_number(value, self.key(key));
        self
    }

    fn boolean(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key).extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    fn end(&mut self) {
        self.out.push(b'}');
    }
}

fn write_list<T>(out: &mut Vec<u8>, list: &[T], write: impl Fn(&T, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, entry) in list.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(entry, out);
    }
    out.push(b']');
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    write_escaped(text, out);
    out.push(b'"');
}

/// Which bytes must be escaped, and with what letter; `u` stands for the long form.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        escapes[control] = b'u';
        control += 1;
    }
    escapes[0x08] = b'b';
    escapes[0x09] = b't';
    escapes[0x0A] = b'n';
    escapes[0x0C] = b'f';
    escapes[0x0D] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};

/// What stands between the quotes of a JSON string that means `text`.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| ESCAPES[usize::from(byte)] == 0) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len() + 16);
    write_escaped(text, &mut out);
    // Whole runs of UTF-8 and ASCII escapes: nothing is lost.
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Appends what stands between the quotes of a JSON string.
fn write_escaped(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[copied..index]);
        copied = index + 1;
        out.extend_from_slice(&[b'\\', escape]);
        if escape == b'u' {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'0', b'0', high, low]);
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn write_number(mut value: u64, out: &mut Vec<u8>) {
    // u64::MAX has 20 digits.
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}
