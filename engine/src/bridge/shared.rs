//! What the rooms of one bridge share: tickets of the store, timers, the count of publishes, the store's health, the
//! rows gathered for the next append, and how answers leave.

use super::looks::Looks;
use super::pace::Pace;
use super::writer::{Offer, WHY_UNAVAILABLE};
use super::{Answer, BridgeConfig, BridgeEffect, BridgeStats};
use crate::Now;
use crate::bus::BusRequest;
use crate::mesh::ToShard;
use crate::names::{ConnectionRef, RoomId, UserId};
use crate::stats::latency_histogram;
use crate::store::{Row, StoreReply, StoreRequest, Ticket};
use hashbrown::HashMap;
use roomwire_wire::message::ErrorCode;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

/// The least and the most time between attempts at something that failed.
pub(super) const BACK_OFF_MS: u64 = 50;
/// See [`BACK_OFF_MS`].
pub(super) const BACK_OFF_MS_MAX: u64 = 1_000;

/// How long a probe of the bus may wait, and so the time from one to the next: only one is under way.
pub(super) const PROBE_MS_MAX: u64 = 1_000;

/// The wait before attempt number `failures + 1`, no shorter than what the other side asked for.
pub(super) fn back_off_ms(failures: u32, hint_ms: u32) -> u64 {
    (BACK_OFF_MS << failures.min(5)).max(u64::from(hint_ms)).min(BACK_OFF_MS_MAX)
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Connection(ConnectionRef),
    Http(u64),
}

/// A seq of a room, in one generation.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) room: RoomId,
    pub(super) generation: u64,
    pub(super) seq: u64,
}

/// What a reply of the store is for.
#[derive(Debug)]
pub(super) enum Asked {
    Append(Vec<Place>),
    Room(RoomId, Purpose),
    Receipt(Box<ReceiptAsked>),
}

/// What a room asked the store for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of the initialisation with this token.
    Init {
        token: u64,
    },
    /// The head of a room that is not live on the bus.
    Cold,
    /// What retention left of that room.
    ColdOldest,
    /// The bases of a room's generations.
    Bases,
    /// What is certain to be decided, the bus being away.
    Decided,
    /// The latest generation, where a client knows more than the bus.
    Latest,
    /// A page of history.
    Page,
    /// What a receiver lacks.
    Hole,
    /// Where generations began that a receiver did not hear of.
    Passed,
    /// Whose message stands at the seq.
    Resolve {
        generation: u64,
        seq: u64,
    },
    /// Whether the message at the seq is the one of that attempt, from before.
    Known {
        attempt: u64,
        seq: u64,
    },
    /// The compare-and-set of a void.
    /// A store that is degraded, whether it answers, before a seq is voided.
    BeforeVoid,
    Void,
    /// Strict mode: the latest generation.
    Fence,
}

/// A receipt under way.
#[derive(Debug)]
pub(super) struct ReceiptAsked {
    pub(super) from: ConnectionRef,
    pub(super) room: RoomId,
    pub(super) user: UserId,
    pub(super) message_id: Arc<str>,
    pub(super) generation: u64,
    pub(super) seq: u64,
}

/// How the store, or the bus, does, as far as is known: while it is degraded publishes are refused at once.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    retry_after_ms: u32,
    /// From when on one publish is let through, to find out.
    probe_ms: u64,
}

impl Health {
    fn failed(&mut self, now: Now, hint_ms: u32, is_degraded: &mut bool) {
        self.retry_after_ms = back_off_ms(self.failures, hint_ms).max(200) as u32;
        self.failures = self.failures.saturating_add(1);
        if !std::mem::replace(is_degraded, true) {
            self.probe_ms = now.mono_ms() + u64::from(self.retry_after_ms);
        }
    }

    /// Whether a publish may be tried: one is let through as a probe, and the next when it has had its time.
    fn admits(&mut self, now: Now) -> Admission {
        if now.mono_ms() < self.probe_ms {
            return Admission::Refused(self.retry_after_ms);
        }
        self.probe_ms = now.mono_ms() + PROBE_MS_MAX;
        Admission::Probe
    }
}

/// What becomes of a publish that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Welcome,
    /// To find out whether the bus and the store work again: its sender does not wait for long.
    Probe,
    /// To be tried again after so many ms.
    Refused(u32),
}

/// What rooms share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: BridgeConfig,
    pub(super) stats: BridgeStats,
    /// Rooms that have something for the next flush.
    pub(super) dirty: Vec<RoomId>,
    /// Rows for the next append.
    pub(super) rows: Vec<Row>,
    /// Publishes that nobody was answered for yet.
    pub(super) unanswered: u32,
    /// Bytes of recent messages of all rooms, and the rooms that hold any, each with the stamp of its entry: an entry
    /// whose stamp is not the room's is stale.
    pub(super) recent_bytes: usize,
    pub(super) recent_clock: VecDeque<(RoomId, u64)>,
    pub(super) recent_stamp: u64,
    tickets: HashMap<Ticket, Asked>,
    next_ticket: u64,
    next_attempt: u64,
    next_token: u64,
    next_client_id: u64,
    timers: BinaryHeap<Reverse<(u64, RoomId)>>,
    append_retries: Vec<(u64, Vec<Place>)>,
    health: Health,
    bus_health: Health,
    /// From when on a void may ask whether a degraded store answers.
    void_read_ms: u64,
    pub(super) looks: Looks,
    next_look: u64,
    pub(super) pace: Pace,
}

/// One call into a room: the time, what rooms share, and where effects go.
pub(super) struct Turn<'a> {
    pub(super) now: Now,
    pub(super) shared: &'a mut Shared,
    pub(super) effects: &'a mut Vec<BridgeEffect>,
}

/// SplitMix64: spreads a boot number over 64 bits.
fn spread(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Shared {
    pub(super) fn new(config: BridgeConfig) -> Shared {
        Shared {
            stats: BridgeStats {
                rooms_now: 0,
                publishes_now: 0,
                published_total: 0,
                duplicates_total: 0,
                refused_total: 0,
                voided_total: 0,
                inits_total: 0,
                inits_waiting_now: 0,
                history_pages_total: 0,
                history_from_memory_total: 0,
                history_from_log_total: 0,
                receipts_total: 0,
                store_degraded_now: false,
                bus_degraded_now: false,
                durable_us: latency_histogram(),
            },
            dirty: Vec::new(),
            rows: Vec::new(),
            unanswered: 0,
            recent_bytes: 0,
            recent_clock: VecDeque::new(),
            recent_stamp: 0,
            tickets: HashMap::new(),
            next_ticket: 0,
            next_attempt: spread(config.boot),
            next_token: spread(config.boot ^ 0x746f_6b65_6e00_0000),
            next_client_id: 0,
            timers: BinaryHeap::new(),
            append_retries: Vec::new(),
            health: Health::default(),
            bus_health: Health::default(),
            void_read_ms: 0,
            looks: Looks::default(),
            next_look: 0,
            pace: Pace::new(config.inits_max),
            config,
        }
    }

    /// Unique per attempt to write a message, over all starts of all nodes.
    pub(super) fn new_attempt(&mut self) -> u64 {
        self.next_attempt = self.next_attempt.wrapping_add(1);
        self.next_attempt
    }

    /// Unique per initialisation; never 0, which means "no token" on the bus.
    pub(super) fn new_token(&mut self) -> u64 {
        self.next_token = self.next_token.wrapping_add(1).max(1);
        self.next_token
    }

    /// ORDERING.md rule 5: the id of a message whose client gave none. A client that guesses one can only take its own
    /// later message for a repeat, since ids count per user.
    pub(super) fn new_client_id(&mut self) -> Arc<str> {
        self.next_client_id += 1;
        Arc::from(format!("{}.{:x}.{:x}", self.config.node, self.config.boot, self.next_client_id))
    }

    pub(super) fn take_ticket(&mut self, ticket: Ticket) -> Option<Asked> {
        self.tickets.remove(&ticket)
    }

    // Timers.

    pub(super) fn set_timer(&mut self, due_ms: u64, room: &RoomId) {
        self.timers.push(Reverse((due_ms, room.clone())));
    }

    pub(super) fn pop_timer(&mut self, now: Now) -> Option<(u64, RoomId)> {
        if self.timers.peek().is_none_or(|Reverse((due, _))| *due > now.mono_ms()) {
            return None;
        }
        self.timers.pop().map(|Reverse(timer)| timer)
    }

    pub(super) fn pop_append_retries(&mut self, now: Now) -> Vec<Place> {
        let due = |(at, _): &mut (u64, Vec<Place>)| *at <= now.mono_ms();
        self.append_retries.extract_if(.., due).flat_map(|(_, places)| places).collect()
    }

    pub(super) fn next_tick_ms(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let retry = self.append_retries.iter().map(|(due, _)| *due).min();
        [timer, retry, self.looks.next_ms()].into_iter().flatten().min()
    }

    /// A room listens from now on: in a cluster its head is looked at now and then. Names its entry in that list.
    pub(super) fn look_at(&mut self, now: Now, room: &RoomId) -> u64 {
        self.next_look += 1;
        if self.config.cluster {
            self.looks.add(now, room.clone(), self.next_look);
        }
        self.next_look
    }

    // The count of publishes.

    /// Counts a publish in.
    pub(super) fn publish_begins(&mut self) {
        self.stats.publishes_now += 1;
        self.unanswered += 1;
    }

    /// Counts a publish out.
    pub(super) fn publish_ends(&mut self, was_answered: bool) {
        self.stats.publishes_now -= 1;
        if !was_answered {
            self.publish_answered();
        }
    }

    /// Its sender was told; it may go on without anyone waiting.
    pub(super) fn publish_answered(&mut self) {
        self.unanswered -= 1;
    }

    // The store's health.

    /// Whether a publish is taken now. Lets a probe through when one is due.
    pub(super) fn admit_publish(&mut self, now: Now) -> Admission {
        if self.stats.publishes_now >= u64::from(self.config.publishes_max) {
            return Admission::Refused(BACK_OFF_MS_MAX as u32);
        }
        if self.stats.bus_degraded_now {
            // Without a bus nothing reaches the store: its own probe can wait.
            return self.bus_health.admits(now);
        }
        match self.stats.store_degraded_now.then(|| self.health.admits(now)) {
            Some(Admission::Refused(retry_after_ms)) => Admission::Refused(retry_after_ms),
            // A store that is slow still takes it, if it is given the time of any publish.
            _ => Admission::Welcome,
        }
    }

    /// A write failed, or is later than a publish may wait.
    pub(super) fn store_failed(&mut self, now: Now, hint_ms: u32) {
        self.health.failed(now, hint_ms, &mut self.stats.store_degraded_now);
    }

    /// A publish was stored by an earlier attempt. If it was let through to find out how the store does, it did not: the
    /// next one may.
    pub(super) fn stored_before(&mut self) {
        self.stats.duplicates_total += 1;
        self.health.probe_ms = 0;
    }

    /// Whether a void may ask a store that is degraded whether it answers: once in a while.
    pub(super) fn may_read_before_void(&mut self, now: Now) -> bool {
        let may = now.mono_ms() >= self.void_read_ms;
        if may {
            self.void_read_ms = now.mono_ms() + PROBE_MS_MAX;
        }
        may
    }

    /// The bus did not answer.
    pub(super) fn bus_failed(&mut self, now: Now, hint_ms: u32) {
        self.bus_health.failed(now, hint_ms, &mut self.stats.bus_degraded_now);
    }

    /// The bus answered.
    pub(super) fn bus_works(&mut self) {
        self.bus_health.failures = 0;
        self.stats.bus_degraded_now = false;
    }

    /// A write succeeded: what waits for its next attempt need not wait longer.
    pub(super) fn store_works(&mut self) {
        self.health.failures = 0;
        if self.stats.store_degraded_now {
            self.stats.store_degraded_now = false;
            for (due, _) in &mut self.append_retries {
                *due = 0;
            }
        }
    }

    /// What a sender is told to wait.
    pub(super) fn retry_after_ms(&self) -> u32 {
        self.health.retry_after_ms.max(self.bus_health.retry_after_ms).max(BACK_OFF_MS_MAX as u32)
    }
}

impl Turn<'_> {
    pub(super) fn now_ms(&self) -> u64 {
        self.now.mono_ms()
    }

    pub(super) fn bus(&mut self, request: BusRequest) {
        self.effects.push(BridgeEffect::Bus(request));
    }

    /// Asks the store; the reply comes back with what was `asked`.
    pub(super) fn store(&mut self, asked: Asked, request: impl FnOnce(Ticket) -> StoreRequest) -> Ticket {
        self.shared.next_ticket += 1;
        let ticket = self.shared.next_ticket;
        self.shared.tickets.insert(ticket, asked);
        self.effects.push(BridgeEffect::Store(request(ticket)));
        ticket
    }

    /// Sends the gathered rows as one append.
    pub(super) fn flush_rows(&mut self) {
        let rows = std::mem::take(&mut self.shared.rows);
        if rows.is_empty() {
            return;
        }
        let place = |row: &Row| Place { room: row.room.clone(), generation: row.generation, seq: row.seq };
        let places = rows.iter().map(place).collect();
        self.store(Asked::Append(places), |ticket| StoreRequest::Append { ticket, rows });
    }

    /// The answer to an append: whether the rows are durable. If it is not known, they are written again later.
    pub(super) fn append_answered(&mut self, reply: &StoreReply, places: &[Place]) -> bool {
        let StoreReply::Appended { .. } = reply else {
            let hint_ms = hint_ms(reply);
            let due = self.now_ms() + back_off_ms(self.shared.health.failures, hint_ms);
            self.shared.store_failed(self.now, hint_ms);
            self.shared.append_retries.push((due, places.to_vec()));
            return false;
        };
        self.shared.store_works();
        true
    }

    /// Tells whoever waits that a request could not be served.
    pub(super) fn refuse(
        &mut self,
        to: Origin,
        client_id: Option<Arc<str>>,
        (code, message): (ErrorCode, &'static str),
        retry_after_ms: Option<u32>,
    ) {
        self.shared.stats.refused_total += 1;
        match to {
            Origin::Connection(to) => self
                .effects
                .push(BridgeEffect::Shard(to.shard, ToShard::Refused { to, client_id, code, message, retry_after_ms })),
            Origin::Http(call) => {
                let answer = Answer::Refused { code, message, retry_after_ms };
                self.effects.push(BridgeEffect::Answer { call, answer });
            }
        }
    }

    /// Refuses a publish that was not begun.
    pub(super) fn refuse_publish(&mut self, offer: &Offer, retry_after_ms: u32) {
        let why = (ErrorCode::Unavailable, WHY_UNAVAILABLE);
        self.refuse(offer.origin, offer.client_id.clone(), why, Some(retry_after_ms));
    }
}

/// The store's guess when to try again.
pub(super) fn hint_ms(reply: &StoreReply) -> u32 {
    match reply {
        StoreReply::Failed { retry_after_ms, .. } => *retry_after_ms,
        _ => 0,
    }
}
