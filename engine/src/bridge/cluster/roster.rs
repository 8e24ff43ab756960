//! Rooms: who came and went here on its way to the bus, what of it the members here are told, and who is in a room.

use super::presence::is_dead;
use super::{BATCH_MAX, Out};
use crate::bridge::Answer;
use crate::cluster::{ClusterRequest, Life, MemberChange, RoomAnswer, RoomChanges};
use crate::mesh::{Asker, ToShard};
use crate::names::{RoomId, User};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use roomwire_wire::message::{Member, ServerMessage};
use std::collections::VecDeque;

/// A large room's count is told so often at most.
const RECOUNT_MS: u64 = 1_000;
/// The most users that `members` lists.
const LISTED_USERS_MAX: usize = 100;

/// Who asks who is in a room, with what is known here.
#[derive(Debug)]
pub(in crate::bridge) struct RosterAsk {
    pub(in crate::bridge) asker: Asker,
    pub(in crate::bridge) count: u64,
    pub(in crate::bridge) users: Vec<User>,
}

#[derive(Debug)]
struct Change {
    /// `None`: the room's count is looked at again.
    change: Option<MemberChange>,
    /// The members here know.
    is_told: bool,
}

#[derive(Debug, Default)]
pub(super) struct Rosters {
    changes: VecDeque<(RoomId, Change)>,
    /// On their way to the bus, each room once, in the order in which they first came.
    changing: Vec<(RoomId, Vec<Change>)>,
    changing_count: usize,
    /// Answers to come that nobody waits for any more.
    dead_changes: u32,
    /// Rooms whose count is looked at again then; each once.
    recounts: VecDeque<(u64, RoomId)>,
    recounted: HashSet<RoomId>,
    asks: HashMap<RoomId, Vec<RosterAsk>>,
}

impl Rosters {
    pub(super) fn waiting(&self) -> usize {
        self.changes.len() + self.changing_count
    }

    pub(super) fn due_ms(&self) -> Option<u64> {
        self.recounts.front().map(|(due, _)| *due)
    }

    pub(super) fn changed(&mut self, out: &mut Out<'_>, room: RoomId, change: MemberChange, is_away: bool) {
        let mut change = Change { change: Some(change), is_told: false };
        if is_away {
            tell(out, &room, &mut change);
        }
        self.changes.push_back((room, change));
    }

    /// Announces members again.
    pub(super) fn announce(&mut self, room: &RoomId, users: Vec<User>, quiet: bool) {
        for user in users {
            // The room need not be new, but the bus may have forgotten it.
            let change = MemberChange { user, joined: true, edge: true, quiet };
            self.changes.push_back((room.clone(), Change { change: Some(change), is_told: false }));
        }
    }

    pub(super) fn ask(&mut self, out: &mut Out<'_>, room: &RoomId, ask: RosterAsk, is_reachable: bool) {
        if !is_reachable {
            return answer(out, room, ask, None);
        }
        let waiting = self.asks.entry(room.clone()).or_default();
        waiting.push(ask);
        if waiting.len() == 1 {
            out.ask(ClusterRequest::AskRoster { room: room.clone() });
        }
    }

    pub(super) fn answered(&mut self, out: &mut Out<'_>, room: &RoomId, found: Option<&(u64, Vec<User>)>) {
        for ask in self.asks.remove(room).into_iter().flatten() {
            answer(out, room, ask, found);
        }
    }

    // To the bus and back.

    pub(super) fn flush(&mut self, out: &mut Out<'_>, life: Life) {
        while self.recounts.front().is_some_and(|(due, _)| *due <= out.now_ms()) {
            let Some((_, room)) = self.recounts.pop_front() else { break };
            self.recounted.remove(&room);
            self.changes.push_back((room, Change { change: None, is_told: true }));
        }
        if !self.changing.is_empty() || self.changes.is_empty() {
            return;
        }
        self.changing_count = self.changes.len().min(BATCH_MAX);
        let mut places: HashMap<RoomId, usize> = HashMap::new();
        for (room, change) in self.changes.drain(..self.changing_count) {
            let place = *places.entry(room.clone()).or_insert(self.changing.len());
            if place == self.changing.len() {
                self.changing.push((room, Vec::new()));
            }
            self.changing[place].1.push(change);
        }
        let rooms = self.changing.iter().map(|(room, changes)| RoomChanges {
            room: room.clone(),
            changes: changes.iter().filter_map(|change| change.change.clone()).collect(),
        });
        out.ask(ClusterRequest::Rosters { life, rooms: rooms.collect() });
    }

    /// The bus took the changes.
    pub(super) fn taken(&mut self, out: &mut Out<'_>, answers: &[RoomAnswer]) {
        if is_dead(&mut self.dead_changes) {
            return;
        }
        self.changing_count = 0;
        for ((room, changes), answer) in std::mem::take(&mut self.changing).into_iter().zip(answers) {
            let changes = changes.iter().filter_map(|change| Some((change.change.as_ref()?, change.is_told)));
            for ((change, is_told), tell) in changes.zip(&answer.told) {
                if *tell && !is_told {
                    tell_of(out, &room, change);
                }
            }
            if let Some(count) = answer.counted {
                out.home(&room, ToShard::RosterCounted { room: room.clone(), count });
            }
            if answer.recount && self.recounted.insert(room.clone()) {
                self.recounts.push_back((out.now_ms() + RECOUNT_MS, room));
            }
        }
    }

    /// Unknown outcome: the same again, before all else.
    pub(super) fn failed(&mut self) {
        if is_dead(&mut self.dead_changes) {
            return;
        }
        self.changing_count = 0;
        for (room, changes) in std::mem::take(&mut self.changing).into_iter().rev() {
            for change in changes.into_iter().rev() {
                self.changes.push_front((room.clone(), change));
            }
        }
    }

    /// Tells what waits, and answers who asks, from what is known here.
    pub(super) fn tell_here(&mut self, out: &mut Out<'_>) {
        for (room, changes) in &mut self.changing {
            changes.iter_mut().for_each(|change| tell(out, room, change));
        }
        for (room, change) in &mut self.changes {
            tell(out, room, change);
        }
        let mut asks: Vec<(RoomId, Vec<RosterAsk>)> = self.asks.drain().collect();
        asks.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        for (room, asks) in asks {
            asks.into_iter().for_each(|ask| answer(out, &room, ask, None));
        }
    }

    pub(super) fn clear(&mut self) {
        self.dead_changes += u32::from(!self.changing.is_empty());
        self.changes.clear();
        self.changing.clear();
        self.changing_count = 0;
        self.recounts.clear();
        self.recounted.clear();
    }
}

/// Tells a change that this node alone knows of; what is announced again is nothing new here.
fn tell(out: &mut Out<'_>, room: &RoomId, change: &mut Change) {
    if !std::mem::replace(&mut change.is_told, true)
        && let Some(member) = change.change.as_ref().filter(|member| !member.quiet)
    {
        tell_of(out, room, member);
    }
}

fn tell_of(out: &mut Out<'_>, room: &RoomId, change: &MemberChange) {
    let (user, joined) = (change.user.clone(), change.joined);
    out.home(room, ToShard::RosterChanged { room: room.clone(), user, joined });
}

fn answer(out: &mut Out<'_>, room: &RoomId, ask: RosterAsk, found: Option<&(u64, Vec<User>)>) {
    let RosterAsk { asker, mut count, mut users } = ask;
    if let Some((known, others)) = found {
        // What happened here a moment ago may not be there yet.
        count = count.max(*known);
        let here: HashSet<_> = users.iter().map(|user| user.id.clone()).collect();
        let others = others.iter().filter(|user| !here.contains(&user.id));
        users.extend(others.take(LISTED_USERS_MAX.saturating_sub(here.len())).cloned());
    }
    match asker {
        Asker::Http(call) => out.answer(call, Answer::Members { count, users, complete: found.is_some() }),
        Asker::Connection(to) => {
            let listed: Vec<Member<'_>> =
                users.iter().map(|user| Member { user_id: &user.id, username: &user.name }).collect();
            let mut payload = Vec::new();
            ServerMessage::Members { room_id: room, count, users: Some(&listed) }.write(&mut payload);
            let message = ToShard::MembersAnswer { to, payload: Bytes::from(payload) };
            out.effects.push(crate::bridge::BridgeEffect::Shard(to.shard, message));
        }
    }
}
