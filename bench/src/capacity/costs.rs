//! What things cost, taken from the reports of a suite. `capacity` reads them.

use anyhow::{Result, bail};

use crate::report::{Report, ServerFigures};
use crate::statistics::{line, median};

/// Above this rate of messages the server gathers more of them at once, and each costs less: such runs are left aside, so
/// that a plan errs upwards.
const RATE_MAX: f64 = 2_000.0;

/// One server's costs; each is a median or a line through the runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Costs {
    /// Resident memory before the first connection, and of each.
    pub(crate) base_bytes: f64,
    pub(crate) connection_bytes: f64,
    /// In the kernel, of one end of each connection.
    pub(crate) kernel_bytes: f64,
    /// Of a membership, with the whole of its room's memory.
    pub(crate) membership_bytes: f64,
    /// CPU: of an idle connection in a second, of a message, of each delivery of it, of a connection that comes and joins.
    pub(crate) idle_us: f64,
    pub(crate) message_us: f64,
    pub(crate) delivery_us: f64,
    pub(crate) move_us: f64,
    /// Of a message, in the one thread that orders.
    pub(crate) bridge_us: f64,
    /// The most connections that any of the runs had.
    pub(crate) connections_measured: u32,
}

impl Costs {
    /// From the runs of Roomwire among `reports` that are good.
    pub(crate) fn of(reports: &[Report]) -> Result<Costs> {
        let runs: Vec<(&Report, &ServerFigures)> = reports
            .iter()
            .filter(|report| report.label == "roomwire" && report.is_good())
            .filter_map(|report| Some((report, report.server.as_ref()?)))
            .collect();
        if runs.is_empty() {
            bail!("it has no good run of Roomwire with figures of the server: scripts/bench suite makes them");
        }
        let idle: Vec<_> = of_scenario(&runs, "idle")?;
        let (connection_bytes, base_bytes) = memory(&idle);
        let kernel_bytes = median_of(&idle, |_, server| Some(server.slab_bytes_per_connection_pair / 2.0));
        // Short runs end before the first heartbeat.
        let idle_us = idle.iter().map(|(_, server)| server.cpu_us_per_connection_second).fold(0.0, f64::max);
        let joined = of_scenario(&runs, "idle-joined")?;
        let joined_bytes = median_of(&joined, |_, server| Some(server.rss_bytes_per_connection));
        let (message_us, delivery_us) = fan_out(&runs)?;
        let bridge_us = median_of(&of_scenario(&runs, "200-rooms-of-10")?, |report, server| {
            let bridge = server.cpu_share_by_thread.iter().find(|(name, _)| name == "bridge");
            Some(bridge.map_or(0.0, |(_, share)| share * 1e6 / report.shape.messages_per_second))
        });
        let costs = Costs {
            base_bytes,
            connection_bytes,
            kernel_bytes,
            membership_bytes: (joined_bytes - connection_bytes).max(0.0),
            idle_us,
            message_us,
            delivery_us,
            move_us: median_of(&of_scenario(&runs, "storm")?, |_, server| server.cpu_us_per_move),
            bridge_us,
            connections_measured: runs.iter().map(|(report, _)| report.shape.connections).max().unwrap_or(0),
        };
        for (what, value) in [
            ("memory of a connection", connection_bytes),
            ("CPU of a join", costs.move_us),
            ("CPU of the bridge", bridge_us),
        ] {
            if value <= 0.0 || !value.is_finite() {
                bail!(
                    "the {what} comes out as {value:.1}, which cannot be: measure on a quiet machine, and for longer"
                );
            }
        }
        Ok(costs)
    }
}

type Run<'a> = (&'a Report, &'a ServerFigures);

fn of_scenario<'a>(runs: &[Run<'a>], scenario: &str) -> Result<Vec<Run<'a>>> {
    let own: Vec<_> = runs.iter().filter(|(report, _)| report.scenario == scenario).copied().collect();
    if own.is_empty() {
        bail!("it has no good run `{scenario}` of Roomwire: scripts/bench suite --only {scenario} makes one");
    }
    Ok(own)
}

fn median_of(runs: &[Run<'_>], figure: impl Fn(&Report, &ServerFigures) -> Option<f64>) -> f64 {
    let values: Vec<f64> = runs.iter().filter_map(|(report, server)| figure(report, server)).collect();
    median(&values).unwrap_or(0.0)
}

/// Bytes of each connection, and before the first.
fn memory(idle: &[Run<'_>]) -> (f64, f64) {
    let point = |(report, server): &Run<'_>| (f64::from(report.shape.connections), server.rss_ready_bytes as f64);
    let points: Vec<(f64, f64)> = idle.iter().map(point).collect();
    let of_one_count = || {
        let each = median_of(idle, |_, server| Some(server.rss_bytes_per_connection));
        (each, median_of(idle, |_, server| Some(server.rss_before_bytes as f64)))
    };
    line(&points).unwrap_or_else(of_one_count)
}

/// CPU of a message, and of each delivery: a delivery in a room of `n` costs its own part and 1/n of the message.
fn fan_out(runs: &[Run<'_>]) -> Result<(f64, f64)> {
    let point = |(report, server): &Run<'_>| Some((1.0 / f64::from(report.shape.members), server.cpu_us_per_arrival?));
    let is_plain = |(report, _): &&Run<'_>| {
        report.run == "fanout" && report.shape.members > 0 && report.shape.messages_per_second <= RATE_MAX
    };
    let points: Vec<(f64, f64)> = runs.iter().filter(is_plain).filter_map(point).collect();
    match line(&points) {
        Some((message_us, delivery_us)) if message_us > 0.0 && delivery_us > 0.0 => Ok((message_us, delivery_us)),
        Some((message_us, delivery_us)) => bail!(
            "a message comes out at {message_us:.1} us and a delivery at {delivery_us:.1} us, which cannot be: measure on a quiet machine"
        ),
        None => bail!(
            "it takes runs of two room sizes to tell a message's cost from a delivery's: \
             scripts/bench suite --only room-of-1000,200-rooms-of-10 makes them"
        ),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::tests::report;

    /// A suite in which a connection costs 1,000 B and 4,000 B of kernel, 2 us a second; a message 100 us, of that 30 in the
    /// bridge, a delivery 5 us.
    pub(crate) fn suite() -> Vec<Report> {
        let named = |run: &str, scenario: &str, connections: u32, members: u32, cpu_us| {
            let mut report = report(run, 1.0, cpu_us);
            report.scenario = scenario.into();
            (report.shape.connections, report.shape.members) = (connections, members);
            let server = report.server.as_mut().expect("has one");
            server.rss_before_bytes = 20_000_000;
            server.rss_ready_bytes = 30_000_000 + 1_000 * u64::from(connections);
            server.rss_bytes_per_connection = if scenario == "idle-joined" { 1_700.0 } else { 1_000.0 };
            server.slab_bytes_per_connection_pair = 8_000.0;
            server.cpu_us_per_connection_second = 2.0;
            server.cpu_share_by_thread = vec![("shard-0".into(), 0.1), ("bridge".into(), 0.03)];
            server.cpu_us_per_move = (scenario == "storm").then_some(250.0);
            report
        };
        vec![
            named("idle", "idle", 6_000, 1, 0.0),
            named("idle", "idle", 18_000, 1, 0.0),
            named("idle", "idle-joined", 6_000, 1, 0.0),
            named("fanout", "room-of-1000", 1_000, 1_000, 5.1),
            named("fanout", "200-rooms-of-10", 2_000, 10, 15.0),
            named("storm", "storm", 4_000, 20, 9.0),
        ]
    }

    #[test]
    fn costs_are_told_apart_by_lines_through_the_runs() {
        let costs = Costs::of(&suite()).expect("whole");
        let near = |value: f64, wanted: f64| (value - wanted).abs() < 1e-6 * wanted;
        assert!(near(costs.connection_bytes, 1_000.0) && near(costs.base_bytes, 30_000_000.0), "{costs:?}");
        assert!(near(costs.message_us, 100.0) && near(costs.delivery_us, 5.0), "{costs:?}");
        assert!(near(costs.membership_bytes, 700.0) && near(costs.bridge_us, 30.0), "{costs:?}");
        assert_eq!((costs.kernel_bytes, costs.idle_us, costs.move_us), (4_000.0, 2.0, 250.0));
        assert_eq!(costs.connections_measured, 18_000);
    }

    #[test]
    fn what_is_missing_is_named_with_the_command_that_makes_it() {
        let without = |gone: &str| {
            let kept: Vec<Report> = suite().into_iter().filter(|report| report.scenario != gone).collect();
            Costs::of(&kept).expect_err(gone).to_string()
        };
        for scenario in ["idle", "idle-joined", "200-rooms-of-10", "storm"] {
            assert!(without(scenario).contains("scripts/bench suite --only"), "{scenario}: {}", without(scenario));
        }
        assert!(without("room-of-1000").contains("two room sizes"));
        assert!(Costs::of(&[]).is_err_and(|error| error.to_string().contains("no good run")));
        let void: Vec<Report> = suite().into_iter().map(|one| Report { void: vec!["lost".into()], ..one }).collect();
        assert!(Costs::of(&void).is_err());
    }

    #[test]
    fn figures_that_cannot_be_are_refused() {
        let mut noisy = suite();
        noisy[4].server.as_mut().expect("has one").cpu_us_per_arrival = Some(1.0);
        assert!(Costs::of(&noisy).is_err_and(|error| error.to_string().contains("quiet machine")));
    }
}
