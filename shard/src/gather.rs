//! How long a shard leaves input to gather before it looks at its sockets again.
//!
//! Inputs that come close together share a wake-up: a few of them, and no longer than they need to come. Where they
//! come far apart there is nothing to share, and nobody waits.

/// So many inputs share a wake-up: with more of them it costs each little less, and the first waits longer.
const INPUTS_PER_LOOK: u64 = 4;
/// The distance of inputs is that of the last window of at least so long.
const WINDOW_US: u64 = 10_000;

/// When the sockets are looked at next. Times are of CLOCK_MONOTONIC, in microseconds.
#[derive(Debug)]
pub(crate) struct Gathering {
    /// Never longer than that.
    most_us: u64,
    window_began_us: u64,
    window_inputs: u64,
    /// How far apart inputs came in the last window.
    distance_us: u64,
    /// Sockets do not wake the shard before then; the doorbell does.
    due_us: u64,
}

impl Gathering {
    /// Gathers for `most_us` at most; 0: not at all.
    pub(crate) fn new(most_us: u64) -> Gathering {
        Gathering { most_us, window_began_us: 0, window_inputs: 0, distance_us: u64::MAX, due_us: 0 }
    }

    /// An input was taken: what follows is left to gather, if enough of it follows soon.
    pub(crate) fn input(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.window_began_us);
        if elapsed_us >= WINDOW_US {
            self.distance_us = elapsed_us / self.window_inputs.max(1);
            (self.window_began_us, self.window_inputs) = (now_us, 0);
        }
        self.window_inputs += 1;
        let wait_us = self.distance_us.saturating_mul(INPUTS_PER_LOOK);
        if wait_us <= self.most_us && !self.is_on(now_us) {
            self.due_us = now_us.saturating_add(wait_us);
        }
    }

    /// Whether what comes in on sockets is left for later.
    pub(crate) fn is_on(&self, now_us: u64) -> bool {
        now_us < self.due_us
    }

    /// When it ends.
    pub(crate) fn due_us(&self) -> u64 {
        self.due_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times at which a shard looks, which does so whenever there is input and it does not gather.
    fn looks(most_us: u64, inputs_us: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut gathering = Gathering::new(most_us);
        let mut looks = Vec::new();
        let mut waiting = 0;
        for at_us in inputs_us {
            if waiting > 0 && !gathering.is_on(at_us) {
                looks.push(gathering.due_us());
                (0..waiting).for_each(|_| gathering.input(*looks.last().expect("just pushed")));
                waiting = 0;
            }
            if gathering.is_on(at_us) {
                waiting += 1;
            } else {
                looks.push(at_us);
                gathering.input(at_us);
            }
        }
        looks
    }

    #[test]
    fn inputs_that_come_far_apart_never_wait() {
        let inputs = || (0..100).map(|number| 1_000_000 + number * 1_000);
        assert_eq!(looks(1_000, inputs()), inputs().collect::<Vec<_>>());
    }

    #[test]
    fn of_inputs_that_come_close_together_four_share_a_look() {
        // One in 100 us, for a second.
        let looks = looks(1_000, (0..10_000).map(|number| 1_000_000 + number * 100));
        assert!((2_000..3_000).contains(&looks.len()), "{} looks at 10,000 inputs", looks.len());
    }

    #[test]
    fn nobody_waits_after_a_pause_or_if_gathering_is_off() {
        let mut gathering = Gathering::new(1_000);
        (0..1_000).for_each(|number| gathering.input(1_000_000 + number * 100));
        assert!(gathering.is_on(1_099_900));
        assert!(!gathering.is_on(1_101_000), "it ends by itself");
        gathering.input(5_000_000);
        assert!(!gathering.is_on(5_000_000), "the pause is the longest distance");

        let mut never = Gathering::new(0);
        (0..1_000).for_each(|number| never.input(1_000_000 + number));
        assert!(!never.is_on(1_000_999));
    }
}
