//! The key set of an issuer on a whole node, over real HTTP and HTTPS: rotation, floods of unknown keys, an issuer that is
//! down or lies, a reload. The rules for single keys and tokens are tested beside their code, in server/src/auth.

use jsonwebtoken::Algorithm;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value as Json, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[path = "support/node.rs"]
mod harness;
use harness::{Client, Node, PATIENCE, TempDir};
#[path = "support/issuer.rs"]
mod issuer;
use issuer::{IssuerKey, key_set};

/// What the issuer's server answers.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    /// Lines of the head, each with its end.
    head: String,
    body: String,
    /// Answers 304 to whoever has this already.
    etag: Option<String>,
}

/// The issuer's server.
struct Site {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicU64>,
}

impl Site {
    fn start(keys: &[&IssuerKey]) -> Site {
        Site::on(TcpListener::bind(("127.0.0.1", 0)).expect("a port"), None, keys)
    }

    fn on(listener: TcpListener, tls: Option<Arc<ServerConfig>>, keys: &[&IssuerKey]) -> Site {
        let site = Site {
            port: listener.local_addr().expect("bound").port(),
            answer: Arc::default(),
            requests: Arc::default(),
        };
        site.publish(keys);
        let (answer, requests) = (Arc::clone(&site.answer), Arc::clone(&site.requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that refuses our certificate breaks off in the middle.
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let answer = || {
                    requests.fetch_add(1, Ordering::SeqCst);
                    answer.lock().expect("not poisoned").clone()
                };
                let _ = match &tls {
                    None => talk(stream, answer),
                    Some(tls) => ServerConnection::new(Arc::clone(tls))
                        .map_err(std::io::Error::other)
                        .and_then(|tls| talk(StreamOwned::new(tls, stream), answer)),
                };
            }
        });
        site
    }

    fn publish(&self, keys: &[&IssuerKey]) {
        self.answer(Answer { status: 200, body: key_set(keys.iter().copied()), ..Answer::default() });
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().expect("not poisoned") = answer;
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/jwks", self.port)
    }
}

/// One request and its answer.
fn talk(mut stream: impl Read + Write, answer: impl FnOnce() -> Answer) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let Answer { mut status, mut head, mut body, etag } = answer();
    if let Some(etag) = etag {
        head.push_str(&format!("ETag: {etag}\r\n"));
        if request.contains(&format!("if-none-match: {etag}\r\n")) {
            (status, body) = (304, String::new());
        }
    }
    if status != 304 {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    write!(stream, "HTTP/1.1 {status} It\r\nConnection: close\r\n{head}\r\n{body}")?;
    stream.flush()
}

/// A node with these keys set; its configuration file is `roomwire.toml`.
fn start(dir: &TempDir, set: &[&str]) -> Node {
    let file = dir.0.join("roomwire.toml");
    if !file.exists() {
        std::fs::write(file, "").expect("writable");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(&dir.0).env_clear().args(["serve", "--config", "roomwire.toml"]);
    for set in ["shards=2", "listen.addr=127.0.0.1:0", "http.addr=127.0.0.1:0"].iter().chain(set) {
        command.args(["--set", set]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Node::from(&mut command)
}

fn claims(user: &str) -> Json {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    json!({ "sub": user, "exp": now + 600 })
}

fn is_refused(node: &Node, token: &str) -> bool {
    Client::upgrade(node, token).0.read().expect("an answer").is_close()
}

fn metric(node: &Node, name: &str) -> u64 {
    let text = node.get("/metrics").1;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn reads(node: &Node, result: &str) -> u64 {
    metric(node, &format!("roomwire_auth_jwks_reads_total{{result=\"{result}\"}}"))
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_there(client: &mut Client) {
    client.send(&json!({ "type": "ping" }));
    client.next("pong");
}

fn ready(node: &Node) -> (u16, Json) {
    let (status, body) = node.get("/readyz");
    (status, serde_json::from_str(&body).expect("JSON"))
}

#[test]
fn keys_rotate_and_nobody_is_disconnected_by_it() {
    let (old, new) = (IssuerKey::make("2026-a", Algorithm::RS256), IssuerKey::make("2026-b", Algorithm::ES256));
    let site = Site::start(&[&old]);
    let dir = TempDir::new("jwks-rotation");
    let node = start(&dir, &[&format!("auth.jwks={}", site.url())]);
    let (old_token, new_token) = (old.token(&claims("ann")), new.token(&claims("bob")));
    let mut ann = Client::connect(&node, &old_token);
    assert_eq!((site.requests(), metric(&node, "roomwire_auth_jwks_keys")), (1, 1));

    // The new key comes beside the old one: the first token that names it makes the node look.
    site.publish(&[&old, &new]);
    assert!(is_refused(&node, &new_token), "not known yet");
    eventually("the new key counts", || !is_refused(&node, &new_token));
    assert_eq!(site.requests(), 2);
    assert!(!is_refused(&node, &old_token));
    let mut bob = Client::connect(&node, &new_token);
    bob.join(json!({ "roomId": "r" }));
    ann.publish("r", "hello", "c1");
    assert_eq!(bob.next("chat_message")["userId"], "ann");

    // The old one goes.
    site.publish(&[&new]);
    assert!(!is_refused(&node, &old_token), "until the set is fetched again");
    node.signal(libc::SIGHUP);
    eventually("the old key is gone", || is_refused(&node, &old_token));
    assert_eq!((site.requests(), metric(&node, "roomwire_auth_jwks_keys")), (3, 1));
    assert!(!is_refused(&node, &new_token));
    is_there(&mut ann);
    ann.send(&json!({ "type": "refresh", "token": old_token }));
    assert_eq!(ann.next("error")["code"], "forbidden");
    ann.send(&json!({ "type": "refresh", "token": new.token(&claims("ann")) }));
    ann.next("refreshed");

    // And no line of the log has a token.
    let signatures = [&old_token, &new_token].map(|token| token.rsplit('.').next().expect("a signature").to_owned());
    let lines: Vec<String> = node.lines.try_iter().collect();
    assert!(lines.iter().any(|line| line.contains("token refused")), "{lines:?}");
    assert!(lines.iter().all(|line| signatures.iter().all(|signature| !line.contains(signature.as_str()))));
}

#[test]
fn a_flood_of_unknown_keys_makes_the_node_ask_once() {
    let key = IssuerKey::make("k", Algorithm::EdDSA);
    let site = Site::start(&[&key]);
    let dir = TempDir::new("jwks-flood");
    let jwks = format!("auth.jwks={}", site.url());
    let node = start(&dir, &[&jwks, "limits.messages_per_second_max=0", "limits.messages_burst_max=0"]);
    let mut client = Client::connect(&node, &key.token(&claims("ann")));
    let began = Instant::now();
    let mut sent = 0;
    while sent < 3_000 || began.elapsed() < Duration::from_secs(3) {
        for _ in 0..100 {
            sent += 1;
            let token = key.token_named(&claims("ann"), Some(&format!("random-{sent}")));
            client.send(&json!({ "type": "refresh", "token": token }));
        }
        for _ in 0..100 {
            client.next("error");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(50), "or the next fetch would be due");
    assert_eq!(site.requests(), 2, "at the start, and for the first of {sent} unknown keys");
    assert_eq!(metric(&node, "roomwire_auth_jwks_unknown_kids_total"), sent);
    assert!(!is_refused(&node, &key.token(&claims("bob"))));
}

#[test]
fn an_issuer_that_is_down_or_lies_leaves_the_last_good_keys() {
    let (key, other) = (IssuerKey::make("k", Algorithm::EdDSA), IssuerKey::make("o", Algorithm::EdDSA));
    let (site, elsewhere) = (Site::start(&[&key]), Site::start(&[&other]));
    let dir = TempDir::new("jwks-lies");
    let node = start(&dir, &[&format!("auth.jwks={}", site.url())]);
    let token = key.token(&claims("ann"));
    let mut client = Client::connect(&node, &token);
    let redirect = Answer { status: 302, head: format!("Location: {}\r\n", elsewhere.url()), ..Answer::default() };
    let body = |body: String| Answer { status: 200, body, ..Answer::default() };
    let bad = [
        Answer { status: 500, ..Answer::default() },
        Answer { status: 404, ..Answer::default() },
        Answer { status: 304, ..Answer::default() },
        redirect,
        body("<html>".to_owned()),
        body(r#"{"keys":[]}"#.to_owned()),
        body(r#"{"keys":[{"kty":"oct","kid":"k","k":"c2VjcmV0"}]}"#.to_owned()),
        body(format!("{}{}", " ".repeat(300_000), key_set([&other]))),
    ];
    for answer in bad {
        let what = format!("{}, {:.40}", answer.status, answer.body.trim_start());
        site.answer(answer);
        let before = reads(&node, "failed");
        node.signal(libc::SIGHUP);
        eventually(&what, || reads(&node, "failed") > before);
        assert!(!is_refused(&node, &token), "{what}");
        assert_eq!((reads(&node, "read"), metric(&node, "roomwire_auth_jwks_failing")), (1, 1), "{what}");
    }
    assert_eq!(elsewhere.requests(), 0, "redirects are not followed");
    // Whoever has keys is ready.
    assert_eq!(ready(&node).1["status"], "ready");
    is_there(&mut client);
    let lines: Vec<String> = node.lines.try_iter().collect();
    let said = lines.iter().filter(|line| line.contains("the key set cannot be read")).count();
    assert_eq!(said, 1, "it is said once: {lines:?}");

    site.publish(&[&key, &other]);
    node.signal(libc::SIGHUP);
    eventually("it is well again", || metric(&node, "roomwire_auth_jwks_failing") == 0);
    assert!(!is_refused(&node, &other.token(&claims("bob"))));
}

#[test]
fn a_node_that_finds_no_keys_starts_and_takes_them_when_they_come() {
    let key = IssuerKey::make("k", Algorithm::EdDSA);
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let addr = listener.local_addr().expect("bound");
    drop(listener);
    let dir = TempDir::new("jwks-late");
    let node = start(&dir, &[&format!("auth.jwks=http://{addr}/jwks")]);
    let token = key.token(&claims("ann"));
    assert!(is_refused(&node, &token));
    let (status, health) = ready(&node);
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));
    let cause = health["checks"]["keys"]["cause"].as_str().unwrap_or_default();
    assert!(cause.contains(&format!("http://{addr}/jwks")), "{health}");
    let site = Site::on(TcpListener::bind(addr).expect("the port is free still"), None, &[&key]);
    eventually("the keys are there", || !is_refused(&node, &token));
    assert_eq!((ready(&node).1["status"].clone(), site.requests()), (json!("ready"), 1));
}

/// A certificate of an authority of our own for 127.0.0.1.
fn tls(dir: &Path) -> Arc<ServerConfig> {
    let make = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().expect("openssl is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    make("req -newkey rsa:2048 -nodes -subj /CN=issuer -keyout site.key -out site.csr");
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n").expect("writable");
    make("x509 -req -in site.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out site.pem");
    let certificate = CertificateDer::from_pem_file(dir.join("site.pem")).expect("PEM");
    let key = PrivateKeyDer::from_pem_file(dir.join("site.key")).expect("PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key);
    Arc::new(config.expect("a key and its certificate"))
}

#[test]
fn https_needs_the_right_authority_and_what_is_unchanged_is_not_sent_again() {
    let key = IssuerKey::make("k", Algorithm::ES384);
    let dir = TempDir::new("jwks-tls");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let site = Site::on(listener, Some(tls(&dir.0)), &[&key]);
    let etag = Some("\"v1\"".to_owned());
    site.answer(Answer { etag, status: 200, body: key_set([&key]), ..Answer::default() });
    let jwks = format!("auth.jwks=https://127.0.0.1:{}/jwks", site.port);
    let token = key.token(&claims("ann"));
    let node = start(&dir, &[&jwks, "auth.jwks_ca_file=ca.pem"]);
    assert!(!is_refused(&node, &token));
    node.signal(libc::SIGHUP);
    eventually("304", || reads(&node, "unchanged") == 1);
    assert_eq!((reads(&node, "read"), reads(&node, "failed")), (1, 0));
    assert!(!is_refused(&node, &token));

    // Another authority than that of the certificate: its own.
    let other = ["auth.jwks_ca_file=site.pem", "data.dir=other"];
    let stranger = start(&dir, &[&jwks, other[0], other[1]]);
    let cause = ready(&stranger).1["checks"]["keys"]["cause"].to_string();
    assert!(cause.contains("certificate"), "{cause}");
    assert!(is_refused(&stranger, &token));
    assert_eq!(site.requests(), 2, "nobody asks a server that is not who it should be");
}

#[test]
fn a_reload_takes_another_key_set_only_if_it_can_be_read() {
    let (first, second) = (IssuerKey::make("one", Algorithm::EdDSA), IssuerKey::make("two", Algorithm::PS256));
    let site = Site::start(&[&second]);
    let dir = TempDir::new("jwks-reload");
    let write = |name: &str, text: &str| std::fs::write(dir.0.join(name), text).expect("writable");
    write("jwks.json", &key_set([&first]));
    let of = |jwks: &str| format!("auth.jwks = \"{jwks}\"\n");
    write("roomwire.toml", &of("jwks.json"));
    let node = start(&dir, &[]);
    let tokens = [&first, &second].map(|key| key.token(&claims("ann")));
    let refused = || [is_refused(&node, &tokens[0]), is_refused(&node, &tokens[1])];
    let mut client = Client::connect(&node, &tokens[0]);
    assert_eq!(refused(), [false, true]);

    write("jwks.json", "{");
    node.signal(libc::SIGHUP);
    assert!(node.line("the old one stays").to_string().contains("jwks.json: not a JSON Web Key Set"));
    write("roomwire.toml", &of("http://127.0.0.1:1/jwks"));
    node.signal(libc::SIGHUP);
    assert!(node.line("the old one stays").to_string().contains("http://127.0.0.1:1/jwks"));
    assert_eq!(refused(), [false, true], "the keys of before");

    write("jwks.json", &key_set([&first, &second]));
    write("roomwire.toml", &of("jwks.json"));
    node.signal(libc::SIGHUP);
    node.line("configuration reloaded");
    assert_eq!(refused(), [false, false]);

    write("roomwire.toml", &of(&site.url()));
    node.signal(libc::SIGHUP);
    assert_eq!(node.line("configuration reloaded")["changed"], "auth.jwks");
    assert_eq!(refused(), [true, false]);

    write("roomwire.toml", "auth.secret = \"a secret of the tests, long enough to be one\"\n");
    node.signal(libc::SIGHUP);
    node.line("configuration reloaded");
    assert_eq!(refused(), [true, true]);
    assert_eq!(metric(&node, "roomwire_auth_jwks_keys"), 0);
    is_there(&mut client);
}
