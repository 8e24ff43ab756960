//! `table`: the medians of several reports side by side, and their ratios, as Markdown for the README.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::args::Files;
use crate::book;
use crate::plan::Pace;
use crate::report::Report;
use crate::statistics::{in_order, median};
use crate::timed::Timed;

/// A figure of a report, by name.
type Figure = (&'static str, fn(&Report) -> Option<f64>);

const IDLE: &[Figure] = &[
    ("RSS per connection, B", |report| report.server.as_ref().map(|server| server.rss_bytes_per_connection)),
    ("slab per connection (both ends), B", |report| {
        report.server.as_ref().map(|server| server.slab_bytes_per_connection_pair)
    }),
    ("CPU per connection-second, us", |report| {
        report.server.as_ref().map(|server| server.cpu_us_per_connection_second)
    }),
];

const TRAFFIC: &[Figure] = &[
    ("CPU per arrival, us", |report| report.server.as_ref().and_then(|server| server.cpu_us_per_arrival)),
    ("CPU per move, us", |report| report.server.as_ref().and_then(|server| server.cpu_us_per_move)),
    ("moves per second and core", |report| Some(1e6 / report.server.as_ref()?.cpu_us_per_move?)),
    ("lost to joined P99, ms", |report| report.times.get(&Timed::Reconnect).map(|at| at.p99_ms)),
    ("server CPU, %", |report| report.server.as_ref().map(|server| server.cpu_share * 100.0)),
    ("arrivals per second", |report| Some(report.load.arrived_per_second)),
    ("P50, ms", |report| report.delivery.map(|at| at.p50_ms)),
    ("P95, ms", |report| report.delivery.map(|at| at.p95_ms)),
    ("P99, ms", |report| report.delivery.map(|at| at.p99_ms)),
    ("P99.9, ms", |report| report.delivery.map(|at| at.p999_ms)),
    ("typing P50, ms", |report| report.times.get(&Timed::Typing).map(|at| at.p50_ms)),
    ("typing P99, ms", |report| report.times.get(&Timed::Typing).map(|at| at.p99_ms)),
];

pub(crate) fn run(files: &Files) -> Result<bool> {
    let books = files.files.iter().map(|path| book::read_json(path)).collect::<Result<Vec<_>>>()?;
    let reports = books.concat();
    print!("{}", table(&reports));
    Ok(reports.iter().all(Report::is_good))
}

/// The medians as a Markdown table.
pub(crate) fn table(reports: &[Report]) -> String {
    let medians = medians(reports);
    let [head, rows @ ..] = medians.as_slice() else { return String::new() };
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = format!("{}|\n", "|---".repeat(head.len()));
    line(head) + &rule + &rows.iter().map(line).collect::<String>()
}

/// The medians row by row, the first one the head; scenarios and labels in the order in which they first appear.
pub(crate) fn medians(reports: &[Report]) -> Vec<Vec<String>> {
    let labels = in_order(reports.iter().map(|report| report.label.as_str()));
    let mut head: Vec<String> = ["scenario", "figure"].iter().chain(&labels).map(|name| (*name).to_owned()).collect();
    head.extend(labels.iter().skip(1).map(|other| format!("{} / {other}", labels[0])));
    let mut rows = vec![head];
    for scenario in in_order(reports.iter().map(|report| report.scenario.as_str())) {
        let of_scenario: Vec<&Report> = reports.iter().filter(|report| report.scenario == scenario).collect();
        let all_are = |run: &str| of_scenario.iter().all(|report| report.run == run);
        if all_are("latency") {
            rows.push(row(scenario, "highest rate sustained, messages/s", &sustained(&labels, &of_scenario)));
            continue;
        }
        let figures = if all_are("idle") { IDLE } else { TRAFFIC };
        for (name, figure) in figures {
            let values: Vec<Option<f64>> = labels
                .iter()
                .map(|label| {
                    // What is invalid or void does not count.
                    let with_label = of_scenario.iter().filter(|report| report.label == *label && report.is_good());
                    median(&with_label.filter_map(|report| figure(report)).collect::<Vec<_>>())
                })
                .collect();
            if values.iter().any(Option::is_some) {
                rows.push(row(scenario, name, &values));
            }
        }
        rows.push(row_of_verdicts(scenario, &labels, &of_scenario));
    }
    rows
}

/// The steps of `latency` have different rates, so a median over them says nothing: the highest one that was sustained.
fn sustained(labels: &[&str], steps: &[&Report]) -> Vec<Option<f64>> {
    let of_label = |label: &&str| {
        let own = steps.iter().filter(|step| step.label == *label && step.shape.pace == Pace::Open);
        let sustained = own.filter(|step| step.beyond_knee.is_empty() && step.is_good());
        sustained.map(|step| step.shape.messages_per_second).max_by(f64::total_cmp)
    };
    labels.iter().map(of_label).collect()
}

fn row(scenario: &str, name: &str, values: &[Option<f64>]) -> Vec<String> {
    let first = values.first().copied().flatten();
    let ratio = |other: &Option<f64>| match (first, other) {
        (Some(first), Some(other)) if *other != 0.0 => format!("{:.2}x", first / other),
        _ => "-".into(),
    };
    let mut cells = vec![scenario.to_owned(), name.to_owned()];
    cells.extend(values.iter().map(|value| value.map_or("-".into(), number)));
    cells.extend(values.iter().skip(1).map(ratio));
    cells
}

fn row_of_verdicts(scenario: &str, labels: &[&str], reports: &[&Report]) -> Vec<String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for report in reports {
        let (good, all) = counts.entry(report.label.as_str()).or_default();
        *good += usize::from(report.is_good());
        *all += 1;
    }
    let mut cells = vec![scenario.to_owned(), "valid runs".to_owned()];
    cells.extend(
        labels.iter().map(|label| counts.get(label).map_or("-".into(), |(good, all)| format!("{good} of {all}"))),
    );
    cells.resize(1 + 2 * labels.len(), String::new());
    cells
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_row_gives_the_ratio_of_the_first_to_each_other() {
        let row = |values: &[Option<f64>]| row("a", "b", values).split_off(2);
        assert_eq!(row(&[Some(3.0), Some(4.0)]), ["3.00", "4.00", "0.75x"]);
        assert_eq!(row(&[Some(300.0), None]), ["300", "-", "-"]);
        assert_eq!(row(&[Some(3.0), Some(4.0), Some(1.0)]), ["3.00", "4.00", "1.00", "0.75x", "3.00x"]);
        assert_eq!(row(&[Some(3.0), Some(0.0)]), ["3.00", "0.00", "-"]);
    }

    #[test]
    fn every_row_of_a_table_is_as_wide_as_its_head() {
        let mut reports = vec![report("fanout", 1.0, 2.0), report("idle", 1.0, 1.0), report("latency", 1.0, 1.0)];
        reports.push(Report { label: "uws".into(), ..report("fanout", 1.0, 4.0) });
        reports.push(Report { void: vec!["1 lost".into()], ..report("fanout", 9.0, 9.0) });
        let rows = medians(&reports);
        assert!(rows.iter().all(|row| row.len() == 5), "{rows:?}");
        let text = table(&reports);
        assert!(text.contains("| fanout | CPU per arrival, us | 2.00 | 4.00 | 0.50x |"), "{text}");
        assert!(text.contains("| fanout | valid runs | 1 of 2 | 1 of 1 |"), "{text}");
        assert!(text.contains("| latency | highest rate sustained, messages/s | 1000 | - | - |"), "{text}");
        assert_eq!(table(&[]), "| scenario | figure |\n|---|---|\n");
    }
}
