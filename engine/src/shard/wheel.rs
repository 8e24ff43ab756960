//! The shard's one timing wheel: when to look at a connection again.
//!
//! Lazy: a connection has one valid entry, at the tick kept in it. A deadline that moves later costs nothing: the
//! entry comes up early, finds nothing due, and is put back. One that moves sooner puts in a second entry; the first
//! is then no longer the connection's tick and is passed over.

/// Milliseconds of one tick.
pub(super) const TICK_MS: u64 = 100;
/// No deadline.
pub(super) const NEVER: u32 = u32::MAX;
/// Buckets, so ticks ahead that an entry can wait: 51 s. Later deadlines come up at the far end and are put back.
const BUCKETS: u32 = 512;

/// A bucket with room for more slots than this gives its memory back.
const SPARE_SLOTS_MAX: usize = 1_024;

/// Slots by the tick at which they are due.
#[derive(Debug)]
pub(super) struct Wheel {
    buckets: Vec<Vec<u32>>,
    /// All ticks up to and including this one were taken.
    turned: u32,
}

impl Wheel {
    pub(super) fn new(tick: u32) -> Wheel {
        Wheel { buckets: vec![Vec::new(); BUCKETS as usize], turned: tick }
    }

    /// Puts the slot in for `due`, or as near as the wheel reaches; the tick at which it will come up.
    pub(super) fn insert(&mut self, slot: u32, due: u32) -> u32 {
        let tick = due.clamp(self.turned + 1, self.turned + BUCKETS - 1);
        self.buckets[(tick % BUCKETS) as usize].push(slot);
        tick
    }

    /// Turns by one tick, if that is not beyond `until`: the tick, and the slots that come up. Give the vector back
    /// with [`Wheel::give_back`].
    pub(super) fn turn(&mut self, until: u32) -> Option<(u32, Vec<u32>)> {
        if self.turned >= until {
            return None;
        }
        self.turned += 1;
        Some((self.turned, std::mem::take(&mut self.buckets[(self.turned % BUCKETS) as usize])))
    }

    /// Returns a bucket's memory, unless many connections at one tick made it large: each bucket would come to that.
    pub(super) fn give_back(&mut self, tick: u32, mut slots: Vec<u32>) {
        let bucket = &mut self.buckets[(tick % BUCKETS) as usize];
        if bucket.capacity() < slots.capacity() && slots.capacity() <= SPARE_SLOTS_MAX {
            slots.clear();
            slots.append(bucket);
            *bucket = slots;
        }
    }
}

/// The ticks that cover `ms` in full: a limit never strikes early.
pub(super) fn ticks(ms: u32) -> u32 {
    ms.div_ceil(TICK_MS as u32) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wheel: &mut Wheel, until: u32) -> Vec<(u32, Vec<u32>)> {
        let mut seen = Vec::new();
        while let Some((tick, slots)) = wheel.turn(until) {
            if !slots.is_empty() {
                seen.push((tick, slots.clone()));
            }
            wheel.give_back(tick, slots);
        }
        seen
    }

    #[test]
    fn slots_come_up_at_their_tick_and_far_ones_at_the_far_end() {
        let mut wheel = Wheel::new(10);
        assert_eq!(wheel.insert(1, 12), 12);
        assert_eq!(wheel.insert(2, 5), 11, "what is overdue comes up next");
        assert_eq!(wheel.insert(3, 12), 12);
        assert_eq!(wheel.insert(4, 100_000), 10 + BUCKETS - 1);
        assert_eq!(run(&mut wheel, 12), [(11, vec![2]), (12, vec![1, 3])]);
        assert_eq!(run(&mut wheel, 2_000), [(521, vec![4])]);
    }
}
