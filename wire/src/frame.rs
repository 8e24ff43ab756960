//! RFC 6455 frames: an incremental decoder with no memory between frames, and the encoders.
//!
//! Who calls it: `engine` for every connection, `bench` and `sim` as the other end. What it never does: answer a ping
//! or a close by itself, or keep anything of a frame that came in full.

mod decoder;
mod encode;
mod header;
mod mask;
mod partial;
mod text;

pub use decoder::Decoder;
pub use encode::{CONTROL_BYTES_MAX, SERVER_HEADER_BYTES_MAX, encode, encode_close, encode_header, encode_masked};

use crate::close::CloseCode;

/// What a decoder accepts. A value of `usize::MAX` or `u32::MAX` means no limit.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// The most payload bytes of one message, all fragments together. Checked from the header, before any allocation.
    pub message_bytes_max: usize,
    /// The most frames that one message may be cut into, empty ones included.
    pub fragments_max: u32,
}

/// Which end of the connection decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames come from a client: each must be masked.
    Server,
    /// Frames come from a server: none may be masked.
    Client,
}

/// Frame types that an encoder is asked for (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "RFC 6455's own names")]
pub enum Opcode {
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// One complete message or control frame. Its bytes lie in the input, or in the decoder if they came in parts.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping and its payload.
    Ping(&'a [u8]),
    /// A pong and its payload.
    Pong(&'a [u8]),
    /// A close frame: its code and reason, or none. The code is one that a peer may send.
    Close(Option<(u16, &'a str)>),
}

/// The peer broke the protocol or a limit; close with this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// 1002, 1007 or 1009.
    pub code: CloseCode,
    /// What was wrong, for the close frame and the log.
    pub reason: &'static str,
    /// The limit that was crossed, if it was one: `message_bytes_max` or `fragments_max`.
    pub limit: Option<&'static str>,
}

impl Violation {
    fn protocol(reason: &'static str) -> Violation {
        Violation { code: CloseCode::Protocol, reason, limit: None }
    }

    fn too_big(reason: &'static str, limit: &'static str) -> Violation {
        Violation { code: CloseCode::TooBig, reason, limit: Some(limit) }
    }

    fn bad_text() -> Violation {
        Violation { code: CloseCode::InvalidData, reason: "Text is not valid UTF-8", limit: None }
    }
}

/// Bytes as they came from the socket, and how many of them are consumed. Unmasked in place.
#[derive(Debug)]
pub struct Input<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl<'b> Input<'b> {
    /// Wraps what one read brought.
    pub fn new(bytes: &'b mut [u8]) -> Input<'b> {
        Input { bytes, at: 0 }
    }

    /// Whether every byte was consumed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }
}

#[cfg(test)]
mod tests;
