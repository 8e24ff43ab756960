//! Frame headers: parsed by tungstenite's codec, then held against the rules that the codec leaves to its caller.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::encode::CONTROL_BYTES_MAX;
use super::{Opcode, Role, Violation};

/// The longest header: two bytes, a 64-bit length, a mask.
pub(super) const HEADER_BYTES_MAX: usize = 14;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first frame of a message: text or binary.
    Message(Opcode),
    /// A further frame of a message.
    Continuation,
    /// Ping, pong or close.
    Control(Opcode),
}

/// A header that broke no rule of RFC 6455 section 5.2 on its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) is_final: bool,
    /// All zeroes in a frame of a server, which changes nothing.
    pub(super) mask: [u8; 4],
    pub(super) length: u64,
    /// How long the header itself was.
    pub(super) bytes: usize,
}

/// Parses the header at the start of `bytes`; `None` if it is not complete.
pub(super) fn parse(bytes: &[u8], role: Role) -> Result<Option<Header>, Violation> {
    if let Some(&first_two) = bytes.first_chunk::<2>() {
        check_first_two(first_two, role)?;
    }
    let bytes = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Violation::protocol("Invalid frame header"))?;
    let Some((header, length)) = parsed else { return Ok(None) };
    // The codec takes any length in any of the three forms; RFC 6455 asks for the shortest, and 63 bits at most.
    match bytes[1] & 0x7F {
        126 if length < 126 => return Err(Violation::protocol("Payload length not in its shortest form")),
        127 if length < 65_536 => return Err(Violation::protocol("Payload length not in its shortest form")),
        127 if length >> 63 != 0 => return Err(Violation::protocol("Payload length has its highest bit set")),
        _ => {}
    }
    Ok(Some(Header {
        kind: kind(header.opcode)?,
        is_final: header.is_final,
        mask: header.mask.unwrap_or_default(),
        length,
        bytes: header.len(length),
    }))
}

/// Everything that can be known from two bytes is, so that a bad frame is refused before its length or mask came.
fn check_first_two([first, second]: [u8; 2], role: Role) -> Result<(), Violation> {
    if first & 0x70 != 0 {
        return Err(Violation::protocol("Reserved bits are set"));
    }
    let is_control = first & 0x08 != 0;
    if first & 0x07 > 2 {
        return Err(Violation::protocol("Reserved opcode"));
    }
    if is_control && first & 0x80 == 0 {
        return Err(Violation::protocol("Fragmented control frame"));
    }
    if is_control && usize::from(second & 0x7F) > CONTROL_BYTES_MAX {
        return Err(Violation::protocol("Control frame over 125 bytes"));
    }
    match (role, second & 0x80 != 0) {
        (Role::Server, false) => Err(Violation::protocol("Frame is not masked")),
        (Role::Client, true) => Err(Violation::protocol("Frame is masked")),
        _ => Ok(()),
    }
}

fn kind(opcode: OpCode) -> Result<Kind, Violation> {
    match opcode {
        OpCode::Data(Data::Continue) => Ok(Kind::Continuation),
        OpCode::Data(Data::Text) => Ok(Kind::Message(Opcode::Text)),
        OpCode::Data(Data::Binary) => Ok(Kind::Message(Opcode::Binary)),
        OpCode::Control(Control::Close) => Ok(Kind::Control(Opcode::Close)),
        OpCode::Control(Control::Ping) => Ok(Kind::Control(Opcode::Ping)),
        OpCode::Control(Control::Pong) => Ok(Kind::Control(Opcode::Pong)),
        OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
            Err(Violation::protocol("Reserved opcode"))
        }
    }
}
