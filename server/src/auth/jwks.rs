//! The key set in use: read at the start and at each reload, and from an address again and again by a thread of its own.
//!
//! Shards read it ([`Jwks::keys`]) and say that a token named a key that it lacks ([`Jwks::ask`]); neither waits for
//! anything. What fails leaves the last good set in use. Who is connected stays so, whatever becomes of the keys.

use super::keys::KeySet;
use super::pace::Pace;
use super::source::{Found, Reader, Source};
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::Instant;

/// Whether there may be no set yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A node starts: an address that does not answer will later, and until then nobody with such a token gets in.
    Anyway,
    /// A node runs: what it has is better than nothing.
    WithKeys,
}

/// The set, where it comes from, and how that goes.
pub struct Jwks {
    source: Source,
    keys: ArcSwap<KeySet>,
    /// Why the last fetch failed, until one succeeds.
    trouble: ArcSwapOption<String>,
    totals: Arc<Totals>,
    /// A token named a key that the set lacks.
    asked: AtomicBool,
    /// The operator wants it fetched now.
    hurried: AtomicBool,
    /// Who fetches; nobody for a file.
    thread: OnceLock<Thread>,
}

/// Counted over reloads.
#[derive(Debug, Default)]
struct Totals {
    read: AtomicU64,
    unchanged: AtomicU64,
    failed: AtomicU64,
    unknown_kids: AtomicU64,
}

/// How it goes with the key set; all 0 without `auth.jwks`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is a metric `roomwire_auth_jwks_<name>`; docs/operations.md explains them")]
pub struct KeyFigures {
    pub keys_now: u64,
    pub failing_now: bool,
    pub read_total: u64,
    pub unchanged_total: u64,
    pub failed_total: u64,
    pub unknown_kids_total: u64,
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks").field("source", &self.source.to_string()).field("keys", &*self.keys.load()).finish()
    }
}

impl Jwks {
    /// Reads the set, and goes on fetching it from an address.
    ///
    /// # Errors
    /// It cannot be read, in one line; from an address only with [`Start::WithKeys`].
    pub fn start(source: Source, start: Start) -> Result<Arc<Jwks>, String> {
        Jwks::begin(source, start, Arc::default())
    }

    /// The set after a reload: a file is read again, an address that stays is fetched in a moment, another one now.
    ///
    /// # Errors
    /// It cannot be read, in one line. The present one is as it was.
    pub fn again(now: Option<&Arc<Jwks>>, source: Option<Source>) -> Result<Option<Arc<Jwks>>, String> {
        let Some(source) = source else { return Ok(None) };
        match now {
            Some(now) if now.source == source && now.thread.get().is_some() => {
                now.hurried.store(true, Ordering::Relaxed);
                now.wake();
                Ok(Some(Arc::clone(now)))
            }
            _ => {
                let totals = now.map(|now| Arc::clone(&now.totals)).unwrap_or_default();
                Jwks::begin(source, Start::WithKeys, totals).map(Some)
            }
        }
    }

    fn begin(source: Source, start: Start, totals: Arc<Totals>) -> Result<Arc<Jwks>, String> {
        let line = |why: String| format!("`auth.jwks`: {why}");
        let mut reader = Reader::new(source.clone()).map_err(line)?;
        let is_file = matches!(source, Source::File(_));
        let jwks = Arc::new(Jwks {
            source,
            keys: ArcSwap::default(),
            trouble: ArcSwapOption::empty(),
            totals,
            asked: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let mut pace = Pace::new(Instant::now());
        match reader.read() {
            Err(why) if is_file || start == Start::WithKeys => return Err(line(why)),
            outcome => jwks.take(outcome, &mut pace),
        }
        if !is_file {
            let theirs = Arc::downgrade(&jwks);
            let spawned = thread::Builder::new().name("jwks".to_owned()).spawn(move || follow(&theirs, reader, pace));
            let handle = spawned.map_err(|error| line(format!("cannot start a thread: {error}")))?;
            // Nobody else sets it.
            let _ = jwks.thread.set(handle.thread().clone());
        }
        Ok(jwks)
    }

    /// The set of now.
    pub(super) fn keys(&self) -> Guard<Arc<KeySet>> {
        self.keys.load()
    }

    /// A token named a key that the set lacks. The first time, until it was fetched, this rings the thread.
    pub(super) fn ask(&self) {
        self.totals.unknown_kids.fetch_add(1, Ordering::Relaxed);
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Why nobody with a token of the issuer's gets in; `None` while there are keys.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if !self.keys.load().is_empty() {
            return None;
        }
        Some(self.trouble.load().as_deref().cloned().unwrap_or_else(|| format!("{}: no keys yet", self.source)))
    }

    /// How it goes.
    #[must_use]
    pub fn figures(&self) -> KeyFigures {
        let count = |total: &AtomicU64| total.load(Ordering::Relaxed);
        KeyFigures {
            keys_now: self.keys.load().len() as u64,
            failing_now: self.trouble.load().is_some(),
            read_total: count(&self.totals.read),
            unchanged_total: count(&self.totals.unchanged),
            failed_total: count(&self.totals.failed),
            unknown_kids_total: count(&self.totals.unknown_kids),
        }
    }

    fn take(&self, outcome: Result<Found, String>, pace: &mut Pace) {
        let now = Instant::now();
        let fresh_for = match outcome {
            Err(why) => {
                self.totals.failed.fetch_add(1, Ordering::Relaxed);
                pace.failed(now);
                if self.trouble.swap(Some(Arc::new(why.clone()))).is_none() {
                    tracing::warn!(%why, keys = self.keys.load().len(), "the key set cannot be read; what is there stays in use");
                } else {
                    tracing::debug!(%why, "the key set cannot be read");
                }
                return;
            }
            Ok(Found::Set(set, fresh_for)) => {
                self.totals.read.fetch_add(1, Ordering::Relaxed);
                self.replace(set);
                fresh_for
            }
            Ok(Found::Unchanged(fresh_for)) => {
                self.totals.unchanged.fetch_add(1, Ordering::Relaxed);
                fresh_for
            }
        };
        pace.fetched(now, fresh_for);
        if self.trouble.swap(None).is_some() {
            tracing::info!(from = %self.source, "the key set can be read again");
        }
    }

    fn replace(&self, set: KeySet) {
        let new = Arc::new(set);
        let old = self.keys.swap(Arc::clone(&new));
        if old.skipped() != new.skipped() {
            for skipped in new.skipped() {
                tracing::warn!(from = %self.source, key = skipped, "a key of the set is not used");
            }
        }
        if old.names() != new.names() {
            tracing::info!(from = %self.source, keys = ?new.names(), "keys for tokens");
        }
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        // The thread finds nobody to fetch for, and ends.
        self.wake();
    }
}

/// Fetches when it is due, for as long as somebody uses the set.
fn follow(jwks: &Weak<Jwks>, mut reader: Reader, mut pace: Pace) {
    while let Some(jwks) = jwks.upgrade() {
        let asked = jwks.asked.load(Ordering::Relaxed);
        let now = Instant::now();
        let due = pace.due(asked);
        if jwks.hurried.swap(false, Ordering::Relaxed) || due <= now {
            pace.begin(now, asked);
            jwks.take(reader.read(), &mut pace);
            // Who asked while it was fetched most likely asked for what has come.
            jwks.asked.store(false, Ordering::Relaxed);
        } else {
            drop(jwks);
            thread::park_timeout(due - now);
        }
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
