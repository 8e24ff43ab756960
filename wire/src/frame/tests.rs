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

#[test]
fn a_stream_of_everything_decodes_alike_at_every_cut() {
    let mut stream = Vec::new();
    encode_masked(Opcode::Text, "héllo 😀".as_bytes(), MASK, &mut stream);
    stream.extend(frame(0x01, "κό".as_bytes()));
    stream.extend(frame(0x89, b"between"));
    stream.extend(frame(0x00, b""));
    // The cut goes through a character.
    stream.extend(frame(0x00, &"σμε".as_bytes()[..3]));
    stream.extend(frame(0x8a, b""));
    stream.extend(frame(0x80, &"σμε".as_bytes()[3..]));
    encode_masked(Opcode::Binary, &[0xff; 130], [0; 4], &mut stream);
    stream.extend(frame(0x02, b"\xff"));
    stream.extend(frame(0x80, b"\xfe"));
    stream.extend(frame(0x81, b""));
    stream.extend(frame(0x88, b"\x03\xe8bye"));
    let expected = vec![
        text("héllo 😀"),
        Owned::Ping(b"between".to_vec()),
        Owned::Pong(Vec::new()),
        text("κόσμε"),
        Owned::Binary(vec![0xff; 130]),
        Owned::Binary(vec![0xff, 0xfe]),
        text(""),
        Owned::Close(Some((1000, "bye".to_owned()))),
    ];
    assert_eq!(server(&stream), (expected, None));
}

#[test]
fn lengths_around_each_form_decode_alike_at_every_cut() {
    for length in [0, 1, 124, 125, 126, 127, 128, 255, 256] {
        let stream = frame(0x82, &vec![0x5a; length]);
        assert_eq!(server(&stream), (vec![Owned::Binary(vec![0x5a; length])], None));
    }
    // Here every cut would take minutes; those around the header, and odd pieces, are what can go wrong.
    for length in [65_534, 65_535, 65_536, 65_537] {
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let stream = frame(0x82, &payload);
        let expected = (vec![Owned::Binary(payload)], None);
        for cut in (0..20).chain(stream.len() - 9..=stream.len()) {
            let (left, right) = stream.split_at(cut);
            assert_eq!(decode(Role::Server, [left, right], &NO_LIMITS), expected, "{length} at {cut}");
        }
        for size in [1, 7, 4096, 65_535] {
            assert_eq!(decode(Role::Server, stream.chunks(size), &NO_LIMITS), expected, "{length} by {size}");
        }
    }
}

#[test]
fn a_whole_frame_is_lent_from_the_input() {
    let mut bytes = frame(0x81, b"lent");
    let range = bytes.as_ptr_range();
    let mut decoder = Decoder::new(Role::Server);
    let mut input = Input::new(&mut bytes);
    let Ok(Some(Item::Text(text))) = decoder.next(&mut input, &NO_LIMITS) else { panic!("no text") };
    assert!(range.contains(&text.as_ptr()));
}

#[test]
fn every_broken_rule_has_its_code() {
    let long = vec![b'x'; 126];
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("rsv1", frame(0xc1, b"x"), 1002),
        ("rsv2", frame(0xa1, b"x"), 1002),
        ("rsv3", frame(0x91, b"x"), 1002),
        ("rsv in a continuation", [frame(0x01, b"a"), frame(0xc0, b"b")].concat(), 1002),
        ("opcode 3", frame(0x83, b""), 1002),
        ("opcode 4", frame(0x84, b""), 1002),
        ("opcode 5", frame(0x85, b""), 1002),
        ("opcode 6", frame(0x86, b""), 1002),
        ("opcode 7", frame(0x87, b""), 1002),
        ("opcode 11", frame(0x8b, b""), 1002),
        ("opcode 12", frame(0x8c, b""), 1002),
        ("opcode 13", frame(0x8d, b""), 1002),
        ("opcode 14", frame(0x8e, b""), 1002),
        ("opcode 15", frame(0x8f, b""), 1002),
        ("fragmented ping", frame(0x09, b""), 1002),
        ("fragmented close", frame(0x08, b""), 1002),
        ("long ping", frame(0x89, &long), 1002),
        ("long pong", frame(0x8a, &long), 1002),
        ("long close", frame(0x88, &long), 1002),
        ("unmasked", b"\x81\x01x".to_vec(), 1002),
        ("unmasked and empty", b"\x81\x00".to_vec(), 1002),
        ("continuation first", frame(0x80, b"x"), 1002),
        ("continuation first, more to come", frame(0x00, b"x"), 1002),
        ("continuation after a message", [frame(0x81, b"a"), frame(0x80, b"b")].concat(), 1002),
        ("continuation after fragments", [frame(0x01, b""), frame(0x80, b""), frame(0x80, b"")].concat(), 1002),
        ("text within fragments", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("binary within fragments", [frame(0x01, b"a"), frame(0x02, b"b")].concat(), 1002),
        ("16-bit length of 125", [b"\x82\xfe\x00\x7d\0\0\0\0".to_vec(), vec![0; 125]].concat(), 1002),
        ("16-bit length of 0", b"\x82\xfe\x00\x00\0\0\0\0".to_vec(), 1002),
        ("64-bit length of 65535", b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0".to_vec(), 1002),
        ("64-bit length of 1", b"\x82\xff\0\0\0\0\0\0\0\x01\0\0\0\0x".to_vec(), 1002),
        ("64-bit length with its highest bit", b"\x82\xff\x80\0\0\0\0\x01\0\0\0\0\0\0".to_vec(), 1002),
        ("64-bit length of all ones", b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec(), 1002),
        ("close of one byte", frame(0x88, b"\x03"), 1002),
        ("close with a bad reason", frame(0x88, b"\x03\xe8\xff"), 1007),
        ("close with half a character", frame(0x88, b"\x03\xe8\xe2\x82"), 1007),
        ("bad text", frame(0x81, b"a\xffb"), 1007),
        ("text that ends in a character", frame(0x81, b"\xe2\x82"), 1007),
        ("fragments that end in a character", [frame(0x01, b"\xe2"), frame(0x80, b"\x82")].concat(), 1007),
        ("a surrogate", frame(0x81, b"\xed\xa0\x80"), 1007),
    ];
    for (name, stream, code) in cases {
        let (_, violation) = server(stream);
        assert_eq!(violation.map(|violation| violation.code as u16), Some(*code), "{name}");
    }
    let masked = frame(0x81, b"x");
    let (_, violation) = decode_at_every_cut(Role::Client, &masked, &NO_LIMITS);
    assert_eq!(violation.map(|violation| violation.code), Some(CloseCode::Protocol), "masked by a server");
}

#[test]
fn close_codes_are_those_that_a_peer_may_send() {
    for code in 0..=u16::MAX {
        let stream = frame(0x88, &code.to_be_bytes());
        let verdict = decode(Role::Server, [&stream[..]], &NO_LIMITS);
        let good = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        if good {
            assert_eq!(verdict, (vec![Owned::Close(Some((code, String::new())))], None));
        } else {
            assert_eq!(verdict.1.map(|violation| violation.code), Some(CloseCode::Protocol), "{code}");
        }
    }
    assert_eq!(server(&frame(0x88, b"")), (vec![Owned::Close(None)], None));
    let longest = [b"\x0f\xa0".to_vec(), vec![b'r'; 123]].concat();
    assert_eq!(server(&frame(0x88, &longest)), (vec![Owned::Close(Some((4000, "r".repeat(123))))], None));
}

#[test]
fn nothing_follows_a_close() {
    let stream = [frame(0x01, b"begun"), frame(0x88, b"\x03\xe8"), frame(0x89, b"x"), b"\xff\xff".to_vec()].concat();
    assert_eq!(server(&stream), (vec![Owned::Close(Some((1000, String::new())))], None));
    let mut decoder = Decoder::new(Role::Server);
    feed(&mut decoder, &stream, &NO_LIMITS, &mut Vec::new());
    assert!(!decoder.is_assembling());
}

/// How many bytes of `stream` must come before it is refused.
fn refused_after(stream: &[u8], limits: &FrameLimits) -> Option<(usize, Violation)> {
    let mut decoder = Decoder::new(Role::Server);
    stream.iter().enumerate().find_map(|(index, &byte)| {
        let violation = feed(&mut decoder, &[byte], limits, &mut Vec::new())?;
        Some((index + 1, violation))
    })
}

#[test]
fn bad_text_fails_with_the_byte_that_makes_it_bad() {
    // The text of conformance cases 6.4.x: bad from its 13th byte on (0xf4 0x90 is beyond U+10FFFF).
    let bad = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80\x65\x64\x69\x74\x65\x64";
    let one_frame = frame(0x81, bad);
    let (bytes, violation) = refused_after(&one_frame, &NO_LIMITS).expect("refused");
    assert_eq!((bytes, violation.code), (6 + 13, CloseCode::InvalidData));
    let first = frame(0x01, &bad[..12]);
    let fragments = [first.clone(), frame(0x00, &bad[12..13]), frame(0x80, &bad[13..])].concat();
    let (bytes, violation) = refused_after(&fragments, &NO_LIMITS).expect("refused");
    assert_eq!((bytes, violation.code), (first.len() + 6 + 1, CloseCode::InvalidData));
}

#[test]
fn too_big_is_known_from_the_header() {
    let limits = FrameLimits { message_bytes_max: 1000, fragments_max: u32::MAX };
    assert_eq!(refused_after(&frame(0x82, &[0; 1000]), &limits), None);
    let (bytes, violation) = refused_after(&frame(0x82, &[0; 1001]), &limits).expect("refused");
    assert_eq!((bytes, violation.code, violation.limit), (8, CloseCode::TooBig, Some("message_bytes_max")));
    let huge = b"\x82\xff\x40\0\0\0\0\0\0\0\x01\x02\x03\x04";
    assert_eq!(
        refused_after(huge, &limits).map(|(bytes, violation)| (bytes, violation.code)),
        Some((14, CloseCode::TooBig))
    );
    assert_eq!(refused_after(huge, &NO_LIMITS), None);
    // All fragments together count, control frames between them do not.
    let mut stream = [frame(0x02, &[0; 600]), frame(0x89, &[0; 125])].concat();
    let before = stream.len();
    stream.extend(frame(0x80, &[0; 401]));
    let (bytes, violation) = refused_after(&stream, &limits).expect("refused");
    assert_eq!((bytes, violation.code), (before + 8, CloseCode::TooBig));
    let fits = [frame(0x02, &[0; 600]), frame(0x89, &[0; 125]), frame(0x80, &[0; 400])].concat();
    assert_eq!(refused_after(&fits, &limits), None);
    // In the middle of a character the bytes kept aside count too.
    let limits = FrameLimits { message_bytes_max: 3, fragments_max: u32::MAX };
    assert_eq!(refused_after(&[frame(0x01, b"\xe2\x82"), frame(0x80, b"\xac")].concat(), &limits), None);
    let (_, violation) =
        refused_after(&[frame(0x01, b"\xe2\x82"), frame(0x80, b"\xac!")].concat(), &limits).expect("refused");
    assert_eq!(violation.code, CloseCode::TooBig);
}

#[test]
fn fragments_are_counted_the_empty_ones_too() {
    let limits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: 3 };
    let three = [frame(0x01, b""), frame(0x00, b""), frame(0x80, b"x")].concat();
    assert_eq!(
        decode_at_every_cut(Role::Server, &[three.clone(), three].concat(), &limits),
        (vec![text("x"); 2], None)
    );
    let four = [frame(0x01, b""), frame(0x00, b""), frame(0x89, b""), frame(0x00, b""), frame(0x80, b"")].concat();
    let (items, violation) = decode_at_every_cut(Role::Server, &four, &limits);
    assert_eq!(items, [Owned::Ping(Vec::new())]);
    let violation = violation.expect("refused");
    assert_eq!((violation.code, violation.limit), (CloseCode::TooBig, Some("fragments_max")));
}

#[test]
fn assembling_is_what_lies_between_the_first_byte_and_the_last() {
    let mut stream = Vec::new();
    let mut ends = Vec::new();
    for message in [
        frame(0x81, b"one"),
        [frame(0x01, b"a"), frame(0x89, b"ping"), frame(0x80, b"b")].concat(),
        frame(0x8a, b""),
        frame(0x82, b""),
    ] {
        stream.extend(message);
        ends.push(stream.len());
    }
    let mut decoder = Decoder::new(Role::Server);
    assert!(!decoder.is_assembling());
    for (index, &byte) in stream.iter().enumerate() {
        feed(&mut decoder, &[byte], &NO_LIMITS, &mut Vec::new());
        assert_eq!(decoder.is_assembling(), !ends.contains(&(index + 1)), "after byte {index}");
    }
    // It is over with the item, before the next call.
    let mut decoder = Decoder::new(Role::Server);
    let mut bytes = frame(0x81, b"ab");
    let (left, right) = bytes.split_at_mut(7);
    assert_eq!(decoder.next(&mut Input::new(left), &NO_LIMITS), Ok(None));
    assert!(decoder.is_assembling());
    assert!(matches!(decoder.next(&mut Input::new(right), &NO_LIMITS), Ok(Some(Item::Text("ab")))));
    assert!(!decoder.is_assembling());
}

mod properties {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Owned> {
        prop_oneof![
            "\\PC{0,80}".prop_map(Owned::Text),
            vec(any::<u8>(), 0..300).prop_map(Owned::Binary),
            vec(any::<u8>(), 0..=125).prop_map(Owned::Ping),
            vec(any::<u8>(), 0..=125).prop_map(Owned::Pong),
        ]
    }

    /// Writes a message in frames cut at `cuts`, each with a mask of its own, a ping behind each but the last.
    /// Gives the items in the order in which they are complete.
    fn write(message: &Owned, cuts: &[prop::sample::Index], mask: [u8; 4], out: &mut Vec<u8>) -> Vec<Owned> {
        let (opcode, payload) = match message {
            Owned::Text(text) => (1, text.as_bytes()),
            Owned::Binary(bytes) => (2, bytes.as_slice()),
            Owned::Ping(bytes) => (9, bytes.as_slice()),
            Owned::Pong(bytes) => (10, bytes.as_slice()),
            Owned::Close(_) => unreachable!("not generated"),
        };
        let mut ends = vec![payload.len()];
        if opcode < 8 {
            ends.extend(cuts.iter().map(|cut| cut.index(payload.len() + 1)));
        }
        ends.sort_unstable();
        let mut items = Vec::new();
        let mut start = 0;
        for (index, &end) in ends.iter().enumerate() {
            let is_final = index + 1 == ends.len();
            let at = out.len();
            encode_masked(Opcode::Binary, &payload[start..end], mask.map(|byte| byte ^ index as u8), out);
            out[at] = if index == 0 { opcode } else { 0 } | if is_final { 0x80 } else { 0 };
            start = end;
            if !is_final {
                encode_masked(Opcode::Ping, &[index as u8], mask, out);
                items.push(Owned::Ping(vec![index as u8]));
            }
        }
        items.push(message.clone());
        items
    }

    proptest! {

        #![proptest_config(crate::seeded())]

        #[test]
        fn any_messages_in_any_fragments_in_any_reads_come_out_as_they_went_in(
            messages in vec((message(), vec(any::<prop::sample::Index>(), 0..5), any::<[u8; 4]>()), 0..8),
            reads in vec(1usize..200, 1..20),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (message, cuts, mask) in &messages {
                expected.extend(write(message, cuts, *mask, &mut stream));
            }
            let mut pieces = Vec::new();
            let mut rest = stream.as_slice();
            for size in reads.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(decode(Role::Server, pieces, &NO_LIMITS), (expected, None));
        }

        #[test]
        fn what_the_server_encodes_a_client_decodes(messages in vec(message(), 0..6)) {
            let mut stream = Vec::new();
            for message in &messages {
                match message {
                    Owned::Text(text) => encode(Opcode::Text, text.as_bytes(), &mut stream),
                    Owned::Binary(bytes) => encode(Opcode::Binary, bytes, &mut stream),
                    Owned::Ping(bytes) => encode(Opcode::Ping, bytes, &mut stream),
                    Owned::Pong(bytes) => encode(Opcode::Pong, bytes, &mut stream),
                    Owned::Close(_) => unreachable!("not generated"),
                }
            }
            prop_assert_eq!(decode(Role::Client, stream.chunks(97), &NO_LIMITS), (messages, None));
        }

        #[test]
        fn garbage_is_judged_alike_at_every_cut(garbage in vec(any::<u8>(), 0..60), first in 0u8..16) {
            let mut stream = garbage;
            if let Some(byte) = stream.first_mut() {
                *byte = 0x80 | first;
            }
            decode_at_every_cut(Role::Server, &stream, &FrameLimits { message_bytes_max: 40, fragments_max: 3 });
            decode_at_every_cut(Role::Client, &stream, &FrameLimits { message_bytes_max: 40, fragments_max: 3 });
        }
    }
}
