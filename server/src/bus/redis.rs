//! The bus on Redis or Valkey: ORDERING.md's scripts there, one command connection and one subscriber connection; on a
//! Redis Cluster one command connection per master, and with sharded channels a subscriber each, too.
//!
//! The bridge's driver hands over requests during a turn ([`RedisBus::ask`]) and sends them at its end
//! ([`RedisBus::flush`]) as one pipeline; replies and events come back through one bounded lane ([`RedisBus::receive`]),
//! in the order that the contract asks for ([`order`]). Nothing here blocks: what cannot be sent is answered with
//! `Failed`.
//!
//! Reading order: this file, `order`, `commands` with `scripts` and `lua/`, `link`, `subscriber` with `payload` and
//! `vouch`, `connect` and `config`, `cluster`, `shared`; `presence` beside them, on connections of its own.

mod cluster;
pub mod commands;
pub mod config;
mod connect;
pub mod examine;
mod foreign;
mod link;
mod order;
pub mod payload;
mod presence;
pub mod scripts;
mod shared;
mod subscriber;
mod vouch;

pub use config::{Address, Login, RedisConfig, Servers};
pub use presence::NodeCard;

use crate::bus::BusFigures;
use cluster::{Range, SLOTS};
use commands::{Asked, Kind, command};
use connect::ConnectError;
use connect::Session;
use link::{Call, Link, Target};
use order::{CallId, Order, Step};
use presence::Presence;
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use roomwire_engine::cluster::{ClusterEvent, ClusterReply, ClusterRequest};
use roomwire_engine::names::RoomId;
use shared::{Inward, Shared};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use subscriber::Subscriber;
use tokio::sync::{mpsc, watch};

/// The most requests that wait for an answer; beyond, they are answered with `Failed`.
const REQUESTS_MAX: usize = 65_536;
/// The most commands of one pipeline.
const PIPELINE_COMMANDS_MAX: usize = 512;
/// The most requests that are kept until there is a connection.
const KEPT_REQUESTS_MAX: usize = 16_384;
/// The most entries on the lane to the bridge.
const INWARD_MAX: usize = 4_096;

/// What the bus tells the bridge.
#[derive(Debug)]
pub enum Told {
    /// A reply.
    Reply(BusReply),
    /// An event.
    Event(BusEvent),
    /// A reply on who is where.
    ClusterReply(ClusterReply),
    /// An event on who is where.
    ClusterEvent(ClusterEvent),
}

/// One server, and the connections to it.
#[derive(Debug)]
struct Server {
    /// Of a cluster's node.
    address: Option<Address>,
    link: Link,
    /// With sharded channels.
    subscriber: Option<Subscriber>,
}

/// Where a slot is that nobody serves.
const NOWHERE: usize = usize::MAX;

/// The bus's handle, held by the driver.
#[derive(Debug)]
pub struct RedisBus {
    shared: Arc<Shared>,
    order: Order,
    /// The master, or the masters of a cluster.
    servers: Vec<Server>,
    /// Of a cluster, who serves each slot: an index into `servers`.
    routes: Vec<usize>,
    /// Who hears everything, where channels are not sharded.
    subscriber: Option<Subscriber>,
    /// The rooms that are listened to, where channels are sharded: they move with their slots.
    listened: HashSet<RoomId>,
    /// Who is where, on a connection of its own.
    presence: Option<Presence>,
    inward: mpsc::Receiver<Inward>,
    /// To be sent at the turn's end.
    outgoing: Vec<Call>,
    /// To be sent once there is a connection: receipts for the log.
    kept: VecDeque<BusRequest>,
    /// To be given to the bridge.
    told: VecDeque<Told>,
    /// Kept between calls for its memory.
    steps: Vec<Step>,
}

impl RedisBus {
    /// Tries to connect once, and starts the connections' tasks. Without a Redis the node starts all the same: it comes
    /// into sync by itself when there is one.
    ///
    /// # Errors
    /// What only the operator can put right: one line with cause and cure.
    pub async fn start(config: RedisConfig) -> Result<RedisBus, String> {
        let (sender, inward) = mpsc::channel(INWARD_MAX);
        let own_key = vouch::new_key().map_err(|error| format!("no random numbers: {error}"))?;
        let shared = Arc::new(Shared::new(config, &own_key, sender));
        let mut bus = RedisBus {
            shared,
            order: Order::default(),
            servers: Vec::new(),
            routes: Vec::new(),
            subscriber: None,
            listened: HashSet::new(),
            presence: None,
            inward,
            outgoing: Vec::new(),
            kept: VecDeque::new(),
            told: VecDeque::new(),
            steps: Vec::new(),
        };
        if bus.shared.is_cluster() {
            bus.start_cluster().await?
        } else {
            bus.start_master().await?
        }
        Ok(bus)
    }

    /// One server, or the one that the Sentinels name.
    async fn start_master(&mut self) -> Result<(), String> {
        let (address, address_moves) = watch::channel(None);
        let target = Target::Master(address.clone());
        let session = self.tried(link::connect(&self.shared, &target).await)?;
        if matches!(self.shared.config.servers, Servers::Sentinel { .. }) {
            tokio::spawn(connect::follow_sentinels(Arc::clone(&self.shared), address));
        }
        self.subscriber = Some(Subscriber::start(Arc::clone(&self.shared), &target));
        self.start_presence(Some(address_moves)).await?;
        let link = Link::start(Arc::clone(&self.shared), session, target);
        self.servers.push(Server { address: None, link, subscriber: None });
        Ok(())
    }

    async fn start_cluster(&mut self) -> Result<(), String> {
        let ranges = self.tried(cluster::topology(&self.shared).await)?.unwrap_or_default();
        let mut masters: Vec<&Address> = ranges.iter().map(|range| &range.master).collect();
        masters.sort_by_key(|address| (&address.host, address.port));
        masters.dedup();
        for address in masters {
            let target = Target::Node(address.clone());
            let session = self.tried(link::connect(&self.shared, &target).await)?;
            self.add_node(address, session);
        }
        self.route(&ranges);
        if !self.shared.config.is_sharded {
            // It may listen anywhere: every node of a cluster hears what is published on any other.
            let (place, _) = watch::channel(None);
            self.subscriber = Some(Subscriber::start(Arc::clone(&self.shared), &Target::Master(place)));
        }
        tokio::spawn(cluster::follow(Arc::clone(&self.shared), ranges));
        self.start_presence(None).await
    }

    async fn start_presence(&mut self, place: Option<watch::Receiver<Option<Address>>>) -> Result<(), String> {
        if let Some(card) = self.shared.config.card.clone() {
            self.presence = Some(Presence::start(Arc::clone(&self.shared), card, place).await?);
        }
        Ok(())
    }

    /// What only the operator can put right ends the start; all else is tried again later.
    fn tried<T>(&self, tried: Result<T, ConnectError>) -> Result<Option<T>, String> {
        match tried {
            Ok(done) => Ok(Some(done)),
            Err(ConnectError::Operator(text)) => Err(text),
            Err(ConnectError::Away(text)) => {
                self.shared.trouble("commands", &text);
                Ok(None)
            }
        }
    }

    fn add_node(&mut self, address: &Address, session: Option<Session>) {
        let target = Target::Node(address.clone());
        let subscriber = self.shared.config.is_sharded.then(|| Subscriber::start(Arc::clone(&self.shared), &target));
        let link = Link::start(Arc::clone(&self.shared), session, target);
        self.servers.push(Server { address: Some(address.clone()), link, subscriber });
    }

    /// The cluster's slots are served like this now.
    fn route(&mut self, ranges: &[Range]) {
        let is_master = |server: &Server| ranges.iter().any(|range| server.address.as_ref() == Some(&range.master));
        // What is under way at a node that serves nothing any more fails with its connection.
        self.servers.retain(is_master);
        for range in ranges {
            if !self.servers.iter().any(|server| server.address.as_ref() == Some(&range.master)) {
                self.add_node(&range.master, None);
            }
        }
        self.routes = vec![NOWHERE; SLOTS];
        for range in ranges {
            let at = |server: &Server| server.address.as_ref() == Some(&range.master);
            if let Some(index) = self.servers.iter().position(at)
                && range.first <= range.last
            {
                self.routes[usize::from(range.first)..=usize::from(range.last)].fill(index);
            }
        }
        if !ranges.is_empty() {
            self.shared.works("commands");
        }
    }

    /// After a change of a cluster: rooms whose channels have moved are listened to at their new place.
    fn listen_anew(&mut self) {
        if self.listened.is_empty() {
            return;
        }
        for room in &self.listened {
            let owner = self.server_of(room).and_then(|server| server.subscriber.as_ref());
            for subscriber in self.servers.iter().filter_map(|server| server.subscriber.as_ref()) {
                let is_owner = owner.is_some_and(|owner| std::ptr::eq(owner, subscriber));
                let order = if is_owner { subscriber::Order::Subscribe } else { subscriber::Order::Unsubscribe };
                // Where too many orders wait, the next change or break puts it right.
                let _ = subscriber.order(order(room.clone()));
            }
        }
        self.told.push_back(Told::Event(BusEvent::Lost));
    }

    /// Who serves what lies under this hash tag.
    fn server_of(&self, tag: &str) -> Option<&Server> {
        if self.routes.is_empty() {
            return self.servers.first();
        }
        self.servers.get(self.routes[cluster::slot(tag)])
    }

    /// Takes a request; it leaves with the next [`RedisBus::flush`].
    pub fn ask(&mut self, request: BusRequest) {
        let mut steps = std::mem::take(&mut self.steps);
        let is_answered = !matches!(
            request,
            BusRequest::Unsubscribe { .. } | BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. }
        );
        if is_answered && self.order.waiting() >= REQUESTS_MAX {
            self.shared.count(|figures| figures.refused_total += 1);
            let room = request.room().clone();
            let retry_after_ms = self.retry_after_ms(&room);
            self.order.refuse(BusReply::Failed { room, retry_after_ms }, &mut steps);
        } else {
            self.order.ask(request, &mut steps);
        }
        self.take(&mut steps);
        self.steps = steps;
    }

    /// Takes a request on who is where; it leaves at once.
    pub fn ask_cluster(&mut self, request: ClusterRequest) {
        let refused = match &self.presence {
            Some(presence) => presence.ask(request).err(),
            None => Some(request.unanswered()),
        };
        self.told.extend(refused.map(Told::ClusterReply));
    }

    /// The node ends: the others are told, so that they need not wait.
    pub async fn leave(&self) {
        if let Some(presence) = &self.presence {
            presence.leave().await;
        }
    }

    /// Sends what the turn asked: one pipeline for each server.
    pub fn flush(&mut self) {
        while let Some(request) = self.kept.pop_front() {
            if !self.server_of(request.room()).is_some_and(|server| server.link.is_up()) {
                self.kept.push_front(request);
                break;
            }
            self.ask(request);
        }
        let mut outgoing = std::mem::take(&mut self.outgoing);
        if self.routes.is_empty() {
            self.send(0, outgoing);
            return;
        }
        while let Some(first) = outgoing.first() {
            let server = self.routes[cluster::slot(&first.asked.room)];
            let (same, others) =
                outgoing.into_iter().partition(|call| self.routes[cluster::slot(&call.asked.room)] == server);
            outgoing = others;
            self.send(server, same);
        }
    }

    fn send(&mut self, server: usize, mut calls: Vec<Call>) {
        while !calls.is_empty() {
            let rest = calls.split_off(calls.len().min(PIPELINE_COMMANDS_MAX));
            let batch = std::mem::replace(&mut calls, rest);
            let sent = match self.servers.get(server) {
                Some(server) => server.link.send(batch),
                None => Err(batch),
            };
            if let Err(batch) = sent {
                for Call { id, asked, .. } in batch {
                    self.keep(asked.again());
                    self.refuse(id, asked.room);
                }
            }
        }
    }

    /// Takes at most `most` replies and events.
    pub fn receive(&mut self, most: usize, told: &mut Vec<Told>) {
        while told.len() < most {
            if let Some(next) = self.told.pop_front() {
                told.push(next);
            } else if let Ok(inward) = self.inward.try_recv() {
                self.hear(inward);
            } else {
                return;
            }
        }
    }

    /// Whether [`RedisBus::receive`] would give something, or [`RedisBus::flush`] has something to send.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.told.is_empty() || !self.inward.is_empty() || !self.outgoing.is_empty()
    }

    /// Ends when there is something to receive.
    pub async fn woken(&mut self) {
        // The connections' tasks hold the other end for as long as the bus lives.
        if let Some(inward) = self.inward.recv().await {
            self.hear(inward);
        }
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> BusFigures {
        let subscribers =
            || self.servers.iter().filter_map(|server| server.subscriber.as_ref()).chain(&self.subscriber);
        BusFigures {
            requests_waiting_now: self.order.waiting() as u64,
            connected_now: !self.servers.is_empty() && self.servers.iter().all(|server| server.link.is_up()),
            subscriber_connected_now: subscribers().count() > 0 && subscribers().all(Subscriber::is_up),
            rooms_subscribed_now: subscribers().map(|subscriber| subscriber.rooms() as u64).sum(),
            ..self.shared.figures()
        }
    }

    fn hear(&mut self, inward: Inward) {
        let mut steps = std::mem::take(&mut self.steps);
        match inward {
            Inward::Answered(answers) => {
                for (call, reply) in answers {
                    self.order.answered(call, reply, &mut steps);
                }
            }
            Inward::Subscribed(replies) => {
                for reply in replies {
                    self.order.subscribed(reply, &mut steps);
                }
            }
            Inward::Event(event) => self.told.push_back(Told::Event(event)),
            Inward::Again(requests) => self.keep(requests),
            Inward::Topology(ranges) => {
                self.route(&ranges);
                self.listen_anew();
            }
            Inward::Cluster(reply) => self.told.push_back(Told::ClusterReply(reply)),
            Inward::ClusterEvent(event) => self.told.push_back(Told::ClusterEvent(event)),
        }
        self.take(&mut steps);
        self.steps = steps;
    }

    fn take(&mut self, steps: &mut Vec<Step>) {
        let key = self.shared.key();
        for step in steps.drain(..) {
            match step {
                Step::Send(id, request) => {
                    let command = key.as_deref().and_then(|key| command(&self.shared.dialect, key, &request));
                    match command {
                        Some((kind, command)) => {
                            let id = if matches!(kind, Kind::Ephemeral | Kind::LogRead { .. }) { 0 } else { id };
                            let asked = Asked { room: request.room().clone(), kind };
                            self.outgoing.push(Call { id, asked, command });
                        }
                        None => {
                            let room = request.room().clone();
                            self.keep([request]);
                            self.refuse(id, room);
                        }
                    }
                }
                Step::Subscribe(room) => {
                    if !self.order_subscriber(&room, subscriber::Order::Subscribe(room.clone())) {
                        let reply = BusReply::Failed { room, retry_after_ms: 1_000 };
                        let mut more = Vec::new();
                        self.order.subscribed(reply, &mut more);
                        self.take(&mut more);
                    }
                }
                Step::Unsubscribe(room) => {
                    // Where the queue is full the channel is heard in vain until the next break.
                    self.order_subscriber(&room, subscriber::Order::Unsubscribe(room.clone()));
                }
                Step::Reply(reply) => self.told.push_back(Told::Reply(reply)),
            }
        }
    }

    fn order_subscriber(&mut self, room: &RoomId, order: subscriber::Order) -> bool {
        if self.shared.config.is_sharded {
            match order {
                subscriber::Order::Subscribe(_) => self.listened.insert(room.clone()),
                subscriber::Order::Unsubscribe(_) => self.listened.remove(room),
            };
        }
        let own = || self.server_of(room).and_then(|server| server.subscriber.as_ref());
        self.subscriber.as_ref().or_else(own).is_some_and(|subscriber| subscriber.order(order).is_ok())
    }

    fn retry_after_ms(&self, room: &RoomId) -> u32 {
        self.server_of(room).map_or(500, |server| server.link.retry_after_ms())
    }

    /// Keeps what must not be lost; where too much is kept, the oldest goes: only the log of a room lacks a reader then.
    fn keep(&mut self, requests: impl IntoIterator<Item = BusRequest>) {
        self.kept.extend(requests.into_iter().filter(|request| matches!(request, BusRequest::LogRead { .. })));
        self.kept.drain(..self.kept.len().saturating_sub(KEPT_REQUESTS_MAX));
    }

    /// A call that cannot be sent now.
    fn refuse(&mut self, id: CallId, room: RoomId) {
        self.shared.count(|figures| figures.refused_total += 1);
        let mut steps = Vec::new();
        let retry_after_ms = self.retry_after_ms(&room);
        let reply = BusReply::Failed { room, retry_after_ms };
        self.order.answered(id, reply, &mut steps);
        self.take(&mut steps);
    }
}
