//! What the bench says and what it understands: the stamp inside each content, the messages it sends, and a reader of
//! server messages that looks only at what the ledger needs. `worker` writes, `observer` reads. What other servers speak
//! is in `dialect`.

use std::fmt::Write as _;

use crate::dialect::{Dialect, centrifugo, pusher};

/// What each message carries: who published it, the publisher's own count, and when it was meant to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The publisher, numbered over all rooms.
    pub(crate) publisher: u32,
    /// From 0, rising by one for each publisher.
    pub(crate) number: u32,
    /// The intended send time, CLOCK_MONOTONIC.
    pub(crate) intended_ns: u64,
}

const STAMP_PREFIX: &str = "rw:";

impl Stamp {
    /// Appends `rw:PUBLISHER:NUMBER:INTENDED`.
    pub(crate) fn write(self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{STAMP_PREFIX}{}:{}:{}", self.publisher, self.number, self.intended_ns);
    }

    /// Reads a stamp at the start of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Option<Stamp> {
        let rest = bytes.strip_prefix(STAMP_PREFIX.as_bytes())?;
        let (publisher, rest) = number(rest)?;
        let (count, rest) = number(rest.strip_prefix(b":")?)?;
        let (intended_ns, _) = number(rest.strip_prefix(b":")?)?;
        Some(Stamp { publisher: publisher.try_into().ok()?, number: count.try_into().ok()?, intended_ns })
    }

    /// Reads the first stamp in `bytes`.
    pub(crate) fn find(bytes: &[u8]) -> Option<Stamp> {
        let length = STAMP_PREFIX.len();
        let at = bytes.windows(length).position(|window| window == STAMP_PREFIX.as_bytes())?;
        Stamp::read(&bytes[at..])
    }
}

/// A decimal number and what follows it.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = bytes.split_at(digits);
    if digits.is_empty() {
        return None;
    }
    let value =
        digits.iter().try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    Some((value, rest))
}

/// The content of a message: its stamp, filled up to `size` bytes.
pub(crate) fn write_content(stamp: Stamp, size: usize, out: &mut String) {
    let start = out.len();
    stamp.write(out);
    out.push(':');
    while out.len() - start < size {
        out.push('x');
    }
}

/// Writes a message to a room; with a `clientId`, so that it is acked, where the dialect knows that.
pub(crate) fn write_chat(dialect: Dialect, room: &str, stamp: Stamp, size: usize, out: &mut String) {
    match dialect {
        Dialect::Roomwire | Dialect::Plain => {}
        Dialect::Centrifugo => return centrifugo::write_chat(room, stamp, size, out),
        Dialect::Pusher => return pusher::write_chat(room, stamp, size, out),
    }
    out.clear();
    let _ = write!(out, r#"{{"type":"chat_message","roomId":"{room}","content":""#);
    write_content(stamp, size, out);
    out.push('"');
    if dialect == Dialect::Roomwire {
        out.push_str(r#","clientId":""#);
        stamp.write(out);
        out.push('"');
    }
    out.push('}');
}

/// Writes what an echo server is to send back.
pub(crate) fn write_echo(stamp: Stamp, size: usize, out: &mut String) {
    out.clear();
    write_content(stamp, size, out);
}

/// Writes a `join_room`; from a position on, if there is one.
pub(crate) fn write_join(room: &str, position: Option<Position>, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"type":"join_room","roomId":"{room}""#);
    if let Some(Position { seq, epoch }) = position {
        let _ = write!(out, r#","since":{seq},"epoch":{epoch}"#);
    }
    out.push('}');
}

/// Writes what leaves a room.
pub(crate) fn write_leave(dialect: Dialect, room: &str, out: &mut String) {
    match dialect {
        Dialect::Roomwire | Dialect::Plain => write_about_room("leave_room", room, out),
        Dialect::Centrifugo => centrifugo::write_leave(room, out),
        Dialect::Pusher => pusher::write_leave(room, out),
    }
}

/// Writes a message of `kind` that says nothing but its room.
pub(crate) fn write_about_room(kind: &str, room: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"type":"{kind}","roomId":"{room}"}}"#);
}

/// Writes a `read_receipt`.
pub(crate) fn write_receipt(room: &str, message_id: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"type":"read_receipt","roomId":"{room}","messageId":"{message_id}"}}"#);
}

/// Writes a `watch_presence` of the users `u{user}`.
pub(crate) fn write_watch(users: impl Iterator<Item = u32>, out: &mut String) {
    out.clear();
    out.push_str(r#"{"type":"watch_presence","userIds":["#);
    for (at, user) in users.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(out, r#"{comma}"u{user}""#);
    }
    out.push_str("]}");
}

/// A `ping`: in the plain dialect its `pong` says that the join before it is done.
pub(crate) const PING: &str = r#"{"type":"ping"}"#;

/// How far somebody has read a room; seq 0: not at all, or the server does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
}

/// What a server message means to the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    Connected,
    /// `room_history`, for [`History::read`].
    History(&'a [u8]),
    /// A stamped message.
    Delivery {
        stamp: Stamp,
        position: Position,
    },
    Ack {
        stamp: Stamp,
    },
    Pong,
    /// The answer to one join, in a dialect that has nothing else to say to it.
    Joined,
    /// Wants the dialect's answer, or the connection ends.
    Ping,
    /// The user `u{user}` types.
    Typing {
        user: Option<u32>,
    },
    Receipt,
    Presence,
    /// `error`, as it came.
    Error(&'a [u8]),
    /// Join and leave events and the like.
    Event,
    /// Nothing that this bench sent or knows.
    Unknown(&'a [u8]),
}

/// Reads one message of a server that speaks `dialect`.
pub(crate) fn read(dialect: Dialect, text: &[u8]) -> Incoming<'_> {
    match dialect {
        Dialect::Roomwire | Dialect::Plain => read_own(text),
        Dialect::Centrifugo => centrifugo::read(text),
        Dialect::Pusher => pusher::read(text),
    }
}

/// Reads one text message. `type` has to be the first member, as both servers write it.
fn read_own(text: &[u8]) -> Incoming<'_> {
    if text.starts_with(STAMP_PREFIX.as_bytes()) {
        let position = Position::default();
        return Stamp::read(text).map_or(Incoming::Unknown(text), |stamp| Incoming::Delivery { stamp, position });
    }
    let Some(rest) = text.strip_prefix(br#"{"type":""#) else { return Incoming::Unknown(text) };
    let Some(end) = rest.iter().position(|byte| *byte == b'"') else { return Incoming::Unknown(text) };
    let (kind, rest) = rest.split_at(end);
    match kind {
        b"chat_message" => read_delivery(text, rest),
        b"ack" => match after(rest, br#""clientId":""#).and_then(Stamp::read) {
            Some(stamp) => Incoming::Ack { stamp },
            None => Incoming::Unknown(text),
        },
        b"connected" => Incoming::Connected,
        b"room_history" => Incoming::History(rest),
        b"pong" => Incoming::Pong,
        b"error" => Incoming::Error(text),
        b"typing" => Incoming::Typing { user: after(rest, br#""userId":"u"#).and_then(number).and_then(small) },
        b"read_receipt" => Incoming::Receipt,
        b"presence" => Incoming::Presence,
        b"user_joined" | b"user_left" | b"members" => Incoming::Event,
        _ => Incoming::Unknown(text),
    }
}

fn small((value, _): (u64, &[u8])) -> Option<u32> {
    value.try_into().ok()
}

fn read_delivery<'a>(text: &'a [u8], rest: &'a [u8]) -> Incoming<'a> {
    match read_message(rest) {
        Some((stamp, position, _)) => Incoming::Delivery { stamp, position },
        None => Incoming::Unknown(text),
    }
}

/// The first message in `bytes`: its stamp, its position, and what follows its content.
fn read_message(bytes: &[u8]) -> Option<(Stamp, Position, &[u8])> {
    let content = after(bytes, br#""content":""#)?;
    let stamp = Stamp::read(content)?;
    // The content holds no quote (the bench wrote it), so what comes after its end is the server's.
    let rest = &content[content.iter().position(|byte| *byte == b'"')?..];
    // `seq` may be missing; a message ends with a brace.
    let own = &rest[..rest.iter().position(|byte| *byte == b'}').unwrap_or(rest.len())];
    Some((stamp, read_position(own), rest))
}

/// The first `seq` in `bytes` and the `epoch` right behind it.
fn read_position(bytes: &[u8]) -> Position {
    let Some((seq, rest)) = after(bytes, br#""seq":"#).and_then(number) else { return Position::default() };
    let epoch = rest.strip_prefix(br#","epoch":"#).and_then(number).map_or(0, |(epoch, _)| epoch);
    Position { seq, epoch }
}

/// The `messageId` of a `chat_message`.
pub(crate) fn message_id(text: &[u8]) -> Option<&[u8]> {
    let id = after(text, br#""messageId":""#)?;
    id.get(..id.iter().position(|byte| *byte == b'"')?)
}

/// One page of a room's history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History<'a> {
    /// By the number at the end of its name.
    pub(crate) room: Option<u32>,
    messages: &'a [u8],
    /// Of the room's last message.
    pub(crate) position: Position,
    /// Whether another page of the same answer follows.
    pub(crate) more: bool,
}

impl<'a> History<'a> {
    /// Reads what [`Incoming::History`] holds.
    pub(crate) fn read(page: &'a [u8]) -> History<'a> {
        let name = after(page, br#""roomId":""#).unwrap_or_default();
        let name = &name[..name.iter().position(|byte| *byte == b'"').unwrap_or(0)];
        let digits = name.rsplit(|byte| *byte == b'-').next().unwrap_or_default();
        let messages = after(page, br#""messages":["#).unwrap_or_default();
        // What the bench writes holds no bracket, and receipts come as `readBy`, a list before the end of a message.
        let end = messages.windows(2).rposition(|pair| pair == b"],").unwrap_or(0);
        let (messages, tail) = messages.split_at(end);
        History {
            room: number(digits).and_then(small),
            messages,
            position: read_position(tail),
            more: after(tail, br#""more":true"#).is_some(),
        }
    }

    /// The stamped messages on the page, oldest first.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (Stamp, Position)> + use<'a> {
        let mut left = self.messages;
        std::iter::from_fn(move || {
            let (stamp, position, rest) = read_message(left)?;
            left = rest;
            Some((stamp, position))
        })
    }
}

/// What follows the first `needle`.
fn after<'a>(haystack: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    let at = haystack.windows(needle.len()).position(|window| window == needle)?;
    haystack.get(at + needle.len()..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { publisher: 12, number: 34, intended_ns: 5_678_901_234 };

    fn sent(dialect: Dialect) -> String {
        let mut out = String::new();
        write_chat(dialect, "bench-1", STAMP, 64, &mut out);
        out
    }

    #[test]
    fn a_chat_message_is_json_with_a_content_of_the_asked_size() {
        for dialect in [Dialect::Roomwire, Dialect::Plain] {
            let value: serde_json::Value = serde_json::from_str(&sent(dialect)).expect("valid JSON");
            assert_eq!(value["type"], "chat_message");
            assert_eq!(value["roomId"], "bench-1");
            let content = value["content"].as_str().expect("a string");
            assert_eq!(content.len(), 64);
            assert_eq!(Stamp::read(content.as_bytes()), Some(STAMP));
            let client_id = value["clientId"].as_str();
            assert_eq!(client_id, (dialect == Dialect::Roomwire).then_some("rw:12:34:5678901234"));
        }
    }

    #[test]
    fn a_client_id_stays_within_the_protocols_64_characters() {
        let mut out = String::new();
        Stamp { publisher: u32::MAX, number: u32::MAX, intended_ns: u64::MAX }.write(&mut out);
        assert!(out.len() <= 64, "{} characters", out.len());
    }

    #[test]
    fn deliveries_of_both_servers_are_read() {
        let roomwire = concat!(
            r#"{"type":"chat_message","messageId":"m","roomId":"r","userId":"u1","username":"u1","#,
            r#""content":"rw:12:34:5678901234:xxxx","timestamp":1,"seq":77,"epoch":1}"#
        );
        assert_eq!(
            read_own(roomwire.as_bytes()),
            Incoming::Delivery { stamp: STAMP, position: Position { seq: 77, epoch: 1 } }
        );
        let plain = r#"{"type":"chat_message","messageId":"1","content":"rw:12:34:5678901234:xxxx","timestamp":1}"#;
        assert_eq!(read_own(plain.as_bytes()), Incoming::Delivery { stamp: STAMP, position: Position::default() });
        assert_eq!(
            read_own(b"rw:12:34:5678901234:xxxx"),
            Incoming::Delivery { stamp: STAMP, position: Position::default() }
        );
    }

    #[test]
    fn a_page_of_history_gives_its_messages_the_rooms_position_and_whether_more_follows() {
        let message = |number: u32, seq: u64, read_by: &str| {
            format!(
                concat!(
                    r#"{{"type":"chat_message","messageId":"m{seq}","roomId":"bench-1f-12","content":"rw:12:{number}:5:xx","#,
                    r#""timestamp":1,"seq":{seq},"epoch":2,"readBy":[{read_by}]}}"#
                ),
                seq = seq,
                number = number,
                read_by = read_by
            )
        };
        let messages = [message(3, 8, ""), message(4, 9, r#""u1","u2""#)].join(",");
        let page = |messages: &str, tail: &str| {
            format!(r#"{{"type":"room_history","roomId":"bench-1f-12","messages":[{messages}],{tail}}}"#)
        };
        let text = page(&messages, r#""seq":20,"epoch":3,"complete":true,"more":true"#);
        let Incoming::History(rest) = read_own(text.as_bytes()) else { panic!("{text}") };
        let history = History::read(rest);
        assert_eq!((history.room, history.position, history.more), (Some(12), Position { seq: 20, epoch: 3 }, true));
        let read: Vec<(u32, Position)> = history.messages().map(|(stamp, position)| (stamp.number, position)).collect();
        assert_eq!(read, [(3, Position { seq: 8, epoch: 2 }), (4, Position { seq: 9, epoch: 2 })]);
        assert_eq!(message_id(messages.as_bytes()), Some(b"m8".as_slice()));
        let empty = page("", r#""seq":0,"epoch":0,"complete":true,"more":false"#);
        let history = History::read(empty.as_bytes());
        assert_eq!((history.messages().count(), history.position, history.more), (0, Position::default(), false));
        assert_eq!(History::read(b"{}").room, None);
    }

    #[test]
    fn what_is_written_beside_chat_is_the_protocols() {
        let mut out = String::new();
        let mut json = |write: &dyn Fn(&mut String)| -> serde_json::Value {
            write(&mut out);
            serde_json::from_str(&out).expect("valid JSON")
        };
        let join = json(&|out| write_join("r", Some(Position { seq: 4, epoch: 2 }), out));
        assert_eq!((&join["type"], &join["since"], &join["epoch"]), (&"join_room".into(), &4.into(), &2.into()));
        assert!(json(&|out| write_join("r", None, out))["since"].is_null());
        assert_eq!(json(&|out| write_about_room("typing", "r", out))["roomId"], "r");
        assert_eq!(json(&|out| write_receipt("r", "m1", out))["messageId"], "m1");
        assert_eq!(json(&|out| write_watch([1, 2].into_iter(), out))["userIds"], serde_json::json!(["u1", "u2"]));
    }

    #[test]
    fn acks_events_and_strangers_are_told_apart() {
        let ack = br#"{"type":"ack","clientId":"rw:12:34:5678901234","messageId":"m","roomId":"r","seq":1}"#;
        assert_eq!(read_own(ack), Incoming::Ack { stamp: STAMP });
        assert_eq!(read_own(br#"{"type":"pong","timestamp":1}"#), Incoming::Pong);
        assert_eq!(read_own(br#"{"type":"connected","message":"Welcome u1!"}"#), Incoming::Connected);
        assert!(matches!(read_own(br#"{"type":"room_history","messages":[]}"#), Incoming::History(_)));
        assert_eq!(read_own(br#"{"type":"typing","userId":"u7","username":"u7"}"#), Incoming::Typing { user: Some(7) });
        assert_eq!(read_own(br#"{"type":"read_receipt","userId":"u1"}"#), Incoming::Receipt);
        assert_eq!(read_own(br#"{"type":"presence","userId":"u1"}"#), Incoming::Presence);
        assert_eq!(read_own(br#"{"type":"user_joined","userId":"u1"}"#), Incoming::Event);
        assert!(matches!(read_own(br#"{"type":"error","code":"rate_limited"}"#), Incoming::Error(_)));
        for stranger in [
            br#"{"type":"chat_message","content":"hello"}"#.as_slice(),
            br#"{"type":"ack","clientId":"x"}"#,
            br#"{"type":"news"}"#,
            b"rw:1:2",
            b"rw:99999999999:1:1",
            b"",
            b"{",
        ] {
            assert!(matches!(read_own(stranger), Incoming::Unknown(_)), "{}", String::from_utf8_lossy(stranger));
        }
    }
}
