//! What goes wrong in a run: crashes, pauses, cut connections, a store in trouble, a Redis that forgets or fails over.

use super::World;
use crate::Shape;
use crate::network::SHARDS_MAX;
use crate::store::Mode;

impl World {
    /// Something goes wrong, now and then.
    pub(super) fn fault(&mut self) {
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

    fn cluster_fault(&mut self) {
        let now_ms = self.now.mono_ms();
        let number = self.random.index(self.nodes.len());
        let until_ms = now_ms + self.random.below(5_000);
        match self.random.below(12) {
            0..=3 => {
                self.counts.pauses += 1;
                self.nodes[number].paused_until_ms = until_ms;
            }
            4..=7 => self.cut_redis(number, until_ms),
            8 => {
                self.store.cut_off.insert(self.nodes[number].place.process);
                self.mode_until_ms = self.mode_until_ms.max(until_ms);
            }
            9 => self.redis.forget(&mut self.random),
            what => {
                self.counts.bus_losses += 1;
                if what == 10 {
                    self.redis.restart()
                } else {
                    self.redis.fail_over()
                }
                for number in 0..self.nodes.len() {
                    let until_ms = now_ms + self.random.below(3_000);
                    self.cut_redis(number, until_ms);
                }
                // What was on its way to the old server died with it.
                self.late.clear();
            }
        }
    }

    /// A node cannot reach Redis.
    fn cut_redis(&mut self, number: usize, until_ms: u64) {
        self.counts.bus_cuts += 1;
        let now_ms = self.now.mono_ms();
        if let Some(link) = self.nodes[number].redis() {
            link.cut(now_ms, until_ms, &mut self.random, &mut self.late);
        }
    }

    /// `kill -9` of a node, and a new process over the same store. What it had sent may still arrive.
    fn crash(&mut self) {
        self.counts.crashes += 1;
        let now_ms = self.now.mono_ms();
        let number = self.random.index(self.nodes.len());
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
                link.to_server.clear();
            }
            self.clients[link.client].disconnected();
        }
    }
}
