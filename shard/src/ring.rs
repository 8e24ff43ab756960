//! The shard's own io_uring: set-up, submissions, completions. It knows operations, not what they are for.
//!
//! With DEFER_TASKRUN the kernel finishes work only inside an enter with GETEVENTS; in between it sets the TASKRUN
//! flag. The shard also sleeps in an enter, woken by whatever completes: sockets, and the doorbell that the ring polls.

use crate::buffers::BUFFER_GROUP;
use io_uring::types::{DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, opcode, squeue};
use roomwire_engine::names::ConnectionId;
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

/// What a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// An accept; its number stands in place of the connection's slot.
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
    /// A descriptor of the process for a connection's socket in the table.
    Install = 8,
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
            8 => Operation::Install,
            _ => Operation::Ignored,
        }
    }
}

/// One completion, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// What it belongs to.
    pub(crate) operation: Operation,
    /// Which connection; of no meaning for `Bell`.
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

/// How much of what a refused peer has sent is thrown away.
const REFUSED_BYTES_MAX: u32 = 64 * 1024;

/// For operations that belong to no connection.
const NO_CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };

/// The opcodes that the driver uses, with their names for the start-up probe.
pub(crate) const OPCODES: [(u8, &str); 6] = [
    (opcode::Accept::CODE, "ACCEPT"),
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

/// A connected socket: a descriptor of the process or, if the ring has a table of sockets, a place in that. Only
/// [`DataRing::close`] closes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(NonZeroU32);

impl Descriptor {
    /// Of what an accept gave.
    pub(crate) fn accepted(result: i32) -> Option<Descriptor> {
        NonZeroU32::new(u32::try_from(result).ok()?.wrapping_add(1)).map(Descriptor)
    }

    /// Of a descriptor of the process, for a ring without a table.
    pub(crate) fn of_process(fd: OwnedFd) -> Descriptor {
        Descriptor::accepted(fd.into_raw_fd()).expect("a descriptor is not negative")
    }

    /// The descriptor of the process, unless it is a place in the table of this ring, from which it is.
    pub(crate) fn borrow_of_process(&self, ring: &DataRing) -> Option<BorrowedFd<'_>> {
        // SAFETY: without a table the number is a descriptor that the kernel gave to us; only `close` closes it, which
        // takes the socket from whoever lends it here.
        (!ring.has_table).then(|| unsafe { BorrowedFd::borrow_raw(self.number()) })
    }

    fn into_number(self) -> RawFd {
        self.number()
    }

    fn number(&self) -> RawFd {
        // What was given was not negative.
        (self.0.get() - 1) as RawFd
    }
}

/// The data ring of one shard. Made, used and dropped on the shard's thread.
pub(crate) struct DataRing {
    ring: IoUring,
    /// Entries that found the queue full and the kernel unwilling; they go first.
    waiting: VecDeque<squeue::Entry>,
    /// Sockets are places in the ring's own table.
    has_table: bool,
    /// What an enter that sleeps adds to its flags.
    sleep_flags: EnterFlags,
    enters: u64,
    overflows: u64,
    overflowing: bool,
}

impl DataRing {
    /// Sets the ring up; with a table of so many sockets, if any.
    pub(crate) fn new(sq_entries: u32, cq_entries: u32, table: Option<u32>) -> io::Result<DataRing> {
        let ring = set_up(sq_entries, cq_entries)?;
        if let Some(places) = table {
            ring.submitter().register_files_sparse(places)?;
        }
        let mut sleep_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            // Else an idle shard shows as a core that waits for a disk (Linux 6.15).
            sleep_flags |= EnterFlags::NO_IOWAIT;
        }
        let has_table = table.is_some();
        Ok(DataRing {
            ring,
            waiting: VecDeque::new(),
            has_table,
            sleep_flags,
            enters: 0,
            overflows: 0,
            overflowing: false,
        })
    }

    /// For registrations.
    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Says to the kernel what the numbers of sockets are.
    fn of_socket(&self, entry: squeue::Entry) -> squeue::Entry {
        if self.has_table { entry.flags(squeue::Flags::FIXED_FILE) } else { entry }
    }

    /// Arms an accept. Blocking sockets, since io_uring answers EAGAIN on others instead of waiting.
    ///
    /// # Safety
    /// `address` and `length` must stay valid, and nobody else may use them, until the accept's completion was popped.
    pub(crate) unsafe fn accept(
        &mut self,
        number: u32,
        listener: BorrowedFd<'_>,
        address: *mut libc::sockaddr,
        length: *mut libc::socklen_t,
    ) {
        let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), address, length);
        let accept = if self.has_table {
            accept.file_index(Some(DestinationSlot::auto_target()))
        } else {
            accept.flags(libc::SOCK_CLOEXEC)
        };
        let own = ConnectionId { slot: number, generation: 0 };
        self.push(accept.build().user_data(user_data(Operation::Accept, own)));
    }

    /// Arms a connection's multishot receive.
    pub(crate) fn receive(&mut self, connection: ConnectionId, socket: &Descriptor) {
        let entry = self.of_socket(opcode::RecvMulti::new(Fd(socket.number()), BUFFER_GROUP).build());
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
    pub(crate) unsafe fn send(&mut self, connection: ConnectionId, socket: &Descriptor, bytes: &[u8]) {
        let entry = self.send_entry(socket, bytes, libc::MSG_WAITALL);
        self.push(entry.user_data(user_data(Operation::Send, connection)));
    }

    fn send_entry(&self, socket: &Descriptor, bytes: &[u8], flags: i32) -> squeue::Entry {
        // More than 4 GiB is sent in parts, as a short send.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let send = opcode::Send::new(Fd(socket.number()), bytes.as_ptr(), length).flags(libc::MSG_NOSIGNAL | flags);
        self.of_socket(send.build())
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

    /// Closes a socket on which nothing is under way, in the next submission. Its place is free for accepts that are
    /// armed after this.
    pub(crate) fn close(&mut self, socket: Descriptor) {
        let number = socket.into_number();
        let close = if self.has_table {
            opcode::Close::new(Fixed(number as u32)).build()
        } else {
            opcode::Close::new(Fd(number)).build()
        };
        self.push_unheard(close);
    }

    /// Closes a descriptor of the process in the next submission.
    pub(crate) fn close_listener(&mut self, listener: OwnedFd) {
        self.push_unheard(opcode::Close::new(Fd(listener.into_raw_fd())).build());
    }

    /// Says `answer`, if that fits into the socket's buffer at once, and closes.
    ///
    /// # Safety
    /// `answer` must stay valid and unchanged for as long as entries are submitted.
    pub(crate) unsafe fn refuse(&mut self, socket: Descriptor, answer: &[u8]) {
        let send = self.send_entry(&socket, answer, libc::MSG_DONTWAIT);
        self.push_unheard(send);
        // What the peer has sent so far is thrown away: closing over unread bytes would reset the connection, and the
        // answer with it. With MSG_TRUNC, TCP copies nothing (tcp(7)).
        let receive = opcode::Recv::new(Fd(socket.number()), ptr::null_mut(), REFUSED_BYTES_MAX)
            .flags(libc::MSG_DONTWAIT | libc::MSG_TRUNC)
            .build();
        let receive = self.of_socket(receive);
        self.push_unheard(receive);
        // The kernel takes entries one after the other, and neither of these may wait.
        self.close(socket);
    }

    /// Asks for a descriptor of the process for a connection's socket in the table (Linux 6.8).
    pub(crate) fn install(&mut self, connection: ConnectionId, socket: &Descriptor) {
        let entry = opcode::FixedFdInstall::new(Fixed(socket.number() as u32), 0).build();
        self.push(entry.user_data(user_data(Operation::Install, connection)));
    }

    /// What an `install` gave.
    pub(crate) fn installed(result: i32) -> io::Result<OwnedFd> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the descriptor is fresh from the kernel, which gave it to this completion alone.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }

    /// Queues what completes without a word, unless it fails; and then there is nothing to be done.
    fn push_unheard(&mut self, entry: squeue::Entry) {
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
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
        // SAFETY: what the entries point to outlives their operations, by the contracts of `send`, `refuse` and `accept`;
        // the others point to nothing.
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

    /// How many completions there are to take, as far as they fit into the queue.
    pub(crate) fn completions_waiting(&mut self) -> usize {
        self.ring.completion().len()
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
