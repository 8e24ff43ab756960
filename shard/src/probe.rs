//! The start-up probe: does this kernel give us what the data ring needs?
//!
//! It sets up the very ring that a shard uses and receives one message through it, so that what is missing or forbidden
//! shows here, in one line, and not as a panic of a shard.

use crate::buffers::Buffers;
use crate::ring::{Completion, DataRing, Descriptor, OPCODES, Operation};
use roomwire_engine::names::ConnectionId;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

/// glommio does not start an executor with less (bytes of soft memlock).
const MEMLOCK_MIN: u64 = 512 * 1024;

/// Fewer descriptors than this do not hold the node itself: its rings, eventfds, listeners and files.
const NOFILE_MIN: u64 = 128;

/// A kernel that closes at once does so within microseconds.
const LETS_GO_WITHIN: Duration = Duration::from_millis(100);

/// Why the node cannot run here: one line with errno, likely cause and cure. Exit status 78 (EX_CONFIG).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// Sets up a ring with our flags and tries every opcode that we use, before any thread is started. Takes well under
/// a second and leaves nothing behind.
///
/// # Errors
/// [`Unsupported`]: io_uring forbidden (EPERM), missing (ENOSYS), too old (EINVAL, or a missing opcode), or memlock
/// too low (ENOMEM). The caller prints it and exits with status 78.
pub fn probe() -> Result<(), Unsupported> {
    check_limits()?;
    apart(try_ring)
}

fn try_ring() -> Result<(), Unsupported> {
    let mut ring = DataRing::new(8, 16, None).map_err(|error| explain("io_uring_setup", &error))?;
    check_opcodes(&ring)?;
    let mut buffers =
        Buffers::new(&ring.submitter(), 2, 64).map_err(|error| explain("io_uring_register (buffer ring)", &error))?;
    receive_one(&mut ring, &mut buffers)
}

fn check_limits() -> Result<(), Unsupported> {
    let memlock = soft_limit(libc::RLIMIT_MEMLOCK);
    if memlock < MEMLOCK_MIN {
        return Err(Unsupported(format!(
            "memlock limit too low (ENOMEM): {memlock} bytes may be locked, {MEMLOCK_MIN} are needed; raise it with \
             LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (Docker) or `ulimit -l`"
        )));
    }
    let nofile = soft_limit(libc::RLIMIT_NOFILE);
    if nofile < NOFILE_MIN {
        return Err(Unsupported(format!(
            "descriptor limit too low (EMFILE): {nofile} files may be open, at least {NOFILE_MIN} are needed; raise it \
             with LimitNOFILE= (systemd), --ulimit nofile= (Docker) or `ulimit -n`"
        )));
    }
    Ok(())
}

fn soft_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => limit.rlim_cur,
        // Unknown is not too low: whatever needs it will say so.
        _ => u64::MAX,
    }
}

fn check_opcodes(ring: &DataRing) -> Result<(), Unsupported> {
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| explain("io_uring_register (probe)", &error))?;
    match OPCODES.iter().find(|(code, _)| !known.is_supported(*code)) {
        Some((_, name)) => Err(Unsupported(format!(
            "this kernel's io_uring lacks IORING_OP_{name} (EINVAL): Linux 6.1 or newer is needed"
        ))),
        None => Ok(()),
    }
}

/// A multishot receive into a provided buffer: the one operation whose kernel support no probe tells.
fn receive_one(ring: &mut DataRing, buffers: &mut Buffers) -> Result<(), Unsupported> {
    let (mut here, there) = UnixStream::pair().map_err(|error| explain("socketpair", &error))?;
    let there = Descriptor::of_process(there.into());
    let connection = ConnectionId { slot: 0, generation: 0 };
    here.write_all(b"?").map_err(|error| explain("write", &error))?;
    ring.receive(connection, &there);
    ring.close(there);
    ring.enter().map_err(|error| explain("io_uring_enter", &error))?;
    let mut completions = Vec::new();
    ring.completions(1, &mut completions);
    match completions.first() {
        Some(Completion { operation: Operation::Receive, result: 1, buffer: Some(buffer), .. })
            if buffers.bytes(*buffer, 1) == b"?" =>
        {
            Ok(())
        }
        Some(Completion { result, .. }) if *result < 0 => {
            Err(explain("multishot receive", &io::Error::from_raw_os_error(-result)))
        }
        other => Err(Unsupported(format!(
            "this kernel's io_uring does not receive into provided buffers ({other:?}): Linux 6.1 or newer is needed"
        ))),
    }
}

/// Whether this kernel lets go of a socket that leaves a ring's table while others there are in use (Linux 6.13). Older
/// ones close none before all that was under way at that time has ended (liburing issue 1192): the receive of one idle
/// connection would hold up everybody's end.
#[must_use]
pub fn has_tables() -> bool {
    static HAS_TABLES: OnceLock<bool> = OnceLock::new();
    *HAS_TABLES.get_or_init(|| apart(|| try_table().unwrap_or(false)))
}

/// Probes on a thread of its own: after a ring has gone, the kernel interrupts the thread that used it once more, and some
/// system call that has nothing to do with it fails with EINTR.
fn apart<Outcome: Send>(probe: impl FnOnce() -> Outcome + Send) -> Outcome {
    match std::thread::scope(|scope| scope.spawn(probe).join()) {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn try_table() -> io::Result<bool> {
    let mut ring = DataRing::new(8, 16, Some(2))?;
    let _buffers = Buffers::new(&ring.submitter(), 2, 64)?;
    let (_idle, idle_there) = UnixStream::pair()?;
    let (mut here, there) = UnixStream::pair()?;
    ring.submitter().register_files_update(0, &[idle_there.as_raw_fd(), there.as_raw_fd()])?;
    drop((idle_there, there));
    let [idle, leaving] = [0, 1].map(|place| Descriptor::accepted(place).expect("not negative"));
    ring.receive(ConnectionId { slot: 0, generation: 0 }, &idle);
    ring.enter()?;
    ring.close(leaving);
    ring.enter()?;
    here.set_read_timeout(Some(LETS_GO_WITHIN))?;
    Ok(here.read(&mut [0]).is_ok_and(|bytes| bytes == 0))
}

/// One line: what failed, how, why probably, and what helps.
fn explain(step: &str, error: &io::Error) -> Unsupported {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => forbidden(),
        Some(libc::ENOSYS) => String::from(
            "the kernel has no io_uring, or a seccomp filter answers so; use Linux 6.1 or newer, or allow \
             io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile",
        ),
        Some(libc::EINVAL) => String::from(
            "the kernel does not know IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN or a buffer ring; use Linux \
             6.1 or newer",
        ),
        Some(libc::ENOMEM) => String::from(
            "the memlock or cgroup memory limit is too low; raise LimitMEMLOCK (systemd), --ulimit memlock=-1 (Docker)",
        ),
        Some(libc::EMFILE | libc::ENFILE) => String::from("too few file descriptors; raise LimitNOFILE"),
        _ => String::from("no io_uring as needed here; use Linux 6.1 or newer"),
    };
    Unsupported(format!("{step} failed: {}: {advice}", name_errno(error)))
}

fn forbidden() -> String {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    match setting.as_deref().map(str::trim) {
        Ok(value @ ("1" | "2")) => format!(
            "kernel.io_uring_disabled is {value}; set it to 0 with sysctl, or to 1 and put the user into \
             kernel.io_uring_group"
        ),
        _ => String::from(
            "a seccomp filter forbids io_uring, as Docker's default profile does; allow io_uring_setup, io_uring_enter \
             and io_uring_register in the profile",
        ),
    }
}

/// With the errno's own name, which is what people search for.
fn name_errno(error: &io::Error) -> String {
    let name = match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM, ",
        Some(libc::EACCES) => "EACCES, ",
        Some(libc::ENOSYS) => "ENOSYS, ",
        Some(libc::EINVAL) => "EINVAL, ",
        Some(libc::ENOMEM) => "ENOMEM, ",
        Some(libc::EMFILE) => "EMFILE, ",
        Some(libc::ENFILE) => "ENFILE, ",
        _ => "",
    };
    format!("{name}{error}")
}
