//! The subscriber connection: hears `rw:ctl` and the channel of every room that this node listens to; reconnects by itself
//! and subscribes again, in chunks.
//!
//! A subscription is answered only when Redis has confirmed it. After a break `BusEvent::Lost` tells the bridge to look at
//! the head of every room, since what was said meanwhile was not heard; so it does when more came than the bridge took.
//!
//! The connection reads on whatever the bridge does: Redis drops a subscriber that does not.

use super::commands::CONTROL_CHANNEL;
use super::config::Address;
use super::connect::{ConnectError, open, text, with_master};
use super::link::{Target, moved};
use super::payload::{Dropped, presence};
use super::presence::PRESENCE_CHANNEL;
use super::shared::{Inward, Shared, back_off};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, RedisError, Value};
use roomwire_engine::bus::{BusEvent, BusReply};
use roomwire_engine::names::RoomId;
use roomwire_wire::id::is_room_id;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Channels in one command.
const CHUNK_CHANNELS_MAX: usize = 512;
/// What was heard and waits for the bridge, at most; beyond, it is dropped and the heads are looked at.
const HEARD_MESSAGES_MAX: usize = 16_384;
const HEARD_BYTES_MAX: usize = 64 << 20;
/// Orders from the bus that wait, at most; beyond, a subscription fails at once.
const ORDERS_MAX: usize = 65_536;
/// How often the connection is tried.
const BEAT: Duration = Duration::from_secs(1);
/// How often late subscriptions are looked for while there is no connection.
const LATE_LOOK: Duration = Duration::from_millis(250);
/// The most looks at a head that foreign messages may cause in a second, of all rooms.
const DOUBTS_PER_SECOND_MAX: u32 = 50;

/// What the bus orders.
#[derive(Debug)]
pub(super) enum Order {
    /// Hear a room.
    Subscribe(RoomId),
    /// Hear it no longer.
    Unsubscribe(RoomId),
}

/// The bus's end of the subscriber.
#[derive(Debug)]
pub(super) struct Subscriber {
    orders: mpsc::Sender<Order>,
    state: Arc<State>,
}

/// What both ends see.
#[derive(Debug, Default)]
struct State {
    is_up: AtomicBool,
    rooms: AtomicUsize,
}

impl Subscriber {
    /// Starts the connection's task on the current runtime. `place` tells where the master is.
    #[must_use]
    pub(super) fn start(shared: Arc<Shared>, target: &Target) -> Subscriber {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let state = Arc::new(State::default());
        let (place, node, part) = match target {
            Target::Master(place) => (Some(place.subscribe()), None, "events".to_owned()),
            Target::Node(address) => (None, Some(address.clone()), format!("events of {address}")),
        };
        let task = Task {
            shared,
            orders: receiver,
            place,
            node,
            part,
            state: Arc::clone(&state),
            rooms: HashMap::new(),
            leaving: Vec::new(),
            doubts: (Instant::now(), 0),
            has_been_up: false,
        };
        tokio::spawn(task.run());
        Subscriber { orders, state }
    }

    /// Whether everything that was said reaches this node.
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up.load(Ordering::Relaxed)
    }

    /// How many rooms it listens to.
    pub(super) fn rooms(&self) -> usize {
        self.state.rooms.load(Ordering::Relaxed)
    }

    /// Orders something.
    ///
    /// # Errors
    /// The order, where too many wait.
    pub(super) fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(mpsc::error::TrySendError::into_inner)
    }
}

/// How far the subscription of a room is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be sent.
    Wanted,
    /// Sent.
    Asked,
    /// Confirmed by Redis.
    Confirmed,
}

/// A room that the node listens to.
#[derive(Debug)]
struct Listening {
    stage: Stage,
    /// Somebody waits for the confirmation since then.
    waits: Option<Instant>,
}

/// What the connection's own task leaves for ours.
struct Heard {
    messages: mpsc::Receiver<PushInfo>,
    bytes: Arc<AtomicUsize>,
    overflowed: Arc<AtomicBool>,
}

struct Task {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    place: Option<watch::Receiver<Option<Address>>>,
    /// The cluster node to listen on, with sharded channels.
    node: Option<Address>,
    /// What it is called in troubles.
    part: String,
    state: Arc<State>,
    rooms: HashMap<RoomId, Listening>,
    /// Channels to be left.
    leaving: Vec<String>,
    /// When the second of the last doubts began, and how many there were.
    doubts: (Instant, u32),
    has_been_up: bool,
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

impl Task {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let connecting = connect(Arc::clone(&self.shared), self.node.clone());
            let Some(connected) = self.meanwhile(connecting).await else { return };
            let cause = match connected {
                Ok((connection, heard, address)) => match self.serve(connection, heard, &address).await {
                    End::Closed => return,
                    End::Lost(cause) => cause,
                },
                Err(error) => error.text().to_owned(),
            };
            if self.state.is_up.swap(false, Ordering::Relaxed) {
                failures = 0;
            }
            self.shared.trouble(&self.part, &cause);
            self.shared.doubt_topology.notify_one();
            if self.meanwhile(tokio::time::sleep(back_off(failures))).await.is_none() {
                return;
            }
            failures += 1;
        }
    }

    /// Without a connection: takes orders until `what` is done, and tells who has waited long enough that it failed. `None`
    /// once the bus is gone.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(what);
        let mut ticks = tokio::time::interval(LATE_LOOK);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Some(done),
                _ = ticks.tick() => self.fail_late().await.ok()?,
                order = self.orders.recv() => self.take(order?).await.ok()?,
            }
        }
    }

    async fn fail_late(&mut self) -> Result<(), End> {
        let patience = self.shared.config.timeout / 2;
        let is_late = |room: &Listening| room.waits.is_some_and(|since| since.elapsed() >= patience);
        let mut failed = Vec::new();
        for (id, room) in self.rooms.iter_mut().filter(|(_, room)| is_late(room)) {
            room.waits = None;
            failed.push(BusReply::Failed { room: id.clone(), retry_after_ms: 500 });
        }
        if failed.is_empty() { Ok(()) } else { self.tell(Inward::Subscribed(failed)).await }
    }

    async fn serve(&mut self, connection: MultiplexedConnection, heard: Heard, address: &Address) -> End {
        match self.listen(connection, heard, address).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    /// Serves a connection until it breaks.
    async fn listen(
        &mut self,
        connection: MultiplexedConnection,
        mut heard: Heard,
        address: &Address,
    ) -> Result<Infallible, End> {
        self.subscribe_all(&connection, &mut heard).await?;
        self.shared.works(&self.part);
        self.state.is_up.store(true, Ordering::Relaxed);
        if std::mem::replace(&mut self.has_been_up, true) {
            self.shared.count(|figures| figures.resubscriptions_total += 1);
            self.tell(Inward::Event(BusEvent::Lost)).await?;
        }
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                info = heard.messages.recv() => match info {
                    Some(info) => self.hear(info, &heard).await?,
                    None => return Err(End::Lost("the connection to Redis is lost".to_owned())),
                },
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.take(order).await?;
                        while let Ok(order) = self.orders.try_recv() {
                            self.take(order).await?;
                        }
                        self.leave(&connection, &mut heard).await?;
                        self.subscribe_wanted(&connection, &mut heard).await?;
                    }
                    None => return Err(End::Closed),
                },
                now = moved(&mut self.place) => {
                    if now.is_some_and(|now| now != *address) {
                        return Err(End::Lost(format!("the master is no longer at {address}")));
                    }
                }
                _ = ticks.tick() => {
                    if heard.overflowed.swap(false, Ordering::Relaxed) {
                        self.shared.count(|figures| figures.dropped_full_total += 1);
                        self.tell(Inward::Event(BusEvent::Lost)).await?;
                    }
                    let mut ping = Pipeline::new();
                    ping.cmd("PING");
                    self.ask(&connection, ping, &mut heard).await?;
                }
            }
        }
    }

    /// On a fresh connection: everything that the node listens to.
    async fn subscribe_all(&mut self, connection: &MultiplexedConnection, heard: &mut Heard) -> Result<(), End> {
        self.leaving.clear();
        while let Ok(order) = self.orders.try_recv() {
            self.take(order).await?;
        }
        self.leaving.clear();
        self.rooms.values_mut().for_each(|room| room.stage = Stage::Wanted);
        let mut control = Pipeline::new();
        control.cmd("SUBSCRIBE").arg(CONTROL_CHANNEL);
        if self.shared.config.card.is_some() {
            control.cmd("SUBSCRIBE").arg(PRESENCE_CHANNEL);
        }
        self.ask(connection, control, heard).await?;
        self.subscribe_wanted(connection, heard).await
    }

    async fn subscribe_wanted(&mut self, connection: &MultiplexedConnection, heard: &mut Heard) -> Result<(), End> {
        let wanted = self.rooms.iter().filter(|(_, room)| room.stage == Stage::Wanted);
        let wanted: Vec<RoomId> = wanted.map(|(id, _)| id.clone()).collect();
        for chunk in wanted.chunks(CHUNK_CHANNELS_MAX) {
            let name = if self.shared.config.is_sharded { "SSUBSCRIBE" } else { "SUBSCRIBE" };
            let mut subscribe = Pipeline::with_capacity(chunk.len());
            for id in chunk {
                if let Some(room) = self.rooms.get_mut(id) {
                    room.stage = Stage::Asked;
                }
                subscribe.cmd(name).arg(self.shared.dialect.channel(id));
            }
            self.ask(connection, subscribe, heard).await?;
        }
        Ok(())
    }

    async fn leave(&mut self, connection: &MultiplexedConnection, heard: &mut Heard) -> Result<(), End> {
        for chunk in std::mem::take(&mut self.leaving).chunks(CHUNK_CHANNELS_MAX) {
            let name = if self.shared.config.is_sharded { "SUNSUBSCRIBE" } else { "UNSUBSCRIBE" };
            let mut unsubscribe = Pipeline::with_capacity(chunk.len());
            for channel in chunk {
                unsubscribe.cmd(name).arg(channel);
            }
            self.ask(connection, unsubscribe, heard).await?;
        }
        Ok(())
    }

    /// Sends commands and hears on until they are answered. Confirmations come among what is heard.
    async fn ask(
        &mut self,
        connection: &MultiplexedConnection,
        commands: Pipeline,
        heard: &mut Heard,
    ) -> Result<(), End> {
        let answer = send(connection.clone(), commands);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                info = heard.messages.recv() => match info {
                    Some(info) => self.hear(info, heard).await?,
                    None => return Err(End::Lost("the connection to Redis is lost".to_owned())),
                },
                answer = &mut answer => return match answer {
                    Ok(values) => refusal(&values).map_or(Ok(()), |refusal| Err(End::Lost(refusal))),
                    Err(error) => Err(End::Lost(format!("the connection to Redis is lost: {error}"))),
                },
            }
        }
    }

    async fn take(&mut self, order: Order) -> Result<(), End> {
        match order {
            Order::Subscribe(id) => {
                let room = self.rooms.entry(id.clone()).or_insert(Listening { stage: Stage::Wanted, waits: None });
                if room.stage == Stage::Confirmed {
                    return self.tell(Inward::Subscribed(vec![BusReply::Subscribed { room: id }])).await;
                }
                room.waits = Some(Instant::now());
            }
            Order::Unsubscribe(id) => {
                if let Some(room) = self.rooms.remove(&id)
                    && room.stage != Stage::Wanted
                {
                    self.leaving.push(self.shared.dialect.channel(&id));
                }
            }
        }
        self.state.rooms.store(self.rooms.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Something came in.
    async fn hear(&mut self, info: PushInfo, heard: &Heard) -> Result<(), End> {
        heard.bytes.fetch_sub(payload_bytes(&info).min(heard.bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
        let PushInfo { kind, data } = info;
        let mut data = VecDeque::from(data);
        let Some(channel) = data.pop_front() else {
            return match kind {
                PushKind::Disconnection => Err(End::Lost("the connection to Redis is lost".to_owned())),
                _ => Ok(()),
            };
        };
        let Some(channel) = text(&channel) else { return Ok(()) };
        match kind {
            PushKind::Subscribe | PushKind::SSubscribe => self.confirmed(channel).await,
            PushKind::Message | PushKind::SMessage => match data.pop_front() {
                Some(Value::BulkString(payload)) => self.message(channel, payload).await,
                _ => Ok(()),
            },
            // A cluster node gave the channel's slot away.
            PushKind::SUnsubscribe if self.listens(channel) => {
                Err(End::Lost(format!("the channel {channel} has moved to another node")))
            }
            _ => Ok(()),
        }
    }

    fn listens(&self, channel: &str) -> bool {
        self.shared.dialect.room(channel).is_some_and(|room| self.rooms.contains_key(&RoomId::new(room)))
    }

    async fn confirmed(&mut self, channel: &str) -> Result<(), End> {
        let Some(id) = self.shared.dialect.room(channel).map(RoomId::new) else { return Ok(()) };
        // A room that was left meanwhile, and maybe wanted again: the confirmation of that comes after.
        let Some(room) = self.rooms.get_mut(&id).filter(|room| room.stage == Stage::Asked) else { return Ok(()) };
        room.stage = Stage::Confirmed;
        match room.waits.take() {
            Some(_) => self.tell(Inward::Subscribed(vec![BusReply::Subscribed { room: id }])).await,
            None => Ok(()),
        }
    }

    async fn message(&mut self, channel: &str, payload: Vec<u8>) -> Result<(), End> {
        let shared = Arc::clone(&self.shared);
        let key = shared.key().unwrap_or_default();
        shared.count(|figures| figures.events_total += 1);
        if channel == PRESENCE_CHANNEL {
            return match presence(&payload) {
                Some(event) => self.tell(Inward::ClusterEvent(event)).await,
                None => {
                    shared.count(|figures| figures.dropped_no_object_total += 1);
                    Ok(())
                }
            };
        }
        let judged = if channel == CONTROL_CHANNEL {
            shared.judge.control(&key, &payload)
        } else {
            match shared.dialect.room(channel).filter(|room| is_room_id(room)) {
                Some(room) => shared.judge.room(&key, channel, RoomId::new(room), payload),
                None => return Ok(()),
            }
        };
        match judged {
            Ok(event) => self.tell(Inward::Event(event)).await,
            Err(dropped) => {
                shared.count(|figures| match dropped {
                    Dropped::Own => {}
                    Dropped::TooLarge => figures.dropped_too_large_total += 1,
                    Dropped::NoObject => figures.dropped_no_object_total += 1,
                    Dropped::NotOurs => figures.dropped_not_ours_total += 1,
                });
                let room = shared.dialect.room(channel).filter(|_| dropped == Dropped::NotOurs && self.may_doubt());
                match room {
                    Some(room) => self.tell(Inward::Event(BusEvent::Doubt { room: RoomId::new(room) })).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// A message that nobody vouches for may be a true one of a node with another key: a look at the head finds it.
    fn may_doubt(&mut self) -> bool {
        let (began, count) = &mut self.doubts;
        if began.elapsed() >= Duration::from_secs(1) {
            (*began, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= DOUBTS_PER_SECOND_MAX
    }

    async fn tell(&self, inward: Inward) -> Result<(), End> {
        self.shared.inward.send(inward).await.map_err(|_| End::Closed)
    }
}

/// A connection whose messages are left in a bounded queue.
async fn connect(
    shared: Arc<Shared>,
    node: Option<Address>,
) -> Result<(MultiplexedConnection, Heard, Address), ConnectError> {
    match node {
        Some(address) => connect_to(&shared, address).await,
        None => with_master(&shared, |address| connect_to(&shared, address)).await,
    }
}

async fn connect_to(
    shared: &Shared,
    address: Address,
) -> Result<(MultiplexedConnection, Heard, Address), ConnectError> {
    let config = &shared.config;
    let (sender, messages) = mpsc::channel(HEARD_MESSAGES_MAX);
    let (bytes, overflowed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let heard = Heard { messages, bytes: Arc::clone(&bytes), overflowed: Arc::clone(&overflowed) };
    let push = move |info: PushInfo| -> Result<(), ()> {
        let length = payload_bytes(&info);
        if bytes.load(Ordering::Relaxed) + length > HEARD_BYTES_MAX || sender.try_send(info).is_err() {
            overflowed.store(true, Ordering::Relaxed);
            return Ok(());
        }
        bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    };
    let connection = open(config, &address, &config.login, config.database, Some(push)).await?;
    Ok((connection, heard, address))
}

/// Sends commands of which each has one answer: with several channels in one SUBSCRIBE, each confirmation would be taken
/// for the answer to a command.
async fn send(mut connection: MultiplexedConnection, commands: Pipeline) -> Result<Vec<Value>, RedisError> {
    connection.send_packed_commands(&commands, 0, commands.len()).await
}

fn refusal(values: &[Value]) -> Option<String> {
    let error = values.iter().find_map(|value| match value {
        Value::ServerError(error) => Some(error),
        _ => None,
    })?;
    Some(format!("Redis refuses a subscription: {} {}", error.code(), error.details().unwrap_or_default()))
}

fn payload_bytes(info: &PushInfo) -> usize {
    match info.data.last() {
        Some(Value::BulkString(payload)) => payload.len(),
        _ => 0,
    }
}
