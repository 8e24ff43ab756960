//! Presence and rosters on Redis: `roomwire_engine::cluster`'s requests, on a connection of their own, so that a mass of
//! users who come at once never stands before a message.
//!
//! One task keeps the connection, on a cluster one to each master; one task for each kind of request carries them out one after the other, since the
//! contract wants the order kept within a kind. Without a connection each request is answered at once with "unknown".
//!
//! `calls` are requests as pipelines, `scripts` the Lua files, `lease` who may run, `reap` what a dead node left behind.

mod calls;
mod lease;
mod reap;
mod scripts;

pub(super) use calls::PRESENCE_CHANNEL;
pub use lease::NodeCard;

use super::cluster::{Range, slot, topology};
use super::config::Address;
use super::connect::{ConnectError, NoPush, open, with_master};
use super::foreign::{self, is_wrong_type};
use super::shared::{Inward, Shared, back_off};
use calls::{CALL_USERS_MAX, Calls};
use lease::{Answer, LOOK, LOOKS_MAX, SKEW_MS_MAX, What, beat, clock_ms};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, Value};
use roomwire_engine::cluster::{ClusterReply, ClusterRequest, Life};
use roomwire_engine::names::RoomId;
use scripts::{NODES_TAG, Tagged};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// Requests of one kind that wait; the engine has one of each under way, apart from rosters that clients ask for.
const REQUESTS_MAX: usize = 4_096;
/// The most rosters that one pipeline asks for.
const ROSTERS_MAX: usize = 64;
/// The least time between two words about a clock that is off.
const CLOCK_WORD: Duration = Duration::from_secs(60);
const PART: &str = "presence";

/// The bus' end.
#[derive(Debug)]
pub(super) struct Presence {
    beats: mpsc::Sender<ClusterRequest>,
    users: mpsc::Sender<ClusterRequest>,
    rosters: mpsc::Sender<ClusterRequest>,
    asks: mpsc::Sender<ClusterRequest>,
    reaps: mpsc::Sender<ClusterRequest>,
    part: Arc<Part>,
}

/// What the tasks share.
#[derive(Debug)]
struct Part {
    shared: Arc<Shared>,
    card: NodeCard,
    session: Mutex<Option<Arc<Session>>>,
    /// The connection failed.
    broken: Notify,
    /// The number of the life that last beat, for the farewell.
    life: AtomicU32,
    /// What this Redis' memory is called, where it has no name yet.
    memory: String,
}

/// The connections, and of a cluster who serves what.
#[derive(Debug)]
struct Session {
    servers: Vec<(MultiplexedConnection, Address)>,
    ranges: Vec<Range>,
}

impl Session {
    fn serves(&self, address: &Address, tag: &str) -> bool {
        let slot = slot(tag);
        let is_in = |range: &&Range| (usize::from(range.first)..=usize::from(range.last)).contains(&slot);
        self.ranges.iter().find(is_in).is_some_and(|range| range.master == *address)
    }
}

/// Ends when the master is another than the one that is asked.
async fn moved(place: &mut Option<watch::Receiver<Option<Address>>>, session: &Session) {
    let Some(place) = place else { return std::future::pending().await };
    while place.changed().await.is_ok() {
        let now = place.borrow_and_update().clone();
        if now.is_some_and(|now| session.servers.iter().all(|(_, address)| *address != now)) {
            return;
        }
    }
    // The bus is gone.
}

impl Presence {
    /// Takes the lease if Redis is there, and starts the tasks.
    ///
    /// # Errors
    /// Another process stands in the way: one line with cause and cure.
    pub(super) async fn start(
        shared: Arc<Shared>,
        card: NodeCard,
        place: Option<watch::Receiver<Option<Address>>>,
    ) -> Result<Presence, String> {
        let memory = super::vouch::new_key().map_err(|error| format!("no random numbers: {error}"))?;
        let part = Arc::new(Part {
            shared,
            card,
            session: Mutex::new(None),
            broken: Notify::new(),
            life: AtomicU32::new(1),
            memory,
        });
        match part.connect().await {
            Ok(session) => {
                part.acquire(&session).await?;
                part.set(Some(Arc::new(session)));
            }
            // The first beats take the lease.
            Err(error) => part.shared.trouble(PART, error.text()),
        }
        tokio::spawn(Arc::clone(&part).keep(place));
        let worker = || {
            let (sender, requests) = mpsc::channel(REQUESTS_MAX);
            tokio::spawn(Arc::clone(&part).work(requests));
            sender
        };
        Ok(Presence { beats: worker(), users: worker(), rosters: worker(), asks: worker(), reaps: worker(), part })
    }

    /// Takes a request. Its answer comes through the bus' lane.
    ///
    /// # Errors
    /// The answer at once, where too many wait.
    pub(super) fn ask(&self, request: ClusterRequest) -> Result<(), ClusterReply> {
        let lane = match &request {
            ClusterRequest::Beat { .. } => &self.beats,
            ClusterRequest::Users { .. } => &self.users,
            ClusterRequest::Rosters { .. } => &self.rosters,
            ClusterRequest::AskUsers { .. } | ClusterRequest::AskRoster { .. } => &self.asks,
            ClusterRequest::Reap { .. } => &self.reaps,
        };
        lane.try_send(request).map_err(|error| error.into_inner().unanswered())
    }

    /// Gives the lease back: the others take over what is left.
    pub(super) async fn leave(&self) {
        let part = &self.part;
        let life = Life { boot: part.card.boot, number: part.life.load(Ordering::Relaxed) };
        let farewell = beat(&part.card, life, What::Leave, false, &part.memory);
        if let Err(cause) = part.command(NODES_TAG, farewell).await {
            tracing::warn!(cause, "the lease could not be given back: the other nodes take 25 s to notice");
        }
    }
}

impl Part {
    // The connections.

    /// To the master, or to each master of a cluster.
    async fn connect(&self) -> Result<Session, ConnectError> {
        if !self.shared.is_cluster() {
            return with_master(&self.shared, |address| async move {
                Ok(Session { servers: vec![(self.open(&address).await?, address)], ranges: Vec::new() })
            })
            .await;
        }
        let ranges = topology(&self.shared).await?;
        let mut servers: Vec<(MultiplexedConnection, Address)> = Vec::new();
        for range in &ranges {
            if !servers.iter().any(|(_, address)| *address == range.master) {
                servers.push((self.open(&range.master).await?, range.master.clone()));
            }
        }
        Ok(Session { servers, ranges })
    }

    async fn open(&self, address: &Address) -> Result<MultiplexedConnection, ConnectError> {
        let config = &self.shared.config;
        let mut connection = open(config, address, &config.login, config.database, None::<NoPush>).await?;
        let loaded = scripts::load().query_async::<Vec<String>>(&mut connection).await;
        loaded.map_err(|error| ConnectError::Away(format!("Redis at {address}: {error}")))?;
        Ok(connection)
    }

    /// Keeps the connections for as long as the bus lives.
    async fn keep(self: Arc<Self>, mut place: Option<watch::Receiver<Option<Address>>>) {
        let mut failures = 0;
        while !self.shared.inward.is_closed() {
            if let Some(session) = self.session() {
                self.shared.works(PART);
                failures = 0;
                tokio::select! {
                    () = self.broken.notified() => {}
                    () = moved(&mut place, &session) => {}
                }
                self.set(None);
            }
            match self.connect().await {
                Ok(session) => self.set(Some(Arc::new(session))),
                Err(error) => {
                    self.shared.trouble(PART, error.text());
                    tokio::time::sleep(back_off(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    fn set(&self, session: Option<Arc<Session>>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many users one script call may have.
    fn at_once(&self) -> usize {
        if self.shared.is_cluster() { 1 } else { CALL_USERS_MAX }
    }

    /// The answers to what is asked, in order. On one server all is one pipeline.
    async fn send(&self, calls: &Calls) -> Result<Vec<Value>, String> {
        let session = self.session().ok_or("no connection to Redis")?;
        self.send_on(&session, calls).await
    }

    async fn send_on(&self, session: &Session, calls: &Calls) -> Result<Vec<Value>, String> {
        if let [(connection, _)] = &session.servers[..] {
            let all = calls.before.iter().chain(&calls.asked).chain(&calls.after);
            let values = self.send_to(connection.clone(), all).await?;
            return Ok(values.into_iter().skip(calls.before.len()).take(calls.asked.len()).collect());
        }
        self.send_step(session, &calls.before).await?;
        let values = self.send_step(session, &calls.asked).await?;
        self.send_step(session, &calls.after).await?;
        Ok(values)
    }

    /// One step on a cluster: each node gets its part.
    async fn send_step(&self, session: &Session, step: &[Tagged]) -> Result<Vec<Value>, String> {
        let mut values = vec![Value::Nil; step.len()];
        for (connection, address) in &session.servers {
            let is_its = |(_, call): &(usize, &Tagged)| session.serves(address, &call.tag);
            let part: Vec<(usize, &Tagged)> = step.iter().enumerate().filter(is_its).collect();
            if part.is_empty() {
                continue;
            }
            let answers = self.send_to(connection.clone(), part.iter().map(|(_, call)| *call)).await?;
            for ((at, _), answer) in part.into_iter().zip(answers) {
                values[at] = answer;
            }
        }
        Ok(values)
    }

    /// Loads the scripts again where the server has lost them.
    async fn send_to<'c>(
        &self,
        mut connection: MultiplexedConnection,
        calls: impl Iterator<Item = &'c Tagged>,
    ) -> Result<Vec<Value>, String> {
        let mut pipeline = Pipeline::new();
        calls.for_each(|call| {
            pipeline.add_command(call.command.clone());
        });
        for is_last in [false, true] {
            let values = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await;
            let values = values.map_err(|error| self.lost(&error))?;
            let refusal = values.iter().find_map(|value| match value {
                Value::ServerError(error) if !is_wrong_type(value) => Some(error),
                _ => None,
            });
            match refusal {
                None => {
                    // What a key of another application stands for is unknown; all else goes on.
                    for (value, command) in values.iter().zip(pipeline.cmd_iter()) {
                        if is_wrong_type(value) {
                            foreign::name(&self.shared, &connection, command);
                        }
                    }
                    return Ok(values);
                }
                Some(error) if error.code() == "NOSCRIPT" && !is_last => {
                    let again = scripts::load().query_async::<Vec<String>>(&mut connection).await;
                    again.map_err(|error| self.lost(&error))?;
                }
                Some(error) => {
                    let said = format!("Redis refuses: {} {}", error.code(), error.details().unwrap_or_default());
                    self.shared.trouble(PART, &said);
                    self.broken.notify_one();
                    return Err(said);
                }
            }
        }
        Err("Redis loses the scripts as they are loaded".to_owned())
    }

    async fn command(&self, tag: impl Into<String>, command: Cmd) -> Result<Value, String> {
        self.send(&Calls::one(tag, command)).await?.pop().ok_or_else(|| "Redis gave no answer".to_owned())
    }

    fn lost(&self, error: &RedisError) -> String {
        let said = format!("the connection to Redis is lost: {error}");
        self.shared.trouble(PART, &said);
        self.broken.notify_one();
        said
    }

    // The requests.

    async fn work(self: Arc<Self>, mut requests: mpsc::Receiver<ClusterRequest>) {
        while let Some(request) = requests.recv().await {
            let replies = if let ClusterRequest::AskRoster { room } = request {
                let mut rooms = vec![room];
                let mut other = None;
                while rooms.len() < ROSTERS_MAX && other.is_none() {
                    match requests.try_recv() {
                        Ok(ClusterRequest::AskRoster { room }) => rooms.push(room),
                        Ok(request) => other = Some(request),
                        Err(_) => break,
                    }
                }
                let mut replies = self.rosters_are(rooms).await;
                if let Some(request) = other {
                    replies.push(self.answer(request).await);
                }
                replies
            } else {
                vec![self.answer(request).await]
            };
            for reply in replies {
                if self.shared.inward.send(Inward::Cluster(reply)).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn answer(&self, request: ClusterRequest) -> ClusterReply {
        match request {
            ClusterRequest::Beat { life, take, walking } => ClusterReply::Beaten(self.beat(life, take, walking).await),
            ClusterRequest::Users { life, changes } => {
                let calls = calls::users(&self.card, self.at_once(), life, &changes);
                let counts = self.asked(&calls, |values| calls::users_answer(values, changes.len())).await;
                for (change, count) in changes.iter().zip(counts.iter().flatten()) {
                    if count.is_none() {
                        // For its name in the log.
                        let _ = self.send(&calls::look_at_nodes(&change.user)).await;
                    }
                }
                ClusterReply::Users(counts.map(|counts| counts.into_iter().map(Option::unwrap_or_default).collect()))
            }
            ClusterRequest::Rosters { life, rooms } => {
                let calls = calls::rosters(&self.card, &self.shared.dialect, life, &rooms);
                ClusterReply::Rosters(self.asked(&calls, |values| calls::rosters_answer(values, rooms.len())).await)
            }
            ClusterRequest::AskUsers { users } => {
                let calls = calls::ask_users(&users);
                ClusterReply::UsersAre(self.asked(&calls, |values| calls::users_are(values, users.len())).await)
            }
            ClusterRequest::Reap { dead } => ClusterReply::Reaped(self.reap(&dead).await),
            ClusterRequest::AskRoster { .. } => request.unanswered(),
        }
    }

    async fn asked<T>(&self, calls: &Calls, read: impl FnOnce(&[Value]) -> Option<T>) -> Option<T> {
        let answer = read(&self.send(calls).await.ok()?);
        if answer.is_none() {
            self.shared.trouble(PART, "Redis answered something unexpected");
        }
        answer
    }

    async fn rosters_are(&self, rooms: Vec<RoomId>) -> Vec<ClusterReply> {
        let calls = calls::ask_rosters(&rooms);
        let values = self.send(&calls).await.unwrap_or_default();
        let mut answers = values.iter().map(calls::roster);
        // Where nothing came back, each is answered with nothing.
        rooms.into_iter().map(|room| ClusterReply::Roster { room, answer: answers.next().flatten() }).collect()
    }

    // The lease.

    async fn beat(&self, life: Life, take: bool, walking: bool) -> Option<roomwire_engine::cluster::Beaten> {
        let what = if take { What::Take { over: "" } } else { What::Beat };
        let sent_ms = clock_ms();
        let value = self.command(NODES_TAG, beat(&self.card, life, what, walking, &self.memory)).await.ok()?;
        let answer = Answer::of(&value)?;
        if answer.is_held() {
            self.life.store(life.number, Ordering::Relaxed);
        }
        let beaten = answer.beaten(&self.card, sent_ms, clock_ms());
        self.judge_clock(beaten.clock_ahead_ms);
        Some(beaten)
    }

    fn judge_clock(&self, ahead_ms: i64) {
        // One task beats, so nothing is said twice.
        static SAID: Mutex<Option<Instant>> = Mutex::new(None);
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead_ms.abs() > SKEW_MS_MAX && said.is_none_or(|at| at.elapsed() >= CLOCK_WORD) {
            *said = Some(Instant::now());
            tracing::warn!(
                ahead_ms,
                "the clock of the Redis machine and that of this one differ: timestamps of messages will too; run an NTP client \
                 (chrony, systemd-timesyncd) on both"
            );
        }
    }

    /// Takes the lease before anything else starts.
    async fn acquire(&self, session: &Session) -> Result<(), String> {
        let life = Life { boot: self.card.boot, number: 1 };
        let (mut over, mut seen) = (String::new(), None);
        for look in 0..LOOKS_MAX {
            let call = beat(&self.card, life, What::Take { over: &over }, false, &self.memory);
            let answer = match self.send_on(session, &Calls::one(NODES_TAG, call)).await {
                Ok(values) => {
                    let answer = values.first().and_then(Answer::of);
                    answer.ok_or("Redis answered the node's first beat with something unexpected")?
                }
                // The beats to come take the lease.
                Err(_) => return Ok(()),
            };
            if answer.is_held() {
                return Ok(());
            }
            if answer.is_left_behind() && over != answer.other_life {
                over = answer.other_life;
                continue;
            }
            let refusal = answer.refusal(&self.card);
            match &seen {
                None => tracing::info!("{refusal}. It may be dead: waiting for its next beat, or 25 s without one"),
                Some(beat) if *beat != answer.other_beat => return Err(refusal),
                Some(_) if look + 1 == LOOKS_MAX => return Err(refusal),
                Some(_) => {}
            }
            seen = Some(answer.other_beat);
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}
