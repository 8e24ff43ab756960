//! What must hold between the keys of `store.cql.*` and others, where `store.kind` is `cql`.

use super::layers::Problems;
use super::types::{Config, StoreKind};

/// No TTL of Cassandra is longer than twenty years.
const RETENTION_DAYS_MAX: u32 = 7_300;

/// Adds what does not hold.
pub(super) fn check(config: &Config, problems: &mut Problems) {
    let store = &config.store;
    if store.kind != StoreKind::Cql {
        return;
    }
    let cql = &store.cql;
    let is_keyspace = |name: &str| {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        name.len() <= 48 && name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(valid)
    };
    let is_node = |node: &String| !node.is_empty() && !node.contains(char::is_whitespace);
    let nodes_are_named = !cql.nodes.is_empty() && cql.nodes.iter().all(is_node);
    let rules = [
        (is_keyspace(&cql.keyspace), "`store.cql.keyspace` expects a lower case letter and up to 47 of a-z 0-9 _"),
        (nodes_are_named, "`store.cql.nodes` expects one host or host:port, or several"),
        (
            cql.user.is_some() == cql.password.is_some(),
            "`store.cql.user` and `store.cql.password` belong together: set both, or none",
        ),
        (
            store.retention_days <= RETENTION_DAYS_MAX,
            "`store.retention_days` must not be above 7300 with `store.kind = \"cql\"`: no TTL is longer",
        ),
        (
            store.messages_per_room_max == 0,
            "`store.messages_per_room_max` is for the embedded store: with `store.kind = \"cql\"` use `store.retention_days`",
        ),
        (
            cql.timeout_ms.saturating_mul(2) <= config.bridge.publish_ms_max,
            "`store.cql.timeout_ms` must not be above half of `bridge.publish_ms_max`: a publish waits for the store",
        ),
    ];
    problems.0.extend(rules.into_iter().filter(|(holds, _)| !holds).map(|(_, line)| line.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::super::types::Cql;
    use super::*;

    fn problems(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        config.store.kind = StoreKind::Cql;
        change(&mut config);
        let mut problems = Problems::default();
        check(&config, &mut problems);
        problems.0
    }

    #[test]
    fn the_defaults_make_sense_and_each_rule_says_which_key() {
        assert!(problems(|_| {}).is_empty());
        let named = |change: fn(&mut Config)| problems(change).join("\n");
        assert!(named(|config| config.store.cql.keyspace = "Chat".to_owned()).contains("keyspace"));
        assert!(named(|config| config.store.cql.keyspace = "a; DROP".to_owned()).contains("keyspace"));
        assert!(named(|config| config.store.cql.nodes.clear()).contains("nodes"));
        assert!(named(|config| config.store.cql.user = Some("ada".to_owned())).contains("password"));
        assert!(named(|config| config.store.retention_days = 9_000).contains("7300"));
        assert!(named(|config| config.store.messages_per_room_max = 1).contains("messages_per_room_max"));
        assert!(named(|config| config.bridge.publish_ms_max = 1_000).contains("publish_ms_max"));
        let mut embedded = Config::default();
        embedded.store.cql = Cql { nodes: Vec::new(), ..Cql::default() };
        let mut none = Problems::default();
        check(&embedded, &mut none);
        assert!(none.0.is_empty(), "the keys of a store that is not used may be anything");
    }
}
