//! Names that travel on the wire: room ids and message ids.

/// The longest room id, in bytes.
pub const ROOM_ID_BYTES_MAX: usize = 128;

/// The prefix of the rooms that the server keeps: `user:{id}` holds every connection of that user.
pub const USER_ROOM_PREFIX: &str = "user:";

/// Whether `room` matches `^[A-Za-z0-9_.:-]{1,128}$`.
#[must_use]
pub fn is_room_id(room: &str) -> bool {
    let _ = room;
    todo!()
}

/// A message's place, as its `messageId` encodes it: opaque to clients, unique, leads to its row without a search.
///
/// 24 characters of URL-safe base64 over 18 bytes: a hash of the room id (8), the generation (4), the seq (6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessagePlace {
    /// The generation (the wire's `epoch`) in which the message was written; at most 2^32 - 1.
    pub epoch: u64,
    /// The room's message number; at most 2^48 - 1.
    pub seq: u64,
}

impl MessagePlace {
    /// The `messageId` of this place in `room`.
    #[must_use]
    pub fn encode(self, room: &str) -> String {
        let _ = room;
        todo!()
    }

    /// The place that `message_id` names, or `None` if it is malformed or belongs to another room.
    #[must_use]
    pub fn decode(room: &str, message_id: &str) -> Option<MessagePlace> {
        let _ = (room, message_id);
        todo!()
    }
}
