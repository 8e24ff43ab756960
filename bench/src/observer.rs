//! What a worker makes of the events of its connections: who is ready, the two ledgers, latencies, complaints.
//! `worker` owns it and hands it every event of its swarm.

use std::collections::BTreeMap;

use crate::args::Dialect;
use crate::histogram::Latencies;
use crate::ledger::Ledger;
use crate::payload::{self, Incoming, Stamp};
use crate::plan::{Mode, Plan};
use crate::swarm::Event;

/// How many different reasons and complaints are kept; what comes after counts as "other".
const TEXTS_MAX: usize = 20;
/// Of each as many bytes.
const TEXT_BYTES_MAX: usize = 200;

/// See the module.
pub(crate) struct Observer {
    plan: Plan,
    /// How many connections may be used: upgraded, and greeted with `connected` where the mode has that.
    pub(crate) ready: usize,
    /// How many have joined.
    pub(crate) joined: usize,
    has_joined: Vec<bool>,
    /// The measured window, CLOCK_MONOTONIC; empty until the start is known.
    window: std::ops::Range<u64>,
    pub(crate) deliveries: Ledger,
    pub(crate) acks: Ledger,
    pub(crate) arrived_in_window: u64,
    pub(crate) delivery: Latencies,
    /// Of those, the deliveries between two nodes.
    pub(crate) delivery_across: Latencies,
    pub(crate) ack: Latencies,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) complaints: BTreeMap<String, u64>,
}

impl Observer {
    pub(crate) fn new(plan: Plan) -> Observer {
        let schedule = plan.schedule;
        let own = plan.own_connections();
        let expected =
            (0..own).map(|local| schedule.messages_to(schedule.topology.room_of(plan.connection(local)))).sum();
        let streams = own * schedule.topology.publishers as usize;
        let acks = if plan.mode == Mode::Chat && plan.dialect == Dialect::Roomwire { scheduled(&plan) } else { 0 };
        Observer {
            ready: 0,
            joined: 0,
            has_joined: vec![false; own],
            window: 0..0,
            deliveries: Ledger::new(streams, own, expected),
            acks: Ledger::new(own, 0, acks),
            arrived_in_window: 0,
            delivery: Latencies::new(),
            delivery_across: Latencies::new(),
            ack: Latencies::new(),
            closed: BTreeMap::new(),
            complaints: BTreeMap::new(),
            plan,
        }
    }

    /// From now on what was meant to leave within `window` is measured.
    pub(crate) fn measure(&mut self, window: std::ops::Range<u64>) {
        self.window = window;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.deliveries.is_complete() && self.acks.is_complete()
    }

    /// Connection `local` of this worker has news.
    pub(crate) fn observe(&mut self, local: usize, event: Event<'_>) {
        match event {
            Event::Open if self.plan.mode == Mode::Echo => self.ready += 1,
            Event::Open => {}
            Event::Text { text, at_ns } => self.hear(local, text, at_ns),
            Event::Closed(reason) => count(&mut self.closed, &reason),
        }
    }

    fn hear(&mut self, local: usize, text: &[u8], at_ns: u64) {
        match payload::read(text) {
            Incoming::Delivery { stamp, seq } => self.deliver(local, stamp, seq, at_ns),
            Incoming::Ack { stamp } => self.acked(local, stamp, at_ns),
            Incoming::Connected if self.plan.mode != Mode::Echo => self.ready += 1,
            Incoming::History if self.plan.dialect == Dialect::Roomwire => self.join(local),
            Incoming::Pong if self.plan.dialect == Dialect::Plain => self.join(local),
            Incoming::Connected | Incoming::History | Incoming::Pong | Incoming::Event => {}
            Incoming::Error(text) | Incoming::Unknown(text) => {
                let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_BYTES_MAX)]);
                count(&mut self.complaints, &text);
            }
        }
    }

    fn join(&mut self, local: usize) {
        if let Some(joined) = self.has_joined.get_mut(local)
            && !*joined
        {
            *joined = true;
            self.joined += 1;
        }
    }

    fn deliver(&mut self, local: usize, stamp: Stamp, seq: Option<u64>, at_ns: u64) {
        let topology = self.plan.schedule.topology;
        let room = topology.room_of(self.plan.connection(local));
        match topology.publisher_in(room, stamp.publisher) {
            Some(publisher) => {
                self.deliveries.record(local * topology.publishers as usize + publisher as usize, stamp.number);
            }
            None => self.deliveries.stray(),
        }
        if let Some(seq) = seq {
            self.deliveries.record_seq(local, seq);
        }
        if self.window.contains(&at_ns) {
            self.arrived_in_window += 1;
        }
        if self.window.contains(&stamp.intended_ns) {
            let latency_ns = at_ns.saturating_sub(stamp.intended_ns);
            self.delivery.record(latency_ns);
            let from = topology.connection_of(stamp.publisher);
            if self.plan.node_of(from) != self.plan.node_of(self.plan.connection(local)) {
                self.delivery_across.record(latency_ns);
            }
        }
    }

    fn acked(&mut self, local: usize, stamp: Stamp, at_ns: u64) {
        if self.plan.schedule.topology.connection_of(stamp.publisher) == self.plan.connection(local) {
            self.acks.record(local, stamp.number);
        } else {
            self.acks.stray();
        }
        if self.window.contains(&stamp.intended_ns) {
            self.ack.record(at_ns.saturating_sub(stamp.intended_ns));
        }
    }
}

/// How many messages the plan's worker sends.
pub(crate) fn scheduled(plan: &Plan) -> u64 {
    let topology = plan.schedule.topology;
    (0..topology.rooms * topology.publishers)
        .filter(|publisher| plan.local(topology.connection_of(*publisher)).is_some())
        .map(|publisher| plan.schedule.messages_of(publisher))
        .sum()
}

fn count(texts: &mut BTreeMap<String, u64>, text: &str) {
    let known = texts.contains_key(text) || texts.len() < TEXTS_MAX;
    *texts.entry(if known { text } else { "other" }.to_owned()).or_insert(0) += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;
    use crate::schedule::Topology;

    const TOPOLOGY: Topology = Topology { rooms: 3, members: 4, publishers: 2 };

    /// Plays the schedule against the observers of `workers` workers, as a perfect server would, except that `spoil`
    /// may change how often each delivery comes (for worker's connection, message).
    fn play(workers: u32, spoil: impl Fn(u32, u64) -> usize) -> Vec<Observer> {
        let mut observers: Vec<Observer> =
            (0..workers).map(|worker| Observer::new(plan(TOPOLOGY, 50, worker, workers))).collect();
        for k in 0..50 {
            for (worker, observer) in observers.iter_mut().enumerate() {
                let plan = plan(TOPOLOGY, 50, worker as u32, workers);
                let planned = plan.schedule.message(k);
                let mut stamp = String::new();
                Stamp { publisher: planned.publisher, number: planned.number, intended_ns: 1 }.write(&mut stamp);
                for local in 0..plan.own_connections() {
                    let connection = plan.connection(local);
                    if TOPOLOGY.room_of(connection) == planned.room {
                        let seq = k / 3 + 1;
                        let text =
                            format!(r#"{{"type":"chat_message","content":"{stamp}:x","timestamp":1,"seq":{seq}}}"#);
                        for _ in 0..spoil(connection, k) {
                            observer.observe(local, Event::Text { text: text.as_bytes(), at_ns: 2 });
                        }
                    }
                    if TOPOLOGY.connection_of(planned.publisher) == connection {
                        let text = format!(r#"{{"type":"ack","clientId":"{stamp}","seq":1}}"#);
                        observer.observe(local, Event::Text { text: text.as_bytes(), at_ns: 2 });
                    }
                }
            }
        }
        observers
    }

    #[test]
    fn a_perfect_server_gives_a_clean_and_complete_ledger_for_any_number_of_workers() {
        for workers in 1..=5 {
            for observer in play(workers, |_, _| 1) {
                assert!(observer.is_complete());
                assert!(observer.deliveries.counts().is_clean(), "{:?}", observer.deliveries.counts());
                assert!(observer.acks.counts().is_clean(), "{:?}", observer.acks.counts());
            }
        }
    }

    #[test]
    fn one_delivery_lost_at_one_member_is_found() {
        let observers = play(2, |connection, k| usize::from(!(connection == 5 && k == 10)));
        let lost: u64 = observers.iter().map(|observer| observer.deliveries.counts().lost()).sum();
        let breaks: u64 = observers.iter().map(|observer| observer.deliveries.counts().seq_breaks).sum();
        assert_eq!((lost, breaks), (1, 1));
    }

    #[test]
    fn one_delivery_doubled_at_one_member_is_found() {
        let observers = play(2, |connection, k| if connection == 5 && k == 10 { 2 } else { 1 });
        let doubled: u64 = observers.iter().map(|observer| observer.deliveries.counts().doubled).sum();
        assert_eq!(doubled, 1);
    }

    #[test]
    fn a_message_of_another_room_is_stray() {
        let mut observer = Observer::new(plan(TOPOLOGY, 50, 0, 1));
        let text = br#"{"type":"chat_message","content":"rw:0:0:1:x","timestamp":1,"seq":1}"#;
        observer.observe(11, Event::Text { text, at_ns: 2 });
        assert_eq!(observer.deliveries.counts().stray, 1);
    }

    #[test]
    fn only_the_window_is_measured_but_the_ledger_keeps_all() {
        let mut observer = Observer::new(plan(TOPOLOGY, 50, 0, 1));
        observer.measure(100..200);
        for (number, intended_ns, at_ns) in [(0, 90, 110), (1, 150, 160), (2, 199, 250)] {
            let text = format!(r#"{{"type":"chat_message","content":"rw:0:{number}:{intended_ns}:x","seq":1}}"#);
            observer.observe(0, Event::Text { text: text.as_bytes(), at_ns });
        }
        assert_eq!(observer.deliveries.counts().arrived, 3);
        assert_eq!(observer.arrived_in_window, 2);
        assert_eq!(observer.delivery.percentiles().map(|percentiles| percentiles.count), Some(2));
    }

    #[test]
    fn errors_and_reasons_are_counted_by_text_and_bounded() {
        let mut observer = Observer::new(plan(TOPOLOGY, 50, 0, 1));
        for at in 0..100 {
            observer.observe(0, Event::Closed(format!("reason {at}")));
            observer.observe(0, Event::Text { text: br#"{"type":"error","code":"forbidden"}"#, at_ns: 1 });
        }
        assert_eq!(observer.closed.len(), TEXTS_MAX + 1);
        assert_eq!(observer.closed.values().sum::<u64>(), 100);
        assert_eq!(observer.complaints.values().copied().collect::<Vec<_>>(), [100]);
    }
}
