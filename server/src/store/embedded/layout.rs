//! How rows, receipts and a room's facts look as keys and values.
//!
//! A key begins with the room id behind its length, so no room's keys are a prefix of another's and no hash can
//! collide; block prefix truncation makes the repeated name cheap on disk. Numbers in keys are big endian: they sort.
//! Values carry a version and no checksum: fjall checks its journal batches and its blocks.

use bytes::Bytes;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::Row;
use std::sync::Arc;

/// The version of every value that this code writes.
const VALUE_VERSION: u8 = 1;
const KIND_MESSAGE: u8 = 0;
const KIND_VOID: u8 = 1;

/// A stored value that this code does not understand.
#[derive(Debug, thiserror::Error)]
#[error("a stored {what} cannot be read: damaged, or written by a newer version")]
pub(super) struct Unreadable {
    what: &'static str,
}

/// All keys of a room begin with this.
pub(super) fn room_prefix(room: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(room.len() + 17);
    // A room id has at most 128 bytes (`wire::id::is_room_id`).
    key.push(room.len().min(255) as u8);
    key.extend_from_slice(room.as_bytes());
    key
}

/// The key below which no row of `seq` lies.
pub(super) fn seq_key(room: &str, seq: u64) -> Vec<u8> {
    let mut key = room_prefix(room);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// The key of a row or its void marker.
pub(super) fn row_key(room: &str, seq: u64, generation: u64) -> Vec<u8> {
    let mut key = seq_key(room, seq);
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// The key of one reader's receipt: the row's key, then the user.
pub(super) fn receipt_key(room: &str, seq: u64, generation: u64, user: &str) -> Vec<u8> {
    let mut key = row_key(room, seq, generation);
    key.extend_from_slice(user.as_bytes());
    key
}

/// The (seq, gen) that follow the room in a row's or receipt's key, and what follows them.
pub(super) fn place(key: &[u8]) -> Option<(u64, u64, &[u8])> {
    let rest = key.get(1 + usize::from(*key.first()?)..)?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*seq), u64::from_be_bytes(*generation), rest))
}

/// The room that a key names.
pub(super) fn room_of(key: &[u8]) -> Option<&str> {
    let (length, rest) = key.split_first()?;
    std::str::from_utf8(rest.get(..usize::from(*length))?).ok()
}

/// A row's place holds this.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Message(Row),
    Void,
}

pub(super) fn encode_void() -> Vec<u8> {
    vec![VALUE_VERSION, KIND_VOID]
}

pub(super) fn is_void(value: &[u8]) -> bool {
    value.get(1) == Some(&KIND_VOID)
}

pub(super) fn encode_row(row: &Row) -> Vec<u8> {
    let texts = row.user.len() + row.username.len() + row.client_id.len() + row.content.len();
    let mut value = Vec::with_capacity(texts + 32);
    value.extend_from_slice(&[VALUE_VERSION, KIND_MESSAGE]);
    value.extend_from_slice(&row.attempt.to_le_bytes());
    put_number(&mut value, row.timestamp);
    for text in [&*row.user, &*row.username, &*row.client_id] {
        put_number(&mut value, text.len() as u64);
        value.extend_from_slice(text.as_bytes());
    }
    value.extend_from_slice(&row.content);
    value
}

pub(super) fn decode_row(room: &RoomId, seq: u64, generation: u64, value: &[u8]) -> Result<Stored, Unreadable> {
    let unreadable = Unreadable { what: "message" };
    let [VALUE_VERSION, kind, rest @ ..] = value else { return Err(unreadable) };
    match *kind {
        KIND_VOID => return Ok(Stored::Void),
        KIND_MESSAGE => {}
        _ => return Err(unreadable),
    }
    let mut reader = Reader { rest };
    let row = (|| {
        let attempt = reader.word()?;
        let timestamp = reader.number()?;
        let user = UserId::new(reader.text()?);
        let username: Arc<str> = Arc::from(reader.text()?);
        let client_id: Arc<str> = Arc::from(reader.text()?);
        let content = std::str::from_utf8(reader.rest).ok()?;
        let content = Bytes::copy_from_slice(content.as_bytes());
        Some(Row { room: room.clone(), seq, generation, user, username, content, client_id, attempt, timestamp })
    })();
    row.map(Stored::Message).ok_or(unreadable)
}

/// A room's rare facts as stored. Voids are not here: each is a marker in its row's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The latest generation; 0 if none.
    pub(super) generation: u64,
    /// The token of who advanced to it.
    pub(super) owner: u64,
    /// The lowest seq that retention has left; 0 if it never removed anything.
    pub(super) oldest: u64,
    /// (gen, base), ascending.
    pub(super) bases: Vec<(u64, u64)>,
}

pub(super) fn encode_facts(facts: &Facts) -> Vec<u8> {
    let mut value = vec![VALUE_VERSION];
    put_number(&mut value, facts.generation);
    value.extend_from_slice(&facts.owner.to_le_bytes());
    put_number(&mut value, facts.oldest);
    // Both numbers only rise from one generation to the next, so the differences stay short.
    let mut last = (0, 0);
    for &(generation, base) in &facts.bases {
        put_number(&mut value, generation.saturating_sub(last.0));
        put_number(&mut value, base.saturating_sub(last.1));
        last = (generation, base);
    }
    value
}

pub(super) fn decode_facts(value: &[u8]) -> Result<Facts, Unreadable> {
    let unreadable = Unreadable { what: "room record" };
    let [VALUE_VERSION, rest @ ..] = value else { return Err(unreadable) };
    let mut reader = Reader { rest };
    let facts = (|| {
        let (generation, owner, oldest) = (reader.number()?, reader.word()?, reader.number()?);
        let mut bases = Vec::new();
        let mut last = (0u64, 0u64);
        while !reader.rest.is_empty() {
            last = (last.0.checked_add(reader.number()?)?, last.1.checked_add(reader.number()?)?);
            bases.push(last);
        }
        Some(Facts { generation, owner, oldest, bases })
    })();
    facts.ok_or(unreadable)
}

/// Writes a number in groups of seven bits, lowest first.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.rest.split_first_chunk::<8>()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            room: RoomId::new("lobby"),
            seq: 7,
            generation: 2,
            user: UserId::new("u1"),
            username: Arc::from("Añe"),
            content: Bytes::from_static(b"hi \\n there"),
            client_id: Arc::from("c-1"),
            attempt: u64::MAX - 1,
            timestamp: 1_700_000_000_123,
        }
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let value = encode_row(&row());
        assert_eq!(decode_row(&row().room, 7, 2, &value).unwrap(), Stored::Message(row()));
        assert_eq!(decode_row(&row().room, 7, 2, &encode_void()).unwrap(), Stored::Void);
    }

    #[test]
    fn a_cut_or_foreign_value_is_an_error_and_never_a_panic() {
        let value = encode_row(&row());
        let content_starts = value.len() - row().content.len();
        for end in 0..content_starts {
            assert!(decode_row(&row().room, 7, 2, &value[..end]).is_err(), "cut at {end}");
        }
        assert!(decode_row(&row().room, 7, 2, &[9, 0, 0]).is_err());
        assert!(decode_facts(&[]).is_err() && decode_facts(&[1, 0x80]).is_err());
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let facts = Facts { generation: 300, owner: u64::MAX, oldest: 5, bases: vec![(1, 1), (2, 900), (300, 900)] };
        assert_eq!(decode_facts(&encode_facts(&facts)).unwrap(), facts);
    }

    #[test]
    fn keys_sort_by_room_then_seq_then_generation() {
        let keys = [
            row_key("a", 1, 9),
            row_key("a", 2, 1),
            row_key("a", 2, 2),
            row_key("a", 256, 1),
            row_key("b", 1, 1),
            row_key("aa", 1, 1),
        ];
        assert!(keys.is_sorted());
        assert_eq!(place(&keys[3]), Some((256, 1, &[][..])));
        assert_eq!(room_of(&keys[5]), Some("aa"));
        let receipt = receipt_key("a", 2, 1, "u9");
        assert_eq!(place(&receipt), Some((2, 1, &b"u9"[..])));
    }
}
