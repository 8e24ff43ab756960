//! The ring of provided buffers: the one place into which the kernel receives, shared by all connections of a shard.
//!
//! A buffer is the kernel's from [`Buffers::give_back`] until a completion names it; it is ours from then until it is
//! given back. The turn gives it back as soon as the engine has read it.

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

/// The group id of the only ring of buffers.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// Anonymous memory, page-aligned, given back on drop.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Pages> {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Pages { start, bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and whoever drops it has no pointer into it left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The buffers and the ring that offers them to the kernel. Dropped after the data ring that it is registered with.
#[derive(Debug)]
pub(crate) struct Buffers {
    entries: Pages,
    memory: Pages,
    count: u16,
    buffer_bytes: u32,
    tail: u16,
}

impl Buffers {
    /// Maps `count` buffers (a power of two, at most 32,768) of `buffer_bytes` each and registers them.
    pub(crate) fn new(submitter: &Submitter<'_>, count: u16, buffer_bytes: u32) -> io::Result<Buffers> {
        if !count.is_power_of_two() || count > 32_768 || buffer_bytes == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{count} buffers of {buffer_bytes} bytes: give a power of two up to 32,768, and more than 0 bytes"
                ),
            ));
        }
        let entries = Pages::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Pages::new(usize::from(count) * buffer_bytes as usize)?;
        // SAFETY: `entries` holds `count` entries, page-aligned, zeroed, and outlives the ring: `DataRing` is declared
        // before `Buffers` in the driver, so it is dropped first.
        unsafe {
            submitter.register_buf_ring_with_flags(entries.start.as_ptr() as u64, count, BUFFER_GROUP, 0)?;
        }
        let mut buffers = Buffers { entries, memory, count, buffer_bytes, tail: 0 };
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        Ok(buffers)
    }

    /// How many buffers there are.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The first `length` bytes of a buffer that a completion named and that was not given back since.
    pub(crate) fn bytes(&mut self, buffer: u16, length: usize) -> &mut [u8] {
        assert!(
            buffer < self.count && length <= self.buffer_bytes as usize,
            "the kernel named a buffer that is not ours"
        );
        let offset = usize::from(buffer) * self.buffer_bytes as usize;
        // SAFETY: the range lies in `memory` (asserted above). The kernel gave the buffer up with its completion, and
        // `&mut self` keeps it from being given back while the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(offset), length) }
    }

    /// Offers a buffer to the kernel.
    pub(crate) fn give_back(&mut self, buffer: u16) {
        let ring = self.entries.start.as_ptr().cast::<BufRingEntry>();
        let at = usize::from(self.tail & (self.count - 1));
        let offset = usize::from(buffer) * self.buffer_bytes as usize;
        // SAFETY: `at` is below `count`, so the entry lies in `entries`; the kernel reads only entries between its head
        // and the published tail, and at most `count` buffers exist, so it does not read this one now. Field by field,
        // since the tail lives in a reserved field of entry 0. `offset` lies in `memory`.
        unsafe {
            let entry = &mut *ring.add(at);
            entry.set_addr(self.memory.start.as_ptr().add(offset) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the ring's base is valid and aligned, and its tail is a u16 that the kernel reads with acquire and
        // nobody else writes.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(ring).cast_mut()) }.store(self.tail, Ordering::Release);
    }
}
