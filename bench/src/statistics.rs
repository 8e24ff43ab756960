//! Medians, straight lines, and whether two handfuls of runs differ by more than their noise. `table`, `diff` and
//! `charts` call it.

/// The middle value, or the middle of the two; `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().saturating_sub(1) / 2)?;
    Some(lower.midpoint(upper))
}

/// Each name once, in the order in which they first appear.
pub(crate) fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// Slope and height at zero of the straight line with the least squares; `None` where the points give none.
pub(crate) fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.len() < 2 || spread <= 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    Some((slope, mean_y - slope * mean_x))
}

/// What can be said of two handfuls of the same figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Difference {
    /// The medians are nearer than what counts as noise.
    Same,
    /// Every value of the second is below every one of the first; by chance with this probability.
    Lower(f64),
    /// Every value of the second is above every one of the first; by chance with this probability.
    Higher(f64),
    /// The medians differ, but the values overlap.
    Overlap,
    /// The medians differ, but with so few runs anything does.
    TooFew,
}

/// Fewer runs than this on either side prove nothing.
pub(crate) const RUNS_MIN: usize = 3;

/// Compares `second` with `first`; medians within `noise_percent` of each other count as the same.
pub(crate) fn compare(first: &[f64], second: &[f64], noise_percent: f64) -> Option<Difference> {
    let (from, to) = (median(first)?, median(second)?);
    if (to - from).abs() * 100.0 <= noise_percent * from.abs() {
        return Some(Difference::Same);
    }
    if first.len() < RUNS_MIN || second.len() < RUNS_MIN {
        return Some(Difference::TooFew);
    }
    let lowest = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let by_chance = chance_of_apart(first.len(), second.len());
    Some(if highest(second) < lowest(first) {
        Difference::Lower(by_chance)
    } else if lowest(second) > highest(first) {
        Difference::Higher(by_chance)
    } else {
        Difference::Overlap
    })
}

/// How likely two hands of so many runs of the same thing lie apart: of all ways to deal the values, two are sorted, one
/// each way. Too few never count as apart.
pub(crate) fn chance_of_apart(first: usize, second: usize) -> f64 {
    if first < RUNS_MIN || second < RUNS_MIN { 0.0 } else { 2.0 / choose(first + second, first) }
}

/// How many ways there are to choose `few` of `all`.
fn choose(all: usize, few: usize) -> f64 {
    (0..few).map(|at| (all - at) as f64 / (at + 1) as f64).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_three_ignores_the_outlier_and_of_two_is_their_middle() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_line_is_found_through_exact_and_through_scattered_points() {
        let (slope, base) = line(&[(0.0, 100.0), (10.0, 120.0), (20.0, 140.0)]).expect("a line");
        assert!((slope - 2.0).abs() < 1e-9 && (base - 100.0).abs() < 1e-9);
        let (slope, _) = line(&[(0.0, 101.0), (10.0, 119.0), (20.0, 141.0)]).expect("a line");
        assert!((slope - 2.0).abs() < 0.1);
        assert_eq!((line(&[(1.0, 1.0)]), line(&[(1.0, 1.0), (1.0, 2.0)])), (None, None));
    }

    #[test]
    fn a_difference_needs_enough_runs_that_do_not_overlap() {
        let base = [10.0, 10.2, 9.9];
        assert_eq!(compare(&base, &[10.1, 10.3, 10.2], 3.0), Some(Difference::Same));
        assert_eq!(compare(&base, &[12.0, 12.5, 11.9], 3.0), Some(Difference::Higher(0.1)));
        assert_eq!(compare(&base, &[8.0, 8.5, 8.1], 3.0), Some(Difference::Lower(0.1)));
        assert_eq!(compare(&base, &[12.0, 12.5, 10.1], 3.0), Some(Difference::Overlap));
        assert_eq!(compare(&[10.0], &[20.0], 3.0), Some(Difference::TooFew));
        assert_eq!(compare(&[], &[20.0], 3.0), None);
    }

    #[test]
    fn noise_of_equal_runs_is_almost_never_called_a_difference() {
        // Hands of five from one seeded source that scatters by 20 %: apart by chance once in 126 times.
        let value = |at| 10.0 + 2.0 * crate::zipf::fraction(5, at);
        let mut called = 0;
        for trial in 0..1_000 {
            let hand = |from: u64| (0..5).map(|at| value(trial * 10 + from + at)).collect::<Vec<f64>>();
            let difference = compare(&hand(0), &hand(5), 0.0);
            called += usize::from(matches!(difference, Some(Difference::Lower(_) | Difference::Higher(_))));
        }
        assert!(called <= 20, "{called} of 1000, about 8 expected");
    }

    #[test]
    fn names_keep_their_first_order() {
        assert_eq!(in_order(["b", "a", "b", "c"].into_iter()), ["b", "a", "c"]);
    }

    #[test]
    fn ways_to_choose() {
        assert_eq!((choose(6, 3), choose(10, 5), choose(4, 0)), (20.0, 252.0, 1.0));
    }
}
