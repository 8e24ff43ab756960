//! A delivery allocates nothing: the number of allocations of a fan-out does not depend on how many hear it. And an
//! idle connection costs a few hundred bytes in all.
//!
//! One test alone in its process, since the count is the process's.

use bytes::Bytes;
use roomwire_engine::limits::{EngineConfig, Limits};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::{ConnectionId, RoomId, ShardId, User, UserId};
use roomwire_engine::shard::{Identity, Verify};
use roomwire_engine::{Engine, Now};
use roomwire_wire::frame::{Opcode, encode_masked};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes allocated less bytes freed, without the allocator's own rounding.
static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of the allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the pointer came from `System`, as all ours do.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(size as u64, Ordering::Relaxed);
        LIVE_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the pointer came from `System`, as all ours do.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Now = Now { mono_us: 1_000_000, unix_ms: 1_700_000_000_000 };

fn engine() -> Engine {
    let verify: Verify = Arc::new(|token, _| {
        let user = User { id: UserId::new(token), name: Arc::from(token) };
        Some(Identity { user, expires_ms: None, grants: None })
    });
    let limits = Limits { messages_per_second_max: 0, join_events_members_max: 1, ..Limits::default() };
    let config = EngineConfig {
        limits,
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
    Engine::new(ShardId(0), config, verify, NOW)
}

/// Carries out the sends, as a driver with fast sockets would; how many.
fn send_all(engine: &mut Engine, sends: &mut Vec<ConnectionId>) -> usize {
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

/// An engine with a room of so many live members.
fn room_of(members: usize) -> Engine {
    let mut engine = engine();
    let mut join = Vec::new();
    encode_masked(Opcode::Text, br#"{"type":"join_room","roomId":"r"}"#, [7; 4], &mut join);
    connect(&mut engine, members, &join);
    engine
}

/// So many clients, each with `first` right behind its handshake.
fn connect(engine: &mut Engine, clients: usize, first: &[u8]) {
    let mut sends = Vec::new();
    for client in 0..clients {
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
                engine.mesh(
                    NOW,
                    ToShard::HistoryPage { to: from, room, payload, next: None, live: true, later_ms: None },
                );
            }
        }
        send_all(engine, &mut sends);
    }
}

/// Allocations of one turn that delivers `messages` to all members, after some such turns; and the sends of it.
fn allocations(engine: &mut Engine, messages: u64) -> (u64, usize) {
    let mut sends = Vec::new();
    let payload = Bytes::from(vec![b'x'; 128]);
    let room = RoomId::new("r");
    let mut measured = (0, 0);
    for _ in 0..4 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for seq in 0..messages {
            let (room, payload) = (room.clone(), payload.clone());
            engine.mesh(NOW, ToShard::Deliver { room, seq, payload, received_us: NOW.mono_us - 5 });
        }
        let count = send_all(engine, &mut sends);
        measured = (ALLOCATIONS.load(Ordering::Relaxed) - before, count);
    }
    measured
}

#[test]
fn a_delivery_allocates_nothing() {
    let (mut small, mut large) = (room_of(10), room_of(1_000));
    // The one allocation is the frame that all share.
    assert_eq!(allocations(&mut small, 1), (1, 10));
    assert_eq!(allocations(&mut large, 1), (1, 1_000));
    // Several messages in a turn leave in one send for each member, gathered in buffers that are used again.
    assert_eq!(allocations(&mut small, 5), (5, 10));
    assert_eq!(allocations(&mut large, 5), (5, 1_000));
    an_idle_connection_costs_a_few_hundred_bytes();
}

/// Slot, user, presence and wheel, of 4,000 clients of as many users.
fn an_idle_connection_costs_a_few_hundred_bytes() {
    let mut engine = engine();
    connect(&mut engine, 1, &[]);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    connect(&mut engine, 4_000, &[]);
    let each = (LIVE_BYTES.load(Ordering::Relaxed) - before) / 4_000;
    println!("{each} bytes for each idle connection");
    assert!(each <= 450, "{each} bytes");
}
