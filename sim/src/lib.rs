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
pub mod random;
pub mod redis;
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
    // Rules of ORDERING.md that the fake Redis leaves out.
    /// Scripts do not compare the room's server with their own.
    TrustAnyServer,
    /// PUB does not compare generation and attempt.
    PublishAnyGeneration,
    /// PUB publishes a seq that is being voided.
    PublishVoiding,
    /// VOID1 lets receivers skip, before the store knows of the void.
    VoidBeforeStore,
    /// VOID1 forgets the client id, and not VOID2.
    ForgetVoidedEarly,
    /// HEAD takes what is pending for decided.
    StableIsSeq,
    /// FINISH does not compare the token.
    FinishAnyToken,
    // And that the store leaves out.
    /// A void does not depend on the generation.
    VoidAnyGeneration,
    /// A re-init leaves holes undecided.
    LeaveHoles,
    /// A reader sees the row in spite of the void marker.
    RowsBeatVoids,
    /// A reader sees the row of the lowest generation.
    LowestGeneration,
}

impl Plant {
    /// Every planted bug, by the name that the command line takes.
    pub const ALL: [(&'static str, Plant); 15] = [
        ("ack-before-durable", Plant::AckBeforeDurable),
        ("lose-delivery", Plant::LoseDelivery),
        ("forget-client-ids", Plant::ForgetClientIds),
        ("swap-deliveries", Plant::SwapDeliveries),
        ("trust-any-server", Plant::TrustAnyServer),
        ("publish-any-generation", Plant::PublishAnyGeneration),
        ("publish-voiding", Plant::PublishVoiding),
        ("void-before-store", Plant::VoidBeforeStore),
        ("forget-voided-early", Plant::ForgetVoidedEarly),
        ("stable-is-seq", Plant::StableIsSeq),
        ("finish-any-token", Plant::FinishAnyToken),
        ("void-any-generation", Plant::VoidAnyGeneration),
        ("leave-holes", Plant::LeaveHoles),
        ("rows-beat-voids", Plant::RowsBeatVoids),
        ("lowest-generation", Plant::LowestGeneration),
    ];
}

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
    let name = plant.and_then(|wanted| Plant::ALL.iter().find(|(_, plant)| *plant == wanted)).map(|(name, _)| *name);
    let plant = name.map_or(String::new(), |name| format!(" --plant {name}"));
    format!("cargo run -p roomwire-sim --{shape} --seed {seed}{plant}")
}
