//! The shard's own io_uring: set-up, submissions, completions. It knows operations, not what they are for.
//!
//! With DEFER_TASKRUN the kernel finishes work only inside an enter with GETEVENTS; in between it sets the TASKRUN
//! flag. The shard also sleeps in an enter, woken by whatever completes: sockets, and the doorbell that the ring polls.

use crate::buffers::BUFFER_GROUP;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, opcode, squeue};
use roomwire_engine::names::ConnectionId;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

/// What a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// The multishot accept.
    Accept = 1,
    /// A connection's multishot receive.
    Receive = 2,
    /// A connection's send.
    Send = 3,
    /// The cancelling of a connection's receive; posted only if it failed.
    CancelReceive = 4,
    /// The cancelling of a connection's send; posted only if it failed.
    CancelSend = 5,
    /// The multishot poll of the doorbell.
    Bell = 6,
    /// Anything whose completion says nothing.
    Ignored = 7,
}

impl Operation {
    fn from_tag(tag: u8) -> Operation {
        match tag {
            1 => Operation::Accept,
            2 => Operation::Receive,
            3 => Operation::Send,
            4 => Operation::CancelReceive,
            5 => Operation::CancelSend,
            6 => Operation::Bell,
            _ => Operation::Ignored,
        }
    }
}

/// One completion, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// What it belongs to.
    pub(crate) operation: Operation,
    /// Which connection; of no meaning for `Accept` and `Bell`.
    pub(crate) connection: ConnectionId,
    /// As a system call's: not negative, or minus errno.
    pub(crate) result: i32,
    /// The operation goes on.
    pub(crate) more: bool,
    /// The provided buffer that holds the bytes.
    pub(crate) buffer: Option<u16>,
}

impl Completion {
    fn decode(entry: &cqueue::Entry) -> Completion {
        let user_data = entry.user_data();
        Completion {
            operation: Operation::from_tag((user_data >> 56) as u8),
            connection: ConnectionId { slot: user_data as u32, generation: (user_data >> 32) as u32 & 0x00ff_ffff },
            result: entry.result(),
            more: cqueue::more(entry.flags()),
            buffer: cqueue::buffer_select(entry.flags()),
        }
    }
}

/// Tag in the top byte, the low 24 bits of the generation, the slot.
fn user_data(operation: Operation, connection: ConnectionId) -> u64 {
    u64::from(operation as u8) << 56 | u64::from(connection.generation & 0x00ff_ffff) << 32 | u64::from(connection.slot)
}

/// For operations that belong to no connection.
const NO_CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };

/// The opcodes that the driver uses, with their names for the start-up probe.
pub(crate) const OPCODES: [(u8, &str); 6] = [
    (opcode::AcceptMulti::CODE, "ACCEPT"),
    (opcode::RecvMulti::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
];

/// A ring with our flags: one issuer, completions only when we ask, no interrupts of the thread.
pub(crate) fn set_up(sq_entries: u32, cq_entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(cq_entries.max(sq_entries))
        .dontfork()
        .build(sq_entries)
}

/// The data ring of one shard. Made, used and dropped on the shard's thread.
pub(crate) struct DataRing {
    ring: IoUring,
    /// Entries that found the queue full and the kernel unwilling; they go first.
    waiting: VecDeque<squeue::Entry>,
    /// What an enter that sleeps adds to its flags.
    sleep_flags: EnterFlags,
    enters: u64,
    overflows: u64,
    overflowing: bool,
}

impl DataRing {
    /// Sets the ring up.
    pub(crate) fn new(sq_entries: u32, cq_entries: u32) -> io::Result<DataRing> {
        let ring = set_up(sq_entries, cq_entries)?;
        let mut sleep_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            // Else an idle shard shows as a core that waits for a disk (Linux 6.15).
            sleep_flags |= EnterFlags::NO_IOWAIT;
        }
        Ok(DataRing { ring, waiting: VecDeque::new(), sleep_flags, enters: 0, overflows: 0, overflowing: false })
    }

    /// For registrations.
    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Arms the multishot accept. Blocking sockets, since io_uring answers EAGAIN on others instead of waiting.
    pub(crate) fn accept(&mut self, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(user_data(Operation::Accept, NO_CONNECTION)));
    }

    /// Arms a connection's multishot receive.
    pub(crate) fn receive(&mut self, connection: ConnectionId, fd: &OwnedFd) {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), BUFFER_GROUP).build();
        self.push(entry.user_data(user_data(Operation::Receive, connection)));
    }

    /// Ends a connection's multishot receive.
    pub(crate) fn cancel_receive(&mut self, connection: ConnectionId) {
        let own = user_data(Operation::CancelReceive, connection);
        self.cancel(user_data(Operation::Receive, connection), own);
    }

    /// Sends bytes on a connection. With WAITALL the kernel itself goes on after a short send.
    ///
    /// # Safety
    /// `bytes` must stay valid and unchanged until the send's completion was popped.
    pub(crate) unsafe fn send(&mut self, connection: ConnectionId, fd: &OwnedFd, bytes: &[u8]) {
        // More than 4 GiB is sent in parts, as a short send.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry.user_data(user_data(Operation::Send, connection)));
    }

    /// Ends a connection's send.
    pub(crate) fn cancel_send(&mut self, connection: ConnectionId) {
        self.cancel(user_data(Operation::Send, connection), user_data(Operation::CancelSend, connection));
    }

    /// By user data and not by descriptor: that is one look-up, where a search by descriptor walks all that is armed.
    fn cancel(&mut self, target: u64, own: u64) {
        let entry = opcode::AsyncCancel::new(target).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(own));
    }

    /// Closes a descriptor on which nothing is under way, in the next submission.
    pub(crate) fn close(&mut self, fd: OwnedFd) {
        let entry = opcode::Close::new(Fd(fd.into_raw_fd())).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(user_data(Operation::Ignored, NO_CONNECTION)));
    }

    /// Arms the multishot poll of the doorbell: each ring gives a completion, and nobody needs to read the eventfd.
    pub(crate) fn hear(&mut self, bell: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(bell.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(user_data(Operation::Bell, NO_CONNECTION)));
    }

    /// Queues an entry, submitting what is queued if there is no room. Never fails: at worst the entry waits here.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.waiting.is_empty() || !self.try_push(&entry) {
            self.waiting.push_back(entry);
            self.drain_waiting();
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entries point to outlives their operations: a send's bytes by the contract of `send`; the
        // others point to nothing.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn drain_waiting(&mut self) {
        while let Some(entry) = self.waiting.pop_front() {
            if self.try_push(&entry) {
                continue;
            }
            // Errors other than a busy kernel show again at the turn's own enter.
            let made_room = matches!(self.enter_with(EnterFlags::empty()), Ok(submitted) if submitted > 0);
            if !(made_room && self.try_push(&entry)) {
                self.waiting.push_front(entry);
                return;
            }
        }
    }

    /// Submits what is queued and lets the kernel finish what is pending. Waits for nothing.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        self.drain_waiting();
        self.enter_with(EnterFlags::GETEVENTS).map(drop)
    }

    fn enter_with(&mut self, flags: EnterFlags) -> io::Result<usize> {
        let queued = self.ring.submission().len() as u32;
        self.enters += 1;
        // SAFETY: nothing is passed but counts and flags: no argument, no signal mask.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, flags.bits(), None) };
        match entered {
            Ok(submitted) => Ok(submitted),
            // Interrupted; or the kernel wants completions taken before it accepts more: the next turn does.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Sleeps until there is a completion, for at most so many microseconds.
    pub(crate) fn sleep(&mut self, most_us: u64) -> io::Result<()> {
        let most = Timespec::new().sec(most_us / 1_000_000).nsec((most_us % 1_000_000) as u32 * 1000);
        let arguments = SubmitArgs::new().timespec(&most);
        self.enters += 1;
        // SAFETY: `arguments` and the timespec that it points to live until the call returns, which is as long as the
        // kernel reads them.
        let entered = unsafe { self.ring.submitter().enter(0, 1, self.sleep_flags.bits(), Some(&arguments)) };
        match entered {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an enter has something to do: entries queued, completions held back by a full queue, or task work
    /// pending (unless input gathers).
    pub(crate) fn wants_enter(&mut self, gathers: bool) -> bool {
        let queue = self.ring.submission();
        let overflow = queue.cq_overflow();
        let wants = !queue.is_empty() || overflow || (!gathers && queue.taskrun());
        drop(queue);
        self.overflows += u64::from(overflow && !self.overflowing);
        self.overflowing = overflow;
        wants || !self.waiting.is_empty()
    }

    /// Takes up to `most` completions.
    pub(crate) fn completions(&mut self, most: usize, into: &mut Vec<Completion>) {
        into.extend(self.ring.completion().take(most).map(|entry| Completion::decode(&entry)));
    }

    /// Whether there is a completion to take.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Enters since the start.
    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    /// How often the completion queue began to overflow.
    pub(crate) fn overflows(&self) -> u64 {
        self.overflows
    }
}
