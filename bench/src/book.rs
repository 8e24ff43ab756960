//! Files of reports: one run as an object, several as `{"runs": [...]}`; the same as CSV. `runs` writes them, `table`
//! and `diff` read them back.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::report::Report;

/// Several runs of one command.
#[derive(Deserialize)]
struct Book {
    runs: Vec<Report>,
}

/// Writes `reports` as JSON.
pub(crate) fn write_json(reports: &[Report], path: &Path) -> Result<()> {
    write(path, &json(reports)?)
}

/// Several runs stand a line each: small enough to commit, and a change of one shows as one.
fn json(reports: &[Report]) -> Result<String> {
    if let [one] = reports {
        return Ok(serde_json::to_string_pretty(one)? + "\n");
    }
    let runs = reports.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{{\"runs\": [\n{}\n]}}\n", runs.join(",\n")))
}

/// Reads what [`write_json`] wrote.
pub(crate) fn read_json(path: &Path) -> Result<Vec<Report>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no report", path.display()))
}

fn parse(text: &str) -> Result<Vec<Report>> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    if value.get("runs").is_some() {
        return Ok(serde_json::from_value::<Book>(value)?.runs);
    }
    Ok(vec![serde_json::from_value(value)?])
}

/// Writes `text`, and makes the folder it is to lie in.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The figures of a report that a spreadsheet wants, by name. Units stand last.
type Column = (&'static str, fn(&Report) -> String);

const COLUMNS: &[Column] = &[
    ("run", |report| report.run.clone()),
    ("scenario", |report| report.scenario.clone()),
    ("label", |report| report.label.clone()),
    ("commit", |report| report.environment.commit.clone()),
    ("server", |report| report.environment.server_version.clone()),
    ("good", |report| report.is_good().to_string()),
    ("sustained", |report| report.beyond_knee.is_empty().to_string()),
    ("pace", |report| format!("{:?}", report.shape.pace).to_lowercase()),
    ("connections", |report| report.shape.connections.to_string()),
    ("rooms", |report| report.shape.rooms.to_string()),
    ("nodes", |report| report.shape.nodes.to_string()),
    ("messages_per_second", |report| report.shape.messages_per_second.to_string()),
    ("content_bytes", |report| report.shape.content_bytes.to_string()),
    ("arrived_per_second", |report| report.load.arrived_per_second.to_string()),
    ("lost", |report| report.load.deliveries.lost().to_string()),
    ("doubled", |report| report.load.deliveries.doubled.to_string()),
    ("out_of_order", |report| (report.load.deliveries.out_of_order + report.load.deliveries.seq_breaks).to_string()),
    ("delivery_p50_ms", |report| optional(report.delivery.map(|at| at.p50_ms))),
    ("delivery_p95_ms", |report| optional(report.delivery.map(|at| at.p95_ms))),
    ("delivery_p99_ms", |report| optional(report.delivery.map(|at| at.p99_ms))),
    ("delivery_p999_ms", |report| optional(report.delivery.map(|at| at.p999_ms))),
    ("delivery_max_ms", |report| optional(report.delivery.map(|at| at.max_ms))),
    ("ack_p50_ms", |report| optional(report.ack.map(|at| at.p50_ms))),
    ("ack_p99_ms", |report| optional(report.ack.map(|at| at.p99_ms))),
    ("bench_cpu_share", |report| report.load.bench_cpu_share.to_string()),
    ("bench_waiting_share", |report| report.load.bench_waiting_share.to_string()),
    ("server_cpu_share", |report| optional(report.server.as_ref().map(|server| server.cpu_share))),
    ("server_cpu_per_arrival_us", |report| {
        optional(report.server.as_ref().and_then(|server| server.cpu_us_per_arrival))
    }),
    ("server_cpu_per_connection_second_us", |report| {
        optional(report.server.as_ref().map(|server| server.cpu_us_per_connection_second))
    }),
    ("server_cpu_per_move_us", |report| optional(report.server.as_ref().and_then(|server| server.cpu_us_per_move))),
    ("server_rss_ready_bytes", |report| optional(report.server.as_ref().map(|server| server.rss_ready_bytes))),
    ("server_rss_per_connection_bytes", |report| {
        optional(report.server.as_ref().map(|server| server.rss_bytes_per_connection))
    }),
    ("slab_per_connection_pair_bytes", |report| {
        optional(report.server.as_ref().map(|server| server.slab_bytes_per_connection_pair))
    }),
    ("syscalls_per_arrival", |report| optional(report.server.as_ref().and_then(|server| server.syscalls_per_arrival))),
];

fn optional(value: Option<impl ToString>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// `reports` as CSV (RFC 4180), a line each.
pub(crate) fn csv(reports: &[Report]) -> String {
    let mut out = COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",") + "\r\n";
    for report in reports {
        let fields: Vec<String> = COLUMNS.iter().map(|(_, field)| quoted(field(report))).collect();
        out.push_str(&fields.join(","));
        out.push_str("\r\n");
    }
    out
}

fn quoted(field: String) -> String {
    if field.contains([',', '"', '\r', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn one_report_or_several_are_read_back_as_they_were() {
        for count in [0, 1, 3] {
            let reports = vec![report("fanout", 10.0, 2.0); count];
            let text = json(&reports).expect("serializes");
            let read = parse(&text).expect("its own");
            assert_eq!(read.len(), count);
            assert_eq!(read.first().map(|one| one.delivery), reports.first().map(|one| one.delivery));
        }
        assert!(parse("{}").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn csv_has_a_field_for_each_column_and_quotes_what_needs_it() {
        let mut odd = report("fanout", 10.0, 2.0);
        odd.label = r#"a "quoted", label"#.into();
        let text = csv(&[odd]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].split(',').count(), COLUMNS.len());
        assert!(lines[1].contains(r#""a ""quoted"", label""#), "{}", lines[1]);
    }
}
