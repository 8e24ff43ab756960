//! Receiving: from a completion to the engine, and what happens when buffers or lanes run out.

use crate::ring::Completion;
use crate::turn::{Driver, SPILLED_READS_MAX};
use roomwire_engine::Now;
use roomwire_engine::names::ConnectionId;
use roomwire_engine::shard::Ended;

/// Receives that ended for want of a buffer and are armed again in one turn, if there are not more buffers than that.
const STARVED_PER_TURN_MIN: usize = 16;

/// The most held completions that one turn handles.
const HELD_PER_TURN_MAX: usize = 512;

impl Driver {
    /// A connection's receive completed, for now or for good.
    pub(crate) fn on_receive(&mut self, now: Now, completion: Completion) {
        if !completion.more
            && let Some(socket) = self.sockets.get_mut(completion.connection)
        {
            socket.receiving = false;
            if socket.leaving {
                self.give_back(completion);
                self.close_if_idle(completion.connection);
                return;
            }
        }
        self.gathering.input(now.mono_us);
        if self.reads_paused || !self.held.is_empty() {
            self.held.push_back(completion);
        } else {
            self.take_received(now, completion);
        }
    }

    /// What was held back while reads were paused comes first, in its order.
    pub(crate) fn take_held(&mut self, now: Now) {
        if self.reads_paused {
            return;
        }
        for _ in 0..HELD_PER_TURN_MAX {
            let Some(completion) = self.held.pop_front() else { return };
            self.take_received(now, completion);
        }
    }

    fn take_received(&mut self, now: Now, completion: Completion) {
        let connection = completion.connection;
        if self.sockets.live(connection).is_none() {
            self.give_back(completion);
            return;
        }
        match (completion.result, completion.buffer) {
            (length, Some(buffer)) if length > 0 => {
                let before = self.engine.effects.sends.len();
                self.engine.received(now, connection, self.buffers.bytes(buffer, length.unsigned_abs() as usize));
                self.late_sends.set_aside(&mut self.engine.effects.sends, before);
            }
            (0, _) => self.end(now, connection, Ended::Eof),
            (error, _) => match -error {
                libc::ENOBUFS => {
                    self.engine.counters.driver.buffers_exhausted_total += 1;
                    self.starved.push_back(connection);
                    return;
                }
                // Cancelled: not by us, for then the connection would be leaving.
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => {}
                _ => self.end(now, connection, Ended::Error),
            },
        }
        self.give_back(completion);
        if !completion.more {
            self.receive_on(connection);
        }
    }

    fn give_back(&mut self, completion: Completion) {
        if let Some(buffer) = completion.buffer {
            self.buffers.give_back(buffer);
        }
    }

    /// Arms a connection's receive, unless it is armed or the connection is on its way out.
    pub(crate) fn receive_on(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.live(connection) else { return };
        if socket.receiving {
            return;
        }
        socket.receiving = true;
        if let Some(descriptor) = socket.descriptor() {
            self.ring.receive(connection, descriptor);
        }
    }

    /// Arms what is to be armed again: the accept, and receives that found no buffer. Only about as many of those as
    /// there are buffers, else most of them would come back at once, turn after turn.
    pub(crate) fn rearm(&mut self, now: Now) {
        self.acceptor.arm_if_due(now, &mut self.ring);
        if self.reads_paused {
            return;
        }
        let most = usize::from(self.buffers.count()).max(STARVED_PER_TURN_MIN);
        for _ in 0..most {
            let Some(connection) = self.starved.pop_front() else { return };
            self.receive_on(connection);
        }
    }

    /// Stops reading from sockets while too many messages wait for a lane.
    pub(crate) fn pause_or_resume_reads(&mut self, spilled: usize) {
        if !self.reads_paused && spilled > SPILLED_READS_MAX {
            self.reads_paused = true;
            self.engine.counters.driver.reads_paused_total += 1;
        } else if self.reads_paused && spilled <= SPILLED_READS_MAX / 2 {
            self.reads_paused = false;
        }
    }
}
