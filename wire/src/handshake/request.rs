//! The upgrade request, held against RFC 6455 section 4.2.1 and RFC 9112.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::Header;
use tungstenite::handshake::derive_accept_key;

use super::Refusal;

/// The subprotocol that this server speaks.
pub const SUBPROTOCOL: &str = "roomwire.v1";

/// The most header lines of a request.
pub const HEADERS_MAX: usize = 100;

/// The longest request target, in bytes.
pub const URI_BYTES_MAX: usize = 4096;

/// How a subprotocol begins that is a token.
const BEARER_SUBPROTOCOL: &str = "bearer.";

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

/// Parses one complete head (as found by [`super::HeadScanner`]).
///
/// # Errors
/// [`Refusal`] for everything that RFC 6455 section 4.2.1 and FACTS.md section 4 (Handshake) ask to refuse.
pub fn parse(head: &[u8]) -> Result<Upgrade<'_>, Refusal> {
    check_lines(head)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(head).map_err(|error| match error {
        httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
        httparse::Error::Version => Refusal::BadRequest("HTTP/1.1 is needed"),
        _ => Refusal::BadRequest("Malformed request"),
    })?;
    if parsed != httparse::Status::Complete(head.len()) {
        return Err(Refusal::BadRequest("Malformed request"));
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(Refusal::BadRequest("Malformed request"));
    };
    if target.len() > URI_BYTES_MAX {
        return Err(Refusal::UriTooLong);
    }
    if method != "GET" {
        return Err(Refusal::MethodNotAllowed);
    }
    if request.version != Some(1) {
        return Err(Refusal::BadRequest("HTTP/1.1 is needed"));
    }
    let (path, query) = split_target(target)?;
    let fields = Fields::read(request.headers)?;
    if path != "/" && path != "/ws" {
        return Err(Refusal::NotFound);
    }
    fields.upgrade(path, query)
}

/// Appends the 101 answer.
pub fn encode_accept(upgrade: &Upgrade<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(upgrade.accept.as_bytes());
    if upgrade.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(SUBPROTOCOL.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// What `httparse` is too kind to refuse: line ends other than CRLF, folded lines, empty lines before the request.
fn check_lines(head: &[u8]) -> Result<(), Refusal> {
    if !head.ends_with(b"\r\n\r\n") {
        return Err(Refusal::BadRequest("Malformed request"));
    }
    let mut previous = b'\n';
    for &byte in head {
        let good = match (previous, byte) {
            (b'\r', next) => next == b'\n',
            (_, b'\n') => false,
            (b'\n', b' ' | b'\t') => return Err(Refusal::BadRequest("Folded header line")),
            _ => true,
        };
        if !good {
            return Err(Refusal::BadRequest("Line end is not CRLF"));
        }
        previous = byte;
    }
    if head.starts_with(b"\r") {
        return Err(Refusal::BadRequest("Malformed request"));
    }
    Ok(())
}

/// The path and the query of a request target, in origin form or (RFC 9112 section 3.2.2) in absolute form.
fn split_target(target: &str) -> Result<(&str, Option<&str>), Refusal> {
    let is_plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_plain {
        return Err(Refusal::BadRequest("Malformed request target"));
    }
    let scheme = ["http://", "https://", "ws://", "wss://"].into_iter().find(|scheme| has_prefix(target, scheme));
    let target = match scheme {
        None => target,
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            match rest.find(['/', '?']) {
                Some(0) => return Err(Refusal::BadRequest("Malformed request target")),
                Some(end) => &rest[end..],
                None => "/",
            }
        }
    };
    match target.split_once('?') {
        Some(("", query)) => Ok(("/", Some(query))),
        Some((path, query)) => Ok((path, Some(query))),
        None => Ok((target, None)),
    }
}

/// Case-blind, for ASCII.
fn has_prefix(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// The headers that matter here. Those that may stand only once do.
#[derive(Debug, Default)]
struct Fields<'a> {
    host: Option<&'a str>,
    key: Option<&'a str>,
    version: Option<&'a str>,
    authorization: Option<&'a str>,
    origin: Option<&'a str>,
    content_length: Option<&'a str>,
    has_transfer_encoding: bool,
    upgrades_to_websocket: bool,
    connection_upgrades: bool,
    subprotocol: bool,
    bearer: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(headers: &[Header<'a>]) -> Result<Fields<'a>, Refusal> {
        let mut fields = Fields::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("Host") {
                once(&mut fields.host, header)?;
            } else if is("Upgrade") {
                fields.upgrades_to_websocket |= has_token(text(header)?, "websocket");
            } else if is("Connection") {
                fields.connection_upgrades |= has_token(text(header)?, "upgrade");
            } else if is("Sec-WebSocket-Key") {
                once(&mut fields.key, header)?;
            } else if is("Sec-WebSocket-Version") {
                once(&mut fields.version, header)?;
            } else if is("Sec-WebSocket-Protocol") {
                fields.read_subprotocols(text(header)?)?;
            } else if is("Authorization") {
                once(&mut fields.authorization, header)?;
            } else if is("Origin") {
                once(&mut fields.origin, header)?;
            } else if is("Content-Length") {
                once(&mut fields.content_length, header)?;
            } else if is("Transfer-Encoding") {
                fields.has_transfer_encoding = true;
            }
        }
        Ok(fields)
    }

    fn read_subprotocols(&mut self, list: &'a str) -> Result<(), Refusal> {
        for subprotocol in elements(list) {
            if !subprotocol.bytes().all(is_token_byte) {
                return Err(Refusal::BadRequest("Malformed Sec-WebSocket-Protocol"));
            }
            if subprotocol == SUBPROTOCOL {
                self.subprotocol = true;
            } else if let Some(token) = subprotocol.strip_prefix(BEARER_SUBPROTOCOL) {
                self.bearer = self.bearer.or(not_empty(token));
            }
        }
        Ok(())
    }

    /// The checks, in the order in which their answers help most.
    fn upgrade(self, path: &'a str, query: Option<&'a str>) -> Result<Upgrade<'a>, Refusal> {
        self.check_framing()?;
        if !self.upgrades_to_websocket {
            return Err(Refusal::UpgradeRequired);
        }
        if !self.connection_upgrades {
            return Err(Refusal::BadRequest("Connection does not name Upgrade"));
        }
        if self.version != Some("13") {
            return Err(Refusal::UpgradeRequired);
        }
        let key = self.key.ok_or(Refusal::BadRequest("No Sec-WebSocket-Key"))?;
        if !is_key(key) {
            return Err(Refusal::BadRequest("Sec-WebSocket-Key is not 16 bytes of base64"));
        }
        let token = match query.map_or(Ok(None), query_token)? {
            Some(token) => Some(token),
            None => self.authorization.and_then(bearer).or(self.bearer).map(Cow::Borrowed),
        };
        Ok(Upgrade {
            path,
            accept: derive_accept_key(key.as_bytes()),
            token,
            subprotocol: self.subprotocol,
            origin: self.origin,
        })
    }

    /// Host, and that no body follows: its bytes would be read as frames.
    fn check_framing(&self) -> Result<(), Refusal> {
        let host = self.host.ok_or(Refusal::BadRequest("No Host"))?;
        if host.is_empty() || !host.bytes().all(is_host_byte) {
            return Err(Refusal::BadRequest("Malformed Host"));
        }
        if self.has_transfer_encoding {
            return Err(Refusal::BadRequest("A body is not accepted"));
        }
        match self.content_length {
            None => Ok(()),
            Some(length) if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Refusal::BadRequest("Malformed Content-Length"))
            }
            Some(length) if length.bytes().all(|byte| byte == b'0') => Ok(()),
            Some(_) => Err(Refusal::ContentTooLarge),
        }
    }
}

/// A header's value as text.
fn text<'a>(header: &Header<'a>) -> Result<&'a str, Refusal> {
    let value = std::str::from_utf8(header.value).map_err(|_| Refusal::BadRequest("Header is not text"))?;
    Ok(value.trim_matches([' ', '\t']))
}

fn once<'a>(slot: &mut Option<&'a str>, header: &Header<'a>) -> Result<(), Refusal> {
    if slot.replace(text(header)?).is_some() {
        return Err(Refusal::BadRequest("Header stands twice"));
    }
    Ok(())
}

/// The elements of a comma-separated list; RFC 9110 section 5.6.1 has empty ones skipped.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|element| !element.is_empty())
}

/// Case-blind.
fn has_token(list: &str, token: &str) -> bool {
    elements(list).any(|element| element.eq_ignore_ascii_case(token))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte)
}

fn is_key(key: &str) -> bool {
    let mut bytes = [0; 18];
    key.len() == 24 && STANDARD.decode_slice(key, &mut bytes) == Ok(16)
}

fn not_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The token of `Authorization: Bearer`; another scheme is no business of ours.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once([' ', '\t'])?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    not_empty(token.trim_matches([' ', '\t']))
}

/// The first `token` of a query that is not empty.
fn query_token(query: &str) -> Result<Option<Cow<'_, str>>, Refusal> {
    match query.split('&').find_map(|pair| not_empty(pair.strip_prefix("token=")?)) {
        Some(token) => percent_decoded(token).map(Some),
        None => Ok(None),
    }
}

fn percent_decoded(text: &str) -> Result<Cow<'_, str>, Refusal> {
    const MALFORMED: Refusal = Refusal::BadRequest("Malformed percent-encoding");
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit)) else {
            return Err(MALFORMED);
        };
        out.push(high << 4 | low);
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| MALFORMED)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
