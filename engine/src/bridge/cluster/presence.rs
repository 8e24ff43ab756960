//! Users: what came and went here on its way to the bus, who is watched here, and questions about users elsewhere.

use super::{BATCH_MAX, Out};
use crate::bridge::Answer;
use crate::cluster::{ClusterRequest, Life, UserChange, UserState};
use crate::mesh::ToShard;
use crate::names::UserId;
use hashbrown::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;

/// Who asks where a user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The user's home, for watchers.
    Home,
    /// The HTTP API; with what is known here.
    Http { call: u64, here: bool, connections: u32 },
}

#[derive(Debug)]
struct Change {
    change: UserChange,
    /// The home waits to hear whether the user is still online elsewhere.
    is_awaited: bool,
}

#[derive(Debug)]
struct Ask {
    user: UserId,
    who: Who,
    /// An event that came meanwhile is newer than the answer.
    is_stale: bool,
}

#[derive(Debug, Default)]
pub(super) struct Users {
    changes: VecDeque<Change>,
    changing: Vec<Change>,
    asks: VecDeque<Ask>,
    asking: Vec<Ask>,
    /// Answers to come that nobody waits for any more.
    dead_changes: u32,
    dead_asks: u32,
    watched: HashSet<UserId>,
}

impl Users {
    pub(super) fn waiting(&self) -> usize {
        self.changes.len() + self.changing.len()
    }

    pub(super) fn watched(&self) -> usize {
        self.watched.len()
    }

    // What happens here.

    pub(super) fn changed(&mut self, out: &mut Out<'_>, user: UserId, online: bool, is_away: bool) {
        let mut is_awaited = !online && self.watched.contains(&user);
        if is_awaited && is_away {
            is_awaited = false;
            elsewhere(out, &user, false);
        }
        self.changes.push_back(Change { change: UserChange { user, online, quiet: false }, is_awaited });
    }

    /// Announces a user again.
    pub(super) fn announce(&mut self, user: UserId, quiet: bool) {
        self.changes.push_back(Change { change: UserChange { user, online: true, quiet }, is_awaited: false });
    }

    pub(super) fn watch(&mut self, out: &mut Out<'_>, user: UserId, is_away: bool) {
        self.watched.insert(user.clone());
        if is_away {
            // Asked again once the bus is back.
            elsewhere(out, &user, false);
        } else {
            self.asks.push_back(Ask { user, who: Who::Home, is_stale: false });
        }
    }

    pub(super) fn unwatch(&mut self, user: &UserId) {
        self.watched.remove(user);
    }

    pub(super) fn ask(&mut self, out: &mut Out<'_>, user: UserId, who: Who, is_away: bool, node: &Arc<str>) {
        let ask = Ask { user, who, is_stale: false };
        if is_away {
            answer(out, &ask, None, node);
        } else {
            self.asks.push_back(ask);
        }
    }

    /// Asks for everybody who is watched: events may have been missed.
    pub(super) fn ask_all_again(&mut self) {
        let mut all: Vec<UserId> = self.watched.iter().cloned().collect();
        all.sort_unstable();
        self.asks.extend(all.into_iter().map(|user| Ask { user, who: Who::Home, is_stale: false }));
    }

    // To the bus and back.

    pub(super) fn flush(&mut self, out: &mut Out<'_>, life: Life) {
        if self.changing.is_empty() && !self.changes.is_empty() {
            let mut users = HashSet::new();
            while let Some(next) = self.changes.front()
                && self.changing.len() < BATCH_MAX
                && users.insert(next.change.user.clone())
            {
                self.changing.extend(self.changes.pop_front());
            }
            let changes = self.changing.iter().map(|change| change.change.clone()).collect();
            out.ask(ClusterRequest::Users { life, changes });
        }
        if self.asking.is_empty() && !self.asks.is_empty() {
            let batch = self.asks.len().min(BATCH_MAX);
            self.asking.extend(self.asks.drain(..batch));
            out.ask(ClusterRequest::AskUsers { users: self.asking.iter().map(|ask| ask.user.clone()).collect() });
        }
    }

    /// The bus took the changes; so many nodes hold each user now.
    pub(super) fn taken(&mut self, out: &mut Out<'_>, counts: &[u32]) {
        if is_dead(&mut self.dead_changes) {
            return;
        }
        for (change, count) in std::mem::take(&mut self.changing).into_iter().zip(counts) {
            if change.is_awaited {
                elsewhere(out, &change.change.user, *count > 0);
            }
        }
    }

    /// Unknown outcome: the same again, before all else.
    pub(super) fn failed(&mut self) {
        if is_dead(&mut self.dead_changes) {
            return;
        }
        for change in std::mem::take(&mut self.changing).into_iter().rev() {
            self.changes.push_front(change);
        }
    }

    pub(super) fn answered(&mut self, out: &mut Out<'_>, states: Vec<UserState>, node: &Arc<str>) {
        if is_dead(&mut self.dead_asks) {
            return;
        }
        for (ask, state) in std::mem::take(&mut self.asking).into_iter().zip(states) {
            if !ask.is_stale {
                answer(out, &ask, Some(state), node);
            }
        }
    }

    /// No answer: who asked was told what is known here when the bus went away.
    pub(super) fn ask_failed(&mut self) {
        is_dead(&mut self.dead_asks);
    }

    /// A user came online on the first node of all, or went offline on the last.
    pub(super) fn heard(&mut self, out: &mut Out<'_>, user: &UserId, online: bool) {
        if !self.watched.contains(user) {
            return;
        }
        elsewhere(out, user, online);
        for ask in self.asking.iter_mut().filter(|ask| ask.user == *user && ask.who == Who::Home) {
            ask.is_stale = true;
        }
        for change in self.changing.iter_mut().filter(|change| change.change.user == *user) {
            change.is_awaited = false;
        }
    }

    /// Answers all who wait, from what is known here.
    pub(super) fn tell_here(&mut self, out: &mut Out<'_>, node: &Arc<str>) {
        for change in self.changing.iter_mut().chain(&mut self.changes) {
            if std::mem::take(&mut change.is_awaited) {
                elsewhere(out, &change.change.user, false);
            }
        }
        self.dead_asks += u32::from(!self.asking.is_empty());
        for ask in self.asking.drain(..).chain(self.asks.drain(..)) {
            answer(out, &ask, None, node);
        }
    }

    pub(super) fn clear(&mut self) {
        self.dead_changes += u32::from(!self.changing.is_empty());
        self.changes.clear();
        self.changing.clear();
    }
}

/// Whether an answer is one that nobody waits for: answers come in the order of the questions.
pub(super) fn is_dead(dead: &mut u32) -> bool {
    let is_dead = *dead > 0;
    *dead = dead.saturating_sub(1);
    is_dead
}

fn elsewhere(out: &mut Out<'_>, user: &UserId, online: bool) {
    out.home(user, ToShard::UserElsewhere { user: user.clone(), online });
}

fn answer(out: &mut Out<'_>, ask: &Ask, state: Option<UserState>, node: &Arc<str>) {
    let complete = state.is_some();
    let state = state.unwrap_or_default();
    match ask.who {
        Who::Home => elsewhere(out, &ask.user, state.online),
        Who::Http { call, here, connections } => {
            let mut nodes = state.nodes;
            if here && !nodes.contains(node) {
                nodes.push(node.clone());
            }
            nodes.sort_unstable();
            out.answer(call, Answer::Presence { online: here || state.online, connections, nodes, complete });
        }
    }
}
