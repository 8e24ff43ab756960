//! `suite`: every run against one server, one after the other, within a budget of minutes, and one report of all.
//!
//! `history` wants rooms that another run has filled, and `echo` a server that echoes: they are not in it.

use anyhow::{Result, bail};

use crate::args::{Common, Suite};
use crate::compare::{connections_within, parse};
use crate::report::Report;
use crate::runs;

/// Name, share of the budget, and the line; `{seconds}` is what the share leaves to measure.
const PARTS: &[(&str, f64, &str)] = &[
    ("floor", 0.05, "floor --rooms 200 --members 10 --rate 1000 --seconds {seconds}"),
    ("idle", 0.07, "idle --connections {connections} --hold {seconds}"),
    ("room-of-1000", 0.08, "fanout --rooms 1 --members 1000 --rate 20 --seconds {seconds}"),
    ("200-rooms-of-10", 0.08, "fanout --rooms 200 --members 10 --rate 1000 --seconds {seconds}"),
    ("latency", 0.24, "latency --seconds {step}"),
    ("storm", 0.06, "storm --rate 200 --seconds {seconds}"),
    ("churn", 0.08, "churn --rate 200 --moves 600 --seconds {seconds}"),
    ("mixed", 0.17, "mixed --rate 500 --minutes {minutes}"),
    // Too short to say what an hour would: the drift is told and not judged.
    ("soak", 0.17, "soak --warm-up {warm_up} --minutes {minutes} --drift-max 1000"),
];
/// Seconds of a part that measure nothing: start, joins, warm-up, drain, end.
const OVERHEAD_SECS: f64 = 8.0;
/// Steps of `latency` until its knee is closed in, and its closed loop.
const STEPS: f64 = 11.0;
const STEP_OVERHEAD_SECS: f64 = 3.0;
/// With less than that a part says nothing.
const SECONDS_MIN: f64 = 2.0;
const MINUTES_MIN: f64 = 4.0;

pub(crate) fn run(suite: &Suite) -> Result<bool> {
    if !suite.minutes.is_finite() || suite.minutes < MINUTES_MIN {
        bail!("--minutes has to be {MINUTES_MIN} or more");
    }
    let connections = connections_within(suite.connections)?;
    let (mut reports, mut failures) = (Vec::new(), 0);
    for (name, share, line) in PARTS {
        let line = filled(line, suite.minutes * 60.0 * share, connections);
        println!("\n== {name}: roomwire-bench {line}");
        let mut run = parse(&line)?;
        *run.common_mut() = Common { scenario: Some((*name).to_owned()), ..suite.common.clone() };
        match runs::measure(&run) {
            Ok(made) => {
                made.iter().for_each(Report::print);
                reports.extend(made);
            }
            Err(error) => {
                println!("{name}: {error:#}");
                failures += 1;
            }
        }
        // Each time: who stops it halfway keeps what there is.
        runs::write(&reports, &suite.common)?;
    }
    Ok(failures == 0 && !reports.iter().any(Report::is_failure))
}

/// The line of a part that may take so many seconds in all.
fn filled(line: &str, seconds: f64, connections: u32) -> String {
    let left = (seconds - OVERHEAD_SECS).max(SECONDS_MIN);
    // A soak's first third is for caches to fill.
    let (warm_up, measured) = if line.contains("{warm_up}") { (left / 3.0, left * 2.0 / 3.0) } else { (0.0, left) };
    let step = (seconds / STEPS - STEP_OVERHEAD_SECS).max(SECONDS_MIN);
    line.replace("{seconds}", &format!("{measured:.0}"))
        .replace("{minutes}", &format!("{:.2}", measured / 60.0))
        .replace("{warm_up}", &format!("{warm_up:.0}"))
        .replace("{step}", &format!("{step:.0}"))
        .replace("{connections}", &connections.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_the_whole_budget_and_every_line_could_be_typed() {
        let sum: f64 = PARTS.iter().map(|(_, share, _)| share).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        for minutes in [MINUTES_MIN, 60.0] {
            for (name, share, line) in PARTS {
                let line = filled(line, minutes * 60.0 * share, 100);
                assert!(parse(&line).is_ok() && !line.contains('{'), "{name}: {line}");
            }
        }
    }

    #[test]
    fn what_measures_nothing_is_taken_from_the_share() {
        assert_eq!(filled("x {seconds}", 30.0, 1), "x 22");
        assert_eq!(filled("x {seconds}", 3.0, 1), "x 2");
        assert_eq!(filled("x {warm_up} {minutes}", 98.0, 1), "x 30 1.00");
        assert_eq!(filled("x {step} {connections}", 110.0, 9), "x 7 9");
    }
}
