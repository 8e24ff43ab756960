//! System calls of a server, counted by `perf stat` while a run goes on. `ask` calls it, where the command line asks.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::sys::{self, now_ns};

const EVENT: &str = "raw_syscalls:sys_enter";

/// A count under way.
pub(crate) struct Syscalls {
    perf: Child,
    begun_ns: u64,
}

impl Syscalls {
    /// Begins to count the calls of all threads of `pids`.
    pub(crate) fn count(pids: &[u32]) -> Result<Syscalls> {
        let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", EVENT, "-p", &pids]).stdin(Stdio::null()).stdout(Stdio::null());
        let perf = perf.stderr(Stdio::piped()).spawn();
        let perf = perf.context("--syscalls needs `perf` (Debian: apt install linux-perf)")?;
        Ok(Syscalls { perf, begun_ns: now_ns() })
    }

    /// Ends the count.
    pub(crate) fn per_second(mut self) -> Result<f64> {
        let seconds = (now_ns() - self.begun_ns) as f64 / 1e9;
        // perf prints what it has counted when it is interrupted.
        sys::interrupt(self.perf.id());
        let mut said = String::new();
        if let Some(stderr) = &mut self.perf.stderr {
            stderr.read_to_string(&mut said)?;
        }
        self.perf.wait()?;
        let Some(count) = counted(&said) else {
            bail!(
                "perf counts no system calls here (it needs root or kernel.perf_event_paranoid at -1): {}",
                said.trim()
            );
        };
        Ok(count as f64 / seconds)
    }
}

impl Drop for Syscalls {
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// The count in the output of `perf stat -x ,`; `None` where perf could not count.
fn counted(said: &str) -> Option<u64> {
    said.lines().find(|line| line.contains(EVENT)).and_then(|line| line.split(',').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_field_of_the_events_line() {
        assert_eq!(counted("12345,,raw_syscalls:sys_enter,2000123,100.00,,\n"), Some(12_345));
        assert_eq!(counted("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        assert_eq!(counted("event syntax error\n"), None);
    }
}
