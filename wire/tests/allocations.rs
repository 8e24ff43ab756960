//! What the decoder and the messages cost in heap memory, counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use roomwire_wire::frame::{Decoder, FrameLimits, Input, Opcode, Role, encode_masked};
use roomwire_wire::message::{Chat, ClientMessage, FieldLimits, RawText, ServerMessage, parse};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(change: isize) {
    if change > 0 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
    BYTES.set(BYTES.get() + change);
    PEAK.set(PEAK.get().max(BYTES.get()));
}

// SAFETY: every call goes on to `System` as it came; the counters are plain thread-local cells without destructors,
// so counting allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` did to the heap of this thread.
#[derive(Debug)]
struct Cost {
    allocations: usize,
    /// The most bytes at one time, over what there was before.
    peak: isize,
    /// The bytes that are left.
    left: isize,
}

fn cost(work: impl FnOnce()) -> Cost {
    let (allocations, bytes) = (ALLOCATIONS.get(), BYTES.get());
    PEAK.set(bytes);
    work();
    Cost { allocations: ALLOCATIONS.get() - allocations, peak: PEAK.get() - bytes, left: BYTES.get() - bytes }
}

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
const MASK: [u8; 4] = [1, 2, 3, 4];

/// Feeds `bytes` as one read; how many items came.
fn feed(decoder: &mut Decoder, bytes: &mut [u8]) -> usize {
    let mut input = Input::new(bytes);
    let mut items = 0;
    while decoder.next(&mut input, &LIMITS).expect("no violation").is_some() {
        items += 1;
    }
    items
}

#[test]
fn whole_frames_cost_nothing() {
    let mut stream = Vec::new();
    for opcode in [Opcode::Text, Opcode::Binary, Opcode::Ping, Opcode::Pong] {
        encode_masked(opcode, &[b'x'; 100], MASK, &mut stream);
    }
    encode_masked(Opcode::Text, &vec![b'x'; 100_000], MASK, &mut stream);
    let mut decoder = Decoder::new(Role::Server);
    let cost = cost(|| assert_eq!(feed(&mut decoder, &mut stream), 5));
    assert_eq!(cost.allocations, 0, "{cost:?}");
}

#[test]
fn a_header_cut_in_two_costs_nothing() {
    let mut stream = Vec::new();
    encode_masked(Opcode::Binary, &[0; 300], MASK, &mut stream);
    for cut in 1..8 {
        let mut bytes = stream.clone();
        let (left, right) = bytes.split_at_mut(cut);
        let mut decoder = Decoder::new(Role::Server);
        let cost = cost(|| assert_eq!(feed(&mut decoder, left) + feed(&mut decoder, right), 1));
        assert_eq!(cost.allocations, 0, "cut {cut}: {cost:?}");
    }
}

#[test]
fn nothing_is_left_between_two_frames() {
    let mut stream = Vec::new();
    encode_masked(Opcode::Text, &[b'x'; 1000], MASK, &mut stream);
    encode_masked(Opcode::Ping, &[b'x'; 100], MASK, &mut stream);
    stream[0] = 0x01;
    let mut end = Vec::new();
    encode_masked(Opcode::Text, b"end", MASK, &mut end);
    end[0] = 0x80;
    stream.extend(end);
    let mut decoder = Decoder::new(Role::Server);
    let cost = cost(|| {
        let items: usize = stream.chunks_mut(13).map(|piece| feed(&mut decoder, piece)).sum();
        assert_eq!(items, 2);
    });
    assert!(!decoder.is_assembling());
    assert_eq!(cost.left, 0, "{cost:?}");
}

#[test]
fn a_declared_length_allocates_nothing_by_itself() {
    let mut header = *b"\x82\xff\x40\0\0\0\0\0\0\0\x01\x02\x03\x04";
    let mut decoder = Decoder::new(Role::Server);
    let cost = cost(|| assert_eq!(feed(&mut decoder, &mut header), 0));
    assert!(decoder.is_assembling());
    assert!(cost.peak < 512, "{cost:?}");
}

#[test]
fn a_partial_frame_costs_twice_its_bytes_at_most() {
    let mut stream = Vec::new();
    encode_masked(Opcode::Text, &vec![b'x'; 1 << 20], MASK, &mut stream);
    for size in [1000, 1460, 65_536] {
        let mut bytes = stream.clone();
        let received = bytes.len() / 2;
        let mut decoder = Decoder::new(Role::Server);
        let cost = cost(|| {
            for piece in bytes[..received].chunks_mut(size) {
                feed(&mut decoder, piece);
            }
        });
        assert!(cost.left <= 2 * received as isize, "{size}: {cost:?}");
        // While a buffer moves, the old one is still there.
        assert!(cost.peak <= 3 * received as isize, "{size}: {cost:?}");
    }
}

#[test]
fn tiny_fragments_cost_what_their_payload_costs() {
    for payload in [&b"x"[..], b""] {
        let mut stream = Vec::new();
        for index in 0..16_000 {
            let at = stream.len();
            encode_masked(Opcode::Text, payload, MASK, &mut stream);
            stream[at] = u8::from(index == 0);
        }
        let bytes = stream.len() as isize;
        let mut decoder = Decoder::new(Role::Server);
        let cost = cost(|| assert_eq!(feed(&mut decoder, &mut stream), 0));
        assert!(cost.peak <= bytes && cost.allocations < 40, "{cost:?}");
    }
}

#[test]
fn a_chat_message_is_read_without_an_allocation_and_written_with_one() {
    let limits = FieldLimits { content_bytes_max: 4096, token_bytes_max: 4096 };
    let text = r#"{"type":"chat_message","roomId":"room:1","content":"hi \"there\" \ud83d\ude00 é","clientId":"c-1"}"#;
    let read = cost(|| assert!(matches!(parse(text, &limits), Ok(ClientMessage::ChatMessage { .. }))));
    assert_eq!(read.allocations, 0, "{read:?}");
    let message = ServerMessage::ChatMessage(Chat {
        message_id: "hZRBcfc5Z-gAAAABAAAAAAAq",
        room_id: "room:1",
        user_id: "u1",
        username: "Ann",
        content: RawText::from_escaped("hi"),
        timestamp: 1_800_000_000_000,
        seq: 42,
        epoch: 1,
    });
    let written = cost(|| {
        let mut out = Vec::new();
        message.write(&mut out);
        assert!(!out.is_empty());
    });
    assert_eq!(written.allocations, 1, "{written:?}");
}
