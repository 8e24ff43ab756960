//! Tells the binaries of which commit they were built: `roomwire version`, `roomwire-bench --version`, and the reports.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    let commit = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = commit.or_else(described).unwrap_or_else(|| "of no known commit".to_owned());
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

/// The commit of the working tree, and whether that holds more. Asked again when either may have changed.
fn described() -> Option<String> {
    let head = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?;
    println!("cargo:rerun-if-changed={head}");
    for folder in ["wire", "engine", "shard", "server", "bench"] {
        println!("cargo:rerun-if-changed=../{folder}/src");
    }
    git(&["describe", "--always", "--dirty", "--exclude=*"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
