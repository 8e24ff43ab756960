//! The Redis bus for tests: a driver in place of the bridge's, and the requests that it asks.

#![allow(dead_code, reason = "each test uses a part of it")]

use roomwire::bus::redis::{Address, Login, RedisBus, RedisConfig, Servers, Told};
use roomwire::bus::{BusFigures, BusState};
use roomwire_engine::bus::{
    Begun, BusEvent, BusReply, BusRequest, DedupeKey, Finished, PublishItem, SequenceItem, Sequenced,
};
use roomwire_engine::names::{RoomId, UserId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(port: u16) -> RedisConfig {
    RedisConfig {
        servers: Servers::Single(address(port)),
        login: Login::default(),
        database: 0,
        tls: false,
        ca: None,
        is_sharded: false,
        timeout: Duration::from_secs(1),
        from: Arc::from("n1.abc"),
        card: None,
        content_bytes_max: 1_000,
    }
}

pub(crate) fn address(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

pub(crate) fn room(name: &str) -> RoomId {
    RoomId::new(name)
}

pub(crate) fn key(id: &str) -> DedupeKey {
    DedupeKey { user: UserId::new("ada"), client_id: Arc::from(id) }
}

pub(crate) fn head(name: &str) -> BusRequest {
    BusRequest::Head { room: room(name) }
}

pub(crate) fn sequence(name: &str, id: &str, attempt: u64) -> BusRequest {
    let items = vec![SequenceItem { key: key(id), attempt, timestamp: 5, except: Vec::new() }];
    BusRequest::Sequence { room: room(name), items }
}

pub(crate) fn publish(name: &str, generation: u64, seq: u64, id: &str, attempt: u64) -> BusRequest {
    let payload = format!(r#"{{"type":"chat_message","seq":{seq},"epoch":{generation}}}"#).into_bytes().into();
    let item = PublishItem { generation, seq, key: key(id), attempt, payload, received_us: 0 };
    BusRequest::Publish { room: room(name), items: vec![item] }
}

/// A bus with the runtime that drives it.
pub(crate) struct Driven {
    runtime: Runtime,
    pub(crate) bus: RedisBus,
}

impl Driven {
    pub(crate) fn start(config: RedisConfig) -> Result<Driven, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bus = runtime.block_on(RedisBus::start(config))?;
        Ok(Driven { runtime, bus })
    }

    /// Hands the lease back, as a node does that ends in order.
    pub(crate) fn leave(&mut self) {
        self.runtime.block_on(self.bus.leave());
    }

    /// Lets the connections work for so long, or until something comes; what came.
    fn turn(&mut self, time: Duration) -> Vec<Told> {
        let woken = async { tokio::time::timeout(time, self.bus.woken()).await };
        let _ = self.runtime.block_on(woken);
        let mut told = Vec::new();
        self.bus.receive(1_000, &mut told);
        told
    }
}

/// Who drives a bus and keeps what it is told.
pub(crate) trait Drives: Sized {
    fn driven(&mut self) -> &mut Driven;

    fn keep(&mut self, told: Told);

    /// One turn, of so long if nothing comes.
    fn turn(&mut self, time: Duration) {
        for told in self.driven().turn(time) {
            self.keep(told);
        }
        self.driven().bus.flush();
    }

    /// Turns until there is what is looked for.
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: {:?}", self.driven().bus.figures().state);
            self.turn(Duration::from_millis(20));
        }
    }
}

/// A bus without a cluster's business, with its replies and events.
pub(crate) struct Driver {
    driven: Driven,
    pub(crate) replies: VecDeque<BusReply>,
    pub(crate) events: VecDeque<BusEvent>,
}

impl Drives for Driver {
    fn driven(&mut self) -> &mut Driven {
        &mut self.driven
    }

    fn keep(&mut self, told: Told) {
        match told {
            Told::Reply(reply) => self.replies.push_back(reply),
            Told::Event(event) => self.events.push_back(event),
            Told::ClusterReply(_) | Told::ClusterEvent(_) => {}
        }
    }
}

impl Driver {
    pub(crate) fn start(config: RedisConfig) -> Result<Driver, String> {
        Ok(Driver { driven: Driven::start(config)?, replies: VecDeque::new(), events: VecDeque::new() })
    }

    /// Lets the connections work for so long, and takes nothing of what comes.
    pub(crate) fn idle(&mut self, time: Duration) {
        self.driven.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    pub(crate) fn bus(&self) -> &RedisBus {
        &self.driven.bus
    }

    pub(crate) fn on(port: u16) -> Driver {
        Driver::start(config(port)).unwrap()
    }

    /// One turn.
    pub(crate) fn ask(&mut self, requests: impl IntoIterator<Item = BusRequest>) {
        requests.into_iter().for_each(|request| self.driven.bus.ask(request));
        self.driven.bus.flush();
    }

    pub(crate) fn reply(&mut self) -> BusReply {
        self.until("a reply", |driver| driver.replies.pop_front())
    }

    /// The next event apart from hints of generations and of the connection.
    pub(crate) fn event(&mut self) -> BusEvent {
        self.until("an event", |driver| {
            driver.events.pop_front().filter(|event| !matches!(event, BusEvent::Control { .. } | BusEvent::Works))
        })
    }

    /// Passes over all that is heard before `Lost`.
    pub(crate) fn lost(&mut self) {
        self.until("lost", |driver| {
            std::iter::from_fn(|| driver.events.pop_front()).find(|event| matches!(event, BusEvent::Lost))
        });
    }

    pub(crate) fn figures(&mut self, what: &str, holds: impl Fn(&BusFigures) -> bool) -> BusFigures {
        self.until(what, |driver| Some(driver.bus().figures()).filter(&holds))
    }

    pub(crate) fn healthy(&mut self) {
        self.figures("in sync", |figures| figures.state == BusState::Healthy && figures.subscriber_connected_now);
    }

    /// Makes a room live.
    pub(crate) fn init(&mut self, name: &str, generation: u64) {
        self.ask([BusRequest::Begin { room: room(name), token: 9 }]);
        assert!(matches!(self.reply(), BusReply::Begun { answer: Begun::Ok, .. }));
        let finish = BusRequest::Finish { room: room(name), token: 9, generation, last: 0, dedupe: Vec::new() };
        self.ask([finish]);
        assert!(matches!(self.reply(), BusReply::Finished { answer: Finished::Ok, .. }));
    }

    pub(crate) fn subscribe(&mut self, name: &str) {
        self.ask([BusRequest::Subscribe { room: room(name) }]);
        assert!(matches!(self.reply(), BusReply::Subscribed { .. }));
    }

    /// Publishes one message; its seq.
    pub(crate) fn write(&mut self, name: &str, id: &str) -> u64 {
        self.ask([sequence(name, id, 1)]);
        let (generation, seq) = match self.reply() {
            BusReply::Sequenced { answers, .. } => match answers[..] {
                [Sequenced::Mine { generation, seq, .. }] => (generation, seq),
                _ => panic!("{answers:?}"),
            },
            other => panic!("{other:?}"),
        };
        self.ask([publish(name, generation, seq, id, 1)]);
        assert!(matches!(self.reply(), BusReply::Published { answers, .. } if answers == [true]));
        seq
    }

    pub(crate) fn message(&mut self) -> (u64, u64) {
        self.until("a message", |driver| match driver.events.pop_front()? {
            BusEvent::Message { generation, seq, .. } => Some((generation, seq)),
            _ => None,
        })
    }
}
