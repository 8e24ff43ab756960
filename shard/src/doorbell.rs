//! One eventfd per thread, which wakes the thread when another one left it a message.
//!
//! The owner arms the bell, looks at its lanes once more, and sleeps. A producer leaves its messages, then rings: the
//! bell writes the eventfd only if it is armed, once. Both sides put a full fence between their store and their load,
//! so that one of them sees the other: either the owner finds the message or the producer finds the bell armed. An owner
//! that lets mail gather arms the bell for a lane that holds so many messages; whatever is less rings nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// An eventfd that wakes one sleeping thread. Written only on the edge from awake to asleep-with-work.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
    /// How many messages a lane must hold for its producer to ring; 0: nobody rings.
    armed: AtomicUsize,
}

impl Doorbell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// From `eventfd(2)`.
    pub fn new() -> io::Result<Doorbell> {
        // SAFETY: eventfd(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made by the call above, is valid, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Doorbell { fd, armed: AtomicUsize::new(0) })
    }

    /// Arms the bell before the owner sleeps. The owner then looks at its lanes once more, and must not sleep if one
    /// holds a message.
    pub fn arm(&self) {
        self.arm_at(1);
    }

    /// Arms the bell for a lane that holds so many messages, at least one; the owner must not sleep if one does.
    pub fn arm_at(&self, messages: usize) {
        self.armed.store(messages.max(1), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake: nobody needs to ring.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::Relaxed);
    }

    /// Wakes the owner if it sleeps, however many messages it waits for. Never blocks.
    pub fn ring(&self) {
        self.ring_for(usize::MAX);
    }

    /// Wakes the owner if it sleeps and waits for no more messages than the producer's lane holds. Never blocks.
    pub fn ring_for(&self, waiting: usize) {
        fence(Ordering::SeqCst);
        let armed = self.armed.load(Ordering::SeqCst);
        if armed != 0 && waiting >= armed && self.armed.swap(0, Ordering::SeqCst) != 0 {
            self.write();
        }
    }

    /// Sleeps until the bell rings, for at most so long: all that an owner waits for who has no sockets, and a shard
    /// while input gathers.
    pub fn wait(&self, most: std::time::Duration) {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let most = libc::timespec {
            tv_sec: libc::time_t::try_from(most.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(most.subsec_nanos()),
        };
        // SAFETY: `poll` is one valid pollfd, and it and `most` outlive the call; a null mask changes no signals. An error
        // (EINTR) is a wake-up like any other.
        if unsafe { libc::ppoll(&raw mut poll, 1, &raw const most, std::ptr::null()) } > 0 {
            self.clear();
        }
    }

    fn write(&self) {
        let one = 1u64;
        // SAFETY: the eight bytes of `one` outlive the call. The result is of no use: the write can fail only when the
        // count is about to overflow, after 2^64 - 2 rings.
        let _ = unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Reads the eventfd empty, for who polls its level.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: the eight bytes of `count` outlive the call. The read does not block; whether there was anything
        // to read is of no interest.
        let _ = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
