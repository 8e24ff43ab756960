//! The Pusher protocol, as much as a load needs: private channels and client events. `payload` and `worker` call it.
//!
//! A subscription to a private channel is signed for the connection's socket id, as an application's own server does it
//! for its users; here the bench is that server.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};

use crate::payload::{Incoming, Position, Stamp, write_content};

/// The key of the application whose secret the bench has.
pub(crate) const KEY: &str = "roomwire-bench";
pub(crate) const PATH: &str = "/app/roomwire-bench";

/// Signs subscriptions. The secret is the run's.
pub(crate) struct Signer(EncodingKey);

impl Signer {
    pub(crate) fn new(secret: &str) -> Signer {
        Signer(EncodingKey::from_secret(secret.as_bytes()))
    }

    /// HMAC-SHA256 of `text` in hexadecimal: the signature of a token, written otherwise.
    fn sign(&self, text: &str) -> Result<String> {
        let signature =
            crypto::sign(text.as_bytes(), &self.0, Algorithm::HS256).context("cannot sign a subscription")?;
        Ok(hexadecimal(&signature))
    }

    pub(crate) fn write_join(&self, channel: &str, socket_id: &str, out: &mut String) -> Result<()> {
        let auth = self.sign(&format!("{socket_id}:private-{channel}"))?;
        out.clear();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            r#"{{"event":"pusher:subscribe","data":{{"channel":"private-{channel}","auth":"{KEY}:{auth}"}}}}"#
        );
        Ok(())
    }
}

/// From unpadded base64 as URLs have it.
fn hexadecimal(base64: &str) -> String {
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let (mut out, mut bits, mut held) = (String::new(), 0_u32, 0);
    for byte in base64.bytes() {
        bits = bits << 6 | u32::from(sextet(byte));
        held += 6;
        while held >= 4 {
            held -= 4;
            let _ = write!(out, "{:x}", bits >> held & 15);
        }
    }
    // A byte has two digits: what is left over is padding.
    out.truncate(out.len() / 2 * 2);
    out
}

pub(crate) fn write_leave(channel: &str, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"event":"pusher:unsubscribe","data":{{"channel":"private-{channel}"}}}}"#);
}

pub(crate) fn write_chat(channel: &str, stamp: Stamp, size: usize, out: &mut String) {
    out.clear();
    let _ = write!(out, r#"{{"event":"client-message","channel":"private-{channel}","data":{{"content":""#);
    write_content(stamp, size, out);
    out.push_str(r#""}}"#);
}

/// The answer to `pusher:ping`.
pub(crate) const PONG: &str = r#"{"event":"pusher:pong","data":{}}"#;

/// Reads one message. Members may stand in any order, and `data` may be JSON in a string.
pub(crate) fn read(text: &[u8]) -> Incoming<'_> {
    let has = |needle: &str| text.windows(needle.len()).any(|window| window == needle.as_bytes());
    if let Some(stamp) = Stamp::find(text) {
        return Incoming::Delivery { stamp, position: Position::default() };
    }
    if has(r#""pusher:connection_established""#) {
        Incoming::Connected
    } else if has(r#""pusher_internal:subscription_succeeded""#) {
        Incoming::Joined
    } else if has(r#""pusher:ping""#) {
        Incoming::Ping
    } else if has(r#""pusher:pong""#) {
        Incoming::Event
    } else if has(r#""pusher:error""#) || has(r#""pusher:subscription_error""#) {
        Incoming::Error(text)
    } else {
        Incoming::Unknown(text)
    }
}

/// The socket id in `pusher:connection_established`: digits and a dot, as subscriptions are signed for it.
pub(crate) fn socket_id(text: &[u8]) -> Option<&str> {
    let name = b"socket_id";
    let at = text.windows(name.len()).position(|window| window == name)? + name.len();
    let start = at + text.get(at..)?.iter().position(u8::is_ascii_digit)?;
    let rest = &text[start..];
    let length = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.').unwrap_or(rest.len());
    std::str::from_utf8(&rest[..length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_signed_as_the_protocols_own_example() {
        // The worked example of Pusher's documentation of authentication signatures.
        let signer = Signer::new("7ad3773142a6692b25b8");
        let signature = signer.sign("1234.1234:private-foobar").expect("signs");
        assert_eq!(signature, "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4");
        let mut out = String::new();
        signer.write_join("foobar", "1234.1234", &mut out).expect("signs");
        let join: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        assert_eq!(join["data"]["channel"], "private-foobar");
        assert_eq!(join["data"]["auth"], format!("{KEY}:{signature}"));
    }

    #[test]
    fn messages_are_told_apart_whatever_the_order_of_their_members() {
        let greeting =
            br#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"12.34\",\"activity_timeout\":120}"}"#;
        assert_eq!(read(greeting), Incoming::Connected);
        assert_eq!(socket_id(greeting), Some("12.34"));
        assert_eq!(socket_id(b"{}"), None);
        let joined = br#"{"channel":"private-r","event":"pusher_internal:subscription_succeeded","data":"{}"}"#;
        assert_eq!(read(joined), Incoming::Joined);
        let stamp = Stamp { publisher: 1, number: 2, intended_ns: 3 };
        let delivery = Incoming::Delivery { stamp, position: Position::default() };
        assert_eq!(
            read(br#"{"event":"client-message","channel":"private-r","data":{"content":"rw:1:2:3:x"}}"#),
            delivery
        );
        assert_eq!(read(br#"{"data":"{\"content\":\"rw:1:2:3:x\"}","event":"client-message"}"#), delivery);
        assert_eq!(read(br#"{"event":"pusher:ping","data":{}}"#), Incoming::Ping);
        assert!(matches!(read(br#"{"event":"pusher:error","data":{"code":4301}}"#), Incoming::Error(_)));
        assert!(matches!(read(br#"{"event":"news"}"#), Incoming::Unknown(_)));
    }

    #[test]
    fn what_is_sent_is_json() {
        let mut out = String::new();
        write_chat("r", Stamp { publisher: 1, number: 2, intended_ns: 3 }, 64, &mut out);
        let chat: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        assert_eq!((&chat["event"], &chat["channel"]), (&"client-message".into(), &"private-r".into()));
        assert_eq!(chat["data"]["content"].as_str().map(str::len), Some(64));
        write_leave("r", &mut out);
        assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok());
    }
}
