//! The configuration as text: effective values with their origins, the example file, the reference page, the man page.

use super::keys::{self, Key, Kind};
use super::settings::Settings;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use toml::Value;

/// Every effective value as TOML, with its origin behind it; secrets hidden.
#[must_use]
pub fn effective_toml(settings: &Settings) -> String {
    let mut out = String::new();
    for section in keys::sections() {
        if !section.name.is_empty() {
            let _ = writeln!(out, "\n[{}]", section.name);
        }
        for key in keys_of(&section.name) {
            let name = key.path.rsplit('.').next().unwrap_or_default();
            let _ = match settings.layers.get(&key.path) {
                Some(entry) => {
                    writeln!(out, "{:<60} # {}", format!("{name} = {}", shown(key, &entry.value)), entry.origin)
                }
                None => writeln!(out, "{:<60} # unset", format!("# {name} =")),
            };
        }
    }
    out
}

/// The same as JSON: an object from key to value and origin.
#[must_use]
pub fn effective_json(settings: &Settings) -> String {
    let entries = keys::keys().iter().map(|key| {
        let entry = settings.layers.get(&key.path);
        let value = match (&key.kind, entry) {
            (_, None) => Json::Null,
            (Kind::Secret, Some(_)) => json!("***"),
            (_, Some(entry)) => serde_json::to_value(&entry.value).unwrap_or(Json::Null),
        };
        let origin = entry.map_or("unset".to_owned(), |entry| entry.origin.to_string());
        (key.path.clone(), json!({ "value": value, "origin": origin }))
    });
    let all: serde_json::Map<String, Json> = entries.collect();
    serde_json::to_string_pretty(&all).unwrap_or_default()
}

/// A configuration file with every key, its text and its default, each commented out.
#[must_use]
pub fn example() -> String {
    let mut out = String::from(
        "# Configuration of Roomwire. Every key is shown with its default; remove the # to change it.\n\
         # Each can also be set in the environment (section.name is ROOMWIRE_SECTION__NAME) or with --set section.name=value.\n",
    );
    for section in keys::sections() {
        if !section.name.is_empty() {
            let _ = write!(out, "\n# {}\n[{}]\n", section.text, section.name);
        }
        for key in keys_of(&section.name) {
            let name = key.path.rsplit('.').next().unwrap_or_default();
            let value = key.default.as_ref().map_or("(unset)".to_owned(), Value::to_string);
            let _ = write!(out, "\n{}# {name} = {value}\n", wrapped(&key.text));
        }
    }
    out
}

/// The page docs/configuration.md.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(REFERENCE_HEAD);
    for section in keys::sections() {
        let title = if section.name.is_empty() { section.text.clone() } else { format!("`[{}]`", section.name) };
        let _ = write!(out, "\n## {title}\n");
        if !section.name.is_empty() {
            let _ = write!(out, "\n{}\n", section.text);
        }
        out.push_str("\n| key | expects | default | environment | reload | |\n|---|---|---|---|---|---|\n");
        for key in keys_of(&section.name) {
            let default = key.default.as_ref().map_or("unset".to_owned(), |default| format!("`{default}`"));
            let reload = if key.reloaded { "yes" } else { "" };
            let environment = format!("`{}`", key.environment());
            let cells = [format!("`{}`", key.path), key.kind.to_string(), default, environment, reload.to_owned()];
            let _ = writeln!(out, "| {} | {} |", cells.join(" | "), key.text.replace('|', "\\|"));
        }
    }
    out
}

const REFERENCE_HEAD: &str = "\
# Configuration

<!-- Made from the types in server/src/config/types.rs by `roomwire generate reference`; a test keeps it equal. -->

`roomwire serve` takes each value from the first of these that has it:

1. the flag `--set key=value`, as often as needed;
2. the environment variable of the key, `ROOMWIRE_SECTION__NAME` (two underscores between the parts);
3. `PORT` (the port of `listen.addr`), `JWT_SECRET` (`auth.secret`), `RUST_LOG` (`log.level`), `REDIS_HOST` and `REDIS_PORT` (`bus.redis.url`, and
   `bus.kind = \"redis\"`), which older deployments set;
4. the TOML file named with `--config FILE` or `ROOMWIRE_CONFIG`;
5. the default.

A list is written with commas in the environment and in `--set`. An unknown key or name is an error, never ignored; only the variables
that Kubernetes makes for a service called `roomwire` (`ROOMWIRE_SERVICE_...`, `ROOMWIRE_PORT...`) are left alone.

A running node reads the file again at SIGHUP (`systemctl reload roomwire`) and takes what stands under *reload* here; what else has changed it names in
its log, for the next restart. If anything is wrong with the file, nothing changes. Environment and `--set` stay those of its start, and go before the file.

- `roomwire check-config` says all that is wrong, and exits with 0 (fine) or 2.
- `roomwire print-config` shows every effective value and where it came from, secrets hidden; `--json` for programs.
- `roomwire gen-config` prints a file with every key and its default.

## Exit status

| status | of | meaning |
|---|---|---|
| 0 | all | done; for `serve`: drained and stopped |
| 1 | all | it failed at run time: the port or the data directory is taken, the disk cannot be written; trying again may help |
| 2 | all | the command line is wrong; for `check-config`, `print-config`, `token`: the configuration is |
| 78 | `serve` | the configuration is wrong, or kernel or data directory do not give what is needed; trying again does not help |
";

/// The man page roomwire.toml(5).
#[must_use]
pub fn manual() -> String {
    let mut out = String::from(MANUAL_HEAD);
    for section in keys::sections() {
        let title = if section.name.is_empty() { section.text.clone() } else { format!("[{}]", section.name) };
        let _ = writeln!(out, ".SH {}", roff(&title));
        if !section.name.is_empty() {
            let _ = writeln!(out, "{}", roff(&section.text));
        }
        for key in keys_of(&section.name) {
            let default = key.default.as_ref().map_or("unset".to_owned(), Value::to_string);
            let expects = roff(&format!("{}; default {default}; {}", key.kind, key.environment()));
            let _ = writeln!(out, ".TP\n.B {}\n{expects}.\n.br\n{}", roff(&key.path), roff(&key.text));
        }
    }
    out.push_str(MANUAL_FOOT);
    out
}

const MANUAL_HEAD: &str = "\
.TH roomwire.toml 5
.SH NAME
roomwire.toml \\- configuration of roomwire(1)
.SH DESCRIPTION
A TOML file, named with \\-\\-config FILE or ROOMWIRE_CONFIG. A value comes from the first of these that has it: the flag
\\-\\-set key=value, the environment variable of the key, this file, the default. Unknown keys are errors. 0 as a limit means no limit.
.PP
roomwire check\\-config says all that is wrong, roomwire print\\-config shows every effective value and where it came from.
";

const MANUAL_FOOT: &str = "\
.SH FILES
.TP
.B /etc/roomwire/roomwire.toml
what roomwire.service reads
.TP
.B /etc/roomwire/roomwire.env
secrets as environment variables, JWT_SECRET and others; root and the group roomwire may read it
.SH SEE ALSO
.BR roomwire (1),
.BR roomwire\\-tuning (8)
";

/// Text as roff takes it: no line of ours begins with a request, hyphens are hyphens, backslashes are kept.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    keys::keys().iter().filter(move |key| key.path.rsplit_once('.').map_or("", |(section, _)| section) == section)
}

fn shown(key: &Key, value: &Value) -> String {
    if key.kind == Kind::Secret { "\"***\"".to_owned() } else { value.to_string() }
}

/// A text as comment lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + word.len() >= 100 {
            let _ = writeln!(out, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Host, Layers, Sources};
    use super::*;

    fn settings() -> Settings {
        let set = vec!["auth.secret=open-sesame-open-sesame-open-sesame".to_owned(), "drain.secs=7".to_owned()];
        let layers = Layers::read(&Sources { set, ..Sources::default() }).expect("valid");
        let host = Host { cpus: vec![0], descriptors_max: 4096, has_tables: false, name: "box".to_owned() };
        Settings::resolve(layers, &host, false).expect("valid")
    }

    #[test]
    fn effective_values_show_origins_and_no_secret() {
        let text = effective_toml(&settings());
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("secs = 7").ends_with("# --set"), "{text}");
        assert!(line("shards = 1").ends_with("# one per usable core"));
        assert!(line("backlog = 4096").ends_with("# default"));
        assert!(line("secret = \"***\"").ends_with("# --set"));
        assert!(line("# key =").ends_with("# unset"));
        assert!(!text.contains("sesame") && !effective_json(&settings()).contains("sesame"));
        assert!(text.parse::<toml::Table>().is_ok(), "it is TOML again");
        let json: Json = serde_json::from_str(&effective_json(&settings())).expect("JSON");
        assert_eq!(json["drain.secs"], json!({ "value": 7, "origin": "--set" }));
    }

    #[test]
    fn the_man_page_has_every_key_and_no_stray_request() {
        let text = manual();
        for key in keys::keys() {
            assert!(text.contains(&format!("\n.B {}\n", roff(&key.path))), "{}", key.path);
        }
        let requests = [".TH ", ".SH ", ".TP", ".B ", ".BR ", ".br", ".PP"];
        for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
            assert!(requests.iter().any(|request| line.starts_with(request)), "{line}");
        }
        assert_eq!(roff(".a-b\\"), "\\&.a\\-b\\\\");
    }

    #[test]
    fn the_example_with_every_default_uncommented_is_the_default() {
        let file: String = example()
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.split_once(" = ").is_some_and(|(key, value)| !key.contains(' ') && value != "(unset)") =>
                {
                    rest
                }
                _ => line,
            })
            .fold(String::new(), |all, line| all + line + "\n");
        let config: super::super::Config = toml::from_str(&file).unwrap_or_else(|error| panic!("{error}\n{file}"));
        assert_eq!(config, super::super::Config::default());
    }
}
