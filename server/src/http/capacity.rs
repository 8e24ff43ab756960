//! How much of what this node has is used up: the signal to add nodes, or to take some away.
//!
//! Asked by `/metrics` and `/v1/stats`. Reads some files of the kernel, on a thread of its own, since the bridge's thread,
//! where HTTP lives, waits for no file. It judges nothing: the alerts do.

use crate::bridge::NodeFigures;
use crate::config::settings::{descriptor_limit, descriptors_kept};
use std::fs;
use std::path::{Path, PathBuf};

/// The used part of each resource, from 0 to 1; `None` where there is no limit or nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Capacity {
    /// Of `limits.connections_max`.
    connections: Option<f64>,
    /// Of the machine's memory, or of the tightest limit of a control group.
    memory: Option<f64>,
    /// Of the busiest thread's time: a shard's or the bridge's.
    cpu: Option<f64>,
    /// Of the limit of open descriptors.
    descriptors: Option<f64>,
}

impl Capacity {
    /// Looks now.
    pub(super) async fn of(figures: &NodeFigures) -> Capacity {
        let kernel = tokio::task::spawn_blocking(|| Kernel::read(Path::new("/"))).await.unwrap_or_default();
        Capacity::new(figures, &kernel)
    }

    fn new(figures: &NodeFigures, kernel: &Kernel) -> Capacity {
        let stats = figures.shards.iter().filter_map(|shard| shard.stats.as_ref());
        let connections: u64 = stats.map(|stats| stats.counters.connections_now).sum();
        let busy = figures.shards.iter().map(|shard| shard.busy_ratio).fold(figures.busy_ratio, f64::max);
        // Before Linux 6.2 the kernel does not count them: then what the node keeps free for other things is as good as used.
        let shards = u64::try_from(figures.shards.len()).unwrap_or(u64::MAX);
        let open = kernel.descriptors_open.unwrap_or_else(|| connections.saturating_add(descriptors_kept(shards)));
        Capacity {
            connections: part(connections, u64::from(figures.connections_max)),
            memory: kernel.memory,
            cpu: Some(busy),
            descriptors: part(open, kernel.descriptors_max),
        }
    }

    /// Those that are known, by name.
    pub(super) fn resources(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("connections", self.connections),
            ("memory", self.memory),
            ("cpu", self.cpu),
            ("descriptors", self.descriptors),
        ];
        all.into_iter().filter_map(|(name, used)| Some((name, used?)))
    }

    /// The used part of that of which least is left.
    pub(super) fn tightest(&self) -> f64 {
        self.resources().map(|(_, used)| used).fold(0.0, f64::max)
    }
}

/// `used` of `limit`; nothing where there is no limit.
fn part(used: u64, limit: u64) -> Option<f64> {
    (limit > 0).then(|| (used as f64 / limit as f64).min(1.0))
}

/// What only the kernel knows.
#[derive(Clone, Copy, Debug, Default)]
struct Kernel {
    memory: Option<f64>,
    descriptors_open: Option<u64>,
    descriptors_max: u64,
}

impl Kernel {
    /// Below `root`, which is `/` but in tests.
    fn read(root: &Path) -> Kernel {
        let open = fs::metadata(root.join("proc/self/fd")).map_or(0, |directory| directory.len());
        Kernel {
            memory: memory(root),
            descriptors_open: (open > 0).then_some(open),
            descriptors_max: descriptor_limit().0,
        }
    }
}

/// The tightest of the machine and of the control groups around this process.
fn memory(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limited = groups.lines().filter_map(|line| group_memory(root, line));
    limited.chain(machine_memory(root)).reduce(f64::max)
}

fn machine_memory(root: &Path) -> Option<f64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let total = kib("MemTotal:")?;
    part(total.saturating_sub(kib("MemAvailable:")?), total)
}

/// Names of the files of a control group, by its version.
struct Files {
    mount: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    /// In `memory.stat`: cached pages that the kernel takes back before anything else, so they are as good as free.
    cached: &'static str,
}

const VERSION_2: Files = Files {
    mount: "sys/fs/cgroup",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    cached: "inactive_file",
};
const VERSION_1: Files = Files {
    mount: "sys/fs/cgroup/memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file",
};

/// One line of /proc/self/cgroup, `NUMBER:CONTROLLERS:PATH`: the tightest of that group and those around it.
fn group_memory(root: &Path, line: &str) -> Option<f64> {
    let mut cells = line.splitn(3, ':').skip(1);
    let (controllers, path) = (cells.next()?, cells.next()?);
    let files = match controllers {
        "" => &VERSION_2,
        _ if controllers.split(',').any(|name| name == "memory") => &VERSION_1,
        _ => return None,
    };
    let mount = root.join(files.mount);
    // In a container the path may be one of the machine outside: then only the mount itself is there.
    let group = mount.join(path.trim_start_matches('/'));
    let around = group.ancestors().take_while(|directory| directory.starts_with(&mount)).map(Path::to_owned);
    around.filter_map(|directory: PathBuf| limited_memory(&directory, files)).reduce(f64::max)
}

fn limited_memory(directory: &Path, files: &Files) -> Option<f64> {
    let number = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    // Where there is none, the file says "max".
    let limit = files.limits.iter().filter_map(|name| number(name)).min()?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(files.cached)?.trim().parse::<u64>().ok());
    part(number(files.used)?.saturating_sub(cached.unwrap_or(0)), limit)
}

#[cfg(test)]
#[path = "capacity_tests.rs"]
mod tests;
