//! The system calls that std and socket2 do not offer: epoll with nanoseconds, clocks of the kernel. The crate's only
//! `unsafe` code. `swarm` and `worker` call it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// One thing that became ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// As given to [`Epoll::add`].
    pub(crate) token: u64,
    /// Something can be read, or the peer is gone and a read will tell.
    pub(crate) readable: bool,
    /// Something can be written.
    pub(crate) writable: bool,
}

/// A level-triggered epoll set.
pub(crate) struct Epoll {
    descriptor: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointer.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just returned by the kernel and nothing else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Epoll { descriptor, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Watches `what` for reading, and for writing too if asked.
    pub(crate) fn add(&self, what: BorrowedFd<'_>, token: u64, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, what, token, writable)
    }

    /// Changes what [`Epoll::add`] asked for.
    pub(crate) fn modify(&self, what: BorrowedFd<'_>, token: u64, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, what, token, writable)
    }

    fn control(&self, operation: i32, what: BorrowedFd<'_>, token: u64, writable: bool) -> io::Result<()> {
        let interest = libc::EPOLLIN | if writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: interest.cast_unsigned(), u64: token };
        // SAFETY: `event` lives through the call, which only reads it.
        let result =
            unsafe { libc::epoll_ctl(self.descriptor.as_raw_fd(), operation, what.as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for events, at most `timeout`, and says how many came. A signal counts as none.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        self.events.clear();
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // epoll_wait counts in milliseconds, which is as long as a whole turn of a busy server. Linux 5.11 has this one.
        // SAFETY: `events` has room for EVENTS_MAX entries, `timeout` lives through the call, and no signal mask is given.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.descriptor.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) };
        };
        // SAFETY: the kernel has filled the first `count` entries, and `count` is at most EVENTS_MAX, the capacity.
        unsafe { self.events.set_len(count) };
        Ok(count)
    }

    /// The event at `index` of the last wait.
    pub(crate) fn ready(&self, index: usize) -> Option<Ready> {
        let event = self.events.get(index)?;
        let flags = event.events.cast_signed();
        Some(Ready {
            token: event.u64,
            readable: flags & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0,
            writable: flags & libc::EPOLLOUT != 0,
        })
    }
}

/// Lets a socket that binds an address take its port only at `connect`, when any port will do that is free towards that
/// peer: ports of one address then last for as many connections to each peer, and those in TIME_WAIT do not count.
pub(crate) fn choose_port_at_connect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives through the call, which reads as many bytes as it is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What [`shift_clock`] adds.
static SHIFT_NS: AtomicI64 = AtomicI64::new(0);

/// CLOCK_MONOTONIC in nanoseconds: the same in every process of this host, and in every process of a run.
pub(crate) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).saturating_add_signed(SHIFT_NS.load(Ordering::Relaxed))
}

/// Makes this process' time that of the machine that conducts the run.
pub(crate) fn shift_clock(by_ns: i64) {
    SHIFT_NS.store(by_ns, Ordering::Relaxed);
}

/// The CPU time that this process has used, in nanoseconds.
pub(crate) fn own_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call, which fills it; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Clock ticks a second, the unit of CPU times in /proc.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: takes no pointer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// Bytes of a page of memory.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: takes no pointer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Takes as many descriptors as this process and its children may have, and says how many.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call, which fills it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` lives through the call, which only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_max)
}

/// Whether this process may read what only root may.
pub(crate) fn is_root() -> bool {
    // SAFETY: takes no pointer and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Asks process `pid` to end.
pub(crate) fn terminate(pid: u32) {
    signal(pid, libc::SIGTERM);
}

/// Tells process `pid` to stop what it is at.
pub(crate) fn interrupt(pid: u32) {
    signal(pid, libc::SIGINT);
}

fn signal(pid: u32, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: takes no pointer; a pid that is gone is an error that changes nothing.
        unsafe { libc::kill(pid, signal) };
    }
}
