//! The calm end of a run: what must have come right, and when.

use super::{CALM_SPLIT_MS, LastWords, REACHED_MS_MAX, ROOMS, World};
use crate::Shape;
use crate::client::Client;
use crate::node::Node;
use crate::oracle::Verdict;
use crate::store::Mode;
use roomwire_engine::names::RoomId;

/// With nothing under way a step takes so much longer: only timers are waited for.
const IDLE_US: u64 = 100_000;

impl World {
    /// No more faults.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        self.ambush = None;
        self.store.mode = Mode::Well;
        self.store.cut_off.clear();
        // In strict mode both sides of a split go on, however long it lasts.
        let is_long = self.may_split && self.is_strict && self.random.one_in(2);
        if is_long && self.old_redis.is_none() {
            self.split();
        }
        self.split_until_ms = if is_long { self.now.mono_ms() + CALM_SPLIT_MS } else { 0 };
        for link in self.links.values_mut() {
            link.stalled = false;
        }
        for node in &mut self.nodes {
            node.paused_until_ms = 0;
        }
    }

    /// A cluster comes to rest without a further message. Then each room is written to once more: a seq whose node died
    /// stays undecided until somebody writes behind it, and with that what is behind can be compared with the store.
    pub(super) fn calm_cluster(&mut self, calm_ms: u64, spent_ms: u64) -> Verdict {
        if spent_ms > REACHED_MS_MAX {
            // After a split it may take the room's next message: the present Redis does not know what the old one published.
            if self.counts.splits == 0 {
                self.check_acked_reached()?;
            }
            self.say_goodbye();
            return Ok(());
        }
        // A node that takes few publishes at a time needs longer for what was left.
        let is_wide = self.bridge_config.publishes_max > 1_000;
        let is_split = is_wide && self.old_redis.is_some() && self.split_until_ms == calm_ms + CALM_SPLIT_MS;
        if is_split && spent_ms > CALM_SPLIT_MS - 1_000 && spent_ms < CALM_SPLIT_MS {
            let waits = |client: &&Client| client.connected_ms < calm_ms && !client.pending.is_empty();
            if let Some(client) = self.clients.iter().find(waits) {
                let (who, count) = (&client.user, client.pending.len());
                return Err(format!(
                    "promise 6: {count} messages of {who} wait on their side of a split, in strict mode"
                ));
            }
        }
        if self.counts.steps.is_multiple_of(8) && self.is_quiet() {
            self.step_last_words(spent_ms);
            self.now.mono_us += IDLE_US;
            self.now.unix_ms += IDLE_US / 1_000;
        }
        Ok(())
    }

    /// The last message of a room is lost on its way to one node, and so is Redis: only the store knows of it.
    fn step_last_words(&mut self, spent_ms: u64) {
        match self.last_words {
            _ if spent_ms > REACHED_MS_MAX / 2 => self.deaf = None,
            LastWords::Unsaid => {
                self.deaf = Some(self.random.index(self.nodes.len()));
                self.last_words = LastWords::Said;
                let now_ms = self.now.mono_ms();
                if let Some(link) = self.links.values_mut().find(|link| !link.client_shut) {
                    for room in ROOMS {
                        self.clients[link.client].publish(room, &mut self.random, now_ms, &mut link.to_server);
                    }
                }
            }
            LastWords::Said => {
                self.deaf = None;
                self.last_words = LastWords::Over;
                if self.random.one_in(2) && self.old_redis.is_none() {
                    self.lose_redis();
                }
            }
            LastWords::Over => {}
        }
    }

    fn say_goodbye(&mut self) {
        let now_ms = self.now.mono_ms();
        self.goodbye_ms = Some(now_ms);
        for link in self.links.values_mut().filter(|link| !link.client_shut) {
            let client = &mut self.clients[link.client];
            let own = client.own_room();
            client.publish(&own, &mut self.random, now_ms, &mut link.to_server);
        }
        if let Some(link) = self.links.values_mut().find(|link| !link.client_shut) {
            for room in ROOMS {
                self.clients[link.client].publish(room, &mut self.random, now_ms, &mut link.to_server);
            }
        }
    }

    /// Whether nothing is under way and every client is where it wants to be.
    pub(super) fn is_settled(&self) -> bool {
        self.old_redis.is_none() && self.is_quiet()
    }

    /// The same, though a split may last.
    fn is_quiet(&self) -> bool {
        self.store.is_idle()
            && self.late.is_empty()
            && self.nodes.iter().all(Node::is_quiet)
            && self.links.values().all(|link| {
                !link.wants_send && link.in_flight.is_none() && link.to_client.is_empty() && link.to_server.is_empty()
            })
            && self.clients.iter().all(|client| {
                client.connected
                    && client.pending.is_empty()
                    && client.rooms.values().all(|view| view.live || !view.wanted)
            })
    }

    /// Some time after the last fault every member has what was acked, even if nobody writes to the room.
    fn check_acked_reached(&self) -> Verdict {
        for room in ROOMS {
            for client in &self.clients {
                let Some(view) = client.rooms.get(room).filter(|view| view.wanted && view.live) else { continue };
                let lacks = |seq: &u64| *seq > view.from && !view.messages.contains_key(seq);
                if let Some(seq) = self.oracle.acked_in(room).map(|(seq, _)| seq).find(lacks) {
                    return Err(format!("promise 3: {} still lacks {room} {seq}, which was acked", client.user));
                }
            }
        }
        Ok(())
    }

    /// The end: every member has every message.
    pub(super) fn check_rows(&mut self) -> Verdict {
        let may_be_cut_off = self.oracle.may_be_cut_off;
        for room in ROOMS {
            let mut rows = self.store.alive(room, 0, u64::MAX);
            if self.shape == Shape::Cluster {
                // What lies above is of a dead generation, or of a node that died.
                let last = self.oracle.last_seen(room);
                rows.retain(|seq| *seq <= last);
            }
            if let Some(base) = self.unknown_from(room) {
                rows.retain(|seq| *seq < base);
            }
            self.check_acked_stored(room)?;
            for client in &self.clients {
                let Some(view) = client.rooms.get(room).filter(|view| view.wanted) else { continue };
                // What was cut off nobody has to take back.
                let messages = view.messages.iter();
                let kept = messages.filter(|(_, id)| !may_be_cut_off || !self.store.is_dead(room, id));
                let has: Vec<u64> = kept.map(|(seq, _)| *seq).collect();
                let should: Vec<u64> = rows.iter().copied().filter(|seq| *seq > view.from).collect();
                if has != should {
                    return Err(format!(
                        "promise 3: at the end {} has {has:?} of {room} and the store has {should:?}",
                        client.user
                    ));
                }
            }
        }
        self.check_own_rooms()
    }

    /// Where a generation begins that was made on the old master of a split by a node that died: nobody is told of it until
    /// Redis next loses the room.
    fn unknown_from(&self, room: &str) -> Option<u64> {
        let (served, _) = self.redis.live(&RoomId::new(room)).filter(|_| self.oracle.may_be_cut_off)?;
        self.store.base_after(room, served)
    }

    fn check_acked_stored(&mut self, room: &str) -> Verdict {
        let rows = self.store.rows(room, 0, u64::MAX);
        for (seq, message_id) in self.oracle.acked_in(room) {
            let is_there = rows.iter().any(|read| read.row.seq == seq);
            let is_excused = self.oracle.may_be_cut_off && self.store.is_dead(room, message_id);
            if !is_there && !is_excused {
                return Err(format!("promise 3: {room} {seq} {message_id} was acked and is gone"));
            }
        }
        Ok(())
    }

    /// What was last written to a user's own room has reached all of the user's connections of before.
    fn check_own_rooms(&mut self) -> Verdict {
        for which in 0..self.clients.len() {
            let room = self.clients[which].own_room();
            self.check_acked_stored(&room)?;
            let client = &self.clients[which];
            let last = self.oracle.acked_in(&room).max();
            if last.is_some_and(|(_, id)| self.store.is_dead(&room, id)) || self.unknown_from(&room).is_some() {
                continue; // the last word was cut off, or is of a generation that nobody knows of
            }
            let last = last.map(|(seq, _)| seq);
            if self.goodbye_ms.is_some_and(|goodbye| client.connected_ms < goodbye) && client.own_last < last {
                let has = client.own_last;
                return Err(format!("promise 3: at the end {} has {room} up to {has:?}, not {last:?}", client.user));
            }
        }
        Ok(())
    }

    /// Every client asks who is where; all must agree with what is true.
    pub(super) fn settle_members(&mut self) -> Verdict {
        for client in &mut self.clients {
            client.members.clear();
        }
        for link in self.links.values_mut().filter(|link| !link.client_shut) {
            for room in ROOMS {
                self.clients[link.client].ask_members(room, &mut link.to_server);
            }
        }
        for _ in 0..20_000 {
            self.step()?;
            if self.clients.iter().all(|client| client.members.len() == ROOMS.len()) {
                break;
            }
        }
        for room in ROOMS {
            let mut users: Vec<&str> = self
                .clients
                .iter()
                .filter(|client| client.rooms.get(room).is_some_and(|view| view.live))
                .map(|client| client.user.as_str())
                .collect();
            users.sort_unstable();
            users.dedup();
            for client in &self.clients {
                let told = client.members.get(room).copied();
                if told != Some(users.len() as u64) {
                    return Err(format!("members: {} was told {told:?} of {room}, there are {users:?}", client.user));
                }
            }
        }
        Ok(())
    }
}
