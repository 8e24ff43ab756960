//! Which rooms' heads to look at though nothing was heard of them, and when: each listening room about every 10 s in a
//! cluster, and all rooms after the bus lost its subscriptions. Paced, so that neither floods the bus: a room's look costs
//! one HEAD, which the bus sends with others as one batch.

use crate::Now;
use crate::names::RoomId;
use std::collections::VecDeque;

/// The look at the head of a room of which nothing is heard.
const LOOK_MS: u64 = 10_000;
/// At most so many such looks in one batch, and the time to the next batch: with more than 10,000 rooms the looks of
/// each room are further apart.
const LOOKS_MAX: usize = 100;
const LOOKS_PAUSE_MS: u64 = 100;
/// The same after a loss: all rooms are looked at, as fast as the bus can take along with its other work.
const SWEEP_MAX: usize = 256;
const SWEEP_PAUSE_MS: u64 = 10;
/// Stands for any room of that name.
pub(super) const ANY: u64 = 0;

/// The rooms to look at.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Each listening room, by when it is due: (due, room, look), `look` telling a room from one of the same name before.
    idle: VecDeque<(u64, RoomId, u64)>,
    idle_after_ms: u64,
    swept: VecDeque<RoomId>,
    swept_after_ms: u64,
}

impl Looks {
    /// Looks at the room in 10 s.
    pub(super) fn add(&mut self, now: Now, room: RoomId, look: u64) {
        self.idle.push_back((now.mono_ms() + LOOK_MS, room, look));
    }

    /// Looks at all of these rooms, from now on.
    pub(super) fn sweep(&mut self, now: Now, rooms: Vec<RoomId>) {
        self.swept = rooms.into();
        self.swept_after_ms = now.mono_ms();
    }

    /// When something is due.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let idle = self.idle.front().map(|(due, ..)| (*due).max(self.idle_after_ms));
        let swept = (!self.swept.is_empty()).then_some(self.swept_after_ms);
        [idle, swept].into_iter().flatten().min()
    }

    /// Takes the rooms that are due now.
    pub(super) fn due(&mut self, now: Now) -> Vec<(RoomId, u64)> {
        let now_ms = now.mono_ms();
        let mut due = Vec::new();
        if now_ms >= self.swept_after_ms && !self.swept.is_empty() {
            let count = self.swept.len().min(SWEEP_MAX);
            due.extend(self.swept.drain(..count).map(|room| (room, ANY)));
            self.swept_after_ms = now_ms + SWEEP_PAUSE_MS;
        }
        if now_ms >= self.idle_after_ms && self.idle.front().is_some_and(|(at, ..)| *at <= now_ms) {
            let count = self.idle.iter().take(LOOKS_MAX).take_while(|(at, ..)| *at <= now_ms).count();
            due.extend(self.idle.drain(..count).map(|(_, room, look)| (room, look)));
            self.idle_after_ms = now_ms + LOOKS_PAUSE_MS;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_spread_and_a_sweep_reaches_every_room_once() {
        let mut now = Now { mono_us: 5_000_000, unix_ms: 0 };
        let mut looks = Looks::default();
        let rooms: Vec<RoomId> = (0..1_000).map(|number| RoomId::new(&format!("r{number}"))).collect();
        for room in &rooms {
            looks.add(now, room.clone(), 1);
        }
        looks.sweep(now, rooms.clone());
        let mut swept = Vec::new();
        let mut idle = Vec::new();
        while let Some(due_ms) = looks.next_ms() {
            now.mono_us = due_ms * 1_000;
            let due = looks.due(now);
            assert!(!due.is_empty() && due.len() <= SWEEP_MAX);
            for (room, look) in due {
                if look == ANY { swept.push(room) } else { idle.push((due_ms, room)) }
            }
        }
        assert_eq!(swept, rooms);
        assert_eq!(idle.len(), rooms.len());
        assert_eq!((idle[0].0, idle[999].0), (15_000, 15_900));
    }
}
