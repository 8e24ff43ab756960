//! What this process itself has used and wanted: the bench's own part in what it measures. `worker` calls it.

use crate::sys::{now_ns, own_cpu_ns};

/// Everything up to one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnUse {
    at_ns: u64,
    cpu_ns: u64,
    waiting_ns: u64,
}

impl OwnUse {
    pub(crate) fn now() -> OwnUse {
        let schedstat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        OwnUse { at_ns: now_ns(), cpu_ns: own_cpu_ns(), waiting_ns: waiting_ns(&schedstat) }
    }

    /// Shares of a core since `self`: used, and wanted but not had.
    pub(crate) fn shares(&self) -> (f64, f64) {
        let now = OwnUse::now();
        let wall = now.at_ns.saturating_sub(self.at_ns).max(1) as f64;
        let share = |from: u64, to: u64| to.saturating_sub(from) as f64 / wall;
        (share(self.cpu_ns, now.cpu_ns), share(self.waiting_ns, now.waiting_ns))
    }
}

/// How long the process was ready to run without running: the second number of schedstat; 0 if the kernel does not say.
fn waiting_ns(schedstat: &str) -> u64 {
    schedstat.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_a_core_is_the_second_number() {
        assert_eq!(waiting_ns("4200 1700 9\n"), 1_700);
        assert_eq!(waiting_ns(""), 0);
    }

    #[test]
    fn work_shows_as_used_time() {
        let begun = OwnUse::now();
        while now_ns() - begun.at_ns < 20_000_000 {}
        let (used, _) = begun.shares();
        assert!(used > 0.0, "{used}");
    }
}
