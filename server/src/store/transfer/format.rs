//! The lines of an export: JSON, one record each, every field checked when it is read back.
//!
//! ```text
//! {"type":"header","format":"roomwire-store","version":1,"source":"embedded","program":"0.1.0","timestamp":...,"rooms":"*"}
//! {"type":"room","roomId":"lobby","epoch":2,"owner":"71","oldest":0,"bases":[[1,1],[2,9]]}
//! {"type":"message","roomId":"lobby","seq":1,"epoch":1,"messageId":"...","clientId":"c-1","userId":"ada","username":"Ada",
//!  "content":"as the client wrote it","timestamp":...,"attempt":"10","readBy":["bob"]}
//! {"type":"readers","roomId":"lobby","seq":1,"epoch":1,"readBy":[...]}       readers that found no place in the line before
//! {"type":"void","roomId":"lobby","seq":8,"epoch":2}
//! {"type":"end","rooms":1,"messages":1,"voids":1,"receipts":1}
//! ```
//!
//! Names and their meaning are those of the wire protocol where it has them. Numbers of 64 bits are strings: many a JSON
//! tool keeps 53. A room's records follow its `room` line; without the `end` line a file is not whole.

use bytes::Bytes;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::{ReadRow, Row};
use roomwire_wire::id::{MessagePlace, is_room_id, is_user_id};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

/// The version of the lines.
pub const VERSION: u32 = 1;
/// What the header calls them.
const FORMAT: &str = "roomwire-store";
/// Readers of one line.
pub(in crate::store) const READERS_AT_ONCE: usize = 1_000;
/// The end of the year 9999, in Unix milliseconds.
const TIMESTAMP_MAX: u64 = 253_402_300_799_999;
/// A name, a client id, a reader: nothing that a node stored is as long as this.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of store: `embedded` or `cql`.
    pub source: String,
    /// The version of the program that wrote it.
    pub program: String,
    /// When, in Unix milliseconds.
    pub timestamp: u64,
    /// The glob that chose the rooms.
    pub rooms: String,
}

/// A room's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomFacts {
    /// Its name.
    pub room: RoomId,
    /// The latest generation, the wire's `epoch`; 0 if it never had one.
    pub generation: u64,
    /// The token of who advanced to it: tells two histories of one name apart.
    pub owner: u64,
    /// The lowest seq that retention has left; 0 if it never removed anything.
    pub oldest: u64,
    /// The first seq of each generation, (gen, base), ascending.
    pub bases: Vec<(u64, u64)>,
}

/// How much a file holds, or was read or written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Rooms.
    pub rooms: u64,
    /// Messages, of every generation.
    pub messages: u64,
    /// Voided seqs.
    pub voids: u64,
    /// Receipts: one for each reader of a message.
    pub receipts: u64,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The first line.
    Header(Header),
    /// A room begins.
    Room(RoomFacts),
    /// A message, with its first readers.
    Message(ReadRow),
    /// More readers of a message.
    Readers {
        /// The message's room.
        room: RoomId,
        /// Its seq.
        seq: u64,
        /// Its generation.
        generation: u64,
        /// Users who sent a receipt.
        readers: Vec<Box<str>>,
    },
    /// A seq that stays empty.
    Void {
        /// The room.
        room: RoomId,
        /// The seq.
        seq: u64,
        /// The generation that voided it.
        generation: u64,
    },
    /// The last line.
    End(Totals),
}

impl Record {
    /// The room that it belongs to.
    #[must_use]
    pub fn room(&self) -> Option<&RoomId> {
        match self {
            Record::Room(facts) => Some(&facts.room),
            Record::Message(read) => Some(&read.row.room),
            Record::Readers { room, .. } | Record::Void { room, .. } => Some(room),
            Record::Header(_) | Record::End(_) => None,
        }
    }

    /// About how much memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let readers = |readers: &[Box<str>]| readers.iter().map(|reader| reader.len() + 16).sum::<usize>();
        64 + match self {
            Record::Message(read) => read.row.content.len() + read.row.username.len() + readers(&read.read_by) + 128,
            Record::Readers { readers: more, .. } => readers(more),
            Record::Room(facts) => facts.bases.len() * 16,
            _ => 0,
        }
    }
}

impl Totals {
    /// Counts a record.
    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Room(_) => self.rooms += 1,
            Record::Message(read) => {
                self.messages += 1;
                self.receipts += read.read_by.len() as u64;
            }
            Record::Readers { readers, .. } => self.receipts += readers.len() as u64,
            Record::Void { .. } => self.voids += 1,
            Record::Header(_) | Record::End(_) => {}
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageLine<'a> {
    r#type: &'static str,
    room_id: &'a str,
    seq: u64,
    epoch: u64,
    message_id: String,
    client_id: &'a str,
    user_id: &'a str,
    username: &'a str,
    content: &'a RawValue,
    timestamp: u64,
    attempt: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    read_by: &'a [Box<str>],
}

/// Writes a record as one line.
///
/// # Errors
/// What stopped it: the receiver of the bytes, or a damaged record.
pub fn write(out: &mut impl Write, record: &Record) -> Result<(), String> {
    use serde_json::json;
    let line = match record {
        Record::Header(header) => {
            let Header { source, program, timestamp, rooms } = header;
            json!({"type": "header", "format": FORMAT, "version": VERSION, "source": source, "program": program,
                "timestamp": timestamp, "rooms": rooms})
        }
        Record::Room(facts) => {
            let RoomFacts { room, generation, owner, oldest, bases } = facts;
            json!({"type": "room", "roomId": **room, "epoch": generation, "owner": owner.to_string(), "oldest": oldest,
                "bases": bases})
        }
        Record::Message(read) => return write_message(out, read),
        Record::Readers { room, seq, generation, readers } => {
            json!({"type": "readers", "roomId": **room, "seq": seq, "epoch": generation, "readBy": readers})
        }
        Record::Void { room, seq, generation } => {
            json!({"type": "void", "roomId": **room, "seq": seq, "epoch": generation})
        }
        Record::End(totals) => {
            let Totals { rooms, messages, voids, receipts } = totals;
            json!({"type": "end", "rooms": rooms, "messages": messages, "voids": voids, "receipts": receipts})
        }
    };
    writeln!(out, "{line}").map_err(|error| format!("cannot write: {error}"))
}

fn write_message(out: &mut impl Write, read: &ReadRow) -> Result<(), String> {
    let row = &read.row;
    let damaged = || format!("message {} of room {} is damaged: its content is no JSON text", row.seq, &*row.room);
    let text = std::str::from_utf8(&row.content).map_err(|_| damaged())?;
    let content = RawValue::from_string(format!("\"{text}\"")).map_err(|_| damaged())?;
    let line = MessageLine {
        r#type: "message",
        room_id: &row.room,
        seq: row.seq,
        epoch: row.generation,
        message_id: MessagePlace { epoch: row.generation, seq: row.seq }.encode(&row.room),
        client_id: &row.client_id,
        user_id: &row.user,
        username: &row.username,
        content: &content,
        timestamp: row.timestamp,
        attempt: row.attempt.to_string(),
        read_by: &read.read_by,
    };
    serde_json::to_writer(&mut *out, &line).map_err(|error| format!("cannot write: {error}"))?;
    writeln!(out).map_err(|error| format!("cannot write: {error}"))
}

/// Any line, before it is known what it must have.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    format: Option<Cow<'a, str>>,
    version: Option<u32>,
    source: Option<String>,
    program: Option<String>,
    timestamp: Option<u64>,
    /// The header's glob, or the count at the end.
    rooms: Option<serde_json::Value>,
    room_id: Option<Cow<'a, str>>,
    seq: Option<u64>,
    epoch: Option<u64>,
    owner: Option<Cow<'a, str>>,
    oldest: Option<u64>,
    bases: Option<Vec<(u64, u64)>>,
    message_id: Option<Cow<'a, str>>,
    client_id: Option<Cow<'a, str>>,
    user_id: Option<Cow<'a, str>>,
    username: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    attempt: Option<Cow<'a, str>>,
    read_by: Option<Vec<Box<str>>>,
    messages: Option<u64>,
    voids: Option<u64>,
    receipts: Option<u64>,
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &str) -> Result<Record, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| {
        // The line's own number is always 1.
        let text = error.to_string();
        text.replacen(" at line 1 column ", ", at its column ", 1)
    })?;
    match &*line.r#type {
        "header" => line.header(),
        "room" => line.room_facts().map(Record::Room),
        "message" => line.message().map(Record::Message),
        "readers" => {
            let (room, seq, generation) = line.place()?;
            let readers = readers(line.read_by.ok_or_else(|| missing("readBy"))?)?;
            Ok(Record::Readers { room, seq, generation, readers })
        }
        "void" => {
            let (room, seq, generation) = line.place()?;
            Ok(Record::Void { room, seq, generation })
        }
        "end" => Ok(Record::End(Totals {
            rooms: line.rooms.as_ref().and_then(serde_json::Value::as_u64).ok_or_else(|| missing("rooms"))?,
            messages: line.messages.ok_or_else(|| missing("messages"))?,
            voids: line.voids.ok_or_else(|| missing("voids"))?,
            receipts: line.receipts.ok_or_else(|| missing("receipts"))?,
        })),
        other => Err(format!("`type` {other:?} is not known")),
    }
}

fn missing(field: &str) -> String {
    format!("`{field}` is missing or of the wrong kind")
}

fn long(text: Option<&Cow<'_, str>>, field: &str) -> Result<u64, String> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| missing(field))
}

fn short<'a>(text: Option<&'a Cow<'_, str>>, field: &str) -> Result<&'a str, String> {
    text.map(|text| &**text).filter(|text| text.len() <= TEXT_BYTES_MAX).ok_or_else(|| missing(field))
}

fn readers(readers: Vec<Box<str>>) -> Result<Vec<Box<str>>, String> {
    match readers.len() <= READERS_AT_ONCE && readers.iter().all(|reader| is_user_id(reader)) {
        true => Ok(readers),
        false => Err(format!("`readBy` expects up to {READERS_AT_ONCE} user ids")),
    }
}

impl Line<'_> {
    fn header(self) -> Result<Record, String> {
        if self.format.as_deref() != Some(FORMAT) {
            return Err(format!("`format` is not {FORMAT:?}"));
        }
        match self.version {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => {
                return Err(format!(
                    "the file has version {newer}, this roomwire knows up to {VERSION}: use a newer one"
                ));
            }
            _ => return Err(missing("version")),
        }
        let rooms = self.rooms.as_ref().and_then(serde_json::Value::as_str).ok_or_else(|| missing("rooms"))?;
        Ok(Record::Header(Header {
            rooms: rooms.to_owned(),
            source: self.source.ok_or_else(|| missing("source"))?,
            program: self.program.ok_or_else(|| missing("program"))?,
            timestamp: self.timestamp.ok_or_else(|| missing("timestamp"))?,
        }))
    }

    fn room(&self) -> Result<RoomId, String> {
        let room = self.room_id.as_deref().filter(|room| is_room_id(room));
        room.map(RoomId::new).ok_or_else(|| "`roomId` is missing or no room id".to_owned())
    }

    fn place(&self) -> Result<(RoomId, u64, u64), String> {
        let seq = self.seq.filter(|seq| (1..=MessagePlace::SEQ_MAX).contains(seq)).ok_or_else(|| missing("seq"))?;
        let generation = self.epoch.filter(|epoch| (1..=MessagePlace::EPOCH_MAX).contains(epoch));
        Ok((self.room()?, seq, generation.ok_or_else(|| missing("epoch"))?))
    }

    fn room_facts(self) -> Result<RoomFacts, String> {
        let generation =
            self.epoch.filter(|epoch| *epoch <= MessagePlace::EPOCH_MAX).ok_or_else(|| missing("epoch"))?;
        let bases = self.bases.as_ref().ok_or_else(|| missing("bases"))?;
        let valid =
            |(of, base): &(u64, u64)| *of >= 1 && *of <= generation && (1..=MessagePlace::SEQ_MAX).contains(base);
        if !bases.iter().all(valid) || !bases.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1) {
            return Err("`bases` expects pairs of epoch and seq, both rising, none above the room's epoch".to_owned());
        }
        Ok(RoomFacts {
            room: self.room()?,
            generation,
            owner: long(self.owner.as_ref(), "owner")?,
            oldest: self.oldest.filter(|oldest| *oldest <= MessagePlace::SEQ_MAX).ok_or_else(|| missing("oldest"))?,
            bases: self.bases.unwrap_or_default(),
        })
    }

    fn message(mut self) -> Result<ReadRow, String> {
        let (room, seq, generation) = self.place()?;
        if self.message_id.as_deref() != Some(&*MessagePlace { epoch: generation, seq }.encode(&room)) {
            return Err("`messageId` is not that of this room, epoch and seq".to_owned());
        }
        let content = self.content.map(RawValue::get).and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
        let user = self.user_id.as_deref().filter(|user| is_user_id(user)).ok_or_else(|| missing("userId"))?;
        let timestamp = self.timestamp.filter(|at| *at <= TIMESTAMP_MAX).ok_or_else(|| missing("timestamp"))?;
        let row = Row {
            room,
            seq,
            generation,
            user: UserId::new(user),
            username: Arc::from(short(self.username.as_ref(), "username")?),
            content: Bytes::copy_from_slice(content.ok_or_else(|| missing("content"))?.as_bytes()),
            client_id: Arc::from(short(self.client_id.as_ref(), "clientId")?),
            attempt: long(self.attempt.as_ref(), "attempt")?,
            timestamp,
        };
        Ok(ReadRow { row, read_by: readers(self.read_by.take().unwrap_or_default())? })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let room = RoomId::new("lobby");
        let row = Row {
            room: room.clone(),
            seq: 7,
            generation: 2,
            user: UserId::new("auth0.user:7"),
            username: Arc::from("Zoë \"Z\" 🙂\n"),
            content: Bytes::from_static(br#"\u0041 \n \"quoted\" caf\u00e9"#),
            client_id: Arc::from(r"a 'b'; \"),
            attempt: u64::MAX - 1,
            timestamp: 1_700_000_000_123,
        };
        let header =
            Header { source: "embedded".to_owned(), program: "0.1.0".to_owned(), timestamp: 5, rooms: "*".to_owned() };
        let facts = RoomFacts {
            room: room.clone(),
            generation: 3,
            owner: u64::MAX,
            oldest: 5,
            bases: vec![(1, 1), (2, 6), (3, 9)],
        };
        vec![
            Record::Header(header),
            Record::Room(facts),
            Record::Message(ReadRow { row, read_by: vec!["ada".into(), "bob".into()] }),
            Record::Readers { room: room.clone(), seq: 7, generation: 2, readers: vec!["cleo".into()] },
            Record::Void { room, seq: 8, generation: 3 },
            Record::End(Totals { rooms: 1, messages: 1, voids: 1, receipts: 3 }),
        ]
    }

    fn line(record: &Record) -> String {
        let mut out = Vec::new();
        write(&mut out, record).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        text.trim_end().to_owned()
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_totals_count_it() {
        let mut totals = Totals::default();
        for record in records() {
            assert_eq!(parse(&line(&record)).unwrap(), record);
            totals.add(&record);
        }
        assert_eq!(Record::End(totals), records()[5]);
    }

    #[test]
    fn a_cut_or_changed_line_is_an_error_and_never_a_panic() {
        for record in records() {
            let line = line(&record);
            for end in (0..line.len()).filter(|end| line.is_char_boundary(*end)) {
                assert!(parse(&line[..end]).is_err(), "{}", &line[..end]);
            }
        }
        let message = line(&records()[2]);
        for (from, to, word) in [
            ("\"seq\":7", "\"seq\":8", "messageId"),
            ("\"seq\":7", "\"seq\":0", "seq"),
            ("\"epoch\":2", "\"epoch\":4294967296", "epoch"),
            ("auth0", "au th", "userId"),
            ("\"attempt\":\"", "\"attempt\":\"-", "attempt"),
            ("\"content\":", "\"content\":1,\"x\":", "x"),
            ("lobby", "lob by", "roomId"),
            ("[\"ada\"", "[\"a b\"", "readBy"),
        ] {
            let error = parse(&message.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(word) && error.lines().count() == 1, "{from} to {to}: {error}");
        }
        let room = line(&records()[1]);
        for (from, to) in [("[3,9]", "[3,5]"), ("[3,9]", "[4,9]"), ("\"epoch\":3", "\"epoch\":2"), ("[[1,1]", "[[1,0]")]
        {
            assert!(parse(&room.replacen(from, to, 1)).is_err(), "{from} to {to}");
        }
        let newer = line(&records()[0]).replacen("\"version\":1", "\"version\":2", 1);
        assert!(parse(&newer).unwrap_err().contains("use a newer one"));
        assert!(parse("{\"type\":\"poem\"}").unwrap_err().contains("poem"));
    }

    #[test]
    fn content_that_is_no_json_text_is_not_written() {
        let Record::Message(mut read) = records()[2].clone() else { panic!("the third is a message") };
        for damaged in [&b"a\"b"[..], b"\\", b"\n", b"\xff"] {
            read.row.content = Bytes::copy_from_slice(damaged);
            let error = write(&mut Vec::new(), &Record::Message(read.clone())).unwrap_err();
            assert!(error.contains("message 7 of room lobby"), "{error}");
        }
    }
}
