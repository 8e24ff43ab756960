//! A node's used capacity, on a tree of the kernel's files that each test writes.

use super::*;

/// A tree in place of `/`, gone at the end of the test.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> Tree {
        let root = std::env::temp_dir().join(format!("roomwire-capacity-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a file has a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        Tree(root)
    }

    fn memory(&self) -> Option<f64> {
        memory(&self.0)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  750 kB\n");

fn close(left: Option<f64>, right: f64) -> bool {
    left.is_some_and(|left| (left - right).abs() < 1e-9)
}

#[test]
fn without_a_limit_the_machine_counts_and_caches_are_free() {
    let groups = ("proc/self/cgroup", "0::/system.slice/roomwire.service\n");
    let unlimited = [
        ("sys/fs/cgroup/system.slice/roomwire.service/memory.max", "max\n"),
        ("sys/fs/cgroup/system.slice/roomwire.service/memory.current", "400\n"),
    ];
    assert!(close(Tree::new("machine", &[MEMINFO, groups, unlimited[0], unlimited[1]]).memory(), 0.25));
    assert!(close(Tree::new("plain", &[MEMINFO]).memory(), 0.25));
    assert_eq!(Tree::new("nothing", &[]).memory(), None);
}

#[test]
fn the_tightest_limit_around_the_process_counts() {
    let files = [
        MEMINFO,
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ("sys/fs/cgroup/a/b/memory.high", "1000\n"),
        ("sys/fs/cgroup/a/b/memory.current", "500\n"),
        ("sys/fs/cgroup/a/b/memory.stat", "anon 300\ninactive_file 100\n"),
        ("sys/fs/cgroup/a/memory.max", "2000\n"),
        ("sys/fs/cgroup/a/memory.current", "1800\n"),
        ("sys/fs/cgroup/a/memory.stat", "anon 1\n"),
    ];
    assert!(close(Tree::new("group", &files).memory(), 0.9), "the outer one: 1,800 of 2,000");
    assert!(close(Tree::new("inner", &files[..6]).memory(), 0.4), "400 of 1,000, the cached pages left out");
}

#[test]
fn version_1_and_a_path_of_the_machine_outside_are_understood() {
    let files = [
        MEMINFO,
        ("proc/self/cgroup", "5:cpu,memory:/docker/0123\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "100\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "90\n"),
        ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 20\n"),
    ];
    assert!(close(Tree::new("version-1", &files).memory(), 0.7));
}

#[test]
fn the_tightest_resource_is_the_node_s_capacity() {
    let kernel = Kernel { memory: Some(0.4), descriptors_open: Some(30), descriptors_max: 100 };
    let mut figures = super::super::tests::figures();
    (figures.connections_max, figures.busy_ratio) = (12, 0.1);
    let capacity = Capacity::new(&figures, &kernel);
    let resources: Vec<_> = capacity.resources().collect();
    assert_eq!(resources, [("connections", 0.5), ("memory", 0.4), ("cpu", 0.1), ("descriptors", 0.3)]);
    assert!((capacity.tightest() - 0.5).abs() < 1e-9);
    figures.connections_max = 0;
    figures.shards[1].busy_ratio = 0.8;
    let capacity = Capacity::new(&figures, &Kernel { descriptors_open: None, ..kernel });
    let resources: Vec<_> = capacity.resources().collect();
    assert_eq!(resources, [("memory", 0.4), ("cpu", 0.8), ("descriptors", 1.0)], "no limit, no part of it");
}

#[test]
fn this_machine_can_be_read() {
    let kernel = Kernel::read(Path::new("/"));
    assert!(kernel.memory.is_some_and(|used| used > 0.0 && used <= 1.0), "{kernel:?}");
    assert!(kernel.descriptors_max > 0);
}
