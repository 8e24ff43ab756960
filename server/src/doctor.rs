//! `roomwire doctor`: what of this machine would keep a node from starting, or limit it, and the command that cures it.
//!
//! Called by the command line. It changes nothing, apart from a file in the data directory that it writes to measure
//! fsync and removes again. What it looks at: [`machine`] (kernel, limits, ports, memory, clock), [`tuning`] (the kernel's
//! settings, by the table of `roomwire-tuning`), [`disk`] (the data directory, where the store is embedded), [`backends`] (Redis,
//! Cassandra and the key set, where the configuration names them).

mod backends;
mod disk;
mod machine;
mod tuning;

use crate::config::Settings;
use crate::config::types::StoreKind;
use serde::Serialize;
use std::fmt::Write as _;

/// How bad a finding is, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Could not be looked at.
    Unknown,
    /// A node runs, with a limit that the finding names.
    Limits,
    /// A node would not start, or not serve.
    Fails,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What that limits, in connections or milliseconds; empty if it is fine.
    pub limits: String,
    /// The command that cures it; empty if it is fine.
    pub cure: String,
}

impl Finding {
    fn fine(name: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding {
            name: name.into(),
            verdict: Verdict::Fine,
            found: found.into(),
            limits: String::new(),
            cure: String::new(),
        }
    }

    fn unknown(name: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Unknown, ..Finding::fine(name, found) }
    }

    fn limits(
        name: impl Into<String>,
        found: impl Into<String>,
        limits: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        let (limits, cure) = (limits.into(), cure.into());
        Finding { verdict: Verdict::Limits, limits, cure, ..Finding::fine(name, found) }
    }

    fn fails(
        name: impl Into<String>,
        found: impl Into<String>,
        limits: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        Finding { verdict: Verdict::Fails, ..Finding::limits(name, found, limits, cure) }
    }
}

/// What was found, in the order of looking.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// For so many connections.
    pub connections: u64,
    /// The worst verdict.
    pub worst: Verdict,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

/// Looks at everything, for a node with these settings that is to hold so many connections.
#[must_use]
pub fn examine(settings: &Settings, connections: u64) -> Report {
    let mut findings = machine::examine(settings, connections);
    findings.extend(tuning::examine(connections));
    if settings.config.store.kind == StoreKind::Embedded {
        findings.extend(disk::examine(settings));
    }
    findings.extend(backends::examine(settings));
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Fine);
    Report { connections, worst, findings }
}

impl Report {
    /// For a person: what is wrong at length, what is fine in a line.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Fine => "ok     ",
                Verdict::Unknown => "?      ",
                Verdict::Limits => "LIMITS ",
                Verdict::Fails => "FAILS  ",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{mark} {}: {}", finding.name, finding.found);
            if !finding.limits.is_empty() {
                let _ = writeln!(text, "        limits {}", finding.limits);
            }
            if !finding.cure.is_empty() {
                let _ = writeln!(text, "        cure   {}", finding.cure);
            }
        }
        let count = |verdict| self.findings.iter().filter(|finding| finding.verdict == verdict).count();
        let _ = write!(
            text,
            "{} connections: {} fine, {} limit it, {} keep it from serving",
            self.connections,
            count(Verdict::Fine),
            count(Verdict::Limits),
            count(Verdict::Fails)
        );
        text
    }

    /// 0 where nothing limits, 1 where something does, 78 where a node would not serve.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self.worst {
            Verdict::Fine | Verdict::Unknown => 0,
            Verdict::Limits => 1,
            Verdict::Fails => 78,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Fine);
        Report { connections: 1_000, worst, findings }
    }

    #[test]
    fn the_worst_finding_decides_the_exit_status() {
        let fine = || Finding::fine("kernel", "Linux 6.1");
        let limits = || Finding::limits("backlog", "128", "storms", "do this");
        assert_eq!(report(vec![fine()]).status(), 0);
        assert_eq!(report(vec![fine(), Finding::unknown("clock", "?")]).status(), 0);
        assert_eq!(report(vec![fine(), limits()]).status(), 1);
        assert_eq!(report(vec![Finding::fails("port", "taken", "all", "stop it"), limits()]).status(), 78);
    }

    #[test]
    fn a_report_says_what_is_limited_and_the_cure() {
        let text =
            report(vec![Finding::limits("backlog", "somaxconn is 128", "a storm to 128", "roomwire-tuning apply")])
                .text();
        assert_eq!(
            text,
            "LIMITS  backlog: somaxconn is 128\n        limits a storm to 128\n        cure   roomwire-tuning apply\n\
             1000 connections: 0 fine, 1 limit it, 0 keep it from serving"
        );
    }
}
