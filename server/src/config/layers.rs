//! Where each value comes from. Precedence: flag, environment, file, default; the names that older deployments set
//! (`PORT`, `JWT_SECRET`, `RUST_LOG`, `REDIS_HOST`, `REDIS_PORT`) stand between the environment's own and the file.

use super::keys::{self, Key, Kind};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Value;
use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Nobody set it, and it follows from this host or from `--dev`.
    Derived(String),
    /// The configuration file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// `--set`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Derived(from) => f.write_str(from),
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag => f.write_str("--set"),
        }
    }
}

/// A value and its origin. No `Debug`: the value may be a secret.
#[derive(Clone)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// All that is wrong with a configuration, each in one line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// From where to read.
#[derive(Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `--set`, each `key=value`.
    pub set: Vec<String>,
}

/// The value of each key that has one.
#[derive(Clone, Default)]
pub struct Layers {
    entries: BTreeMap<&'static str, Entry>,
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|(path, entry)| (path, &entry.origin))).finish()
    }
}

impl Layers {
    /// Defaults, overlaid by each source in turn.
    ///
    /// # Errors
    /// Every unknown key and every value of the wrong type, of all sources.
    pub fn read(sources: &Sources) -> Result<Layers, Problems> {
        let mut layers = Layers::default();
        let mut problems = Problems::default();
        for key in keys::keys() {
            if let Some(default) = &key.default {
                layers.put(key, default.clone(), Origin::Default);
            }
        }
        if let Some(path) = &sources.file {
            layers.read_file(path, &mut problems);
        }
        let environment = EnvironmentNames::of(&sources.environment, &mut problems);
        layers.read_older_names(&environment, &mut problems);
        layers.read_environment(&environment, &mut problems);
        for assignment in &sources.set {
            layers.read_flag(assignment, &mut problems);
        }
        if problems.0.is_empty() { Ok(layers) } else { Err(problems) }
    }

    /// The entry of a key, if it has a value.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Whether someone set the key.
    #[must_use]
    pub fn is_set(&self, path: &str) -> bool {
        self.get(path).is_some_and(|entry| !matches!(entry.origin, Origin::Default | Origin::Derived(_)))
    }

    /// Sets a key that nobody set, from what the host or `--dev` says.
    pub fn derive(&mut self, path: &str, value: Value, from: &str) {
        if let Some(key) = keys::find(path) {
            self.put(key, value, Origin::Derived(from.to_owned()));
        }
    }

    /// These, but for the keys that `keeps` names those of `other`.
    #[must_use]
    pub fn keeping(mut self, other: &Layers, keeps: impl Fn(&Key) -> bool) -> Layers {
        for key in keys::keys().iter().filter(|key| keeps(key)) {
            match other.entries.get(key.path.as_str()) {
                Some(entry) => self.entries.insert(&key.path, entry.clone()),
                None => self.entries.remove(key.path.as_str()),
            };
        }
        self
    }

    /// All values as one table.
    #[must_use]
    pub fn table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for (path, entry) in &self.entries {
            let mut place = &mut table;
            let mut parts = path.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    place.insert(part.to_owned(), entry.value.clone());
                    break;
                }
                let inner = place.entry(part).or_insert_with(|| Value::Table(toml::Table::new()));
                let Value::Table(inner) = inner else { break };
                place = inner;
            }
        }
        table
    }

    fn put(&mut self, key: &'static Key, value: Value, origin: Origin) {
        self.entries.insert(&key.path, Entry { value, origin });
    }

    fn read_file(&mut self, path: &Path, problems: &mut Problems) {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return problems.0.push(format!("{shown}: cannot be read: {error}")),
        };
        let place = |offset: usize| {
            let before = text.get(..offset).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        };
        // Parsed twice, once for the places and once for the values: it is the same parser.
        let (spans, values) = match (DeTable::parse(&text), text.parse::<toml::Table>()) {
            (Ok(spans), Ok(values)) => (spans, values),
            (Err(error), _) | (_, Err(error)) => {
                let (line, column) = place(error.span().map_or(0, |span| span.start));
                return problems.0.push(format!("{shown}:{line}:{column}: {}", error.message()));
            }
        };
        for found in leaves(spans.get_ref(), &values) {
            let (line, column) = place(found.offset);
            let at = format!("{shown}:{line}:{column}");
            match keys::find(&found.path) {
                None if found.section_misused => {
                    problems.0.push(format!("{at}: `{}` is a section, written [{}]", found.path, found.path));
                }
                None => problems.0.push(format!("{at}: {}", unknown(&found.path))),
                Some(key) if key.kind.accepts(&found.value) => {
                    self.put(key, found.value, Origin::File { path: path.to_owned(), line, column });
                }
                Some(key) => problems.0.push(format!("{at}: {}", wrong(key, &found.value.to_string()))),
            }
        }
    }

    fn read_older_names(&mut self, environment: &EnvironmentNames, problems: &mut Problems) {
        self.read_redis_host(environment, problems);
        for (name, path) in [("JWT_SECRET", "auth.secret"), ("RUST_LOG", "log.level"), ("PORT", "listen.addr")] {
            let Some(text) = environment.older.get(name).filter(|text| !text.is_empty()) else { continue };
            let Some(key) = keys::find(path) else { continue };
            let value = if name == "PORT" { self.with_port(text) } else { key.kind.parse(text) };
            match value {
                Some(value) => self.put(key, value, Origin::Environment(name.to_owned())),
                None => problems.0.push(format!("{name}: expected a port number, got \"{text}\"")),
            }
        }
    }

    /// `REDIS_HOST` and `REDIS_PORT`: where Redis is, and that it is the bus.
    fn read_redis_host(&mut self, environment: &EnvironmentNames, problems: &mut Problems) {
        let given = |name: &str| environment.older.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let (host, port) = (given("REDIS_HOST"), given("REDIS_PORT"));
        // Kubernetes sets REDIS_PORT=tcp://10.0.0.1:6379 in every pod beside a service called `redis`.
        let (port, is_foreign) = match port.and_then(|port| port.strip_prefix("tcp://")) {
            Some(address) => (address.rsplit(':').next(), true),
            None => (port, false),
        };
        let name = match (host, port) {
            (Some(_), _) => "REDIS_HOST",
            (None, Some(_)) if !is_foreign => "REDIS_PORT",
            _ => return,
        };
        let (host, port) = (host.unwrap_or("127.0.0.1"), port.unwrap_or("6379"));
        if port.parse::<u16>().is_err() {
            return problems.0.push(format!("REDIS_PORT: expected a port number, got \"{port}\""));
        }
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let values = [("bus.kind", "redis".to_owned()), ("bus.redis.url", format!("redis://{host}:{port}"))];
        for (path, value) in values {
            if let Some(key) = keys::find(path) {
                self.put(key, Value::String(value), Origin::Environment(name.to_owned()));
            }
        }
    }

    /// `listen.addr` as it stands, with another port.
    fn with_port(&self, port: &str) -> Option<Value> {
        let addr = self.get("listen.addr")?.value.as_str()?.parse::<SocketAddr>().ok()?;
        let port = port.trim().parse::<u16>().ok()?;
        Some(Value::String(SocketAddr::new(addr.ip(), port).to_string()))
    }

    fn read_environment(&mut self, environment: &EnvironmentNames, problems: &mut Problems) {
        for (name, text) in &environment.own {
            let Some(key) = keys::keys().iter().find(|key| key.environment() == *name) else {
                let path = name.trim_start_matches("ROOMWIRE_").to_ascii_lowercase().replace("__", ".");
                let meant = keys::nearest(&path, keys::keys().iter().map(|key| key.path.as_str())).and_then(keys::find);
                let meant = meant.map_or(String::new(), |key| format!("; did you mean {}?", key.environment()));
                problems.0.push(format!("environment: {name} sets no known key{meant}"));
                continue;
            };
            match key.kind.parse(text) {
                Some(value) => self.put(key, value, Origin::Environment(name.clone())),
                None => problems.0.push(format!("{name}: {}", wrong(key, &format!("\"{text}\"")))),
            }
        }
    }

    fn read_flag(&mut self, assignment: &str, problems: &mut Problems) {
        let Some((path, text)) = assignment.split_once('=') else {
            return problems.0.push("--set: expected key=value, such as --set drain.secs=10".to_owned());
        };
        let path = path.trim();
        let Some(key) = keys::find(path) else {
            return problems.0.push(format!("--set: {}", unknown(path)));
        };
        match key.kind.parse(text) {
            Some(value) => self.put(key, value, Origin::Flag),
            None => problems.0.push(format!("--set: {}", wrong(key, &format!("\"{text}\"")))),
        }
    }
}

fn unknown(path: &str) -> String {
    let meant = keys::nearest(path, keys::keys().iter().map(|key| key.path.as_str()));
    let meant = meant.map_or(String::new(), |key| format!("; did you mean `{key}`?"));
    format!("unknown key `{path}`{meant}")
}

fn wrong(key: &Key, got: &str) -> String {
    if key.kind == Kind::Secret {
        return format!("`{}` expects {}", key.path, key.kind);
    }
    format!("`{}` expects {}, got {got}", key.path, key.kind)
}

/// One key of a file.
struct Found {
    path: String,
    value: Value,
    offset: usize,
    section_misused: bool,
}

/// Every key of a file outside and inside its sections.
fn leaves(spans: &DeTable<'_>, values: &toml::Table) -> Vec<Found> {
    let mut found = Vec::new();
    leaves_of("", spans, values, &mut found);
    found
}

fn leaves_of(section: &str, spans: &DeTable<'_>, values: &toml::Table, found: &mut Vec<Found>) {
    for (name, span) in spans.iter() {
        let offset = name.span().start;
        let name: &str = name.get_ref();
        let Some(value) = values.get(name) else { continue };
        let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
        let is_section = keys::sections().iter().any(|section| section.name == path);
        match (span.get_ref(), value) {
            (DeValue::Table(inner), Value::Table(inner_values)) if is_section => {
                leaves_of(&path, inner, inner_values, found);
            }
            _ => found.push(Found { path, value: value.clone(), offset, section_misused: is_section }),
        }
    }
}

/// The environment, sorted by what it is to us.
struct EnvironmentNames {
    /// `ROOMWIRE_...`, apart from what is not meant for us.
    own: BTreeMap<String, String>,
    /// The names that older deployments set.
    older: BTreeMap<&'static str, String>,
}

impl EnvironmentNames {
    fn of(environment: &[(OsString, OsString)], problems: &mut Problems) -> EnvironmentNames {
        let mut names = EnvironmentNames { own: BTreeMap::new(), older: BTreeMap::new() };
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            let older =
                ["PORT", "JWT_SECRET", "RUST_LOG", "REDIS_HOST", "REDIS_PORT"].into_iter().find(|older| *older == name);
            if older.is_none() && (!name.starts_with("ROOMWIRE_") || is_foreign(name)) {
                continue;
            }
            let Some(value) = value.to_str() else {
                problems.0.push(format!("{name}: the value is not UTF-8"));
                continue;
            };
            match older {
                Some(older) => names.older.insert(older, value.to_owned()),
                None => names.own.insert(name.to_owned(), value.to_owned()),
            };
        }
        names
    }
}

/// Names with our prefix that are not keys: the file's path, which `--config` reads, and what Kubernetes puts into every
/// pod beside a service called `roomwire` (`ROOMWIRE_SERVICE_HOST`, `ROOMWIRE_PORT_8080_TCP_ADDR`, ...).
fn is_foreign(name: &str) -> bool {
    name == "ROOMWIRE_CONFIG"
        || name == "ROOMWIRE_PORT"
        || (!name.contains("__") && (name.starts_with("ROOMWIRE_SERVICE_") || name.starts_with("ROOMWIRE_PORT_")))
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
