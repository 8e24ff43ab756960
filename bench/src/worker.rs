//! One worker: opens its share of the connections, joins, keeps to the agenda, and tells the coordinator what it saw.
//! Started by `coordinator`, which talks to it as `control` says.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _, Write as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::agenda::{Act, Agenda};
use crate::control::{FromWorker, Go, Progress, WorkerResult};
use crate::dialect::{Dialect, centrifugo, pusher};
use crate::layout::Layout;
use crate::observer::Observer;
use crate::own_use::OwnUse;
use crate::payload::{self, Position, Stamp};
use crate::plan::{Mode, Move, Pace, Plan};
use crate::schedule::Planned;
use crate::swarm::{Sent, Swarm, Target};
use crate::sys::{self, now_ns};
use crate::timed::{Counted, Timed};
use crate::token::Mint;

/// How often the coordinator hears how far this worker is.
const PROGRESS_NS: u64 = 250_000_000;
/// Without a step forward for so long, opening or joining has failed.
const STALLED_NS: u64 = 30_000_000_000;
/// Acts in a row before the sockets are read again.
const ACTS_PER_TURN_MAX: usize = 64;

/// Runs the worker of the plan on stdin.
pub(crate) fn run() -> Result<()> {
    let plan: Plan = read_line().context("no plan on stdin: this command is started by the others")?;
    sys::shift_clock(plan.clock_offset_ns);
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
    layout: Rc<Layout>,
    swarm: Swarm,
    observer: Observer,
    mint: Mint,
    signer: pusher::Signer,
    /// The measured window, CLOCK_MONOTONIC; empty until the start is known.
    window: Range<u64>,
    /// Moves that wait for the one before them, by connection.
    waiting: HashMap<usize, VecDeque<(Move, u64)>>,
    /// In a closed loop: what each publisher sends next.
    numbers: Vec<u32>,
    /// In a closed loop: how many deliveries have to come of what was sent.
    owed: u64,
    sent: u64,
    sent_in_window: u64,
    scheduled_in_window: u64,
    text: String,
    told_ns: u64,
}

impl Worker {
    fn new(plan: Plan) -> Result<Worker> {
        let swarm = Swarm::new().context("cannot make an epoll set")?;
        swarm.watch_control(io::stdin().as_fd()).context("stdin is not a pipe")?;
        let layout = Rc::new(Layout::new(plan));
        Ok(Worker {
            observer: Observer::new(Rc::clone(&layout)),
            mint: Mint::new(&layout.plan.secret, layout.plan.dialect),
            signer: pusher::Signer::new(&layout.plan.secret),
            numbers: vec![0; layout.topology.all_publishers() as usize],
            layout,
            swarm,
            window: 0..0,
            waiting: HashMap::new(),
            owed: 0,
            sent: 0,
            sent_in_window: 0,
            scheduled_in_window: 0,
            text: String::new(),
            told_ns: 0,
        })
    }

    fn work(&mut self) -> Result<WorkerResult> {
        let own = self.layout.own_connections();
        self.advance("opening", own, |worker| worker.observer.ready, |worker, local| worker.connect(local))?;
        if self.layout.plan.join {
            let joined = |worker: &Worker| worker.observer.joined;
            self.advance("joining", own, joined, |worker, local| worker.join(local, false))?;
            self.watch()?;
        }
        tell(&FromWorker::Ready)?;
        while !self.turn(Duration::from_millis(100))? {}
        let go: Go = read_line().context("the coordinator has gone")?;
        self.keep_to_agenda(go.start_ns)
    }

    /// One turn of the swarm, and what follows from it; whether the coordinator has said something.
    fn turn(&mut self, timeout: Duration) -> Result<bool> {
        let observer = &mut self.observer;
        let control = self.swarm.turn(timeout, &mut |local, event| observer.observe(local, event))?;
        let now = now_ns();
        if self.swarm.last_turn_events() > 0 && self.window.contains(&now) {
            self.observer.record.time(Timed::ReadLag, self.swarm.last_turn_ns());
        }
        while let Some(local) = self.observer.opened.pop() {
            let user = self.layout.user(self.layout.connection(local));
            centrifugo::write_connect(&self.mint.token(user)?, &mut self.text);
            self.swarm.send(local, self.text.as_bytes())?;
        }
        while let Some(local) = self.observer.pinged.pop() {
            self.swarm.send(local, self.layout.plan.dialect.pong().as_bytes())?;
        }
        while let Some(local) = self.observer.greeted.pop() {
            self.join(local, true)?;
        }
        while let Some(local) = self.observer.settled.pop() {
            if let Some((what, intended_ns)) = self.waiting.get_mut(&local).and_then(VecDeque::pop_front) {
                self.make_move(local, what, intended_ns)?;
            }
        }
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

    /// Opens connection `local`, for the first time or again.
    fn connect(&mut self, local: usize) -> Result<()> {
        let layout = &self.layout;
        let connection = layout.connection(local);
        let query = layout.plan.dialect.query(&self.mint.token(layout.user(connection))?);
        let resource = format!("{}{query}", layout.plan.path);
        let addr = layout.plan.addrs[layout.node_of(connection)];
        let target = Target { addr, resource: &resource, source: layout.plan.source_of(connection) };
        self.swarm.connect(local, target).with_context(|| format!("cannot connect to {addr}"))
    }

    /// Joins all rooms of `local`; from where it was, if it is back.
    fn join(&mut self, local: usize, is_back: bool) -> Result<()> {
        let layout = Rc::clone(&self.layout);
        let rooms = layout.topology.rooms_of(layout.connection(local));
        self.observer.expect_joins(local, rooms.len(), now_ns());
        let resumes = is_back && layout.plan.dialect.resumes();
        for (slot, room) in rooms.iter().enumerate() {
            let position: Option<Position> = resumes.then(|| self.observer.position(local, slot));
            let name = layout.room_name(*room);
            match layout.plan.dialect {
                Dialect::Roomwire | Dialect::Plain => payload::write_join(&name, position, &mut self.text),
                Dialect::Centrifugo => centrifugo::write_join(&name, &mut self.text),
                Dialect::Pusher => self.signer.write_join(&name, self.observer.socket_id(local), &mut self.text)?,
            }
            self.swarm.send(local, self.text.as_bytes())?;
        }
        if layout.plan.dialect == Dialect::Plain {
            self.swarm.send(local, payload::PING.as_bytes())?;
        }
        Ok(())
    }

    fn leave(&mut self, local: usize) -> Result<()> {
        let layout = Rc::clone(&self.layout);
        for room in layout.topology.rooms_of(layout.connection(local)) {
            payload::write_leave(layout.plan.dialect, &layout.room_name(*room), &mut self.text);
            self.swarm.send(local, self.text.as_bytes())?;
        }
        self.observer.record.count(Counted::Leaves);
        Ok(())
    }

    /// Asks for the presence of the next few users, where the run wants that.
    fn watch(&mut self) -> Result<()> {
        let all = self.layout.topology.connections();
        let watched = self.layout.plan.extras.watched.min(all - 1);
        for local in 0..if watched == 0 { 0 } else { self.layout.own_connections() } {
            let connection = self.layout.connection(local);
            let users = (1..=watched).map(|step| self.layout.user((connection + step) % all));
            payload::write_watch(users, &mut self.text);
            self.swarm.send(local, self.text.as_bytes())?;
        }
        Ok(())
    }

    /// Does `step` for each own connection, at most `connect_burst` of them under way, until `done` has counted all.
    fn advance(
        &mut self,
        what: &str,
        own: usize,
        done: impl Fn(&Worker) -> usize,
        mut step: impl FnMut(&mut Worker, usize) -> Result<()>,
    ) -> Result<()> {
        let burst = self.layout.plan.connect_burst as usize;
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

    fn keep_to_agenda(&mut self, start_ns: u64) -> Result<WorkerResult> {
        let plan = &self.layout.plan;
        let (from_ns, to_ns) = (start_ns + plan.measure_from_ns, start_ns + plan.measure_to_ns);
        let give_up_ns = to_ns.saturating_add(plan.drain_ns);
        self.window = from_ns..to_ns;
        self.observer.measure(from_ns..to_ns);
        let layout = Rc::clone(&self.layout);
        let mut agenda = Agenda::new(&layout);
        let (mut begun, mut shares) = (None, None);
        let mut primed = layout.plan.pace == Pace::Open;
        loop {
            let now = now_ns();
            if now >= from_ns && begun.is_none() {
                begun = Some(OwnUse::now());
            }
            if now >= to_ns && shares.is_none() {
                shares = begun.as_ref().map(OwnUse::shares);
            }
            if now >= start_ns && !primed {
                primed = true;
                self.prime();
            }
            self.follow_up(now, to_ns)?;
            let due = self.act_until(&mut agenda, start_ns, now)?;
            if due.is_none() && now >= to_ns && (self.observer.is_complete(now) || now >= give_up_ns) {
                break;
            }
            let boundary_ns = [start_ns, from_ns, to_ns].into_iter().filter(|at| *at > now).min();
            let wake_ns = due.into_iter().chain(boundary_ns).min().unwrap_or(u64::MAX);
            self.turn(Duration::from_nanos(wake_ns.saturating_sub(now).min(PROGRESS_NS)))?;
        }
        Ok(self.result(shares.unwrap_or_default()))
    }

    /// Does what is due at `now`, and says when the next act is.
    fn act_until(&mut self, agenda: &mut Agenda, start_ns: u64, now: u64) -> Result<Option<u64>> {
        let layout = Rc::clone(&self.layout);
        for _ in 0..ACTS_PER_TURN_MAX {
            let Some(due) = agenda.peek() else { return Ok(None) };
            let due_ns = start_ns + due.after_ns;
            if due_ns > now {
                return Ok(Some(due_ns));
            }
            agenda.take(&layout);
            self.act(due.act, due_ns)?;
        }
        Ok(agenda.peek().map(|due| start_ns + due.after_ns))
    }

    fn act(&mut self, act: Act, intended_ns: u64) -> Result<()> {
        let layout = Rc::clone(&self.layout);
        match act {
            Act::Publish(planned) => self.publish(planned, intended_ns),
            Act::Typing { connection, room } => {
                let Some(local) = layout.local(connection) else { return Ok(()) };
                payload::write_about_room("typing", &layout.room_name(room), &mut self.text);
                self.observer.typed(local, intended_ns);
                self.send_timed(local, intended_ns)
            }
            Act::Receipt { connection, room } => {
                let Some(local) = layout.local(connection) else { return Ok(()) };
                if self.observer.last_id(room).is_empty() {
                    return Ok(()); // nobody has written there yet
                }
                payload::write_receipt(&layout.room_name(room), self.observer.last_id(room), &mut self.text);
                self.observer.record.count(Counted::ReceiptsSent);
                self.send_timed(local, intended_ns)
            }
            Act::Move { connection, what } => match layout.local(connection) {
                Some(local) if self.observer.is_moving(local) => {
                    self.waiting.entry(local).or_default().push_back((what, intended_ns));
                    Ok(())
                }
                Some(local) => self.make_move(local, what, intended_ns),
                None => Ok(()),
            },
        }
    }

    fn make_move(&mut self, local: usize, what: Move, intended_ns: u64) -> Result<()> {
        self.time_send(intended_ns);
        match what {
            Move::Leave => {
                self.leave(local)?;
                // Nobody answers a leave: the next move may begin.
                self.observer.settled.push(local);
                Ok(())
            }
            Move::Join | Move::Read => {
                self.observer.begin_move(local, what, intended_ns);
                self.join(local, what == Move::Join)
            }
            Move::Reconnect => {
                self.observer.begin_move(local, what, intended_ns);
                self.swarm.drop_connection(local);
                self.connect(local)
            }
        }
    }

    /// Starts a closed loop: each own publisher has one message under way.
    fn prime(&mut self) {
        let topology = &self.layout.topology;
        let own =
            (0..topology.all_publishers()).filter(|one| self.layout.local(topology.connection_of(*one)).is_some());
        self.observer.through.extend(own);
    }

    /// In a closed loop: the next message of each publisher whose last one is through.
    fn follow_up(&mut self, now: u64, to_ns: u64) -> Result<()> {
        if self.observer.through.is_empty() {
            return Ok(());
        }
        let layout = Rc::clone(&self.layout);
        for publisher in std::mem::take(&mut self.observer.through) {
            let Some((room, _)) = layout.topology.room_of_publisher(publisher) else { continue };
            if now < to_ns {
                let number = self.numbers[publisher as usize];
                self.numbers[publisher as usize] += 1;
                self.owed += layout.receivers(room);
                self.publish(Planned { room, publisher, number, after_ns: 0 }, now)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, planned: Planned, intended_ns: u64) -> Result<()> {
        let layout = Rc::clone(&self.layout);
        let plan = &layout.plan;
        let Some(local) = layout.local(layout.topology.connection_of(planned.publisher)) else { return Ok(()) };
        let stamp = Stamp { publisher: planned.publisher, number: planned.number, intended_ns };
        match plan.mode {
            Mode::Chat => {
                payload::write_chat(plan.dialect, &layout.room_name(planned.room), stamp, plan.size, &mut self.text);
            }
            Mode::Echo | Mode::Still => payload::write_echo(stamp, plan.size, &mut self.text),
        }
        let now = now_ns();
        let sent = self.swarm.send(local, self.text.as_bytes())?;
        // What waits for a slow reader will be sent, but not when it was meant to.
        self.sent += u64::from(sent != Sent::Gone);
        if self.window.contains(&intended_ns) {
            self.scheduled_in_window += 1;
            self.sent_in_window += u64::from(sent == Sent::Kernel && now < self.window.end);
            self.observer.record.time(Timed::SendLag, now.saturating_sub(intended_ns));
        }
        Ok(())
    }

    /// Sends what is neither a message nor in the ledger.
    fn send_timed(&mut self, local: usize, intended_ns: u64) -> Result<()> {
        self.time_send(intended_ns);
        self.swarm.send(local, self.text.as_bytes())?;
        Ok(())
    }

    fn time_send(&mut self, intended_ns: u64) {
        if self.window.contains(&intended_ns) {
            self.observer.record.time(Timed::SendLag, now_ns().saturating_sub(intended_ns));
        }
    }

    fn result(&mut self, (cpu_share, waiting_share): (f64, f64)) -> WorkerResult {
        let unfinished = self.observer.moving() + self.waiting.values().map(VecDeque::len).sum::<usize>();
        for _ in 0..unfinished {
            self.observer.record.count(Counted::MovesUnfinished);
        }
        let is_closed_loop = self.layout.plan.pace == Pace::Closed;
        let (mut deliveries, mut acks) = (self.observer.deliveries.counts(), self.observer.acks.counts());
        if is_closed_loop {
            // Summed over the workers this is what all of them had to get.
            deliveries.expected = self.owed;
            let acked = self.layout.plan.mode == Mode::Chat && self.layout.plan.dialect.acks();
            acks.expected = if acked { self.sent } else { 0 };
        }
        let scheduled = match self.layout.plan.mode {
            Mode::Still => 0,
            Mode::Chat | Mode::Echo if is_closed_loop => self.sent,
            Mode::Chat | Mode::Echo => self.layout.scheduled(),
        };
        WorkerResult {
            scheduled,
            sent: self.sent,
            scheduled_in_window: self.scheduled_in_window,
            sent_in_window: self.sent_in_window,
            arrived_in_window: self.observer.arrived_in_window,
            times: self.observer.record.times(),
            counts: self.observer.record.counts(),
            deliveries,
            acks,
            closed: self.observer.closed.clone().into_iter().collect(),
            complaints: self.observer.complaints.clone().into_iter().collect(),
            cpu_share,
            waiting_share,
        }
    }
}
