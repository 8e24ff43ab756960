//! One eventfd per thread, which wakes the thread when another one left it a message.
//!
//! The owner arms the bell, looks at its lanes once more, and sleeps. A producer leaves its messages, then rings: the
//! bell writes the eventfd only if it is armed, once. Both sides put a full fence between their store and their load,
//! so that one of them sees the other: either the owner finds the message or the producer finds the bell armed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// An eventfd that wakes one sleeping thread. Written only on the edge from awake to asleep-with-work.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
    armed: AtomicBool,
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
        Ok(Doorbell { fd, armed: AtomicBool::new(false) })
    }

    /// Arms the bell before the owner sleeps. The owner then looks at its lanes once more, and must not sleep if one
    /// holds a message.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake: nobody needs to ring.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Wakes the owner if it sleeps. Never blocks.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::SeqCst) && self.armed.swap(false, Ordering::SeqCst) {
            self.write();
        }
    }

    /// Sleeps until the bell rings, for at most so long; for owners that have nothing else to wait for.
    pub fn wait(&self, most: std::time::Duration) {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // Rounded up, or a short wait would spin.
        let most_ms = i32::try_from(most.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid pollfd that outlives the call. An error (EINTR) is a wake-up like any other.
        if unsafe { libc::poll(&raw mut poll, 1, most_ms) } > 0 {
            self.clear();
        }
    }

    fn write(&self) {
        let one = 1u64;
        // SAFETY: the eight bytes of `one` outlive the call. The result is of no use: the write can fail only when the
        // count is about to overflow, after 2^64 - 2 rings.
        let _ = unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Reads the eventfd empty; for owners that poll its level (the bridge). A shard's ring polls for edges and lets the
    /// count grow.
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
