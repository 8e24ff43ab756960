//! The list of all configuration keys, made from the schema of [`Config`]: what each expects, its default, its text.

use super::types::Config;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use std::fmt;
use std::net::SocketAddr;
use std::sync::OnceLock;
use toml::Value;

/// Keys and sections that a running node reads again at SIGHUP.
const RELOADED: [&str; 7] =
    ["allowed_origins", "auth", "drain.secs", "http.key", "http.ready_requires_backends", "limits", "log.level"];
/// But not these of them: all nodes of a cluster agree on it, and rooms act by it.
const NOT_RELOADED: [&str; 1] = ["limits.join_events_members_max"];

/// What a key's value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number of this range.
    Whole {
        /// The least.
        min: u64,
        /// The most; at most `i64::MAX`, TOML's own limit.
        max: u64,
    },
    /// Any text.
    Text,
    /// An IP address and a port.
    Address,
    /// Text that is never shown.
    Secret,
    /// One of these words.
    Choice(Vec<String>),
    /// A list of texts.
    Texts,
}

/// One key.
#[derive(Clone, Debug)]
pub struct Key {
    /// `section.name`, `section.inner.name`, or `name`.
    pub path: String,
    /// What its value must be.
    pub kind: Kind,
    /// What it is for.
    pub text: String,
    /// Its default; `None` where it is unset by default.
    pub default: Option<Value>,
    /// Whether a running node takes a new value at SIGHUP.
    pub reloaded: bool,
}

impl Key {
    /// The name of the environment variable that sets it.
    #[must_use]
    pub fn environment(&self) -> String {
        format!("ROOMWIRE_{}", self.path.to_ascii_uppercase().replace('.', "__"))
    }
}

/// A section's name and text.
#[derive(Clone, Debug)]
pub struct Section {
    /// `listen`, `bus.redis`, ...; empty for the keys outside any section.
    pub name: String,
    /// What it is about.
    pub text: String,
}

/// Every key, those outside any section first.
#[must_use]
pub fn keys() -> &'static [Key] {
    &catalogue().0
}

/// Every section, in the order of [`keys`].
#[must_use]
pub fn sections() -> &'static [Section] {
    &catalogue().1
}

/// The key of that path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.path == path)
}

fn catalogue() -> &'static (Vec<Key>, Vec<Section>) {
    static CATALOGUE: OnceLock<(Vec<Key>, Vec<Section>)> = OnceLock::new();
    CATALOGUE.get_or_init(|| {
        let generator =
            SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
        let schema = Json::from(generator.into_root_schema_for::<Config>());
        let defaults = Value::try_from(Config::default()).unwrap_or_else(|_| Value::Table(toml::Table::new()));
        let mut keys = Vec::new();
        let mut sections = vec![Section { name: String::new(), text: "Keys outside any section".to_owned() }];
        collect(&schema, "", Some(&defaults), &mut keys, &mut sections);
        (keys, sections)
    })
}

/// The keys and sections of one section: its own keys, then each section inside it.
fn collect(schema: &Json, section: &str, defaults: Option<&Value>, keys: &mut Vec<Key>, sections: &mut Vec<Section>) {
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    let (inner, own): (Vec<_>, Vec<_>) =
        properties.iter().partition(|(_, property)| property["properties"].is_object());
    let path = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let default = |name: &str| defaults.and_then(|defaults| defaults.get(name));
    keys.extend(own.into_iter().map(|(name, property)| key_of(&path(name), property, default(name))));
    for (name, property) in inner {
        sections.push(Section { name: path(name), text: text_of(property) });
        collect(property, &path(name), default(name), keys, sections);
    }
}

/// A doc comment as one line: the generator keeps its line breaks.
fn text_of(property: &Json) -> String {
    property["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn key_of(path: &str, property: &Json, default: Option<&Value>) -> Key {
    let (kind, text) = (kind_of(property), text_of(property));
    Key { path: path.to_owned(), kind, text, default: default.cloned(), reloaded: is_reloaded(path) }
}

fn is_reloaded(path: &str) -> bool {
    let section = path.split('.').next().unwrap_or_default();
    (RELOADED.contains(&path) || RELOADED.contains(&section)) && !NOT_RELOADED.contains(&path)
}

fn kind_of(property: &Json) -> Kind {
    // An optional number or text has the types ["integer", "null"]; an optional secret is anyOf [secret, null].
    if let Some(first) = property["anyOf"].get(0) {
        return kind_of(first);
    }
    let words = |list: &Json| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|word| word["const"].as_str().or(word.as_str()).map(str::to_owned)).collect::<Vec<_>>()
    };
    for choices in [&property["oneOf"], &property["enum"]] {
        if choices.is_array() {
            return Kind::Choice(words(choices));
        }
    }
    let kind = property["type"].as_str().or_else(|| property["type"][0].as_str()).unwrap_or_default();
    let format = property["format"].as_str().unwrap_or_default();
    match (kind, format) {
        ("boolean", _) => Kind::Bool,
        ("integer", format) => {
            let widest = if format == "uint64" { i64::MAX.unsigned_abs() } else { u64::from(u32::MAX) };
            let max = property["maximum"].as_u64().unwrap_or(widest);
            Kind::Whole { min: property["minimum"].as_u64().unwrap_or(0), max }
        }
        ("array", _) => Kind::Texts,
        (_, "address") => Kind::Address,
        (_, "secret") => Kind::Secret,
        _ => Kind::Text,
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Whole { min, max } if *max >= u64::from(u32::MAX) => write!(f, "a whole number, {min} or more"),
            Kind::Whole { min, max } => write!(f, "a whole number from {min} to {max}"),
            Kind::Text => f.write_str("text"),
            Kind::Address => f.write_str("an IP address and port, such as 127.0.0.1:8080 or [::]:8080"),
            Kind::Secret => f.write_str("text"),
            Kind::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Kind::Texts => f.write_str("a list of texts"),
        }
    }
}

impl Kind {
    /// Whether a value from a file is of this kind.
    #[must_use]
    pub fn accepts(&self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Bool, Value::Boolean(_)) | (Kind::Text | Kind::Secret, Value::String(_)) => true,
            (Kind::Whole { min, max }, Value::Integer(number)) => {
                u64::try_from(*number).is_ok_and(|number| (*min..=*max).contains(&number))
            }
            (Kind::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Kind::Choice(words), Value::String(text)) => words.contains(text),
            (Kind::Texts, Value::Array(list)) => list.iter().all(Value::is_str),
            _ => false,
        }
    }

    /// The value that `text`, from the environment or a flag, stands for; `None` if it is not of this kind. A list is
    /// written with commas.
    #[must_use]
    pub fn parse(&self, text: &str) -> Option<Value> {
        let value = match self {
            Kind::Bool => Value::Boolean(text.trim().parse().ok()?),
            Kind::Whole { .. } => Value::Integer(text.trim().parse().ok()?),
            Kind::Address | Kind::Choice(_) => Value::String(text.trim().to_owned()),
            Kind::Text | Kind::Secret => Value::String(text.to_owned()),
            Kind::Texts => {
                let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
                Value::Array(entries.map(|entry| Value::String(entry.to_owned())).collect())
            }
        };
        self.accepts(&value).then_some(value)
    }
}

/// The known name nearest to a wrong one, if any is near enough to be meant.
#[must_use]
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let wrong_last = last(wrong);
    let far = wrong.len() / 3 + 1;
    known
        .into_iter()
        .map(|name| {
            // The right name in the wrong section is near, whatever the distance of the sections.
            let near = if last(name) == wrong_last { 1 } else { usize::MAX };
            (near.min(distance(&wrong.to_ascii_lowercase(), &name.to_ascii_lowercase())), name)
        })
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be put in, left out or replaced to make one text of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for column in 0..other.len() {
            let replaced = diagonal + usize::from(other[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_text_and_a_default_of_its_own_kind() {
        assert!(keys().len() >= 50, "{}", keys().len());
        for key in keys() {
            assert!(!key.text.is_empty(), "{}", key.path);
            if let Some(default) = &key.default {
                assert!(key.kind.accepts(default), "{} = {default}", key.path);
            }
        }
    }

    #[test]
    fn what_is_reloaded_exists() {
        for name in RELOADED.into_iter().chain(NOT_RELOADED) {
            let is_key = find(name).is_some();
            assert!(is_key || sections().iter().any(|section| section.name == name), "{name}");
        }
        let reloaded = |path: &str| find(path).is_some_and(|key| key.reloaded);
        assert!(
            reloaded("auth.secret")
                && reloaded("auth.jwks")
                && reloaded("limits.queue_ms_max")
                && reloaded("drain.secs")
        );
        assert!(!reloaded("limits.join_events_members_max") && !reloaded("http.addr") && !reloaded("shards"));
    }

    #[test]
    fn kinds_are_read_from_the_types() {
        let kind = |path: &str| find(path).map(|key| key.kind.clone());
        assert_eq!(kind("shards"), Some(Kind::Whole { min: 0, max: 256 }));
        assert_eq!(kind("listen.addr"), Some(Kind::Address));
        assert_eq!(kind("auth.secret"), Some(Kind::Secret));
        assert_eq!(kind("http.key"), Some(Kind::Secret));
        assert_eq!(kind("auth.require_exp"), Some(Kind::Bool));
        assert_eq!(kind("auth.reject"), Some(Kind::Choice(vec!["close".to_owned(), "http".to_owned()])));
        assert_eq!(kind("allowed_origins"), Some(Kind::Texts));
        assert_eq!(kind("node.id"), Some(Kind::Text));
        assert_eq!(kind("limits.connections_max"), Some(Kind::Whole { min: 0, max: u64::from(u32::MAX) }));
        assert_eq!(kind("store.messages_per_room_max"), Some(Kind::Whole { min: 0, max: i64::MAX as u64 }));
    }

    #[test]
    fn every_limit_of_the_engine_has_a_key() {
        for limit in roomwire_engine::stats::LIMIT_NAMES.into_iter().chain(["join_events_members_max"]) {
            assert!(find(&format!("limits.{limit}")).is_some(), "{limit}");
        }
    }

    #[test]
    fn a_wrong_name_finds_the_right_one() {
        let near = |wrong: &str| nearest(wrong, keys().iter().map(|key| key.path.as_str()));
        assert_eq!(near("limits.queue_byte_max"), Some("limits.queue_bytes_max"));
        assert_eq!(near("listen.address"), Some("listen.addr"));
        assert_eq!(near("secret"), Some("auth.secret"));
        assert_eq!(near("shard"), Some("shards"));
        assert_eq!(near("colour"), None);
    }
}
