//! The workers as seen by the process that started them: their plans, their news, the line that says how far they are.
//! `runs` drives it.

use std::io::{self, BufRead, BufReader, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::agent::{self, Clocks, RemoteWorker};
use crate::control::{FromWorker, Go, Progress, WorkerResult};
use crate::plan::Plan;
use crate::sys::now_ns;

/// What a worker may need beyond the drain time to give its result.
const RESULT_NS: u64 = 60_000_000_000;

/// The workers of one run. Dropping it ends them.
pub(crate) struct Coordinator {
    workers: Vec<Worker>,
    news: Receiver<(usize, Option<FromWorker>)>,
    phase: &'static str,
    progress: Vec<Progress>,
    shows_progress: bool,
    shown_ns: u64,
    pub(crate) clocks: Clocks,
}

struct Worker {
    link: Link,
    is_ready: bool,
    result: Option<WorkerResult>,
}

/// Where a worker is. Dropping it ends the worker.
enum Link {
    Here { process: Child, stdin: ChildStdin },
    There(RemoteWorker),
}

impl Coordinator {
    /// Starts `plan.workers` workers: here, pinned to the cores `cpus` if given, or in turn at `agents`, if there are any.
    pub(crate) fn start(plan: &Plan, cpus: Option<&str>, agents: &[SocketAddr]) -> Result<Coordinator> {
        let (sender, news) = channel();
        let mut clocks = Clocks::default();
        let workers = (0..plan.workers)
            .map(|worker| {
                let plan = Plan { worker, ..plan.clone() };
                match agents.get(worker as usize % agents.len().max(1)) {
                    Some(agent) => Worker::start_there(&plan, *agent, &mut clocks, sender.clone()),
                    None => Worker::start_here(&plan, cpus, sender.clone()),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Coordinator {
            progress: vec![Progress::default(); workers.len()],
            workers,
            news,
            phase: "opening",
            shows_progress: io::stderr().is_terminal(),
            shown_ns: 0,
            clocks,
        })
    }

    /// Waits until every connection is open and has joined. Workers give up by themselves.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        while !self.workers.iter().all(|worker| worker.is_ready) {
            self.listen(Duration::from_millis(200))?;
        }
        Ok(())
    }

    /// Lets all workers start their schedule at `start_ns`.
    pub(crate) fn go(&mut self, start_ns: u64) -> Result<()> {
        self.phase = "running";
        let line = serde_json::to_string(&Go { start_ns })? + "\n";
        for worker in &mut self.workers {
            worker.link.write(line.as_bytes()).context("a worker has gone")?;
        }
        Ok(())
    }

    /// Listens to the workers until `until_ns`.
    pub(crate) fn run_until(&mut self, until_ns: u64) -> Result<()> {
        loop {
            let left = until_ns.saturating_sub(now_ns());
            if left == 0 {
                return Ok(());
            }
            self.listen(Duration::from_nanos(left.min(200_000_000)))?;
        }
    }

    /// Waits for all results.
    pub(crate) fn results(&mut self, drain_ns: u64) -> Result<Vec<WorkerResult>> {
        self.phase = "draining";
        let deadline = now_ns() + drain_ns + RESULT_NS;
        while self.workers.iter().any(|worker| worker.result.is_none()) {
            if now_ns() > deadline {
                bail!("a worker gave no result");
            }
            self.listen(Duration::from_millis(200))?;
        }
        self.clear_line();
        Ok(self.workers.iter_mut().filter_map(|worker| worker.result.take()).collect())
    }

    fn listen(&mut self, timeout: Duration) -> Result<()> {
        match self.news.recv_timeout(timeout) {
            Ok((worker, news)) => self.hear(worker, news)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("all workers have gone"),
        }
        self.show();
        Ok(())
    }

    fn hear(&mut self, index: usize, news: Option<FromWorker>) -> Result<()> {
        let Some(worker) = self.workers.get_mut(index) else { return Ok(()) };
        match news {
            Some(FromWorker::Progress(progress)) => self.progress[index] = progress,
            Some(FromWorker::Ready) => worker.is_ready = true,
            Some(FromWorker::Result(result)) => worker.result = Some(*result),
            Some(FromWorker::Failed(why)) => bail!("{why}"),
            None if worker.result.is_none() => bail!("worker {index} ended without a result"),
            None => {}
        }
        Ok(())
    }

    fn show(&mut self) {
        let now = now_ns();
        if !self.shows_progress || now - self.shown_ns < 200_000_000 {
            return;
        }
        self.shown_ns = now;
        let sum = |field: fn(&Progress) -> u64| self.progress.iter().map(field).sum::<u64>();
        // A lost progress line hurts nobody.
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{}: {} open, {} joined, {} sent, {} arrived",
            self.phase,
            sum(|progress| progress.open),
            sum(|progress| progress.joined),
            sum(|progress| progress.sent),
            sum(|progress| progress.arrived),
        );
    }

    fn clear_line(&self) {
        if self.shows_progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Link::Here { stdin, .. } => stdin.write_all(bytes),
            Link::There(remote) => remote.stream.write_all(bytes),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Link::Here { process, .. } = self {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Worker {
    fn start_here(plan: &Plan, cpus: Option<&str>, sender: Sender<(usize, Option<FromWorker>)>) -> Result<Worker> {
        let (process, stdin, stdout) = agent::start_worker(plan, cpus)?;
        Ok(Worker::new(Link::Here { process, stdin }, plan, BufReader::new(stdout), sender))
    }

    fn start_there(
        plan: &Plan,
        agent: SocketAddr,
        clocks: &mut Clocks,
        sender: Sender<(usize, Option<FromWorker>)>,
    ) -> Result<Worker> {
        let mut remote = RemoteWorker::start(agent, plan, clocks)?;
        let reader = remote.reader.take().context("read already")?;
        Ok(Worker::new(Link::There(remote), plan, reader, sender))
    }

    fn new(
        link: Link,
        plan: &Plan,
        reader: impl BufRead + Send + 'static,
        sender: Sender<(usize, Option<FromWorker>)>,
    ) -> Worker {
        let index = plan.worker as usize;
        thread::spawn(move || forward(index, reader, &sender));
        Worker { link, is_ready: false, result: None }
    }
}

/// Hands on a worker's lines, and `None` at their end.
fn forward(worker: usize, lines: impl BufRead, sender: &Sender<(usize, Option<FromWorker>)>) {
    for line in lines.lines() {
        let Ok(line) = line else { break };
        let news = serde_json::from_str(&line).unwrap_or_else(|error| FromWorker::Failed(format!("{error}: {line}")));
        if sender.send((worker, Some(news))).is_err() {
            return;
        }
    }
    let _ = sender.send((worker, None));
}
