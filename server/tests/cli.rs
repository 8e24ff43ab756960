//! The command line as an operator meets it: what is printed, and the exit status. The binary is run with an empty
//! environment, in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SECRET: &str = "0123456789abcdef0123456789abcdef0123";

/// A directory that is gone at the end of the test.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let path = std::env::temp_dir().join(format!("roomwire-cli-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        TempDir(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("writable");
        path
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.0).env_clear();
        command
    }

    fn roomwire(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_roomwire"));
        command.args(args);
        command
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a command ended with: exit status, standard output, standard error.
fn ended(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[test]
fn version_and_help_are_answered() {
    let dir = TempDir::new("version");
    let version = concat!("roomwire ", env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")\n");
    assert_eq!(ended(&mut dir.roomwire(&["version"])), (0, version.to_owned(), String::new()));
    assert_eq!(ended(&mut dir.roomwire(&["--version"])).1, version);
    let (status, help, _) = ended(&mut dir.roomwire(&["--help"]));
    assert_eq!(status, 0);
    for word in ["serve", "check-config", "print-config", "doctor", "token", "--config", "--set", "78"] {
        assert!(help.contains(word), "{word}");
    }
    assert_eq!(ended(&mut dir.roomwire(&["fly"])).0, 2);
    assert_eq!(ended(&mut dir.roomwire(&[])).0, 2);
}

#[test]
fn doctor_finds_a_taken_port_and_a_low_descriptor_limit_and_names_the_cures() {
    let dir = TempDir::new("doctor");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = format!("listen.addr={}", taken.local_addr().expect("bound"));
    let args =
        ["doctor", "--dev", "--json", "--connections", "90000000", "--set", &listen, "--set", "http.addr=127.0.0.1:0"];
    let (status, stdout, stderr) = ended(&mut dir.roomwire(&args));
    assert_eq!((status, stderr.as_str()), (78, ""));
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let finding = |name: &str| {
        let findings = report["findings"].as_array().expect("a list");
        findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(finding("listen.addr")["verdict"], "fails");
    assert_eq!(finding("http.addr")["verdict"], "fine");
    assert_eq!(finding("kernel")["verdict"], "fine");
    assert!(finding("descriptors")["cure"].as_str().is_some_and(|cure| cure.contains("LimitNOFILE=")));
    assert!(!dir.0.join("roomwire-data").exists(), "it leaves nothing behind");
}

#[path = "support/redis.rs"]
mod server;

/// A report of the doctor: its exit status and its findings.
fn doctor(dir: &TempDir, set: &[&str]) -> (i32, Vec<serde_json::Value>) {
    let mut command = dir.roomwire(&["doctor", "--dev", "--json", "--connections", "1000"]);
    for set in ["listen.addr=127.0.0.1:0", "http.addr=127.0.0.1:0"].iter().chain(set) {
        command.args(["--set", set]);
    }
    let (status, stdout, stderr) = ended(&mut command);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    (status, report["findings"].as_array().expect("a list").clone())
}

fn of<'f>(findings: &'f [serde_json::Value], name: &str) -> &'f serde_json::Value {
    findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name} in {findings:?}"))
}

#[test]
fn doctor_looks_at_redis_and_names_what_is_wrong_with_it() {
    let dir = TempDir::new("doctor-redis");
    let redis = server::RedisServer::start(&[]);
    let url = format!("bus.redis.url=redis://127.0.0.1:{}", redis.port);
    let (_, findings) = doctor(&dir, &["bus.kind=redis", &url]);
    assert!(of(&findings, "redis")["found"].as_str().is_some_and(|found| found.contains("a round trip takes")));
    assert_eq!(of(&findings, "redis memory")["verdict"], "fine");
    assert_eq!(of(&findings, "redis clock")["verdict"], "fine");
    let subscribers = of(&findings, "redis subscribers");
    assert!(subscribers["cure"].as_str().is_some_and(|cure| cure.starts_with("redis-cli config set")), "{subscribers}");
    let mut connection = redis.connect();
    redis::cmd("CONFIG")
        .arg("SET")
        .arg("client-output-buffer-limit")
        .arg("pubsub 64mb 32mb 60")
        .exec(&mut connection)
        .expect("set");
    let (_, findings) = doctor(&dir, &["bus.kind=redis", &url]);
    assert_eq!(of(&findings, "redis subscribers")["verdict"], "fine");
    redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("allkeys-lru").exec(&mut connection).expect("set");
    let (status, findings) = doctor(&dir, &["bus.kind=redis", &url]);
    assert_eq!((status, &of(&findings, "redis")["verdict"]), (78, &serde_json::json!("fails")));
    assert!(of(&findings, "redis")["found"].as_str().is_some_and(|found| found.contains("noeviction")));
    redis.down();
    let (status, findings) = doctor(&dir, &["bus.kind=redis", &url]);
    assert_eq!((status, &of(&findings, "redis")["verdict"]), (78, &serde_json::json!("fails")));
}

#[test]
fn doctor_finds_a_cluster_that_is_not_there_within_seconds() {
    let dir = TempDir::new("doctor-cql");
    let began = std::time::Instant::now();
    let (status, findings) = doctor(&dir, &["store.kind=cql", "store.cql.nodes=127.0.0.1:1"]);
    assert_eq!((status, &of(&findings, "cassandra")["verdict"]), (78, &serde_json::json!("fails")));
    assert!(of(&findings, "cassandra")["found"].as_str().is_some_and(|found| found.contains("cannot be reached")));
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(findings.iter().all(|finding| finding["name"] != "fsync"), "nothing is kept on this disk");
}

#[path = "support/issuer.rs"]
mod issuer;

#[test]
fn a_key_set_that_cannot_be_read_is_named() {
    let dir = TempDir::new("jwks");
    let key = issuer::IssuerKey::make("k1", jsonwebtoken::Algorithm::EdDSA);
    let file = dir.file("jwks.json", &issuer::key_set([&key]));
    let jwks = "auth.jwks=jwks.json";
    let (status, _, stderr) = ended(&mut dir.roomwire(&["check-config", "--set", jwks]));
    assert_eq!((status, stderr.as_str()), (0, ""), "a key set is enough");
    let (_, findings) = doctor(&dir, &[jwks]);
    let found = &of(&findings, "key set")["found"];
    assert!(found.as_str().is_some_and(|found| found.starts_with("1 keys from jwks.json")), "{found}");
    let (status, findings) = doctor(&dir, &["auth.jwks=http://127.0.0.1:1/jwks"]);
    assert_eq!((status, &of(&findings, "key set")["verdict"]), (78, &serde_json::json!("fails")));
    let (status, _, stderr) = ended(&mut dir.roomwire(&["token", "--user", "a", "--set", jwks]));
    assert!(status == 2 && stderr.contains("made by their issuer"), "{stderr}");
    std::fs::write(&file, "{}").expect("writable");
    for (command, expected) in [("check-config", 2), ("serve", 78), ("doctor", 78)] {
        let (status, _, stderr) = ended(&mut dir.roomwire(&[command, "--set", jwks]));
        let line = "`auth.jwks`: jwks.json: not a JSON Web Key Set";
        assert!(status == expected && stderr.contains(line) && stderr.lines().count() == 1, "{command}: {stderr}");
    }
    let (status, _, stderr) = ended(&mut dir.roomwire(&["check-config", "--set", "auth.jwks=http://issuer.example/"]));
    assert!(status == 2 && stderr.contains("must begin with https://"), "{stderr}");
}

#[test]
fn serve_without_a_secret_says_how_to_make_one() {
    let dir = TempDir::new("secretless");
    let (status, stdout, stderr) = ended(&mut dir.roomwire(&["serve"]));
    assert_eq!((status, stdout.as_str()), (78, ""));
    assert!(stderr.lines().count() == 1 && stderr.contains("openssl rand -base64 48"), "{stderr}");
    let (status, _, stderr) = ended(dir.roomwire(&["serve"]).env("JWT_SECRET", "too short"));
    assert_eq!(status, 78);
    assert!(stderr.contains("has 9 bytes") && !stderr.contains("too short"), "{stderr}");
}

#[test]
fn serve_with_a_wrong_configuration_ends_with_78_and_check_config_with_2() {
    let dir = TempDir::new("wrong");
    let file = dir.file("roomwire.toml", "[drain]\nsec = 3\n");
    let expected = format!("roomwire: {}:2:1: unknown key `drain.sec`; did you mean `drain.secs`?\n", file.display());
    let config = file.to_str().expect("UTF-8");
    assert_eq!(ended(&mut dir.roomwire(&["serve", "--config", config])), (78, String::new(), expected.clone()));
    assert_eq!(ended(&mut dir.roomwire(&["check-config", "--config", config])), (2, String::new(), expected.clone()));
    assert_eq!(ended(dir.roomwire(&["check-config"]).env("ROOMWIRE_CONFIG", config)).2, expected);
    assert_eq!(ended(&mut dir.roomwire(&["print-config", "--config", config])).0, 2);
    assert_eq!(ended(&mut dir.roomwire(&["serve", "--config", "missing.toml"])).0, 78);
}

#[test]
fn check_config_says_all_that_is_wrong_at_once() {
    let dir = TempDir::new("check");
    let (status, stdout, _) = ended(dir.roomwire(&["check-config"]).env("JWT_SECRET", SECRET));
    assert_eq!((status, stdout.as_str()), (0, "configuration is fine\n"));
    let wrong = ["check-config", "--set", "limits.content_bytes_max=70000", "--set", "node.id=a b"];
    let (status, _, stderr) = ended(&mut dir.roomwire(&wrong));
    assert_eq!(status, 2);
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with("roomwire: ")));
    let (status, _, stderr) = ended(dir.roomwire(&["check-config", "--set", "shards=200"]).env("JWT_SECRET", SECRET));
    assert_eq!(status, 0);
    assert!(stderr.starts_with("warning: 200 shards on "), "{stderr}");
}

#[test]
fn print_config_shows_values_origins_and_no_secret() {
    let dir = TempDir::new("print");
    let file = dir.file("roomwire.toml", "shards = 1\n[heartbeat]\nsecs = 20\n[auth]\nsecret = \"of the file\"\n");
    let mut command = dir.roomwire(&["print-config", "--json", "--set", "drain.secs=10", "--config"]);
    let command = command.arg(&file).env("JWT_SECRET", SECRET).env("PORT", "4000");
    let (status, stdout, stderr) = ended(command.env("ROOMWIRE_HEARTBEAT__SECS", "25"));
    assert_eq!((status, stderr.as_str()), (0, ""));
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let entry =
        |key: &str| (json[key]["value"].to_string(), json[key]["origin"].as_str().unwrap_or_default().to_owned());
    let expect = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(entry("drain.secs"), expect("10", "--set"));
    assert_eq!(entry("heartbeat.secs"), expect("25", "ROOMWIRE_HEARTBEAT__SECS"));
    assert_eq!(entry("listen.addr"), expect("\"0.0.0.0:4000\"", "PORT"));
    assert_eq!(entry("auth.secret"), expect("\"***\"", "JWT_SECRET"));
    assert_eq!(entry("shards"), expect("1", &format!("{}:1:1", file.display())));
    assert_eq!(entry("http.addr"), expect("\"127.0.0.1:9090\"", "default"));
    assert_eq!(entry("http.key"), expect("null", "unset"));

    let (_, stdout, _) = ended(dir.roomwire(&["print-config"]).env("JWT_SECRET", SECRET));
    assert!(stdout.contains("secret = \"***\"") && !stdout.contains(SECRET), "{stdout}");
    assert!(stdout.parse::<toml::Table>().is_ok(), "what is printed is a configuration file");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let dir = TempDir::new("pipe");
    let line = format!("{} gen-config | true; test ${{PIPESTATUS[0]}} -eq 0", env!("CARGO_BIN_EXE_roomwire"));
    let (status, _, stderr) = ended(dir.command("/bin/bash").args(["-c", &line]));
    assert_eq!((status, stderr.as_str()), (0, ""));
}

#[test]
fn gen_config_prints_a_file_that_check_config_takes() {
    let dir = TempDir::new("gen");
    let (_, example, _) = ended(&mut dir.roomwire(&["gen-config"]));
    let file = dir.file("roomwire.toml", &example);
    let (status, _, stderr) = ended(dir.roomwire(&["check-config", "--config"]).arg(&file).env("JWT_SECRET", SECRET));
    assert_eq!((status, stderr.as_str()), (0, ""));
}

#[test]
fn a_token_is_minted_for_the_configured_secret() {
    let dir = TempDir::new("token");
    let args =
        ["token", "--user", "alice", "--name", "Alice", "--ttl", "2h", "--room", "news*=join", "--room", "lobby"];
    let (status, token, stderr) = ended(dir.roomwire(&args).env("JWT_SECRET", SECRET));
    assert_eq!((status, stderr.as_str()), (0, ""));
    let authenticator = roomwire::auth::Authenticator::new(
        Some(&roomwire::config::Secret::new(SECRET.to_owned())),
        None,
        &roomwire::config::types::Auth::default(),
        8192,
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let identity = authenticator.check(token.trim(), now.as_millis() as u64).expect("it counts");
    assert_eq!((&*identity.user.id, &*identity.user.name), ("alice", "Alice"));
    let grants = identity.grants.expect("rooms were given");
    assert_eq!(
        grants.iter().map(|grant| (grant.join, grant.publish)).collect::<Vec<_>>(),
        [(true, false), (true, true)]
    );

    let (status, _, stderr) = ended(dir.roomwire(&["token", "--user", "a b"]).env("JWT_SECRET", SECRET));
    assert!(status == 2 && stderr.contains("the user id"), "{stderr}");
    assert_eq!(ended(&mut dir.roomwire(&["token", "--user", "alice"])).0, 2, "no secret");
    let (status, _, stderr) = ended(&mut dir.roomwire(&["token", "--dev", "--user", "alice"]));
    assert!(status == 1 && stderr.contains("serve --dev"), "{stderr}");
}

#[test]
fn too_few_descriptors_are_said_at_once() {
    let dir = TempDir::new("descriptors");
    let line = format!("ulimit -n 64; exec {} serve --dev", env!("CARGO_BIN_EXE_roomwire"));
    let (status, _, stderr) = ended(dir.command("/bin/bash").args(["-c", &line]));
    assert_eq!(status, 78);
    assert!(stderr.lines().count() == 1 && stderr.contains("LimitNOFILE"), "{stderr}");
}

#[test]
fn a_panic_of_any_thread_ends_the_process_with_one_line() {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "child_of_the_test_of_panics", "--ignored", "--nocapture"]).env("ROOMWIRE_TEST_PANIC", "1");
    let output = child.output().expect("it runs");
    assert_eq!(output.status.code(), None, "aborted by a signal");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    let line = stderr.lines().find(|line| line.starts_with("roomwire: ")).unwrap_or_default();
    assert!(line.starts_with("roomwire: panic in thread shard-7 at ") && line.contains("two lines"), "{stderr}");
}

#[test]
#[ignore = "the child of the test above"]
fn child_of_the_test_of_panics() {
    if std::env::var_os("ROOMWIRE_TEST_PANIC").is_none() {
        return;
    }
    roomwire::logs::abort_on_panic();
    let _ = std::thread::Builder::new()
        .name("shard-7".to_owned())
        .spawn(|| panic!("two\nlines"))
        .map(|thread| thread.join());
}

#[test]
fn man_pages_completions_and_examples_are_written() {
    let dir = TempDir::new("generate");
    for what in ["man", "completions", "reference", "example"] {
        let (status, _, stderr) = ended(&mut dir.roomwire(&["generate", what, "out"]));
        assert_eq!((status, stderr.as_str()), (0, ""), "{what}");
    }
    let page = std::fs::read_to_string(dir.0.join("out/roomwire-serve.1")).expect("a man page");
    assert!(page.contains("loopback only"));
    for name in [
        "roomwire.1",
        "roomwire.toml.5",
        "roomwire.bash",
        "_roomwire",
        "roomwire.fish",
        "configuration.md",
        "roomwire.toml",
    ] {
        assert!(dir.0.join("out").join(name).exists(), "{name}");
    }
}

/// `UPDATE_DOCS=1 cargo test -p roomwire --test cli` writes the page.
#[test]
fn the_configuration_page_equals_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let wanted = roomwire::config::show::reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("docs can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/configuration.md is out of date: UPDATE_DOCS=1 cargo test -p roomwire --test cli");
}
