//! What systemd hears of a node (sd_notify(3)): that it is ready, how it does, that it turns, that it stops. Without
//! systemd, that is without `NOTIFY_SOCKET`, nothing is said.
//!
//! Called by boot's main thread, between two looks for signals; it never blocks and never fails the node.

use crate::bridge::Vitals;
use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// How often the status line is told anew, if it changed.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// By how much more than the drain still needs the stop is extended each time.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The service manager, as a node sees it.
#[derive(Debug)]
pub struct Manager {
    listens: bool,
    /// How often the watchdog wants to be fed: a third of `WatchdogSec=`.
    feed_every: Option<Duration>,
    fed: Instant,
    told: Instant,
    status: String,
}

impl Manager {
    /// Looks whether systemd started this process, and with a watchdog.
    #[must_use]
    pub fn of_environment() -> Manager {
        let now = Instant::now();
        Manager {
            listens: std::env::var_os("NOTIFY_SOCKET").is_some(),
            feed_every: sd_notify::watchdog_enabled().map(|timeout| timeout / 3),
            fed: now,
            told: now,
            status: String::new(),
        }
    }

    /// The node serves.
    pub fn ready(&mut self, shards: u16) {
        self.status = status(0, shards, "serving");
        self.tell(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
    }

    /// Feeds the watchdog if the bridge and every shard turn, and keeps the status line fresh.
    pub fn look(&mut self, vitals: &Vitals, shards: u16, is_draining: bool) {
        if !self.listens {
            return;
        }
        let turns = vitals.turns();
        if turns && self.feed_every.is_some_and(|every| self.fed.elapsed() >= every) {
            self.fed = Instant::now();
            self.tell(&[NotifyState::Watchdog]);
        }
        if self.told.elapsed() < STATUS_EVERY {
            return;
        }
        self.told = Instant::now();
        let what = match (is_draining, turns) {
            (true, _) => "draining",
            (false, true) => "serving",
            (false, false) => "a shard does not turn",
        };
        let status = status(vitals.connections(), shards, what);
        if status != self.status {
            self.status = status;
            self.tell(&[NotifyState::Status(&self.status)]);
        }
    }

    /// The node stops, and may take so long.
    pub fn stopping(&self, at_most: Duration) {
        let wait_us = u32::try_from((at_most + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(wait_us)]);
    }

    /// A reload was asked for: systemd waits for [`Manager::reloaded`] (`ExecReload=` sends the signal).
    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// The reload is over; `refused` is why nothing has changed. The status line says it until the next look.
    pub fn reloaded(&mut self, refused: Option<&str>) {
        self.told = Instant::now();
        self.status = match refused {
            None => "configuration reloaded".to_owned(),
            Some(why) => format!("reload refused, serving as before: {why}"),
        };
        self.tell(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::debug!(%error, "systemd was not told");
        }
    }
}

fn status(connections: u64, shards: u16, what: &str) -> String {
    format!("{what}: {connections} connections on {shards} shard{}", if shards == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_says_what_an_operator_looks_for() {
        assert_eq!(status(12, 1, "serving"), "serving: 12 connections on 1 shard");
        assert_eq!(status(500_000, 16, "draining"), "draining: 500000 connections on 16 shards");
    }
}
