//! A delivery allocates nothing: the number of allocations of a fan-out does not depend on how many hear it. And an
//! idle connection costs a few hundred bytes in all.
//!
//! One test alone in its process, since the count is the process's.

#[path = "support/shard.rs"]
mod shard;

use bytes::Bytes;
use roomwire_engine::Engine;
use roomwire_engine::mesh::ToShard;
use roomwire_engine::names::RoomId;
use shard::{NOW, connect, engine, room_of, send_all};
use std::alloc::{GlobalAlloc, Layout, System};
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
    let (mut engine, mut sends) = (engine(), Vec::new());
    connect(&mut engine, 0, &[], &mut sends);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    for client in 0..4_000 {
        connect(&mut engine, client, &[], &mut sends);
    }
    let each = (LIVE_BYTES.load(Ordering::Relaxed) - before) / 4_000;
    println!("{each} bytes for each idle connection");
    assert!(each <= 450, "{each} bytes");
}
