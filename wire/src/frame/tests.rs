//! The decoder as a peer sees it.

use super::*;

const NO_LIMITS: FrameLimits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An item that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Item<'_>> for Owned {
    fn from(item: Item<'_>) -> Owned {
        match item {
            Item::Text(text) => Owned::Text(text.to_owned()),
            Item::Binary(bytes) => Owned::Binary(bytes.to_vec()),
            Item::Ping(bytes) => Owned::Ping(bytes.to_vec()),
            Item::Pong(bytes) => Owned::Pong(bytes.to_vec()),
            Item::Close(body) => Owned::Close(body.map(|(code, reason)| (code, reason.to_owned()))),
        }
    }
}

type Verdict = (Vec<Owned>, Option<Violation>);

/// Feeds one read.
fn feed(decoder: &mut Decoder, bytes: &[u8], limits: &FrameLimits, items: &mut Vec<Owned>) -> Option<Violation> {
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    loop {
        match decoder.next(&mut input, limits) {
            Ok(Some(item)) => items.push(item.into()),
            Ok(None) => {
                assert!(input.is_empty());
                return None;
            }
            Err(violation) => return Some(violation),
        }
    }
}

/// Feeds a stream cut into reads of the given pieces.
fn decode<'p>(role: Role, pieces: impl IntoIterator<Item = &'p [u8]>, limits: &FrameLimits) -> Verdict {
    let mut decoder = Decoder::new(role);
    let mut items = Vec::new();
    for piece in pieces {
        if let Some(violation) = feed(&mut decoder, piece, limits, &mut items) {
            return (items, Some(violation));
        }
    }
    (items, None)
}

/// Decodes `stream` whole, then at every cut and byte by byte; all must agree.
fn decode_at_every_cut(role: Role, stream: &[u8], limits: &FrameLimits) -> Verdict {
    let whole = decode(role, [stream], limits);
    assert_eq!(decode(role, stream.chunks(1), limits), whole, "byte by byte: {stream:02x?}");
    for cut in 0..=stream.len() {
        let (left, right) = stream.split_at(cut);
        assert_eq!(decode(role, [left, right], limits), whole, "cut at {cut}: {stream:02x?}");
    }
    whole
}

/// A client's frame with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_masked(Opcode::Binary, payload, MASK, &mut out);
    out[0] = first;
    out
}

fn server(stream: &[u8]) -> Verdict {
    decode_at_every_cut(Role::Server, stream, &NO_LIMITS)
}

fn text(text: &str) -> Owned {
    Owned::Text(text.to_owned())
}

#[test]
fn a_decoder_is_24_bytes() {
    assert!(size_of::<Decoder>() <= 24);
}

#[test]
fn the_examples_of_rfc_6455_section_5_7() {
    let client = |stream: &[u8]| decode_at_every_cut(Role::Client, stream, &NO_LIMITS);
    assert_eq!(client(b"\x81\x05Hello"), (vec![text("Hello")], None));
    assert_eq!(server(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), (vec![text("Hello")], None));
    assert_eq!(client(b"\x01\x03Hel\x80\x02lo"), (vec![text("Hello")], None));
    assert_eq!(client(b"\x89\x05Hello"), (vec![Owned::Ping(b"Hello".to_vec())], None));
    assert_eq!(server(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), (vec![Owned::Pong(b"Hello".to_vec())], None));
}
