//! Seeds that must hold, bugs that must be found, and runs that must repeat.

use roomwire_sim::{Counts, Plant, replay_command, run};

#[test]
fn five_hundred_seeds_keep_every_promise() {
    let mut sum = Counts::default();
    for seed in 0..500 {
        let outcome = run(seed, None);
        if let Some(broken) = outcome.broken {
            panic!("seed {seed}: {broken}\nagain: {}", replay_command(seed, None));
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
