//! The samples for HAProxy and nginx, run by the real ones in front of real nodes: a node is killed, another drained, and
//! nobody is stuck.

use serde_json::{Value as Json, json};
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

#[path = "support/node.rs"]
mod harness;
use harness::{Node, PATIENCE, TempDir};

const SECRET: &str = "the secret of the nodes behind the balancers";
const CLIENTS: usize = 24;
/// How long a client may be without service after its node died or sent it away.
const BACK_WITHIN: Duration = Duration::from_secs(8);

fn node(dir: &Path, id: &str, more: &[&str]) -> Node {
    let home = dir.join(id);
    std::fs::create_dir_all(&home).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.current_dir(&home).env_clear().env("JWT_SECRET", SECRET).env("ROOMWIRE_NODE__ID", id).arg("serve");
    for set in ["listen.addr=127.0.0.1:0", "http.addr=127.0.0.1:0", "shards=1", "drain.secs=4"].iter().chain(more) {
        command.args(["--set", set]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Node::from(&mut command)
}

fn token(user: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomwire"));
    command.env_clear().env("JWT_SECRET", SECRET).args(["token", "--user", user]);
    let output = command.output().expect("the binary runs");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// A balancer, stopped when dropped.
struct Balancer {
    child: Child,
    addr: SocketAddr,
    _port: Held,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not reaped yet; nginx's workers end with their master at SIGTERM.
        unsafe { libc::kill(i32::try_from(self.child.id()).unwrap_or(0), libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

impl Balancer {
    fn start(program: &str, dir: &Path, port: Held, conf: &str, args: &[&str]) -> Balancer {
        let addr = port.addr();
        std::fs::write(dir.join("balancer.conf"), conf).expect("writable");
        let mut command = Command::new(program);
        command.current_dir(dir).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(dir.join("balancer.log")).expect("writable");
        let child = command.stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}; scripts/setup test installs it"));
        let mut balancer = Balancer { child, addr, _port: port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).is_err() {
            let ended = balancer.child.try_wait().expect("waitable");
            let log = std::fs::read_to_string(dir.join("balancer.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "{program}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        balancer
    }

    /// HAProxy with a sample of docs/samples, in which the lines that are marked become ours.
    fn haproxy(dir: &Path, sample: &str, nodes: &[Node]) -> Balancer {
        let held = Held::new();
        let addr = held.addr();
        let mut conf = String::new();
        for line in self::sample(sample).lines() {
            let server = nodes.iter().enumerate().find(|(n, _)| line.contains(&format!("server node{} ", n + 1)));
            let line = match server {
                _ if line.ends_with("# connections") => "    maxconn 2000".to_owned(),
                _ if line.ends_with("# port") => format!("    bind {addr}"),
                Some((n, node)) => {
                    let of_sample = format!("10.0.0.1{}:8080", n + 1);
                    assert!(line.contains(&of_sample) && line.contains("port 9090"), "{line}");
                    let line = line.replace(&of_sample, &node.listen.to_string());
                    line.replace("port 9090", &format!("port {}", node.http.port()))
                }
                // The sample has more nodes than this test.
                None if line.ends_with("# node") => continue,
                None => line.to_owned(),
            };
            conf += &(line + "\n");
        }
        Balancer::start("haproxy", dir, held, &conf, &["-db", "-f", "balancer.conf"])
    }

    /// nginx with the sample, with or without its `ip_hash`.
    fn nginx(dir: &Path, nodes: &[Node], hash: bool) -> Balancer {
        let held = Held::new();
        let addr = held.addr();
        let mut sample = self::sample("nginx.conf");
        assert!(sample.contains("    ip_hash;\n") && sample.contains("    listen 8080;\n"));
        if !hash {
            sample = sample.replace("    ip_hash;\n", "");
        }
        sample = sample.replace("    listen 8080;\n", &format!("    listen {addr};\n"));
        for (n, node) in nodes.iter().enumerate() {
            sample = sample.replace(&format!("10.0.0.1{}:8080", n + 1), &node.listen.to_string());
        }
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|name| format!("{name}_temp_path {name};\n")).concat();
        let conf = format!(
            "daemon off;\npid nginx.pid;\nerror_log balancer.log;\nworker_processes 1;\nevents {{ worker_connections 2000; }}\n\
             http {{\naccess_log off;\n{temporary}{sample}}}\n"
        );
        let prefix = dir.to_str().expect("UTF-8").to_owned() + "/";
        Balancer::start("nginx", dir, held, &conf, &["-p", &prefix, "-c", "balancer.conf", "-e", "balancer.log"])
    }
}

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/samples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A port that nobody is given by chance while this is held, and that a balancer can bind: HAProxy shares ports
/// (SO_REUSEPORT), and would share one that a node of another test was given meanwhile.
struct Held(Socket);

impl Held {
    fn new() -> Held {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).and_then(|()| socket.set_reuse_port(true)).expect("options");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        Held(socket)
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().ok().and_then(|addr| addr.as_socket()).expect("bound")
    }
}

/// Clients that publish without end, and come back whenever they are sent away.
struct Herd {
    stop: Arc<AtomicBool>,
    began: Instant,
    clients: Vec<Arc<State>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// How one client does.
#[derive(Default)]
struct State {
    /// Milliseconds since the herd began of the last ack.
    acked_ms: AtomicU64,
    node: Mutex<String>,
    /// The longest time without an ack, in ms.
    gap_ms: AtomicU64,
}

impl Herd {
    fn start(balancer: SocketAddr) -> Herd {
        let (stop, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let clients: Vec<Arc<State>> = (0..CLIENTS).map(|_| Arc::default()).collect();
        let run = |(n, state): (usize, &Arc<State>)| {
            let (stop, state, token) = (Arc::clone(&stop), Arc::clone(state), token(&format!("user{n}")));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = live(balancer, &token, &state, &stop, began);
                    // A client of ours waits half a second to twenty; these are many on few cores.
                    std::thread::sleep(Duration::from_millis(100 + 7 * n as u64));
                }
            })
        };
        let threads = clients.iter().enumerate().map(run).collect();
        Herd { stop, began, clients, threads }
    }

    /// Waits until every client has an ack that is younger than now. How long it took.
    fn all_served(&self, what: &str) -> Duration {
        let asked = Instant::now();
        let from_ms = u64::try_from(asked.duration_since(self.began).as_millis()).expect("a short test");
        loop {
            let late: Vec<usize> =
                (0..CLIENTS).filter(|&n| self.clients[n].acked_ms.load(Ordering::Relaxed) <= from_ms).collect();
            if late.is_empty() {
                return asked.elapsed();
            }
            assert!(asked.elapsed() < PATIENCE, "{what}: {late:?} are stuck");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn on(&self, node: &str) -> usize {
        self.clients.iter().filter(|client| *client.node.lock().expect("no panic holds it") == node).count()
    }

    fn longest_gap(&self) -> Duration {
        Duration::from_millis(
            self.clients.iter().map(|client| client.gap_ms.load(Ordering::Relaxed)).max().unwrap_or(0),
        )
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One connection of one client, to its end.
fn live(
    balancer: SocketAddr,
    token: &str,
    state: &State,
    stop: &AtomicBool,
    began: Instant,
) -> Result<(), Box<dyn std::error::Error>> {
    let stream = TcpStream::connect_timeout(&balancer, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut socket: WebSocket<TcpStream> = tungstenite::client(format!("ws://{balancer}/?token={token}"), stream)?.0;
    let mut number = 0;
    let mut publish = |socket: &mut WebSocket<TcpStream>| {
        number += 1;
        let client_id = format!("{}-{number}", began.elapsed().as_nanos());
        let message = json!({ "type": "chat_message", "roomId": "r", "content": "hello", "clientId": client_id });
        socket.send(Message::text(message.to_string()))
    };
    while !stop.load(Ordering::Relaxed) {
        let Message::Text(text) = socket.read()? else { continue };
        let message: Json = serde_json::from_str(&text)?;
        match message["type"].as_str() {
            Some("connected") => {
                *state.node.lock().expect("no panic holds it") =
                    message["node"].as_str().unwrap_or_default().to_owned();
                publish(&mut socket)?;
            }
            Some("ack") => {
                let now_ms = u64::try_from(began.elapsed().as_millis())?;
                let before_ms = state.acked_ms.swap(now_ms, Ordering::Relaxed);
                state.gap_ms.fetch_max(now_ms - before_ms, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
                publish(&mut socket)?;
            }
            // Obeyed at once here, since other messages hold this thread.
            Some("reconnect") => {
                let after_ms = message["afterMs"].as_u64().unwrap_or(0);
                std::thread::sleep(Duration::from_millis(after_ms));
                socket.close(None)?;
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Three nodes behind a balancer: one is killed, one drained.
fn survive(name: &str, balancer: impl Fn(&Path, &[Node]) -> Balancer, more: &[&str], is_spread: bool) {
    let dir = TempDir::new(&format!("balancer-{name}"));
    let mut nodes: Vec<Node> = ["n1", "n2", "n3"].iter().map(|id| node(&dir.0, id, more)).collect();
    let balancer = balancer(&dir.0, &nodes);
    let herd = Herd::start(balancer.addr);
    herd.all_served("the start");
    let by_node = [herd.on("n1"), herd.on("n2"), herd.on("n3")];
    assert_eq!(by_node.iter().sum::<usize>(), CLIENTS);
    if is_spread {
        assert!(by_node.iter().all(|&clients| clients >= CLIENTS / 6), "{by_node:?}");
    }
    // Whoever has most clients dies; of the others the fuller one drains.
    let mut order = [0, 1, 2];
    order.sort_by_key(|&n| std::cmp::Reverse(by_node[n]));
    let [killed, drained, left] = order;
    nodes[killed].signal(libc::SIGKILL);
    nodes[killed].wait();
    let after_kill = herd.all_served("after kill -9");
    assert!(after_kill < BACK_WITHIN, "{after_kill:?}");
    assert_eq!(herd.on(&format!("n{}", killed + 1)), 0);
    nodes[drained].signal(libc::SIGTERM);
    assert_eq!(nodes[drained].wait().code(), Some(0), "it drained and ended");
    let after_drain = herd.all_served("after the drain");
    assert!(after_drain < BACK_WITHIN, "{after_drain:?}");
    assert_eq!(herd.on(&format!("n{}", left + 1)), CLIENTS);
    println!(
        "{name}: {by_node:?}, served {after_kill:?} after the kill, {after_drain:?} after the drain, longest pause {:?}",
        herd.longest_gap()
    );
}

#[test]
fn haproxy_spreads_by_least_connections_and_nobody_is_stuck() {
    survive("haproxy", |dir, nodes| Balancer::haproxy(dir, "haproxy.cfg", nodes), &[], true);
}

#[test]
fn nginx_with_ip_hash_loses_nobody_with_the_node_that_had_them_all() {
    survive("nginx-ip-hash", |dir, nodes| Balancer::nginx(dir, nodes, true), &[], false);
}

#[test]
fn nginx_without_stickiness_loses_nobody() {
    survive("nginx", |dir, nodes| Balancer::nginx(dir, nodes, false), &[], true);
}

#[test]
fn haproxy_says_who_its_clients_are_and_nobody_is_stuck() {
    let sample = "haproxy-proxy-protocol.cfg";
    survive("haproxy-tcp", |dir, nodes| Balancer::haproxy(dir, sample, nodes), &["listen.proxy_protocol=true"], true);
}

/// A connection from this address of the loopback network: the status of its upgrade, and the socket.
fn upgrade_from(address: [u8; 4], to: SocketAddr) -> (u16, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((address, 0)).into()).expect("a loopback address");
    socket.connect(&to.into()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "GET /?token={} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("ann")
    );
    let mut stream = &socket;
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = [0; 12];
    let status =
        stream.read_exact(&mut answer).map_or(0, |()| String::from_utf8_lossy(&answer[9..]).parse().unwrap_or(0));
    (status, socket)
}

#[test]
fn with_the_proxy_protocol_limits_count_clients_and_strangers_are_dropped() {
    let dir = TempDir::new("balancer-proxy");
    let more = ["listen.proxy_protocol=true", "listen.proxy_from=127.0.0.1", "limits.connections_per_address_max=2"];
    let nodes = [node(&dir.0, "n1", &more)];
    let mut balancer = Balancer::haproxy(&dir.0, "haproxy-proxy-protocol.cfg", &nodes);
    // The checks have to find the node first.
    let deadline = Instant::now() + PATIENCE;
    while upgrade_from([127, 0, 0, 9], balancer.addr).0 != 101 {
        assert!(Instant::now() < deadline, "{:?}", balancer.child.try_wait());
        std::thread::sleep(Duration::from_millis(50));
    }
    let clients = [[127, 0, 0, 5], [127, 0, 0, 5], [127, 0, 0, 5], [127, 0, 0, 6]];
    let clients = clients.map(|address| upgrade_from(address, balancer.addr));
    assert_eq!(clients.each_ref().map(|(status, _)| *status), [101, 101, 503, 101]);
    // Past the balancer: from its own address without a header, and from another one.
    assert_eq!(upgrade_from([127, 0, 0, 1], nodes[0].listen).0, 0, "dropped without an answer");
    assert_eq!(upgrade_from([127, 0, 0, 7], nodes[0].listen).0, 503);
    let refused = "roomwire_proxies_refused_total 2";
    while !nodes[0].get("/metrics").1.lines().any(|line| line == refused) {
        assert!(Instant::now() < deadline, "{}", nodes[0].get("/metrics").1);
        std::thread::sleep(Duration::from_millis(50));
    }
}
