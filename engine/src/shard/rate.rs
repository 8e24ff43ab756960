//! How often a connection may do something, in a few bytes each.
//!
//! Both are the generic cell rate algorithm: one number says until when the budget is spent ahead.

use super::wheel::NEVER;

/// Ticks over which three times the rate must be held up before the connection is closed.
const FLOOD_TICKS: u32 = 100;

/// The messages of one connection.
#[derive(Debug, Default)]
pub(super) struct MessageRate {
    /// Microseconds of CLOCK_MONOTONIC until which messages are paid for.
    paid_until_us: u64,
    /// When the count of a possible flood began; 0 while the rate is kept.
    flood_since: u32,
    flood_messages: u32,
}

/// What is to be done about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    /// Refused; the sender may try again then. The first refusal is the end of a burst.
    Refuse {
        retry_after_ms: u32,
        first: bool,
    },
    /// Three times the rate for ten seconds.
    Flood,
}

impl MessageRate {
    /// Counts one message. `rate` is messages a second, `burst` at once; a rate of 0 means no limit.
    pub(super) fn message(&mut self, mono_us: u64, tick: u32, rate: u32, burst: u32) -> Verdict {
        if rate == 0 {
            return Verdict::Pass;
        }
        if self.flood_since != 0 && self.excess(tick, rate) {
            return Verdict::Flood;
        }
        let cost_us = 1_000_000 / u64::from(rate);
        let paid_until_us = self.paid_until_us.max(mono_us) + cost_us;
        let ahead_us = paid_until_us - mono_us;
        let allowed_us = cost_us * u64::from(burst.max(1));
        if ahead_us <= allowed_us {
            self.paid_until_us = paid_until_us;
            return Verdict::Pass;
        }
        let first = self.flood_since == 0;
        if first {
            (self.flood_since, self.flood_messages) = (tick, 1);
        }
        let retry_after_ms = u32::try_from((ahead_us - allowed_us).div_ceil(1_000)).unwrap_or(u32::MAX);
        Verdict::Refuse { retry_after_ms, first }
    }

    /// Counts one message or ping towards a flood, which is three times the rate over ten seconds; whether it is one.
    pub(super) fn excess(&mut self, tick: u32, rate: u32) -> bool {
        if tick.wrapping_sub(self.flood_since) >= FLOOD_TICKS {
            (self.flood_since, self.flood_messages) = (tick, 0);
        }
        self.flood_messages = self.flood_messages.saturating_add(1);
        rate > 0 && self.flood_messages > rate.saturating_mul(3 * FLOOD_TICKS / 10)
    }
}

/// Pongs that a connection is given: ten a second, ten at once.
#[derive(Debug, Default)]
pub(super) struct PongRate {
    paid_until: u32,
}

/// Pongs at once, and ticks of a second.
const PONGS_MAX: u32 = 10;

impl PongRate {
    /// Whether one more pong is due now.
    pub(super) fn pong(&mut self, tick: u32) -> bool {
        debug_assert_ne!(tick, NEVER);
        let paid_until = self.paid_until.max(tick) + 1;
        if paid_until - tick > PONGS_MAX {
            return false;
        }
        self.paid_until = paid_until;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_message_for_each_span_of_the_rate() {
        let mut rate = MessageRate::default();
        let mut at = |us: u64| rate.message(1_000_000 + us, 1_010, 50, 3);
        assert_eq!([at(0), at(0), at(0)], [Verdict::Pass; 3]);
        assert_eq!(at(0), Verdict::Refuse { retry_after_ms: 20, first: true });
        assert_eq!(at(5_000), Verdict::Refuse { retry_after_ms: 15, first: false });
        assert_eq!([at(20_000), at(40_000)], [Verdict::Pass; 2]);
        assert!(matches!(at(40_001), Verdict::Refuse { .. }));
    }

    /// Sends `a_second` messages a second for a minute; the second in which the flood is called.
    fn flood_second(a_second: u32) -> Option<u32> {
        let mut rate = MessageRate::default();
        (0..60 * a_second).find_map(|n| {
            let us = u64::from(n) * 1_000_000 / u64::from(a_second);
            let verdict = rate.message(us, 1_000 + (us / 100_000) as u32, 50, 100);
            (verdict == Verdict::Flood).then_some(n / a_second)
        })
    }

    #[test]
    fn three_times_the_rate_for_ten_seconds_is_a_flood_and_a_little_over_the_rate_is_not() {
        assert_eq!(flood_second(100), None);
        assert_eq!(flood_second(140), None);
        assert!(flood_second(200).is_some_and(|second| (6..=11).contains(&second)));
        assert!(flood_second(5_000) == Some(0));
    }

    #[test]
    fn ten_pongs_a_second() {
        let mut pongs = PongRate::default();
        assert_eq!((0..50).filter(|_| pongs.pong(1_000)).count(), 10);
        assert_eq!((0..50).filter(|_| pongs.pong(1_003)).count(), 3);
        assert_eq!((0..50).filter(|_| pongs.pong(1_100)).count(), 10);
    }
}
