//! From the keys `bus.*` to what the Redis bus is told: the URL taken apart, files read.
//!
//! No message here holds any part of the URL: it may carry a password.

use super::layers::Problems;
use super::secret::Secret;
use super::types::{BusKind, Config, Redis};
use crate::bus::redis::{Address, Login, RedisConfig, Servers};
use std::sync::Arc;
use std::time::Duration;

/// Redis's own port, and the Sentinels'.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

/// The parts of `bus.redis.url`.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    tls: bool,
    login: Login,
    address: Option<Address>,
    database: i64,
}

/// What the Redis bus is told; `None` with the local bus, or where something is wrong. Boot adds this node's name.
pub(super) fn resolve(config: &Config, problems: &mut Problems) -> Option<RedisConfig> {
    if config.bus.kind == BusKind::Local {
        return None;
    }
    let redis = &config.bus.redis;
    let before = problems.0.len();
    let url = match redis.url.as_ref().map(|url| parse(url.expose())) {
        Some(Some(url)) => url,
        Some(None) => {
            let form = "redis://HOST:PORT or rediss://USER:PASSWORD@HOST:PORT/DATABASE (special characters as %XX)";
            problems.0.push(format!("`bus.redis.url` expects {form}"));
            return None;
        }
        None => Url { tls: false, login: Login::default(), address: None, database: 0 },
    };
    let login = Login {
        user: url.login.user.or_else(|| redis.user.clone()),
        password: url.login.password.or_else(|| redis.password.clone()),
    };
    let servers = servers(redis, url.address, problems)?;
    if redis.sharded && redis.cluster.is_empty() {
        problems.0.push("`bus.redis.sharded` needs a Redis Cluster: name its nodes in `bus.redis.cluster`".to_owned());
    }
    if !redis.cluster.is_empty() && url.database != 0 {
        problems.0.push("`bus.redis.url` names a database, but a Redis Cluster has only number 0".to_owned());
    }
    let ca = redis.ca_file.as_ref().and_then(|path| match std::fs::read(path) {
        Ok(pem) => Some(pem),
        Err(error) => {
            problems.0.push(format!("`bus.redis.ca_file`: {path}: {error}"));
            None
        }
    });
    if redis.ca_file.is_some() && !url.tls {
        problems.0.push("`bus.redis.ca_file` is set, but `bus.redis.url` does not begin with rediss://".to_owned());
    }
    (problems.0.len() == before).then(|| RedisConfig {
        servers,
        login,
        database: url.database,
        tls: url.tls,
        ca,
        is_sharded: redis.sharded,
        timeout: Duration::from_millis(u64::from(redis.timeout_ms)),
        from: Arc::default(),
        card: None,
        content_bytes_max: config.limits.content_bytes_max,
    })
}

fn servers(redis: &Redis, single: Option<Address>, problems: &mut Problems) -> Option<Servers> {
    if !redis.cluster.is_empty() {
        if !redis.sentinel.nodes.is_empty() {
            problems.0.push("`bus.redis.cluster` and `bus.redis.sentinel.nodes` exclude each other".to_owned());
        }
        return Some(Servers::Cluster(addresses("bus.redis.cluster", &redis.cluster, PORT, problems)));
    }
    if !redis.sentinel.nodes.is_empty() {
        let sentinel = &redis.sentinel;
        let nodes = addresses("bus.redis.sentinel.nodes", &sentinel.nodes, SENTINEL_PORT, problems);
        let login = Login { user: sentinel.user.clone(), password: sentinel.password.clone() };
        return Some(Servers::Sentinel { nodes, master: sentinel.master_name.clone(), login });
    }
    if single.is_none() {
        let cure = "no `bus.redis.url`: say where Redis is, such as redis://127.0.0.1:6379, or set REDIS_HOST";
        problems.0.push(cure.to_owned());
    }
    single.map(Servers::Single)
}

fn addresses(key: &str, texts: &[String], port: u16, problems: &mut Problems) -> Vec<Address> {
    let mut addresses = Vec::new();
    for text in texts {
        match Address::parse(text, port) {
            Some(address) => addresses.push(address),
            None => problems.0.push(format!("`{key}` expects HOST:PORT, got \"{text}\"")),
        }
    }
    addresses
}

fn parse(url: &str) -> Option<Url> {
    let (scheme, rest) = url.trim().split_once("://")?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    let (place, database) = match rest.split_once('/') {
        Some((place, "")) => (place, 0),
        Some((place, database)) => (place, database.parse().ok().filter(|number| *number >= 0)?),
        None => (rest, 0),
    };
    let (login, host) = match place.rsplit_once('@') {
        Some((login, host)) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let given = |text: String| (!text.is_empty()).then_some(text);
            let (user, password) = (given(unescaped(user)?), given(unescaped(password)?));
            (Login { user, password: password.map(Secret::new) }, host)
        }
        None => (Login::default(), place),
    };
    let address = if host.is_empty() { None } else { Some(Address::parse(host, PORT)?) };
    Some(Url { tls, login, address, database })
}

/// `%XX` as the bytes that they stand for.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(set: impl FnOnce(&mut Config)) -> Result<RedisConfig, Vec<String>> {
        let mut config = Config::default();
        config.bus.kind = BusKind::Redis;
        set(&mut config);
        let mut problems = Problems::default();
        resolve(&config, &mut problems).ok_or(problems.0)
    }

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = parse("rediss://chat:p%40ss%3aword@[::1]:7000/3").expect("valid");
        assert!(url.tls && url.database == 3);
        assert_eq!(url.address, Some(address("::1", 7000)));
        assert_eq!(url.login.user.as_deref(), Some("chat"));
        assert_eq!(url.login.password.map(|password| password.expose().to_owned()).as_deref(), Some("p@ss:word"));
        let plain = parse("redis://redis.internal").expect("valid");
        assert_eq!(
            plain,
            Url { tls: false, login: Login::default(), address: Some(address("redis.internal", 6379)), database: 0 }
        );
        assert_eq!(parse("redis://:secret@h:1").and_then(|url| url.login.user), None);
        for wrong in [
            "",
            "redis:",
            "http://h",
            "redis://h:0",
            "redis://h:99999",
            "redis://h/x",
            "redis://u:%zz@h",
            "redis://h h",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_url() {
        let wrong = resolved(|config| config.bus.redis.url = Some(Secret::new("redis://:hunter2@".to_owned() + "h:x")));
        let text = wrong.expect_err("a wrong port").join(" ");
        assert!(text.contains("bus.redis.url") && !text.contains("hunter2"), "{text}");
        let text = resolved(|_| {}).expect_err("no url").join(" ");
        assert!(text.contains("REDIS_HOST"), "{text}");
        let missing = resolved(|config| {
            config.bus.redis.url = Some(Secret::new("rediss://h".to_owned()));
            config.bus.redis.ca_file = Some("/nowhere/ca.pem".to_owned());
        });
        assert!(missing.expect_err("no such file").join(" ").contains("/nowhere/ca.pem"));
    }

    #[test]
    fn sentinels_need_no_address_of_the_master() {
        let config = resolved(|config| {
            config.bus.redis.url = Some(Secret::new("redis://:pw@/2".to_owned()));
            config.bus.redis.sentinel.nodes = vec!["a".to_owned(), "b:1".to_owned()];
        })
        .expect("valid");
        let nodes = vec![address("a", 26_379), address("b", 1)];
        assert_eq!(config.servers, Servers::Sentinel { nodes, master: "mymaster".to_owned(), login: Login::default() });
        assert_eq!(config.database, 2);
        assert!(config.login.password.is_some());
    }
}
