//! The HTTP/1.1 upgrade head (RFC 9112, RFC 6455 section 4.2): found incrementally, parsed once, answered in full.

use std::borrow::Cow;

/// Finds the end of a head that arrives in pieces, without looking at any byte twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: u32,
}

impl HeadScanner {
    /// `head` is all that has arrived so far. Gives the head's length, through its empty line, once it is complete.
    pub fn find_end(&mut self, head: &[u8]) -> Option<usize> {
        let _ = (self.scanned, head);
        todo!()
    }
}

/// A valid upgrade request.
#[derive(Debug)]
pub struct Upgrade<'a> {
    /// `/` or `/ws`: the path without its query.
    pub path: &'a str,
    /// The value for `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The token, from the query, `Authorization: Bearer` or `Sec-WebSocket-Protocol: bearer.<token>`, percent-decoded
    /// where it came from the query. In that order of precedence.
    pub token: Option<Cow<'a, str>>,
    /// Whether the client offered the subprotocol `roomwire.v1`; the answer then names it, and never the bearer.
    pub subprotocol: bool,
    /// The `Origin` header.
    pub origin: Option<&'a str>,
}

/// Why an upgrade is refused, as a proper HTTP answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`status` and `reason` say it")]
pub enum Refusal {
    BadRequest(&'static str),
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    UpgradeRequired,
    UriTooLong,
    HeadTooLarge,
    RequestTimeout,
    Unavailable { retry_after_secs: u32 },
}

impl Refusal {
    /// The HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        todo!()
    }

    /// Appends the whole answer: status line, `Connection: close`, the headers that its status asks for
    /// (`Sec-WebSocket-Version: 13`, `Upgrade: websocket`, `Allow: GET`, `Retry-After`), a short text body.
    pub fn encode(self, out: &mut Vec<u8>) {
        let _ = out;
        todo!()
    }
}

/// Parses one complete head (as found by [`HeadScanner`]).
///
/// # Errors
/// [`Refusal`] for everything that RFC 6455 section 4.2.1 and FACTS.md section 4 (Handshake) ask to refuse.
pub fn parse(head: &[u8]) -> Result<Upgrade<'_>, Refusal> {
    let _ = head;
    todo!()
}

/// Appends the 101 answer.
pub fn encode_accept(upgrade: &Upgrade<'_>, out: &mut Vec<u8>) {
    let _ = (upgrade, out);
    todo!()
}
