//! The whole program against a server that keeps its promises, and against servers that do not: a bench that cannot
//! fail proves nothing. The server here speaks the plain dialect on real sockets, one thread for each connection.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// How often the delivery with this count goes out.
type Copies = fn(u64) -> usize;

#[derive(Default)]
struct Rooms {
    members: HashMap<String, Vec<TcpStream>>,
    delivered: u64,
}

/// Starts a server that sends each delivery as often as `copies` says.
fn server(copies: Copies) -> SocketAddr {
    node(&Arc::default(), copies)
}

/// Starts one node of a server whose nodes share `rooms`.
fn node(rooms: &Arc<Mutex<Rooms>>, copies: Copies) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let rooms = Arc::clone(rooms);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let rooms = Arc::clone(&rooms);
            thread::spawn(move || {
                let for_rooms = stream.try_clone().expect("a descriptor");
                if let Ok(socket) = tungstenite::accept(stream) {
                    serve(socket, &for_rooms, &rooms, copies);
                }
            });
        }
    });
    addr
}

fn serve(mut socket: WebSocket<TcpStream>, stream: &TcpStream, rooms: &Mutex<Rooms>, copies: Copies) {
    say(stream, &json!({"type": "connected"}).to_string());
    while let Ok(message) = socket.read() {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).expect("the bench sends JSON");
        let room = message["roomId"].as_str().unwrap_or_default();
        let mut rooms = rooms.lock().expect("no thread panicked");
        match message["type"].as_str() {
            Some("join_room") => {
                rooms.members.entry(room.into()).or_default().push(stream.try_clone().expect("a descriptor"));
            }
            Some("ping") => say(stream, r#"{"type":"pong"}"#),
            Some("chat_message") => {
                let text = format!(r#"{{"type":"chat_message","content":{}}}"#, message["content"]);
                let Rooms { members, delivered } = &mut *rooms;
                for member in &members[room] {
                    *delivered += 1;
                    for _ in 0..copies(*delivered) {
                        say(member, &text);
                    }
                }
            }
            other => panic!("the bench sent {other:?}"),
        }
    }
}

/// One text frame; callers hold the lock of the rooms or are alone on the connection. A client that has gone is no fault.
fn say(mut stream: &TcpStream, text: &str) {
    use std::io::Write as _;
    let mut frame = Vec::new();
    roomwire_wire::frame::encode(roomwire_wire::frame::Opcode::Text, text.as_bytes(), &mut frame);
    let _ = stream.write_all(&frame);
}

/// Runs `fanout` with 2 rooms of 3, 40 messages, 120 deliveries; the machine may be as slow as it likes.
fn fanout(addr: SocketAddr, workers: u32) -> (Output, Value) {
    fanout_over(&[addr], workers)
}

fn fanout_over(nodes: &[SocketAddr], workers: u32) -> (Output, Value) {
    run(nodes, workers, &["fanout", "--rooms", "2", "--members", "3", "--rate", "100"])
}

/// An agent process on this machine, which ends with the test.
struct Agent {
    process: Child,
    addr: String,
}

impl Agent {
    fn start(secret: &str) -> Agent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire-bench"));
        command.args(["agent", "--listen", "127.0.0.1:0", "--secret", secret]).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the bench runs");
        let mut line = String::new();
        let mut stderr = BufReader::new(process.stderr.take().expect("piped"));
        stderr.read_line(&mut line).expect("it says where it listens");
        let addr = line.trim().strip_prefix("listening on ").expect("it says where it listens").to_owned();
        Agent { process, addr }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(nodes: &[SocketAddr], workers: u32, arguments: &[&str]) -> (Output, Value) {
    let json = std::env::temp_dir().join(format!("roomwire-bench-{}-{}.json", std::process::id(), nodes[0].port()));
    let addrs = nodes.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    let output = Command::new(env!("CARGO_BIN_EXE_roomwire-bench"))
        .args(arguments)
        .args(["--dialect", "plain", "--secret", "a secret of the test"])
        .args(["--warm-up", "0.1", "--seconds", "0.3", "--drain", "1"])
        .args(["--lag-ms-max", "1000000", "--cpu-percent-max", "1000000"])
        .args(["--addr", &addrs, "--workers", &workers.to_string()])
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the bench runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("no report: {error}: {said}"));
    std::fs::remove_file(&json).expect("it was there");
    (output, serde_json::from_str(&text).expect("a report is JSON"))
}

#[test]
fn a_server_that_delivers_everything_once_passes_with_any_number_of_workers() {
    for workers in [1, 4] {
        let (_, report) = fanout(server(|_| 1), workers);
        assert_eq!(report["void"], json!([]), "{report}");
        let deliveries = &report["load"]["deliveries"];
        assert_eq!((&deliveries["expected"], &deliveries["arrived"]), (&json!(120), &json!(120)), "{workers} workers");
        assert!(report["delivery"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
        assert!(!report.to_string().contains("a secret of the test"));
    }
}

#[test]
fn members_are_spread_over_the_nodes_and_what_crosses_them_is_told_apart() {
    let rooms = Arc::default();
    let (_, report) = fanout_over(&[node(&rooms, |_| 1), node(&rooms, |_| 1)], 2);
    assert_eq!(report["void"], json!([]), "{report}");
    assert_eq!(report["shape"]["nodes"], 2);
    // Of three members two share a node with one publisher in two, so some deliveries cross and some do not.
    let count = |field: &str| report[field]["count"].as_u64().unwrap_or(0);
    assert!(0 < count("delivery_across") && count("delivery_across") < count("delivery"), "{report}");
}

#[test]
fn everybody_comes_back_from_a_storm_and_who_stayed_misses_nothing() {
    let (_, report) = run(&[server(|_| 1)], 2, &["storm", "--rooms", "2", "--members", "4", "--rate", "100"]);
    assert_eq!(report["void"], json!([]), "{report}");
    assert_eq!(report["load"]["counts"]["reconnects"], 6);
    assert_eq!(report["times"]["reconnect"]["count"], 6);
    // Without resume only the two that stayed are owed what was said meanwhile.
    assert_eq!(report["load"]["deliveries"]["expected"], 40);
}

#[test]
fn a_closed_loop_has_a_ledger_and_a_maximum_but_no_latencies() {
    let arguments = ["fanout", "--rooms", "2", "--members", "3", "--closed-loop"];
    let (_, report) = run(&[server(|_| 1)], 2, &arguments);
    assert_eq!(report["void"], json!([]), "{report}");
    assert_eq!((&report["shape"]["pace"], &report["delivery"]), (&json!("closed"), &Value::Null));
    let (sent, expected) = (&report["load"]["sent"], &report["load"]["deliveries"]["expected"]);
    assert!(sent.as_u64().is_some_and(|sent| sent > 0 && expected.as_u64() == Some(sent * 3)), "{report}");
    let (_, report) = run(&[server(|count| usize::from(count != 9))], 2, &arguments);
    assert!(report["void"][0].as_str().is_some_and(|reason| reason.contains("lost")), "{report}");
}

#[test]
fn the_floor_is_a_run_like_any_other() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let addr = free.to_string();
    let (_, report) =
        run(&[free], 1, &["floor", "--rooms", "2", "--members", "3", "--rate", "100", "--floor-addr", &addr]);
    assert_eq!((&report["void"], &report["label"]), (&json!([]), &json!("floor")), "{report}");
    assert_eq!(report["load"]["deliveries"]["arrived"], 120);
    assert!(report["server"]["cpu_share"].is_number(), "{report}");
}

#[test]
fn agents_hold_the_connections_and_their_ledgers_add_up() {
    let agents = [Agent::start("a secret of the test"), Agent::start("a secret of the test")];
    let named = agents.iter().map(|agent| agent.addr.as_str()).collect::<Vec<_>>().join(",");
    let arguments = ["fanout", "--rooms", "2", "--members", "3", "--rate", "100", "--agent", &named];
    let (_, report) = run(&[server(|_| 1)], 2, &arguments);
    assert_eq!(report["void"], json!([]), "{report}");
    assert_eq!((&report["load"]["deliveries"]["arrived"], &report["shape"]["workers"]), (&json!(120), &json!(4)));
    // One machine has one clock.
    assert!(report["clock_error_ms"].as_f64().is_some_and(|ms| ms < 50.0), "{report}");
    let (_, report) = run(&[server(|count| usize::from(count != 60))], 1, &arguments);
    assert!(report["void"][0].as_str().is_some_and(|reason| reason.contains("1 of 120 lost")), "{report}");
}

#[test]
fn an_agent_with_another_secret_or_none_at_all_is_an_error_and_not_a_figure() {
    let said = |agent: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_roomwire-bench"))
            .args(["idle", "-n", "3", "--secret", "x", "--addr", &server(|_| 1).to_string(), "--agent", agent])
            .output()
            .expect("the bench runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let stranger = Agent::start("y");
    let refused = said(&stranger.addr);
    assert!(refused.contains(&stranger.addr) && refused.contains("JWT_SECRET"), "{refused}");
    let gone = stranger.addr.clone();
    drop(stranger);
    assert!(said(&gone).contains(&gone), "{}", said(&gone));
}

#[test]
fn an_agent_that_dies_ends_the_run() {
    let agent = Agent::start("a secret of the test");
    let killed = agent.process.id();
    let started = Command::new(env!("CARGO_BIN_EXE_roomwire-bench"))
        .args(["idle", "-n", "3", "--dialect", "plain", "--secret", "a secret of the test", "--hold", "60"])
        .args(["--addr", &server(|_| 1).to_string(), "--agent", &agent.addr])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the bench runs");
    thread::sleep(std::time::Duration::from_secs(2));
    let killed = Command::new("kill").args(["-9", &killed.to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let output = started.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("ended without a result"), "{said}");
}

#[test]
fn a_server_that_loses_one_delivery_is_found_out() {
    let (output, report) = fanout(server(|count| usize::from(count != 60)), 2);
    assert!(!output.status.success());
    let deliveries = &report["load"]["deliveries"];
    assert_eq!((&deliveries["expected"], &deliveries["arrived"]), (&json!(120), &json!(119)));
    assert!(report["void"][0].as_str().is_some_and(|reason| reason.contains("1 of 120 lost")), "{report}");
}

#[test]
fn a_server_that_doubles_one_delivery_is_found_out() {
    let (output, report) = fanout(server(|count| if count == 60 { 2 } else { 1 }), 2);
    assert!(!output.status.success());
    assert!(report["void"][0].as_str().is_some_and(|reason| reason.contains("1 doubled")), "{report}");
}

#[test]
fn nobody_there_is_an_error_and_not_a_figure() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let output = Command::new(env!("CARGO_BIN_EXE_roomwire-bench"))
        .args(["idle", "-n", "3", "--secret", "x", "--addr", &free.to_string()])
        .output()
        .expect("the bench runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Connection refused"), "{said}");
}

#[test]
fn a_report_names_neither_this_machine_nor_its_folders() {
    let here = std::env::current_dir().expect("a working folder");
    let data = std::env::temp_dir().join("roomwire-bench-nameless");
    let config = format!("in {} with {}", here.display(), data.display());
    let (_, report) = run(&[server(|_| 1)], 1, &["fanout", "--rooms", "1", "--members", "2", "--label", &config]);
    let command = report["environment"]["command_line"].to_string();
    for name in [here.display().to_string(), std::env::temp_dir().join("").display().to_string()] {
        assert!(!command.contains(&name), "{name} in {command}");
    }
    assert!(command.starts_with(r#"["roomwire-bench","fanout""#), "{command}");
}

/// What is committed under docs/benchmarks; in `vm` are reports of `scripts/vm`, whose paths are those of its own machines.
#[test]
fn committed_reports_can_be_read_and_name_no_machine() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks");
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.extend((!path.ends_with("vm")).then_some(path));
                continue;
            }
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            for name in
                ["/home/", "/root/", "/tmp/", "/usr/", "/Users/", "/mnt/", "/opt/", "/var/", env!("CARGO_MANIFEST_DIR")]
            {
                assert!(!text.contains(name), "{} names a path: {name}", path.display());
            }
            if path.extension().is_some_and(|ending| ending == "json") {
                let output = Command::new(env!("CARGO_BIN_EXE_roomwire-bench")).arg("table").arg(&path).output();
                let output = output.expect("the bench runs");
                assert!(String::from_utf8_lossy(&output.stdout).starts_with("| scenario |"), "{}", path.display());
            }
        }
    }
}
