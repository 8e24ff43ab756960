//! RFC 6455 frames: an incremental decoder with no memory between frames, and the encoders.

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

/// The decoder of one connection. Between two frames it owns no heap memory; a partial frame or message is kept in
/// one box that is freed when the message is complete.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
}

impl Decoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub fn new(role: Role) -> Decoder {
        Decoder { role }
    }

    /// Takes the next item from `input`; `None` when the input is used up and what is left of a frame is kept.
    ///
    /// # Errors
    /// [`Violation`] as soon as it can be known: bad UTF-8 while fragments still arrive, too big from the header.
    /// After an error the decoder must not be used again.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        limits: &FrameLimits,
    ) -> Result<Option<Item<'a>>, Violation> {
        let _ = (self.role, input, limits);
        todo!()
    }

    /// Whether part of a frame or of a fragmented message is being kept, for the limit on assembly time.
    #[must_use]
    pub fn is_assembling(&self) -> bool {
        todo!()
    }
}

/// Appends a server frame (FIN set, unmasked).
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let _ = (opcode, payload, out);
    todo!()
}

/// Appends the header alone of a server frame of `length` payload bytes (FIN set, unmasked).
pub fn encode_header(opcode: Opcode, length: usize, out: &mut Vec<u8>) {
    let _ = (opcode, length, out);
    todo!()
}

/// Appends a client frame (FIN set, masked with `mask`): for the bench, the simulator and tests.
pub fn encode_masked(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let _ = (opcode, payload, mask, out);
    todo!()
}

/// Appends a server's close frame. A reason over 123 bytes is cut at a character.
pub fn encode_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let _ = (code, reason, out);
    todo!()
}
