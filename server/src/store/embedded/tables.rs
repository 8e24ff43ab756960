//! The data directory and the database in it: lock, format version, open, open again.
//!
//! ```text
//! <data.dir>/roomwire.lock   held by flock; contains the pid of the holder
//! <data.dir>/format          "roomwire-store 1"
//! <data.dir>/messages/       fjall
//! <data.dir>/importing       there while an import runs, and after one that broke off
//! ```

use super::journal::{self, Mended};
use super::{EmbeddedConfig, Fsync, OpenError};
use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the directory's layout and of all keys and values.
const FORMAT: u32 = 1;
const FORMAT_NAME: &str = "roomwire-store";
/// The file that is there while the store is not whole.
pub(super) const IMPORTING: &str = "importing";
/// A memtable this large is written out as a file; each table may hold a few of them in memory.
const MEMTABLE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A file that compaction writes. It holds what it reads and writes of one in memory, on threads whose allocator keeps it
/// afterwards, so this bounds what the store takes for good.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// All journals together; they are read back at each start.
const JOURNAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// fjall stops the committing thread inside a commit at four sealed memtables, and for good if their writer has died of
/// a full disk. So we refuse before it comes to that: one commit seals at most one.
const SEALED_MEMTABLES_MAX: usize = 2;
/// The same for unmerged files of a table: fjall slows down at 20 and stops at 30.
const UNMERGED_FILES_MAX: usize = 26;
/// fjall's workers flush and merge for milliseconds in one piece. On a shard's core, as important as the shard, they would be
/// the tail of its latency.
const WORKERS_NICE: libc::c_int = 10;

/// The open database. Cheap to clone; it is closed when the last clone is gone.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) database: Database,
    /// Rows and void markers.
    pub(super) messages: Keyspace,
    /// Who has read what.
    pub(super) receipts: Keyspace,
    /// Each room's facts.
    pub(super) rooms: Keyspace,
}

impl Tables {
    /// Whether a commit could be stopped inside fjall for long.
    pub(super) fn congested(&self) -> bool {
        [&self.messages, &self.receipts, &self.rooms].iter().any(|table| {
            table.sealed_memtable_count() > SEALED_MEMTABLES_MAX || table.l0_table_count() > UNMERGED_FILES_MAX
        })
    }
}

/// The data directory, locked for this process.
pub(super) struct DataDir {
    path: PathBuf,
    /// Unlocked when closed.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, locks it, checks its format.
    pub(super) fn claim(path: &Path) -> Result<DataDir, OpenError> {
        let at = |error: io::Error| OpenError::Io { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(at)?;
        let lock = claim_lock(path)?;
        check_format(path)?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }

    /// Whether no import is under way, or broke off.
    pub(super) fn check_whole(&self) -> Result<(), OpenError> {
        match self.path.join(IMPORTING).exists() {
            true => Err(OpenError::HalfImported { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    /// Notes, so that it outlives a crash, that the store is not whole, or that it is again.
    pub(super) fn mark_import(&self, begins: bool) -> Result<(), OpenError> {
        let path = self.path.join(IMPORTING);
        let mark = || {
            match begins {
                true => File::create(&path)?.sync_all()?,
                false => std::fs::remove_file(&path)?,
            }
            File::open(&self.path)?.sync_all()
        };
        mark().map_err(|error| self.io(error))
    }

    /// Where fjall lives.
    pub(super) fn database_path(&self) -> PathBuf {
        self.path.join("messages")
    }

    /// Bytes that an unprivileged process may still write here.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.path)
    }

    /// Opens the database, after a torn last write was cut off its journal.
    pub(super) fn open(&self, config: &EmbeddedConfig) -> Result<Tables, OpenError> {
        let path = self.database_path();
        match journal::mend(&path, config.fsync != Fsync::Always).map_err(|error| self.io(error))? {
            Mended::Sound => {}
            Mended::Cut => tracing::warn!("the store's last write was torn, by a power loss perhaps: removed it"),
            Mended::Damaged => {
                let error = "the newest journal is damaged before its end".to_owned();
                return Err(OpenError::Damaged { path, error });
            }
        }
        self.open_once(config).map_err(|error| self.database_error(error))
    }

    fn open_once(&self, config: &EmbeddedConfig) -> fjall::Result<Tables> {
        let builder = Database::builder(self.database_path())
            .cache_size(config.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            // Chat messages are short: compressing them one by one costs time and gains nothing.
            .journal_compression(fjall::CompressionType::None)
            // Two, so that a long compaction never stands before a flush.
            .worker_threads(2);
        // A thread is as nice as the one that started it, and an unprivileged one cannot become less nice again: so the
        // workers are started by a thread that has no other use.
        let opened = std::thread::scope(|scope| {
            let opener = scope.spawn(|| {
                // SAFETY: no memory is involved; on Linux only the calling thread changes. If it is refused, they stay as important.
                unsafe { libc::nice(WORKERS_NICE) };
                builder.open()
            });
            opener.join()
        });
        let database = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let options = || {
            let leveled = fjall::compaction::Leveled::default().with_table_target_size(FILE_BYTES_MAX);
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES_MAX)
                .compaction_strategy(Arc::new(leveled))
                // From the third level on nothing is pinned, and an index in one piece is half a megabyte a file: a read
                // of one old row would bring all of it into the cache.
                .index_block_partitioning_policy(PartitioningPolicy::new([false, false, true]))
                .filter_block_partitioning_policy(PartitioningPolicy::new([false, false, true]))
        };
        Ok(Tables {
            messages: database.keyspace("messages", options)?,
            receipts: database.keyspace("receipts", options)?,
            rooms: database.keyspace("rooms", options)?,
            database,
        })
    }

    fn io(&self, error: io::Error) -> OpenError {
        OpenError::Io { path: self.path.clone(), error }
    }

    fn database_error(&self, error: fjall::Error) -> OpenError {
        match error {
            fjall::Error::Io(error) => self.io(error),
            other => match file_system_error(&other) {
                Some(error) => self.io(error),
                None => OpenError::Damaged { path: self.database_path(), error: format!("{other:?}") },
            },
        }
    }
}

/// What the file system said below the database's own words: a full disk is no damage.
fn file_system_error(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let code = std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>())?
        .raw_os_error()?;
    Some(io::Error::from_raw_os_error(code))
}

fn claim_lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("roomwire.lock");
    let at = |error: io::Error| OpenError::Io { path: path.clone(), error };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // A holder that has just started may not have written its pid yet.
            let _ = file.take(32).read_to_string(&mut holder);
            return Err(OpenError::InUse { path: directory.to_owned(), pid: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(at(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(at)?;
    writeln!(file, "{}", std::process::id()).map_err(at)?;
    Ok(file)
}

fn check_format(directory: &Path) -> Result<(), OpenError> {
    let path = directory.join("format");
    let at = |error: io::Error| OpenError::Io { path: path.clone(), error };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let version = text.trim().strip_prefix(FORMAT_NAME).and_then(|version| version.trim().parse().ok());
            match version {
                Some(version) if version > FORMAT => {
                    Err(OpenError::Newer { path: directory.to_owned(), version, known: FORMAT })
                }
                Some(_) => Ok(()),
                None => Err(OpenError::NotOurs { path: directory.to_owned() }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if directory.join("messages").exists() {
                return Err(OpenError::NotOurs { path: directory.to_owned() });
            }
            // Written aside and renamed: a crash leaves either no file or a whole one.
            let draft = directory.join("format.new");
            let write = || {
                let mut file = File::create(&draft)?;
                writeln!(file, "{FORMAT_NAME} {FORMAT}")?;
                file.sync_all()?;
                std::fs::rename(&draft, &path)?;
                File::open(directory)?.sync_all()
            };
            write().map_err(at)
        }
        Err(error) => Err(at(error)),
    }
}

/// What `statvfs(3)` says is free for us.
fn free_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string that outlives the call, and `answer` is writable memory of the type that it fills.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it has filled `answer`.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_damage_however_deep_it_is_said() {
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let deep = fjall::Error::Storage(fjall::LsmError::Io(full()));
        assert_eq!(file_system_error(&deep).and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
        let text = OpenError::Io { path: PathBuf::from("/data"), error: full() }.to_string();
        assert!(text.starts_with("data directory /data: No space left on device"), "{text}");
        assert!(text.ends_with("make room there, or set data.dir to another disk"), "{text}");

        // What is missing at the end of a file is damage.
        let short = fjall::Error::Storage(fjall::LsmError::Io(io::ErrorKind::UnexpectedEof.into()));
        assert!(file_system_error(&short).is_none() && file_system_error(&fjall::Error::Unrecoverable).is_none());
    }

    #[test]
    fn only_the_databases_workers_are_less_important() {
        let path = std::env::temp_dir().join(format!("roomwire-tables-nice-{}", std::process::id()));
        let config = EmbeddedConfig::new(path.clone());
        let tables = DataDir::claim(&path).and_then(|dir| dir.open(&config)).expect("opens");
        // Field 19 of proc_pid_stat(5), counted from behind the name.
        let niceness = |stat: &str| -> libc::c_int {
            stat.rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(16))
                .expect("a line of stat")
                .parse()
                .expect("a number")
        };
        let own = niceness(&std::fs::read_to_string("/proc/thread-self/stat").expect("there"));
        let threads = std::fs::read_dir("/proc/self/task").expect("there").flatten();
        let workers: Vec<_> = threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
            .filter(|stat| stat.contains("(fjall:worker)"))
            .map(|stat| niceness(&stat))
            .collect();
        assert!(
            workers.len() >= 2 && workers.iter().all(|&nice| nice == (own + WORKERS_NICE).min(19)),
            "{own}: {workers:?}"
        );
        drop(tables);
        std::fs::remove_dir_all(path).expect("ours");
    }
}
