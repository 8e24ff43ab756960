//! Holds what the house style asks and no compiler checks: who may know whom, how a file opens, that docs name things
//! that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files that git tracks, or would, with this ending.
fn tracked(ending: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there: the build needs it");
    let files: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| name.ends_with(ending))
        .map(|name| root().join(name))
        .filter(|path| path.exists())
        .collect();
    assert!(!files.is_empty(), "no file ends in {ending}: is this a git checkout?");
    files
}

#[test]
fn crates_know_only_whom_they_may() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    // The crate, which of ours it may use, and what else it must never use.
    let io =
        ["glommio", "io-uring", "tokio", "axum", "fjall", "redis", "scylla", "socket2", "libc", "crossbeam-channel"];
    let control = ["tokio", "axum", "fjall", "redis", "scylla", "jsonwebtoken"];
    let rules: [(&str, &[&str], &[&str]); 6] = [
        ("roomwire-wire", &[], &io),
        ("roomwire-engine", &["roomwire-wire"], &io),
        ("roomwire-shard", &["roomwire-engine", "roomwire-wire"], &control),
        ("roomwire", &["roomwire-engine", "roomwire-shard", "roomwire-wire"], &["glommio", "io-uring"]),
        ("roomwire-sim", &["roomwire-engine", "roomwire-wire"], &io),
        ("roomwire-bench", &["roomwire-wire"], &["glommio", "fjall"]),
    ];
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), rules.len(), "a crate without a rule, or a rule without a crate");
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let (_, ours, never) = rules.iter().find(|rule| rule.0 == name).unwrap_or_else(|| panic!("{name} has no rule"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["kind"].is_null() {
                continue; // tests and build scripts may know more
            }
            let used = dependency["name"].as_str().expect("name");
            if used.starts_with("roomwire") {
                assert!(ours.contains(&used), "{name} must not know {used}");
            }
            assert!(!never.contains(&used), "{name} must not know {used}");
        }
    }
}

#[test]
fn every_source_file_opens_with_what_lives_there() {
    for path in tracked(".rs") {
        let text = fs::read_to_string(&path).expect("readable");
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        assert!(first.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn the_map_names_only_what_exists() {
    let code: String = tracked(".rs").iter().map(|path| fs::read_to_string(path).expect("readable")).collect();
    let map = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    // In architecture.md, `name()` and `Type::name()` are functions, and `dir/file.rs` is a file.
    let mut checked = BTreeSet::new();
    for quoted in map.split('`').skip(1).step_by(2) {
        if let Some(call) = quoted.strip_suffix("()") {
            let function = call.rsplit("::").next().unwrap_or(call);
            let plain = format!("fn {function}(");
            let generic = format!("fn {function}<");
            assert!(code.contains(&plain) || code.contains(&generic), "architecture.md names {quoted}, which is gone");
            checked.insert(quoted);
        } else if quoted.ends_with(".rs") {
            assert!(root().join(quoted).exists(), "architecture.md names {quoted}, which is gone");
            checked.insert(quoted);
        }
    }
    assert!(checked.len() >= 20, "architecture.md names only {} functions and files", checked.len());
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in tracked(".md") {
        let text = fs::read_to_string(&path).expect("readable");
        let folder = path.parent().expect("a file has a folder");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(folder.join(file).exists(), "{} links to {target}", path.display());
        }
    }
}
