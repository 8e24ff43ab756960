//! SIGHUP: the configuration is read again, and the running node takes what may change.
//!
//! Called by boot's main thread. All or nothing: if anything is wrong with what was read, one line says it and the node
//! goes on as it was. Keys that only a start can change keep their values, and are named. It never logs a value, since
//! that may be a secret, and it never closes a connection.

use super::{authenticator, http_policy, secret};
use crate::auth::{Current, Jwks};
use crate::bridge::{BridgeHandle, ReloadFigures};
use crate::config::{Host, Layers, Problems, Settings, keys};
use crate::http::HttpPolicy;
use crate::logs::Filter;
use arc_swap::ArcSwap;
use roomwire_engine::limits::Reload;
use std::sync::Arc;
use std::time::Duration;

/// Reads the configuration from where it was read at the start.
pub type ReadAgain = Box<dyn Fn() -> Result<Layers, Problems>>;

/// What a reload reads, and what it changes.
pub(super) struct Live {
    read: ReadAgain,
    filter: Filter,
    settings: Settings,
    authenticator: Arc<Current>,
    jwks: Option<Arc<Jwks>>,
    http: Arc<ArcSwap<HttpPolicy>>,
    figures: ReloadFigures,
}

/// Keys whose values differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    reloaded: Vec<&'static str>,
    restart: Vec<&'static str>,
}

impl Live {
    pub(super) fn new(
        (read, filter): (ReadAgain, Filter),
        settings: Settings,
        (authenticator, jwks): (Arc<Current>, Option<Arc<Jwks>>),
        http: Arc<ArcSwap<HttpPolicy>>,
    ) -> Live {
        Live { read, filter, settings, authenticator, jwks, http, figures: ReloadFigures::default() }
    }

    /// `drain.secs` as it is now.
    pub(super) fn drain(&self) -> Duration {
        Duration::from_secs(u64::from(self.settings.config.drain.secs))
    }

    /// Whether another node may listen on the same port.
    pub(super) fn shares_port(&self) -> bool {
        self.settings.config.listen.share
    }

    /// Reads again and takes over what may change.
    ///
    /// # Errors
    /// What is wrong, one line each. Nothing has changed then.
    pub(super) fn reload(&mut self, bridge: &BridgeHandle) -> Result<(), Problems> {
        let outcome = self.take_over(bridge);
        match &outcome {
            Ok(()) => {
                self.figures.applied_total += 1;
                self.figures.refused_now = false;
            }
            Err(problems) => {
                self.figures.refused_total += 1;
                self.figures.refused_now = true;
                for problem in &problems.0 {
                    tracing::error!("the new configuration is refused, the old one stays: {problem}");
                }
            }
        }
        bridge.reloaded(self.figures);
        outcome
    }

    fn take_over(&mut self, bridge: &BridgeHandle) -> Result<(), Problems> {
        let (settings, changes) = merged(&self.settings, (self.read)()?)?;
        let secret = secret::of(&settings).map_err(|failure| Problems(vec![failure.message]))?;
        let jwks = Jwks::again(self.jwks.as_ref(), settings.jwks.clone()).map_err(|problem| Problems(vec![problem]))?;
        self.filter.set(&settings.config.log.level).map_err(|problem| Problems(vec![problem]))?;
        // Nothing below can fail.
        let config = &settings.config;
        self.authenticator.replace(authenticator(&settings, secret.as_ref(), jwks.as_ref()));
        self.http.store(Arc::new(http_policy(&settings, jwks.as_ref())));
        self.jwks = jwks;
        bridge.reload(Reload {
            limits: config.limits.to_engine(),
            allowed_origins: config.allowed_origins.0.clone().into(),
            reject_by_http: super::rejects_by_http(&settings),
        });
        self.figures.restart_keys_now = changes.restart.len() as u64;
        if !changes.restart.is_empty() {
            tracing::warn!(keys = changes.restart.join(", "), "these keys have changed and need a restart");
        }
        tracing::info!(changed = changes.reloaded.join(", "), "configuration reloaded");
        self.settings = settings;
        Ok(())
    }
}

/// The settings of a node that reads `new` while it runs: of keys that need a restart the values of now.
fn merged(now: &Settings, new: Layers) -> Result<(Settings, Changes), Problems> {
    let host = Host::read();
    // What a restart would find wrong is wrong now.
    let fresh = Settings::resolve(new.clone(), &host, now.dev)?;
    let mut changes = Changes::default();
    for key in keys::keys() {
        let value = |layers: &Layers| layers.get(&key.path).map(|entry| entry.value.clone());
        if value(&now.layers) != value(&fresh.layers) {
            if key.reloaded { &mut changes.reloaded } else { &mut changes.restart }.push(key.path.as_str());
        }
    }
    let settings = Settings::resolve(new.keeping(&now.layers, |key| !key.reloaded), &host, now.dev);
    let settings = settings.map_err(|Problems(lines)| {
        let because =
            |line| format!("{line} (with the values that {} have until a restart)", changes.restart.join(", "));
        Problems(lines.into_iter().map(because).collect())
    })?;
    Ok((settings, changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn layers(set: &[&str]) -> Layers {
        let secret = "auth.secret=0123456789abcdef0123456789abcdef";
        let set = [secret].iter().chain(set).map(|text| (*text).to_owned()).collect();
        Layers::read(&Sources { set, ..Sources::default() }).expect("valid")
    }

    fn settings(set: &[&str]) -> Settings {
        Settings::resolve(layers(set), &Host::read(), false).expect("valid")
    }

    #[test]
    fn what_may_change_is_taken_and_the_rest_is_named_and_kept() {
        let now = settings(&["shards=1", "drain.secs=10"]);
        let new = layers(&["shards=2", "drain.secs=20", "limits.messages_per_second_max=7", "ring.buffers=64"]);
        let (settings, changes) = merged(&now, new).expect("valid");
        assert_eq!(changes.restart, ["shards", "ring.buffers"]);
        assert!(changes.reloaded.starts_with(&["drain.secs"]), "{changes:?}");
        assert!(changes.reloaded.contains(&"limits.messages_per_second_max"), "{changes:?}");
        assert_eq!((settings.shards, settings.config.ring.buffers), (1, 512));
        assert_eq!((settings.config.drain.secs, settings.config.limits.messages_per_second_max), (20, 7));
        // And back again: nothing differs any more.
        let (_, changes) =
            merged(&settings, layers(&["shards=1", "drain.secs=20", "limits.messages_per_second_max=7"]))
                .expect("valid");
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn what_does_not_fit_is_refused_even_if_it_would_fit_after_a_restart() {
        let now = settings(&["shards=1"]);
        let wrong = merged(&now, layers(&["limits.content_bytes_max=100000"])).expect_err("above message_bytes_max");
        assert!(wrong.0[0].contains("limits.content_bytes_max"), "{wrong:?}");
        let later = ["bridge.page_bytes_max=8192", "limits.queue_bytes_max=60000"];
        let later = merged(&now, layers(&later)).expect_err("today's pages do not fit");
        assert!(later.0[0].contains("bridge.page_bytes_max have until a restart"), "{later:?}");
    }
}
