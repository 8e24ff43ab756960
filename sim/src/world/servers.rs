//! The fake Redis in a run: commands reach it, answers and events come back; and a master that was replaced may live on
//! with some of the nodes for a while.

use super::World;
use roomwire_engine::bridge::BridgeEvent;

impl World {
    /// Commands reach the servers, answers and events come back.
    pub(super) fn step_redis(&mut self) {
        let now_ms = self.now.mono_ms();
        self.step_story(&[]);
        self.step_old();
        // Of the present server and of the old one.
        let mut events = [Vec::new(), Vec::new()];
        while let Some(index) = self.late.iter().position(|late| late.due_ms <= now_ms) {
            let late = self.late.remove(index);
            let server = if late.is_for_old { self.old_redis.as_mut() } else { Some(&mut self.redis) };
            if let Some(server) = server {
                server.run(now_ms, late.request, &mut events[usize::from(late.is_for_old)]);
            }
        }
        let mut begins = Vec::new();
        for node in &mut self.nodes {
            let (moves, process) = (self.random.below(4), node.place.process);
            let Some(link) = node.redis() else { continue };
            link.tick(now_ms);
            let is_old = link.asks_old();
            let Some(server) = (if is_old { self.old_redis.as_mut() } else { Some(&mut self.redis) }) else { continue };
            for _ in 0..moves {
                let begun = link.carry_out(now_ms, server, &mut events[usize::from(is_old)]);
                for late in self.late.iter_mut().filter(|late| begun.as_ref() == Some(late.request.room())) {
                    // What was sent to the room before comes at the worst moment: while it is made anew.
                    if self.random.one_in(2) {
                        late.due_ms = now_ms + self.random.below(40);
                    }
                }
                begins.extend(begun.filter(|_| !is_old).map(|room| (process, room)));
            }
        }
        if self.random.one_in(4) {
            self.redis.replicate();
        }
        let is_lossy = !self.calm;
        for node in &mut self.nodes {
            let is_deaf = self.deaf == Some(node.place.number);
            let Some(link) = node.redis() else { continue };
            for (is_old, events) in [false, true].into_iter().zip(&events).filter(|_| !is_deaf) {
                events.iter().for_each(|event| link.hear(event, is_old, &mut self.random, is_lossy));
            }
            let mut heard = Vec::new();
            for _ in 0..self.random.below(3) {
                heard.extend(link.take_event().map(BridgeEvent::BusEvent));
            }
            for _ in 0..self.random.below(3) {
                heard.extend(link.take_reply().map(BridgeEvent::BusReply));
            }
            node.mail.extend(heard);
        }
        self.step_story(&begins);
    }

    /// The replica takes over, but the old master lives on with some of the nodes.
    pub(super) fn split(&mut self) {
        self.counts.splits += 1;
        self.oracle.may_be_cut_off |= !self.is_strict;
        let now_ms = self.now.mono_ms();
        self.old_redis = Some(self.redis.fail_over());
        self.split_until_ms = now_ms + self.random.below(15_000);
        for late in &mut self.late {
            late.is_for_old = true;
        }
        for node in &mut self.nodes {
            let Some(link) = node.redis() else { continue };
            link.stay_with_old();
            if self.random.one_in(2) {
                let until_ms = now_ms + self.random.below(3_000);
                let hears_until_ms = until_ms + self.random.below(6_000);
                link.leave_old((now_ms, until_ms), hears_until_ms, &mut self.random, &mut self.late);
            }
        }
    }

    /// The old master is gone when its time is over and the last node has left it.
    fn step_old(&mut self) {
        let now_ms = self.now.mono_ms();
        if self.old_redis.is_none() || now_ms < self.split_until_ms {
            return;
        }
        for node in &mut self.nodes {
            if let Some(link) = node.redis().filter(|link| link.asks_old()) {
                let until_ms = now_ms + self.random.below(3_000);
                let hears_until_ms = until_ms + self.random.below(6_000);
                link.leave_old((now_ms, until_ms), hears_until_ms, &mut self.random, &mut self.late);
            }
        }
        if !self.nodes.iter_mut().any(|node| node.redis().is_some_and(|link| link.knows_old())) {
            self.old_redis = None;
            self.late.retain(|late| !late.is_for_old);
        }
    }

    /// What was on its way to the present server dies with it.
    pub(super) fn lose_late(&mut self) {
        self.late.retain(|late| late.is_for_old);
    }
}
