//! The runs, and the steps they share: server, workers, window, verdict. `main` calls one of them.

pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod soak;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use crate::args::Common;
use crate::coordinator::Coordinator;
use crate::environment::Environment;
use crate::plan::{Mode, Plan};
use crate::report::{Drift, LoadFigures, Report, ServerFigures, Shape};
use crate::schedule::{Schedule, Topology};
use crate::server_process::Servers;
use crate::server_usage::Sample;
use crate::sys::now_ns;

/// Between the word to go and the first message, so that no worker starts late.
const START_IN_NS: u64 = 300_000_000;

/// What one run asks.
struct Ask<'a> {
    run: &'static str,
    common: &'a Common,
    mode: Mode,
    join: bool,
    topology: Topology,
    rate: f64,
    size: usize,
    settle: f64,
    warm_up: f64,
    seconds: f64,
    drain: f64,
    /// Whether to read the server's memory each second.
    watches_memory: bool,
}

impl Ask<'_> {
    fn check(&self) -> Result<()> {
        let Ask { rate, settle, warm_up, seconds, drain, .. } = *self;
        if ![rate, settle, warm_up, seconds, drain].iter().all(|number| number.is_finite() && *number >= 0.0) {
            bail!("rates and times have to be numbers from 0");
        }
        if seconds <= 0.0 || (self.mode != Mode::Still && rate <= 0.0) {
            bail!("the rate and the measured time have to be above 0");
        }
        if self.topology.rooms.checked_mul(self.topology.members).is_none() {
            bail!("too many connections");
        }
        Ok(())
    }

    fn plan(&self) -> Plan {
        let rate = if self.mode == Mode::Still { 0.0 } else { self.rate };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Plan {
            addrs: self.common.addr.clone(),
            path: self.common.path.clone(),
            dialect: self.common.dialect,
            mode: self.mode,
            join: self.join,
            secret: self.common.secret.clone(),
            run_id: format!("{:x}", since.as_millis()),
            worker: 0,
            workers: self.common.workers.min(self.topology.connections()),
            sources: if self.common.addr.iter().all(|addr| addr.ip().is_loopback()) { self.common.sources } else { 0 },
            connect_burst: self.common.connect_burst,
            schedule: Schedule::lasting(self.topology, rate, self.warm_up + self.seconds),
            size: self.size,
            measure_from_ns: nanoseconds(self.warm_up),
            measure_to_ns: nanoseconds(self.warm_up + self.seconds),
            drain_ns: nanoseconds(self.drain),
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            connections: self.topology.connections(),
            rooms: self.topology.rooms,
            members: self.topology.members,
            publishers_per_room: self.topology.publishers,
            messages_per_second: self.rate,
            content_bytes: self.size,
            warm_up_secs: self.warm_up,
            measured_secs: self.seconds,
            workers: self.common.workers,
            nodes: self.common.addr.len(),
        }
    }

    /// Makes the run.
    fn run(&self) -> Result<Report> {
        self.check()?;
        let (common, plan) = (self.common, self.plan());
        let environment = Environment::of(common);
        let server = Servers::of(common)?;
        let sample = || server.as_ref().map(Servers::sample).transpose();
        let before = sample()?;
        let mut workers = Coordinator::start(&plan, common.client_cpu.as_deref())?;
        workers.wait_ready()?;
        workers.run_until(now_ns() + nanoseconds(self.settle))?;
        let ready = sample()?;
        let start_ns = now_ns() + START_IN_NS;
        workers.go(start_ns)?;
        workers.run_until(start_ns + plan.measure_from_ns)?;
        let from = sample()?;
        let memory = self.watch(&mut workers, server.as_ref(), start_ns + plan.measure_to_ns)?;
        let to = sample()?;
        let results = workers.results(plan.drain_ns)?;
        let (load, [delivery, delivery_across, ack]) = LoadFigures::merge(&results, self.seconds);
        let server = match (before, ready, from, to) {
            (Some(before), Some(ready), Some(from), Some(to)) => {
                Some(self.server_figures(&[before, ready, from, to], load.arrived_in_window))
            }
            _ => None,
        };
        Ok(Report {
            run: self.run.into(),
            scenario: common.scenario.clone().unwrap_or_else(|| self.run.into()),
            label: common.label.clone().unwrap_or_else(|| format!("{:?}", common.dialect).to_lowercase()),
            environment,
            shape: self.shape(),
            invalid: load.invalid(common.lag_ms_max, common.cpu_percent_max),
            void: load.void(),
            load,
            delivery,
            delivery_across,
            ack,
            server,
            drift: Drift::of(memory),
        })
    }

    /// Lets the workers run until `to_ns`; the server's memory second by second, if asked.
    fn watch(&self, workers: &mut Coordinator, server: Option<&Servers>, to_ns: u64) -> Result<Vec<u64>> {
        let mut memory = Vec::new();
        if let Some(server) = server.filter(|_| self.watches_memory) {
            let mut next_ns = now_ns() + 1_000_000_000;
            while next_ns < to_ns {
                workers.run_until(next_ns)?;
                memory.push(server.rss_bytes()?);
                next_ns += 1_000_000_000;
            }
        }
        workers.run_until(to_ns)?;
        Ok(memory)
    }

    fn server_figures(&self, [before, ready, from, to]: &[Sample; 4], arrived: u64) -> ServerFigures {
        let connections = f64::from(self.topology.connections());
        let seconds = to.at_ns.saturating_sub(from.at_ns).max(1) as f64 / 1e9;
        let cpu_us = to.cpu_ns.saturating_sub(from.cpu_ns) as f64 / 1e3;
        let grown = |from: u64, to: u64| to as f64 - from as f64;
        let (switches_from, switches_to) = (from.switches(), to.switches());
        ServerFigures {
            rss_before_bytes: before.rss_bytes,
            rss_ready_bytes: ready.rss_bytes,
            rss_end_bytes: to.rss_bytes,
            rss_bytes_per_connection: grown(before.rss_bytes, ready.rss_bytes) / connections,
            slab_bytes_per_connection_pair: grown(before.slab_bytes, ready.slab_bytes) / connections,
            cpu_share: cpu_us / 1e6 / seconds,
            cpu_share_by_thread: cpu_share_by_thread(from, to, seconds),
            cpu_us_per_arrival: (arrived > 0).then(|| cpu_us / arrived as f64),
            cpu_us_per_connection_second: cpu_us / connections / seconds,
            switches_voluntary_per_second: grown(switches_from.0, switches_to.0) / seconds,
            switches_involuntary_per_second: grown(switches_from.1, switches_to.1) / seconds,
        }
    }
}

/// Of one core, largest first, without those under a thousandth.
fn cpu_share_by_thread(from: &Sample, to: &Sample, seconds: f64) -> Vec<(String, f64)> {
    let share = |name: &String, cpu_ns: u64| {
        let before_ns = from.threads.get(name).map_or(0, |thread| thread.cpu_ns);
        cpu_ns.saturating_sub(before_ns) as f64 / 1e9 / seconds
    };
    let mut shares: Vec<(String, f64)> =
        to.threads.iter().map(|(name, thread)| (name.clone(), share(name, thread.cpu_ns))).collect();
    shares.retain(|(_, share)| *share >= 0.001);
    shares.sort_by(|one, other| other.1.total_cmp(&one.1));
    shares
}

/// Prints the report, writes it if asked, and says whether it is good.
fn publish(report: &Report, common: &Common) -> Result<bool> {
    report.print();
    if let Some(path) = &common.json {
        report.write_json(path)?;
    }
    Ok(report.is_good())
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
