//! Receiving: from a completion to the engine, and what happens when buffers or lanes run out.

use crate::ring::Completion;
use crate::turn::{Driver, SPILLED_READS_MAX};
use roomwire_engine::Now;
use roomwire_engine::names::ConnectionId;
use roomwire_engine::shard::Ended;

/// So many receives that ended for want of a buffer are armed again in each turn, whether or not a buffer is known to be
/// free: the completion queue of a busy shard may never be empty.
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

    /// Arms what is to be armed again: accepts, and receives that found no buffer. Only about as many of those as buffers
    /// are free, else most of them would come back at once, turn after turn.
    pub(crate) fn rearm(&mut self, now: Now) {
        self.acceptor.arm_if_due(now, &mut self.ring);
        if self.reads_paused {
            return;
        }
        // A completion may hold a buffer, be it held back here or not taken yet.
        let taken = self.held.len() + self.ring.completions_waiting();
        for _ in 0..armed_again_max(self.buffers.count(), taken) {
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

/// How many receives that found no buffer are armed again in a turn in which so many buffers may be taken.
fn armed_again_max(buffers: u16, taken: usize) -> usize {
    usize::from(buffers).saturating_sub(taken).max(STARVED_PER_TURN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// How many receives find no buffer until as many as `clients`, of which all have sent something, have found one. The
    /// kernel answers in order, and each turn takes the oldest 512 answers.
    fn receives_in_vain(clients: usize, buffers: u16, armed_again: impl Fn(usize) -> usize) -> usize {
        let (mut free, mut starved, mut served, mut in_vain) = (usize::from(buffers), 0, 0, 0);
        let mut queue = VecDeque::new();
        let mut receive = |free: &mut usize, queue: &mut VecDeque<bool>| {
            let found = *free > 0;
            *free -= usize::from(found);
            in_vain += usize::from(!found);
            queue.push_back(found);
        };
        (0..clients).for_each(|_| receive(&mut free, &mut queue));
        while served < clients {
            for found in queue.drain(..queue.len().min(512)) {
                free += usize::from(found);
                served += usize::from(found);
                starved += usize::from(!found);
            }
            for _ in 0..starved.min(armed_again(queue.len())) {
                starved -= 1;
                receive(&mut free, &mut queue);
            }
        }
        in_vain
    }

    #[test]
    fn receives_are_armed_again_only_while_buffers_are_free() {
        let as_many_as_buffers = receives_in_vain(50_000, 512, |_| 512);
        assert!(as_many_as_buffers > 2_000_000, "{as_many_as_buffers}: what happened on Linux 6.1");
        let as_many_as_free = receives_in_vain(50_000, 512, |taken| armed_again_max(512, taken));
        assert!(as_many_as_free < 60_000, "{as_many_as_free}: each once, and the least of each turn");
    }
}
