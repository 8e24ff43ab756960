//! What goes wrong in a run: crashes, pauses, cut connections, a store in trouble, a Redis that forgets or fails over.

use super::World;
use crate::Shape;
use crate::network::SHARDS_MAX;
use crate::store::Mode;

/// A run with a story has so many times fewer faults of other kinds.
const STORY_FAULTS_ONE_IN: u64 = 12;

impl World {
    /// Something goes wrong, now and then.
    pub(super) fn fault(&mut self) {
        if self.is_spared() {
            return;
        }
        if self.shape == Shape::Cluster && self.random.one_in(300) {
            self.cluster_fault();
        }
        match self.random.below(600) {
            0 => self.crash(),
            1..=4 => self.cut(),
            5..=8 => {
                for link in self.links.values_mut() {
                    link.stalled = self.random.one_in(3);
                }
            }
            9 | 10 => {
                self.store.mode = [Mode::Slow, Mode::Refusing][self.random.index(2)];
                self.mode_until_ms = self.now.mono_ms() + self.random.below(4_000);
            }
            11..=14 => self.links.values_mut().for_each(|link| link.stalled = false),
            _ => {}
        }
    }

    /// In full weather a room is seldom live for long, and a story would not come to its second chapter.
    fn is_spared(&mut self) -> bool {
        self.story.is_some() && !self.random.one_in(STORY_FAULTS_ONE_IN)
    }

    fn cluster_fault(&mut self) {
        let now_ms = self.now.mono_ms();
        let number = self.random.index(self.nodes.len());
        let until_ms = now_ms + self.random.below(5_000);
        match self.random.below(14) {
            0..=3 => self.pause(number, until_ms),
            4..=7 => self.cut_redis(number, until_ms),
            8 => self.cut_store(number, until_ms),
            9..=11 if self.may_split && self.old_redis.is_none() => self.split(),
            _ => self.trouble_redis(),
        }
    }

    /// A node that just asked for something rare may be hit while it is carried out, or right after: most of what can go
    /// wrong there takes two faults, and by mere chance they seldom meet.
    pub(super) fn step_ambush(&mut self) {
        for number in 0..self.nodes.len() {
            let is_exposed = std::mem::take(&mut self.nodes[number].is_exposed);
            if !is_exposed || self.calm || self.ambush.is_some() || self.is_spared() {
                continue;
            }
            let paused = (0..self.nodes.len()).find(|other| self.nodes[*other].paused_until_ms > 0);
            if let Some(paused) = paused.filter(|paused| *paused != number && self.random.one_in(3)) {
                // The one that was in the middle of it goes on, and its successor stops.
                self.nodes[paused].paused_until_ms = 0;
                let until_ms = self.now.mono_ms() + 100 + self.random.below(3_000);
                self.pause(number, until_ms);
            } else if self.random.one_in(4) {
                self.ambush = Some((number, [0, 0, 1, 2, 4, 8, 12][self.random.index(7)]));
            }
        }
        let Some((number, steps)) = &mut self.ambush else { return };
        if *steps > 0 {
            *steps -= 1;
            return;
        }
        let number = *number;
        self.ambush = None;
        self.counts.ambushes += 1;
        let until_ms = self.now.mono_ms() + 1_000 + self.random.below(4_000);
        match self.random.below(10) {
            0..=3 => self.pause(number, until_ms),
            4 | 5 => {
                let until_ms = self.now.mono_ms() + self.random.below(1_000);
                self.cut_redis(number, until_ms);
            }
            6 => self.cut_store(number, until_ms),
            7 => self.crash_node(number),
            _ => self.trouble_redis(),
        }
    }

    pub(super) fn pause(&mut self, number: usize, until_ms: u64) {
        self.counts.pauses += 1;
        self.nodes[number].paused_until_ms = until_ms;
    }

    fn cut_store(&mut self, number: usize, until_ms: u64) {
        self.store.cut_off.insert(self.nodes[number].place.process);
        self.mode_until_ms = self.mode_until_ms.max(until_ms);
    }

    /// Redis forgets one room, or is restarted empty, or fails over to a replica that lags.
    fn trouble_redis(&mut self) {
        let what = self.random.below(4);
        if what < 2 {
            return self.redis.forget(&mut self.random);
        }
        if what == 2 {
            self.lose_redis();
        } else {
            drop(self.redis.fail_over());
            self.cut_all();
        }
    }

    /// Redis starts again, empty.
    pub(super) fn lose_redis(&mut self) {
        self.redis.restart();
        self.cut_all();
    }

    fn cut_all(&mut self) {
        self.counts.bus_losses += 1;
        self.lose_late();
        let now_ms = self.now.mono_ms();
        for number in 0..self.nodes.len() {
            let is_here = self.nodes[number].redis().is_some_and(|link| !link.asks_old());
            if is_here {
                let until_ms = now_ms + self.random.below(3_000);
                self.cut_redis(number, until_ms);
            }
        }
        self.lose_late();
    }

    /// A node cannot reach Redis.
    pub(super) fn cut_redis(&mut self, number: usize, until_ms: u64) {
        self.counts.bus_cuts += 1;
        let now_ms = self.now.mono_ms();
        if let Some(link) = self.nodes[number].redis() {
            link.cut(now_ms, until_ms, &mut self.random, &mut self.late);
        }
    }

    /// `kill -9` of a node, and a new process over the same store. What it had sent may still arrive.
    fn crash(&mut self) {
        let number = self.random.index(self.nodes.len());
        self.crash_node(number);
    }

    fn crash_node(&mut self, number: usize) {
        self.counts.crashes += 1;
        let now_ms = self.now.mono_ms();
        self.store.crash(now_ms, self.nodes[number].place.process, &mut self.random);
        if let Some(link) = self.nodes[number].redis() {
            link.cut(now_ms, now_ms, &mut self.random, &mut self.late);
        }
        self.links.retain(|(global, _), link| {
            let is_here = global / SHARDS_MAX == number;
            if is_here && !link.client_shut {
                self.clients[link.client].disconnected();
            }
            !is_here
        });
        if self.shape == Shape::Node {
            // The whole world waits for the only node.
            self.now.mono_us += self.random.below(2_000_000);
        }
        self.nodes[number] = self.new_node(number);
    }

    /// A connection breaks: what was under way is lost, and the server learns of it later.
    fn cut(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let which = self.random.index(self.links.len());
        if let Some(link) = self.links.values_mut().nth(which).filter(|link| !link.client_shut) {
            self.counts.cuts += 1;
            link.client_shut = true;
            link.to_client.clear();
            if self.random.one_in(2) {
                link.lose_to_server();
            }
            self.clients[link.client].disconnected();
        }
    }
}
