//! What a worker is told to do. The coordinator writes it to the worker's stdin, never to its command line: it holds
//! the secret. `layout` works out what it means.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::dialect::Dialect;
use crate::topology::Rooms;

/// What connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Join rooms and publish to them.
    Chat,
    /// Send to a server that echoes; a room is one connection.
    Echo,
    /// Be there.
    Still,
}

/// When a publisher sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pace {
    /// By the schedule, whatever the server does: latencies are those that users would see.
    #[default]
    Open,
    /// As soon as the one before is through: the most that so many publishers get out of the server. Its latencies say
    /// nothing.
    Closed,
}

/// What connections that publish nowhere do in a churn or a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Move {
    /// Leave its rooms.
    Leave,
    /// Join them again, from where it was.
    Join,
    /// Lose the connection without a word, connect, and join from where it was.
    Reconnect,
    /// Join them as somebody new, who knows no position and is told the newest messages.
    Read,
}

/// What happens beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extras {
    /// What each mover does in turn; empty: nothing moves.
    pub(crate) moves: Vec<Move>,
    /// How many moves there are, over all movers.
    pub(crate) move_count: u64,
    /// The first one, in nanoseconds after the start, and the time from one to the next.
    pub(crate) move_from_ns: u64,
    pub(crate) move_every_ns: u64,
    /// A second, over all connections.
    pub(crate) typing_per_second: f64,
    pub(crate) receipts_per_second: f64,
    /// How many other users each connection watches.
    pub(crate) watched: u32,
    /// How many messages a read has to bring.
    pub(crate) history: u32,
}

/// One run, as each worker gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The nodes of the server.
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    pub(crate) mode: Mode,
    pub(crate) pace: Pace,
    /// Whether each connection joins its rooms.
    pub(crate) join: bool,
    pub(crate) secret: String,
    /// In every room's name, so that no run meets the history of another.
    pub(crate) run_id: String,
    /// This worker, of `workers`: it holds the connections `worker`, `worker + workers`, ...
    pub(crate) worker: u32,
    pub(crate) workers: u32,
    pub(crate) sources: u8,
    /// Connection 0 is the user of this number.
    pub(crate) first_user: u32,
    pub(crate) connect_burst: u32,
    pub(crate) rooms: Rooms,
    /// Messages a second, all publishers together, and how many.
    pub(crate) rate: f64,
    pub(crate) messages: u64,
    pub(crate) extras: Extras,
    /// Bytes of one content.
    pub(crate) size: usize,
    /// The window that is measured, in nanoseconds after the start.
    pub(crate) measure_from_ns: u64,
    pub(crate) measure_to_ns: u64,
    /// How long to wait for what is under way after the end of the window.
    pub(crate) drain_ns: u64,
    /// To be added to the worker's clock, so that all of them have one time.
    pub(crate) clock_offset_ns: i64,
}

impl Plan {
    /// The source address that `connection` binds, so that the ports of one address do not run out.
    pub(crate) fn source_of(&self, connection: u32) -> Option<Ipv4Addr> {
        let at = connection.checked_rem(self.sources.into())?;
        // Below 250.
        Some(Ipv4Addr::new(127, 0, 0, 1 + at as u8))
    }
}
