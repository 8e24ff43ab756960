//! What waits to be sent: one outbox for each connection that has something queued, from a pool; shared frames.

use super::connection::{Connection, Phase};
use super::{Chunk, Effects};
use crate::names::ConnectionId;
use crate::stats::Counters;
use roomwire_wire::frame::{Opcode, encode};
use roomwire_wire::message::ServerMessage;
use std::collections::VecDeque;
use std::rc::Rc;

/// The connection has nothing queued.
pub(super) const NO_OUTBOX: u32 = u32::MAX;
/// Several small frames are gathered into one send of at most so many bytes.
const GATHER_BYTES_MAX: usize = 16 * 1024;
/// The most bytes of buffers kept for gathering.
const BUFFERS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// An outbox that held more frames than this gives its memory back.
const SPARE_FRAMES_MAX: usize = 16;

/// How a frame is treated when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Never dropped while the connection lives.
    Kept,
    /// Shed first: typing, presence changes, joins, pongs.
    Ephemeral,
    /// A page of history: asked for only when there is room, so it does not count.
    Page,
    /// Handshake answers, pings, close frames: small, and few by their nature.
    Control,
}

#[derive(Debug)]
struct Queued {
    frame: Rc<[u8]>,
    since: u32,
    kind: Kind,
}

#[derive(Debug)]
struct Outbox {
    queue: VecDeque<Queued>,
    owner: ConnectionId,
    /// Bytes waiting, those in flight included.
    bytes: usize,
    /// Of these, bytes of pages.
    page_bytes: usize,
    flight_bytes: usize,
    flight_page_bytes: usize,
    /// Since when the oldest byte in flight waits.
    flight_since: u32,
}

/// All outboxes of a shard.
#[derive(Debug)]
pub(super) struct Outboxes {
    boxes: Vec<Outbox>,
    free: Vec<u32>,
    buffers: Vec<Vec<u8>>,
    buffers_bytes: usize,
    queue_bytes_max: usize,
    /// The current tick.
    pub(super) tick: u32,
    /// Connections whose queue ran over in this call.
    pub(super) slow: Vec<ConnectionId>,
}

impl Outboxes {
    /// Another limit, from now on.
    pub(super) fn limit(&mut self, queue_bytes_max: u32) {
        self.queue_bytes_max = super::unlimited(queue_bytes_max);
    }

    /// `queue_bytes_max` of 0 means no limit.
    pub(super) fn new(queue_bytes_max: u32, tick: u32) -> Outboxes {
        Outboxes {
            boxes: Vec::new(),
            free: Vec::new(),
            buffers: Vec::new(),
            buffers_bytes: 0,
            queue_bytes_max: super::unlimited(queue_bytes_max),
            tick,
            slow: Vec::new(),
        }
    }

    /// Queues a frame; never changes any table, so that a fan-out may call it while it walks one.
    pub(super) fn push(
        &mut self,
        connection: &mut Connection,
        frame: &Rc<[u8]>,
        kind: Kind,
        effects: &mut Effects,
        counters: &mut Counters,
    ) {
        if connection.slow {
            return;
        }
        let index = self.outbox_of(connection);
        let outbox = &mut self.boxes[index];
        if matches!(kind, Kind::Kept | Kind::Ephemeral) {
            let waiting = outbox.bytes - outbox.page_bytes;
            if waiting + frame.len() > self.queue_bytes_max && waiting > 0 {
                counters.limit_crossed("queue_bytes_max");
                if kind == Kind::Ephemeral {
                    counters.events_shed_total += 1;
                    return;
                }
                outbox.shed(counters);
                if outbox.bytes - outbox.page_bytes + frame.len() > self.queue_bytes_max {
                    connection.slow = true;
                    self.slow.push(connection.id);
                    return;
                }
            }
        }
        outbox.queue.push_back(Queued { frame: Rc::clone(frame), since: self.tick, kind });
        outbox.bytes += frame.len();
        if kind == Kind::Page {
            outbox.page_bytes += frame.len();
        }
        counters.queue_bytes_now += frame.len() as u64;
        counters.frames_queued_total += 1;
        if !connection.listed && !connection.in_flight {
            connection.listed = true;
            effects.sends.push(connection.id);
        }
    }

    fn outbox_of(&mut self, connection: &mut Connection) -> usize {
        if connection.outbox == NO_OUTBOX {
            connection.outbox = self.free.pop().unwrap_or_else(|| {
                self.boxes.push(Outbox::new(connection.id));
                (self.boxes.len() - 1) as u32
            });
            self.boxes[connection.outbox as usize].owner = connection.id;
        }
        connection.outbox as usize
    }

    /// One send's worth: a single frame as it is, or several copied together.
    pub(super) fn take_chunk(&mut self, connection: &mut Connection) -> Option<Chunk> {
        connection.listed = false;
        if connection.in_flight || connection.phase == Phase::Dead {
            return None;
        }
        let outbox = self.boxes.get_mut(connection.outbox as usize)?;
        let mut frames = 0;
        let mut bytes = 0;
        for queued in &outbox.queue {
            if frames > 0 && bytes + queued.frame.len() > GATHER_BYTES_MAX {
                break;
            }
            frames += 1;
            bytes += queued.frame.len();
        }
        outbox.flight_since = outbox.queue.front()?.since;
        outbox.flight_bytes = bytes;
        connection.in_flight = true;
        if frames == 1 {
            let queued = outbox.queue.pop_front()?;
            outbox.flight_page_bytes = if queued.kind == Kind::Page { bytes } else { 0 };
            return Some(Chunk::Shared(queued.frame));
        }
        let mut buffer = self.buffers.pop().unwrap_or_default();
        self.buffers_bytes -= buffer.capacity();
        buffer.reserve(bytes);
        outbox.flight_page_bytes = 0;
        for queued in outbox.queue.drain(..frames) {
            buffer.extend_from_slice(&queued.frame);
            if queued.kind == Kind::Page {
                outbox.flight_page_bytes += queued.frame.len();
            }
        }
        Some(Chunk::Gathered(buffer))
    }

    /// The chunk in flight was sent whole. The connection is named again if more waits, and gives up its outbox if not.
    pub(super) fn sent(&mut self, connection: &mut Connection, effects: &mut Effects, counters: &mut Counters) {
        if !connection.in_flight {
            return;
        }
        connection.in_flight = false;
        let Some(outbox) = self.boxes.get_mut(connection.outbox as usize) else { return };
        counters.bytes_sent_total += outbox.flight_bytes as u64;
        counters.queue_bytes_now -= outbox.flight_bytes as u64;
        outbox.bytes -= outbox.flight_bytes;
        outbox.page_bytes -= outbox.flight_page_bytes;
        (outbox.flight_bytes, outbox.flight_page_bytes) = (0, 0);
        if outbox.queue.is_empty() {
            self.release(connection, counters);
        } else if !connection.listed {
            connection.listed = true;
            effects.sends.push(connection.id);
        }
    }

    /// Keeps the buffer of a gathered chunk for the next one.
    pub(super) fn give_back(&mut self, chunk: Chunk) {
        let Chunk::Gathered(mut buffer) = chunk else { return };
        if self.buffers_bytes + buffer.capacity() <= BUFFERS_BYTES_MAX {
            buffer.clear();
            self.buffers_bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }

    /// Drops all that waits and is not in flight: a slow consumer resumes what it missed.
    pub(super) fn drop_waiting(&mut self, connection: &Connection, counters: &mut Counters) {
        let Some(outbox) = self.boxes.get_mut(connection.outbox as usize) else { return };
        counters.queue_bytes_now -= (outbox.bytes - outbox.flight_bytes) as u64;
        outbox.queue.clear();
        (outbox.bytes, outbox.page_bytes) = (outbox.flight_bytes, outbox.flight_page_bytes);
    }

    /// Takes the connection's outbox back into the pool, with all that still waits in it.
    pub(super) fn release(&mut self, connection: &mut Connection, counters: &mut Counters) {
        let index = std::mem::replace(&mut connection.outbox, NO_OUTBOX);
        let Some(outbox) = self.boxes.get_mut(index as usize) else { return };
        counters.queue_bytes_now -= outbox.bytes as u64;
        outbox.clear();
        self.free.push(index);
    }

    pub(super) fn has_pages(&self, connection: &Connection) -> bool {
        self.boxes.get(connection.outbox as usize).is_some_and(|outbox| outbox.page_bytes > 0)
    }

    /// Connections whose oldest byte has waited for `ticks`.
    pub(super) fn overdue(&self, ticks: u32, into: &mut Vec<ConnectionId>) {
        for outbox in self.boxes.iter().filter(|outbox| outbox.bytes > 0) {
            let waiting = outbox.queue.front().map_or(self.tick, |queued| queued.since);
            let since = if outbox.flight_bytes > 0 { outbox.flight_since } else { waiting };
            if self.tick - since >= ticks {
                into.push(outbox.owner);
            }
        }
    }
}

impl Outbox {
    fn new(owner: ConnectionId) -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            owner,
            bytes: 0,
            page_bytes: 0,
            flight_bytes: 0,
            flight_page_bytes: 0,
            flight_since: 0,
        }
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.queue.shrink_to(SPARE_FRAMES_MAX);
        (self.bytes, self.page_bytes) = (0, 0);
        (self.flight_bytes, self.flight_page_bytes) = (0, 0);
    }

    /// Drops the ephemeral frames that wait.
    fn shed(&mut self, counters: &mut Counters) {
        let (mut frames, mut bytes) = (0, 0);
        self.queue.retain(|queued| {
            let shed = queued.kind == Kind::Ephemeral;
            frames += u64::from(shed);
            bytes += if shed { queued.frame.len() } else { 0 };
            !shed
        });
        self.bytes -= bytes;
        counters.queue_bytes_now -= bytes as u64;
        counters.events_shed_total += frames;
    }
}

/// Makes frames; its memory is used again for each.
#[derive(Debug, Default)]
pub(super) struct Framer {
    payload: Vec<u8>,
    frame: Vec<u8>,
}

/// Above this, the framer's own memory is given back after use.
const FRAMER_BYTES_MAX: usize = 256 * 1024;

impl Framer {
    /// A message as a text frame.
    pub(super) fn message(&mut self, message: &ServerMessage<'_>) -> Rc<[u8]> {
        self.payload.clear();
        message.write(&mut self.payload);
        self.frame.clear();
        encode(Opcode::Text, &self.payload, &mut self.frame);
        Rc::from(self.frame.as_slice())
    }

    /// A frame of any type.
    pub(super) fn frame(&mut self, opcode: Opcode, payload: &[u8]) -> Rc<[u8]> {
        self.raw(|out| encode(opcode, payload, out))
    }

    /// Whatever `write` appends.
    pub(super) fn raw(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Rc<[u8]> {
        self.frame.clear();
        write(&mut self.frame);
        let frame = Rc::from(self.frame.as_slice());
        self.frame.shrink_to(FRAMER_BYTES_MAX);
        frame
    }
}
