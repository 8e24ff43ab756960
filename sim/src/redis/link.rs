//! One node's connections to Redis: a pipeline of commands and a subscriber, which delay, lose and break.
//!
//! What a break leaves unanswered is answered with `Failed`, in order; a command that was under way may still be
//! carried out, seconds later. After a break all subscriptions are made again, and the node is told `Lost`.

use super::Redis;
use crate::random::Random;
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use roomwire_engine::names::RoomId;
use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
enum Slot {
    /// On its way to the server.
    Sent(BusRequest),
    /// On its way back.
    Answered(BusReply),
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Link {
    slots: VecDeque<Slot>,
    events: VecDeque<BusEvent>,
    /// Rooms that the node wants to hear.
    wanted: BTreeSet<RoomId>,
    down_until_ms: Option<u64>,
    /// Its commands go to a master that was replaced.
    asks_old: bool,
    /// Until then it hears such a master: the subscriber is a connection of its own.
    hears_old_until_ms: Option<u64>,
}

fn is_answered(request: &BusRequest) -> bool {
    !matches!(request, BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. } | BusRequest::Unsubscribe { .. })
}

/// A command that no connection waits for any more.
#[derive(Debug)]
pub struct LateCommand {
    /// When it arrives.
    pub due_ms: u64,
    /// It was sent to a master that was replaced.
    pub is_for_old: bool,
    /// The command.
    pub request: BusRequest,
}

/// All of them.
pub type Late = Vec<LateCommand>;

impl Link {
    /// The node asks.
    pub fn ask(&mut self, request: BusRequest) {
        let room = request.room().clone();
        match (&request, self.down_until_ms) {
            (BusRequest::Unsubscribe { room }, _) => {
                self.wanted.remove(room);
            }
            (_, None) => self.slots.push_back(Slot::Sent(request)),
            (_, Some(_)) if is_answered(&request) => {
                self.slots.push_back(Slot::Answered(BusReply::Failed { room, retry_after_ms: 200 }));
            }
            (_, Some(_)) => {}
        }
    }

    /// Whether it cannot reach the server.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.down_until_ms.is_some()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.events.is_empty() && !self.is_down()
    }

    /// Both connections break and come back at that time.
    pub fn cut(&mut self, now_ms: u64, until_ms: u64, random: &mut Random, late: &mut Late) {
        self.down_until_ms = Some(until_ms.max(self.down_until_ms.unwrap_or(0)));
        self.events.clear();
        for slot in std::mem::take(&mut self.slots) {
            let (room, request) = match slot {
                Slot::Sent(request) => (request.room().clone(), Some(request)),
                Slot::Answered(reply) => (reply.room().clone(), None),
            };
            if request.as_ref().is_none_or(is_answered) {
                self.slots.push_back(Slot::Answered(BusReply::Failed { room, retry_after_ms: 100 }));
            }
            if let Some(request) = request.filter(|request| !matches!(request, BusRequest::Subscribe { .. }))
                && random.one_in(2)
            {
                let late_ms_max = [1_000, 10_000][random.index(2)];
                let due_ms = now_ms + random.below(late_ms_max);
                late.push(LateCommand { due_ms, is_for_old: self.asks_old, request });
            }
        }
    }

    /// The master was replaced, and this node has not heard of it.
    pub fn stay_with_old(&mut self) {
        self.asks_old = true;
        self.hears_old_until_ms = Some(u64::MAX);
    }

    /// The node finds the new master: its commands go there from `until_ms` on, and its subscriptions some time later.
    pub fn leave_old(
        &mut self,
        (now_ms, until_ms): (u64, u64),
        hears_until_ms: u64,
        random: &mut Random,
        late: &mut Late,
    ) {
        let heard = std::mem::take(&mut self.events);
        self.cut(now_ms, until_ms, random, late);
        self.events = heard;
        self.asks_old = false;
        self.hears_old_until_ms = self.hears_old_until_ms.map(|until| until.min(hears_until_ms));
    }

    /// Whether its commands go to a master that was replaced.
    #[must_use]
    pub fn asks_old(&self) -> bool {
        self.asks_old
    }

    /// Whether any of its connections is with a master that was replaced.
    #[must_use]
    pub fn knows_old(&self) -> bool {
        self.asks_old || self.hears_old_until_ms.is_some()
    }

    /// Comes back if it is time. `Lost` follows once the subscriptions are made.
    pub fn tick(&mut self, now_ms: u64) {
        if self.down_until_ms.is_some_and(|until| until <= now_ms) {
            self.down_until_ms = None;
            self.events.push_back(BusEvent::Lost);
        }
        if self.hears_old_until_ms.is_some_and(|until| until <= now_ms) {
            self.hears_old_until_ms = None;
            self.events.push_back(BusEvent::Lost);
        }
    }

    /// The first command on its way to the server that is such a one.
    pub fn on_its_way(&self, is_it: impl Fn(&BusRequest) -> bool) -> Option<&BusRequest> {
        self.slots.iter().find_map(|slot| match slot {
            Slot::Sent(request) if is_it(request) => Some(request),
            _ => None,
        })
    }

    /// The server carries out the next command. The room that a BEGIN was for, if it was one.
    pub fn carry_out(&mut self, now_ms: u64, redis: &mut Redis, events: &mut Vec<BusEvent>) -> Option<RoomId> {
        let at = self.slots.iter().position(|slot| matches!(slot, Slot::Sent(_)))?;
        let Some(Slot::Sent(request)) = self.slots.remove(at) else { return None };
        let begun = matches!(request, BusRequest::Begin { .. }).then(|| request.room().clone());
        let reply = if let BusRequest::Subscribe { room } = request {
            self.wanted.insert(room.clone());
            Some(BusReply::Subscribed { room })
        } else {
            redis.run(now_ms, request, events)
        };
        if let Some(reply) = reply {
            self.slots.insert(at, Slot::Answered(reply));
        }
        begun
    }

    /// Somebody published, on a master that was replaced or on the present one.
    pub fn hear(&mut self, event: &BusEvent, is_old: bool, random: &mut Random, is_lossy: bool) {
        let (BusEvent::Message { room, .. } | BusEvent::Control { room, .. } | BusEvent::Ephemeral { room, .. }) =
            event
        else {
            return;
        };
        let is_lost = is_lossy && random.one_in(60);
        if self.is_down() || self.hears_old_until_ms.is_some() != is_old || !self.wanted.contains(room) || is_lost {
            return;
        }
        let event = event.clone();
        if is_lossy && random.one_in(60) {
            self.events.push_back(event.clone());
        }
        // Late: behind others.
        let behind = if is_lossy && random.one_in(20) { random.index(4) } else { 0 };
        let at = self.events.len().saturating_sub(behind);
        self.events.insert(at, event);
    }

    /// The node reads its next answer.
    pub fn take_reply(&mut self) -> Option<BusReply> {
        match self.slots.pop_front()? {
            Slot::Answered(reply) => Some(reply),
            sent @ Slot::Sent(_) => {
                self.slots.push_front(sent);
                None
            }
        }
    }

    /// The node reads its next event.
    pub fn take_event(&mut self) -> Option<BusEvent> {
        if self.is_down() { None } else { self.events.pop_front() }
    }
}
