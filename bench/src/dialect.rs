//! What the servers under load speak: which messages a dialect has, where it is served, what it promises. `payload` writes
//! and reads what is Roomwire's own and sends the rest to [`centrifugo`] and [`pusher`].

pub(crate) mod centrifugo;
pub(crate) mod pusher;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::plan::Mode;

/// Which server is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// Protocol v1 in full: `clientId` and `ack`, `seq` without gaps, `room_history` at the join
    Roomwire,
    /// The basic messages only: what bench/peers/uws and bench/peers/node-ws speak
    Plain,
    /// Centrifugo's JSON protocol: connect, subscribe, publish
    Centrifugo,
    /// The Pusher protocol with client events on private channels, which senders do not get themselves: Sockudo
    Pusher,
}

impl Dialect {
    /// Whether a client that comes back can ask for what it missed, and joins are answered with history.
    pub(crate) fn resumes(self) -> bool {
        self == Dialect::Roomwire
    }

    /// Whether each publish is answered with its own stamp.
    pub(crate) fn acks(self) -> bool {
        self == Dialect::Roomwire
    }

    /// Whether there are typing, receipts and presence.
    pub(crate) fn has_events(self) -> bool {
        matches!(self, Dialect::Roomwire | Dialect::Plain)
    }

    /// Whether the publisher gets its own message too.
    pub(crate) fn delivers_to_sender(self, mode: Mode) -> bool {
        self != Dialect::Pusher || mode == Mode::Echo
    }

    /// Where it is served, if the command line does not say.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Dialect::Roomwire | Dialect::Plain => "/",
            Dialect::Centrifugo => "/connection/websocket",
            Dialect::Pusher => pusher::PATH,
        }
    }

    /// What a server's own ping wants to hear.
    pub(crate) fn pong(self) -> &'static str {
        if self == Dialect::Pusher { pusher::PONG } else { centrifugo::PONG }
    }

    /// What follows the path: the token, where it goes into the request.
    pub(crate) fn query(self, token: &str) -> String {
        match self {
            Dialect::Roomwire | Dialect::Plain => format!("?token={token}"),
            Dialect::Centrifugo => String::new(),
            Dialect::Pusher => "?protocol=7&client=roomwire-bench&version=1".to_owned(),
        }
    }
}
