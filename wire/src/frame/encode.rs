//! The encoders. What the server sends is always one frame, never a fragment.

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{Opcode, mask};

/// The longest header that a server sends: two bytes and a 64-bit length.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;

/// The most payload bytes of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Appends a server frame (FIN set, unmasked).
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(SERVER_HEADER_BYTES_MAX + payload.len());
    encode_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends the header alone of a server frame of `length` payload bytes (FIN set, unmasked).
pub fn encode_header(opcode: Opcode, length: usize, out: &mut Vec<u8>) {
    header(opcode, None, length, out);
}

/// Appends a client frame (FIN set, masked with `mask`): for the bench, the simulator and tests.
pub fn encode_masked(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    header(opcode, Some(mask), payload.len(), out);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(&mut out[start..], mask, 0);
}

/// Appends a server's close frame. A reason over 123 bytes is cut at a character.
pub fn encode_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let mut length = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(length) {
        length -= 1;
    }
    encode_header(Opcode::Close, 2 + length, out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..length]);
}

fn header(opcode: Opcode, mask: Option<[u8; 4]>, length: usize, out: &mut Vec<u8>) {
    let opcode = match opcode {
        Opcode::Text => OpCode::Data(Data::Text),
        Opcode::Binary => OpCode::Data(Data::Binary),
        Opcode::Close => OpCode::Control(Control::Close),
        Opcode::Ping => OpCode::Control(Control::Ping),
        Opcode::Pong => OpCode::Control(Control::Pong),
    };
    debug_assert!(matches!(opcode, OpCode::Data(_)) || length <= CONTROL_BYTES_MAX);
    let header = FrameHeader { is_final: true, opcode, mask, ..FrameHeader::default() };
    header.format(length as u64, out).expect("writing to a Vec<u8> never fails, and nothing else in it can");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_6455_section_5_7() {
        let mut out = Vec::new();
        encode(Opcode::Text, b"Hello", &mut out);
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        encode_masked(Opcode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d], &mut out);
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        out.clear();
        encode(Opcode::Ping, b"Hello", &mut out);
        assert_eq!(out, [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        encode_header(Opcode::Binary, 256, &mut out);
        assert_eq!(out, [0x82, 0x7e, 0x01, 0x00]);
        out.clear();
        encode_header(Opcode::Binary, 65536, &mut out);
        assert_eq!(out, [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_length_has_its_shortest_form() {
        for (length, bytes) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = Vec::new();
            encode_header(Opcode::Binary, length, &mut out);
            assert_eq!(out.len(), bytes, "{length}");
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        encode_close(1000, &"é".repeat(100), &mut out);
        assert_eq!(out[..4], [0x88, 124, 0x03, 0xe8]);
        assert_eq!(std::str::from_utf8(&out[4..]), Ok("é".repeat(61).as_str()));
        out.clear();
        encode_close(4001, &"x".repeat(123), &mut out);
        assert_eq!(out.len(), 2 + 125);
        out.clear();
        encode_close(1001, "", &mut out);
        assert_eq!(out, [0x88, 2, 0x03, 0xe9]);
    }
}
