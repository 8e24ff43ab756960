//! `suite`: every run against one server, one after the other, within a budget of minutes, and one report of all.
//!
//! `history` wants rooms that another run has filled, and `echo` a server that echoes, which only a peer's folder knows
//! how to start.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::args::{Common, Run, Suite};
use crate::compare::{connections_within, once, out_folder, parse};
use crate::peer::Peer;
use crate::report::Report;
use crate::runs;

/// Name, share of the budget, and the line; `{seconds}` is what the share leaves to measure.
const PARTS: &[(&str, f64, &str)] = &[
    ("floor", 0.04, "floor --rooms 200 --members 10 --rate 1000 --seconds {seconds}"),
    ("idle", 0.03, "idle --connections {third} --hold {seconds}"),
    // Long enough for the heartbeats of all, which come from 25 s on.
    ("idle", 0.06, "idle --connections {connections} --hold {heartbeats}"),
    ("idle-joined", 0.03, "idle --connections {third} --join --hold {seconds}"),
    ("room-of-1000", 0.06, "fanout --rooms 1 --members 1000 --rate 20 --seconds {seconds}"),
    ("room-of-all", 0.04, "fanout --rooms 1 --members {connections} --rate 2 --seconds {seconds}"),
    ("200-rooms-of-10", 0.06, "fanout --rooms 200 --members 10 --rate 1000 --seconds {seconds}"),
    ("100-rooms-of-10", 0.05, "fanout --rooms 100 --members 10 --rate 1000 --seconds {seconds}"),
    ("rooms-of-10-of-all", 0.06, "fanout --rooms {tenth} --members 10 --rate 1000 --seconds {seconds}"),
    ("10000-a-second", 0.05, "fanout --rooms 1000 --members 2 --publishers 2 --rate 10000 --seconds {seconds}"),
    (
        "typing",
        0.04,
        "mixed --connections 400 --rooms 200 --memberships 2 --exponent 0 --rate 1 --typing 1000 --receipts 0 --reconnects 0 \
         --watched 0 --minutes {minutes}",
    ),
    ("echo", 0.04, "echo --connections 2000 --rate 8000 --seconds {seconds}"),
    ("latency", 0.14, "latency --seconds {step}"),
    ("storm", 0.05, "storm --rate 200 --over 2 --seconds {seconds}"),
    ("churn", 0.06, "churn --rate 200 --moves 600 --seconds {seconds}"),
    ("mixed", 0.09, "mixed --minutes {minutes}"),
    // Too short to say what an hour would: the drift is told and not judged.
    ("soak", 0.10, "soak --warm-up {warm_up} --minutes {minutes} --drift-max 1000"),
];
/// Seconds of a part that measure nothing: start, joins, warm-up, drain, end.
const OVERHEAD_SECS: f64 = 8.0;
/// Steps of `latency` until its knee is closed in, and its closed loop.
const STEPS: f64 = 11.0;
const STEP_OVERHEAD_SECS: f64 = 3.0;
/// A server's first pings come after 25 to 30 s.
const HEARTBEATS_SECS: f64 = 40.0;
/// With less than that a part says nothing.
const SECONDS_MIN: f64 = 2.0;

pub(crate) fn run(suite: &Suite) -> Result<bool> {
    let peer = suite.peer.as_deref().map(Peer::at).transpose()?;
    let parts = chosen(&suite.only, peer.is_some())?;
    let rounds = suite.common.rounds;
    let least = parts.len() as f64 * f64::from(rounds) * (OVERHEAD_SECS + SECONDS_MIN) / 60.0;
    if !suite.minutes.is_finite() || suite.minutes < least {
        bail!("--minutes has to be {least:.1} or more for {} runs, {rounds} times", parts.len());
    }
    let connections = connections_within(suite.connections)?;
    if let Some(peer) = &peer {
        peer.set_up()?;
    }
    let out = out_folder(&suite.out)?;
    let shares: f64 = parts.iter().map(|(_, share, _)| share).sum();
    let (mut reports, mut failures) = (Vec::new(), 0);
    for round in 1..=rounds {
        for (name, share, line) in &parts {
            let line = filled(line, suite.minutes * 60.0 * share / shares / f64::from(rounds), connections);
            println!("\n== {name}, round {round} of {rounds}: roomwire-bench {line}");
            match part(suite, peer.as_ref(), name, &line, &out) {
                Ok(made) => reports.extend(made),
                Err(error) => {
                    println!("{name}: {error:#}");
                    failures += 1;
                }
            }
            // Each time: who stops it halfway keeps what there is.
            runs::write(&reports, &suite.common.outputs)?;
        }
    }
    Ok(failures == 0 && !reports.iter().any(Report::is_failure))
}

/// Makes one run, with a server of its own where the suite has a peer's folder.
fn part(suite: &Suite, peer: Option<&Peer>, name: &str, line: &str, out: &Path) -> Result<Vec<Report>> {
    let mut run = parse(line)?;
    let common = Common { scenario: Some(name.to_owned()), rounds: 1, ..suite.common.clone() };
    match peer {
        // The floor brings its own server.
        Some(peer) if !matches!(run, Run::Floor(_)) => {
            let port = suite.common.addr.first().context("no --addr")?.port();
            once(peer, name, &run, &common, port, out)
        }
        _ => {
            *run.common_mut() = common;
            let made = runs::measure(&run)?;
            made.iter().for_each(Report::print);
            Ok(made)
        }
    }
}

type Part = (&'static str, f64, &'static str);

/// The parts that were asked for; of none, all that a server can do that `echoes` or does not.
fn chosen(names: &[String], echoes: bool) -> Result<Vec<Part>> {
    if let Some(stranger) = names.iter().find(|name| !PARTS.iter().any(|(known, _, _)| known == name)) {
        let known: Vec<&str> = PARTS.iter().map(|(name, _, _)| *name).collect();
        bail!("no run of the suite is called {stranger}: {}", known.join(", "));
    }
    if !echoes && names.iter().any(|name| name == "echo") {
        bail!("echo needs a server that echoes: --peer bench/peers/roomwire starts one");
    }
    let is_chosen =
        |name: &str| if names.is_empty() { echoes || name != "echo" } else { names.iter().any(|one| one == name) };
    Ok(PARTS.iter().filter(|(name, _, _)| is_chosen(name)).copied().collect())
}

/// The line of a part that may take so many seconds in all.
fn filled(line: &str, seconds: f64, connections: u32) -> String {
    let left = (seconds - OVERHEAD_SECS).max(SECONDS_MIN);
    // A soak's first third is for caches to fill.
    let (warm_up, measured) = if line.contains("{warm_up}") { (left / 3.0, left * 2.0 / 3.0) } else { (0.0, left) };
    let step = (seconds / STEPS - STEP_OVERHEAD_SECS).max(SECONDS_MIN);
    let part_of_all = |parts: u32| (connections / parts).max(1).to_string();
    line.replace("{seconds}", &format!("{measured:.0}"))
        .replace("{heartbeats}", &format!("{:.0}", measured.max(HEARTBEATS_SECS)))
        .replace("{minutes}", &format!("{:.2}", measured / 60.0))
        .replace("{warm_up}", &format!("{warm_up:.0}"))
        .replace("{step}", &format!("{step:.0}"))
        .replace("{third}", &part_of_all(3))
        .replace("{tenth}", &part_of_all(10))
        .replace("{connections}", &connections.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_the_whole_budget_and_every_line_could_be_typed() {
        let sum: f64 = PARTS.iter().map(|(_, share, _)| share).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        for (minutes, connections) in [(1.0, 1), (60.0, 18_000)] {
            for (name, share, line) in PARTS {
                let line = filled(line, minutes * 60.0 * share, connections);
                assert!(parse(&line).is_ok() && !line.contains('{'), "{name}: {line}");
            }
        }
    }

    #[test]
    fn what_measures_nothing_is_taken_from_the_share() {
        assert_eq!(filled("x {seconds}", 30.0, 1), "x 22");
        assert_eq!(filled("x {seconds}", 3.0, 1), "x 2");
        assert_eq!(filled("x {heartbeats}", 9.0, 1), "x 40");
        assert_eq!(filled("x {warm_up} {minutes}", 98.0, 1), "x 30 1.00");
        assert_eq!(filled("x {step} {connections} {third} {tenth}", 110.0, 90), "x 7 90 30 9");
    }

    #[test]
    fn runs_are_chosen_by_name_and_only_some_servers_echo() {
        let names = |only: &[&str], echoes| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            chosen(&only, echoes).map(|parts| parts.into_iter().map(|(name, _, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["storm", "floor"], false).expect("known"), ["floor", "storm"]);
        assert_eq!(names(&[], true).expect("all").len(), names(&[], false).expect("all").len() + 1);
        assert!(names(&["echo"], false).is_err_and(|error| error.to_string().contains("--peer")));
        assert!(names(&["sleep"], true).is_err_and(|error| error.to_string().contains("room-of-1000")));
    }
}
