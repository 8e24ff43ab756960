//! `latency`: the rate rises step by step to the knee, the highest one that the server sustains; then, apart and so
//! labelled, a closed loop for the most that it can do.

use anyhow::{Result, bail};

use crate::args::Latency;
use crate::ask::Ask;
use crate::plan::Pace;
use crate::report::Report;
use crate::server_process::Servers;
use crate::topology::Rooms;

/// Seconds of each step that are not measured, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 1.0;

pub(crate) fn measure(latency: &Latency) -> Result<Vec<Report>> {
    let Latency { common, from, to, factor, refine, p99_ms_max, .. } = latency;
    if !(from.is_finite() && to.is_finite() && *from > 0.0 && to >= from && *factor > 1.0 && factor.is_finite()) {
        bail!("--from has to be above 0, --to no less, and --factor above 1");
    }
    let rooms = Rooms::Equal {
        rooms: latency.rooms,
        members: latency.members,
        publishers: latency.publishers.min(latency.members),
    };
    let server = Servers::of(common)?;
    let ask = Ask {
        size: latency.size,
        warm_up: latency.warm_up.unwrap_or(WARM_UP_SECS),
        seconds: latency.seconds,
        drain: latency.drain,
        ..Ask::of("latency", common, rooms)
    };
    let mut search = Search::new(*from, *to, *factor, *refine);
    let mut reports: Vec<Report> = Vec::new();
    while let Some(rate) = search.next_rate() {
        let mut report = Ask { rate, ..ask.clone() }.run_on(server.as_ref())?;
        let why_not = why_not_sustained(&report, *p99_ms_max);
        search.learn(rate, why_not.is_empty());
        eprintln!("{rate:.0}/s: {}", if why_not.is_empty() { "sustained".into() } else { why_not.join("; ") });
        report.beyond_knee = why_not;
        reports.push(report);
    }
    reports.sort_by(|one, other| one.shape.messages_per_second.total_cmp(&other.shape.messages_per_second));
    println!("{}", conclusion(&reports, search.knee, *to));
    if !latency.no_closed_loop {
        let maximum = Ask { pace: Pace::Closed, ..ask }.run_on(server.as_ref())?;
        reports.push(maximum);
    }
    Ok(reports)
}

/// Why a step does not count as sustained; empty if it does.
fn why_not_sustained(report: &Report, p99_ms_max: f64) -> Vec<String> {
    let mut reasons: Vec<String> = report.invalid.iter().chain(&report.void).cloned().collect();
    match report.delivery {
        Some(at) if at.p99_ms > p99_ms_max => {
            reasons.push(format!("P99 {:.1} ms, more than {p99_ms_max} ms", at.p99_ms));
        }
        Some(_) => {}
        None => reasons.push("nothing arrived".into()),
    }
    reasons
}

/// What the steps say about the knee, the bench's own limits included.
fn conclusion(reports: &[Report], knee: Option<f64>, to: f64) -> String {
    let Some(knee) = knee else { return "knee: below the lowest rate".into() };
    let beyond =
        reports.iter().find(|report| report.shape.messages_per_second > knee && !report.beyond_knee.is_empty());
    match beyond {
        None => format!("knee: above {knee:.0}/s, the highest rate tried (--to {to:.0})"),
        Some(report) if !report.invalid.is_empty() => {
            format!("knee: at least {knee:.0}/s; beyond, the bench itself is the limit: {}", report.invalid.join("; "))
        }
        Some(report) => {
            let fails_at = report.shape.messages_per_second;
            format!("knee: {knee:.0}/s; not sustained at {fails_at:.0}/s: {}", report.beyond_knee.join("; "))
        }
    }
}

/// Finds the knee: rates rise by a factor until one is not sustained, then the gap is halved.
#[derive(Debug)]
struct Search {
    next: Option<f64>,
    to: f64,
    factor: f64,
    halvings_left: u32,
    /// The highest rate that was sustained, and the lowest that was not.
    knee: Option<f64>,
    beyond: Option<f64>,
}

impl Search {
    fn new(from: f64, to: f64, factor: f64, halvings: u32) -> Search {
        Search { next: Some(from), to, factor, halvings_left: halvings, knee: None, beyond: None }
    }

    fn next_rate(&self) -> Option<f64> {
        self.next
    }

    fn learn(&mut self, rate: f64, sustained: bool) {
        if sustained {
            self.knee = Some(rate);
        } else {
            self.beyond = Some(rate);
        }
        self.next = match (self.knee, self.beyond) {
            (Some(knee), None) if knee < self.to => Some((knee * self.factor).min(self.to)),
            (Some(knee), Some(beyond)) if self.halvings_left > 0 => {
                self.halvings_left -= 1;
                Some(knee.midpoint(beyond).round())
            }
            // Not even the first one: nothing below it was asked for.
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    /// All rates that a search tries against a server that sustains up to `capacity`.
    fn tried(capacity: f64, to: f64, halvings: u32) -> (Vec<f64>, Option<f64>) {
        let mut search = Search::new(1_000.0, to, 2.0, halvings);
        let mut tried = Vec::new();
        while let Some(rate) = search.next_rate() {
            tried.push(rate);
            search.learn(rate, rate <= capacity);
        }
        (tried, search.knee)
    }

    #[test]
    fn the_knee_is_closed_in_from_both_sides() {
        let (rates, knee) = tried(5_100.0, 100_000.0, 3);
        assert_eq!(rates, [1_000.0, 2_000.0, 4_000.0, 8_000.0, 6_000.0, 5_000.0, 5_500.0]);
        assert_eq!(knee, Some(5_000.0));
    }

    #[test]
    fn a_server_that_bears_all_or_nothing_ends_the_search() {
        assert_eq!(tried(1e9, 3_000.0, 3), (vec![1_000.0, 2_000.0, 3_000.0], Some(3_000.0)));
        assert_eq!(tried(1.0, 3_000.0, 3), (vec![1_000.0], None));
    }

    #[test]
    fn a_step_is_sustained_if_it_is_good_and_fast_enough() {
        assert!(why_not_sustained(&report("latency", 10.0, 1.0), 50.0).is_empty());
        assert_eq!(why_not_sustained(&report("latency", 60.0, 1.0), 50.0), ["P99 60.0 ms, more than 50 ms"]);
        let void = Report { void: vec!["1 lost".into()], ..report("latency", 10.0, 1.0) };
        assert_eq!(why_not_sustained(&void, 50.0), ["1 lost"]);
    }

    #[test]
    fn the_conclusion_does_not_call_the_benchs_limit_the_servers_knee() {
        let step = |rate, beyond: &[&str], invalid: &[&str]| {
            let mut step = report("latency", 1.0, 1.0);
            step.shape.messages_per_second = rate;
            step.beyond_knee = beyond.iter().map(|reason| (*reason).to_owned()).collect();
            step.invalid = invalid.iter().map(|reason| (*reason).to_owned()).collect();
            step
        };
        let sustained = step(1_000.0, &[], &[]);
        let slow = step(2_000.0, &["P99"], &[]);
        let busy = step(2_000.0, &["bottleneck"], &["bottleneck"]);
        assert!(conclusion(&[sustained.clone(), slow], Some(1_000.0), 9e9).starts_with("knee: 1000/s; not sustained"));
        assert!(conclusion(&[sustained.clone(), busy], Some(1_000.0), 9e9).contains("the bench itself is the limit"));
        assert!(conclusion(&[sustained], Some(1_000.0), 1_000.0).starts_with("knee: above 1000/s"));
        assert_eq!(conclusion(&[], None, 1.0), "knee: below the lowest rate");
    }
}
