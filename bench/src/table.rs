//! `table`: the medians of several reports side by side, and their ratios, as Markdown for the README.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::args::Files;
use crate::book;
use crate::report::Report;
use crate::statistics::median;
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
    ("lost to joined P99, ms", |report| report.times.get(&Timed::Reconnect).map(|at| at.p99_ms)),
    ("server CPU, %", |report| report.server.as_ref().map(|server| server.cpu_share * 100.0)),
    ("arrivals per second", |report| Some(report.load.arrived_per_second)),
    ("P50, ms", |report| report.delivery.map(|at| at.p50_ms)),
    ("P95, ms", |report| report.delivery.map(|at| at.p95_ms)),
    ("P99, ms", |report| report.delivery.map(|at| at.p99_ms)),
    ("P99.9, ms", |report| report.delivery.map(|at| at.p999_ms)),
];

pub(crate) fn run(files: &Files) -> Result<bool> {
    let books = files.files.iter().map(|path| book::read_json(path)).collect::<Result<Vec<_>>>()?;
    let reports = books.concat();
    print!("{}", table(&reports));
    Ok(reports.iter().all(Report::is_good))
}

/// Scenarios and labels in the order in which they first appear.
pub(crate) fn table(reports: &[Report]) -> String {
    let labels = in_order(reports.iter().map(|report| report.label.as_str()));
    let ratios = labels.iter().skip(1).map(|other| format!(" {} / {other} |", labels[0]));
    let mut out = format!("| scenario | figure | {} |{}\n", labels.join(" | "), ratios.collect::<String>());
    out.push_str(&"|---".repeat(2 * labels.len() + 1));
    out.push_str("|\n");
    for scenario in in_order(reports.iter().map(|report| report.scenario.as_str())) {
        let of_scenario: Vec<&Report> = reports.iter().filter(|report| report.scenario == scenario).collect();
        let figures = if of_scenario.iter().all(|report| report.run == "idle") { IDLE } else { TRAFFIC };
        for (name, figure) in figures {
            let values: Vec<Option<f64>> = labels
                .iter()
                .map(|label| {
                    let with_label = of_scenario.iter().filter(|report| report.label == *label);
                    median(&with_label.filter_map(|report| figure(report)).collect::<Vec<_>>())
                })
                .collect();
            if values.iter().any(Option::is_some) {
                out.push_str(&row(scenario, name, &values));
            }
        }
        out.push_str(&row_of_verdicts(scenario, &labels, &of_scenario));
    }
    out
}

fn row(scenario: &str, name: &str, values: &[Option<f64>]) -> String {
    let cells: Vec<String> = values.iter().map(|value| value.map_or("-".into(), number)).collect();
    let first = values.first().copied().flatten();
    let ratio = |other: &Option<f64>| match (first, other) {
        (Some(first), Some(other)) if *other != 0.0 => format!(" {:.2}x |", first / other),
        _ => " - |".into(),
    };
    let ratios: String = values.iter().skip(1).map(ratio).collect();
    format!("| {scenario} | {name} | {} |{ratios}\n", cells.join(" | "))
}

fn row_of_verdicts(scenario: &str, labels: &[&str], reports: &[&Report]) -> String {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for report in reports {
        let (good, all) = counts.entry(report.label.as_str()).or_default();
        *good += usize::from(report.is_good());
        *all += 1;
    }
    let cells: Vec<String> = labels
        .iter()
        .map(|label| counts.get(label).map_or("-".into(), |(good, all)| format!("{good} of {all}")))
        .collect();
    format!("| {scenario} | valid runs | {} |{}\n", cells.join(" | "), " |".repeat(labels.len().saturating_sub(1)))
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_the_ratio_of_the_first_to_each_other() {
        assert_eq!(row("a", "b", &[Some(3.0), Some(4.0)]), "| a | b | 3.00 | 4.00 | 0.75x |\n");
        assert_eq!(row("a", "b", &[Some(300.0), None]), "| a | b | 300 | - | - |\n");
        assert_eq!(
            row("a", "b", &[Some(3.0), Some(4.0), Some(1.0)]),
            "| a | b | 3.00 | 4.00 | 1.00 | 0.75x | 3.00x |\n"
        );
        assert_eq!(row("a", "b", &[Some(3.0), Some(0.0)]), "| a | b | 3.00 | 0.00 | - |\n");
    }

    #[test]
    fn names_keep_their_first_order() {
        assert_eq!(in_order(["b", "a", "b", "c"].into_iter()), ["b", "a", "c"]);
    }
}
