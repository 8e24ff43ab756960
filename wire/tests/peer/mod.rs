//! The same stream through our decoder and through tungstenite's; shared with the fuzz target `differential`.

use std::io::{self, Read, Write};

use roomwire_wire::frame::{Decoder, FrameLimits, Input, Item, Role, Violation};
use tungstenite::protocol::{self, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

/// The message size that both are held to.
const MESSAGE_BYTES_MAX: usize = 4096;

/// A connection on which `stream` has arrived and nothing more has.
struct Arrived<'s> {
    stream: &'s [u8],
}

impl Read for Arrived<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stream.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.stream.read(buffer)
    }
}

impl Write for Arrived<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a decoder came to its end.
#[derive(Debug, PartialEq)]
enum End {
    Starved,
    Closed,
    Refused(Option<Violation>),
}

fn ours(stream: &[u8], piece: usize, role: Role) -> (Vec<Message>, End) {
    let limits = FrameLimits { message_bytes_max: MESSAGE_BYTES_MAX, fragments_max: u32::MAX };
    let mut decoder = Decoder::new(role);
    let mut items = Vec::new();
    let mut stream = stream.to_vec();
    for bytes in stream.chunks_mut(piece.max(1)) {
        let mut input = Input::new(bytes);
        loop {
            items.push(match decoder.next(&mut input, &limits) {
                Ok(Some(Item::Text(text))) => Message::text(text),
                Ok(Some(Item::Binary(bytes))) => Message::binary(bytes.to_vec()),
                Ok(Some(Item::Ping(bytes))) => Message::Ping(bytes.to_vec().into()),
                Ok(Some(Item::Pong(bytes))) => Message::Pong(bytes.to_vec().into()),
                Ok(Some(Item::Close(body))) => {
                    let frame = body.map(|(code, reason)| protocol::CloseFrame {
                        code: code.into(),
                        reason: reason.to_owned().into(),
                    });
                    items.push(Message::Close(frame));
                    return (items, End::Closed);
                }
                Ok(None) => break,
                Err(violation) => return (items, End::Refused(Some(violation))),
            });
        }
    }
    (items, End::Starved)
}

fn theirs(stream: &[u8], role: Role) -> (Vec<Message>, End) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(4096);
    let role = match role {
        Role::Server => protocol::Role::Server,
        Role::Client => protocol::Role::Client,
    };
    let mut socket = WebSocket::from_raw_socket(Arrived { stream }, role, Some(config));
    let mut items = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Close(frame)) => {
                items.push(Message::Close(frame));
                return (items, End::Closed);
            }
            Ok(message) => items.push(message),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (items, End::Starved),
            Err(_) => return (items, End::Refused(None)),
        }
    }
}

/// Panics where the two differ, apart from what is listed here.
///
/// 1. We refuse a length that is not in its shortest form or has its highest bit set, for a
///    control frame from the form alone; tungstenite takes it.
/// 2. For a close code that no peer may send tungstenite gives a close item with 1002; we refuse.
/// 3. It does the same for 1014, which is registered (Bad Gateway) and which we accept.
/// 4. We refuse as soon as it can be known; tungstenite when the frame is complete.
pub(crate) fn compare(stream: &[u8], piece: usize, role: Role) {
    let (our_items, our_end) = ours(stream, piece, role);
    let (their_items, their_end) = theirs(stream, role);
    if let Some(Message::Close(Some(frame))) = our_items.last()
        && u16::from(frame.code) == 1014
    {
        assert_eq!(our_items[..our_items.len() - 1], their_items[..their_items.len() - 1], "{stream:02x?}");
        return;
    }
    let End::Refused(Some(violation)) = our_end else {
        assert_eq!((our_items, our_end), (their_items, their_end), "{stream:02x?}");
        return;
    };
    let listed = ["Payload length", "Control frame over 125 bytes", "Invalid close code"];
    if listed.iter().any(|reason| violation.reason.starts_with(reason)) {
        assert!(their_items.starts_with(&our_items), "{violation:?}: {our_items:?} {their_items:?} {stream:02x?}");
        return;
    }
    assert_eq!(our_items, their_items, "{violation:?} {stream:02x?}");
    assert_ne!(their_end, End::Closed, "{violation:?} {stream:02x?}");
}
