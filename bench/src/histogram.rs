//! Latencies: recorded in nanoseconds by each worker, sent to the coordinator as counts, merged, read as percentiles.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 120_000_000_000;

/// Times from 1 us to 120 s, three digits exact; what lies beyond counts as the bound.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        // Bounds and digits are constants that hdrhistogram takes: low >= 1, high >= 2 * low, digits <= 5.
        Latencies(Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, 3).expect("constant bounds"))
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(LOWEST_NS));
    }

    /// The counts by value, for another process.
    pub(crate) fn counts(&self) -> LatencyCounts {
        LatencyCounts(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    /// Adds what another process recorded.
    pub(crate) fn merge(&mut self, counts: &LatencyCounts) {
        for (value, count) in &counts.0 {
            self.0.saturating_record_n(*value, *count);
        }
    }

    /// Points of the percentile curve: quantile and milliseconds, denser towards 1, as a log axis of 1 - quantile wants.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let steps = self.0.iter_quantiles(2);
        let mut curve: Vec<(f64, f64)> = Vec::new();
        for step in steps {
            // To the microsecond: three digits are kept, the rest is how numbers are stored.
            let ms = (step.value_iterated_to() as f64 / 1e3).round() / 1e3;
            // The last quantiles all stand at the highest value: one is enough.
            if curve.last().is_none_or(|(_, last)| *last < ms) {
                curve.push((step.quantile(), ms));
            }
        }
        curve
    }

    /// `None` if nothing was recorded.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e6;
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.0.len(),
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.0.max() as f64 / 1e6,
        })
    }
}

/// Pairs of value and count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LatencyCounts(Vec<(u64, u64)>);

/// What is printed of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_workers_gives_what_one_would_have_recorded() {
        let (mut one, mut even, mut odd) = (Latencies::new(), Latencies::new(), Latencies::new());
        for step in 1..=10_000_u64 {
            let ns = step * step * 37;
            one.record(ns);
            if step % 2 == 0 { even.record(ns) } else { odd.record(ns) }
        }
        let mut merged = Latencies::new();
        for worker in [&even, &odd] {
            let sent = serde_json::to_string(&worker.counts()).expect("plain numbers");
            merged.merge(&serde_json::from_str(&sent).expect("what was just written"));
        }
        assert_eq!(merged.percentiles(), one.percentiles());
    }

    #[test]
    fn percentiles_are_within_the_three_digits_kept() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentiles(), None);
        for ms in 1..=1000_u64 {
            latencies.record(ms * 1_000_000);
        }
        let percentiles = latencies.percentiles().expect("recorded");
        assert!((percentiles.p50_ms - 500.0).abs() < 1.0, "{percentiles:?}");
        assert!((percentiles.p99_ms - 990.0).abs() < 1.5, "{percentiles:?}");
        assert!((percentiles.max_ms - 1000.0).abs() < 1.5, "{percentiles:?}");
    }

    #[test]
    fn the_curve_rises_from_the_fastest_to_the_slowest() {
        let mut latencies = Latencies::new();
        for ms in 1..=10_000_u64 {
            latencies.record(ms * 1_000_000);
        }
        let curve = latencies.curve();
        assert!((10..200).contains(&curve.len()), "{} points", curve.len());
        assert!(curve.is_sorted_by(|one, next| one.0 <= next.0 && one.1 < next.1), "{curve:?}");
        assert!(curve.last().is_some_and(|(quantile, ms)| *quantile > 0.9995 && (ms - 10_000.0).abs() < 20.0));
    }

    #[test]
    fn what_lies_beyond_the_bounds_is_kept_as_the_bound() {
        let mut latencies = Latencies::new();
        latencies.record(0);
        latencies.record(u64::MAX);
        let percentiles = latencies.percentiles().expect("recorded");
        assert_eq!(percentiles.count, 2);
        assert!(percentiles.max_ms >= 119_000.0, "{percentiles:?}");
    }
}
