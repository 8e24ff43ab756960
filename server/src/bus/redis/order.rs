//! Keeps the contract's order: each request is answered once, in the order of one room's requests, whatever connection
//! answers first; and what a room asks after `Subscribe` is sent only when Redis has confirmed the subscription, so that
//! no message falls between a head and the first event.
//!
//! Pure: requests and answers in, requests to send and replies out.

use roomwire_engine::bus::{BusReply, BusRequest};
use roomwire_engine::names::RoomId;
use std::collections::{HashMap, VecDeque};

/// Pairs a request on its way and its answer.
pub(super) type CallId = u64;

/// One request of a room that is not answered yet.
#[derive(Debug)]
enum Slot {
    /// Sent to Redis.
    Sent(CallId),
    /// At the subscriber.
    Subscribing,
    /// Waits for the subscription before it.
    Held(BusRequest),
    /// Answered, but something before it is not.
    Done(BusReply),
}

/// What is to be done, in order.
#[derive(Debug)]
pub(super) enum Step {
    /// Send the request to Redis.
    Send(CallId, BusRequest),
    /// Subscribe.
    Subscribe(RoomId),
    /// End the subscription.
    Unsubscribe(RoomId),
    /// Give the reply to the bridge.
    Reply(BusReply),
}

/// The requests of all rooms that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Order {
    rooms: HashMap<RoomId, VecDeque<Slot>>,
    last_call: CallId,
    waiting: usize,
}

impl Order {
    /// How many requests are not answered yet.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// A new request.
    pub(super) fn ask(&mut self, request: BusRequest, steps: &mut Vec<Step>) {
        let id = request.room().clone();
        let slots = self.rooms.entry(id.clone()).or_default();
        let is_blocked = slots.iter().any(|slot| matches!(slot, Slot::Subscribing | Slot::Held(_)));
        if is_blocked {
            self.waiting += 1;
            slots.push_back(Slot::Held(request));
            return;
        }
        if let Some(slot) = begin(&mut self.last_call, request, steps) {
            self.waiting += 1;
            slots.push_back(slot);
        }
        if slots.is_empty() {
            self.rooms.remove(&id);
        }
    }

    /// A request cannot even be begun: its answer, in its place.
    pub(super) fn refuse(&mut self, reply: BusReply, steps: &mut Vec<Step>) {
        let id = reply.room().clone();
        self.waiting += 1;
        self.rooms.entry(id.clone()).or_default().push_back(Slot::Done(reply));
        self.release(&id, steps);
    }

    /// Redis answered a call; one that nobody waits for is ignored.
    pub(super) fn answered(&mut self, call: CallId, reply: BusReply, steps: &mut Vec<Step>) {
        let id = reply.room().clone();
        let Some(slots) = self.rooms.get_mut(&id) else { return };
        let Some(slot) = slots.iter_mut().find(|slot| matches!(slot, Slot::Sent(sent) if *sent == call)) else {
            return;
        };
        *slot = Slot::Done(reply);
        self.release(&id, steps);
    }

    /// The subscription of a room was confirmed, or failed: what waited for it goes on.
    pub(super) fn subscribed(&mut self, reply: BusReply, steps: &mut Vec<Step>) {
        let id = reply.room().clone();
        let Some(slots) = self.rooms.get_mut(&id) else { return };
        let Some(place) = slots.iter().position(|slot| matches!(slot, Slot::Subscribing)) else { return };
        slots[place] = Slot::Done(reply);
        let mut next = place + 1;
        while let Some(Slot::Held(_)) = slots.get(next) {
            let Some(Slot::Held(request)) = slots.remove(next) else { break };
            if let Some(slot) = begin(&mut self.last_call, request, steps) {
                let is_subscribe = matches!(slot, Slot::Subscribing);
                slots.insert(next, slot);
                if is_subscribe {
                    break;
                }
                next += 1;
            } else {
                self.waiting -= 1;
            }
        }
        self.release(&id, steps);
    }

    /// Lets out what is answered and has nothing before it.
    fn release(&mut self, id: &RoomId, steps: &mut Vec<Step>) {
        let Some(slots) = self.rooms.get_mut(id) else { return };
        while let Some(Slot::Done(_)) = slots.front() {
            if let Some(Slot::Done(reply)) = slots.pop_front() {
                self.waiting -= 1;
                steps.push(Step::Reply(reply));
            }
        }
        if slots.is_empty() {
            self.rooms.remove(id);
        }
    }
}

/// Begins a request; the slot of one that is answered.
fn begin(last_call: &mut CallId, request: BusRequest, steps: &mut Vec<Step>) -> Option<Slot> {
    match request {
        BusRequest::Subscribe { room } => {
            steps.push(Step::Subscribe(room));
            Some(Slot::Subscribing)
        }
        BusRequest::Unsubscribe { room } => {
            steps.push(Step::Unsubscribe(room));
            None
        }
        request => {
            *last_call += 1;
            let is_answered = !matches!(request, BusRequest::Ephemeral { .. } | BusRequest::LogRead { .. });
            steps.push(Step::Send(*last_call, request));
            is_answered.then_some(Slot::Sent(*last_call))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> RoomId {
        RoomId::new("r")
    }

    fn head() -> BusRequest {
        BusRequest::Head { room: room() }
    }

    fn ask(order: &mut Order, request: BusRequest) -> Vec<String> {
        let mut steps = Vec::new();
        order.ask(request, &mut steps);
        names(&steps)
    }

    fn names(steps: &[Step]) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::Send(call, _) => format!("send {call}"),
            Step::Subscribe(_) => "subscribe".to_owned(),
            Step::Unsubscribe(_) => "unsubscribe".to_owned(),
            Step::Reply(BusReply::Retired { .. }) => "retired".to_owned(),
            Step::Reply(BusReply::Subscribed { .. }) => "subscribed".to_owned(),
            Step::Reply(BusReply::NeedInit { .. }) => "need init".to_owned(),
            Step::Reply(_) => "failed".to_owned(),
        };
        steps.iter().map(name).collect()
    }

    fn answer(order: &mut Order, call: CallId, reply: BusReply) -> Vec<String> {
        let mut steps = Vec::new();
        order.answered(call, reply, &mut steps);
        names(&steps)
    }

    fn subscribed(order: &mut Order) -> Vec<String> {
        let mut steps = Vec::new();
        order.subscribed(BusReply::Subscribed { room: room() }, &mut steps);
        names(&steps)
    }

    #[test]
    fn an_answer_that_comes_too_early_waits_for_the_one_before() {
        let mut order = Order::default();
        assert_eq!(ask(&mut order, head()), ["send 1"]);
        assert_eq!(ask(&mut order, head()), ["send 2"]);
        assert_eq!(answer(&mut order, 2, BusReply::NeedInit { room: room() }), [""; 0]);
        assert_eq!(answer(&mut order, 1, BusReply::Retired { room: room() }), ["retired", "need init"]);
        assert_eq!(order.waiting(), 0);
        assert!(order.rooms.is_empty());
    }

    #[test]
    fn what_is_asked_after_a_subscription_waits_for_it() {
        let mut order = Order::default();
        assert_eq!(ask(&mut order, head()), ["send 1"]);
        assert_eq!(ask(&mut order, BusRequest::Subscribe { room: room() }), ["subscribe"]);
        assert_eq!(ask(&mut order, head()), [""; 0]);
        assert_eq!(ask(&mut order, BusRequest::Unsubscribe { room: room() }), [""; 0]);
        assert_eq!(ask(&mut order, BusRequest::Subscribe { room: room() }), [""; 0]);
        assert_eq!(ask(&mut order, head()), [""; 0]);
        // Confirmed before the first head is answered: the order of the answers stays.
        assert_eq!(subscribed(&mut order), ["send 2", "unsubscribe", "subscribe"]);
        assert_eq!(answer(&mut order, 1, BusReply::Retired { room: room() }), ["retired", "subscribed"]);
        assert_eq!(subscribed(&mut order), ["send 3"]);
        assert_eq!(answer(&mut order, 3, BusReply::Retired { room: room() }), [""; 0]);
        assert_eq!(answer(&mut order, 2, BusReply::NeedInit { room: room() }), ["need init", "subscribed", "retired"]);
        assert!(order.rooms.is_empty() && order.waiting() == 0);
    }

    #[test]
    fn a_refused_request_is_answered_in_its_place() {
        let mut order = Order::default();
        ask(&mut order, head());
        let mut steps = Vec::new();
        order.refuse(BusReply::Failed { room: room(), retry_after_ms: 1 }, &mut steps);
        assert!(steps.is_empty());
        assert_eq!(answer(&mut order, 1, BusReply::Retired { room: room() }), ["retired", "failed"]);
        assert_eq!(answer(&mut order, 1, BusReply::Retired { room: room() }), [""; 0], "answered once");
    }

    #[test]
    fn an_event_is_not_answered() {
        let mut order = Order::default();
        let event = BusRequest::Ephemeral { room: room(), payload: bytes::Bytes::new() };
        assert_eq!(ask(&mut order, event), ["send 1"]);
        assert!(order.rooms.is_empty() && order.waiting() == 0);
    }
}
