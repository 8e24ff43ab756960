//! An export's lines into a store: each is checked, and what is there already stays as it is.
//!
//! A file is read twice: before the first write every line, the end and all rooms in the target are looked at, so that a
//! bad file or a room that is there in another state changes nothing. A pipe can only be read once: what stops it leaves
//! a part, which the target remembers (no node starts on it) until the same rooms are imported to their end.

use super::format::{self, Record, RoomFacts, Totals};
use super::{Offline, Progress, Standing};
use roomwire_engine::names::matches_glob;
use std::io::{BufRead, Seek, SeekFrom};

/// A line of more bytes is no line of ours: a message's content is far smaller.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// So much is written together.
const CHUNK_RECORDS: usize = 1_000;
const CHUNK_BYTES: usize = 1024 * 1024;
/// Rooms whose state in the target is asked together.
const ROOMS_AT_ONCE: usize = 256;
/// Rooms named in one message.
const NAMED_MAX: usize = 10;

/// Imports a file that can be read twice; what it held, of the rooms whose name matches the glob.
///
/// # Errors
/// One line for the operator; where it was found before anything was written, it says so.
pub fn import_file(
    store: &mut Offline,
    rooms: &str,
    file: &mut (impl BufRead + Seek),
    progress: &mut Progress<'_>,
) -> Result<Totals, String> {
    check(Some(store), rooms, file, &mut |_| {}).map_err(|error| format!("{error}. Nothing was imported"))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| format!("the file cannot be read again: {error}"))?;
    import_stream(store, rooms, file, progress)
}

/// Imports from where lines come only once.
///
/// # Errors
/// One line for the operator.
pub fn import_stream(
    store: &mut Offline,
    rooms: &str,
    lines: &mut impl BufRead,
    progress: &mut Progress<'_>,
) -> Result<Totals, String> {
    let mut lines = Lines::new(lines, rooms);
    // Nothing is marked for a file that is none of ours.
    lines.header()?;
    store.begin()?;
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while let Some(record) = lines.next()? {
        bytes += record.bytes();
        chunk.push(record);
        if chunk.len() >= CHUNK_RECORDS || bytes >= CHUNK_BYTES {
            put(store, &chunk, &lines)?;
            progress(&lines.taken);
            chunk.clear();
            bytes = 0;
        }
    }
    put(store, &chunk, &lines)?;
    store.finish()?;
    Ok(lines.taken)
}

/// Looks at every line, and with a store also at the rooms that it has; writes nothing.
///
/// # Errors
/// The first bad line, or the rooms that cannot be imported.
pub fn check(
    mut store: Option<&mut Offline>,
    rooms: &str,
    lines: &mut impl BufRead,
    progress: &mut Progress<'_>,
) -> Result<Totals, String> {
    let mut lines = Lines::new(lines, rooms);
    lines.header()?;
    let mut waiting = Vec::new();
    let mut conflicts = Conflicts::default();
    while let Some(record) = lines.next()? {
        progress(&lines.taken);
        if let Record::Room(facts) = record {
            waiting.push(facts);
        }
        if waiting.len() >= ROOMS_AT_ONCE
            && let Some(store) = store.as_deref_mut()
        {
            conflicts.look(store, &waiting)?;
            waiting.clear();
        }
    }
    if let Some(store) = store {
        conflicts.look(store, &waiting)?;
    }
    conflicts.into_result()?;
    Ok(lines.taken)
}

fn put<R: BufRead>(store: &mut Offline, chunk: &[Record], lines: &Lines<'_, R>) -> Result<(), String> {
    let rooms: Vec<RoomFacts> = chunk
        .iter()
        .filter_map(|record| if let Record::Room(facts) = record { Some(facts.clone()) } else { None })
        .collect();
    let mut conflicts = Conflicts::default();
    let broke_off = |error: String| {
        let number = lines.number;
        format!(
            "{error}. The import broke off before line {number}: repeat it with the whole file, it goes on where it was"
        )
    };
    conflicts.look(store, &rooms).and_then(|()| conflicts.into_result()).map_err(broke_off)?;
    store.put(chunk).map_err(broke_off)
}

/// Rooms that the target has in another state.
#[derive(Default)]
struct Conflicts {
    named: Vec<String>,
    count: usize,
}

impl Conflicts {
    fn look(&mut self, store: &mut Offline, rooms: &[RoomFacts]) -> Result<(), String> {
        if rooms.is_empty() {
            return Ok(());
        }
        for (room, standing) in rooms.iter().zip(store.standings(rooms)?) {
            if let Standing::Other { generation } = standing {
                self.count += 1;
                if self.named.len() < NAMED_MAX {
                    let (name, file) = (&*room.room, room.generation);
                    self.named.push(format!("{name} (epoch {generation} there, {file} in the file)"));
                }
            }
        }
        Ok(())
    }

    fn into_result(self) -> Result<(), String> {
        if self.count == 0 {
            return Ok(());
        }
        let more = match self.count - self.named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(format!(
            "the target has rooms of the same names in another state, used since or of another origin: {}{more}; import into \
             an empty store, or choose other rooms with --room",
            self.named.join(", ")
        ))
    }
}

/// The lines of a file, one after the other, each checked against those before it.
struct Lines<'a, R> {
    input: &'a mut R,
    rooms: &'a str,
    number: u64,
    buffer: Vec<u8>,
    /// The room whose records come now, and whether it is wanted.
    room: Option<(RoomFacts, bool)>,
    /// All that came, and what of it was wanted.
    seen: Totals,
    taken: Totals,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(input: &'a mut R, rooms: &'a str) -> Lines<'a, R> {
        let (seen, taken) = (Totals::default(), Totals::default());
        Lines { input, rooms, number: 0, buffer: Vec::new(), room: None, seen, taken }
    }

    /// Reads the first line.
    fn header(&mut self) -> Result<(), String> {
        match self.read()? {
            Some(Record::Header(_)) => Ok(()),
            _ => {
                Err("line 1: this is no export of `roomwire store export`: it does not begin with its header"
                    .to_owned())
            }
        }
    }

    /// The next record of a wanted room; `None` behind the end.
    fn next(&mut self) -> Result<Option<Record>, String> {
        loop {
            let Some(record) = self.read()? else {
                return Err(format!("the file ends behind line {} without its end: it was cut short", self.number));
            };
            match &record {
                Record::End(totals) if *totals == self.seen => return self.behind_end(),
                Record::End(totals) => {
                    let seen = self.seen;
                    return Err(self.bad(&format!("the end counts {totals:?}, but before it came {seen:?}")));
                }
                Record::Room(facts) => self.room = Some((facts.clone(), matches_glob(self.rooms, &facts.room))),
                _ => self.belongs(&record).map_err(|why| self.bad(&why))?,
            }
            self.seen.add(&record);
            if self.room.as_ref().is_some_and(|(_, is_wanted)| *is_wanted) {
                self.taken.add(&record);
                return Ok(Some(record));
            }
        }
    }

    /// Whether a record may stand where it does.
    fn belongs(&self, record: &Record) -> Result<(), String> {
        let Some((facts, _)) = &self.room else { return Err("no room came before it".to_owned()) };
        let generation = match record {
            Record::Message(read) => read.row.generation,
            Record::Readers { generation, .. } | Record::Void { generation, .. } => *generation,
            Record::Header(_) | Record::Room(_) | Record::End(_) => return Err("a second header".to_owned()),
        };
        if record.room() != Some(&facts.room) {
            return Err(format!("it belongs to another room than {}, whose records stand here", &*facts.room));
        }
        if generation > facts.generation {
            return Err(format!("its epoch {generation} is above its room's, {}", facts.generation));
        }
        Ok(())
    }

    fn behind_end(&mut self) -> Result<Option<Record>, String> {
        match self.read()? {
            None => Ok(None),
            Some(_) => Err(self.bad("something follows the end: are these two files in one?")),
        }
    }

    /// The next line, whatever it is; `None` where the input ends.
    fn read(&mut self) -> Result<Option<Record>, String> {
        self.buffer.clear();
        let mut limited = std::io::Read::take(&mut *self.input, LINE_BYTES_MAX as u64 + 1);
        let bytes = limited
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| format!("line {} cannot be read: {error}", self.number + 1))?;
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        if bytes > LINE_BYTES_MAX {
            return Err(self.bad(&format!("it is longer than {} MiB", LINE_BYTES_MAX >> 20)));
        }
        let text = std::str::from_utf8(&self.buffer).map_err(|_| self.bad("it is not UTF-8"))?;
        format::parse(text.trim_end_matches(['\n', '\r'])).map(Some).map_err(|why| self.bad(&why))
    }

    fn bad(&self, why: &str) -> String {
        format!("line {}: {why}; the file was damaged or changed: export it again", self.number)
    }
}
