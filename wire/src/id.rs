//! Names that travel on the wire: room ids, user ids and message ids.
//!
//! Who calls it: `message` for every id that a client sends, `engine` to make and to resolve message ids.
//! What it never does: look anything up. Whether a room or a row exists is the store's to say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The longest room id, in bytes.
pub const ROOM_ID_BYTES_MAX: usize = 128;

/// The prefix of the rooms that the server keeps: `user:{id}` holds every connection of that user.
pub const USER_ROOM_PREFIX: &str = "user:";

/// The longest user id, in bytes: `user:{id}` must be a room id too.
pub const USER_ID_BYTES_MAX: usize = ROOM_ID_BYTES_MAX - USER_ROOM_PREFIX.len();

/// The characters of every message id.
pub const MESSAGE_ID_BYTES: usize = 24;

/// Whether `room` matches `^[A-Za-z0-9_.:-]{1,128}$`.
#[must_use]
pub fn is_room_id(room: &str) -> bool {
    (1..=ROOM_ID_BYTES_MAX).contains(&room.len()) && room.bytes().all(is_id_byte)
}

/// Whether `user:{user}` is a room id, so that a user id is safe in a key as well.
#[must_use]
pub fn is_user_id(user: &str) -> bool {
    (1..=USER_ID_BYTES_MAX).contains(&user.len()) && user.bytes().all(is_id_byte)
}

const fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-')
}

/// A message's place, as its `messageId` encodes it: opaque to clients, unique, leads to its row without a search.
///
/// 24 characters of URL-safe base64 over 18 bytes: a hash of the room id (8), the generation (4), the seq (6), all
/// big-endian. The hash is FNV-1a with 64 bits. It is written into rows and into clients' memories, so it must never
/// change. It keeps an id from being read as another room's by mistake; it is no protection, nor need it be one: what
/// a user may do in a room is checked by the room's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessagePlace {
    /// The generation (the wire's `epoch`) in which the message was written; at most 2^32 - 1.
    pub epoch: u64,
    /// The room's message number; at most 2^48 - 1.
    pub seq: u64,
}

impl MessagePlace {
    /// The greatest `epoch` that a message id can hold.
    pub const EPOCH_MAX: u64 = (1 << 32) - 1;
    /// The greatest `seq` that a message id can hold: at a million messages a second, nine years of one room.
    pub const SEQ_MAX: u64 = (1 << 48) - 1;

    /// The `messageId` of this place in `room`.
    #[must_use]
    pub fn encode(self, room: &str) -> String {
        debug_assert!(self.epoch <= MessagePlace::EPOCH_MAX && self.seq <= MessagePlace::SEQ_MAX);
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&room_hash(room).to_be_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_be_bytes()[4..]);
        bytes[12..].copy_from_slice(&self.seq.to_be_bytes()[2..]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place that `message_id` names, or `None` if it is malformed or belongs to another room.
    #[must_use]
    pub fn decode(room: &str, message_id: &str) -> Option<MessagePlace> {
        if message_id.len() != MESSAGE_ID_BYTES {
            return None;
        }
        let mut bytes = [0; 18];
        // 24 characters are 18 bytes exactly, so there are no spare bits in which two ids could differ.
        URL_SAFE_NO_PAD.decode_slice(message_id, &mut bytes).ok()?;
        if bytes[..8] != room_hash(room).to_be_bytes() {
            return None;
        }
        Some(MessagePlace { epoch: big_endian(&bytes[8..12]), seq: big_endian(&bytes[12..]) })
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// FNV-1a, 64 bits.
fn room_hash(room: &str) -> u64 {
    room.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_room_id_is_what_the_pattern_says() {
        let longest = "r".repeat(128);
        for good in ["a", "A-Z_a.z:09", "user:7", ".", longest.as_str()] {
            assert!(is_room_id(good), "{good}");
        }
        let too_long = "r".repeat(129);
        for bad in ["", " ", "a b", "a{b}", "a\n", "a\0", "é", "a/b", "*", "a?", too_long.as_str()] {
            assert!(!is_room_id(bad), "{bad}");
        }
    }

    #[test]
    fn a_user_id_leaves_space_for_the_prefix_of_its_room() {
        let longest = "u".repeat(123);
        assert!(is_user_id(&longest) && is_room_id(&format!("{USER_ROOM_PREFIX}{longest}")));
        assert!(!is_user_id(&"u".repeat(124)));
        assert!(!is_user_id("") && !is_user_id("a b"));
    }

    #[test]
    fn the_hash_is_fnv_1a_for_ever() {
        assert_eq!(room_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(room_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(room_hash("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(MessagePlace { epoch: 1, seq: 42 }.encode("foobar"), "hZRBcfc5Z-gAAAABAAAAAAAq");
    }

    #[test]
    fn an_id_of_another_room_or_a_damaged_one_names_nothing() {
        let id = MessagePlace { epoch: 3, seq: 9 }.encode("a");
        assert_eq!(MessagePlace::decode("a", &id), Some(MessagePlace { epoch: 3, seq: 9 }));
        assert_eq!(MessagePlace::decode("b", &id), None);
        assert_eq!(MessagePlace::decode("a", &id[1..]), None);
        assert_eq!(MessagePlace::decode("a", &format!("{id}A")), None);
        assert_eq!(MessagePlace::decode("a", &id.replace(&id[20..], "===")), None);
        assert_eq!(MessagePlace::decode("a", &"+".repeat(24)), None);
        assert_eq!(MessagePlace::decode("a", &"é".repeat(12)), None);
        assert_eq!(MessagePlace::decode("a", ""), None);
    }

    proptest! {

        #![proptest_config(crate::seeded())]

        #[test]
        fn a_place_survives_its_id(
            room in "[A-Za-z0-9_.:-]{1,128}",
            epoch in 0..=MessagePlace::EPOCH_MAX,
            seq in 0..=MessagePlace::SEQ_MAX,
        ) {
            let place = MessagePlace { epoch, seq };
            let id = place.encode(&room);
            prop_assert_eq!(id.len(), MESSAGE_ID_BYTES);
            prop_assert_eq!(MessagePlace::decode(&room, &id), Some(place));
        }
    }
}
