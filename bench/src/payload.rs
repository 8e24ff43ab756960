//! What the bench says and what it understands: the stamp inside each content, the messages it sends, and a reader of
//! server messages that looks only at what the ledger needs. `worker` writes, `observer` reads.

use std::fmt::Write as _;

use crate::args::Dialect;

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
fn write_content(stamp: Stamp, size: usize, out: &mut String) {
    let start = out.len();
    stamp.write(out);
    out.push(':');
    while out.len() - start < size {
        out.push('x');
    }
}

/// Writes a `chat_message`; with a `clientId`, so that it is acked, where the dialect knows that.
pub(crate) fn write_chat(dialect: Dialect, room: &str, stamp: Stamp, size: usize, out: &mut String) {
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

/// Writes a `join_room`.
pub(crate) fn write_join(room: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"type":"join_room","roomId":"{room}"}}"#);
}

/// A `ping`: in the plain dialect its `pong` says that the join before it is done.
pub(crate) const PING: &str = r#"{"type":"ping"}"#;

/// What a server message means to the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    Connected,
    /// `room_history`: the join is done.
    History,
    /// A stamped message, and its `seq` if it has one.
    Delivery {
        stamp: Stamp,
        seq: Option<u64>,
    },
    Ack {
        stamp: Stamp,
    },
    Pong,
    /// `error`, as it came.
    Error(&'a [u8]),
    /// Join and leave events and the like.
    Event,
    /// Nothing that this bench sent or knows.
    Unknown(&'a [u8]),
}

/// Reads one text message. `type` has to be the first member, as both servers write it.
pub(crate) fn read(text: &[u8]) -> Incoming<'_> {
    if text.starts_with(STAMP_PREFIX.as_bytes()) {
        return Stamp::read(text).map_or(Incoming::Unknown(text), |stamp| Incoming::Delivery { stamp, seq: None });
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
        b"room_history" => Incoming::History,
        b"pong" => Incoming::Pong,
        b"error" => Incoming::Error(text),
        b"user_joined" | b"user_left" | b"members" | b"presence" | b"typing" | b"read_receipt" => Incoming::Event,
        _ => Incoming::Unknown(text),
    }
}

fn read_delivery<'a>(text: &'a [u8], rest: &'a [u8]) -> Incoming<'a> {
    let Some(content) = after(rest, br#""content":""#) else { return Incoming::Unknown(text) };
    let Some(stamp) = Stamp::read(content) else { return Incoming::Unknown(text) };
    // The content holds no quote (the bench wrote it), so what comes after its end is the server's.
    let seq = content
        .iter()
        .position(|byte| *byte == b'"')
        .and_then(|end| after(&content[end..], br#""seq":"#))
        .and_then(number)
        .map(|(seq, _)| seq);
    Incoming::Delivery { stamp, seq }
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
        assert_eq!(read(roomwire.as_bytes()), Incoming::Delivery { stamp: STAMP, seq: Some(77) });
        let plain = r#"{"type":"chat_message","messageId":"1","content":"rw:12:34:5678901234:xxxx","timestamp":1}"#;
        assert_eq!(read(plain.as_bytes()), Incoming::Delivery { stamp: STAMP, seq: None });
        assert_eq!(read(b"rw:12:34:5678901234:xxxx"), Incoming::Delivery { stamp: STAMP, seq: None });
    }

    #[test]
    fn acks_events_and_strangers_are_told_apart() {
        let ack = br#"{"type":"ack","clientId":"rw:12:34:5678901234","messageId":"m","roomId":"r","seq":1}"#;
        assert_eq!(read(ack), Incoming::Ack { stamp: STAMP });
        assert_eq!(read(br#"{"type":"pong","timestamp":1}"#), Incoming::Pong);
        assert_eq!(read(br#"{"type":"connected","message":"Welcome u1!"}"#), Incoming::Connected);
        assert_eq!(read(br#"{"type":"room_history","messages":[]}"#), Incoming::History);
        assert_eq!(read(br#"{"type":"user_joined","userId":"u1"}"#), Incoming::Event);
        assert!(matches!(read(br#"{"type":"error","code":"rate_limited"}"#), Incoming::Error(_)));
        for stranger in [
            br#"{"type":"chat_message","content":"hello"}"#.as_slice(),
            br#"{"type":"ack","clientId":"x"}"#,
            br#"{"type":"news"}"#,
            b"rw:1:2",
            b"rw:99999999999:1:1",
            b"",
            b"{",
        ] {
            assert!(matches!(read(stranger), Incoming::Unknown(_)), "{}", String::from_utf8_lossy(stranger));
        }
    }
}
