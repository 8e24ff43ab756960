//! What a worker makes of the events of its connections: who is ready, the two ledgers, times, complaints.
//! `worker` owns it, hands it every event of its swarm, and does what it asks for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::dialect::{Dialect, pusher};
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
    read: Read,
}

/// What a read has brought so far.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    messages: u32,
    last_seq: u64,
    has_gap: bool,
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
    /// Of each own connection, where the dialect signs for it.
    socket_ids: Vec<String>,
    /// Connections that are open and have to speak first, where the dialect wants that.
    pub(crate) opened: Vec<usize>,
    /// Connections whose server wants an answer to its ping.
    pub(crate) pinged: Vec<usize>,
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
            socket_ids: vec![String::new(); if layout.plan.dialect == Dialect::Pusher { own } else { 0 }],
            opened: Vec::new(),
            pinged: Vec::new(),
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

    /// Connection `local` joins `rooms` rooms and waits for the answers; who has no room has joined.
    pub(crate) fn expect_joins(&mut self, local: usize, rooms: usize, now_ns: u64) {
        if let Some(member) = self.members.get_mut(local) {
            member.joins_left = rooms;
            if rooms == 0 {
                self.all_joined(local, now_ns);
            }
        }
    }

    /// Connection `local` begins to move; [`Observer::settled`] names it when that is done.
    pub(crate) fn begin_move(&mut self, local: usize, what: Move, intended_ns: u64) {
        if let Some(member) = self.members.get_mut(local) {
            self.moving += usize::from(member.moving.is_none());
            member.moving = Some(Moving { what, intended_ns });
            member.read = Read::default();
        }
    }

    /// How far connection `local` has read its room `slot`.
    pub(crate) fn position(&self, local: usize, slot: usize) -> Position {
        let membership = self.membership_starts.get(local).map(|start| start + slot);
        membership.and_then(|membership| self.positions.get(membership)).copied().unwrap_or_default()
    }

    /// What a subscription of connection `local` is signed for, where the dialect does that.
    pub(crate) fn socket_id(&self, local: usize) -> &str {
        self.socket_ids.get(local).map_or("", String::as_str)
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
            Event::Open if self.layout.plan.dialect == Dialect::Centrifugo => self.opened.push(local),
            Event::Open => {}
            Event::Text { text, at_ns } if self.layout.plan.dialect == Dialect::Centrifugo => {
                text.split(|byte| *byte == b'\n').for_each(|line| self.hear(local, line, at_ns));
            }
            Event::Text { text, at_ns } => self.hear(local, text, at_ns),
            Event::Closed(reason) => count(&mut self.closed, &reason),
        }
    }

    fn hear(&mut self, local: usize, text: &[u8], at_ns: u64) {
        match payload::read(self.layout.plan.dialect, text) {
            Incoming::Delivery { stamp, position } => {
                self.deliver(local, stamp, position, Some(at_ns));
                self.keep_id(stamp, text);
            }
            Incoming::Ack { stamp } => self.acked(local, stamp, at_ns),
            Incoming::Connected => self.greet(local, text, at_ns),
            Incoming::Joined => self.join_answered(local, 1, at_ns),
            Incoming::Ping => self.pinged.push(local),
            Incoming::History(page) => self.catch_up(local, page, at_ns),
            Incoming::Pong if !self.layout.plan.dialect.resumes() => self.join_answered(local, usize::MAX, at_ns),
            Incoming::Pong => {}
            Incoming::Typing { user } => self.hear_typing(local, user, at_ns),
            Incoming::Receipt => self.record.count(Counted::ReceiptsArrived),
            Incoming::Presence => self.record.count(Counted::PresenceArrived),
            Incoming::Event => self.record.count(Counted::EventsArrived),
            Incoming::Error(text) | Incoming::Unknown(text) => {
                let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_BYTES_MAX)]);
                count(&mut self.complaints, &text);
            }
        }
    }

    fn greet(&mut self, local: usize, text: &[u8], at_ns: u64) {
        if let Some(socket_id) = self.socket_ids.get_mut(local) {
            *socket_id = pusher::socket_id(text).unwrap_or_default().to_owned();
        }
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
        let member = &self.members[local];
        let is_read = member.moving.is_some_and(|moving| moving.what == Move::Read);
        // What a first join shows was there before the run.
        let is_resume = member.has_joined && !is_read;
        for (stamp, position) in history.messages() {
            if is_read {
                self.members[local].read.add(position.seq);
                continue;
            }
            // What came live before the page was asked for is in it again: clients go by their position.
            if is_resume && position.seq > self.positions[membership].seq {
                self.record.count(Counted::Resumed);
                self.deliver(local, stamp, position, None);
            }
        }
        if !history.more {
            let read = self.members[local].read;
            if is_read && (read.messages != self.layout.plan.extras.history || read.has_gap) {
                let gap = if read.has_gap { ", with a gap" } else { "" };
                count(&mut self.complaints, &format!("a history of {} messages{gap}", read.messages));
            }
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
        if member.joins_left == 0 {
            self.all_joined(local, at_ns);
        }
    }

    fn all_joined(&mut self, local: usize, at_ns: u64) {
        let Some(member) = self.members.get_mut(local) else { return };
        let is_first = !std::mem::replace(&mut member.has_joined, true);
        self.joined += usize::from(is_first);
        if let Some(moving) = member.moving.take() {
            self.moving -= 1;
            self.settled.push(local);
            let (timed, counted) = match moving.what {
                Move::Reconnect => (Timed::Reconnect, Counted::Reconnects),
                Move::Join | Move::Leave => (Timed::Join, Counted::Joins),
                Move::Read if is_first => (Timed::FirstRead, Counted::Reads),
                Move::Read => (Timed::NextRead, Counted::Reads),
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
            if layout.plan.addrs.len() > 1 {
                let is_within = layout.node_of(publisher) == layout.node_of(connection);
                let timed = if is_within { Timed::DeliveryWithin } else { Timed::DeliveryAcross };
                self.record.time(timed, latency_ns);
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

    fn hear_typing(&mut self, local: usize, user: Option<u32>, at_ns: u64) {
        self.record.count(Counted::TypingArrived);
        let layout = &self.layout;
        let Some(sender) = user.and_then(|user| layout.connection_of_user(user)) else { return };
        let sent_ns = layout.local(sender).map_or(0, |local| self.typing_sent_ns[local]);
        if self.window.contains(&sent_ns) {
            self.record.time(Timed::Typing, at_ns.saturating_sub(sent_ns));
            if layout.node_of(sender) != layout.node_of(layout.connection(local)) {
                self.record.time(Timed::TypingAcross, at_ns.saturating_sub(sent_ns));
            }
        }
    }
}

impl Read {
    fn add(&mut self, seq: u64) {
        self.has_gap |= self.messages > 0 && seq != self.last_seq + 1;
        self.messages += 1;
        self.last_seq = seq;
    }
}

fn count(texts: &mut BTreeMap<String, u64>, text: &str) {
    let known = texts.contains_key(text) || texts.len() < TEXTS_MAX;
    *texts.entry(if known { text } else { "other" }.to_owned()).or_insert(0) += 1;
}

#[cfg(test)]
mod tests;
