//! One run from the plan to the report: starts the workers, lets them run, samples the server, judges. `runs` fills in
//! what it asks.

use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::args::{Common, Load};
use crate::backends;
use crate::coordinator::Coordinator;
use crate::dialect::Dialect;
use crate::environment::Environment;
use crate::histogram::Latencies;
use crate::load::LoadFigures;
use crate::plan::{Extras, Mode, Pace, Plan};
use crate::report::{Drift, Report, ServerFigures, Shape};
use crate::server_process::Servers;
use crate::server_usage::Sample;
use crate::sys::now_ns;
use crate::syscalls::Syscalls;
use crate::timed::{Counted, Timed};
use crate::topology::{Rooms, Topology};

/// Between the word to go and the first message, so that no worker starts late.
const START_IN_NS: u64 = 300_000_000;

/// Seconds of traffic that are not measured, unless the command line says otherwise.
const WARM_UP_SECS: f64 = 2.0;

/// Messages a second, unless the command line says otherwise.
const RATE: f64 = 1_000.0;

/// What one run asks.
#[derive(Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) run: &'static str,
    pub(crate) common: &'a Common,
    pub(crate) mode: Mode,
    pub(crate) pace: Pace,
    pub(crate) join: bool,
    pub(crate) rooms: Rooms,
    pub(crate) rate: f64,
    pub(crate) extras: Extras,
    pub(crate) size: usize,
    pub(crate) settle: f64,
    pub(crate) warm_up: f64,
    pub(crate) seconds: f64,
    pub(crate) drain: f64,
    /// Whether to read the server's memory each second.
    pub(crate) watches_memory: bool,
}

impl<'a> Ask<'a> {
    /// Members of `rooms` that join and chat at no rate yet.
    pub(crate) fn of(run: &'static str, common: &'a Common, rooms: Rooms) -> Ask<'a> {
        Ask {
            run,
            common,
            mode: Mode::Chat,
            pace: Pace::Open,
            join: true,
            rooms,
            rate: 0.0,
            extras: Extras::default(),
            size: 0,
            settle: 1.0,
            warm_up: 0.0,
            seconds: 0.0,
            drain: 0.0,
            watches_memory: false,
        }
    }

    /// The same with messages, as fast and as large as `load` says, for so many measured seconds.
    pub(crate) fn chatting(run: &'static str, common: &'a Common, rooms: Rooms, load: &Load, seconds: f64) -> Ask<'a> {
        Ask {
            rate: load.rate.unwrap_or(RATE),
            size: load.size,
            warm_up: load.warm_up.unwrap_or(WARM_UP_SECS),
            seconds,
            drain: load.drain,
            ..Ask::of(run, common, rooms)
        }
    }

    fn check(&self) -> Result<()> {
        let Ask { rate, settle, warm_up, seconds, drain, .. } = *self;
        let extras = [self.extras.typing_per_second, self.extras.receipts_per_second];
        let numbers = [rate, settle, warm_up, seconds, drain];
        if !numbers.iter().chain(&extras).all(|number| number.is_finite() && *number >= 0.0) {
            bail!("rates and times have to be numbers from 0");
        }
        if seconds <= 0.0 || (self.mode != Mode::Still && self.pace == Pace::Open && rate <= 0.0) {
            bail!("the rate and the measured time have to be above 0");
        }
        if !self.common.dialect.has_events()
            && (extras.iter().any(|rate| *rate > 0.0) || self.extras.watched > 0 || self.mode == Mode::Echo)
        {
            bail!("this dialect has no typing, receipts, presence or echo");
        }
        if self.pace == Pace::Closed && !self.common.dialect.delivers_to_sender(self.mode) {
            bail!("this dialect tells a publisher nothing of its own message, so it has no closed loop");
        }
        match self.rooms {
            Rooms::Equal { rooms, members, .. } if rooms.checked_mul(members).is_none() => {
                bail!("too many connections")
            }
            Rooms::Zipf { connections, memberships, .. } if connections.checked_mul(memberships).is_none() => {
                bail!("too many memberships")
            }
            Rooms::Equal { .. } | Rooms::Zipf { .. } => Ok(()),
        }
    }

    /// Here, or at all agents together.
    fn workers(&self) -> u32 {
        // At most 256 at each, and a command line holds only so many agents.
        self.common.workers * (self.common.agent.len() as u32).max(1)
    }

    fn plan(&self, connections: u32) -> Plan {
        let is_open = self.mode != Mode::Still && self.pace == Pace::Open;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Plan {
            addrs: self.common.addr.clone(),
            path: self.common.path.clone().unwrap_or_else(|| self.common.dialect.path().to_owned()),
            dialect: self.common.dialect,
            mode: self.mode,
            pace: self.pace,
            join: self.join,
            secret: self.common.secret.clone(),
            run_id: self.common.run_id.clone().unwrap_or_else(|| format!("{:x}", since.as_millis())),
            worker: 0,
            workers: self.workers().min(connections),
            sources: if self.common.addr.iter().all(|addr| addr.ip().is_loopback()) { self.common.sources } else { 0 },
            first_user: self.common.first_user,
            connect_burst: self.common.connect_burst,
            rooms: self.rooms,
            rate: if is_open { self.rate } else { 0.0 },
            messages: if is_open { (self.rate * (self.warm_up + self.seconds)).round() as u64 } else { 0 },
            extras: self.extras.clone(),
            size: self.size,
            measure_from_ns: nanoseconds(self.warm_up),
            measure_to_ns: nanoseconds(self.warm_up + self.seconds),
            drain_ns: nanoseconds(self.drain),
            clock_offset_ns: 0,
        }
    }

    fn shape(&self, connections: u32) -> Shape {
        let (rooms, members, publishers) = match self.rooms {
            Rooms::Equal { rooms, members, publishers } => (rooms, members, publishers),
            // On average: the sizes go by Zipf.
            Rooms::Zipf { rooms, memberships, publishers_max, .. } => {
                (rooms, (u64::from(connections) * u64::from(memberships) / u64::from(rooms)) as u32, publishers_max)
            }
        };
        Shape {
            connections,
            rooms,
            members,
            publishers_per_room: publishers,
            messages_per_second: self.rate,
            content_bytes: self.size,
            warm_up_secs: self.warm_up,
            measured_secs: self.seconds,
            workers: self.workers(),
            nodes: self.common.addr.len(),
            pace: self.pace,
        }
    }

    /// Makes the run, with the server of the command line.
    pub(crate) fn run(&self) -> Result<Report> {
        self.check()?;
        self.run_on(Servers::of(self.common)?.as_ref())
    }

    /// Makes the run, with a server that is there already.
    pub(crate) fn run_on(&self, server: Option<&Servers>) -> Result<Report> {
        self.check()?;
        let common = self.common;
        let connections = Topology::connections_of(self.rooms);
        let plan = self.plan(connections);
        let server_version = server.filter(|_| common.dialect == Dialect::Roomwire).map(Servers::version);
        let environment = Environment { server_version: server_version.unwrap_or_default(), ..Environment::of(common) };
        let sample = || server.map(Servers::sample).transpose();
        let before = sample()?;
        let mut workers = Coordinator::start(&plan, common.client_cpu.as_deref(), &common.agent)?;
        workers.wait_ready()?;
        workers.run_until(now_ns() + nanoseconds(self.settle))?;
        let ready = sample()?;
        let between_secs = common.between.as_deref().map(|command| between(&mut workers, command)).transpose()?;
        let start_ns = now_ns() + START_IN_NS;
        workers.go(start_ns)?;
        workers.run_until(start_ns + plan.measure_from_ns)?;
        let syscalls = server.filter(|_| common.syscalls).map(|server| Syscalls::count(&server.pids())).transpose()?;
        let (from, backends_from) = (sample()?, backends::Sample::of(common)?);
        let memory = self.watch(&mut workers, server, start_ns + plan.measure_to_ns)?;
        let (to, backends_to) = (sample()?, backends::Sample::of(common)?);
        let syscalls = syscalls.map(Syscalls::per_second).transpose()?;
        let results = workers.results(plan.drain_ns)?;
        let clock_error_ms = workers.clocks.error_ns(&common.secret)?.map(|ns| ns as f64 / 1e6);
        drop(workers);
        let (load, times) = LoadFigures::merge(&results, self.seconds);
        let server = match (before, ready, from, to) {
            (Some(before), Some(ready), Some(from), Some(to)) => {
                let samples = [before, ready, from, to];
                Some(figures(&samples, connections, &load, syscalls))
            }
            _ => None,
        };
        let at = |what: Timed| times.get(&what).and_then(Latencies::percentiles);
        let own_field = [Timed::Delivery, Timed::DeliveryAcross, Timed::Ack, Timed::SendLag, Timed::ReadLag];
        let is_open = self.pace == Pace::Open;
        Ok(Report {
            run: self.run.into(),
            scenario: common.scenario.clone().unwrap_or_else(|| self.run.into()),
            label: common.label.clone().unwrap_or_else(|| format!("{:?}", common.dialect).to_lowercase()),
            environment,
            shape: self.shape(connections),
            // A closed loop has no times to keep to, but its maximum may still be the bench's own.
            invalid: load.invalid(if is_open { common.lag_ms_max } else { u32::MAX }, common.cpu_percent_max),
            void: load.void(),
            // How long a closed loop takes says how fast its clients are, and nothing of what users would see.
            delivery: at(Timed::Delivery).filter(|_| is_open),
            delivery_across: at(Timed::DeliveryAcross).filter(|_| is_open),
            ack: at(Timed::Ack).filter(|_| is_open),
            times: times
                .iter()
                .filter(|(what, _)| !own_field.contains(what))
                .filter_map(|(what, latencies)| Some((*what, latencies.percentiles()?)))
                .collect(),
            curves: times
                .iter()
                .filter(|(what, _)| is_open && !matches!(what, Timed::SendLag | Timed::ReadLag))
                .map(|(what, latencies)| (*what, latencies.curve()))
                .collect(),
            load,
            beyond_knee: Vec::new(),
            server,
            drift: Drift::of(memory),
            backends: backends_from.zip(backends_to).map(|(from, to)| from.until(&to)),
            between_secs,
            clock_error_ms,
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
}

/// Runs `command` while the workers keep their connections, and says how many seconds it took.
fn between(workers: &mut Coordinator, command: &str) -> Result<f64> {
    let began_ns = now_ns();
    let mut shell = Command::new("sh");
    let mut child = shell.args(["-c", command]).stdin(Stdio::null()).spawn().context("cannot start --between")?;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for --between")? {
            break status;
        }
        workers.run_until(now_ns() + 20_000_000)?;
    };
    if !status.success() {
        bail!("--between: {status}");
    }
    Ok((now_ns() - began_ns) as f64 / 1e9)
}

fn figures(
    [before, ready, from, to]: &[Sample; 4],
    connections: u32,
    load: &LoadFigures,
    syscalls_per_second: Option<f64>,
) -> ServerFigures {
    let connections = f64::from(connections);
    let seconds = to.at_ns.saturating_sub(from.at_ns).max(1) as f64 / 1e9;
    let cpu_us = to.cpu_ns.saturating_sub(from.cpu_ns) as f64 / 1e3;
    let grown = |from: u64, to: u64| to as f64 - from as f64;
    let (switches_from, switches_to) = (from.switches(), to.switches());
    let moves: u64 =
        [Counted::Reconnects, Counted::Joins, Counted::Reads].iter().filter_map(|what| load.counts.get(what)).sum();
    ServerFigures {
        rss_before_bytes: before.rss_bytes,
        rss_ready_bytes: ready.rss_bytes,
        rss_end_bytes: to.rss_bytes,
        rss_bytes_per_connection: grown(before.rss_bytes, ready.rss_bytes) / connections,
        slab_bytes_per_connection_pair: grown(before.slab_bytes, ready.slab_bytes) / connections,
        cpu_share: cpu_us / 1e6 / seconds,
        cpu_share_by_thread: cpu_share_by_thread(from, to, seconds),
        cpu_us_per_arrival: (load.arrived_in_window > 0).then(|| cpu_us / load.arrived_in_window as f64),
        cpu_us_per_connection_second: cpu_us / connections / seconds,
        switches_voluntary_per_second: grown(switches_from.0, switches_to.0) / seconds,
        switches_involuntary_per_second: grown(switches_from.1, switches_to.1) / seconds,
        socket_buffer_bytes: to.socket_buffer_bytes,
        cpu_us_per_move: (moves > 0).then(|| cpu_us / moves as f64),
        syscalls_per_second,
        syscalls_per_arrival: syscalls_per_second
            .filter(|_| load.arrived_in_window > 0)
            .map(|per_second| per_second / load.arrived_per_second),
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

pub(crate) fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
