//! Running out of descriptors. The only test of its file, and so of its process, whose limit it lowers.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/client.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod client;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod node;

use client::{Client, PATIENCE};
use node::{Node, Setting};
use std::fs::File;
use std::time::{Duration, Instant};

/// The node's and the clients' descriptors come out of the same limit here.
fn limit_descriptors(soft: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = soft;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the rusage.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let duration = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

#[test]
fn accepting_stops_without_spinning_and_goes_on_when_descriptors_are_freed() {
    // Before the accept is armed: the kernel keeps the limit of that moment.
    limit_descriptors(256);
    let node = Node::start(&Setting { table: None, ..Setting::default() });
    let mut clients: Vec<Client> =
        (0..20).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
    // One descriptor is left, which the next client's own end takes.
    let mut fill: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    fill.pop();
    let mut stranded = Client::open(node.address).unwrap();
    node.wait_until("accepting is paused", |node| node.driver().accepts_paused_total > 0);

    let (before, started) = (cpu_time(), Instant::now());
    while started.elapsed() < Duration::from_secs(1) {
        // Those inside are served meanwhile.
        for client in &mut clients {
            client.send(b"still here").unwrap();
            assert_eq!(client.receive().unwrap(), b"still here");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let busy = cpu_time() - before;
    assert!(busy < started.elapsed() / 2, "{busy:?} of CPU in {:?}: it spins", started.elapsed());

    clients.truncate(10);
    let freed = Instant::now();
    std::io::Write::write_all(&mut stranded.socket, client::upgrade("late").as_bytes()).unwrap();
    stranded.finish_upgrade().unwrap();
    stranded.send(b"in").unwrap();
    assert_eq!(stranded.receive().unwrap(), b"in");
    assert!(freed.elapsed() < PATIENCE);
    drop((clients, stranded, fill));
    node.stop();
}
