//! `roomwire store export`, `import` and `stat`: files, pipes and progress; the work is in `crate::store::transfer`.

use super::super::{Failure, print};
use crate::boot;
use crate::config::Settings;
use crate::store::transfer::format::Totals;
use crate::store::transfer::import::{check, import_file, import_stream};
use crate::store::transfer::stat::{StatAsk, grouped};
use crate::store::transfer::{self, Offline};
use clap::{Args, ValueEnum};
use roomwire_engine::names::matches_glob;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that are read or written at once.
const BUFFER_BYTES: usize = 256 * 1024;
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(in crate::cli) struct WhichArgs {
    /// Which store; by default the one that the configuration names (store.kind)
    #[arg(long, value_name = "KIND")]
    store: Option<StoreName>,
    /// Only rooms of this name; * stands for any run of characters
    #[arg(long, value_name = "GLOB", default_value = "*")]
    room: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StoreName {
    /// The data directory (data.dir)
    Embedded,
    /// Cassandra or ScyllaDB (store.cql.*)
    Cql,
}

impl WhichArgs {
    pub(in crate::cli) fn kind(&self) -> Option<&'static str> {
        self.store.map(|store| match store {
            StoreName::Embedded => "embedded",
            StoreName::Cql => "cql",
        })
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    pub(in crate::cli) which: WhichArgs,
    /// The file to write; by default standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    #[command(flatten)]
    pub(in crate::cli) which: WhichArgs,
    /// Look at every line and change nothing; no store is opened
    #[arg(long)]
    check: bool,
    /// The export; by default standard input. A file is looked through before anything is written, a pipe cannot be
    #[arg(value_name = "FILE")]
    input: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatArgs {
    #[command(flatten)]
    pub(in crate::cli) which: WhichArgs,
    /// Count every message, however long that takes
    #[arg(long)]
    exact: bool,
    /// List so many of the largest rooms
    #[arg(long, value_name = "N", default_value_t = 10)]
    rooms: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn export(settings: &Settings, args: &ExportArgs) -> Result<(), Failure> {
    let mut progress = Progress::new("exported");
    let mut run = |out: &mut dyn Write| {
        let mut store = Offline::open(boot::store_config(settings))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
        transfer::export(&mut store, &args.which.room, &mut out, &mut |totals| progress.tell(totals))
    };
    let totals = match &args.output {
        Some(path) => to_file(path, &mut run),
        None => run(&mut io::stdout().lock()),
    };
    progress.end();
    let totals = totals.map_err(Failure::runtime)?;
    eprintln!("exported {}", counted(&totals));
    Ok(())
}

/// Writes a file that has its name only once it is whole.
fn to_file(path: &Path, run: &mut dyn FnMut(&mut dyn Write) -> Result<Totals, String>) -> Result<Totals, String> {
    let at = |error: io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        return Err(format!("{} is there already: choose another name, or remove it", path.display()));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let mut file = File::create(&draft).map_err(at)?;
    let done = run(&mut file).and_then(|totals| {
        file.sync_all().and_then(|()| std::fs::rename(&draft, path)).map_err(at)?;
        Ok(totals)
    });
    if done.is_err() {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&draft);
    }
    done
}

pub(super) fn import(settings: &Settings, args: &ImportArgs) -> Result<(), Failure> {
    let mut progress = Progress::new(if args.check { "checked" } else { "imported" });
    let totals = import_from(settings, args, &mut progress);
    progress.end();
    let totals = totals.map_err(Failure::runtime)?;
    print(&match args.check {
        true => format!("{}: every line is good, and the end is there", counted(&totals)),
        false => format!("imported {}", counted(&totals)),
    });
    Ok(())
}

fn import_from(settings: &Settings, args: &ImportArgs, progress: &mut Progress) -> Result<Totals, String> {
    let rooms = &args.which.room;
    let mut tell = |totals: &Totals| progress.tell(totals);
    let open = || Offline::open_to_write(boot::store_config(settings));
    let Some(path) = args.input.as_deref().filter(|path| *path != Path::new("-")) else {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
        return match args.check {
            true => check(None, rooms, &mut input, &mut tell),
            false => import_stream(&mut open()?, rooms, &mut input, &mut tell),
        };
    };
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
    let done = match (args.check, is_file) {
        (true, _) => check(None, rooms, &mut input, &mut tell),
        (false, true) => import_file(&mut open()?, rooms, &mut input, &mut tell),
        (false, false) => import_stream(&mut open()?, rooms, &mut input, &mut tell),
    };
    done.map_err(|error| format!("{}: {error}", path.display()))
}

pub(super) fn stat(settings: &Settings, args: &StatArgs) -> Result<(), Failure> {
    let wants = |room: &str| matches_glob(&args.which.room, room);
    let ask = StatAsk { wants: &wants, exact: args.exact, rooms: args.rooms };
    let mut store = Offline::open(boot::store_config(settings)).map_err(Failure::runtime)?;
    let stat = store.stat(&ask).map_err(Failure::runtime)?;
    match args.json {
        true => print(&serde_json::to_string_pretty(&stat.json()).unwrap_or_default()),
        false => print(stat.text().trim_end()),
    }
    Ok(())
}

fn counted(totals: &Totals) -> String {
    let many = |count: u64, one: &str| format!("{} {one}{}", grouped(count), if count == 1 { "" } else { "s" });
    let Totals { rooms, messages, voids, receipts } = *totals;
    let (rooms, messages) = (many(rooms, "room"), many(messages, "message"));
    format!("{rooms}, {messages}, {}, {}", many(receipts, "receipt"), many(voids, "void"))
}

/// A line on standard error that shows how far it is, if people look at it.
struct Progress {
    verb: &'static str,
    is_watched: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new(verb: &'static str) -> Progress {
        Progress { verb, is_watched: io::stderr().is_terminal(), shown: None }
    }

    fn tell(&mut self, totals: &Totals) {
        if self.is_watched && self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_EVERY) {
            self.shown = Some(Instant::now());
            // \x1b[K clears what a longer line left.
            eprint!("\r{} {}\x1b[K", self.verb, counted(totals));
        }
    }

    fn end(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
