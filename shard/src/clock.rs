//! The shard's only look at the clocks, once per turn.

use roomwire_engine::Now;

/// Both clocks, now. The monotonic one is CLOCK_MONOTONIC, the same for all threads and for the ring's timer.
pub fn now() -> Now {
    let mono = read(libc::CLOCK_MONOTONIC);
    let wall = read(libc::CLOCK_REALTIME);
    Now { mono_us: micros(&mono), unix_ms: micros(&wall) / 1000 }
}

/// Microseconds that the calling thread has run.
pub fn thread_us() -> u64 {
    micros(&read(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill. These clocks exist on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

fn micros(time: &libc::timespec) -> u64 {
    // A wall clock before 1970 reads as 1970.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}
