//! When a key set is fetched: by the time that the issuer allows, sooner for a key that nobody knows, later while it fails.
//!
//! Called by [`super::jwks`] with the time as an argument. However many tokens name unknown keys, they cause one fetch a
//! [`COOL_DOWN`]: else anybody could have this node flood the issuer.

use std::time::{Duration, Instant};

/// The least time from one fetch for an unknown key to the next.
pub(super) const COOL_DOWN: Duration = Duration::from_secs(60);
/// How long a set is good, whatever its issuer says, and where it says nothing.
const FRESH_MIN: Duration = Duration::from_secs(60);
const FRESH_MAX: Duration = Duration::from_secs(900);
const FRESH_USUAL: Duration = Duration::from_secs(300);
/// From a failed fetch to the next: doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);
const RETRY_DOUBLINGS_MAX: u32 = 5;

/// When to fetch next.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    due: Instant,
    /// Unknown keys count from here on.
    warm: Instant,
    failures: u32,
}

impl Pace {
    /// A fetch is due at once.
    pub(super) fn new(now: Instant) -> Pace {
        Pace { due: now, warm: now, failures: 0 }
    }

    /// When the next fetch is due; `asked`: a token named a key that nobody knows.
    pub(super) fn due(&self, asked: bool) -> Instant {
        if asked { self.due.min(self.warm) } else { self.due }
    }

    /// A fetch begins.
    pub(super) fn begin(&mut self, now: Instant, asked: bool) {
        if asked {
            self.warm = now + COOL_DOWN;
        }
    }

    /// It brought a set, or word that nothing has changed, and for how long that holds.
    pub(super) fn fetched(&mut self, now: Instant, fresh_for: Option<Duration>) {
        self.failures = 0;
        self.due = now + fresh_for.unwrap_or(FRESH_USUAL).clamp(FRESH_MIN, FRESH_MAX);
    }

    /// It brought nothing.
    pub(super) fn failed(&mut self, now: Instant) {
        self.due = now + (RETRY_MIN * 2u32.pow(self.failures)).min(RETRY_MAX);
        self.failures = (self.failures + 1).min(RETRY_DOUBLINGS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_set_is_fetched_again_when_its_issuer_says_within_bounds() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.due(false), now);
        let mut next = |fresh_for: Option<u64>| {
            pace.begin(now, false);
            pace.fetched(now, fresh_for.map(Duration::from_secs));
            pace.due(false) - now
        };
        assert_eq!([next(None), next(Some(120))], [FRESH_USUAL, 120 * SECOND]);
        assert_eq!([next(Some(0)), next(Some(u64::MAX))], [FRESH_MIN, FRESH_MAX]);
    }

    #[test]
    fn unknown_keys_cause_one_fetch_a_cool_down() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.fetched(start, Some(FRESH_MAX));
        // A thousand a second for ten minutes: asked is always set.
        let mut fetches = Vec::new();
        let mut now = start;
        while now < start + 600 * SECOND {
            if pace.due(true) <= now {
                pace.begin(now, true);
                pace.fetched(now, Some(FRESH_MAX));
                fetches.push(now);
            }
            now += Duration::from_millis(1);
        }
        assert_eq!(fetches.len(), 10, "the first at once, then one a minute");
        assert!(fetches.windows(2).all(|pair| pair[1] - pair[0] >= COOL_DOWN));
    }

    #[test]
    fn a_fetch_that_fails_is_tried_again_ever_later_and_then_as_before() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pace.failed(now);
            pauses.push((pace.due(false) - now).as_secs());
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        pace.fetched(now, None);
        pace.failed(now);
        assert_eq!(pace.due(false) - now, RETRY_MIN);
        // Unknown keys do not make it come sooner than the cool-down allows.
        pace.begin(now, true);
        pace.failed(now + 30 * SECOND);
        pace.failed(now + 30 * SECOND);
        assert_eq!(pace.due(true), pace.due(false));
    }
}
