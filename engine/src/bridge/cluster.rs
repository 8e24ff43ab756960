//! This node among others on a shared bus: its lease, its lives, what it announces, and what it asks of the others.
//!
//! The bridge holds none of it in a cluster of one: [`super::Bridge`] has no `Cluster` then. What stands on the bus is
//! never remembered here: the homes on the shards know their users and rosters, and a [`walk`] fetches them part by part
//! when the bus forgot, and slowly all the time. Only changes that the bus has not taken yet wait here, at most
//! [`CHANGES_MAX`] of each kind; where more would have to wait, the node takes a new life instead.
//!
//! By subject: this file is the lease and the bus' health; `presence` is users, `roster` is rooms, `walk` the announcing.
//! While the bus is away each question is answered from what this node knows, at once.

mod presence;
mod roster;
mod walk;

use super::{Answer, BridgeConfig, BridgeEffect};
use crate::Now;
use crate::cluster::{Beaten, ClusterEvent, ClusterReply, ClusterRequest, Lease, Life, MemberChange};
use crate::mesh::{Announce, Announced, ToShard};
use crate::names::{RoomId, UserId, home};
use presence::Users;
pub(super) use roster::RosterAsk;
use roster::Rosters;
use std::sync::Arc;
use walk::Walk;

/// A node beats so often: it also looks for dead nodes with each beat.
pub(super) const BEAT_MS: u64 = 2_500;
/// While the bus is away.
const RETRY_MS: u64 = 500;
/// The most changes of a kind that wait for the bus.
pub(super) const CHANGES_MAX: usize = 65_536;
/// The most changes, or questions, of one request.
const BATCH_MAX: usize = 512;
/// What other nodes say of watched users is asked again so long after the bus came back: they announce themselves first.
const ASK_AGAIN_MS: u64 = 15_000;
/// After so long an absence what stands on the bus may have run out: it is announced again.
const ABSENCE_MS: u64 = 60_000;

/// Figures of the cluster, cumulative unless a name ends in `_now`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is a metric `roomwire_cluster_<name>`; docs/operations.md explains them")]
pub struct ClusterStats {
    pub nodes_now: u64,
    pub away_now: bool,
    pub clock_ahead_ms_now: i64,
    pub changes_waiting_now: u64,
    pub watched_users_now: u64,
    pub user_changes_total: u64,
    pub member_changes_total: u64,
    pub announced_again_total: u64,
    pub lives_total: u64,
    pub nodes_reaped_total: u64,
    pub users_reaped_total: u64,
    pub members_reaped_total: u64,
}

/// The bus does not answer.
#[derive(Clone, Copy, Debug)]
struct Away {
    since_ms: u64,
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Cluster {
    node: Arc<str>,
    shards: u16,
    life: Life,
    away: Option<Away>,
    /// A new life waits for its lease; whether what is announced under it is to be told to nobody.
    taking: Option<bool>,
    /// So much waited that it was given up: a new life must follow.
    overflowed: bool,
    /// Another process has this node's id: nothing more is said.
    evicted: bool,
    memory: Option<u64>,
    /// Under which life a beat is under way.
    beating: Option<Life>,
    beat_ms: u64,
    reaping: bool,
    ask_again_ms: Option<u64>,
    users: Users,
    rosters: Rosters,
    walks: [Walk; 2],
    pub(super) stats: ClusterStats,
}

/// One call: the time, and where effects go.
pub(super) struct Out<'a> {
    now: Now,
    effects: &'a mut Vec<BridgeEffect>,
    shards: u16,
}

impl<'a> Out<'a> {
    pub(super) fn new(now: Now, effects: &'a mut Vec<BridgeEffect>, shards: u16) -> Out<'a> {
        Out { now, effects, shards }
    }

    fn now_ms(&self) -> u64 {
        self.now.mono_ms()
    }

    fn ask(&mut self, request: ClusterRequest) {
        self.effects.push(BridgeEffect::Cluster(request));
    }

    /// To the home of a room or a user.
    fn home(&mut self, name: &str, message: ToShard) {
        self.effects.push(BridgeEffect::Shard(home(name, self.shards), message));
    }

    fn answer(&mut self, call: u64, answer: Answer) {
        self.effects.push(BridgeEffect::Answer { call, answer });
    }
}

impl Cluster {
    pub(super) fn new(config: &BridgeConfig) -> Cluster {
        Cluster {
            node: config.node.clone(),
            shards: config.shards,
            life: Life { boot: config.boot, number: 1 },
            away: None,
            taking: None,
            overflowed: false,
            evicted: false,
            memory: None,
            beating: None,
            beat_ms: 0,
            reaping: false,
            ask_again_ms: None,
            users: Users::default(),
            rosters: Rosters::default(),
            walks: [Walk::new(Announce::Users), Walk::new(Announce::Rosters)],
            stats: ClusterStats { lives_total: 1, ..ClusterStats::default() },
        }
    }

    /// Whether changes and questions may be sent.
    fn is_reachable(&self) -> bool {
        self.away.is_none() && self.taking.is_none() && !self.evicted
    }

    // From the shards.

    pub(super) fn user_changed(&mut self, out: &mut Out<'_>, user: UserId, online: bool) {
        self.stats.user_changes_total += 1;
        self.users.changed(out, user, online, self.away.is_some());
        self.bound(out);
    }

    pub(super) fn watch(&mut self, out: &mut Out<'_>, user: UserId) {
        self.users.watch(out, user, self.away.is_some());
    }

    pub(super) fn unwatch(&mut self, user: &UserId) {
        self.users.unwatch(user);
    }

    pub(super) fn roster_change(&mut self, out: &mut Out<'_>, room: RoomId, change: MemberChange) {
        self.stats.member_changes_total += 1;
        self.rosters.changed(out, room, change, self.away.is_some());
        self.bound(out);
    }

    pub(super) fn announced(&mut self, out: &mut Out<'_>, part: Announced) {
        let [users, rosters] = &mut self.walks;
        let walk = if part.what == Announce::Users { users } else { rosters };
        let quiet = walk.quiet();
        let mut told = part.users.len() as u64;
        for user in part.users {
            self.users.announce(user, quiet);
        }
        for (room, members) in part.rosters {
            told += members.len() as u64;
            self.rosters.announce(&room, members, quiet);
        }
        self.stats.announced_again_total += told;
        walk.arrived(out.now_ms(), self.shards, told, part.next, part.slots);
    }

    // From the HTTP API and from clients.

    /// `connections` and `here` are this node's part of the answer.
    pub(super) fn ask_user(&mut self, out: &mut Out<'_>, call: u64, user: UserId, here: bool, connections: u32) {
        let who = presence::Who::Http { call, here, connections };
        self.users.ask(out, user, who, self.away.is_some(), &self.node);
    }

    pub(super) fn ask_roster(&mut self, out: &mut Out<'_>, room: &RoomId, here: RosterAsk) {
        self.rosters.ask(out, room, here, self.is_reachable());
    }

    // From the bus.

    pub(super) fn reply(&mut self, out: &mut Out<'_>, reply: ClusterReply) {
        match reply {
            ClusterReply::Beaten(answer) => {
                let is_current = self.beating.take() == Some(self.life);
                match answer {
                    Some(beaten) if is_current => self.beaten(out, beaten),
                    // A life that ended meanwhile.
                    Some(_) => self.beat_ms = out.now_ms(),
                    None => self.lose(out),
                }
            }
            ClusterReply::Users(Some(counts)) => self.users.taken(out, &counts),
            ClusterReply::Rosters(Some(answers)) => self.rosters.taken(out, &answers),
            ClusterReply::UsersAre(Some(states)) => self.users.answered(out, states, &self.node),
            ClusterReply::Roster { room, answer } => self.rosters.answered(out, &room, answer.as_ref()),
            ClusterReply::Reaped(answer) => {
                self.reaping = false;
                if let Some((users, members)) = answer {
                    self.stats.nodes_reaped_total += 1;
                    self.stats.users_reaped_total += users;
                    self.stats.members_reaped_total += members;
                    // Perhaps there is another.
                    self.beat_ms = out.now_ms();
                }
            }
            ClusterReply::Users(None) => {
                self.users.failed();
                self.lose(out);
            }
            ClusterReply::Rosters(None) => {
                self.rosters.failed();
                self.lose(out);
            }
            ClusterReply::UsersAre(None) => {
                self.lose(out);
                self.users.ask_failed();
            }
        }
    }

    pub(super) fn event(&mut self, out: &mut Out<'_>, event: ClusterEvent) {
        let ClusterEvent::Presence { user, online } = event;
        self.users.heard(out, &user, online);
    }

    /// The subscription was lost and made again.
    pub(super) fn lost(&mut self, out: &mut Out<'_>) {
        self.ask_again_ms = Some(out.now_ms() + ASK_AGAIN_MS);
        self.beat_ms = out.now_ms();
    }

    // The lease.

    fn beaten(&mut self, out: &mut Out<'_>, beaten: Beaten) {
        self.beat_ms = out.now_ms() + BEAT_MS;
        self.stats.nodes_now = u64::from(beaten.nodes);
        self.stats.clock_ahead_ms_now = beaten.clock_ahead_ms;
        let forgot = self.memory.replace(beaten.memory).is_some_and(|known| known != beaten.memory);
        match beaten.lease {
            Lease::Taken(by) => {
                self.evicted = true;
                out.effects.push(BridgeEffect::Evicted { by });
                return;
            }
            // Others were told that this node's users are gone: they are told that they are back, unless the bus itself
            // forgot, and nobody was told anything.
            Lease::Lost => return self.begin_life(out, forgot),
            Lease::Held if forgot => return self.begin_life(out, true),
            Lease::Held => {}
        }
        if let Some(away) = self.away.take() {
            self.ask_again_ms = Some(out.now_ms() + ASK_AGAIN_MS);
            if self.overflowed {
                return self.begin_life(out, true);
            }
            if out.now_ms() - away.since_ms > ABSENCE_MS && self.taking.is_none() {
                self.walks.iter_mut().for_each(|walk| walk.hurry(true));
            }
        }
        if let Some(quiet) = self.taking.take() {
            self.walks.iter_mut().for_each(|walk| walk.hurry(quiet));
        }
        if let Some(dead) = beaten.dead
            && !std::mem::replace(&mut self.reaping, true)
        {
            out.ask(ClusterRequest::Reap { dead });
        }
    }

    /// Announces everything anew, under a new life; what waits is part of it.
    fn begin_life(&mut self, out: &mut Out<'_>, quiet: bool) {
        self.away = None;
        self.overflowed = false;
        self.life.number += 1;
        self.stats.lives_total += 1;
        self.taking = Some(quiet);
        self.give_up(out);
        self.ask_again_ms = Some(out.now_ms() + ASK_AGAIN_MS);
        self.beat_ms = out.now_ms();
    }

    /// The bus does not answer: who waits is told what this node knows.
    fn lose(&mut self, out: &mut Out<'_>) {
        self.beat_ms = out.now_ms() + RETRY_MS;
        if self.away.is_none() {
            self.away = Some(Away { since_ms: out.now_ms() });
        }
        self.users.tell_here(out, &self.node);
        self.rosters.tell_here(out);
    }

    /// Forgets what waits, once who waits for it is answered.
    fn give_up(&mut self, out: &mut Out<'_>) {
        self.users.tell_here(out, &self.node);
        self.rosters.tell_here(out);
        self.users.clear();
        self.rosters.clear();
    }

    fn bound(&mut self, out: &mut Out<'_>) {
        if self.users.waiting() <= CHANGES_MAX && self.rosters.waiting() <= CHANGES_MAX {
            return;
        }
        if self.away.is_some() {
            self.give_up(out);
            self.overflowed = true;
        } else {
            self.begin_life(out, true);
        }
    }

    // Time.

    /// Does what is due and sends what has gathered: at the end of each turn of the bridge.
    pub(super) fn flush(&mut self, out: &mut Out<'_>) {
        if self.evicted {
            return;
        }
        let now_ms = out.now_ms();
        if self.beating.is_none() && self.beat_ms <= now_ms {
            self.beating = Some(self.life);
            self.beat_ms = now_ms + BEAT_MS;
            let (life, take) = (self.life, self.taking.is_some());
            let walking = take || self.walks.iter().any(|walk| walk.is_hurried());
            out.ask(ClusterRequest::Beat { life, take, walking });
        }
        if self.is_reachable() {
            if self.ask_again_ms.is_some_and(|due| due <= now_ms) {
                self.ask_again_ms = None;
                self.users.ask_all_again();
            }
            self.ready_walks().for_each(|walk| walk.pull(out));
            self.users.flush(out, self.life);
            self.rosters.flush(out, self.life);
        }
        self.stats.away_now = self.away.is_some();
        self.stats.changes_waiting_now = (self.users.waiting() + self.rosters.waiting()) as u64;
        self.stats.watched_users_now = self.users.watched() as u64;
    }

    /// The walks whose parts need not wait behind others.
    fn ready_walks(&mut self) -> impl Iterator<Item = &mut Walk> {
        let waiting = [self.users.waiting(), self.rosters.waiting()];
        self.walks.iter_mut().zip(waiting).filter(|(_, waiting)| *waiting < BATCH_MAX).map(|(walk, _)| walk)
    }

    /// When `flush` is due though nothing comes in, in ms of CLOCK_MONOTONIC.
    pub(super) fn next_tick_ms(&self) -> Option<u64> {
        if self.evicted {
            return None;
        }
        let beat = self.beating.is_none().then_some(self.beat_ms);
        if !self.is_reachable() {
            return beat;
        }
        let waiting = [self.users.waiting(), self.rosters.waiting()];
        let ready = self.walks.iter().zip(waiting).filter(|(_, waiting)| *waiting < BATCH_MAX);
        let walks = ready.filter_map(|(walk, _)| walk.due_ms()).min();
        [beat, walks, self.ask_again_ms, self.rosters.due_ms()].into_iter().flatten().min()
    }
}
