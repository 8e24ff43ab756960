//! Looks at fjall's newest journal file before the database is opened, and cuts its end off where it must not count.
//!
//! Two cases. A write that a power loss tore: fjall 3.1 drops a last batch that is cut short, but refuses to open (or
//! trips over an assertion) when the batch has its full length and is wrong inside; and it silently drops everything
//! behind the first entry that it cannot read, acked or not. And a batch whose commit failed in this process: the kernel
//! may show its bytes although they never reached the disk, so the batch is cut before the database is opened again, and
//! its rows have to be written again.
//!
//! The format is fjall's `journal/entry.rs`: Start (1) count u32 seqno u64; Item (2) type u8, compression, keyspace u64,
//! key length u16, value length u32, length on disk u32, key, value; Clear (4) keyspace u64; End (3) checksum u64,
//! magic. Numbers are little endian; the checksum is XXH3-64 over the items and clears as they stand in the file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8] = b"FJL\x03";

/// What a look at a journal file found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    /// Start and seqno of each sound batch.
    batches: Vec<(usize, u64)>,
    /// Where the first unsound batch begins: the end of the sound part.
    sound_end: usize,
    /// Whether a whole batch follows the unsound one.
    more_behind: bool,
}

/// The state of the newest journal, after what could be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mended {
    /// Nothing had to be done.
    Sound,
    /// A torn last batch was cut off.
    Cut,
    /// Whole batches follow the damage: acked messages would be lost, so a person has to decide.
    Damaged,
}

/// Cuts a torn last batch. With `all`, also whole batches behind it: between two fsyncs the kernel writes pages in any
/// order, so that they say nothing about what stands before them.
pub(super) fn mend(database: &Path, all: bool) -> io::Result<Mended> {
    let Some(path) = newest(database)? else { return Ok(Mended::Sound) };
    let bytes = read(&path)?;
    let survey = survey(&bytes);
    if survey.sound_end >= bytes.len() {
        return Ok(Mended::Sound);
    }
    if survey.more_behind && !all {
        return Ok(Mended::Damaged);
    }
    cut(&path, survey.sound_end)?;
    Ok(Mended::Cut)
}

/// Cuts every batch of the newest journal whose seqno is `from` or above. Whether there was one.
pub(super) fn cut_from(database: &Path, from: u64) -> io::Result<bool> {
    let Some(path) = newest(database)? else { return Ok(false) };
    let bytes = read(&path)?;
    let survey = survey(&bytes);
    let first = survey.batches.iter().find(|(_, seqno)| *seqno >= from).map(|(start, _)| *start);
    // Behind the sound batches lies what the failed write got out, or preallocated zeros.
    cut(&path, first.unwrap_or(survey.sound_end))?;
    Ok(first.is_some())
}

/// A file's bytes without the zeros at its end: fjall makes each journal 64 MiB large before it writes. A sound batch ends
/// with a byte that is not zero.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut bytes = std::fs::read(path)?;
    while bytes.last_chunk::<4096>() == Some(&ZEROS) {
        bytes.truncate(bytes.len() - ZEROS.len());
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn cut(path: &Path, end: usize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end as u64)?;
    file.sync_all()?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// The journal file with the highest number.
fn newest(database: &Path) -> io::Result<Option<PathBuf>> {
    let mut best: Option<(u64, PathBuf)> = None;
    let entries = match std::fs::read_dir(database) {
        Ok(entries) => entries,
        // A first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else { continue };
        if best.as_ref().is_none_or(|(highest, _)| number > *highest) {
            best = Some((number, path));
        }
    }
    Ok(best.map(|(_, path)| path))
}

fn survey(bytes: &[u8]) -> Survey {
    let mut survey = Survey::default();
    while let Some((seqno, end)) = sound_batch(bytes, survey.sound_end) {
        survey.batches.push((survey.sound_end, seqno));
        survey.sound_end = end;
    }
    // Batches touch: one that follows the unsound one begins behind a trailer.
    let behind = bytes.get(survey.sound_end..).unwrap_or_default();
    survey.more_behind = behind
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .any(|(at, _)| sound_batch(bytes, survey.sound_end + at + MAGIC.len()).is_some());
    survey
}

/// The seqno and the end of the batch at `start`, if it is whole and its checksum right.
fn sound_batch(bytes: &[u8], start: usize) -> Option<(u64, usize)> {
    let mut cursor = Cursor { bytes, at: start };
    if cursor.byte()? != 1 {
        return None;
    }
    let (mut left, seqno) = (cursor.u32()?, cursor.u64()?);
    let mut checksum = Xxh3::new();
    loop {
        let entry = cursor.at;
        match cursor.byte()? {
            2 if left > 0 => {
                cursor.skip_item()?;
                checksum.update(bytes.get(entry..cursor.at)?);
                left -= 1;
            }
            4 if left > 0 => {
                cursor.skip(8)?;
                checksum.update(bytes.get(entry..cursor.at)?);
                left -= 1;
            }
            3 if left == 0 => {
                let whole = cursor.u64()? == checksum.digest() && cursor.take(MAGIC.len())? == MAGIC;
                return whole.then_some((seqno, cursor.at));
            }
            _ => return None,
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Everything of an item behind its tag.
    fn skip_item(&mut self) -> Option<()> {
        self.skip(2)?; // type, compression
        self.skip(8)?; // keyspace
        let key = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        self.skip(4)?; // the value's length when expanded
        let value = self.u32()?;
        self.skip(usize::from(key))?;
        self.skip(usize::try_from(value).ok()?)
    }
}
