//! One seed drives a whole node: many clients, several engines, the bridge, the local bus, a store and a network, with
//! faults between any two steps, and an oracle that checks the promises of DESIGN.md at every delivery.
//!
//! What runs here is the production code of `engine` and `wire`; only sockets, threads, clocks and disks are replaced.
//! Who calls it: the tests (500 seeds, and planted bugs that must be found) and `roomwire-sim` for a seed or a range.

pub mod client;
pub mod network;
pub mod node;
pub mod oracle;
pub mod random;
pub mod store;
pub mod world;

/// A bug that is put in on purpose, to show that the oracle would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The store says that rows are durable before they are.
    AckBeforeDurable,
    /// A lane between the bridge and a shard loses a delivery now and then.
    LoseDelivery,
    /// A rebuilt room forgets which client ids it has seen.
    ForgetClientIds,
    /// Two deliveries on one lane change places now and then.
    SwapDeliveries,
}

impl Plant {
    /// Every planted bug, by the name that the command line takes.
    pub const ALL: [(&'static str, Plant); 4] = [
        ("ack-before-durable", Plant::AckBeforeDurable),
        ("lose-delivery", Plant::LoseDelivery),
        ("forget-client-ids", Plant::ForgetClientIds),
        ("swap-deliveries", Plant::SwapDeliveries),
    ];
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
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, plant: Option<Plant>) -> Outcome {
    world::World::new(seed, plant).run()
}

/// The command that runs this seed again.
#[must_use]
pub fn replay_command(seed: u64, plant: Option<Plant>) -> String {
    let name = plant.and_then(|wanted| Plant::ALL.iter().find(|(_, plant)| *plant == wanted)).map(|(name, _)| *name);
    match name {
        Some(name) => format!("cargo run -p roomwire-sim -- --seed {seed} --plant {name}"),
        None => format!("cargo run -p roomwire-sim -- --seed {seed}"),
    }
}
