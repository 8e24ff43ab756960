//! The bus on Redis or Valkey: ORDERING.md's scripts there, one command connection and one subscriber connection.
//!
//! The bridge's driver hands over requests during a turn ([`RedisBus::ask`]) and sends them at its end
//! ([`RedisBus::flush`]) as one pipeline; replies and events come back through one bounded lane ([`RedisBus::receive`]),
//! in the order that the contract asks for ([`order`]). Nothing here blocks: what cannot be sent is answered with
//! `Failed`.
//!
//! Reading order: this file, `order`, `commands` with `scripts` and `lua/`, `link`, `subscriber` with `payload` and
//! `vouch`, `connect` and `config`, `shared`.

pub mod commands;
pub mod config;
mod connect;
mod link;
mod order;
pub mod payload;
pub mod scripts;
mod shared;
mod subscriber;
mod vouch;

pub use config::{Address, Login, RedisConfig, Servers};

use crate::bus::BusFigures;
use commands::{Asked, Kind, command};
use connect::ConnectError;
use link::{Call, Link};
use order::{CallId, Order, Step};
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use roomwire_engine::names::RoomId;
use shared::{Inward, Shared};
use std::collections::VecDeque;
use std::sync::Arc;
use subscriber::Subscriber;
use tokio::sync::{mpsc, watch};

/// The most requests that wait for an answer; beyond, they are answered with `Failed`.
const REQUESTS_MAX: usize = 65_536;
/// The most commands of one pipeline.
const PIPELINE_COMMANDS_MAX: usize = 512;
/// The most entries on the lane to the bridge.
const INWARD_MAX: usize = 4_096;

/// What the bus tells the bridge.
#[derive(Debug)]
pub enum Told {
    /// A reply.
    Reply(BusReply),
    /// An event.
    Event(BusEvent),
}

/// The bus's handle, held by the driver.
#[derive(Debug)]
pub struct RedisBus {
    shared: Arc<Shared>,
    order: Order,
    link: Link,
    subscriber: Subscriber,
    inward: mpsc::Receiver<Inward>,
    /// To be sent at the turn's end.
    outgoing: Vec<Call>,
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
        let session = match link::connect(&shared).await {
            Ok(session) => Some(session),
            Err(ConnectError::Operator(text)) => return Err(text),
            Err(ConnectError::Away(text)) => {
                shared.trouble("commands", &text);
                None
            }
        };
        let (address, place) = watch::channel(None);
        if matches!(shared.config.servers, Servers::Sentinel { .. }) {
            tokio::spawn(connect::follow_sentinels(Arc::clone(&shared), address.clone()));
        }
        let link = Link::start(Arc::clone(&shared), session, address);
        let subscriber = Subscriber::start(Arc::clone(&shared), place);
        Ok(RedisBus {
            shared,
            order: Order::default(),
            link,
            subscriber,
            inward,
            outgoing: Vec::new(),
            told: VecDeque::new(),
            steps: Vec::new(),
        })
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
            let reply = BusReply::Failed { room: request.room().clone(), retry_after_ms: self.link.retry_after_ms() };
            self.order.refuse(reply, &mut steps);
        } else {
            self.order.ask(request, &mut steps);
        }
        self.take(&mut steps);
        self.steps = steps;
    }

    /// Sends what the turn asked.
    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let rest = self.outgoing.split_off(self.outgoing.len().min(PIPELINE_COMMANDS_MAX));
            let batch = std::mem::replace(&mut self.outgoing, rest);
            if let Err(batch) = self.link.send(batch) {
                for Call { id, asked, .. } in batch {
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
        BusFigures { requests_waiting_now: self.order.waiting() as u64, ..self.shared.figures() }
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
                            let id = if kind == Kind::Ephemeral { 0 } else { id };
                            let asked = Asked { room: request.room().clone(), kind };
                            self.outgoing.push(Call { id, asked, command });
                        }
                        None => self.refuse(id, request.room().clone()),
                    }
                }
                Step::Subscribe(room) => {
                    if self.subscriber.order(subscriber::Order::Subscribe(room.clone())).is_err() {
                        let reply = BusReply::Failed { room, retry_after_ms: 1_000 };
                        let mut more = Vec::new();
                        self.order.subscribed(reply, &mut more);
                        self.take(&mut more);
                    }
                }
                Step::Unsubscribe(room) => {
                    // Where the queue is full the channel is heard in vain until the next break.
                    let _ = self.subscriber.order(subscriber::Order::Unsubscribe(room));
                }
                Step::Reply(reply) => self.told.push_back(Told::Reply(reply)),
            }
        }
    }

    /// A call that cannot be sent now.
    fn refuse(&mut self, id: CallId, room: RoomId) {
        self.shared.count(|figures| figures.refused_total += 1);
        let mut steps = Vec::new();
        let reply = BusReply::Failed { room, retry_after_ms: self.link.retry_after_ms() };
        self.order.answered(id, reply, &mut steps);
        self.take(&mut steps);
    }
}
