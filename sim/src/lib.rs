//! One seed drives a whole node, or a cluster of up to three over a fake Redis: many clients, several engines and the
//! bridge of each node, a bus, a store and a network, with faults between any two steps, and an oracle that checks the
//! promises of DESIGN.md at every delivery.
//!
//! What runs here is the production code of `engine` and `wire`; only sockets, threads, clocks and disks are replaced.
//! Who calls it: the tests (500 seeds of a node, 1,000 of clusters, and planted bugs that must be found) and `roomwire-sim` for a seed or a range.

pub mod client;
pub mod network;
pub mod node;
pub mod oracle;
mod plant;
pub mod random;
pub mod redis;
mod spoil;
pub mod store;
pub mod world;

pub use plant::Plant;

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One node with the local bus.
    Node,
    /// One to three nodes over Redis.
    Cluster,
}

/// What one run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// A hash over every step and every byte that a client received: the same seed gives the same hash.
    pub trace: u64,
    /// Messages acked, messages delivered live, resumes, crashes, refusals.
    pub counts: Counts,
    /// The first promise that was broken, if any.
    pub broken: Option<String>,
}

/// What happened in a run, to show that it was not idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is a plain count of what its name says")]
pub struct Counts {
    pub steps: u64,
    pub acked: u64,
    pub delivered: u64,
    pub replayed: u64,
    pub resumes: u64,
    pub crashes: u64,
    pub cuts: u64,
    pub refused: u64,
    pub slow_closes: u64,
    pub voids: u64,
    pub pauses: u64,
    pub bus_cuts: u64,
    pub bus_losses: u64,
    pub generations: u64,
    pub ambushes: u64,
    pub splits: u64,
    pub stories: u64,
}

/// Runs one seed.
#[must_use]
pub fn run(shape: Shape, seed: u64, plant: Option<Plant>) -> Outcome {
    world::World::new(shape, seed, plant).run()
}

/// The command that runs this seed again.
#[must_use]
pub fn replay_command(shape: Shape, seed: u64, plant: Option<Plant>) -> String {
    let shape = if shape == Shape::Cluster { " --cluster" } else { "" };
    let name =
        plant.and_then(|wanted| Plant::ALL.into_iter().find(|(_, plant)| *plant == wanted)).map(|(name, _)| name);
    let plant = name.map_or(String::new(), |name| format!(" --plant {name}"));
    format!("cargo run -p roomwire-sim --{shape} --seed {seed}{plant}")
}
