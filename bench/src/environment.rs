//! Where and how a run was made, for its report: without that a figure means nothing.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::args::Common;
use crate::nameless::Nameless;

/// See the module. What cannot be found out is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) version: String,
    /// Which the bench was built of.
    pub(crate) commit: String,
    /// What the server answers to `--version`, with its commit; of a peer, `server_config` says it.
    #[serde(default)]
    pub(crate) server_version: String,
    pub(crate) kernel: String,
    pub(crate) cpu_model: String,
    pub(crate) cores: usize,
    /// Runnable processes over the last minute, at the start: 2 cores shared with others give ratios, not figures.
    pub(crate) load_average: String,
    pub(crate) congestion_control: String,
    /// CPU flaws and what the kernel does about them, where it does anything: such work is in every system call.
    #[serde(default)]
    pub(crate) mitigations: Vec<String>,
    /// `performance`, `powersave`, ...; empty in a virtual machine.
    #[serde(default)]
    pub(crate) governor: String,
    #[serde(default)]
    pub(crate) is_virtual_machine: bool,
    #[serde(default)]
    pub(crate) memory_kib: u64,
    pub(crate) server_cpus: Option<String>,
    pub(crate) client_cpus: Option<String>,
    /// What the server is set to, in words: by `--config`, or a peer's own.
    #[serde(default)]
    pub(crate) server_config: String,
    /// Without the secret, and without names of this machine.
    pub(crate) command_line: Vec<String>,
}

impl Environment {
    pub(crate) fn of(common: &Common) -> Environment {
        let cpuinfo = read("/proc/cpuinfo");
        let cpu_model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
        Environment {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("BUILD_COMMIT").into(),
            server_version: String::new(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            cpu_model: cpu_model.unwrap_or_default(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().into(),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().into(),
            mitigations: mitigations(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").trim().into(),
            is_virtual_machine: cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")),
            memory_kib: memory_kib(&read("/proc/meminfo")),
            server_cpus: common.server_cpu.clone(),
            client_cpus: common.client_cpu.clone(),
            server_config: common.config.clone().unwrap_or_default(),
            command_line: command_line(&common.secret),
        }
    }
}

impl Environment {
    /// What a page shows, by name.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let cores = |list: &Option<String>| list.clone().unwrap_or_else(|| "not pinned".into());
        let machine = if self.is_virtual_machine { ", a virtual machine" } else { "" };
        vec![
            ("bench", format!("{}, commit {}", self.version, self.commit)),
            ("server", if self.server_version.is_empty() { "a peer" } else { &self.server_version }.to_owned()),
            ("kernel", self.kernel.clone()),
            ("CPU", format!("{} x {}{machine}", self.cores, self.cpu_model)),
            ("memory", format!("{} MiB", self.memory_kib / 1024)),
            ("governor", if self.governor.is_empty() { "not told".into() } else { self.governor.clone() }),
            ("mitigations", self.mitigations.join("; ")),
            ("congestion control", self.congestion_control.clone()),
            ("server's cores", cores(&self.server_cpus)),
            ("workers' cores", cores(&self.client_cpus)),
            ("load average at the start", self.load_average.clone()),
        ]
    }

    /// The command line for a shell; the secret in it is `***`.
    pub(crate) fn command(&self) -> String {
        self.command_line.iter().map(|argument| shell_quoted(argument)).collect::<Vec<_>>().join(" ")
    }
}

fn shell_quoted(argument: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,=+@%".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// One line for each flaw that this CPU has.
fn mitigations() -> Vec<String> {
    let mut flaws: Vec<String> = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            (!state.starts_with("Not affected"))
                .then(|| format!("{}: {}", entry.file_name().to_string_lossy(), state.trim()))
        })
        .collect();
    flaws.sort();
    flaws
}

fn memory_kib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// This program's command line as others may see it and type it.
fn command_line(secret: &str) -> Vec<String> {
    let nameless = Nameless::here();
    let mut arguments = without_secret(std::env::args(), secret);
    if let Some(program) = arguments.first_mut() {
        *program = env!("CARGO_PKG_NAME").into();
    }
    arguments.iter().map(|argument| nameless.text(argument)).collect()
}

fn without_secret(arguments: impl Iterator<Item = String>, secret: &str) -> Vec<String> {
    arguments.map(|argument| if secret.is_empty() { argument } else { argument.replace(secret, "***") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_the_shell() {
        assert_eq!(shell_quoted("--addr=127.0.0.1:80"), "--addr=127.0.0.1:80");
        assert_eq!(shell_quoted("it's a b"), r"'it'\''s a b'");
        assert_eq!(shell_quoted(""), "''");
    }

    #[test]
    fn memory_is_read() {
        assert_eq!((memory_kib("MemTotal:   24105 kB\nMemFree: 1 kB\n"), memory_kib("")), (24_105, 0));
    }

    #[test]
    fn the_secret_stays_out_of_the_report() {
        let arguments = ["bench", "--secret", "s3cret", "--secret=s3cret", "--spawn", "JWT_SECRET=s3cret serve"];
        let kept = without_secret(arguments.into_iter().map(String::from), "s3cret");
        assert!(!kept.concat().contains("s3cret"), "{kept:?}");
        assert_eq!(kept[4], "--spawn");
    }
}
