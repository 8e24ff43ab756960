//! The state machine of one shard: connections, rooms, fan-out, presence, resume, limits.
//!
//! The driver (io_uring, simulator, test) calls one `Engine` from one thread. Every call takes [`Now`], read once per
//! turn. Effects gather in [`Engine::effects`] until the driver has carried them out.
//!
//! By subject: `handshake`, `frames`, `commands` take what clients send; `rooms`, `users`, `history` are what this
//! shard keeps of its own connections; `members` and `presence` are what it keeps as a *home* for all shards, `announce` tells other nodes of it;
//! `closing`, `drain`, `timers` are how connections end; `connection`, `outbox`, `wheel`, `rate`, `peers`, `slab` are
//! the parts. What it never does: I/O, reading a clock, sending to itself through a lane.

mod announce;
mod closing;
mod commands;
mod connection;
mod drain;
mod frames;
mod handshake;
mod history;
mod members;
mod outbox;
mod peers;
mod presence;
mod random;
mod rate;
mod rooms;
mod slab;
mod timers;
mod users;
mod wheel;

#[cfg(test)]
mod tests;

use crate::Now;
use crate::limits::{EngineConfig, Limits, Reload};
use crate::mesh::{ToBridge, ToShard, WalkPlace};
use crate::names::{ConnectionId, ConnectionRef, ShardId, User, home};
use crate::stats::{Counters, latency_histogram};
use bytes::Bytes;
use connection::{Connection, Phase};
use drain::Drain;
use hdrhistogram::Histogram;
use members::RoomHome;
use outbox::{Framer, Kind, Outboxes};
use peers::Peers;
use presence::{Grace, UserHome};
use random::Random;
use rooms::LocalRoom;
use roomwire_wire::frame::{FrameLimits, Opcode, encode};
use roomwire_wire::handshake::Refusal;
use roomwire_wire::message::{ErrorCode, FieldLimits, ServerMessage};
use slab::{HashSeed, Slab, Table};
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use users::{LocalUser, Watched};
use wheel::{TICK_MS, Wheel};

/// Seconds after which a refused client may come back.
const RETRY_AFTER_SECS: u32 = 5;
/// The tick at which an engine starts: so late that a time shortly before it is still a number.
const FIRST_TICK: u32 = 10_000;

/// Who a token says its bearer is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Unix ms at which the token expires, leeway included; `None` where `auth.require_exp` is off and it has none.
    pub expires_ms: Option<u64>,
    /// What the token allows; `None` means every room.
    pub grants: Option<Arc<[Grant]>>,
}

/// One entry of a token's `rooms` claim.
#[derive(Clone, Debug)]
pub struct Grant {
    /// A glob over room ids: `*` stands for any run of characters.
    pub room: Box<str>,
    /// May join, read history, members.
    pub join: bool,
    /// May publish, type, send receipts.
    pub publish: bool,
}

/// Checks a token at a Unix time in ms. Says nothing of why not: the implementation logs that, without the token.
pub type Verify = Arc<dyn Fn(&str, u64) -> Option<Identity> + Send + Sync>;

/// Bytes on their way out, taken by the driver for one send. Kept alive until the kernel is done with them.
#[derive(Debug)]
pub enum Chunk {
    /// One frame, shared with other receivers.
    Shared(Rc<[u8]>),
    /// Several frames of one connection, gathered; give it back with [`Engine::sent`] to be used again.
    Gathered(Vec<u8>),
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Chunk::Shared(frame) => frame,
            Chunk::Gathered(bytes) => bytes,
        }
    }
}

/// What the driver has to do. It takes the vectors' contents and leaves them empty, with their memory.
#[derive(Debug, Default)]
pub struct Effects {
    /// Connections that have something to send and no send under way: call [`Engine::take_chunk`]. Each at most once.
    pub sends: Vec<ConnectionId>,
    /// Connections whose last byte was sent: shut down writing, go on reading until the peer ends or a `drops` follows.
    pub shutdowns: Vec<ConnectionId>,
    /// Connections to close now, whatever is under way; then report [`Engine::closed`]. The slot is reused only after that.
    pub drops: Vec<ConnectionId>,
    /// To other shards.
    pub shards: Vec<(ShardId, ToShard)>,
    /// To the bridge.
    pub bridge: Vec<ToBridge>,
    /// Close the listener: the node drains.
    pub stop_accepting: bool,
}

/// Why a connection ended without the engine asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed its side.
    Eof,
    /// Reset, timed out, unreachable.
    Error,
}

/// One shard.
pub struct Engine {
    /// What the driver has to do.
    pub effects: Effects,
    /// What was counted; the driver adds its own under `driver`.
    pub counters: Counters,
    shard: ShardId,
    config: EngineConfig,
    frame_limits: FrameLimits,
    field_limits: FieldLimits,
    verify: Verify,
    /// Tells this engine's connection ids from those of any other start.
    boot: u64,
    connections: Slab<Connection>,
    /// The generation of each slot's latest tenant.
    generations: Vec<u32>,
    peers: Peers,
    outboxes: Outboxes,
    framer: Framer,
    users: Table<LocalUser>,
    rooms: Table<LocalRoom>,
    watched: Table<Watched>,
    room_homes: Table<RoomHome>,
    user_homes: Table<UserHome>,
    hash_seed: HashSeed,
    /// Users whose last connection is gone, in the order in which they go offline.
    graces: VecDeque<Grace>,
    graces_begun: u32,
    /// How often a user came who had no connection on this shard; wraps.
    stays_begun: u32,
    /// Large rooms of this home whose count changed since it was told.
    recounts: Vec<u32>,
    /// Where the walk through a roster stopped that is longer than one part of the walk.
    walk: WalkPlace,
    wheel: Wheel,
    /// Mesh messages that this shard sent to itself.
    own_mail: VecDeque<ToShard>,
    random: Random,
    now: Now,
    tick: u32,
    start_ms: u64,
    overdue_at_tick: u32,
    overdue: Vec<ConnectionId>,
    stats_at_ms: u64,
    drain: Option<Drain>,
    ping: Rc<[u8]>,
    refusal: Vec<u8>,
    fanout_us: Histogram<u64>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("shard", &self.shard)
            .field("connections", &self.connections.len())
            .field("rooms", &self.rooms.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine without connections.
    #[must_use]
    pub fn new(shard: ShardId, config: EngineConfig, verify: Verify, now: Now) -> Engine {
        let limits = &config.limits;
        let mut random = Random::new(config.seed ^ (u64::from(shard.0) << 48));
        let hash_seed = HashSeed::new(random.next());
        let mut refusal = Vec::new();
        Refusal::Unavailable { retry_after_secs: RETRY_AFTER_SECS }.encode(&mut refusal);
        let mut framer = Framer::default();
        Engine {
            effects: Effects::default(),
            counters: Counters::default(),
            shard,
            frame_limits: frame_limits(limits),
            field_limits: field_limits(limits),
            verify,
            boot: random.next(),
            connections: Slab::new(),
            generations: Vec::new(),
            peers: Peers::new(limits, config.shards, random.next()),
            outboxes: Outboxes::new(limits.queue_bytes_max, FIRST_TICK),
            users: Table::new(&hash_seed),
            rooms: Table::new(&hash_seed),
            watched: Table::new(&hash_seed),
            room_homes: Table::new(&hash_seed),
            user_homes: Table::new(&hash_seed),
            hash_seed,
            graces: VecDeque::new(),
            graces_begun: 0,
            stays_begun: 0,
            recounts: Vec::new(),
            walk: WalkPlace::default(),
            wheel: Wheel::new(FIRST_TICK),
            own_mail: VecDeque::new(),
            random,
            now,
            tick: FIRST_TICK,
            start_ms: now.mono_ms(),
            overdue_at_tick: FIRST_TICK,
            overdue: Vec::new(),
            stats_at_ms: now.mono_ms() + timers::STATS_MS,
            drain: None,
            ping: framer.frame(Opcode::Ping, &[]),
            framer,
            refusal,
            fanout_us: latency_histogram(),
            config,
        }
    }

    /// Takes over what may change while it runs. Nobody is closed by it, unless more waits for a connection than
    /// `queue_bytes_max` now allows.
    fn reload(&mut self, reload: &Reload) {
        let mut limits = reload.limits.clone();
        limits.join_events_members_max = self.config.limits.join_events_members_max;
        (self.frame_limits, self.field_limits) = (frame_limits(&limits), field_limits(&limits));
        self.peers.limit(&limits, self.config.shards);
        self.outboxes.limit(limits.queue_bytes_max);
        self.config.limits = limits;
        self.config.allowed_origins = Arc::clone(&reload.allowed_origins);
        self.config.reject_by_http = reload.reject_by_http;
    }

    /// A socket was accepted. `None` when the node is full or the address has too many: send [`Engine::refusal`] if it
    /// fits at once, and close. `peer` is `None` where the driver cannot know it.
    ///
    /// The node's limits are divided among the shards, rounded up: SO_REUSEPORT spreads connections evenly, and no
    /// shard then needs to ask another.
    pub fn accepted(&mut self, now: Now, peer: Option<IpAddr>) -> Option<ConnectionId> {
        self.turn(now);
        if self.drain.is_some() {
            self.counters.handshakes_refused_total += 1;
            return None;
        }
        // Whoever may not speak for others may not be taken for one of them.
        let peer = match &self.config.proxies {
            None => peer,
            Some(proxies) if peer.is_some_and(|peer| proxies.iter().any(|network| network.contains(peer))) => None,
            Some(_) => {
                self.counters.proxies_refused_total += 1;
                self.counters.handshakes_refused_total += 1;
                return None;
            }
        };
        if let Err(limit) = self.peers.admit(self.connections.len(), peer) {
            self.counters.limit_crossed(limit);
            self.counters.handshakes_refused_total += 1;
            return None;
        }
        let none_yet = ConnectionId { slot: 0, generation: 0 };
        let slot = self.connections.insert(Connection::new(none_yet, self.tick));
        if self.generations.len() <= slot as usize {
            self.generations.resize(slot as usize + 1, 0);
        }
        let generation = (self.generations[slot as usize] + 1) & 0x00ff_ffff;
        self.generations[slot as usize] = generation;
        let id = ConnectionId { slot, generation };
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.id = id;
        }
        self.peers.entered(slot, peer);
        self.counters.connects_total += 1;
        self.counters.connections_now = self.connections.len() as u64;
        self.arm(id);
        Some(id)
    }

    /// The HTTP answer (503, Retry-After) for a socket that was not taken.
    #[must_use]
    pub fn refusal(&self) -> &[u8] {
        &self.refusal
    }

    /// Bytes came in. They are unmasked in place; nothing is kept but a partial frame.
    pub fn received(&mut self, now: Now, connection: ConnectionId, bytes: &mut [u8]) {
        self.turn(now);
        self.counters.bytes_received_total += bytes.len() as u64;
        let tick = self.tick;
        let Some(known) = self.connection_mut(connection) else { return };
        known.heard = tick;
        known.pinged = false;
        match known.phase {
            Phase::Handshake => self.head_received(connection, bytes),
            Phase::Open => self.frames_received(connection, bytes),
            Phase::Closing | Phase::Shut | Phase::Dead => {}
        }
        self.settle();
    }

    /// The connection ended by itself. The driver then closes it and calls [`Engine::closed`].
    pub fn ended(&mut self, now: Now, connection: ConnectionId, how: Ended) {
        self.turn(now);
        let Some(known) = self.connection_mut(connection) else { return };
        // A peer that answers our close frame by closing is in order, and so is a probe that connects and goes; one
        // that is gone in mid-conversation is not.
        let in_order = matches!(known.phase, Phase::Shut | Phase::Dead)
            || (how == Ended::Eof && matches!(known.phase, Phase::Closing | Phase::Handshake));
        if !in_order {
            self.counters.peers_vanished_total += 1;
        }
        self.bury(connection);
        self.settle();
    }

    /// The socket is closed and nothing is under way on it: the slot is free.
    pub fn closed(&mut self, connection: ConnectionId) {
        if self.connection_mut(connection).is_none() {
            return;
        }
        self.bury(connection);
        self.connections.remove(connection.slot);
        self.peers.left(connection.slot);
        self.counters.connections_now = self.connections.len() as u64;
        self.settle();
        self.announce_drained();
    }

    /// All that waits for the connection, up to 16 KiB (or one larger frame): for one send. `None` if nothing waits.
    pub fn take_chunk(&mut self, connection: ConnectionId) -> Option<Chunk> {
        let Engine { connections, outboxes, .. } = self;
        let known = connections.get_mut(connection.slot).filter(|known| known.id == connection)?;
        outboxes.take_chunk(known)
    }

    /// A chunk was sent whole. The connection is named in `effects.sends` again if more waits.
    pub fn sent(&mut self, now: Now, connection: ConnectionId, chunk: Chunk) {
        self.turn(now);
        self.outboxes.give_back(chunk);
        let Engine { connections, outboxes, effects, counters, .. } = self;
        let Some(known) = connections.get_mut(connection.slot).filter(|known| known.id == connection) else { return };
        outboxes.sent(known, effects, counters);
        match known.phase {
            Phase::Open if known.rare.is_some() => self.ask_next_page(connection),
            Phase::Closing => self.shut_if_drained(connection),
            _ => {}
        }
        self.settle();
    }

    /// A message came from another thread.
    pub fn mesh(&mut self, now: Now, message: ToShard) {
        self.turn(now);
        self.handle(message);
        self.settle();
    }

    /// Time passed: deadlines, heartbeats, presence grace, drain pace, stats. Cheap when nothing is due.
    pub fn tick(&mut self, now: Now) {
        self.turn(now);
        self.deadlines();
        self.settle();
        self.announce_drained();
        self.tell_stats();
    }

    /// When [`Engine::tick`] is due next, in ms of CLOCK_MONOTONIC: at most 100 ms ahead while there are connections.
    #[must_use]
    pub fn next_tick_ms(&self) -> u64 {
        let busy = self.connections.len() > 0 || !self.graces.is_empty() || !self.recounts.is_empty();
        let next_tick_ms = self.start_ms + (u64::from(self.tick - FIRST_TICK) + 1) * TICK_MS;
        if busy { self.stats_at_ms.min(next_tick_ms) } else { self.stats_at_ms }
    }

    /// Microseconds from a chat message's receipt to the last send queued on this shard.
    #[must_use]
    pub fn fanout_us(&self) -> &Histogram<u64> {
        &self.fanout_us
    }

    /// Encodes a text frame once, for all its receivers on this shard.
    #[must_use]
    pub fn frame(payload: &Bytes) -> Rc<[u8]> {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        encode(Opcode::Text, payload, &mut frame);
        Rc::from(frame)
    }

    /// Begins a call: all of it happens at `now`.
    fn turn(&mut self, now: Now) {
        self.now = now;
        let ticks = now.mono_ms().saturating_sub(self.start_ms) / TICK_MS;
        let tick = FIRST_TICK + u32::try_from(ticks).unwrap_or(u32::MAX).min(wheel::NEVER - 1 - FIRST_TICK);
        self.tick = self.tick.max(tick);
        self.outboxes.tick = self.tick;
    }

    /// Ends a call: closes whose queue ran over, and takes what the shard sent to itself, until nothing is left.
    fn settle(&mut self) {
        loop {
            while let Some(connection) = self.outboxes.slow.pop() {
                self.close_slow(connection);
            }
            let Some(message) = self.own_mail.pop_front() else { break };
            self.handle(message);
        }
        self.counters.rooms_now = self.rooms.len() as u64;
        self.counters.users_now = self.users.len() as u64;
    }

    fn handle(&mut self, message: ToShard) {
        match message {
            ToShard::Deliver { room, payload, received_us, .. } => self.deliver(&room, &payload, received_us),
            ToShard::DeliverToUser { user, stay, payload, received_us } => {
                self.deliver_to_user(&user, stay, &payload, received_us);
            }
            ToShard::Event { room, payload } => self.event(&room, &payload),
            ToShard::Spread { room, payload } => self.spread(&room, &payload),
            ToShard::HistoryPage { to, room, payload, next, live, later_ms } => {
                self.history_page(to.connection, &room, &payload, (next, live, later_ms));
            }
            ToShard::HistoryRefused { to, room, code, message, retry_after_ms } => {
                self.history_refused(to.connection, &room, code, message, retry_after_ms);
            }
            ToShard::Published { to, room, client_id, message_id, seq, timestamp } => {
                let ack = ServerMessage::Ack {
                    client_id: &client_id,
                    message_id: &message_id,
                    room_id: &room,
                    seq,
                    timestamp,
                };
                self.send(to.connection, &ack, Kind::Kept);
            }
            ToShard::Refused { to, client_id, code, message, retry_after_ms } => {
                self.error(to.connection, code, message, client_id.as_deref(), retry_after_ms);
            }
            ToShard::Disconnect { user, code, reason } => self.disconnect_user(&user, code, &reason),
            ToShard::Drain { window_ms } => self.drain(window_ms),
            ToShard::Reload(reload) => self.reload(&reload),
            ToShard::Join { room, user, from } => self.home_join(&room, &user, from),
            ToShard::Leave { room, user, from } => self.home_leave(&room, &user, from.shard),
            ToShard::JoinAnswer { to, room, joined } => self.join_answered(to.connection, &room, joined.as_ref()),
            ToShard::EventBut { room, user, payload } => self.event_but(&room, &user, &payload),
            ToShard::RosterChanged { room, user, joined } => self.roster_changed(&room, &user, joined),
            ToShard::RosterCounted { room, count } => self.roster_counted(&room, count),
            ToShard::Announce { what, from } => self.announce(what, from),
            ToShard::AskMembers { room, asker } => self.home_members(&room, asker),
            ToShard::MembersAnswer { to, payload } => self.send_payload(to.connection, &payload, Kind::Kept),
            ToShard::UserUp { user, from, stay } => self.home_user_up(&user, from, stay),
            ToShard::UserDown { user, from } => self.home_user_down(&user, from.shard),
            ToShard::UserSubscribed { user } => self.home_user_subscribed(&user),
            ToShard::TooManyConnections { to } => self.too_many_connections(to.connection),
            ToShard::Watch { user, from } => self.home_watch(&user, from),
            ToShard::Unwatch { user, shard } => self.home_unwatch(&user, shard),
            ToShard::PresenceAnswer { to, user, online } => {
                let presence = ServerMessage::Presence { user_id: &user, online, timestamp: self.now.unix_ms };
                self.send(to.connection, &presence, Kind::Kept);
            }
            ToShard::PresenceChanged { user, online, timestamp } => self.presence_changed(&user, online, timestamp),
            ToShard::UserElsewhere { user, online } => self.home_user_elsewhere(&user, online),
            ToShard::AskUser { user, call } => self.home_ask_user(&user, call),
        }
    }

    fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(id.slot).filter(|connection| connection.id == id)
    }

    fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id.slot).filter(|connection| connection.id == id)
    }

    fn is_open(&self, id: ConnectionId) -> bool {
        self.connection(id).is_some_and(|connection| connection.phase == Phase::Open)
    }

    fn reference(&self, connection: ConnectionId) -> ConnectionRef {
        ConnectionRef { shard: self.shard, connection }
    }

    fn user_of(&self, id: ConnectionId) -> Option<User> {
        self.users.get(self.connection(id)?.user).map(|local| local.user.clone())
    }

    /// To a shard; what this one sends to itself is taken before the call ends.
    fn post(&mut self, to: ShardId, message: ToShard) {
        if to == self.shard {
            self.own_mail.push_back(message);
        } else {
            self.effects.shards.push((to, message));
        }
    }

    /// To the shard that keeps the membership of a room, or the presence of a user.
    fn post_home(&mut self, name: &str, message: ToShard) {
        self.post(home(name, self.config.shards), message);
    }

    fn send(&mut self, to: ConnectionId, message: &ServerMessage<'_>, kind: Kind) {
        if self.is_open(to) {
            let frame = self.framer.message(message);
            self.send_frame(to, &frame, kind);
        }
    }

    fn send_payload(&mut self, to: ConnectionId, payload: &Bytes, kind: Kind) {
        if self.is_open(to) {
            let frame = self.framer.frame(Opcode::Text, payload);
            self.send_frame(to, &frame, kind);
        }
    }

    fn send_frame(&mut self, to: ConnectionId, frame: &Rc<[u8]>, kind: Kind) {
        let Engine { connections, outboxes, effects, counters, .. } = self;
        if let Some(connection) = connections.get_mut(to.slot).filter(|connection| connection.id == to) {
            outboxes.push(connection, frame, kind, effects, counters);
        }
    }

    fn error(
        &mut self,
        to: ConnectionId,
        code: ErrorCode,
        message: &str,
        client_id: Option<&str>,
        retry_after_ms: Option<u32>,
    ) {
        self.counters.errors_total[code.index()] += 1;
        let retry_after_ms = retry_after_ms.map(u64::from);
        self.send(to, &ServerMessage::Error { code, message, client_id, retry_after_ms }, Kind::Kept);
    }

    /// How full the tables are: connections, users, rooms, watched users, and what this shard is home of.
    #[cfg(test)]
    fn tables(&self) -> [usize; 6] {
        [
            self.connections.len(),
            self.users.len(),
            self.rooms.len(),
            self.watched.len(),
            self.room_homes.len(),
            self.user_homes.len(),
        ]
    }
}

fn unlimited(limit: u32) -> usize {
    if limit == 0 { usize::MAX } else { limit as usize }
}

fn frame_limits(limits: &Limits) -> FrameLimits {
    FrameLimits {
        message_bytes_max: unlimited(limits.message_bytes_max),
        fragments_max: if limits.fragments_max == 0 { u32::MAX } else { limits.fragments_max },
    }
}

fn field_limits(limits: &Limits) -> FieldLimits {
    FieldLimits {
        content_bytes_max: unlimited(limits.content_bytes_max),
        token_bytes_max: unlimited(limits.token_bytes_max),
    }
}
