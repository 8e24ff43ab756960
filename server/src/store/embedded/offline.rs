//! The embedded store without a node: what `roomwire store export`, `import` and `stat` do to a data directory.
//!
//! It holds the directory's lock as a node does, so neither works beside the other. An import that was begun and did not
//! end leaves the file `importing` in the directory: no node starts on half a store. Nothing here runs in a node.

use super::EmbeddedConfig;
use super::group::Group;
use super::layout::{self, Facts, Stored};
use super::read::facts;
use super::tables::{DataDir, Tables};
use crate::store::transfer::format::{READERS_AT_ONCE, Record, RoomFacts};
use crate::store::transfer::stat::{Messages, RoomStat, Stat, StatAsk};
use crate::store::transfer::{Sink, Standing};
use fjall::{Guard, PersistMode};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{ReadRow, Row};
use std::iter::Peekable;
use std::time::{Duration, Instant};

/// How long fjall may be behind with its own files before an import gives up: it stops for good when the disk is full.
const CONGESTION_MAX: Duration = Duration::from_secs(120);

/// An open data directory that no node uses.
pub(in crate::store) struct Offline {
    config: EmbeddedConfig,
    tables: Tables,
    directory: DataDir,
}

impl Offline {
    /// Opens the directory. To read, it has to be there, and whole.
    pub(in crate::store) fn open(config: EmbeddedConfig, to_write: bool) -> Result<Offline, String> {
        let path = config.dir.display();
        if !to_write && !config.dir.join("format").exists() {
            return Err(format!("there is no data directory of roomwire at {path}: set data.dir"));
        }
        let directory = DataDir::claim(&config.dir).map_err(|error| error.to_string())?;
        if !to_write {
            directory.check_whole().map_err(|error| error.to_string())?;
        }
        let tables = directory.open(&config).map_err(|error| error.to_string())?;
        Ok(Offline { config, tables, directory })
    }

    /// Where it is, for people.
    pub(in crate::store) fn place(&self) -> String {
        self.config.dir.display().to_string()
    }

    /// Hands every record of the wanted rooms to `sink`.
    pub(in crate::store) fn export(&self, wants: &dyn Fn(&str) -> bool, sink: &mut Sink<'_>) -> Result<(), String> {
        for guard in self.tables.rooms.iter() {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            let room = layout::room_of(&key).ok_or_else(|| unreadable("a key of the table `rooms`"))?;
            if wants(room) {
                let facts = layout::decode_facts(&value).map_err(unreadable)?;
                self.export_room(&RoomId::new(room), facts, sink)?;
            }
        }
        Ok(())
    }

    fn export_room(&self, room: &RoomId, facts: Facts, sink: &mut Sink<'_>) -> Result<(), String> {
        let Facts { generation, owner, oldest, bases } = facts;
        sink(&Record::Room(RoomFacts { room: room.clone(), generation, owner, oldest, bases }))?;
        let prefix = layout::room_prefix(room);
        let mut receipts = self.tables.receipts.prefix(&prefix).map(receipt as ReceiptOf).peekable();
        for guard in self.tables.messages.prefix(&prefix) {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            let (seq, generation, _) =
                layout::place(&key).ok_or_else(|| unreadable("a key of the table `messages`"))?;
            match layout::decode_row(room, seq, generation, &value).map_err(unreadable)? {
                Stored::Void => sink(&Record::Void { room: room.clone(), seq, generation })?,
                Stored::Message(row) => {
                    let read_by = next_readers(&mut receipts, (seq, generation))?;
                    let mut is_full = read_by.len() == READERS_AT_ONCE;
                    sink(&Record::Message(ReadRow { row, read_by }))?;
                    while is_full {
                        let readers = next_readers(&mut receipts, (seq, generation))?;
                        is_full = readers.len() == READERS_AT_ONCE;
                        if !readers.is_empty() {
                            sink(&Record::Readers { room: room.clone(), seq, generation, readers })?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// How a room of a file stands to what is here.
    pub(in crate::store) fn standing(&self, room: &RoomFacts) -> Result<Standing, String> {
        let here = facts(&self.tables, &room.room).map_err(unreadable)?;
        Ok(if here == Facts::default() {
            Standing::Absent
        } else if (here.generation, here.owner, &here.bases) == (room.generation, room.owner, &room.bases) {
            Standing::Same
        } else {
            Standing::Other { generation: here.generation }
        })
    }

    /// From here on the directory is not whole, until [`Offline::finish`].
    pub(in crate::store) fn begin(&mut self) -> Result<(), String> {
        self.directory.mark_import(true).map_err(|error| error.to_string())
    }

    /// Writes records; what is there already stays. A room's facts come before its messages.
    pub(in crate::store) fn put(&mut self, records: &[Record]) -> Result<(), String> {
        self.wait_for_space()?;
        let mut group = Group::new(&self.tables, None);
        for record in records {
            put_record(&self.tables, &mut group, record)?;
        }
        let batch = group.batch;
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(|error| self.not_written(&error.to_string()))
    }

    /// All is written: on disk, and a node may start.
    pub(in crate::store) fn finish(&mut self) -> Result<(), String> {
        self.tables.database.persist(PersistMode::SyncAll).map_err(|error| self.not_written(&error.to_string()))?;
        self.directory.mark_import(false).map_err(|error| error.to_string())
    }

    fn not_written(&self, error: &str) -> String {
        format!("{} cannot be written: {error}", self.place())
    }

    /// Waits while fjall is behind with its files, and gives up before the disk is full.
    fn wait_for_space(&self) -> Result<(), String> {
        let reserve = self.config.reserve_bytes;
        let deadline = Instant::now() + CONGESTION_MAX;
        loop {
            match self.directory.free_bytes() {
                Ok(free) if free < reserve => {
                    return Err(format!(
                        "the disk of {} is full: {} MiB free, {} MiB wanted (store.reserve_bytes); make room and import again",
                        self.place(),
                        free >> 20,
                        reserve >> 20
                    ));
                }
                _ => {}
            }
            if !self.tables.congested() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.not_written("the disk is too slow to write out what was stored"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The figures of `roomwire store stat`.
    pub(in crate::store) fn stat(&self, ask: &StatAsk<'_>) -> Result<Stat, String> {
        let mut stat = Stat::new("embedded", self.place(), ask);
        for guard in self.tables.rooms.iter() {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            let room = layout::room_of(&key).ok_or_else(|| unreadable("a key of the table `rooms`"))?;
            if (ask.wants)(room) {
                let facts = layout::decode_facts(&value).map_err(unreadable)?;
                stat.add(self.stat_room(&RoomId::new(room), &facts, ask.exact)?);
            }
        }
        stat.bytes = self.tables.database.disk_space().map_err(unreadable)?;
        Ok(stat)
    }

    fn stat_room(&self, room: &RoomId, facts: &Facts, exact: bool) -> Result<RoomStat, String> {
        let prefix = layout::room_prefix(room);
        let first = first_row(room, self.tables.messages.prefix(&prefix))?;
        let last = first_row(room, self.tables.messages.prefix(&prefix).rev())?;
        let messages = match (&first, &last) {
            (Some(first), Some(last)) if !exact => Messages::Estimated(last.seq - first.seq + 1),
            (Some(_), Some(_)) => {
                let mut count = 0;
                for guard in self.tables.messages.prefix(&prefix) {
                    let (_, value) = guard.into_inner().map_err(unreadable)?;
                    count += u64::from(!layout::is_void(&value));
                }
                Messages::Exact(count)
            }
            _ => Messages::Exact(0),
        };
        let end = |row: Option<Row>| row.map(|row| (row.seq, row.timestamp));
        Ok(RoomStat { room: room.clone(), generation: facts.generation, first: end(first), last: end(last), messages })
    }
}

/// The first message of a walk over a room's rows.
fn first_row(room: &RoomId, guards: impl Iterator<Item = Guard>) -> Result<Option<Row>, String> {
    for guard in guards {
        let (key, value) = guard.into_inner().map_err(unreadable)?;
        let (seq, generation, _) = layout::place(&key).ok_or_else(|| unreadable("a key of the table `messages`"))?;
        if let Stored::Message(row) = layout::decode_row(room, seq, generation, &value).map_err(unreadable)? {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// A message's (seq, gen) and one who read it.
type Receipt = ((u64, u64), Box<str>);
type ReceiptOf = fn(Guard) -> Result<Receipt, String>;

fn receipt(guard: Guard) -> Result<Receipt, String> {
    let key = guard.key().map_err(unreadable)?;
    let (seq, generation, user) = layout::place(&key).ok_or_else(|| unreadable("a key of the table `receipts`"))?;
    Ok(((seq, generation), std::str::from_utf8(user).map_err(unreadable)?.into()))
}

/// The next readers of the message at a place, from a walk over receipts; receipts of messages before it are passed over.
fn next_readers(
    receipts: &mut Peekable<impl Iterator<Item = Result<Receipt, String>>>,
    place: (u64, u64),
) -> Result<Vec<Box<str>>, String> {
    let mut readers = Vec::new();
    while readers.len() < READERS_AT_ONCE
        && let Some(receipt) = receipts.next_if(|receipt| receipt.as_ref().map_or(true, |(of, _)| *of <= place))
    {
        let (of, reader) = receipt?;
        if of == place {
            readers.push(reader);
        }
    }
    Ok(readers)
}

fn put_record(tables: &Tables, group: &mut Group<'_>, record: &Record) -> Result<(), String> {
    match record {
        Record::Room(room) => {
            let mut facts = group.facts(&room.room).map_err(unreadable)?;
            facts.oldest = facts.oldest.max(room.oldest);
            let RoomFacts { generation, owner, ref bases, .. } = *room;
            group.put_facts(&room.room, Facts { generation, owner, bases: bases.clone(), ..facts });
        }
        Record::Message(read) => {
            let row = &read.row;
            let place = layout::row_key(&row.room, row.seq, row.generation);
            let there = tables.messages.get(place).map_err(unreadable)?;
            if there.is_some_and(|value| !layout::is_void(&value) && *value != *layout::encode_row(row)) {
                let (seq, room) = (row.seq, &*row.room);
                return Err(format!("another message stands at seq {seq} of room {room}: import into an empty store"));
            }
            group.append(row).map_err(unreadable)?;
            for reader in &read.read_by {
                group.put_reader(&row.room, (row.seq, row.generation), reader);
            }
        }
        Record::Readers { room, seq, generation, readers } => {
            for reader in readers {
                group.put_reader(room, (*seq, *generation), reader);
            }
        }
        Record::Void { room, seq, generation } => group.put_void(room, *seq, *generation),
        Record::Header(_) | Record::End(_) => {}
    }
    Ok(())
}

fn unreadable(error: impl std::fmt::Display) -> String {
    format!("the store cannot be read: {error}")
}
