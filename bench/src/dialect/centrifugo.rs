//! Centrifugo's JSON protocol, as much as a load needs: one command each way, told apart by its id. `payload` and `worker`
//! call it. A frame may hold several messages, a line each.

use std::fmt::Write as _;

use crate::payload::{Incoming, Position, Stamp, write_content};

/// Ids that are no publish's.
const CONNECT: u32 = 1;
const SUBSCRIBE: u32 = 2;
const PUBLISH: u32 = 3;
const UNSUBSCRIBE: u32 = 4;

/// The answer to the server's ping, and the ping itself.
pub(crate) const PONG: &str = "{}";

/// The first command of a connection.
pub(crate) fn write_connect(token: &str, out: &mut String) {
    out.clear();
    // Writing to a String cannot fail.
    let _ = write!(out, r#"{{"id":{CONNECT},"connect":{{"token":"{token}"}}}}"#);
}

pub(crate) fn write_join(channel: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"id":{SUBSCRIBE},"subscribe":{{"channel":"{channel}"}}}}"#);
}

pub(crate) fn write_leave(channel: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"id":{UNSUBSCRIBE},"unsubscribe":{{"channel":"{channel}"}}}}"#);
}

pub(crate) fn write_chat(channel: &str, stamp: Stamp, size: usize, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"id":{PUBLISH},"publish":{{"channel":"{channel}","data":{{"content":""#);
    write_content(stamp, size, out);
    out.push_str(r#""}}}"#);
}

/// Reads one line.
pub(crate) fn read(line: &[u8]) -> Incoming<'_> {
    if line == PONG.as_bytes() {
        return Incoming::Ping;
    }
    if line.starts_with(br#"{"push":{"#) {
        return match Stamp::find(line) {
            Some(stamp) => Incoming::Delivery { stamp, position: Position::default() },
            None => Incoming::Unknown(line),
        };
    }
    let Some(rest) = line.strip_prefix(br#"{"id":"#) else { return Incoming::Unknown(line) };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match &rest[digits..] {
        rest if rest.starts_with(br#","connect":"#) => Incoming::Connected,
        rest if rest.starts_with(br#","subscribe":"#) => Incoming::Joined,
        rest if rest.starts_with(br#","publish":"#) || rest.starts_with(br#","unsubscribe":"#) => Incoming::Event,
        rest if rest.starts_with(br#","error":"#) => Incoming::Error(line),
        _ => Incoming::Unknown(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { publisher: 1, number: 2, intended_ns: 3 };

    #[test]
    fn commands_are_json() {
        let mut out = String::new();
        let mut json = |write: &dyn Fn(&mut String)| -> serde_json::Value {
            write(&mut out);
            serde_json::from_str(&out).expect("valid JSON")
        };
        assert_eq!(json(&|out| write_connect("t", out))["connect"]["token"], "t");
        assert_eq!(json(&|out| write_join("c", out))["subscribe"]["channel"], "c");
        assert_eq!(json(&|out| write_leave("c", out))["unsubscribe"]["channel"], "c");
        let chat = json(&|out| write_chat("c", STAMP, 64, out));
        assert_eq!(chat["publish"]["channel"], "c");
        assert_eq!(chat["publish"]["data"]["content"].as_str().map(str::len), Some(64));
    }

    #[test]
    fn replies_and_pushes_are_told_apart() {
        assert_eq!(read(br#"{"id":1,"connect":{"client":"x","ping":25,"pong":true}}"#), Incoming::Connected);
        assert_eq!(read(br#"{"id":2,"subscribe":{}}"#), Incoming::Joined);
        assert_eq!(read(br#"{"id":3,"publish":{}}"#), Incoming::Event);
        assert_eq!(read(b"{}"), Incoming::Ping);
        let push = br#"{"push":{"channel":"c","pub":{"data":{"content":"rw:1:2:3:xx"},"info":{"user":"u1"}}}}"#;
        assert_eq!(read(push), Incoming::Delivery { stamp: STAMP, position: Position::default() });
        assert!(matches!(read(br#"{"id":2,"error":{"code":103}}"#), Incoming::Error(_)));
        assert!(matches!(read(br#"{"push":{"disconnect":{"code":3012}}}"#), Incoming::Unknown(_)));
        assert!(matches!(read(br#"{"id":2}"#), Incoming::Unknown(_)));
    }
}
