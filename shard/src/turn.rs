//! The turn: everything that a shard does, one bounded round at a time.
//!
//! ```text
//! completions -> inbox -> deadlines -> effects (sends, shutdowns, drops, lanes, bells) -> submit
//! ```
//!
//! The driver carries out what [`Engine`] decides and decides nothing itself but when to read, accept and sleep.

use crate::accept::Acceptor;
use crate::buffers::Buffers;
use crate::clock;
use crate::gather::Gathering;
use crate::mesh::ShardMesh;
use crate::outbox::{Outbox, Place};
use crate::ring::{Completion, DataRing, Operation};
use crate::sends::LateSends;
use crate::sockets::Sockets;
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::ConnectionId;
use roomwire_engine::shard::Ended;
use roomwire_engine::{Engine, Now};
use socket2::SockRef;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

/// How often a shard on its way to sleep gives freed memory back.
const REST_EVERY_US: u64 = 1_000_000;
/// A tick that is so late comes after a stall.
const STALL_MS: u64 = 1_000;

/// The longest that it then waits for what is unread: a shard under load has always something to read.
const LISTENING_MS_MAX: u64 = 5_000;

/// The most completions that one turn handles: some hundred microseconds of work, the latency of everything else.
const COMPLETIONS_PER_TURN_MAX: usize = 512;

/// The most messages from other threads that one turn handles. Each may fan out to many connections.
const INBOX_PER_TURN_MAX: usize = 256;

/// With more messages than this spilled, the shard stops reading from sockets; it goes on below a half of it.
pub(crate) const SPILLED_READS_MAX: usize = 8 * 1024;

/// What to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is more to do.
    Turn,
    /// Nothing to do until the bell rings, a socket stirs, or that time of CLOCK_MONOTONIC has come.
    Sleep {
        /// In microseconds.
        until_us: u64,
    },
    /// The engine has drained and everything is told.
    End,
}

/// A shard at work: the engine and all that it has the driver do.
pub(crate) struct Driver {
    pub(crate) engine: Engine,
    // Declared before the buffers and the outbox, so that the kernel is done with them when they go.
    pub(crate) ring: DataRing,
    pub(crate) buffers: Buffers,
    pub(crate) outbox: Outbox,
    pub(crate) sockets: Sockets,
    pub(crate) mesh: ShardMesh,
    pub(crate) acceptor: Acceptor,
    /// Receives that ended for want of a buffer, oldest first.
    pub(crate) starved: VecDeque<ConnectionId>,
    /// What came in while reads were paused, oldest first. The buffers stay ours, so the ring of buffers runs dry and
    /// the kernel's receive windows close.
    pub(crate) held: VecDeque<Completion>,
    pub(crate) reads_paused: bool,
    drained: bool,
    /// A tick is late and waits, but no longer than until then.
    listening_until_ms: Option<u64>,
    pub(crate) gathering: Gathering,
    pub(crate) late_sends: LateSends,
    /// Gives freed memory back to the system; called on the way to sleep, about once a second.
    rest: fn(),
    rested_us: u64,
    awake_since_us: Option<u64>,
    // Emptied each turn; kept for their memory.
    completions: Vec<Completion>,
    inbox: Vec<ToShard>,
    connections: Vec<ConnectionId>,
}

impl Driver {
    /// A driver that has not turned yet.
    pub(crate) fn new(
        engine: Engine,
        ring: DataRing,
        buffers: Buffers,
        mesh: ShardMesh,
        acceptor: Acceptor,
        gather: Duration,
        rest: fn(),
    ) -> Driver {
        Driver {
            engine,
            ring,
            buffers,
            outbox: Outbox::default(),
            sockets: Sockets::default(),
            mesh,
            acceptor,
            starved: VecDeque::new(),
            held: VecDeque::new(),
            reads_paused: false,
            drained: false,
            listening_until_ms: None,
            gathering: Gathering::new(gather.as_micros().try_into().unwrap_or(u64::MAX)),
            late_sends: LateSends::default(),
            rest,
            rested_us: 0,
            awake_since_us: None,
            completions: Vec::new(),
            inbox: Vec::new(),
            connections: Vec::new(),
        }
    }

    /// One round.
    ///
    /// # Errors
    /// The ring itself failed: the shard cannot go on.
    pub(crate) fn turn(&mut self) -> io::Result<Next> {
        let now = self.begin();
        self.take_completions(now);
        self.take_held(now);
        self.take_inbox(now);
        if now.mono_ms() >= self.engine.next_tick_ms() && !self.listens_first(now) {
            self.listening_until_ms = None;
            self.engine.tick(now);
        }
        self.flush_connections(now);
        self.rearm(now);
        let spilled = self.flush_lanes();
        self.pause_or_resume_reads(spilled);
        let gathers = self.gathering.is_on(now.mono_us);
        if self.ring.wants_enter(gathers) {
            self.ring.enter()?;
        }
        if self.drained && spilled == 0 {
            return Ok(Next::End);
        }
        Ok(if self.has_work(gathers) {
            Next::Turn
        } else {
            Next::Sleep { until_us: self.due_ms(now, spilled).saturating_mul(1000) }
        })
    }

    /// Reads the clocks, and counts the time since the last turn as busy unless the shard slept.
    fn begin(&mut self) -> Now {
        let now = clock::now();
        let counters = &mut self.engine.counters.driver;
        counters.turns_total += 1;
        if let Some(since_us) = self.awake_since_us.replace(now.mono_us) {
            counters.busy_us_total += now.mono_us.saturating_sub(since_us);
        }
        counters.enters_total = self.ring.enters();
        counters.completions_overflowed_total = self.ring.overflows();
        now
    }

    fn take_completions(&mut self, now: Now) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(COMPLETIONS_PER_TURN_MAX, &mut completions);
        for completion in completions.drain(..) {
            match completion.operation {
                Operation::Receive => self.on_receive(now, completion),
                Operation::Send => self.on_send(now, completion),
                Operation::Accept => self.on_accept(now, completion),
                Operation::CancelReceive | Operation::CancelSend => self.on_cancel_failed(completion),
                Operation::Bell => {
                    // Else `sleep` would find it rung for ever.
                    self.mesh.doorbell().clear();
                    if !completion.more {
                        self.hear_bell();
                    }
                }
                Operation::Install => self.on_install(now, completion),
                Operation::Ignored => {}
            }
        }
        self.completions = completions;
    }

    /// Whether a tick that comes late is to wait until what clients have sent meanwhile was read: the shard was deaf, they
    /// were not silent.
    fn listens_first(&mut self, now: Now) -> bool {
        if now.mono_ms() < self.engine.next_tick_ms() + STALL_MS {
            return false;
        }
        let until_ms = *self.listening_until_ms.get_or_insert(now.mono_ms() + LISTENING_MS_MAX);
        let unread = self.ring.completions_waiting() > 0
            || self.ring.wants_enter(false)
            || !self.held.is_empty()
            || !self.starved.is_empty();
        unread && now.mono_ms() < until_ms
    }

    fn take_inbox(&mut self, now: Now) {
        self.mesh.receive(INBOX_PER_TURN_MAX, &mut self.inbox);
        for message in self.inbox.drain(..) {
            let before = self.engine.effects.sends.len();
            self.engine.mesh(now, message);
            self.late_sends.set_aside(&mut self.engine.effects.sends, before);
        }
    }

    /// Sends what is to be sent, once per connection, and a slice of what waits; then parts from those that are done.
    fn flush_connections(&mut self, now: Now) {
        let mut connections = std::mem::take(&mut self.connections);
        std::mem::swap(&mut connections, &mut self.engine.effects.sends);
        self.late_sends.slice(&mut connections);
        for connection in connections.drain(..) {
            self.send_next(connection);
        }
        std::mem::swap(&mut connections, &mut self.engine.effects.shutdowns);
        for connection in connections.drain(..) {
            self.shut_down(now, connection);
        }
        std::mem::swap(&mut connections, &mut self.engine.effects.drops);
        for connection in connections.drain(..) {
            self.part_from(connection);
        }
        self.connections = connections;
        if std::mem::take(&mut self.engine.effects.stop_accepting) {
            self.stop_accepting();
        }
    }

    /// Puts messages to other threads on their lanes and rings each bell once. How many are spilled.
    fn flush_lanes(&mut self) -> usize {
        for (shard, message) in self.engine.effects.shards.drain(..) {
            self.mesh.send(shard, message);
        }
        for message in self.engine.effects.bridge.drain(..) {
            self.drained |= matches!(message, ToBridge::Drained { .. });
            self.mesh.send_to_bridge(message);
        }
        let spilled = self.mesh.flush();
        let counters = &mut self.engine.counters.driver;
        counters.mesh_spilled_now = spilled as u64;
        counters.mesh_spilled_total = self.mesh.spilled_total();
        spilled
    }

    /// Whatever is due first, in ms of CLOCK_MONOTONIC.
    fn due_ms(&self, now: Now, spilled: usize) -> u64 {
        let mut due_ms = self.engine.next_tick_ms();
        if let Some(retry_ms) = self.acceptor.retry_ms() {
            due_ms = due_ms.min(retry_ms);
        }
        if spilled > 0 {
            // Whoever makes room in a lane rings nobody.
            due_ms = due_ms.min(now.mono_ms() + 1);
        }
        due_ms
    }

    fn has_work(&mut self, gathers: bool) -> bool {
        let effects = &self.engine.effects;
        let unread = !self.held.is_empty() || !self.starved.is_empty();
        self.ring.completions_waiting() > 0
            || self.ring.wants_enter(gathers)
            || self.mesh.has_mail()
            || !effects.sends.is_empty()
            || !self.late_sends.is_empty()
            || !effects.drops.is_empty()
            || !effects.shutdowns.is_empty()
            || !effects.shards.is_empty()
            || !effects.bridge.is_empty()
            || (unread && !self.reads_paused)
    }

    /// Arms the bell, looks once more, and sleeps in the data ring; while input gathers, on the bell alone.
    ///
    /// Not through the executor: glommio 0.9 makes seven enters and a membarrier of each sleep
    /// (docs/decisions/0001-sleep-in-the-data-ring.md).
    ///
    /// # Errors
    /// The ring itself failed.
    pub(crate) fn sleep(&mut self, until_us: u64) -> io::Result<()> {
        self.mesh.doorbell().arm();
        let now_us = clock::now().mono_us;
        let gathers = self.gathering.is_on(now_us);
        if !self.has_work(gathers) {
            if let Some(since_us) = self.awake_since_us.take() {
                self.engine.counters.driver.busy_us_total += now_us.saturating_sub(since_us);
            }
            if now_us - self.rested_us >= REST_EVERY_US {
                self.rested_us = now_us;
                (self.rest)();
            }
            if gathers {
                let most_us = until_us.min(self.gathering.due_us()).saturating_sub(now_us);
                self.mesh.doorbell().wait(Duration::from_micros(most_us));
            } else if until_us > now_us {
                self.ring.sleep(until_us - now_us)?;
            }
        }
        self.mesh.doorbell().disarm();
        Ok(())
    }

    /// Has the ring poll the doorbell.
    pub(crate) fn hear_bell(&mut self) {
        self.ring.hear(self.mesh.doorbell().as_fd());
    }

    /// Hands the connection's next chunk to the kernel, if it has one and none is under way.
    fn send_next(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.live(connection) else { return };
        if socket.sending != Place::NONE {
            debug_assert!(false, "a second send was asked for on {connection:?}");
            return;
        }
        let Some(chunk) = self.engine.take_chunk(connection) else { return };
        socket.sending = self.outbox.put(chunk);
        self.send_rest(connection);
    }

    fn send_rest(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(connection) else { return };
        let place = socket.sending;
        if let Some(descriptor) = socket.descriptor() {
            self.engine.counters.driver.sends_total += 1;
            // SAFETY: the bytes are on the heap behind a chunk in the outbox, which keeps it unchanged until `on_send`
            // takes it out upon the completion of this very send.
            unsafe { self.ring.send(connection, descriptor, self.outbox.rest(place)) };
        }
    }

    fn on_send(&mut self, now: Now, completion: Completion) {
        let connection = completion.connection;
        let Some(socket) = self.sockets.get_mut(connection) else { return };
        let (place, leaving) = (socket.sending, socket.leaving);
        let again = match completion.result {
            sent if sent > 0 => !self.outbox.advance(place, sent.unsigned_abs() as usize),
            error => matches!(-error, libc::EINTR | libc::EAGAIN),
        };
        if again && !leaving {
            self.engine.counters.driver.short_sends_total += 1;
            self.send_rest(connection);
            return;
        }
        socket.sending = Place::NONE;
        let chunk = self.outbox.take(place);
        match chunk {
            _ if leaving => self.close_if_idle(connection),
            Some(chunk) if completion.result > 0 => self.engine.sent(now, connection, chunk),
            _ => self.end(now, connection, Ended::Error),
        }
    }

    /// The engine's last byte is out: no more will be written, reading goes on.
    ///
    /// By a plain call: IORING_OP_SHUTDOWN is always handed to a worker thread. For a socket in the ring's table the
    /// call waits for a descriptor.
    fn shut_down(&mut self, now: Now, connection: ConnectionId) {
        let Some(socket) = self.sockets.live(connection) else { return };
        let Some(descriptor) = socket.descriptor() else { return };
        match descriptor.borrow_of_process(&self.ring) {
            Some(fd) => {
                if SockRef::from(&fd).shutdown(Shutdown::Write).is_err() {
                    self.end(now, connection, Ended::Error);
                }
            }
            None => self.ring.install(connection, descriptor),
        }
    }

    fn on_install(&mut self, now: Now, completion: Completion) {
        // The socket is not closed with this descriptor: it stays in the table.
        let fd = DataRing::installed(completion.result);
        if fd.and_then(|fd| SockRef::from(&fd).shutdown(Shutdown::Write)).is_err() {
            self.end(now, completion.connection, Ended::Error);
        }
    }

    /// Tells the engine that a connection ended by itself, and closes it.
    pub(crate) fn end(&mut self, now: Now, connection: ConnectionId, how: Ended) {
        if self.sockets.live(connection).is_some() {
            self.engine.ended(now, connection, how);
            self.part_from(connection);
        }
    }

    /// Ends what is under way on a connection; it is closed when all of that has completed.
    fn part_from(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.live(connection) else { return };
        socket.leaving = true;
        let (receiving, sending) = (socket.receiving, socket.sending != Place::NONE);
        if receiving {
            self.ring.cancel_receive(connection);
        }
        if sending {
            self.ring.cancel_send(connection);
        }
        self.close_if_idle(connection);
    }

    /// A cancel found nothing. The operation has either completed or was between two rounds; then it is asked again.
    fn on_cancel_failed(&mut self, completion: Completion) {
        let connection = completion.connection;
        let Some(socket) = self.sockets.get_mut(connection) else { return };
        match completion.operation {
            Operation::CancelReceive if socket.receiving => self.ring.cancel_receive(connection),
            Operation::CancelSend if socket.sending != Place::NONE => self.ring.cancel_send(connection),
            _ => {}
        }
    }

    /// Closes a leaving connection once nothing is under way on it, and gives its slot back to the engine.
    pub(crate) fn close_if_idle(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(connection) else { return };
        if !socket.leaving || socket.receiving || socket.sending != Place::NONE {
            return;
        }
        if let Some(descriptor) = self.sockets.remove(connection) {
            self.ring.close(descriptor);
            self.engine.closed(connection);
            self.acceptor.socket_closed();
        }
    }
}
