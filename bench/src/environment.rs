//! Where and how a run was made, for its report: without that a figure means nothing.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::args::Common;

/// See the module. What cannot be found out is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) version: String,
    /// Of the working directory.
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) cpu_model: String,
    pub(crate) cores: usize,
    /// Runnable processes over the last minute, at the start: 2 cores shared with others give ratios, not figures.
    pub(crate) load_average: String,
    pub(crate) congestion_control: String,
    pub(crate) server_cpus: Option<String>,
    pub(crate) client_cpus: Option<String>,
    /// Without the secret.
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
            commit: commit(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            cpu_model: cpu_model.unwrap_or_default(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().into(),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().into(),
            server_cpus: common.server_cpu.clone(),
            client_cpus: common.client_cpu.clone(),
            command_line: without_secret(std::env::args(), &common.secret),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn commit() -> String {
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    described.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn without_secret(arguments: impl Iterator<Item = String>, secret: &str) -> Vec<String> {
    arguments.map(|argument| if secret.is_empty() { argument } else { argument.replace(secret, "***") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_stays_out_of_the_report() {
        let arguments = ["bench", "--secret", "s3cret", "--secret=s3cret", "--spawn", "JWT_SECRET=s3cret serve"];
        let kept = without_secret(arguments.into_iter().map(String::from), "s3cret");
        assert!(!kept.concat().contains("s3cret"), "{kept:?}");
        assert_eq!(kept[4], "--spawn");
    }
}
