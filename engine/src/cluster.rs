//! The contract between the bridge and a bus that several nodes share, for who is where: leases, presence, rosters.
//!
//! Carried by the same bus as [`crate::bus`], in an enum of its own: the local bus never sees it. The bridge's side is
//! `bridge/cluster.rs`; Redis' side is `server/src/bus/redis/presence.rs` and its scripts.
//!
//! Contract:
//! - **A life.** All that a node writes is marked with its node id and its [`Life`]. A node that lost its lease, or finds
//!   that the bus forgot, takes a new life and announces everything again under it; what stays behind under the old life
//!   is removed like that of a dead node. So nothing has to be remembered that was to be removed.
//! - **Once.** Whoever makes a user the first or the last on any node, in a room or online, is told so, and only that one;
//!   the bus tells all others in the same step. Each request may be repeated.
//! - **When it is away**, a request is answered with `None`: unknown outcome, repeat.
//! - Every request is answered exactly once, in the order of the requests of one kind.

pub mod memory;

use crate::names::{RoomId, User, UserId};
use std::fmt;
use std::sync::Arc;

/// One span of a node's being announced: its start, and how often it began anew since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    /// Differs at each start of a node.
    pub boot: u64,
    /// Rises when everything is announced again.
    pub number: u32,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.boot, self.number)
    }
}

/// What the bridge asks. At most one of each kind is under way, apart from `AskRoster`: one a room.
#[derive(Clone, Debug)]
pub enum ClusterRequest {
    /// The node lives. Reply: `Beaten`.
    Beat {
        /// Under this life.
        life: Life,
        /// The life is new: take the lease for it.
        take: bool,
        /// Not everything is announced yet: what stands under an earlier life of this start is not to be removed.
        walking: bool,
    },
    /// Users who came to this node or left it; none twice. Reply: `Users`.
    Users {
        /// Of this life.
        life: Life,
        /// Who.
        changes: Vec<UserChange>,
    },
    /// Users who came to rooms on this node or left them. Reply: `Rosters`.
    Rosters {
        /// Of this life.
        life: Life,
        /// Each room at most once.
        rooms: Vec<RoomChanges>,
    },
    /// Who of these is online, and where? Reply: `UsersAre`.
    AskUsers {
        /// Whom.
        users: Vec<UserId>,
    },
    /// Who is in the room? Reply: `Roster`.
    AskRoster {
        /// The room.
        room: RoomId,
    },
    /// Remove what a dead life left behind: users, then rosters. Reply: `Reaped`.
    Reap {
        /// Whose.
        dead: DeadLife,
    },
}

/// A user who came to this node, or left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserChange {
    /// Who.
    pub user: UserId,
    /// Came.
    pub online: bool,
    /// Announced again after the bus forgot: nobody is told.
    pub quiet: bool,
}

/// What changed in one room on this node. No change: its count is looked at again.
#[derive(Clone, Debug)]
pub struct RoomChanges {
    /// The room.
    pub room: RoomId,
    /// In order.
    pub changes: Vec<MemberChange>,
}

/// A user who came to a room on this node, or left it.
#[derive(Clone, Debug)]
pub struct MemberChange {
    /// Who.
    pub user: User,
    /// Came.
    pub joined: bool,
    /// The room's first member here came, or its last one left.
    pub edge: bool,
    /// Announced again: nobody is told.
    pub quiet: bool,
}

/// What the bus answers. `None`: unknown outcome.
#[derive(Clone, Debug)]
pub enum ClusterReply {
    /// To `Beat`.
    Beaten(Option<Beaten>),
    /// To `Users`: for each, how many nodes hold the user now.
    Users(Option<Vec<u32>>),
    /// To `Rosters`: for each room.
    Rosters(Option<Vec<RoomAnswer>>),
    /// To `AskUsers`: for each user.
    UsersAre(Option<Vec<UserState>>),
    /// To `AskRoster`.
    Roster {
        /// The room.
        room: RoomId,
        /// How many users are in it on all nodes, and up to 100 of them.
        answer: Option<(u64, Vec<User>)>,
    },
    /// To `Reap`: how many users and memberships were removed.
    Reaped(Option<(u64, u64)>),
}

impl ClusterRequest {
    /// The answer of a bus that is away: unknown outcome.
    #[must_use]
    pub fn unanswered(&self) -> ClusterReply {
        match self {
            ClusterRequest::Beat { .. } => ClusterReply::Beaten(None),
            ClusterRequest::Users { .. } => ClusterReply::Users(None),
            ClusterRequest::Rosters { .. } => ClusterReply::Rosters(None),
            ClusterRequest::AskUsers { .. } => ClusterReply::UsersAre(None),
            ClusterRequest::AskRoster { room } => ClusterReply::Roster { room: room.clone(), answer: None },
            ClusterRequest::Reap { .. } => ClusterReply::Reaped(None),
        }
    }
}

/// The answer to `Beat`.
#[derive(Clone, Debug)]
pub struct Beaten {
    /// Whether the lease is this life's.
    pub lease: Lease,
    /// Which memory answered: it differs after the bus lost what it held, or another server took over.
    pub memory: u64,
    /// The bus' clock less ours, in ms.
    pub clock_ahead_ms: i64,
    /// Nodes with a lease.
    pub nodes: u32,
    /// A dead life that is this node's to reap, for as long as it goes on beating.
    pub dead: Option<DeadLife>,
}

/// Whose a node's lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// This life's.
    Held,
    /// Nobody's: others took this node for dead, or the bus forgot.
    Lost,
    /// Another process has it, who calls itself the same; in words for the operator.
    Taken(Arc<str>),
}

/// What a dead node, or an earlier life of a living one, left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLife {
    /// The node's id.
    pub node: Arc<str>,
    /// As it was written.
    pub life: Arc<str>,
}

/// What became of the changes of one room.
#[derive(Clone, Debug, Default)]
pub struct RoomAnswer {
    /// For each change: whether the user was the first or last on any node, and is to be told of.
    pub told: Vec<bool>,
    /// The room is too large to tell who comes and goes: its count was told instead.
    pub counted: Option<u64>,
    /// Its count changed and was told within the last second: look again later.
    pub recount: bool,
}

/// Where a user is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserState {
    /// Online, for some software on that bus.
    pub online: bool,
    /// The nodes that hold the user.
    pub nodes: Vec<Arc<str>>,
}

/// What a subscriber hears of users. Hints: any of them may be lost.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// A user came online on the first node, or went offline on the last.
    Presence {
        /// Who.
        user: UserId,
        /// Online.
        online: bool,
    },
}
