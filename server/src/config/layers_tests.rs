//! Precedence, and what a wrong key or value is answered with.

use super::*;

fn sources(file: Option<&Path>, environment: &[(&str, &str)], set: &[&str]) -> Sources {
    Sources {
        file: file.map(Path::to_owned),
        environment: environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect(),
        set: set.iter().map(|&assignment| assignment.to_owned()).collect(),
    }
}

/// A file of its own that is gone at the end of the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> TempFile {
        let path = std::env::temp_dir().join(format!("roomwire-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("the temporary directory can be written");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn value(layers: &Layers, path: &str) -> String {
    layers.get(path).map(|entry| entry.value.to_string()).unwrap_or_default()
}

fn problems(sources: &Sources) -> Vec<String> {
    Layers::read(sources).err().map(|problems| problems.0).unwrap_or_default()
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let file = TempFile::new("precedence", "[drain]\nsecs = 11\n[heartbeat]\nsecs = 12\n[listen]\nbacklog = 13\n");
    let environment = [("ROOMWIRE_DRAIN__SECS", "21"), ("ROOMWIRE_HEARTBEAT__SECS", "22")];
    let layers = Layers::read(&sources(Some(&file.0), &environment, &["drain.secs=31"])).expect("all are valid");
    assert_eq!(value(&layers, "drain.secs"), "31");
    assert_eq!(value(&layers, "heartbeat.secs"), "22");
    assert_eq!(value(&layers, "listen.backlog"), "13");
    assert_eq!(value(&layers, "http.addr"), "\"127.0.0.1:9090\"");
    let origin = |path: &str| layers.get(path).map(|entry| entry.origin.to_string()).unwrap_or_default();
    assert_eq!(origin("drain.secs"), "--set");
    assert_eq!(origin("heartbeat.secs"), "ROOMWIRE_HEARTBEAT__SECS");
    assert!(origin("listen.backlog").ends_with("precedence.toml:6:1"), "{}", origin("listen.backlog"));
    assert_eq!(origin("http.addr"), "default");
}

#[test]
fn port_and_jwt_secret_go_before_the_file_and_after_our_own_names() {
    let file = TempFile::new("older", "[listen]\naddr = \"127.0.0.1:1000\"\n[auth]\nsecret = \"from the file\"\n");
    let layers =
        Layers::read(&sources(Some(&file.0), &[("PORT", "2000"), ("JWT_SECRET", "older")], &[])).expect("valid");
    assert_eq!(value(&layers, "listen.addr"), "\"127.0.0.1:2000\"", "the port alone");
    assert_eq!(value(&layers, "auth.secret"), "\"older\"");

    let both = [("PORT", "2000"), ("ROOMWIRE_LISTEN__ADDR", "[::1]:3000"), ("ROOMWIRE_AUTH__SECRET", "ours")];
    let layers = Layers::read(&sources(Some(&file.0), &both, &[])).expect("valid");
    assert_eq!(value(&layers, "listen.addr"), "\"[::1]:3000\"");
    assert_eq!(value(&layers, "auth.secret"), "\"ours\"");
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_likely_one() {
    let file = TempFile::new("unknown", "shards = 2\n\n[limits]\n  queue_byte_max = 1\n[listn]\naddr = \"x\"\n");
    let found = problems(&sources(Some(&file.0), &[], &[]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0]
            .ends_with("unknown.toml:4:3: unknown key `limits.queue_byte_max`; did you mean `limits.queue_bytes_max`?")
    );
    assert!(found[1].contains("unknown.toml:5:2: unknown key `listn`"), "{}", found[1]);

    let found =
        problems(&sources(None, &[("ROOMWIRE_DRAIN__SEC", "1"), ("ROOMWIRE_NONSENSE", "1")], &["drain.sec=1", "what"]));
    assert_eq!(
        found,
        [
            "environment: ROOMWIRE_DRAIN__SEC sets no known key; did you mean ROOMWIRE_DRAIN__SECS?",
            "environment: ROOMWIRE_NONSENSE sets no known key",
            "--set: unknown key `drain.sec`; did you mean `drain.secs`?",
            "--set: expected key=value, such as --set drain.secs=10",
        ]
    );
}

#[test]
fn what_kubernetes_sets_for_a_service_of_our_name_is_not_a_key() {
    let environment = [
        ("ROOMWIRE_SERVICE_HOST", "10.0.0.1"),
        ("ROOMWIRE_SERVICE_PORT", "80"),
        ("ROOMWIRE_PORT", "tcp://10.0.0.1:80"),
        ("ROOMWIRE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("ROOMWIRE_CONFIG", "/etc/roomwire.toml"),
        ("ROOMWIRE_SHARDS", "3"),
    ];
    let layers = Layers::read(&sources(None, &environment, &[])).expect("valid");
    assert_eq!(value(&layers, "shards"), "3");
}

#[test]
fn a_wrong_value_is_answered_with_what_is_expected() {
    let file = TempFile::new("wrong", "listen = 3\nshards = \"two\"\n[auth]\nsecret = 12345\nreject = \"maybe\"\n");
    let found = problems(&sources(Some(&file.0), &[], &[]));
    let found: Vec<&str> = found.iter().map(|line| line.split_once(".toml:").map_or("", |(_, rest)| rest)).collect();
    assert_eq!(
        found,
        [
            "5:1: `auth.reject` expects one of close, http, got \"maybe\"",
            "4:1: `auth.secret` expects text",
            "1:1: `listen` is a section, written [listen]",
            "2:1: `shards` expects a whole number from 0 to 256, got \"two\"",
        ]
    );
    let environment =
        [("PORT", "eighty"), ("ROOMWIRE_AUTH__REQUIRE_EXP", "maybe"), ("ROOMWIRE_HTTP__ADDR", "localhost")];
    assert_eq!(
        problems(&sources(None, &environment, &["limits.queue_ms_max=-1", "heartbeat.secs=0"])),
        [
            "PORT: expected a port number, got \"eighty\"",
            "ROOMWIRE_AUTH__REQUIRE_EXP: `auth.require_exp` expects true or false, got \"maybe\"",
            "ROOMWIRE_HTTP__ADDR: `http.addr` expects an IP address and port, such as 127.0.0.1:8080 or [::]:8080, got \"localhost\"",
            "--set: `limits.queue_ms_max` expects a whole number, 0 or more, got \"-1\"",
            "--set: `heartbeat.secs` expects a whole number from 1 to 3600, got \"0\"",
        ]
    );
}

#[test]
fn a_file_that_is_no_toml_is_answered_with_the_place() {
    let file = TempFile::new("broken", "[drain]\nsecs = = 3\n");
    let found = problems(&sources(Some(&file.0), &[], &[]));
    assert!(found.len() == 1 && found[0].contains("broken.toml:2:8: "), "{found:?}");
    let found = problems(&sources(Some(Path::new("/nowhere/roomwire.toml")), &[], &[]));
    assert!(found[0].starts_with("/nowhere/roomwire.toml: cannot be read: "), "{found:?}");
}

#[test]
fn no_debug_output_shows_a_value() {
    let layers = Layers::read(&sources(None, &[("JWT_SECRET", "open sesame")], &[])).expect("valid");
    assert!(!format!("{layers:?}").contains("sesame"));
}
