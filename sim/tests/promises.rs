//! Seeds that must hold, bugs that must be found, and runs that must repeat.

use roomwire_sim::{Counts, Outcome, Plant, replay_command, run};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[test]
fn five_hundred_seeds_keep_every_promise() {
    // Each seed is a world of its own; threads only share the list.
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|seed| *seed < 500));
                    mine.map(|seed| run(seed, None)).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a run does not panic")).collect()
    });
    assert_eq!(outcomes.len(), 500);
    let mut sum = Counts::default();
    for outcome in outcomes {
        if let Some(broken) = outcome.broken {
            panic!("seed {}: {broken}\nagain: {}", outcome.seed, replay_command(outcome.seed, None));
        }
        sum.acked += outcome.counts.acked;
        sum.delivered += outcome.counts.delivered;
        sum.resumes += outcome.counts.resumes;
        sum.crashes += outcome.counts.crashes;
        sum.slow_closes += outcome.counts.slow_closes;
        sum.refused += outcome.counts.refused;
        sum.voids += outcome.counts.voids;
    }
    println!("{sum:?}");
    // The runs were not idle: each fault had its effect somewhere.
    for (what, count) in [
        ("acked", sum.acked),
        ("delivered", sum.delivered),
        ("resumes", sum.resumes),
        ("crashes", sum.crashes),
        ("slow closes", sum.slow_closes),
        ("refused", sum.refused),
    ] {
        assert!(count > 100, "only {count} {what} in 500 seeds");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..5 {
        let (one, two) = (run(seed, None), run(seed, None));
        assert_eq!((one.trace, one.counts), (two.trace, two.counts));
    }
    assert_ne!(run(1, None).trace, run(2, None).trace);
}

#[test]
fn planted_bugs_are_found() {
    for (name, plant) in Plant::ALL {
        let found = (0..60).map(|seed| run(seed, Some(plant))).find_map(|outcome| outcome.broken);
        let broken = found.unwrap_or_else(|| panic!("60 seeds did not find {name}"));
        println!("{name}: {broken}");
        assert!(broken.starts_with("promise"), "{name} was found as {broken}");
    }
}
