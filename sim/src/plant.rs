//! The bugs that are put in on purpose, to show that the oracle would see them. Most leave out one rule of ORDERING.md.
//!
//! Where each is put in: `redis.rs` (a script leaves something out), `store.rs`, `node.rs` (a lane), and `spoil.rs` for
//! rules that the bridge itself keeps: what it asks and hears is changed on its way.

/// A planted bug.
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
    /// SEQ gives a retry the seq at which another attempt is under way.
    TakeOverSeq,
    /// RETIRE does nothing.
    NeverRetire,
    /// The dedupe window's halves are both dropped when they change places.
    DropBothHalves,
    // That the store leaves out.
    /// A void does not depend on the generation.
    VoidAnyGeneration,
    /// A re-init leaves holes undecided.
    LeaveHoles,
    /// A reader sees the row in spite of the void marker.
    RowsBeatVoids,
    /// A reader sees the row of the lowest generation.
    LowestGeneration,
    /// A re-init takes rows beyond the beginning of a later generation for valid.
    ForgetBases,
    // And that the bridge leaves out.
    /// A re-init reads the generation after BEGIN.
    ReadGenerationLate,
    /// Each BEGIN of a process has the same token.
    SameToken,
    /// A writer whose PUB was refused does not look who stands at its seq.
    NeverResolve,
    /// A receiver takes events of an old generation for the new one's.
    KeepOldEvents,
    /// A receiver whose room the bus has lost does not ask the store for more.
    NeverLookBehind,
    /// Strict mode does not ask the store between append and PUB.
    NoFence,
}

impl Plant {
    /// All, by the name that the command line takes. The first four show on a node of its own, too.
    pub const ALL: [(&'static str, Plant); 25] = [
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
        ("take-over-seq", Plant::TakeOverSeq),
        ("never-retire", Plant::NeverRetire),
        ("drop-both-halves", Plant::DropBothHalves),
        ("void-any-generation", Plant::VoidAnyGeneration),
        ("leave-holes", Plant::LeaveHoles),
        ("rows-beat-voids", Plant::RowsBeatVoids),
        ("lowest-generation", Plant::LowestGeneration),
        ("forget-bases", Plant::ForgetBases),
        ("never-resolve", Plant::NeverResolve),
        ("never-look-behind", Plant::NeverLookBehind),
        ("no-fence", Plant::NoFence),
        ("read-generation-late", Plant::ReadGenerationLate),
        ("same-token", Plant::SameToken),
        ("keep-old-events", Plant::KeepOldEvents),
    ];
}
