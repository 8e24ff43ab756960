//! Log lines: fields of the journal under systemd, else on standard error, pretty on a terminal and JSON elsewhere. Nothing
//! that is logged anywhere holds a token or a secret: those types do not print.

use crate::config::types::{Log, LogFormat};
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::panic::PanicHookInfo;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// What is logged, to be changed while the process runs.
#[derive(Clone, Debug)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Another `log.level`, from now on.
    ///
    /// # Errors
    /// It does not parse.
    pub fn set(&self, level: &str) -> Result<(), String> {
        self.0.reload(filter(level)?).map_err(|error| format!("`log.level`: {error}"))
    }
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(with_quiet_store(level)).map_err(|error| format!("`log.level`: {error}"))
}

/// Starts logging, once per process.
///
/// # Errors
/// The filter does not parse, or logging was started before.
pub fn start(log: &Log) -> Result<Filter, String> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = tracing_subscriber::registry().with(filter);
    let started = |result: Result<(), _>| {
        result.map_err(|error: tracing_subscriber::util::TryInitError| format!("logging: {error}"))
    };
    // A journal that cannot be reached still reads standard error.
    if log.format == LogFormat::Auto
        && stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        return started(lines.with(journal.with_field_prefix(None)).try_init()).map(|()| Filter(handle));
    }
    let pretty = match log.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    started(if pretty {
        lines.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init()
    } else {
        lines.with(layer.json().flatten_event(true).with_current_span(false).with_span_list(false)).try_init()
    })
    .map(|()| Filter(handle))
}

/// Whether standard error is the journal's own stream, as systemd says it (systemd.exec(5), `JOURNAL_STREAM`): then
/// fields go there as fields.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(stat) = std::fs::File::from(stderr).metadata() else { return false };
    stream == format!("{}:{}", stat.dev(), stat.ino())
}

/// At `info` the store's library tells of each file that it makes. A filter that names it comes later and wins.
fn with_quiet_store(level: &str) -> String {
    let loud = !matches!(level.trim(), "off" | "error" | "warn");
    if loud { format!("fjall=warn,lsm_tree=warn,{level}") } else { level.to_owned() }
}

/// Makes a panic of any thread end the process with one line: a half-dead node that still owns a listener would swallow
/// its share of clients, while after a restart they resume.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no message");
        let text = text.replace('\n', " ");
        eprintln!(
            "roomwire: panic in thread {} at {place}: {text}. This is a bug: please report it.",
            thread.name().unwrap_or("?")
        );
        std::process::abort();
    }));
}
