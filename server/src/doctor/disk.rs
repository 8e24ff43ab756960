//! The data directory: whether it can be written, how much is free, how long an fsync takes.

use super::Finding;
use crate::config::Settings;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many writes are measured.
const WRITES: usize = 64;
/// What each writes: about one batch of the store.
const WRITE_BYTES: usize = 4_096;
/// An fsync that takes longer at its 99th percentile than this shows in the latency of every message.
const SLOW: Duration = Duration::from_millis(10);
/// Free space under this much above `store.reserve_bytes` is said.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Looks at it. A directory that does not exist yet is judged by its nearest parent.
pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let dir = nearest(&settings.data_dir);
    let shown = settings.data_dir.display();
    let mut findings = Vec::new();
    match free_bytes(&dir) {
        Err(error) => findings.push(Finding::unknown("data.dir", format!("{shown}: {error}"))),
        Ok(free) => findings.push(space(&shown.to_string(), free, settings.config.store.reserve_bytes)),
    }
    match fsync_times(&dir) {
        Err(error) => findings.push(Finding::fails(
            "data.dir",
            format!("{}: {error}", dir.display()),
            "everything: serve ends with status 1",
            format!("chown roomwire {}, or another data.dir", dir.display()),
        )),
        Ok(times) => findings.push(fsync(&times)),
    }
    findings
}

fn nearest(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.ancestors().find(|parent| parent.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statvfs for the call to fill, and the path ends with a zero byte.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        match libc::statvfs(path.as_ptr(), &raw mut stat) {
            0 => Ok(stat.f_bavail * stat.f_frsize),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn space(shown: &str, free: u64, reserve: u64) -> Finding {
    let found = format!("{shown}: {} MiB free, of which {} MiB are kept in reserve", free >> 20, reserve >> 20);
    if free <= reserve {
        return Finding::fails(
            "data.dir",
            found,
            "every publish: the store takes no writes",
            "free some space, or a lower store.reserve_bytes",
        );
    }
    if free - reserve < FREE_BYTES_MIN {
        return Finding::limits(
            "data.dir",
            found,
            "how long messages can be kept",
            "free some space, or a shorter store.retention_days",
        );
    }
    Finding::fine("data.dir", found)
}

/// How long each of some writes took until it was on disk. The file is gone afterwards.
fn fsync_times(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".roomwire-doctor-{}", std::process::id()));
    let times = write_and_sync(&path);
    let _ = std::fs::remove_file(&path);
    times
}

fn write_and_sync(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = File::create_new(path)?;
    let bytes = [0x5a; WRITE_BYTES];
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let began = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// `times` ascending, not empty.
fn fsync(times: &[Duration]) -> Finding {
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let (half, worst) = (at(50), at(99));
    let found = format!("{:.2} ms, 99th percentile {:.2} ms", half.as_secs_f64() * 1e3, worst.as_secs_f64() * 1e3);
    if worst <= SLOW {
        return Finding::fine("fsync", found);
    }
    let limits =
        format!("every message's latency: {:.1} ms at the 99th percentile at least", worst.as_secs_f64() * 1e3);
    Finding::limits(
        "fsync",
        found,
        limits,
        "a disk with power-loss protection (NVMe), or store.fsync = \"interval\" if the last moment may be lost",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn fsync_is_measured_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("roomwire-doctor-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory can be written");
        let times = fsync_times(&dir).expect("it can be written");
        assert_eq!(times.len(), WRITES);
        assert!(times.is_sorted());
        assert_eq!(std::fs::read_dir(&dir).expect("it is there").count(), 0);
        std::fs::remove_dir(&dir).expect("it is empty");
    }

    #[test]
    fn a_slow_disk_and_a_full_one_are_named() {
        assert_eq!(fsync(&[Duration::from_millis(1)]).verdict, Verdict::Fine);
        let slow = fsync(&[Duration::from_millis(1), Duration::from_millis(40)]);
        assert_eq!(slow.verdict, Verdict::Limits);
        assert!(slow.limits.contains("40.0 ms"), "{}", slow.limits);
        assert_eq!(space("d", 10, 20).verdict, Verdict::Fails);
        assert_eq!(space("d", 2 << 20, 1 << 20).verdict, Verdict::Limits);
        assert_eq!(space("d", 8 << 30, 1 << 20).verdict, Verdict::Fine);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let temporary = std::env::temp_dir();
        assert_eq!(nearest(&temporary.join("not/there/yet")), temporary);
    }
}
