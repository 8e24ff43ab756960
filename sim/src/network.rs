//! The fake network: one [`Link`] per TCP connection, which cuts, delays and throttles bytes both ways.

use roomwire_engine::names::ConnectionId;
use roomwire_engine::shard::Chunk;

/// The most shards of a node: shard `n` of node `m` is number `m * SHARDS_MAX + n`.
pub const SHARDS_MAX: usize = 8;

/// The bytes that a client's socket buffer takes before the server's sends stop to complete.
pub const SOCKET_BYTES_MAX: usize = 4_096;

/// One connection, seen from the wire.
#[derive(Debug)]
pub struct Link {
    /// Which shard accepted it, counted over all nodes.
    pub shard: usize,
    /// Its name there.
    pub connection: ConnectionId,
    /// Whose it is.
    pub client: usize,
    /// Sent by the client, not yet received by the server.
    pub to_server: Vec<u8>,
    /// So many of them were received: the rest is not moved for each read of a byte.
    received: usize,
    /// Sent by the server, not yet read by the client.
    pub to_client: Vec<u8>,
    /// The send under way.
    pub in_flight: Option<Chunk>,
    /// The engine named it in `effects.sends`.
    pub wants_send: bool,
    /// The server will send no more.
    pub server_shut: bool,
    /// The client has closed its side: once `to_server` is empty the server sees the end.
    pub client_shut: bool,
    /// The client reads nothing for now.
    pub stalled: bool,
    /// The engine wants it gone: closed once the driver gets to it.
    pub dropped: bool,
    /// The engine was told of the end.
    pub ended: bool,
}

impl Link {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(shard: usize, connection: ConnectionId, client: usize) -> Link {
        Link {
            shard,
            connection,
            client,
            to_server: Vec::new(),
            received: 0,
            to_client: Vec::new(),
            in_flight: None,
            wants_send: false,
            server_shut: false,
            client_shut: false,
            stalled: false,
            dropped: false,
            ended: false,
        }
    }

    /// The server receives the next bytes, so many at most.
    pub fn receive(&mut self, most: usize) -> Vec<u8> {
        let end = self.to_server.len().min(self.received + most);
        let bytes = self.to_server[self.received..end].to_vec();
        self.received = end;
        if end == self.to_server.len() {
            self.lose_to_server();
        }
        bytes
    }

    /// What the client sent and the server did not receive is lost.
    pub fn lose_to_server(&mut self) {
        self.to_server.clear();
        self.received = 0;
    }
}
