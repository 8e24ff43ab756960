//! One room on this node: its roles, the requests to the bus that are under way, and the pump that moves all on.
//!
//! Every event changes some state, then [`Room::pump`] looks at the whole room and sends what can be sent. So no role
//! has to know what another one waits for.

use super::history::History;
use super::init::Init;
use super::pace::Permit;
use super::receipt;
use super::receiver::{Receiver, Subscription};
use super::recent::Recent;
use super::shared::{Asked, BACK_OFF_MS_MAX, Purpose, ReceiptAsked, Shared, Turn, hint_ms};
use super::void::VoidRun;
use super::writer::Writer;
use super::{BridgeEffect, USER_ROOM_IDLE_MS};
use crate::Now;
use crate::bus::{BusEvent, BusReply, BusRequest};
use crate::mesh::ToShard;
use crate::names::{RoomId, ShardId, ShardSet, UserId, home};
use crate::store::{StoreReply, StoreRequest, Ticket};
use bytes::Bytes;
use roomwire_wire::id::USER_ROOM_PREFIX;
use std::collections::VecDeque;

/// What a reply of the bus is for: a room's requests are answered in order.
#[derive(Debug)]
pub(super) enum BusAsked {
    Sequence,
    /// The (generation, seq) of each item.
    Publish(Vec<(u64, u64)>),
    Void1,
    Void2,
    /// With its number.
    Head(u64),
    Begin,
    Finish,
    Retire,
    Subscribe,
    /// For the read of history with that number.
    Log(u64),
}

#[derive(Debug, Default)]
struct Reads {
    cold: Ticket,
    history: Ticket,
    hole: Ticket,
    passed: Ticket,
}

/// One room on this node.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: RoomId,
    /// Shards with members.
    pub(super) shards: ShardSet,
    /// Requests to the bus that are under way.
    bus_asked: VecDeque<BusAsked>,
    /// Reads of the store that are under way, the latest of each kind: the reply to an earlier one is too old to use.
    reads: Reads,
    /// A HEAD is due; one that is under way may have been carried out too early to count.
    head_wanted: bool,
    /// The number of the last HEAD that was sent.
    pub(super) heads: u64,
    /// The bus holds no state of the room, and somebody needs it.
    pub(super) init_wanted: bool,
    pub(super) receiver: Receiver,
    pub(super) recent: Recent,
    pub(super) history: Option<Box<History>>,
    pub(super) writer: Option<Box<Writer>>,
    pub(super) init: Option<Box<Init>>,
    pub(super) void: Option<Box<VoidRun>>,
    /// To ask the store for what makes the room whole.
    pub(super) permit: Permit,
    /// The latest generation whose beginning this node has written to the store: from then on no older one may be served.
    pub(super) made: u64,
    /// A `user:` room stays until then.
    keep_until_ms: u64,
    /// The room is in the list of the next flush.
    is_dirty: bool,
    /// The earliest timer that is set for it.
    timer_ms: Option<u64>,
}

impl Room {
    pub(super) fn new(id: RoomId) -> Room {
        Room {
            id,
            shards: ShardSet::default(),
            bus_asked: VecDeque::new(),
            reads: Reads::default(),
            head_wanted: false,
            heads: 0,
            init_wanted: false,
            receiver: Receiver::default(),
            recent: Recent::default(),
            history: None,
            writer: None,
            init: None,
            void: None,
            permit: Permit::None,
            made: 0,
            keep_until_ms: 0,
            is_dirty: false,
            timer_ms: None,
        }
    }

    // What shards say.

    pub(super) fn subscribe(&mut self, turn: &mut Turn<'_>, shard: ShardId) {
        self.shards.insert(shard);
        if let Some(user) = self.id.strip_prefix(USER_ROOM_PREFIX) {
            turn.effects.push(BridgeEffect::Shard(shard, ToShard::UserSubscribed { user: UserId::new(user) }));
        }
        self.listen(turn);
    }

    pub(super) fn unsubscribe(&mut self, turn: &mut Turn<'_>, shard: ShardId) {
        self.shards.remove(shard);
        if self.shards.is_empty() && !self.is_user() {
            self.listen_no_longer(turn);
        }
    }

    /// Has the room for a `user:` id: shards of a node that stands alone do not subscribe to these, so the room listens
    /// while it is used.
    pub(super) fn touch(&mut self, turn: &mut Turn<'_>) {
        if self.is_user() {
            self.keep_until_ms = turn.now_ms() + USER_ROOM_IDLE_MS;
            self.listen(turn);
        }
    }

    pub(super) fn is_user(&self) -> bool {
        self.id.starts_with(USER_ROOM_PREFIX)
    }

    fn listen(&mut self, turn: &mut Turn<'_>) {
        if !self.receiver.listens {
            let look = turn.shared.look_at(turn.now, &self.id);
            // A position from before hears nothing of what came since.
            self.receiver = Receiver::listening(look);
            self.ask_subscription(turn);
        }
    }

    pub(super) fn has_asked_subscription(&self) -> bool {
        self.bus_asked.iter().any(|asked| matches!(asked, BusAsked::Subscribe))
    }

    pub(super) fn ask_subscription(&mut self, turn: &mut Turn<'_>) {
        self.receiver.subscription = Subscription::Asked;
        self.ask_bus(turn, BusAsked::Subscribe, BusRequest::Subscribe { room: self.id.clone() });
    }

    fn listen_no_longer(&mut self, turn: &mut Turn<'_>) {
        if self.receiver.listens {
            self.receiver = Receiver::default();
            self.recent.end(turn.shared);
            turn.bus(BusRequest::Unsubscribe { room: self.id.clone() });
        }
    }

    // What the bus and the store say.

    pub(super) fn ask_bus(&mut self, turn: &mut Turn<'_>, asked: BusAsked, request: BusRequest) {
        self.bus_asked.push_back(asked);
        turn.bus(request);
    }

    /// The bus must not serve that generation any longer; its head is looked at then.
    pub(super) fn retire(&mut self, turn: &mut Turn<'_>, generation: u64) {
        self.ask_bus(turn, BusAsked::Retire, BusRequest::Retire { room: self.id.clone(), generation });
    }

    pub(super) fn ask_store(
        &mut self,
        turn: &mut Turn<'_>,
        purpose: Purpose,
        request: impl FnOnce(Ticket, RoomId) -> StoreRequest,
    ) {
        let room = self.id.clone();
        let ticket = turn.store(Asked::Room(self.id.clone(), purpose), |ticket| request(ticket, room));
        if let Some(latest) = self.latest_read(purpose) {
            *latest = ticket;
        }
    }

    /// Where the ticket of the latest read of that kind is kept, if it is a read.
    fn latest_read(&mut self, purpose: Purpose) -> Option<&mut Ticket> {
        match purpose {
            Purpose::Cold | Purpose::ColdOldest => Some(&mut self.reads.cold),
            Purpose::Bases | Purpose::Decided | Purpose::Latest | Purpose::Page => Some(&mut self.reads.history),
            Purpose::Hole => Some(&mut self.reads.hole),
            Purpose::Passed => Some(&mut self.reads.passed),
            Purpose::Init { .. }
            | Purpose::Resolve { .. }
            | Purpose::Known { .. }
            | Purpose::BeforeVoid
            | Purpose::Void
            | Purpose::Fence => None,
        }
    }

    pub(super) fn bus_reply(&mut self, turn: &mut Turn<'_>, reply: BusReply) {
        let Some(asked) = self.bus_asked.pop_front() else { return };
        let hint_ms = match &reply {
            BusReply::Failed { retry_after_ms, .. } => {
                turn.shared.bus_failed(turn.now, *retry_after_ms);
                *retry_after_ms
            }
            BusReply::Refused { .. } => {
                turn.shared.bus_works();
                BACK_OFF_MS_MAX as u32
            }
            _ => {
                turn.shared.bus_works();
                0
            }
        };
        match asked {
            BusAsked::Sequence => self.sequenced(turn, reply),
            BusAsked::Publish(places) => self.published(turn, &places, &reply, hint_ms),
            BusAsked::Head(number) => match reply {
                BusReply::Head { head, .. } => self.head(turn, number, head),
                BusReply::NeedInit { .. } => self.head_needs_init(turn, number, None),
                BusReply::Absent { server, .. } => self.head_needs_init(turn, number, Some(server)),
                _ => self.head_failed(turn, hint_ms),
            },
            BusAsked::Begin => self.begun(turn, &reply),
            BusAsked::Finish => self.init_finished(turn, &reply),
            BusAsked::Void1 => self.void1_answered(turn, &reply),
            BusAsked::Void2 => self.void2_answered(turn, &reply),
            BusAsked::Retire => self.want_head(),
            BusAsked::Log(number) => self.log_read(turn, number, reply),
            BusAsked::Subscribe => self.subscribed(turn, matches!(reply, BusReply::Subscribed { .. }), hint_ms),
        }
    }

    pub(super) fn bus_event(&mut self, turn: &mut Turn<'_>, event: BusEvent) {
        match event {
            BusEvent::Message { .. } | BusEvent::Control { .. } => self.hear(turn, event),
            BusEvent::Ephemeral { payload, .. } => self.tell_members(turn, &payload),
            BusEvent::Doubt { .. } => self.doubt(turn),
            BusEvent::Lost => self.want_head(),
            BusEvent::Works => {}
        }
    }

    pub(super) fn store_reply(&mut self, turn: &mut Turn<'_>, purpose: Purpose, reply: StoreReply) {
        if self.latest_read(purpose).is_some_and(|latest| *latest != reply.ticket()) {
            return;
        }
        match purpose {
            Purpose::Init { token } => self.init_stored(turn, token, reply),
            Purpose::Cold => self.cold_read(turn, reply),
            Purpose::ColdOldest => self.cold_oldest(turn, &reply),
            Purpose::Bases => self.bases_read(turn, reply),
            Purpose::Decided => self.decided_read(turn, reply),
            Purpose::Latest => self.generation_read(turn, &reply),
            Purpose::Page => self.page_read(turn, reply),
            Purpose::Hole => self.hole_read(turn, reply),
            Purpose::Passed => self.passed_read(turn, reply),
            Purpose::Resolve { generation, seq } => self.resolved(turn, generation, seq, &reply),
            Purpose::Fence => self.fenced(turn, &reply),
            Purpose::Known { attempt, seq } => self.known_read(turn, attempt, seq, &reply),
            Purpose::BeforeVoid => self.read_before_void(turn, &reply),
            Purpose::Void => self.void_stored(turn, &reply, hint_ms(&reply)),
        }
    }

    /// A receipt is stored: the cache learns of the reader, and so do the members.
    pub(super) fn read(&mut self, turn: &mut Turn<'_>, asked: &ReceiptAsked) {
        self.touch(turn);
        self.recent.read(turn.shared, asked.generation, asked.seq, &asked.user);
        if let Some(history) = &mut self.history {
            history.read(asked.generation, asked.seq, &asked.user);
        }
        let payload = receipt::receipt_json(turn, asked);
        self.tell_members(turn, &payload);
        if turn.shared.config.cluster {
            turn.bus(BusRequest::Ephemeral { room: self.id.clone(), payload });
        }
        if turn.shared.config.bus_log {
            let (generation, seq, user) = (asked.generation, asked.seq, asked.user.clone());
            turn.bus(BusRequest::LogRead { room: self.id.clone(), generation, seq, user });
        }
    }

    // Delivery.

    /// The shards that get what is said in the room: those with members, or the user's home.
    fn audience(&self, shared: &Shared) -> impl Iterator<Item = ShardId> + use<> {
        let mut shards = self.shards;
        if let Some(user) = self.id.strip_prefix(USER_ROOM_PREFIX) {
            shards = ShardSet::default();
            shards.insert(home(user, shared.config.shards));
        }
        (0..shared.config.shards).map(ShardId).filter(move |shard| shards.contains(*shard))
    }

    /// An event without a seq.
    fn tell_members(&self, turn: &mut Turn<'_>, payload: &Bytes) {
        for shard in self.audience(turn.shared) {
            let (room, payload) = (self.id.clone(), payload.clone());
            turn.effects.push(BridgeEffect::Shard(shard, ToShard::Event { room, payload }));
        }
    }

    pub(super) fn deliver(&self, turn: &mut Turn<'_>, seq: u64, payload: &Bytes, received_us: u64) {
        for shard in self.audience(turn.shared) {
            let (room, payload) = (self.id.clone(), payload.clone());
            turn.effects.push(BridgeEffect::Shard(shard, ToShard::Deliver { room, seq, payload, received_us }));
        }
    }

    // Moving on.

    pub(super) fn want_head(&mut self) {
        self.head_wanted = true;
    }

    pub(super) fn pump(&mut self, turn: &mut Turn<'_>) {
        self.pump_init(turn);
        self.pump_cold(turn);
        self.pump_receiver(turn);
        self.pump_history(turn);
        self.pump_writer(turn);
        if self.head_wanted && !self.bus_asked.iter().any(|asked| matches!(asked, BusAsked::Head(_))) {
            self.head_wanted = false;
            self.heads += 1;
            self.ask_bus(turn, BusAsked::Head(self.heads), BusRequest::Head { room: self.id.clone() });
        }
        if self.has_flush_work(turn.now) && !self.is_dirty {
            self.is_dirty = true;
            turn.shared.dirty.push(self.id.clone());
        }
        if !self.needs_permit(turn.now_ms()) {
            turn.shared.pace.give_back(&mut self.permit);
        }
    }

    pub(super) fn flush_publish(&mut self, turn: &mut Turn<'_>) {
        self.is_dirty = false;
        self.send_publishes(turn);
    }

    /// A timer of the room that was due at `due_ms`. The pump, which follows, does the rest.
    pub(super) fn tick(&mut self, turn: &mut Turn<'_>, due_ms: u64) {
        if self.timer_ms == Some(due_ms) {
            self.timer_ms = None;
        }
        self.tick_receiver(turn);
        self.tick_writer(turn);
    }

    /// When the room must be looked at again, if no earlier timer is set.
    pub(super) fn arm(&mut self, now: Now) -> Option<u64> {
        let keep = self.is_user().then_some(self.keep_until_ms).filter(|due| *due > now.mono_ms());
        let init = self.init.as_ref().and_then(|init| init.retry_ms);
        let writer = self.writer.as_ref().and_then(|writer| writer.due_ms());
        // What is due already had its turn just now: it waits for something that is under way.
        let due = [keep, init, writer, self.receiver.due_ms()].into_iter().flatten().min()?.max(now.mono_ms() + 1);
        if self.timer_ms.is_some_and(|set| set <= due) {
            return None;
        }
        self.timer_ms = Some(due);
        Some(due)
    }

    /// Whether nothing would be lost with the room.
    pub(super) fn is_disposable(&self, now: Now) -> bool {
        self.shards.is_empty()
            && self.bus_asked.is_empty()
            && self.history.is_none()
            && self.writer.is_none()
            && self.init.is_none()
            && self.void.is_none()
            && !self.receiver.is_reading()
            && !self.is_dirty
            && (!self.is_user() || now.mono_ms() >= self.keep_until_ms)
    }

    pub(super) fn dispose(&mut self, turn: &mut Turn<'_>) {
        turn.shared.pace.give_back(&mut self.permit);
        self.listen_no_longer(turn);
    }

    /// The hand of the clock over rooms with recent messages: `true` spares the room this time.
    pub(super) fn give_up_recent(&mut self, shared: &mut Shared) -> bool {
        if self.recent.take_used() {
            return true;
        }
        self.recent.clear(shared, self.receiver.last());
        false
    }
}
