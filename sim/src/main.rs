//! `roomwire-sim [--seed N | --seeds FROM..TO] [--plant NAME]`: runs seeds, prints what they showed, exits 1 on the
//! first broken promise, with the command that plays it again. With `ROOMWIRE_SIM_SHOW` set, prints all that the clients
//! receive.

use roomwire_sim::{Plant, replay_command, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((seeds, plant)) = parse(&arguments) else {
        let plants: Vec<&str> = Plant::ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: roomwire-sim [--seed N | --seeds FROM..TO] [--plant {}]", plants.join("|"));
        return ExitCode::from(2);
    };
    for seed in seeds {
        let outcome = run(seed, plant);
        println!("seed {seed} trace {:016x} {:?}", outcome.trace, outcome.counts);
        if let Some(broken) = outcome.broken {
            println!("BROKEN: {broken}\nagain: {}", replay_command(seed, plant));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn parse(arguments: &[String]) -> Option<(std::ops::Range<u64>, Option<Plant>)> {
    let mut seeds = 0..100;
    let mut plant = None;
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return None };
        match name.as_str() {
            "--seed" => {
                let seed = value.parse().ok()?;
                seeds = seed..seed + 1;
            }
            "--seeds" => {
                let (from, to) = value.split_once("..")?;
                seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--plant" => plant = Some(Plant::ALL.iter().find(|(known, _)| known == value)?.1),
            _ => return None,
        }
    }
    Some((seeds, plant))
}
