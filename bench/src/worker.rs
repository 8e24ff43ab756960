//! One worker: opens its share of the connections, joins, keeps to the schedule, and tells the coordinator what it saw.
//! Started by `coordinator`, which talks to it as `control` says.

use std::io::{self, BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::args::Dialect;
use crate::control::{FromWorker, Go, Progress, WorkerResult};
use crate::histogram::Latencies;
use crate::observer::{self, Observer};
use crate::payload::{self, Stamp};
use crate::plan::{Mode, Plan};
use crate::schedule::Planned;
use crate::swarm::{Sent, Swarm, Target};
use crate::sys::{now_ns, own_cpu_ns};
use crate::token::Mint;

/// How often the coordinator hears how far this worker is.
const PROGRESS_NS: u64 = 250_000_000;
/// Without a step forward for so long, opening or joining has failed.
const STALLED_NS: u64 = 30_000_000_000;
/// Sends in a row before the sockets are read again.
const SENDS_PER_TURN_MAX: usize = 64;

/// Runs the worker of the plan on stdin.
pub(crate) fn run() -> Result<()> {
    let plan: Plan = read_line().context("no plan on stdin: this command is started by the others")?;
    let mut worker = Worker::new(plan)?;
    let outcome = worker.work();
    match &outcome {
        Ok(result) => tell(&FromWorker::Result(Box::new(result.clone())))?,
        Err(error) => tell(&FromWorker::Failed(format!("{error:#}")))?,
    }
    Ok(())
}

fn read_line<T: serde::de::DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn tell(news: &FromWorker) -> Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, news)?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

struct Worker {
    plan: Plan,
    swarm: Swarm,
    observer: Observer,
    /// Own connections that were started.
    opened: usize,
    send_lag: Latencies,
    sent: u64,
    sent_in_window: u64,
    scheduled_in_window: u64,
    text: String,
    told_ns: u64,
}

/// What this process had used when the window began.
struct OwnUse {
    at_ns: u64,
    cpu_ns: u64,
    waiting_ns: u64,
}

impl OwnUse {
    fn now() -> OwnUse {
        OwnUse { at_ns: now_ns(), cpu_ns: own_cpu_ns(), waiting_ns: waiting_ns() }
    }

    /// Shares of a core since `self`: used, and wanted but not had.
    fn shares(&self) -> (f64, f64) {
        let now = OwnUse::now();
        let wall = now.at_ns.saturating_sub(self.at_ns).max(1) as f64;
        let share = |from: u64, to: u64| to.saturating_sub(from) as f64 / wall;
        (share(self.cpu_ns, now.cpu_ns), share(self.waiting_ns, now.waiting_ns))
    }
}

/// How long this process was ready to run without running (the second number of schedstat); 0 if the kernel does not say.
fn waiting_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Worker {
    fn new(plan: Plan) -> Result<Worker> {
        let swarm = Swarm::new().context("cannot make an epoll set")?;
        swarm.watch_control(io::stdin().as_fd()).context("stdin is not a pipe")?;
        Ok(Worker {
            observer: Observer::new(plan.clone()),
            plan,
            swarm,
            opened: 0,
            send_lag: Latencies::new(),
            sent: 0,
            sent_in_window: 0,
            scheduled_in_window: 0,
            text: String::new(),
            told_ns: 0,
        })
    }

    fn work(&mut self) -> Result<WorkerResult> {
        self.open()?;
        if self.plan.join {
            self.join()?;
        }
        tell(&FromWorker::Ready)?;
        while !self.turn(Duration::from_millis(100))? {}
        let go: Go = read_line().context("the coordinator has gone")?;
        self.keep_to_schedule(go.start_ns)
    }

    /// One turn of the swarm; whether the coordinator has said something.
    fn turn(&mut self, timeout: Duration) -> Result<bool> {
        let observer = &mut self.observer;
        let control = self.swarm.turn(timeout, &mut |local, event| observer.observe(local, event))?;
        let now = now_ns();
        if now - self.told_ns >= PROGRESS_NS {
            self.told_ns = now;
            tell(&FromWorker::Progress(Progress {
                open: self.observer.ready as u64,
                joined: self.observer.joined as u64,
                sent: self.sent,
                arrived: self.observer.deliveries.counts().arrived,
            }))?;
        }
        Ok(control)
    }

    fn open(&mut self) -> Result<()> {
        let own = self.plan.own_connections();
        let mint = Mint::new(&self.plan.secret);
        self.advance(
            "opening",
            own,
            |worker| worker.observer.ready,
            |worker, local| {
                let connection = worker.plan.connection(local);
                let resource = format!("{}?token={}", worker.plan.path, mint.token(connection)?);
                let source = match worker.plan.sources {
                    0 => None,
                    sources => Some(Ipv4Addr::new(127, 0, 0, 1 + (connection % u32::from(sources)) as u8)),
                };
                worker.opened += 1;
                let addr = worker.plan.addrs[worker.plan.node_of(connection)];
                let target = Target { addr, resource: &resource, source };
                worker.swarm.connect(target).with_context(|| format!("cannot connect to {addr}"))
            },
        )
    }

    fn join(&mut self) -> Result<()> {
        let own = self.plan.own_connections();
        self.advance(
            "joining",
            own,
            |worker| worker.observer.joined,
            |worker, local| {
                let room = worker.plan.schedule.topology.room_of(worker.plan.connection(local));
                payload::write_join(&worker.plan.room_name(room), &mut worker.text);
                worker.swarm.send(local, worker.text.as_bytes())?;
                if worker.plan.dialect == Dialect::Plain {
                    worker.swarm.send(local, payload::PING.as_bytes())?;
                }
                Ok(())
            },
        )
    }

    /// Does `step` for each own connection, at most `connect_burst` of them under way, until `done` has counted all.
    fn advance(
        &mut self,
        what: &str,
        own: usize,
        done: impl Fn(&Worker) -> usize,
        mut step: impl FnMut(&mut Worker, usize) -> Result<()>,
    ) -> Result<()> {
        let burst = self.plan.connect_burst as usize;
        let mut next = 0;
        let (mut last_done, mut last_ns) = (0, now_ns());
        while done(self) < own {
            while next < own && next < done(self) + burst {
                step(self, next)?;
                next += 1;
            }
            self.turn(Duration::from_millis(100))?;
            self.fail_if_troubled(what)?;
            if done(self) > last_done {
                (last_done, last_ns) = (done(self), now_ns());
            } else if now_ns() - last_ns > STALLED_NS {
                bail!("{what}: {} of {own} connections, then nothing for 30 s", done(self));
            }
        }
        Ok(())
    }

    fn fail_if_troubled(&self, what: &str) -> Result<()> {
        let trouble = self.observer.closed.iter().chain(&self.observer.complaints).next();
        match trouble {
            Some((text, count)) => bail!("{what}: {text} ({count} times)"),
            None => Ok(()),
        }
    }

    fn keep_to_schedule(&mut self, start_ns: u64) -> Result<WorkerResult> {
        let (from_ns, to_ns) = (start_ns + self.plan.measure_from_ns, start_ns + self.plan.measure_to_ns);
        self.observer.measure(from_ns..to_ns);
        let mut k = 0;
        let mut next = self.next_own(&mut k);
        let mut begun = None;
        let mut shares = None;
        loop {
            let now = now_ns();
            if now >= from_ns && begun.is_none() {
                begun = Some(OwnUse::now());
            }
            if now >= to_ns && shares.is_none() {
                shares = begun.as_ref().map(OwnUse::shares);
            }
            let mut burst = 0;
            while let Some(planned) = next
                && start_ns + planned.after_ns <= now
                && burst < SENDS_PER_TURN_MAX
            {
                self.publish(planned, start_ns + planned.after_ns, from_ns..to_ns)?;
                next = self.next_own(&mut k);
                burst += 1;
            }
            if next.is_none() && now >= to_ns && (self.observer.is_complete() || now >= to_ns + self.plan.drain_ns) {
                break;
            }
            let boundary_ns = [from_ns, to_ns].into_iter().filter(|at| *at > now).min();
            let due_ns = next.map(|planned| start_ns + planned.after_ns);
            let wake_ns = due_ns.into_iter().chain(boundary_ns).min().unwrap_or(u64::MAX);
            self.turn(Duration::from_nanos(wake_ns.saturating_sub(now).min(PROGRESS_NS)))?;
        }
        Ok(self.result(shares.unwrap_or_default()))
    }

    /// The next message of the schedule that one of this worker's connections sends; `k` moves behind it.
    fn next_own(&self, k: &mut u64) -> Option<Planned> {
        let schedule = &self.plan.schedule;
        while *k < schedule.messages {
            let planned = schedule.message(*k);
            *k += 1;
            if self.plan.local(schedule.topology.connection_of(planned.publisher)).is_some() {
                return Some(planned);
            }
        }
        None
    }

    fn publish(&mut self, planned: Planned, intended_ns: u64, window: std::ops::Range<u64>) -> Result<()> {
        let connection = self.plan.schedule.topology.connection_of(planned.publisher);
        let Some(local) = self.plan.local(connection) else { return Ok(()) };
        let stamp = Stamp { publisher: planned.publisher, number: planned.number, intended_ns };
        match self.plan.mode {
            Mode::Chat => {
                let room = self.plan.room_name(planned.room);
                payload::write_chat(self.plan.dialect, &room, stamp, self.plan.size, &mut self.text);
            }
            Mode::Echo | Mode::Still => payload::write_echo(stamp, self.plan.size, &mut self.text),
        }
        let now = now_ns();
        let sent = self.swarm.send(local, self.text.as_bytes())?;
        // What waits for a slow reader will be sent, but not when it was meant to.
        self.sent += u64::from(sent != Sent::Gone);
        if window.contains(&intended_ns) {
            self.scheduled_in_window += 1;
            self.sent_in_window += u64::from(sent == Sent::Kernel && now < window.end);
            self.send_lag.record(now.saturating_sub(intended_ns));
        }
        Ok(())
    }

    fn result(&self, (cpu_share, waiting_share): (f64, f64)) -> WorkerResult {
        WorkerResult {
            scheduled: if self.plan.mode == Mode::Still { 0 } else { observer::scheduled(&self.plan) },
            sent: self.sent,
            scheduled_in_window: self.scheduled_in_window,
            sent_in_window: self.sent_in_window,
            arrived_in_window: self.observer.arrived_in_window,
            delivery: self.observer.delivery.counts(),
            delivery_across: self.observer.delivery_across.counts(),
            ack: self.observer.ack.counts(),
            send_lag: self.send_lag.counts(),
            deliveries: self.observer.deliveries.counts(),
            acks: self.observer.acks.counts(),
            closed: self.observer.closed.clone().into_iter().collect(),
            complaints: self.observer.complaints.clone().into_iter().collect(),
            cpu_share,
            waiting_share,
        }
    }
}
