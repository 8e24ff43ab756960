//! Everything that crosses a thread: between shards, and between shards and the bridge. Two closed enums.
//!
//! Lanes are first in, first out, one per pair of threads. A lane that is full is not an error: what does not fit
//! waits in the sender's own spill queue, in order, so **no message here is ever dropped**. A shard whose spill grows
//! stops reading from sockets; the bridge answers publishes with `unavailable` while its own queue is full.
//! What a shard sends to itself never touches a lane.
//!
//! The *home* shard of a room ([`crate::names::home`]) keeps its membership over all shards; the home shard of a user
//! keeps the user's presence. The bridge keeps which shards have members of a room.

use crate::cluster::MemberChange;
use crate::limits::Reload;
use crate::names::{ConnectionRef, RoomId, ShardId, User, UserId};
use crate::stats::ShardStats;
use bytes::Bytes;
use roomwire_wire::close::CloseCode;
use roomwire_wire::message::ErrorCode;
use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;

/// Who asked a question that several threads answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A connection.
    Connection(ConnectionRef),
    /// The HTTP API; the number pairs answer and call.
    Http(u64),
}

/// What a client wants of a room's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryAsk {
    /// The last `limit` messages: a join without a position.
    Last {
        /// At most so many messages.
        limit: u32,
    },
    /// All after a position: a resume. An unknown position is answered as `Last`, with `complete: false`.
    Since {
        /// The last seq that the client has.
        seq: u64,
        /// The epoch in which it got it, if it said.
        epoch: Option<u64>,
        /// For an unknown position.
        limit: u32,
    },
    /// The request `history`: `after` and `before` are exclusive; without `after` the newest of the range.
    Range {
        /// Only seqs above.
        after: Option<u64>,
        /// Only seqs below.
        before: Option<u64>,
        /// At most so many messages.
        limit: u32,
    },
    /// The next page of an answer: sent by the shard when the connection's queue has drained.
    Next(NextPage),
}

/// Where the next page of an answer begins. Made by the bridge, carried back by the shard, opaque to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextPage {
    /// Only seqs above.
    pub after: u64,
    /// The room's epoch when the page before it was given: `after` counts in that.
    pub epoch: u64,
    /// Only seqs below; `None` for an answer that runs to the live edge.
    pub before: Option<NonZeroU64>,
    /// How many messages are left to give; `u32::MAX` where all are wanted.
    pub left: u32,
    /// Whether nothing was missing so far.
    pub complete: bool,
}

/// What a home tells the bus again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Its users who are here.
    Users,
    /// The rosters of its rooms.
    Rosters,
}

/// Where a walk through a home's table stands: a slot, and a place in its roster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkPlace {
    /// The slot.
    pub slot: u32,
    /// The place.
    pub at: u32,
}

/// One part of a walk through a home's table.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Of what.
    pub what: Announce,
    /// Users who are here.
    pub users: Vec<UserId>,
    /// Rooms with some of their users here.
    pub rosters: Vec<(RoomId, Vec<User>)>,
    /// Where to go on; `None` at the end.
    pub next: Option<WalkPlace>,
    /// How many slots the table has.
    pub slots: u32,
}

/// To a shard.
#[derive(Clone, Debug)]
pub enum ToShard {
    // From the bridge.
    /// A durable message of a room with members on this shard, in seq order. Queued to every live member.
    /// For a `user:` room it goes to the user's home shard, which passes it on as `DeliverToUser`.
    Deliver {
        /// The room.
        room: RoomId,
        /// Its number.
        seq: u64,
        /// The client-visible JSON.
        payload: Bytes,
        /// When the publisher's shard received it; 0 if unknown.
        received_us: u64,
    },
    /// An event without a seq for a room's members here (receipts, foreign JSON). Shed first when a queue is full.
    Event {
        /// The room.
        room: RoomId,
        /// The client-visible JSON.
        payload: Bytes,
    },
    /// A page of history. The shard queues it, then asks for `next` once the connection has drained; `live` says that
    /// the page ends where live messages go on, so the connection counts as a live member from here.
    HistoryPage {
        /// For whom.
        to: ConnectionRef,
        /// The room.
        room: RoomId,
        /// The whole `room_history` JSON.
        payload: Bytes,
        /// The next page of the same answer.
        next: Option<NextPage>,
        /// No gap to the next `Deliver` on this lane.
        live: bool,
        /// A join's answer stops here for so many ms, then the shard asks on: for `next`, or what it asked before.
        later_ms: Option<NonZeroU16>,
    },
    /// A publish was stored and published, now or by an earlier attempt. Answered with `ack` if the client gave an id.
    Published {
        /// For whom.
        to: ConnectionRef,
        /// The room.
        room: RoomId,
        /// The client's id.
        client_id: Arc<str>,
        /// The message's id.
        message_id: Arc<str>,
        /// Its number.
        seq: u64,
        /// Unix ms of its creation.
        timestamp: u64,
    },
    /// A page of history cannot be given now: answered with `error`. Ends the answer; a member that waits to go live
    /// is not forgotten, its shard asks again after `retry_after_ms`, and does not tell the client again.
    HistoryRefused {
        /// For whom.
        to: ConnectionRef,
        /// The room.
        room: RoomId,
        /// Why.
        code: ErrorCode,
        /// In plain words.
        message: &'static str,
        /// When to try again.
        retry_after_ms: Option<u32>,
    },
    /// A publish or a receipt could not be served: answered with `error`.
    Refused {
        /// For whom.
        to: ConnectionRef,
        /// The client's id, if it was a publish that had one.
        client_id: Option<Arc<str>>,
        /// Why.
        code: ErrorCode,
        /// In plain words.
        message: &'static str,
        /// When to try again.
        retry_after_ms: Option<u32>,
    },
    /// Close every connection of the user on this shard (sent to all shards).
    Disconnect {
        /// The user.
        user: UserId,
        /// With this code.
        code: CloseCode,
        /// And this reason.
        reason: Arc<str>,
    },
    /// Stop accepting, and part from each connection at its own time within the window. Repeated with 0 to cut it short.
    Drain {
        /// The window, in ms.
        window_ms: u32,
    },

    /// The configuration was read again: what of it may change on the way.
    Reload(Arc<Reload>),

    // From another shard, or from the bridge for `Asker::Http`.
    /// To the room's home: a connection joins. Answered with `JoinAnswer`.
    Join {
        /// The room.
        room: RoomId,
        /// Who.
        user: User,
        /// The connection.
        from: ConnectionRef,
    },
    /// To the joiner's shard: the join is known at home, and `user_joined`, if due, was sent before on this lane.
    JoinAnswer {
        /// The connection.
        to: ConnectionRef,
        /// The room.
        room: RoomId,
        /// In a cluster: the joiner's own `user_joined`, which does not wait for the other nodes.
        joined: Option<Bytes>,
    },
    /// To the room's home: a connection left or died.
    Leave {
        /// The room.
        room: RoomId,
        /// Who.
        user: User,
        /// The connection.
        from: ConnectionRef,
    },
    /// To the room's home: an ephemeral event (typing) for all members.
    Spread {
        /// The room.
        room: RoomId,
        /// The client-visible JSON.
        payload: Bytes,
    },
    /// To a shard with members: `user_joined` for all but that user's own connections.
    EventBut {
        /// The room.
        room: RoomId,
        /// Who has heard it already.
        user: UserId,
        /// The client-visible JSON.
        payload: Bytes,
    },
    /// To the room's home, from the bridge: all nodes know of it, tell the members here.
    RosterChanged {
        /// The room.
        room: RoomId,
        /// Who came or went.
        user: User,
        /// Came.
        joined: bool,
    },
    /// To the room's home, from the bridge: the count of a large room over all nodes, for its members here.
    RosterCounted {
        /// The room.
        room: RoomId,
        /// Users.
        count: u64,
    },
    /// To every shard, from the bridge: tell a part of what you are home of, for the bus. Answered with `Announced`.
    Announce {
        /// Of what.
        what: Announce,
        /// From there on; all from the start.
        from: WalkPlace,
    },
    /// To the room's home: who is there? Answered with `MembersAnswer`, or `ToBridge::MembersAnswer`.
    AskMembers {
        /// The room.
        room: RoomId,
        /// Who asks.
        asker: Asker,
    },
    /// To the asker's shard: the whole `members` JSON.
    MembersAnswer {
        /// For whom.
        to: ConnectionRef,
        /// The JSON.
        payload: Bytes,
    },
    /// To the user's home: a connection of the user was authenticated.
    UserUp {
        /// The user.
        user: UserId,
        /// The connection.
        from: ConnectionRef,
        /// The shard's number of the user's stay there, from the first connection to the last.
        stay: u32,
    },
    /// To the user's home: a connection of the user ended.
    UserDown {
        /// The user.
        user: UserId,
        /// The connection.
        from: ConnectionRef,
    },
    /// To the user's home, from the bridge: from here on it is delivered all of the room `user:{id}`. Answers its
    /// `Subscribe`; a `Deliver` before is of an earlier one.
    UserSubscribed {
        /// The user.
        user: UserId,
    },
    /// To the connection's shard: the user has too many connections; close this one.
    TooManyConnections {
        /// The connection.
        to: ConnectionRef,
    },
    /// To the user's home: a shard wants to know of changes. Answered at once with `PresenceAnswer` for the connection.
    Watch {
        /// The user.
        user: UserId,
        /// For whom.
        from: ConnectionRef,
    },
    /// To the user's home: no connection of that shard watches any more.
    Unwatch {
        /// The user.
        user: UserId,
        /// The shard.
        shard: ShardId,
    },
    /// To the watcher's shard: the state now.
    PresenceAnswer {
        /// For whom.
        to: ConnectionRef,
        /// The user.
        user: UserId,
        /// The state.
        online: bool,
    },
    /// To every watching shard: the state changed.
    PresenceChanged {
        /// The user.
        user: UserId,
        /// The state.
        online: bool,
        /// Unix ms.
        timestamp: u64,
    },
    /// To the user's home, from the bridge: whether the user is online elsewhere. The answer to `ToBridge::Watch`, and
    /// then each change.
    UserElsewhere {
        /// The user.
        user: UserId,
        /// Online on another node.
        online: bool,
    },
    /// To the user's home, from the bridge: is the user here? Answered with `ToBridge::UserAnswer`.
    AskUser {
        /// The user.
        user: UserId,
        /// The HTTP call.
        call: u64,
    },
    /// To every shard with connections of the user, from the user's home: a message of the room `user:{id}`.
    DeliverToUser {
        /// The user.
        user: UserId,
        /// For the connections of this stay on the shard; a later one may not hear what follows.
        stay: u32,
        /// The client-visible JSON.
        payload: Bytes,
        /// When the publisher's shard received it; 0 if unknown.
        received_us: u64,
    },
}

/// To the bridge, from a shard.
#[derive(Clone, Debug)]
pub enum ToBridge {
    /// A chat message to order, store and deliver. Answered with `Published` or `Refused`.
    Publish {
        /// Who waits for the answer.
        from: ConnectionRef,
        /// The room.
        room: RoomId,
        /// The author.
        user: User,
        /// The content (`wire::message::RawText`).
        content: Bytes,
        /// The client's id of it.
        client_id: Option<Arc<str>>,
        /// When it came in.
        received_us: u64,
    },
    /// A read receipt to store and spread. Answered with `Refused` if it cannot be.
    Receipt {
        /// Who waits for the answer.
        from: ConnectionRef,
        /// The room.
        room: RoomId,
        /// The reader.
        user: UserId,
        /// The message.
        message_id: Arc<str>,
    },
    /// A page of history, or a resume. Answered with `HistoryPage` or `HistoryRefused`, one for each ask; a connection
    /// has at most one ask under way.
    History {
        /// For whom.
        from: ConnectionRef,
        /// The room.
        room: RoomId,
        /// What.
        ask: HistoryAsk,
    },
    /// The shard's first member of a room. Everything published from here on is delivered to it.
    Subscribe {
        /// The room.
        room: RoomId,
        /// The shard.
        shard: ShardId,
    },
    /// The shard's last member is gone.
    Unsubscribe {
        /// The room.
        room: RoomId,
        /// The shard.
        shard: ShardId,
    },
    /// From the room's home, in a cluster only: an ephemeral event (typing), delivered here already, for the members on
    /// other nodes.
    Spread {
        /// The room.
        room: RoomId,
        /// The client-visible JSON.
        payload: Bytes,
    },
    /// Who is in a room here: for the HTTP API, or in a cluster for a connection as well, which then gets
    /// `ToShard::MembersAnswer`.
    MembersAnswer {
        /// The room.
        room: RoomId,
        /// Who asked.
        asker: Asker,
        /// How many users.
        count: u64,
        /// The first 100 of them.
        users: Vec<User>,
    },
    // In a cluster only, from homes.
    /// A user came here, or went after the grace; where watched, a going is answered with `UserElsewhere`.
    UserChanged {
        /// The user.
        user: UserId,
        /// Came.
        online: bool,
    },
    /// Somebody here watches a user who is not here. Answered with `UserElsewhere`.
    Watch {
        /// The user.
        user: UserId,
    },
    /// Nobody here watches any more.
    Unwatch {
        /// The user.
        user: UserId,
    },
    /// A user's first connection here entered a room, or the last one left it. Answered with `RosterChanged` or
    /// `RosterCounted` where it changes who is in the room on all nodes.
    RosterChange {
        /// The room.
        room: RoomId,
        /// What.
        change: MemberChange,
    },
    /// The answer to `Announce`.
    Announced {
        /// The shard.
        shard: ShardId,
        /// What.
        part: Box<Announced>,
    },
    /// The answer for the HTTP API.
    UserAnswer {
        /// The call.
        call: u64,
        /// The user.
        user: UserId,
        /// The user is online.
        online: bool,
        /// Connections on this node.
        connections: u32,
    },
    /// Once a second: the shard's figures; they also prove that it turns.
    Stats {
        /// The shard.
        shard: ShardId,
        /// The figures.
        stats: Box<ShardStats>,
    },
    /// After `Drain`: the last connection is gone.
    Drained {
        /// The shard.
        shard: ShardId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_message_stays_small() {
        // A lane's ring is an array of these; a fat variant would be paid for by every slot.
        assert!(size_of::<ToShard>() <= 96, "{}", size_of::<ToShard>());
        assert!(size_of::<ToBridge>() <= 144, "{}", size_of::<ToBridge>());
    }
}
