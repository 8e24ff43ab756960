//! Signals, taken by the main thread alone: it blocks them before any other thread starts, so that all inherit that.

use std::mem::MaybeUninit;
use std::time::Duration;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals that this process waits for. Made before any thread is started.
#[derive(Debug)]
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks SIGTERM, SIGINT and SIGHUP for this thread and all that it will start.
    ///
    /// # Errors
    /// From `pthread_sigmask(3)`.
    pub fn block() -> std::io::Result<Signals> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset is given an initialised set and valid signals.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            set.assume_init()
        };
        // SAFETY: the set is initialised; no old mask is asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Signals { set }),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of the signals, at most so long.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> Option<Signal> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(at_most.subsec_nanos().min(999_999_999) as i32),
        };
        // SAFETY: set and timeout are initialised and outlive the call; no siginfo is asked for.
        match unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const timeout) } {
            libc::SIGTERM | libc::SIGINT => Some(Signal::Stop),
            libc::SIGHUP => Some(Signal::Reload),
            // EAGAIN: the time is over. EINTR: another signal; the caller waits again.
            _ => None,
        }
    }
}
