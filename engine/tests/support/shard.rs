//! One shard's engine with clients, driven without sockets: for the count of allocations (`tests/allocations.rs`) and of
//! instructions (`examples/instructions.rs`).

use bytes::Bytes;
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::{ConnectionId, ShardId, User, UserId};
use roomwire_engine::shard::{Identity, Verify};
use roomwire_engine::{Engine, Now};
use roomwire_wire::frame::{Opcode, encode_masked};
use std::sync::Arc;

pub(crate) const NOW: Now = Now { mono_us: 1_000_000, unix_ms: 1_700_000_000_000 };

/// An engine that takes each token for a user's name.
pub(crate) fn engine() -> Engine {
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
        proxies: None,
        seed: 1,
    };
    Engine::new(ShardId(0), config, verify, NOW)
}

/// An engine with a room of so many live members.
pub(crate) fn room_of(members: usize) -> Engine {
    let mut engine = engine();
    let (mut sends, first) = (Vec::new(), join());
    for member in 0..members {
        connect(&mut engine, member, &first, &mut sends);
    }
    engine
}

/// The frame that joins the room.
pub(crate) fn join() -> Vec<u8> {
    let mut frame = Vec::new();
    encode_masked(Opcode::Text, br#"{"type":"join_room","roomId":"r"}"#, [7; 4], &mut frame);
    frame
}

/// A client with `first` right behind its handshake.
pub(crate) fn connect(engine: &mut Engine, client: usize, first: &[u8], sends: &mut Vec<ConnectionId>) -> ConnectionId {
    let connection = engine.accepted(NOW, None).expect("no limit");
    let mut head = format!(
        "GET /?token=u{client} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes();
    head.extend_from_slice(first);
    engine.received(NOW, connection, &mut head);
    for message in std::mem::take(&mut engine.effects.bridge) {
        if let ToBridge::History { from, room, .. } = message {
            let payload = Bytes::from_static(b"{}");
            engine.mesh(NOW, ToShard::HistoryPage { to: from, room, payload, next: None, live: true, later_ms: None });
        }
    }
    send_all(engine, sends);
    connection
}

/// Carries out the sends, as a driver with fast sockets would; how many.
pub(crate) fn send_all(engine: &mut Engine, sends: &mut Vec<ConnectionId>) -> usize {
    let mut count = 0;
    while !engine.effects.sends.is_empty() {
        std::mem::swap(sends, &mut engine.effects.sends);
        for connection in sends.drain(..) {
            let chunk = engine.take_chunk(connection).expect("a named connection has something to send");
            assert!(!chunk.as_ref().is_empty());
            engine.sent(NOW, connection, chunk);
            count += 1;
        }
    }
    count
}
