//! The start-up probe, where io_uring is there and where it is denied.
#![allow(clippy::unwrap_used, reason = "tests")]

use roomwire_shard::probe::probe;
use std::process::Command;
use std::time::{Duration, Instant};

/// Makes every io_uring system call of this thread fail with `errno`, for good: an eight-instruction seccomp filter.
fn deny_io_uring(errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let equal = |k: i64, jt: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf: 0,
        k: k as u32,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        equal(libc::SYS_io_uring_setup, 3),
        equal(libc::SYS_io_uring_enter, 2),
        equal(libc::SYS_io_uring_register, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the first call takes integers; the second reads the program, which lives until it returns.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// The filter holds for one thread and what it starts, so a thread is as good as a process.
fn probe_without_io_uring(errno: i32) -> String {
    std::thread::spawn(move || {
        deny_io_uring(errno);
        let started = Instant::now();
        let line = probe().expect_err("io_uring is denied").to_string();
        assert!(started.elapsed() < Duration::from_secs(1));
        line
    })
    .join()
    .expect("the probe does not panic")
}

#[test]
fn passes_here() {
    probe().unwrap();
    probe().unwrap();
}

#[test]
fn forbidden_gives_one_line_with_errno_cause_and_cure() {
    let line = probe_without_io_uring(libc::EPERM);
    assert!(!line.contains('\n'), "{line}");
    assert!(line.contains("EPERM") && line.contains("seccomp"), "{line}");
}

#[test]
fn missing_gives_one_line_with_errno_cause_and_cure() {
    let line = probe_without_io_uring(libc::ENOSYS);
    assert!(!line.contains('\n'), "{line}");
    assert!(line.contains("ENOSYS") && line.contains("6.1"), "{line}");
}

/// Runs one ignored test of this file in a process of its own, so that it may lower its limits.
fn in_a_child(test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn lower(resource: libc::__rlimit_resource_t, soft: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &raw mut limit), 0);
        limit.rlim_cur = soft;
        assert_eq!(libc::setrlimit(resource, &raw const limit), 0);
    }
}

#[test]
fn too_little_memlock_is_named() {
    in_a_child("child_without_memlock");
}

#[test]
#[ignore = "run in a child by too_little_memlock_is_named"]
fn child_without_memlock() {
    lower(libc::RLIMIT_MEMLOCK, 0);
    let line = probe().expect_err("memlock is 0").to_string();
    assert!(line.contains("LimitMEMLOCK") && !line.contains('\n'), "{line}");
}

#[test]
fn too_few_descriptors_are_named() {
    in_a_child("child_with_64_descriptors");
}

#[test]
#[ignore = "run in a child by too_few_descriptors_are_named"]
fn child_with_64_descriptors() {
    lower(libc::RLIMIT_NOFILE, 64);
    let line = probe().expect_err("nofile is 64").to_string();
    assert!(line.contains("LimitNOFILE") && !line.contains('\n'), "{line}");
}
