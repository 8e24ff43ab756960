//! What a server has used, read from /proc by its pid: CPU time, resident memory, context switches, and the kernel's
//! slab memory, which is of the whole machine.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};

use crate::sys;

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// CLOCK_MONOTONIC.
    pub(crate) at_ns: u64,
    /// utime and stime of all threads.
    pub(crate) cpu_ns: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) slab_bytes: u64,
    /// In the buffers of all TCP sockets of the machine.
    pub(crate) socket_buffer_bytes: u64,
    /// The threads that live, by name; those of one name together.
    pub(crate) threads: BTreeMap<String, Thread>,
}

/// What threads of one name have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thread {
    pub(crate) cpu_ns: u64,
    pub(crate) switches_voluntary: u64,
    pub(crate) switches_involuntary: u64,
}

impl Sample {
    pub(crate) fn of(pid: u32) -> Result<Sample> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = cpu_ticks(&stat).context("an unknown form of /proc/PID/stat")?;
        Ok(Sample {
            at_ns: sys::now_ns(),
            cpu_ns: ticks_ns(ticks),
            rss_bytes: rss_bytes(pid)?,
            slab_bytes: slab_bytes(),
            socket_buffer_bytes: socket_pages(&fs::read_to_string("/proc/net/sockstat").unwrap_or_default())
                * sys::page_bytes(),
            threads: threads(pid),
        })
    }

    /// Adds what another process has used; slab memory is the machine's, and counted already.
    pub(crate) fn add(&mut self, other: &Sample) {
        self.at_ns = self.at_ns.max(other.at_ns);
        self.cpu_ns += other.cpu_ns;
        self.rss_bytes += other.rss_bytes;
        for (name, thread) in &other.threads {
            let sum = self.threads.entry(name.clone()).or_default();
            sum.cpu_ns += thread.cpu_ns;
            sum.switches_voluntary += thread.switches_voluntary;
            sum.switches_involuntary += thread.switches_involuntary;
        }
    }

    /// Context switches of all threads: wanted, forced.
    pub(crate) fn switches(&self) -> (u64, u64) {
        let sum = |field: fn(&Thread) -> u64| self.threads.values().map(field).sum();
        (sum(|thread| thread.switches_voluntary), sum(|thread| thread.switches_involuntary))
    }
}

fn ticks_ns(ticks: u64) -> u64 {
    ticks * 1_000_000_000 / sys::ticks_per_second()
}

/// Resident memory. `status` may be off by some pages for each core, `smaps_rollup` counts; it wants more rights.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    if let Some(kilobytes) = rollup.ok().and_then(|text| field(&text, "Rss:")) {
        return Ok(kilobytes * 1024);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field(&status, "VmRSS:").map(|kilobytes| kilobytes * 1024).context("no VmRSS in /proc/PID/status")
}

/// Slab memory in use: objects that live if root may count them, else whole slabs.
fn slab_bytes() -> u64 {
    if sys::is_root()
        && let Ok(text) = fs::read_to_string("/proc/slabinfo")
    {
        return active_slab_bytes(&text);
    }
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    field(&text, "Slab:").unwrap_or(0) * 1024
}

fn threads(pid: u32) -> BTreeMap<String, Thread> {
    let mut threads: BTreeMap<String, Thread> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let status = read("status");
        let thread = threads.entry(read("comm").trim_end().to_owned()).or_default();
        thread.cpu_ns += ticks_ns(cpu_ticks(&read("stat")).unwrap_or(0));
        thread.switches_voluntary += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        thread.switches_involuntary += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    threads
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// utime + stime. The program's name in parentheses may hold anything, so count from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Pages in the buffers of TCP sockets, by /proc/net/sockstat.
fn socket_pages(sockstat: &str) -> u64 {
    let words = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "));
    let mut words = words.unwrap_or_default().split_whitespace();
    words.find(|word| *word == "mem").and_then(|_| words.next()?.parse().ok()).unwrap_or(0)
}

/// Sum of `active_objs` times `objsize` over all caches.
fn active_slab_bytes(slabinfo: &str) -> u64 {
    slabinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let active: u64 = fields.next()?.parse().ok()?;
            let size: u64 = fields.nth(1)?.parse().ok()?;
            Some(active * size)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a) (b) c) S 1 12 12 0 -1 4194304 900 0 5 0 123 45 0 0 20 0 3 0 100 1000 200";
        assert_eq!(cpu_ticks(stat), Some(168));
        assert_eq!(cpu_ticks("12 (x) S 1"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn slabs_are_summed_by_objects_that_live() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> <objperslab>\n\
            TCP 100 120 2432 13 8 : tunables 0 0 0 : slabdata 10 10 0\nsock_inode_cache 10 19 832 19 4\n";
        assert_eq!(active_slab_bytes(text), 100 * 2432 + 10 * 832);
    }

    #[test]
    fn buffers_of_sockets_are_counted_in_pages() {
        let text = "sockets: used 78\nTCP: inuse 26 orphan 0 tw 74 alloc 28 mem 233\nUDP: inuse 0 mem 9\n";
        assert_eq!((socket_pages(text), socket_pages("")), (233, 0));
    }

    #[test]
    fn a_field_is_found_at_the_start_of_its_line_only() {
        let status = "Name:\tx\nnonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\nVmRSS:\t  900 kB\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(5));
        assert_eq!(field(status, "VmRSS:"), Some(900));
        assert_eq!(field(status, "VmHWM:"), None);
    }

    #[test]
    fn nodes_add_up_and_the_machines_slab_is_counted_once() {
        let thread = Thread { cpu_ns: 3, switches_voluntary: 4, switches_involuntary: 5 };
        let node = |name: &str| Sample {
            at_ns: 1,
            cpu_ns: 10,
            rss_bytes: 100,
            slab_bytes: 1_000,
            socket_buffer_bytes: 50,
            threads: BTreeMap::from([(name.to_owned(), thread)]),
        };
        let mut sum = node("shard-0");
        sum.add(&node("shard-0"));
        sum.add(&node("bridge"));
        assert_eq!((sum.cpu_ns, sum.rss_bytes, sum.slab_bytes), (30, 300, 1_000));
        assert_eq!((sum.threads["shard-0"].cpu_ns, sum.threads["bridge"].cpu_ns), (6, 3));
        assert_eq!(sum.switches(), (12, 15));
    }

    #[test]
    fn this_process_can_be_sampled() {
        let first = Sample::of(std::process::id()).expect("own /proc");
        assert!(first.rss_bytes > 100_000, "{first:?}");
        let second = Sample::of(std::process::id()).expect("own /proc");
        assert!(second.at_ns > first.at_ns && second.cpu_ns >= first.cpu_ns);
    }
}
