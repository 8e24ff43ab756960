//! Seeded chance: a small generator, and sizes and picks by Zipf's law. The same seed gives the same numbers in every
//! worker. `topology` and `schedule` call it.

/// SplitMix64 of one number: a hash good enough to draw from, and the same on every machine.
pub(crate) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number from 0 up to but not including 1, drawn by `seed` and `at`.
pub(crate) fn fraction(seed: u64, at: u64) -> f64 {
    // 53 bits are what an f64 holds exactly.
    (mix(mix(seed) ^ at) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Ranks 0, 1, 2, ... with weights 1, 1/2^s, 1/3^s, ...
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    /// Sum of the weights up to and with each rank, of all of them; the last is 1.
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(ranks: u32, exponent: f64) -> Zipf {
        let weights = (1..=ranks).map(|rank| f64::from(rank).powf(-exponent));
        let mut sum = 0.0;
        let sums: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Zipf { cumulative: sums.iter().map(|up_to| up_to / sum).collect() }
    }

    /// The share of `rank`.
    pub(crate) fn share(&self, rank: usize) -> f64 {
        let below = rank.checked_sub(1).map_or(0.0, |before| self.cumulative[before]);
        self.cumulative[rank] - below
    }

    /// The rank at `fraction`, which is from 0 to below 1.
    pub(crate) fn rank(&self, fraction: f64) -> usize {
        self.cumulative.partition_point(|up_to| *up_to <= fraction).min(self.cumulative.len().saturating_sub(1))
    }

    /// `total` in parts by the ranks' shares, each part at least `least` and at most `most`: the parts' sum comes as
    /// near to `total` as these bounds allow.
    pub(crate) fn parts(&self, total: u64, least: u64, most: u64) -> Vec<u64> {
        let part = |rank| ((self.share(rank) * total as f64) as u64).clamp(least, most);
        let mut parts: Vec<u64> = (0..self.cumulative.len()).map(part).collect();
        // Rounding down leaves a rest and `least` takes too much: level it over the ranks, the first ones first.
        loop {
            let sum: u64 = parts.iter().sum();
            let changed = if sum < total {
                let rest = (total - sum) as usize;
                let grown = parts.iter_mut().filter(|part| **part < most).take(rest);
                grown.map(|part| *part += 1).count()
            } else {
                let excess = (sum - total) as usize;
                let shrunk = parts.iter_mut().filter(|part| **part > least).take(excess);
                shrunk.map(|part| *part -= 1).count()
            };
            if changed == 0 {
                return parts;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_another_seed_draws_differently() {
        let draw = |seed| (0..100).map(|at| mix(mix(seed) ^ at)).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The published test vector of SplitMix64 with seed 1234567.
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn fractions_fill_the_range_evenly() {
        let mut tenths = [0_u32; 10];
        for at in 0..100_000 {
            tenths[(fraction(3, at) * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (9_500..10_500).contains(count)), "{tenths:?}");
    }

    #[test]
    fn ranks_are_drawn_by_their_shares() {
        let zipf = Zipf::new(100, 1.0);
        let mut drawn = [0_u32; 100];
        for at in 0..200_000 {
            drawn[zipf.rank(fraction(1, at))] += 1;
        }
        for rank in [0, 1, 9, 99] {
            let expected = zipf.share(rank) * 200_000.0;
            let off = (f64::from(drawn[rank]) - expected).abs() / expected;
            assert!(off < 0.1, "rank {rank}: {} drawn, {expected} expected", drawn[rank]);
        }
        // Twice as much for the first as for the second, by the law with exponent 1.
        assert!((zipf.share(0) / zipf.share(1) - 2.0).abs() < 1e-9);
        assert_eq!((zipf.rank(0.0), zipf.rank(0.999_999_999)), (0, 99));
    }

    #[test]
    fn parts_keep_the_sum_and_the_bounds() {
        for (ranks, total, least, most) in [(50, 5_000, 2, 1_000), (10, 100, 2, 100), (1, 7, 2, 10), (300, 900, 2, 300)]
        {
            let parts = Zipf::new(ranks, 1.0).parts(total, least, most);
            assert_eq!(parts.iter().sum::<u64>(), total, "{parts:?}");
            assert!(parts.iter().all(|part| (least..=most).contains(part)), "{parts:?}");
            assert!(parts.is_sorted_by(|one, next| one + 1 >= *next), "the first is the largest, but for rounding");
        }
        // What cannot be is not tried for ever.
        assert_eq!(Zipf::new(3, 1.0).parts(100, 2, 5), [5, 5, 5]);
        assert_eq!(Zipf::new(3, 1.0).parts(1, 2, 5), [2, 2, 2]);
    }
}
