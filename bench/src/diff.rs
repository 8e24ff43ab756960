//! `diff`: two files of reports, figure by figure, with a verdict that knows the noise: several runs on each side
//! (`--rounds`) or no verdict.

use std::fmt::Write as _;

use anyhow::Result;

use crate::args::Diff;
use crate::book;
use crate::report::Report;
use crate::statistics::{Difference, RUNS_MIN, chance_of_apart, compare, median};

/// A figure of a report, and whether more of it is better.
struct Figure {
    name: &'static str,
    more_is_better: bool,
    of: fn(&Report) -> Option<f64>,
}

const FIGURES: &[Figure] = &[
    less("CPU per arrival, us", |report| report.server.as_ref()?.cpu_us_per_arrival),
    less("CPU per connection-second, us", |report| Some(report.server.as_ref()?.cpu_us_per_connection_second)),
    less("CPU per move, us", |report| report.server.as_ref()?.cpu_us_per_move),
    less("RSS per connection, B", |report| Some(report.server.as_ref()?.rss_bytes_per_connection)),
    less("slab per connection, B", |report| Some(report.server.as_ref()?.slab_bytes_per_connection_pair)),
    less("P50, ms", |report| Some(report.delivery?.p50_ms)),
    less("P95, ms", |report| Some(report.delivery?.p95_ms)),
    less("P99, ms", |report| Some(report.delivery?.p99_ms)),
    less("P99, other node, ms", |report| Some(report.delivery_across?.p99_ms)),
    less("ack P99, ms", |report| Some(report.ack?.p99_ms)),
    Figure {
        name: "arrivals per second",
        more_is_better: true,
        of: |report| (report.load.arrived_per_second > 0.0).then_some(report.load.arrived_per_second),
    },
];

const fn less(name: &'static str, of: fn(&Report) -> Option<f64>) -> Figure {
    Figure { name, more_is_better: false, of }
}

/// What is compared with what: the same run of the same size against the same kind of server.
fn key(report: &Report) -> String {
    let shape = &report.shape;
    format!(
        "{} ({}), {} connections, {:.0}/s, {:?}",
        report.scenario, report.label, shape.connections, shape.messages_per_second, shape.pace
    )
}

pub(crate) fn run(diff: &Diff) -> Result<bool> {
    let (first, second) = (book::read_json(&diff.first)?, book::read_json(&diff.second)?);
    let (text, is_fine) = compared(&first, &second, diff.noise_percent);
    print!("{text}");
    Ok(is_fine)
}

/// The comparison as text, and whether nothing got worse.
fn compared(first: &[Report], second: &[Report], noise_percent: f64) -> (String, bool) {
    let mut out = strangers(first, second);
    let mut keys: Vec<String> = Vec::new();
    for report in first {
        if !keys.contains(&key(report)) {
            keys.push(key(report));
        }
    }
    let (mut worse, mut better, mut compared, mut by_chance) = (0, 0, 0, 0.0);
    for key_of_both in &keys {
        let runs = |reports: &[Report]| -> Vec<Report> {
            reports.iter().filter(|report| key(report) == *key_of_both && report.is_good()).cloned().collect()
        };
        let (from, to) = (runs(first), runs(second));
        if from.is_empty() || to.is_empty() {
            let _ = writeln!(out, "{key_of_both}: not compared, no good run on one side");
            continue;
        }
        let _ = writeln!(out, "{key_of_both}: {} runs against {}", from.len(), to.len());
        for figure in FIGURES {
            let values =
                |reports: &[Report]| reports.iter().filter_map(|report| (figure.of)(report)).collect::<Vec<_>>();
            let (from, to) = (values(&from), values(&to));
            let Some((line, verdict)) = row(figure, &from, &to, noise_percent) else { continue };
            let _ = writeln!(out, "  {line}");
            worse += usize::from(verdict == Verdict::Worse);
            better += usize::from(verdict == Verdict::Better);
            compared += 1;
            by_chance += chance_of_apart(from.len(), to.len());
        }
    }
    let verdict = match (compared, worse, better) {
        (0, _, _) => "nothing could be compared".to_owned(),
        (_, 0, 0) => "no figure differs beyond the noise".to_owned(),
        (_, 0, better) => format!("{better} figures are better, none is worse"),
        (_, worse, better) => format!("{worse} figures are worse, {better} better"),
    };
    let _ = writeln!(out, "verdict: {verdict}");
    if worse + better > 0 {
        // Figures of one run move together, so this is the right size and no more.
        let _ = writeln!(
            out,
            "of {compared} figures chance alone would set about {by_chance:.1} apart: more runs, fewer of these"
        );
    }
    (out, compared > 0 && worse == 0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Neither,
}

fn row(figure: &Figure, from: &[f64], to: &[f64], noise_percent: f64) -> Option<(String, Verdict)> {
    let difference = compare(from, to, noise_percent)?;
    let (old, new) = (median(from)?, median(to)?);
    let change = if old == 0.0 { String::new() } else { format!(" ({:+.1} %)", 100.0 * (new - old) / old) };
    let (words, verdict) = match difference {
        Difference::Same => (format!("same, within {noise_percent} %"), Verdict::Neither),
        Difference::Overlap => ("unproven: the runs overlap".into(), Verdict::Neither),
        Difference::TooFew => (format!("unproven: fewer than {RUNS_MIN} runs on a side"), Verdict::Neither),
        Difference::Lower(chance) | Difference::Higher(chance) => {
            let is_better = matches!(difference, Difference::Higher(_)) == figure.more_is_better;
            let (word, verdict) = if is_better { ("better", Verdict::Better) } else { ("WORSE", Verdict::Worse) };
            (format!("{word} (by chance: {:.1} %)", chance * 100.0), verdict)
        }
    };
    let (spread_from, spread_to) = (spread_percent(from), spread_percent(to));
    Some((
        format!("{:<32} {old:.3} (±{spread_from:.0} %) -> {new:.3} (±{spread_to:.0} %){change}: {words}", figure.name),
        verdict,
    ))
}

/// Half of what lies between the lowest and the highest, in percent of the median: how much a figure scatters by itself.
fn spread_percent(values: &[f64]) -> f64 {
    let (low, high) =
        values.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)));
    match median(values) {
        Some(middle) if middle > 0.0 => 50.0 * (high - low) / middle,
        _ => 0.0,
    }
}

/// What makes the two sides strangers to each other: then their figures say little of the code.
fn strangers(first: &[Report], second: &[Report]) -> String {
    let (Some(one), Some(other)) = (first.first(), second.first()) else { return String::new() };
    let (one, other) = (&one.environment, &other.environment);
    let facts = [
        ("kernel", one.kernel.clone(), other.kernel.clone()),
        ("CPU", one.cpu_model.clone(), other.cpu_model.clone()),
        ("cores", one.cores.to_string(), other.cores.to_string()),
        ("mitigations", one.mitigations.join("; "), other.mitigations.join("; ")),
        ("congestion control", one.congestion_control.clone(), other.congestion_control.clone()),
        ("server's cores", format!("{:?}", one.server_cpus), format!("{:?}", other.server_cpus)),
        ("workers' cores", format!("{:?}", one.client_cpus), format!("{:?}", other.client_cpus)),
    ];
    let mut out = String::new();
    for (name, one, other) in facts.iter().filter(|(_, one, other)| one != other) {
        let _ = writeln!(out, "warning: the {name} differ: {one} and {other}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    fn runs(cpu_us: [f64; 3]) -> Vec<Report> {
        cpu_us.iter().map(|cpu_us| report("fanout", 10.0, *cpu_us)).collect()
    }

    #[test]
    fn a_rise_beyond_the_noise_is_worse_and_a_fall_is_better() {
        let (text, is_fine) = compared(&runs([5.0, 5.1, 4.9]), &runs([6.0, 6.1, 6.2]), 3.0);
        assert!(!is_fine && text.contains("WORSE (by chance: 10.0 %)"), "{text}");
        let (text, is_fine) = compared(&runs([6.0, 6.1, 6.2]), &runs([5.0, 5.1, 4.9]), 3.0);
        assert!(is_fine && text.contains("better") && text.contains("(-18.0 %)"), "{text}");
        assert!(
            text.contains("6.100 (±2 %) -> 5.000 (±2 %)") && text.contains("1 figures are better, none is worse"),
            "{text}"
        );
        assert!(text.contains("of 8 figures chance alone would set about 0.8 apart"), "{text}");
    }

    #[test]
    fn one_run_on_each_side_proves_nothing_however_far_apart() {
        let (text, is_fine) = compared(&runs([5.0; 3])[..1], &runs([9.0; 3])[..1], 3.0);
        assert!(is_fine && text.contains("unproven: fewer than 3 runs"), "{text}");
        assert!(text.contains("no figure differs beyond the noise"), "{text}");
    }

    #[test]
    fn void_runs_and_other_shapes_are_not_compared() {
        let mut void = runs([1.0; 3]);
        void.iter_mut().for_each(|report| report.void.push("1 lost".into()));
        let (text, is_fine) = compared(&runs([5.0; 3]), &void, 3.0);
        assert!(!is_fine && text.contains("no good run on one side"), "{text}");
        let mut larger = runs([5.0; 3]);
        larger.iter_mut().for_each(|report| report.shape.connections = 7);
        assert!(compared(&runs([5.0; 3]), &larger, 3.0).0.contains("nothing could be compared"));
    }

    #[test]
    fn another_machine_is_named() {
        let mut elsewhere = runs([5.0; 3]);
        elsewhere[0].environment.kernel = "7.0".into();
        assert!(compared(&runs([5.0; 3]), &elsewhere, 3.0).0.contains("warning: the kernel differ"));
    }
}
