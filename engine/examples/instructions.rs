//! The hot functions, one by its name, so that valgrind can count their instructions: no timing, no noise. `bench/instructions`
//! runs it and compares with what stands in `bench/instructions.txt`.

use bytes::Bytes;
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::{ConnectionId, RoomId, ShardId, User, UserId};
use roomwire_engine::shard::{Identity, Verify};
use roomwire_engine::{Engine, Now};
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Opcode, Role, encode, encode_masked};
use roomwire_wire::message::{self, Chat, FieldLimits, RawText, ServerMessage};
use std::hint::black_box;
use std::sync::Arc;

const NOW: Now = Now { mono_us: 1_000_000, unix_ms: 1_700_000_000_000 };
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
    let connection = join(&mut engine, 1);
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

/// An engine with a room of so many live members.
fn room_of(members: usize) -> Engine {
    let verify: Verify = Arc::new(|token, _| {
        let user = User { id: UserId::new(token), name: Arc::from(token) };
        Some(Identity { user, expires_ms: None, grants: None })
    });
    let config = EngineConfig {
        limits: Limits { messages_per_second_max: 0, join_events_members_max: 1, ..Limits::default() },
        heartbeat_ms: 30_000,
        presence_grace_ms: 5_000,
        node: Arc::from("n"),
        shards: 1,
        cluster: false,
        echo: false,
        allowed_origins: Arc::from([String::from("*")]),
        reject_by_http: false,
        seed: 1,
    };
    let mut engine = Engine::new(ShardId(0), config, verify, NOW);
    for member in 0..members {
        join(&mut engine, member);
    }
    engine
}

/// Connects a user and joins the room.
fn join(engine: &mut Engine, user: usize) -> ConnectionId {
    let connection = engine.accepted(NOW, None).expect("no limit is reached");
    let mut bytes = format!(
        "GET /?token=u{user} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes();
    encode_masked(Opcode::Text, br#"{"type":"join_room","roomId":"r"}"#, [7; 4], &mut bytes);
    engine.received(NOW, connection, &mut bytes);
    for message in std::mem::take(&mut engine.effects.bridge) {
        if let ToBridge::History { from, room, .. } = message {
            let payload = Bytes::from_static(b"{}");
            engine.mesh(NOW, ToShard::HistoryPage { to: from, room, payload, next: None, live: true, later_ms: None });
        }
    }
    send_all(engine, &mut Vec::new());
    connection
}

/// Carries out the sends, as a driver with fast sockets would; how many.
fn send_all(engine: &mut Engine, sends: &mut Vec<ConnectionId>) -> usize {
    let mut count = 0;
    while !engine.effects.sends.is_empty() {
        std::mem::swap(sends, &mut engine.effects.sends);
        for connection in sends.drain(..) {
            let chunk = engine.take_chunk(connection).expect("who is named has something to send");
            engine.sent(NOW, connection, chunk);
            count += 1;
        }
    }
    count
}
