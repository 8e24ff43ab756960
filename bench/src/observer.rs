//! What a worker makes of the events of its connections: who is ready, the two ledgers, times, complaints.
//! `worker` owns it, hands it every event of its swarm, and does what it asks for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::layout::Layout;
use crate::ledger::Ledger;
use crate::payload::{self, Incoming, Position, Stamp};
use crate::plan::{Mode, Move, Pace};
use crate::swarm::Event;
use crate::timed::{Counted, Record, Timed};

/// How many different reasons and complaints are kept; what comes after counts as "other".
const TEXTS_MAX: usize = 20;
/// Of each as many bytes.
const TEXT_BYTES_MAX: usize = 200;
/// A closed loop is over when nothing has come for so long.
const QUIET_NS: u64 = 500_000_000;

/// A move under way.
#[derive(Clone, Copy, Debug)]
struct Moving {
    what: Move,
    intended_ns: u64,
}

/// One connection of this worker.
#[derive(Clone, Debug, Default)]
struct Member {
    /// Rooms whose join is not answered yet.
    joins_left: usize,
    has_joined: bool,
    moving: Option<Moving>,
}

/// See the module.
pub(crate) struct Observer {
    layout: Rc<Layout>,
    /// How many connections may be used: upgraded, and greeted where the mode has that.
    pub(crate) ready: usize,
    /// How many have joined.
    pub(crate) joined: usize,
    members: Vec<Member>,
    /// Where the memberships of each own connection begin; one for each of its rooms, in order.
    membership_starts: Vec<usize>,
    /// Where the ledger's streams of each membership begin; one for each publisher of the room.
    stream_starts: Vec<usize>,
    /// By membership.
    positions: Vec<Position>,
    /// The measured window, CLOCK_MONOTONIC; empty until the start is known.
    window: Range<u64>,
    pub(crate) deliveries: Ledger,
    pub(crate) acks: Ledger,
    pub(crate) arrived_in_window: u64,
    pub(crate) record: Record,
    last_arrival_ns: u64,
    /// When each own connection last typed; 0: not under way.
    typing_sent_ns: Vec<u64>,
    /// The id of the last message of each room, where receipts are sent.
    last_ids: Vec<String>,
    /// Connections that were greeted again and have to join.
    pub(crate) greeted: Vec<usize>,
    /// Connections whose move has ended.
    pub(crate) settled: Vec<usize>,
    moving: usize,
    /// In a closed loop: publishers whose message is through.
    pub(crate) through: Vec<u32>,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) complaints: BTreeMap<String, u64>,
}

impl Observer {
    pub(crate) fn new(layout: Rc<Layout>) -> Observer {
        let own = layout.own_connections();
        let (mut membership_starts, mut stream_starts, mut streams) = (Vec::with_capacity(own), Vec::new(), 0);
        for local in 0..own {
            membership_starts.push(stream_starts.len());
            for room in layout.topology.rooms_of(layout.connection(local)) {
                stream_starts.push(streams);
                streams += layout.topology.publishers(*room) as usize;
            }
        }
        let (deliveries, acks) =
            if layout.plan.pace == Pace::Closed { (u64::MAX, u64::MAX) } else { (layout.deliveries(), layout.acks()) };
        let rooms_with_ids =
            if layout.plan.extras.receipts_per_second > 0.0 { layout.topology.rooms() as usize } else { 0 };
        Observer {
            ready: 0,
            joined: 0,
            members: vec![Member::default(); own],
            window: 0..0,
            deliveries: Ledger::new(streams, stream_starts.len(), deliveries),
            acks: Ledger::new(layout.topology.all_publishers() as usize, 0, acks),
            positions: vec![Position::default(); stream_starts.len()],
            membership_starts,
            stream_starts,
            arrived_in_window: 0,
            record: Record::default(),
            last_arrival_ns: 0,
            typing_sent_ns: vec![0; own],
            last_ids: vec![String::new(); rooms_with_ids],
            greeted: Vec::new(),
            settled: Vec::new(),
            moving: 0,
            through: Vec::new(),
            closed: BTreeMap::new(),
            complaints: BTreeMap::new(),
            layout,
        }
    }

    /// From now on what was meant to leave within `window` is measured.
    pub(crate) fn measure(&mut self, window: Range<u64>) {
        self.window = window;
    }

    /// Whether nothing more is to come, as of `now_ns`.
    pub(crate) fn is_complete(&self, now_ns: u64) -> bool {
        let through = match self.layout.plan.pace {
            Pace::Open => self.deliveries.is_complete() && self.acks.is_complete(),
            Pace::Closed => now_ns.saturating_sub(self.last_arrival_ns) > QUIET_NS,
        };
        through && self.moving == 0
    }

    /// How many moves are under way.
    pub(crate) fn moving(&self) -> usize {
        self.moving
    }

    /// Whether connection `local` is in the middle of a move.
    pub(crate) fn is_moving(&self, local: usize) -> bool {
        self.members.get(local).is_some_and(|member| member.moving.is_some())
    }

    /// Connection `local` joins `rooms` rooms and waits for the answers.
    pub(crate) fn expect_joins(&mut self, local: usize, rooms: usize) {
        if let Some(member) = self.members.get_mut(local) {
            member.joins_left = rooms;
        }
    }

    /// Connection `local` begins to move; [`Observer::settled`] names it when that is done.
    pub(crate) fn begin_move(&mut self, local: usize, what: Move, intended_ns: u64) {
        if let Some(member) = self.members.get_mut(local) {
            self.moving += usize::from(member.moving.is_none());
            member.moving = Some(Moving { what, intended_ns });
        }
    }

    /// How far connection `local` has read its room `slot`.
    pub(crate) fn position(&self, local: usize, slot: usize) -> Position {
        let membership = self.membership_starts.get(local).map(|start| start + slot);
        membership.and_then(|membership| self.positions.get(membership)).copied().unwrap_or_default()
    }

    /// Connection `local` has just typed.
    pub(crate) fn typed(&mut self, local: usize, intended_ns: u64) {
        self.record.count(Counted::TypingSent);
        if let Some(sent_ns) = self.typing_sent_ns.get_mut(local) {
            *sent_ns = intended_ns;
        }
    }

    /// The id of the last message of `room`; empty before the first.
    pub(crate) fn last_id(&self, room: u32) -> &str {
        self.last_ids.get(room as usize).map_or("", String::as_str)
    }

    /// Connection `local` of this worker has news.
    pub(crate) fn observe(&mut self, local: usize, event: Event<'_>) {
        match event {
            Event::Open if self.layout.plan.mode == Mode::Echo => self.ready += 1,
            Event::Open => {}
            Event::Text { text, at_ns } => self.hear(local, text, at_ns),
            Event::Closed(reason) => count(&mut self.closed, &reason),
        }
    }

    fn hear(&mut self, local: usize, text: &[u8], at_ns: u64) {
        match payload::read(text) {
            Incoming::Delivery { stamp, position } => {
                self.deliver(local, stamp, position, Some(at_ns));
                self.keep_id(stamp, text);
            }
            Incoming::Ack { stamp } => self.acked(local, stamp, at_ns),
            Incoming::Connected => self.greet(local, at_ns),
            Incoming::History(page) => self.catch_up(local, page, at_ns),
            Incoming::Pong if !self.layout.plan.dialect.resumes() => self.join_answered(local, usize::MAX, at_ns),
            Incoming::Pong => {}
            Incoming::Typing { user } => self.hear_typing(user, at_ns),
            Incoming::Receipt => self.record.count(Counted::ReceiptsArrived),
            Incoming::Presence => self.record.count(Counted::PresenceArrived),
            Incoming::Event => self.record.count(Counted::EventsArrived),
            Incoming::Error(text) | Incoming::Unknown(text) => {
                let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_BYTES_MAX)]);
                count(&mut self.complaints, &text);
            }
        }
    }

    fn greet(&mut self, local: usize, at_ns: u64) {
        match self.members.get(local).and_then(|member| member.moving) {
            Some(moving) => {
                self.record.time(Timed::Connect, at_ns.saturating_sub(moving.intended_ns));
                self.greeted.push(local);
            }
            None => self.ready += 1,
        }
    }

    /// A page of history: what was missed, and at its end the join's answer.
    fn catch_up(&mut self, local: usize, page: &[u8], at_ns: u64) {
        let history = payload::History::read(page);
        let rooms = self.layout.topology.rooms_of(self.layout.connection(local));
        let slot = rooms.iter().position(|room| Some(*room) == history.room);
        let Some(slot) = slot else { return self.deliveries.stray() };
        let membership = self.membership_starts[local] + slot;
        for (stamp, position) in history.messages() {
            // What came live before the page was asked for is in it again: clients go by their position.
            if position.seq > self.positions[membership].seq {
                self.record.count(Counted::Resumed);
                self.deliver(local, stamp, position, None);
            }
        }
        if !history.more {
            let position = &mut self.positions[membership];
            if position.seq == 0 {
                *position = history.position;
            }
            self.join_answered(local, 1, at_ns);
        }
    }

    fn join_answered(&mut self, local: usize, rooms: usize, at_ns: u64) {
        let Some(member) = self.members.get_mut(local) else { return };
        if member.joins_left == 0 {
            return;
        }
        member.joins_left = member.joins_left.saturating_sub(rooms);
        if member.joins_left > 0 {
            return;
        }
        if !member.has_joined {
            member.has_joined = true;
            self.joined += 1;
        }
        if let Some(moving) = member.moving.take() {
            self.moving -= 1;
            self.settled.push(local);
            let (timed, counted) = match moving.what {
                Move::Reconnect => (Timed::Reconnect, Counted::Reconnects),
                Move::Join | Move::Leave => (Timed::Join, Counted::Joins),
            };
            self.record.count(counted);
            self.record.time(timed, at_ns.saturating_sub(moving.intended_ns));
        }
    }

    /// A message for `local`; without a time it came by resume.
    fn deliver(&mut self, local: usize, stamp: Stamp, position: Position, live_ns: Option<u64>) {
        let layout = Rc::clone(&self.layout);
        let connection = layout.connection(local);
        let Some((room, publisher)) = layout.topology.room_of_publisher(stamp.publisher) else {
            return self.deliveries.stray();
        };
        let Some(slot) = layout.topology.rooms_of(connection).iter().position(|own| *own == room) else {
            return self.deliveries.stray();
        };
        let membership = self.membership_starts[local] + slot;
        let stream = self.stream_starts[membership] + publisher as usize;
        if layout.owes_all(connection) {
            self.deliveries.record(stream, stamp.number);
        } else {
            self.deliveries.record_loose(stream, stamp.number);
        }
        if position.seq != 0 {
            self.deliveries.record_seq(membership, position.seq);
            self.positions[membership] = position;
        }
        let Some(at_ns) = live_ns else { return };
        self.last_arrival_ns = at_ns;
        self.arrived_in_window += u64::from(self.window.contains(&at_ns));
        if self.window.contains(&stamp.intended_ns) {
            let latency_ns = at_ns.saturating_sub(stamp.intended_ns);
            self.record.time(Timed::Delivery, latency_ns);
            let publisher = layout.topology.connection_of(stamp.publisher);
            if layout.plan.addrs.len() > 1 && layout.node_of(publisher) != layout.node_of(connection) {
                self.record.time(Timed::DeliveryAcross, latency_ns);
            }
        }
        if layout.plan.pace == Pace::Closed
            && (layout.plan.mode == Mode::Echo || !layout.plan.dialect.acks())
            && layout.topology.connection_of(stamp.publisher) == connection
        {
            self.through.push(stamp.publisher);
        }
    }

    fn keep_id(&mut self, stamp: Stamp, text: &[u8]) {
        if self.last_ids.is_empty() {
            return;
        }
        let room = self.layout.topology.room_of_publisher(stamp.publisher);
        if let Some((room, _)) = room
            && let Some(id) = payload::message_id(text)
        {
            let last = &mut self.last_ids[room as usize];
            last.clear();
            last.push_str(&String::from_utf8_lossy(id));
        }
    }

    fn acked(&mut self, local: usize, stamp: Stamp, at_ns: u64) {
        let topology = &self.layout.topology;
        let is_own = topology.room_of_publisher(stamp.publisher).is_some()
            && topology.connection_of(stamp.publisher) == self.layout.connection(local);
        if !is_own {
            return self.acks.stray();
        }
        self.acks.record(stamp.publisher as usize, stamp.number);
        self.last_arrival_ns = at_ns;
        if self.window.contains(&stamp.intended_ns) {
            self.record.time(Timed::Ack, at_ns.saturating_sub(stamp.intended_ns));
        }
        if self.layout.plan.pace == Pace::Closed {
            self.through.push(stamp.publisher);
        }
    }

    fn hear_typing(&mut self, user: Option<u32>, at_ns: u64) {
        self.record.count(Counted::TypingArrived);
        let sent_ns = user
            .filter(|user| *user < self.layout.topology.connections())
            .and_then(|user| self.layout.local(user))
            .map_or(0, |local| self.typing_sent_ns[local]);
        if self.window.contains(&sent_ns) {
            self.record.time(Timed::Typing, at_ns.saturating_sub(sent_ns));
        }
    }
}

fn count(texts: &mut BTreeMap<String, u64>, text: &str) {
    let known = texts.contains_key(text) || texts.len() < TEXTS_MAX;
    *texts.entry(if known { text } else { "other" }.to_owned()).or_insert(0) += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Dialect;
    use crate::layout::tests::{layout, plan};
    use crate::plan::{Extras, Plan};
    use crate::topology::Rooms;
    use crate::topology::tests::ZIPF;

    const ROOMS: Rooms = Rooms::Equal { rooms: 3, members: 4, publishers: 2 };

    fn observer(rooms: Rooms, messages: u64, worker: u32, workers: u32) -> Observer {
        Observer::new(Rc::new(layout(rooms, messages, worker, workers)))
    }

    fn text(stamp: Stamp, seq: u64) -> String {
        let mut content = String::new();
        stamp.write(&mut content);
        format!(
            r#"{{"type":"chat_message","messageId":"m{seq}","content":"{content}:x","timestamp":1,"seq":{seq},"epoch":1}}"#
        )
    }

    /// Plays the schedule against the observers of `workers` workers, as a perfect server would, except that `spoil`
    /// may change how often each delivery comes (for worker's connection, message).
    fn play(rooms: Rooms, workers: u32, spoil: impl Fn(u32, u64) -> usize) -> Vec<Observer> {
        let mut observers: Vec<Observer> = (0..workers).map(|worker| observer(rooms, 50, worker, workers)).collect();
        let whole = layout(rooms, 50, 0, 1);
        let (mut walk, mut seqs, mut k) = (whole.schedule.walk(), vec![0_u64; whole.topology.rooms() as usize], 0);
        while let Some(planned) = walk.next(&whole.schedule, &whole.topology) {
            seqs[planned.room as usize] += 1;
            let stamp = Stamp { publisher: planned.publisher, number: planned.number, intended_ns: 1 };
            let text = text(stamp, seqs[planned.room as usize]);
            for observer in &mut observers {
                for local in 0..observer.layout.own_connections() {
                    let connection = observer.layout.connection(local);
                    if whole.topology.rooms_of(connection).contains(&planned.room) {
                        for _ in 0..spoil(connection, k) {
                            observer.observe(local, Event::Text { text: text.as_bytes(), at_ns: 2 });
                        }
                    }
                    if whole.topology.connection_of(planned.publisher) == connection {
                        let mut ack = String::from(r#"{"type":"ack","clientId":""#);
                        stamp.write(&mut ack);
                        ack.push_str(r#"","seq":1}"#);
                        observer.observe(local, Event::Text { text: ack.as_bytes(), at_ns: 2 });
                    }
                }
            }
            k += 1;
        }
        observers
    }

    #[test]
    fn a_perfect_server_gives_a_clean_and_complete_ledger_for_any_number_of_workers_and_any_rooms() {
        for workers in 1..=5 {
            for rooms in [ROOMS, ZIPF] {
                for observer in play(rooms, workers, |_, _| 1) {
                    assert!(observer.is_complete(0));
                    assert!(observer.deliveries.counts().is_clean(), "{:?}", observer.deliveries.counts());
                    assert!(observer.acks.counts().is_clean(), "{:?}", observer.acks.counts());
                }
            }
        }
    }

    #[test]
    fn one_delivery_lost_at_one_member_is_found() {
        let observers = play(ROOMS, 2, |connection, k| usize::from(!(connection == 5 && k == 10)));
        let lost: u64 = observers.iter().map(|observer| observer.deliveries.counts().lost()).sum();
        let breaks: u64 = observers.iter().map(|observer| observer.deliveries.counts().seq_breaks).sum();
        assert_eq!((lost, breaks), (1, 1));
    }

    #[test]
    fn one_delivery_doubled_at_one_member_is_found() {
        let observers = play(ROOMS, 2, |connection, k| if connection == 5 && k == 10 { 2 } else { 1 });
        let doubled: u64 = observers.iter().map(|observer| observer.deliveries.counts().doubled).sum();
        assert_eq!(doubled, 1);
    }

    #[test]
    fn a_message_of_another_room_is_stray() {
        let mut observer = observer(ROOMS, 50, 0, 1);
        let text = text(Stamp { publisher: 0, number: 0, intended_ns: 1 }, 1);
        observer.observe(11, Event::Text { text: text.as_bytes(), at_ns: 2 });
        assert_eq!(observer.deliveries.counts().stray, 1);
    }

    #[test]
    fn only_the_window_is_measured_but_the_ledger_keeps_all() {
        let mut observer = observer(ROOMS, 50, 0, 1);
        observer.measure(100..200);
        for (number, intended_ns, at_ns) in [(0, 90, 110), (1, 150, 160), (2, 199, 250)] {
            let text = text(Stamp { publisher: 0, number, intended_ns }, u64::from(number) + 1);
            observer.observe(0, Event::Text { text: text.as_bytes(), at_ns });
        }
        assert_eq!(observer.deliveries.counts().arrived, 3);
        assert_eq!(observer.arrived_in_window, 2);
        let times = serde_json::to_value(observer.record.times()).expect("plain numbers");
        assert_eq!(times["delivery"][0][1], 2, "{times}");
    }

    #[test]
    fn errors_and_reasons_are_counted_by_text_and_bounded() {
        let mut observer = observer(ROOMS, 50, 0, 1);
        for at in 0..100 {
            observer.observe(0, Event::Closed(format!("reason {at}")));
            observer.observe(0, Event::Text { text: br#"{"type":"error","code":"forbidden"}"#, at_ns: 1 });
        }
        assert_eq!(observer.closed.len(), TEXTS_MAX + 1);
        assert_eq!(observer.closed.values().sum::<u64>(), 100);
        assert_eq!(observer.complaints.values().copied().collect::<Vec<_>>(), [100]);
    }

    /// One room of a publisher and one that comes and goes.
    fn moving(dialect: Dialect) -> Observer {
        let rooms = Rooms::Equal { rooms: 1, members: 2, publishers: 1 };
        let extras = Extras { moves: vec![Move::Reconnect], ..Extras::default() };
        Observer::new(Rc::new(Layout::new(Plan { dialect, extras, ..plan(rooms, 6, 0, 1) })))
    }

    fn stamp(number: u32) -> Stamp {
        Stamp { publisher: 0, number, intended_ns: 1 }
    }

    fn page(messages: &[String], seq: u64, more: bool) -> String {
        let messages = messages.join(",");
        format!(
            r#"{{"type":"room_history","roomId":"bench-test-0","messages":[{messages}],"seq":{seq},"epoch":1,"complete":true,"more":{more}}}"#
        )
    }

    #[test]
    fn who_resumes_gets_what_it_missed_once_and_the_move_ends_with_the_last_page() {
        let mut observer = moving(Dialect::Roomwire);
        let hear = |observer: &mut Observer, text: &str| {
            observer.observe(1, Event::Text { text: text.as_bytes(), at_ns: 50 });
        };
        observer.expect_joins(1, 1);
        hear(&mut observer, &page(&[], 0, false));
        assert_eq!(observer.joined, 1);
        hear(&mut observer, &text(stamp(0), 1));
        observer.begin_move(1, Move::Reconnect, 10);
        assert_eq!((observer.moving(), observer.position(1, 0)), (1, Position { seq: 1, epoch: 1 }));
        hear(&mut observer, r#"{"type":"connected","message":"Welcome"}"#);
        assert_eq!(std::mem::take(&mut observer.greeted), [1]);
        observer.expect_joins(1, 1);
        // The page overlaps with what is known, as it may when a join crosses a delivery.
        hear(&mut observer, &page(&[text(stamp(0), 1), text(stamp(1), 2)], 3, true));
        assert!(observer.is_moving(1));
        hear(&mut observer, &page(&[text(stamp(2), 3)], 3, false));
        assert_eq!((observer.is_moving(1), observer.settled.as_slice(), observer.moving()), (false, [1].as_slice(), 0));
        for number in 3..6 {
            hear(&mut observer, &text(stamp(number), u64::from(number) + 1));
        }
        let counts = observer.deliveries.counts();
        assert_eq!((counts.arrived, counts.doubled, counts.out_of_order, counts.seq_breaks), (6, 0, 0, 0));
        assert_eq!(observer.record.counted(Counted::Resumed), 2);
        assert_eq!(observer.record.counted(Counted::Reconnects), 1);
    }

    #[test]
    fn who_cannot_resume_may_miss_messages_but_gets_none_twice() {
        let mut observer = moving(Dialect::Plain);
        for number in [0, 3, 4, 4] {
            let text = text(stamp(number), 0).replace(r#","seq":0,"epoch":1"#, "");
            observer.observe(1, Event::Text { text: text.as_bytes(), at_ns: 50 });
        }
        let counts = observer.deliveries.counts();
        // Six are owed to the publisher only, and none has come to it.
        assert_eq!((counts.expected, counts.arrived, counts.doubled), (6, 0, 1));
    }
}
