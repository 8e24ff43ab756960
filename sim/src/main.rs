//! `roomwire-sim [--cluster] [--seed N | --seeds FROM..TO] [--plant NAME]`: runs seeds, prints what they showed, exits 1 on the
//! first broken promise, with the command that plays it again. With `ROOMWIRE_SIM_SHOW` set, prints all that the clients
//! receive.

use roomwire_sim::{Outcome, Plant, Shape, replay_command, run};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A run allocates all the time: a seventh faster than with the system's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Arguments {
    shape: Shape,
    seeds: std::ops::Range<u64>,
    plant: Option<Plant>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(arguments) = parse(&words) else {
        let plants: Vec<&str> = Plant::ALL.into_iter().map(|(name, _)| name).collect();
        eprintln!("usage: roomwire-sim [--cluster] [--seed N | --seeds FROM..TO] [--plant {}]", plants.join("|"));
        return ExitCode::from(2);
    };
    if all_hold(&arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds on all cores until one breaks a promise. A single seed is told in full, many as a count.
fn all_hold(arguments: &Arguments) -> bool {
    let (next, is_broken) = (AtomicU64::new(arguments.seeds.start), AtomicBool::new(false));
    let is_single = arguments.seeds.end - arguments.seeds.start <= 100;
    let done = Mutex::new(0u64);
    let tell = |outcome: &Outcome| {
        let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *done += 1;
        if is_single {
            println!("seed {} trace {:016x} {:?}", outcome.seed, outcome.trace, outcome.counts);
        } else if done.is_multiple_of(1_000) {
            println!("{done} seeds");
        }
        if let Some(broken) = &outcome.broken {
            println!("BROKEN: {broken}\nagain: {}", replay_command(arguments.shape, outcome.seed, arguments.plant));
            is_broken.store(true, Ordering::Relaxed);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_broken.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.seeds.end {
                        return;
                    }
                    tell(&run(arguments.shape, seed, arguments.plant));
                }
            });
        }
    });
    println!("{} seeds ran", done.into_inner().unwrap_or_default());
    !is_broken.into_inner()
}

fn parse(words: &[String]) -> Option<Arguments> {
    let mut arguments = Arguments { shape: Shape::Node, seeds: 0..100, plant: None };
    let mut words = words.iter();
    while let Some(name) = words.next() {
        if name == "--cluster" {
            arguments.shape = Shape::Cluster;
            continue;
        }
        let value = words.next()?;
        match name.as_str() {
            "--seed" => {
                let seed = value.parse().ok()?;
                arguments.seeds = seed..seed + 1;
            }
            "--seeds" => {
                let (from, to) = value.split_once("..")?;
                arguments.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--plant" => arguments.plant = Some(Plant::ALL.into_iter().find(|(known, _)| known == value)?.1),
            _ => return None,
        }
    }
    Some(arguments)
}
