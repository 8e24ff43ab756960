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
}

fn is_answered(request: &BusRequest) -> bool {
    !matches!(request, BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. } | BusRequest::Unsubscribe { .. })
}

/// Commands that no connection waits for any more.
pub type Late = Vec<(u64, BusRequest)>;

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
                late.push((now_ms + random.below(3_000), request));
            }
        }
    }

    /// Comes back if it is time. `Lost` follows once the subscriptions are made.
    pub fn tick(&mut self, now_ms: u64) {
        if self.down_until_ms.is_some_and(|until| until <= now_ms) {
            self.down_until_ms = None;
            self.events.push_back(BusEvent::Lost);
        }
    }

    /// The server carries out the next command.
    pub fn carry_out(&mut self, now_ms: u64, redis: &mut Redis, events: &mut Vec<BusEvent>) {
        let Some(at) = self.slots.iter().position(|slot| matches!(slot, Slot::Sent(_))) else { return };
        let Some(Slot::Sent(request)) = self.slots.remove(at) else { return };
        let reply = if let BusRequest::Subscribe { room } = request {
            self.wanted.insert(room.clone());
            Some(BusReply::Subscribed { room })
        } else {
            redis.run(now_ms, request, events)
        };
        if let Some(reply) = reply {
            self.slots.insert(at, Slot::Answered(reply));
        }
    }

    /// Somebody published.
    pub fn hear(&mut self, event: &BusEvent, random: &mut Random, is_lossy: bool) {
        let (BusEvent::Message { room, .. } | BusEvent::Control { room, .. } | BusEvent::Ephemeral { room, .. }) =
            event
        else {
            return;
        };
        let is_lost = is_lossy && random.one_in(60);
        if self.is_down() || !self.wanted.contains(room) || is_lost {
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
