//! The hot functions, one by its name, so that valgrind can count their instructions: no timing, no noise. `bench/instructions`
//! runs it and compares with what stands in `bench/instructions.txt`.

#[path = "../tests/support/shard.rs"]
mod shard;

use bytes::Bytes;
use roomwire_engine::mesh::ToShard;
use roomwire_engine::names::RoomId;
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Opcode, Role, encode, encode_masked};
use roomwire_wire::message::{self, Chat, FieldLimits, RawText, ServerMessage};
use shard::{NOW, connect, join, room_of, send_all};
use std::hint::black_box;

/// How often each is done: what a first call has to do more is lost among them.
const TIMES: usize = 200;
const MEMBERS: usize = 1_000;

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    match name.as_str() {
        "decode-128" => decode(128),
        "decode-4096" => decode(4_096),
        "parse" => parse(),
        "encode" => encode_chat(),
        "publish" => publish(),
        "fanout" => fan_out(),
        _ => {
            // A line each: the name, and how many things one measurement does.
            for (name, times) in [("decode-128", TIMES), ("decode-4096", TIMES), ("parse", TIMES), ("encode", TIMES)] {
                println!("{name} {times}");
            }
            println!("publish {TIMES}\nfanout {}", TIMES * MEMBERS);
        }
    }
}

/// What valgrind counts in: all that `work` does, and nothing else.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

/// A masked text frame as it comes from the socket: header, unmask, UTF-8.
fn decode(size: usize) {
    let mut frame = Vec::new();
    encode_masked(Opcode::Text, "x".repeat(size).as_bytes(), [0x5a, 0x17, 0xc3, 0x88], &mut frame);
    let limits = FrameLimits { message_bytes_max: 65_536, fragments_max: 16 };
    let mut decoder = Decoder::new(Role::Server);
    let mut bytes = frame.clone();
    measured(&mut || {
        // Decoding unmasks in place.
        bytes.copy_from_slice(&frame);
        let mut input = Input::new(&mut bytes);
        assert!(black_box(decoder.next(&mut input, &limits)).is_ok_and(|item| item.is_some()));
    });
}

fn chat_text() -> String {
    let content = "x".repeat(128);
    format!(r#"{{"type":"chat_message","roomId":"r","content":"{content}","clientId":"c-17"}}"#)
}

/// A `chat_message` of a client.
fn parse() {
    let text = chat_text();
    let limits = FieldLimits { content_bytes_max: 32_768, token_bytes_max: 8_192 };
    measured(&mut || assert!(black_box(message::parse(black_box(&text), &limits)).is_ok()));
}

/// A `chat_message` to clients, and the frame around it.
fn encode_chat() {
    let content = "x".repeat(128);
    let (mut text, mut frame) = (Vec::with_capacity(1_024), Vec::with_capacity(1_024));
    measured(&mut || {
        text.clear();
        frame.clear();
        let chat = Chat {
            message_id: "m-17",
            room_id: "r",
            user_id: "ada",
            username: "Ada",
            content: RawText::from_escaped(black_box(&content)),
            timestamp: NOW.unix_ms,
            seq: 17,
            epoch: 1,
        };
        ServerMessage::ChatMessage(chat).write(&mut text);
        encode(Opcode::Text, &text, &mut frame);
        black_box(&frame);
    });
}

/// A frame with a `chat_message`, from the socket to the bridge's queue.
fn publish() {
    let mut engine = room_of(1);
    let connection = connect(&mut engine, 1, &join(), &mut Vec::new());
    let mut frame = Vec::new();
    encode_masked(Opcode::Text, chat_text().as_bytes(), [0x5a, 0x17, 0xc3, 0x88], &mut frame);
    let mut bytes = frame.clone();
    let mut sent = 0;
    measured(&mut || {
        bytes.copy_from_slice(&frame);
        engine.received(NOW, connection, &mut bytes);
        sent += engine.effects.bridge.len();
        engine.effects.bridge.clear();
    });
    assert_eq!(sent, TIMES, "each goes to the bridge");
}

/// A message to a room, from the bridge to the chunks that the driver sends and gives back: for each member.
fn fan_out() {
    let mut engine = room_of(MEMBERS);
    let (room, payload) = (RoomId::new("r"), Bytes::from(vec![b'x'; 256]));
    let (mut sends, mut sent, mut seq) = (Vec::new(), 0, 0);
    measured(&mut || {
        seq += 1;
        let (room, payload) = (room.clone(), payload.clone());
        engine.mesh(NOW, ToShard::Deliver { room, seq, payload, received_us: NOW.mono_us - 5 });
        sent += send_all(&mut engine, &mut sends);
    });
    assert_eq!(sent, TIMES * MEMBERS, "each gets each");
}
