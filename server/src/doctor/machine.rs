//! The machine and this process's limits: kernel, descriptors, locked memory, ports, memory, cores, clock.

use super::Finding;
use crate::config::Settings;
use crate::config::settings::{connections_possible, descriptor_limit, descriptors_wanted};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// glommio locks memory for each of its executors' rings (FACTS, section 1.2).
const MEMLOCK_PER_SHARD: u64 = 512 * 1024;
/// What an idle connection costs, in bytes: ours and the kernel's (an established socket 3,890, an armed receive 864).
const CONNECTION_BYTES: u64 = 600 + 4_754;
/// The part of the machine's memory that connections may take: the rest is for queues, caches and the store.
const MEMORY_PART: u64 = 2;

/// Looks at all of it.
pub(super) fn examine(settings: &Settings, connections: u64) -> Vec<Finding> {
    let mut findings = vec![kernel(), io_uring(), descriptors(settings, connections), memlock(settings)];
    findings.push(port("listen.addr", settings.listen));
    findings.push(port("http.addr", settings.http));
    findings.extend([backlog(settings), memory(connections), conntrack(connections), cores(settings), clock()]);
    findings
}

fn sysctl(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.trim().to_owned())
}

fn kernel() -> Finding {
    let release = sysctl("kernel.osrelease").unwrap_or_else(|| "unknown".to_owned());
    match roomwire_shard::probe::probe() {
        Ok(()) => Finding::fine("kernel", format!("Linux {release} has every io_uring feature that is used")),
        Err(unsupported) => Finding::fails(
            "kernel",
            format!("Linux {release}: {unsupported}"),
            "everything: serve ends with status 78",
            "as the line says; Linux 6.1 or newer",
        ),
    }
}

fn io_uring() -> Finding {
    match sysctl("kernel.io_uring_disabled").as_deref() {
        None => Finding::fine("io_uring", "this kernel has no switch that forbids it"),
        Some("0") => Finding::fine("io_uring", "allowed to all"),
        Some("1") => {
            let group = sysctl("kernel.io_uring_group").unwrap_or_default();
            Finding::fine("io_uring", format!("allowed to root and to group {group}: the node's user must be in it"))
        }
        Some(value) => Finding::fails(
            "io_uring",
            format!("kernel.io_uring_disabled is {value}"),
            "everything: serve ends with status 78",
            "roomwire-tuning apply --io-uring-group roomwire",
        ),
    }
}

fn descriptors(settings: &Settings, connections: u64) -> Finding {
    let (_, hard) = descriptor_limit();
    let shards = u64::from(settings.shards);
    let (wanted, wanted_shards) = descriptors_wanted(settings.has_tables, shards, connections);
    let each =
        if settings.has_tables { format!(", and each of {shards} shards as many sockets") } else { String::new() };
    let found = format!("this process may open {hard} files{each}");
    if hard >= wanted && wanted_shards.is_none() {
        return Finding::fine("descriptors", found);
    }
    let limits = format!("connections to {}", connections_possible(hard, settings.has_tables, shards));
    let more = wanted_shards.map_or_else(String::new, |shards| format!(", and --set shards={shards}"));
    let cure = format!("LimitNOFILE={wanted} in the unit, or `ulimit -n {wanted}`{more}");
    Finding::limits("descriptors", found, limits, cure)
}

fn memlock(settings: &Settings) -> Finding {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return Finding::unknown("locked memory", "the limit could not be read");
    }
    let wanted = MEMLOCK_PER_SHARD * u64::from(settings.shards);
    if limit.rlim_cur >= wanted {
        let found = if limit.rlim_cur == libc::RLIM_INFINITY {
            "no limit".to_owned()
        } else {
            format!("{} KiB", limit.rlim_cur / 1024)
        };
        return Finding::fine("locked memory", found);
    }
    let found = format!("{} KiB for {} shards", limit.rlim_cur / 1024, settings.shards);
    let limits = format!("shards to {}", limit.rlim_cur / MEMLOCK_PER_SHARD);
    Finding::fails("locked memory", found, limits, "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`")
}

fn port(key: &str, addr: SocketAddr) -> Finding {
    match TcpListener::bind(addr) {
        Ok(_) => Finding::fine(key, format!("{addr} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::fails(
            key,
            format!("{addr} is taken"),
            "everything: serve ends with status 1",
            format!("stop who holds it (`ss -ltnp sport = {}` names it), or choose another address", addr.port()),
        ),
        Err(error) => Finding::fails(
            key,
            format!("{addr}: {error}"),
            "everything: serve ends with status 1",
            "an address of this machine; a port above 1023, or CAP_NET_BIND_SERVICE",
        ),
    }
}

fn backlog(settings: &Settings) -> Finding {
    let Some(most) = sysctl("net.core.somaxconn").and_then(|text| text.parse::<u32>().ok()) else {
        return Finding::unknown("backlog", "net.core.somaxconn cannot be read");
    };
    let asked = settings.config.listen.backlog;
    if most >= asked {
        return Finding::fine("backlog", format!("{asked} connections per shard may wait to be accepted"));
    }
    Finding::limits(
        "backlog",
        format!("listen.backlog is {asked}, net.core.somaxconn {most}"),
        format!("a connection storm: {most} per shard may wait, more are dropped and try again after a second"),
        "roomwire-tuning apply",
    )
}

fn memory(connections: u64) -> Finding {
    let Some(kib) = memory_kib() else { return Finding::unknown("memory", "/proc/meminfo cannot be read") };
    let most = kib * 1024 / MEMORY_PART / CONNECTION_BYTES;
    let found = format!("{} MiB; an idle connection costs {CONNECTION_BYTES} bytes, ours and the kernel's", kib / 1024);
    if most >= connections {
        return Finding::fine("memory", found);
    }
    Finding::limits("memory", found, format!("idle connections to {most}, in half of it"), "more memory, or more nodes")
}

pub(super) fn memory_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The kernel's table of connections, where it keeps one: a full one drops packets of whoever comes next.
fn conntrack(connections: u64) -> Finding {
    let number = |name: &str| sysctl(name).and_then(|text| text.parse::<u64>().ok());
    let Some(most) = number("net.netfilter.nf_conntrack_max") else {
        return Finding::fine("conntrack", "the kernel tracks no connections");
    };
    tracked(number("net.netfilter.nf_conntrack_count").unwrap_or(0), most, connections)
}

/// Entries of closed connections linger, so that it takes twice as many.
fn tracked(now: u64, most: u64, connections: u64) -> Finding {
    let found = format!("{now} of {most} connections are tracked now");
    if most >= 2 * connections {
        return Finding::fine("conntrack", found);
    }
    Finding::limits(
        "conntrack",
        found,
        format!("connections to {}; over it packets are dropped", most / 2),
        format!("roomwire-tuning apply --connections {connections}, or take the port out of it: --notrack PORT"),
    )
}

fn cores(settings: &Settings) -> Finding {
    let (shards, cores) = (settings.shards, settings.cpus.len());
    if usize::from(shards) <= cores {
        return Finding::fine("cores", format!("{shards} shards on {cores} usable cores"));
    }
    Finding::limits(
        "cores",
        format!("{shards} shards on {cores} usable cores"),
        "latency: shards that share a core wait for each other",
        format!("--set shards={cores}"),
    )
}

/// What adjtimex(2) says: message times and token expiry need a clock that is right.
fn clock() -> Finding {
    // SAFETY: all-zero is a valid timex; with `modes` 0 the call only reads.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.maxerror)
    };
    match state {
        (-1, _) => Finding::unknown("clock", "adjtimex is not allowed here"),
        (libc::TIME_ERROR, _) => Finding::limits(
            "clock",
            "not synchronized",
            "nothing on one node; in a cluster, tokens and message times are off by as much as clocks are",
            "timedatectl set-ntp true, or chrony",
        ),
        (_, error_us) => Finding::fine("clock", format!("synchronized to {} ms", error_us.max(0) / 1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = taken.local_addr().expect("bound");
        let finding = port("listen.addr", addr);
        assert_eq!(finding.verdict, super::super::Verdict::Fails);
        assert!(finding.cure.contains(&format!("sport = {}", addr.port())), "{}", finding.cure);
        drop(taken);
        assert_eq!(port("listen.addr", addr).verdict, super::super::Verdict::Fine);
    }

    #[test]
    fn a_full_table_of_connections_is_counted_in_connections() {
        assert_eq!(tracked(10, 262_144, 100_000).verdict, super::super::Verdict::Fine);
        let finding = tracked(10, 65_536, 100_000);
        assert_eq!(finding.verdict, super::super::Verdict::Limits);
        assert!(finding.limits.starts_with("connections to 32768"), "{}", finding.limits);
    }

    #[test]
    fn memory_is_counted_in_connections() {
        let finding = memory(u64::MAX / CONNECTION_BYTES);
        assert_eq!(finding.verdict, super::super::Verdict::Limits);
        assert_eq!(memory(1).verdict, super::super::Verdict::Fine);
    }
}
