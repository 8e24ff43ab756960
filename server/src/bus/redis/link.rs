//! The command connection: pipelines out, answers in, in order; reconnects by itself.
//!
//! A batch is one pipeline. Several may be under way; their answers are taken in the order in which they were sent. An
//! answer that does not come within the timeout ends the connection, and everything under way on it is answered with
//! `Failed`: what Redis still says to it goes nowhere, so it can never be taken for the answer to something else.
//!
//! While there is no connection nothing is queued here: the bus refuses at once.

use super::commands::{Asked, Kind, reply};
use super::config::Address;
use super::connect::{ConnectError, NoPush, Session, check, load_scripts, open, text, with_master};
use super::foreign::{self, is_wrong_type};
use super::order::CallId;
use super::shared::{Inward, Shared, back_off};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, ServerError, Value};
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// The most pipelines on their way at once.
const PIPELINES_MAX: usize = 16;
/// The most batches that wait for their turn.
const BATCHES_MAX: usize = 32;
/// How often an idle connection is tried, and the nodes' key looked after.
const BEAT: Duration = Duration::from_secs(1);
/// What the key of the nodes is called.
const KEY_NAME: &str = "rw:key";

/// To whom a link leads.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The master, wherever it is. Whoever finds out that it is elsewhere tells it here.
    Master(watch::Sender<Option<Address>>),
    /// This node of a cluster.
    Node(Address),
}

/// One command on its way.
#[derive(Debug)]
pub(super) struct Call {
    /// Pairs it with its answer; 0 where none is wanted.
    pub(super) id: CallId,
    /// What was asked.
    pub(super) asked: Asked,
    /// The command.
    pub(super) command: Cmd,
}

/// The bus's end of a command connection.
#[derive(Debug)]
pub(super) struct Link {
    batches: mpsc::Sender<Vec<Call>>,
    state: Arc<LinkState>,
}

/// What both ends see.
#[derive(Debug, Default)]
struct LinkState {
    is_up: AtomicBool,
    retry_ms: AtomicU32,
}

impl Link {
    /// Starts the connection's task on the current runtime.
    #[must_use]
    pub(super) fn start(shared: Arc<Shared>, session: Option<Session>, target: Target) -> Link {
        let (batches, receiver) = mpsc::channel(BATCHES_MAX);
        let state = LinkState { is_up: AtomicBool::new(session.is_some()), retry_ms: AtomicU32::default() };
        let state = Arc::new(state);
        let part = match &target {
            Target::Master(_) => "commands".to_owned(),
            Target::Node(address) => format!("commands to {address}"),
        };
        let task = Task { shared, batches: receiver, state: Arc::clone(&state), target, part };
        tokio::spawn(task.run(session));
        Link { batches, state }
    }

    /// Whether there is a connection.
    #[must_use]
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up.load(Ordering::Relaxed)
    }

    /// When trying again may help.
    #[must_use]
    pub(super) fn retry_after_ms(&self) -> u32 {
        self.state.retry_ms.load(Ordering::Relaxed).max(100)
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// The batch, where there is no connection or too much waits for it.
    pub(super) fn send(&self, batch: Vec<Call>) -> Result<(), Vec<Call>> {
        if !self.is_up() {
            return Err(batch);
        }
        self.batches.try_send(batch).map_err(mpsc::error::TrySendError::into_inner)
    }
}

/// The connection's side.
struct Task {
    shared: Arc<Shared>,
    batches: mpsc::Receiver<Vec<Call>>,
    state: Arc<LinkState>,
    target: Target,
    /// What it is called in troubles.
    part: String,
}

impl Drop for Task {
    fn drop(&mut self) {
        // A node that left the cluster is no trouble.
        self.shared.works(&self.part);
    }
}

/// Why a connection is no longer served.
enum End {
    /// The bus is gone.
    Closed,
    /// It broke, or must be left.
    Lost(String),
}

type Answers = Pin<Box<dyn Future<Output = (Pipeline, Result<Vec<Value>, RedisError>)> + Send>>;

/// A pipeline under way; the beat's has no calls.
struct Flight {
    calls: Vec<(CallId, Asked)>,
    began: Instant,
    answers: Answers,
}

impl Task {
    async fn run(mut self, mut first: Option<Session>) {
        let mut failures = 0;
        let mut has_broken = first.is_none();
        loop {
            let connected = match first.take() {
                Some(session) => Ok(session),
                None => connect(&self.shared, &self.target).await,
            };
            let cause = match connected {
                Ok(session) => {
                    failures = 0;
                    self.up(&session.address);
                    if std::mem::replace(&mut has_broken, true) {
                        let _ = self.shared.inward.send(Inward::Event(BusEvent::Works)).await;
                    }
                    match self.serve(session).await {
                        End::Closed => return,
                        End::Lost(cause) => cause,
                    }
                }
                Err(error) => error.text().to_owned(),
            };
            self.down(&cause).await;
            let wait = back_off(failures);
            failures += 1;
            self.state.retry_ms.store(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            if self.batches.is_closed() {
                return;
            }
        }
    }

    fn up(&self, address: &Address) {
        self.shared.works(&self.part);
        self.state.is_up.store(true, Ordering::Relaxed);
        if let Target::Master(place) = &self.target {
            place.send_replace(Some(address.clone()));
        }
        tracing::info!(%address, "commands go to Redis");
    }

    /// Nothing is taken any more; what waits is answered.
    async fn down(&mut self, cause: &str) {
        self.left(cause);
        while let Ok(batch) = self.batches.try_recv() {
            let calls = batch.into_iter().map(|call| (call.id, call.asked)).collect();
            self.fail(calls).await;
        }
    }

    fn left(&self, cause: &str) {
        self.shared.trouble(&self.part, cause);
        self.shared.doubt_topology.notify_one();
        if self.state.is_up.swap(false, Ordering::Relaxed) {
            self.shared.count(|figures| figures.reconnects_total += 1);
        }
    }

    async fn fail(&self, calls: Vec<(CallId, Asked)>) {
        let retry_after_ms = self.state.retry_ms.load(Ordering::Relaxed).max(100);
        self.shared.count(|figures| figures.failures_total += calls.len() as u64);
        let again: Vec<BusRequest> = calls.iter().filter_map(|(_, asked)| asked.again()).collect();
        if !again.is_empty() {
            let _ = self.shared.inward.send(Inward::Again(again)).await;
        }
        let failed = |(id, asked): (CallId, Asked)| (id, BusReply::Failed { room: asked.room, retry_after_ms });
        self.answer(calls.into_iter().map(failed).collect()).await;
    }

    async fn answer(&self, answers: Vec<(CallId, BusReply)>) {
        let answers: Vec<_> = answers.into_iter().filter(|(id, _)| *id != 0).collect();
        if !answers.is_empty() {
            // Closed only when the bus is gone.
            let _ = self.shared.inward.send(Inward::Answered(answers)).await;
        }
    }

    async fn serve(&mut self, session: Session) -> End {
        let Session { mut connection, address } = session;
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut place = match &self.target {
            Target::Master(place) => Some(place.subscribe()),
            Target::Node(_) => None,
        };
        let end = loop {
            let may_send = flights.len() < PIPELINES_MAX;
            tokio::select! {
                biased;
                (pipeline, result) = front(&mut flights), if !flights.is_empty() => {
                    let Some(flight) = flights.pop_front() else { continue };
                    if let Some(end) = self.landed(&mut connection, flight, &pipeline, result).await {
                        break end;
                    }
                }
                batch = self.batches.recv(), if may_send => match batch {
                    Some(batch) => flights.push_back(self.send(&connection, batch).await),
                    None => break End::Closed,
                },
                now = moved(&mut place) => {
                    if now.is_some_and(|now| now != address) {
                        break End::Lost(format!("the master is no longer at {address}"));
                    }
                }
                _ = ticks.tick(), if may_send => {
                    flights.push_back(self.launch(&connection, Vec::new(), beat(&self.shared)).await);
                }
            }
        };
        // Dropping the connection first: what it still answers goes nowhere.
        drop(connection);
        if let End::Lost(cause) = &end {
            self.left(cause);
        }
        for flight in flights {
            self.fail(flight.calls).await;
        }
        end
    }

    /// Puts a batch on its way.
    async fn send(&self, connection: &MultiplexedConnection, batch: Vec<Call>) -> Flight {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        let mut calls = Vec::with_capacity(batch.len());
        for call in batch {
            pipeline.add_command(call.command);
            calls.push((call.id, call.asked));
        }
        self.shared.count(|figures| {
            figures.pipelines_total += 1;
            figures.commands_total += calls.len() as u64;
        });
        self.launch(connection, calls, pipeline).await
    }

    async fn launch(
        &self,
        connection: &MultiplexedConnection,
        calls: Vec<(CallId, Asked)>,
        pipeline: Pipeline,
    ) -> Flight {
        let mut connection = connection.clone();
        let mut answers: Answers = Box::pin(async move {
            let result = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await;
            (pipeline, result)
        });
        // The first look hands the pipeline to the connection, so that pipelines leave in this order.
        let early = poll_fn(|context| match answers.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        let answers = match early {
            Some(outcome) => Box::pin(std::future::ready(outcome)),
            None => answers,
        };
        Flight { calls, began: Instant::now(), answers }
    }

    /// A pipeline was answered, or was not.
    async fn landed(
        &self,
        connection: &mut MultiplexedConnection,
        Flight { calls, began, .. }: Flight,
        pipeline: &Pipeline,
        result: Result<Vec<Value>, RedisError>,
    ) -> Option<End> {
        let mut values = match result {
            Ok(values) if calls.is_empty() => return learn_key(&self.shared, &values).err().map(End::Lost),
            Ok(values) if values.len() == calls.len() => values,
            Ok(_) => {
                self.fail(calls).await;
                return Some(End::Lost("Redis answered another number of commands than were sent".to_owned()));
            }
            Err(error) => {
                self.fail(calls).await;
                return Some(End::Lost(lost(&error)));
            }
        };
        self.shared.count(|figures| {
            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            figures.pipeline_us.saturating_record(us);
        });
        if let Err(error) = self.send_unknown_again(connection, pipeline, &mut values).await {
            self.fail(calls).await;
            return Some(End::Lost(lost(&error)));
        }
        let mut end = None;
        let mut failures = 0;
        let mut answers = Vec::with_capacity(calls.len());
        for (((id, asked), value), command) in calls.into_iter().zip(values).zip(pipeline.cmd_iter()) {
            let is_foreign = is_wrong_type(&value);
            if is_foreign {
                foreign::name(&self.shared, connection, command);
            }
            if matches!(asked.kind, Kind::Ephemeral | Kind::LogRead { .. }) {
                continue;
            }
            if is_foreign {
                answers.push((id, BusReply::Refused { room: asked.room }));
                continue;
            }
            let answer = reply(&asked, &value).unwrap_or_else(|| {
                failures += 1;
                end = end.take().or(self.refused(&asked, &value));
                BusReply::Failed { room: asked.room, retry_after_ms: 200 }
            });
            answers.push((id, answer));
        }
        if failures == 0 {
            self.shared.works("scripts");
        } else {
            self.shared.count(|figures| figures.failures_total += failures);
        }
        self.answer(answers).await;
        end
    }

    /// After `SCRIPT FLUSH` Redis runs none of the scripts that it does not know: they are loaded, and sent again.
    async fn send_unknown_again(
        &self,
        connection: &mut MultiplexedConnection,
        pipeline: &Pipeline,
        values: &mut [Value],
    ) -> Result<(), RedisError> {
        let is_unknown = |value: &Value| matches!(value, Value::ServerError(error) if error.code() == "NOSCRIPT");
        let unknown: Vec<usize> = (0..values.len()).filter(|index| is_unknown(&values[*index])).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.shared.count(|figures| figures.scripts_reloaded_total += 1);
        load_scripts(connection).await?;
        let mut again = Pipeline::with_capacity(unknown.len());
        for command in pipeline.cmd_iter().enumerate().filter(|(index, _)| unknown.contains(index)) {
            again.add_command(command.1.clone());
        }
        let fresh = connection.send_packed_commands(&again, 0, unknown.len()).await?;
        for (index, value) in unknown.into_iter().zip(fresh) {
            values[index] = value;
        }
        Ok(())
    }

    /// Redis refused one command. Some refusals say that this is not the server to ask.
    fn refused(&self, asked: &Asked, value: &Value) -> Option<End> {
        let Value::ServerError(error) = value else {
            self.shared.trouble("scripts", &format!("Redis answered {:?} with something unexpected", asked.kind));
            return None;
        };
        let said = describe(error);
        match error.code() {
            "READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" => Some(End::Lost(said)),
            "MOVED" | "ASK" | "TRYAGAIN" if self.shared.is_cluster() => {
                self.shared.doubt_topology.notify_one();
                None
            }
            _ => {
                self.shared.trouble("scripts", &said);
                None
            }
        }
    }
}

/// Connects, checks the server, and learns the nodes' key.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn connect(shared: &Shared, target: &Target) -> Result<Session, ConnectError> {
    match target {
        Target::Master(_) => with_master(shared, |address| connect_to(shared, address)).await,
        Target::Node(address) => connect_to(shared, address.clone()).await,
    }
}

async fn connect_to(shared: &Shared, address: Address) -> Result<Session, ConnectError> {
    let config = &shared.config;
    let connection = open(config, &address, &config.login, config.database, None::<NoPush>).await?;
    let mut session = Session { connection, address };
    check(config, &shared.dialect, &mut session).await?;
    let values = session.connection.send_packed_commands(&beat(shared), 0, 2).await;
    learn_key(shared, &values.map_err(|error| ConnectError::Away(lost(&error)))?).map_err(ConnectError::Away)?;
    Ok(session)
}

/// Finds a dead or demoted server where no command would, and looks after the nodes' key.
fn beat(shared: &Shared) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("SET").arg(KEY_NAME).arg(&*shared.key_offered()).arg("NX").cmd("GET").arg(KEY_NAME);
    pipeline
}

fn learn_key(shared: &Shared, values: &[Value]) -> Result<(), String> {
    for value in values {
        match value {
            // The key lies on another node of the cluster, whose own link learns it.
            Value::ServerError(error) if error.code() == "MOVED" && shared.is_cluster() => return Ok(()),
            value if is_wrong_type(value) => {
                return Err(format!("Redis: {KEY_NAME} is no string but a key of another application: DEL it"));
            }
            Value::ServerError(error) => return Err(describe(error)),
            _ => {}
        }
    }
    // None if it was removed between the two commands: the next beat sets it again.
    if let Some(key) = values.get(1).and_then(text) {
        shared.set_key(key);
    }
    Ok(())
}

/// Where the master is now, when it was told that it is elsewhere.
pub(super) async fn moved(place: &mut Option<watch::Receiver<Option<Address>>>) -> Option<Address> {
    if let Some(place) = place
        && place.changed().await.is_ok()
    {
        return place.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The first flight's answer.
async fn front(flights: &mut VecDeque<Flight>) -> (Pipeline, Result<Vec<Value>, RedisError>) {
    match flights.front_mut() {
        Some(flight) => flight.answers.as_mut().await,
        None => std::future::pending().await,
    }
}

fn lost(error: &RedisError) -> String {
    if error.is_timeout() {
        "Redis does not answer in time (bus.redis.timeout_ms)".to_owned()
    } else {
        format!("the connection to Redis is lost: {error}")
    }
}

/// A refusal in words, with the cure where we know one.
fn describe(error: &ServerError) -> String {
    let details = error.details().unwrap_or_default();
    let said = format!("Redis refuses: {} {details}", error.code());
    match error.code() {
        "OOM" => format!("{said}: raise maxmemory"),
        "NOPERM" => format!("{said}: grant what docs/operations.md lists"),
        _ => said,
    }
}
