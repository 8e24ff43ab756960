//! Presence, rosters and leases on real Redis servers: every answer of every script, who is told what, dead nodes, a Redis
//! that lost its scripts or its data.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use redis::Commands as _;
use roomwire::bus::BusState;
use roomwire::bus::redis::{NodeCard, RedisConfig, Servers, Told};
use roomwire_engine::bus::{BusEvent, BusRequest};
use roomwire_engine::cluster::{
    Beaten, ClusterEvent, ClusterReply, ClusterRequest, DeadLife, Lease, Life, MemberChange, RoomAnswer, RoomChanges,
    UserChange, UserState,
};
use roomwire_engine::names::{RoomId, User, UserId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "support/bus.rs"]
mod bus;
#[path = "support/redis.rs"]
mod server;
use bus::{Driven, Drives, PATIENCE};
use server::RedisServer;

/// One look at what came.
const TURN: Duration = Duration::from_millis(20);

/// A node's bus and what it hears.
struct Node {
    driven: Driven,
    life: Life,
    replies: VecDeque<ClusterReply>,
    /// `+user`, `-user`, and the JSON of room events.
    heard: Vec<String>,
}

fn config(port: u16, node: &str, boot: u64, store: &str, limit: u32) -> RedisConfig {
    let card = NodeCard::new(node, boot, store.to_owned(), limit);
    RedisConfig { from: Arc::from(card.from()), card: Some(card), ..bus::config(port) }
}

impl Drives for Node {
    fn driven(&mut self) -> &mut Driven {
        &mut self.driven
    }

    fn keep(&mut self, told: Told) {
        match told {
            Told::ClusterReply(reply) => self.replies.push_back(reply),
            Told::ClusterEvent(ClusterEvent::Presence { user, online }) => {
                self.heard.push(format!("{}{}", if online { '+' } else { '-' }, &*user));
            }
            Told::Event(BusEvent::Ephemeral { payload, .. }) => {
                self.heard.push(String::from_utf8(payload.to_vec()).unwrap());
            }
            Told::Event(_) | Told::Reply(_) => {}
        }
    }
}

impl Node {
    fn try_start(port: u16, node: &str, boot: u64, store: &str, limit: u32) -> Result<Node, String> {
        Node::on(config(port, node, boot, store, limit), boot)
    }

    fn on(config: RedisConfig, boot: u64) -> Result<Node, String> {
        let driven = Driven::start(config)?;
        let life = Life { boot, number: 1 };
        let mut node = Node { driven, life, replies: VecDeque::new(), heard: Vec::new() };
        node.until("in sync", |node| node.driven.bus.figures().subscriber_connected_now.then_some(()));
        Ok(node)
    }

    fn start(port: u16, node: &str, boot: u64) -> Node {
        Node::try_start(port, node, boot, "cql one", 3).unwrap()
    }

    fn ask(&mut self, request: ClusterRequest) -> ClusterReply {
        self.driven.bus.ask_cluster(request);
        self.until("a reply", |node| node.replies.pop_front())
    }

    fn users(&mut self, changes: &[&str]) -> Vec<u32> {
        let change = |text: &&str| {
            let (what, user) = text.split_at(1);
            UserChange { user: UserId::new(user), online: what != "-", quiet: what == "=" }
        };
        match self.ask(ClusterRequest::Users { life: self.life, changes: changes.iter().map(change).collect() }) {
            ClusterReply::Users(Some(counts)) => counts,
            other => panic!("{other:?}"),
        }
    }

    /// A change is `+`, `=`, or `-`, the user and perhaps `!` for the room's first or last member here.
    fn roster(&mut self, room: &str, changes: &[&str]) -> RoomAnswer {
        let change = |text: &&str| {
            let (what, user) = text.split_at(1);
            let id = user.trim_end_matches('!');
            let user = User { id: UserId::new(id), name: Arc::from(format!("\"{id}\" / ä")) };
            MemberChange { user, joined: what != "-", edge: text.ends_with('!'), quiet: what == "=" }
        };
        let changes = RoomChanges { room: RoomId::new(room), changes: changes.iter().map(change).collect() };
        match self.ask(ClusterRequest::Rosters { life: self.life, rooms: vec![changes] }) {
            ClusterReply::Rosters(Some(mut answers)) => answers.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn told(&mut self, room: &str, changes: &[&str]) -> Vec<bool> {
        self.roster(room, changes).told
    }

    fn members(&mut self, room: &str) -> (u64, Vec<String>) {
        match self.ask(ClusterRequest::AskRoster { room: RoomId::new(room) }) {
            ClusterReply::Roster { answer: Some((count, users)), .. } => {
                let mut names: Vec<String> = users.iter().map(|user| user.id.to_string()).collect();
                assert!(users.iter().all(|user| *user.name == format!("\"{}\" / ä", &*user.id)));
                names.sort();
                (count, names)
            }
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, user: &str) -> (bool, String) {
        match self.ask(ClusterRequest::AskUsers { users: vec![UserId::new(user)] }) {
            ClusterReply::UsersAre(Some(states)) => {
                let [UserState { online, nodes }] = &states[..] else { panic!("{states:?}") };
                let mut nodes: Vec<&str> = nodes.iter().map(|node| &**node).collect();
                nodes.sort_unstable();
                (*online, nodes.join(","))
            }
            other => panic!("{other:?}"),
        }
    }

    fn beat(&mut self, take: bool) -> Beaten {
        match self.ask(ClusterRequest::Beat { life: self.life, take, walking: false }) {
            ClusterReply::Beaten(Some(beaten)) => beaten,
            other => panic!("{other:?}"),
        }
    }

    fn listen(&mut self, room: &str) {
        self.driven.bus.ask(BusRequest::Subscribe { room: RoomId::new(room) });
        self.driven.bus.flush();
        self.until("subscribed", |node| (node.driven.bus.figures().rooms_subscribed_now > 0).then_some(()));
        self.settle();
    }

    /// What was heard, once all that is on its way has come.
    fn settle(&mut self) -> Vec<String> {
        for _ in 0..5 {
            self.turn(TURN);
        }
        std::mem::take(&mut self.heard)
    }
}

/// The node is silent since 26 s.
fn silence(server: &RedisServer, node: &str) {
    let mut connection = server.connect();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
    let _: () = connection.zadd("rw:{nodes}:beats", node, (seconds - 26) * 1_000).unwrap();
}

#[test]
fn a_user_is_online_once_for_all_nodes_until_the_last_lets_go() {
    let server = RedisServer::start(&[]);
    let (mut one, mut two) = (Node::start(server.port, "n1", 1), Node::start(server.port, "n2", 2));
    let mut other = server.connect();
    assert_eq!(one.users(&["+ann", "+bob", "=cat"]), [1, 1, 1]);
    assert_eq!(one.users(&["+ann"]), [1], "a repeat");
    assert_eq!(two.users(&["+ann"]), [2]);
    assert_eq!(other.get::<_, String>("presence:ann").unwrap(), "online");
    assert!((290..=300).contains(&other.ttl::<_, i64>("presence:ann").unwrap()));
    assert!((290..=300).contains(&other.ttl::<_, i64>("rw:{presence:ann}:n").unwrap()));
    assert_eq!(one.state("ann"), (true, "n1,n2".to_owned()));
    assert_eq!(two.users(&["-ann", "-bob"]), [1, 1], "bob is not there");
    assert_eq!(one.users(&["-ann"]), [0]);
    assert_eq!(one.users(&["-ann"]), [0], "a repeat");
    assert_eq!(two.state("ann"), (false, String::new()));
    assert!(!other.exists::<_, bool>("presence:ann").unwrap());
    for node in [&mut one, &mut two] {
        assert_eq!(node.settle(), ["+ann", "+bob", "-ann"]);
    }
    let kept: Vec<String> = other.smembers("rw:{node:n1/1.1}:users").unwrap();
    assert_eq!(kept.len(), 2, "{kept:?}");

    // Other software that keeps the same key and says the same.
    let _: () = other.set_ex("presence:leo", "online", 300).unwrap();
    assert_eq!(one.state("leo"), (true, String::new()));
    assert_eq!(one.users(&["+leo"]), [1]);
    for said in [
        r#"{"type":"user_offline","userId":"zoe","timestamp":5,"more":1}"#,
        r#"{"type":"user_online","userId":"no {braces}"}"#,
        r#"{"type":"other","userId":"zoe"}"#,
        "no JSON",
        &format!(r#"{{"type":"user_online","userId":"zoe","x":"{}"}}"#, "x".repeat(2_000)),
    ] {
        let _: () = other.publish("presence:updates", said).unwrap();
    }
    assert_eq!(one.settle(), ["-zoe"], "leo was online already, and all else means nothing");
}

#[test]
fn a_roster_tells_the_first_and_the_last_of_a_user_once_to_all_other_nodes() {
    let server = RedisServer::start(&[]);
    let (mut one, mut two) = (Node::start(server.port, "n1", 1), Node::start(server.port, "n2", 2));
    one.listen("r");
    two.listen("r");
    assert_eq!(one.told("r", &["+ann!", "+bob", "=cat"]), [true, true, false]);
    let heard = two.settle();
    let event: serde_json::Value = serde_json::from_str(&heard[0]).unwrap();
    assert_eq!(
        (&event["type"], &event["userId"], &event["roomId"]),
        (&"user_joined".into(), &"ann".into(), &"r".into())
    );
    assert_eq!(event["username"], "\"ann\" / ä");
    assert!(event["timestamp"].is_u64() && event.get("rw").is_none(), "{event}");
    assert_eq!(heard.len(), 2);
    assert_eq!(one.settle(), [""; 0], "its own bridge tells its own members");
    assert_eq!(two.told("r", &["+ann!", "-bob", "-nobody"]), [false; 3], "bob is not here");
    assert_eq!(one.told("r", &["-ann", "-ann"]), [false; 2]);
    assert_eq!(one.members("r"), (3, vec!["ann".to_owned(), "bob".to_owned(), "cat".to_owned()]));
    assert_eq!(two.told("r", &["-ann!"]), [true]);
    assert!(one.settle()[0].contains("user_left"));
    // Left and entered again in one batch.
    assert_eq!(two.told("r", &["+dan!", "-dan!", "+eve!"]), [true; 3]);
    let mut other = server.connect();
    assert_eq!(other.smembers::<_, Vec<String>>("rw:{node:n2/2.1}:rooms").unwrap(), ["r"]);
    assert_eq!(two.told("r", &["-eve!"]), [true]);
    assert!(other.smembers::<_, Vec<String>>("rw:{node:n2/2.1}:rooms").unwrap().is_empty());
    assert!((1_790..=1_800).contains(&other.ttl::<_, i64>("rw:{r}:m").unwrap()));

    // More than three users: the count, at most once a second.
    let answer = one.roster("r", &["+u1", "+u2", "+u3"]);
    assert_eq!((answer.told, answer.counted, answer.recount), (vec![true, false, false], Some(5), false));
    let heard = two.settle();
    assert!(heard.last().unwrap().contains(r#""type":"members","roomId":"r","count":5"#), "{heard:?}");
    let answer = one.roster("r", &["-u1"]);
    assert_eq!((answer.told, answer.counted, answer.recount), (vec![false], None, true));
    let answer = one.roster("r", &[]);
    assert_eq!((answer.counted, answer.recount), (None, true));
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(one.roster("r", &[]).counted, Some(4));
    assert!(!one.roster("r", &[]).recount, "told already");
    for user in 0..300 {
        one.roster("big", &[&format!("+u{user}")]);
    }
    let (count, named) = one.members("big");
    assert_eq!((count, named.len()), (300, 100));
    assert_eq!(one.members("empty"), (0, Vec::new()));
}

#[test]
fn a_dead_nodes_users_and_members_go_once_also_if_its_reaper_dies() {
    let server = RedisServer::start(&[]);
    let [mut one, mut two, mut dead] = [1, 2, 3].map(|n| Node::start(server.port, &format!("n{n}"), n));
    for room in ["r", "only-there", "large"] {
        one.listen(room);
    }
    let users: Vec<String> = (0..600).map(|n| format!("+u{n}")).collect();
    dead.users(&users.iter().map(String::as_str).collect::<Vec<_>>());
    one.users(&["+u7", "+eve"]);
    dead.told("r", &["+u1!", "+u7"]);
    dead.told("only-there", &["+u1!"]);
    dead.roster("large", &["+u0!"]);
    for user in &users[1..] {
        dead.roster("large", &[user]);
    }
    one.told("r", &["+u7!"]);
    one.settle();
    drop(dead);
    assert_eq!(one.beat(false).dead, None, "it may yet come back");
    silence(&server, "n3");
    // The clock of the bus was looked at a moment ago, so nobody stood still.
    let beaten = two.beat(false);
    assert_eq!((beaten.nodes, beaten.lease), (2, Lease::Held));
    let life = beaten.dead.expect("one dies");
    assert_eq!(life, DeadLife { node: Arc::from("n3"), life: Arc::from("3.1") });
    assert_eq!(one.beat(false).dead, None, "somebody is at it");
    // The first reaper does a part and dies: another takes the claim over, here with its time set short.
    assert_eq!(two.ask_reap_of_a_part(&server), 100);
    let _: () = server.connect().zadd("rw:{nodes}:dead", "n3 3.1", 0).unwrap();
    let again = one.beat(false).dead.expect("not done");
    let ClusterReply::Reaped(Some((gone, members))) = one.ask(ClusterRequest::Reap { dead: again }) else {
        panic!("not reaped")
    };
    assert_eq!((gone, members), (500, 603));
    assert_eq!(one.beat(false).dead, None);
    let heard = one.settle();
    let mut offline: Vec<&String> = heard.iter().filter(|line| line.starts_with('-')).collect();
    let count = offline.len();
    offline.dedup();
    offline.sort();
    offline.dedup();
    assert_eq!((count, offline.len()), (599, 599), "each once; u7 is on another node");
    assert_eq!(one.state("u7"), (true, "n1".to_owned()));
    let left: Vec<&String> = heard.iter().filter(|line| line.contains("user_left")).collect();
    // u1 of `r`, u1 of `only-there`, the last three of `large`, which is told its count until it is small.
    assert_eq!(left.len(), 5, "{left:?}");
    assert!(heard.iter().any(|line| line.contains(r#""type":"members","roomId":"large""#)));
    assert_eq!(one.members("r"), (1, vec!["u7".to_owned()]));
    let mut other = server.connect();
    let keys: Vec<String> = other.keys("rw:{node:n3*").unwrap();
    assert_eq!(keys, [""; 0], "nothing is left of it");
}

impl Node {
    /// Does what a reaper does for the first hundred users, and no more.
    fn ask_reap_of_a_part(&mut self, server: &RedisServer) -> usize {
        let mut other = server.connect();
        let some: Vec<String> =
            redis::cmd("SRANDMEMBER").arg("rw:{node:n3/3.1}:users").arg(100).query(&mut other).unwrap();
        let hash: String = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(include_str!("../src/bus/redis/lua/users.lua"))
            .query(&mut other)
            .unwrap();
        for user in &some {
            let (state, nodes) = (format!("presence:{user}"), format!("rw:{{presence:{user}}}:n"));
            let mut call = redis::cmd("EVALSHA");
            call.arg(&hash).arg(2).arg(state).arg(nodes).arg("presence:updates").arg("n3").arg("3.1").arg(300);
            call.arg(format!("-{user}")).exec(&mut other).unwrap();
        }
        // It died before it said so to the set for the last fifty.
        let _: () = other.srem("rw:{node:n3/3.1}:users", &some[..]).unwrap();
        some.len()
    }
}

#[test]
fn a_node_that_was_taken_for_dead_begins_a_new_life_and_loses_nobody() {
    let server = RedisServer::start(&[]);
    let (mut one, mut two) = (Node::start(server.port, "n1", 1), Node::start(server.port, "n2", 2));
    two.users(&["+ann", "+bob"]);
    two.told("r", &["+ann!", "+bob"]);
    silence(&server, "n2");
    let dead = one.beat(false).dead.expect("n2 is silent");
    assert_eq!(two.beat(false).lease, Lease::Lost);
    two.life.number = 2;
    assert_eq!(two.beat(true).lease, Lease::Held);
    // It announces ann before the reaper comes to her; bob has gone.
    assert_eq!(two.users(&["+ann"]), [1]);
    two.told("r", &["+ann!"]);
    assert!(matches!(one.ask(ClusterRequest::Reap { dead }), ClusterReply::Reaped(Some((2, 1)))));
    assert_eq!(two.state("ann"), (true, "n2".to_owned()));
    assert_eq!(two.state("bob"), (false, String::new()));
    assert_eq!(two.members("r"), (1, vec!["ann".to_owned()]));
    assert_eq!(one.settle(), ["+ann", "+bob", "-bob"]);
    // A change that was sent under the earlier life comes late.
    two.life.number = 1;
    assert_eq!(two.users(&["-ann"]), [1]);
}

#[test]
fn a_redis_that_stood_still_judges_nobody_by_it() {
    let server = RedisServer::start(&[]);
    let (mut one, mut two) = (Node::start(server.port, "n1", 1), Node::start(server.port, "n2", 2));
    silence(&server, "n2");
    let mut other = server.connect();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut other).unwrap();
    let _: () = other.hset("rw:{nodes}:memory", "clock", (seconds - 20) * 1_000).unwrap();
    let beaten = one.beat(false);
    assert_eq!((beaten.nodes, beaten.dead), (2, None));
    assert_eq!(two.beat(false).lease, Lease::Held);
    assert!(beaten.clock_ahead_ms.abs() < 1_000);
}

#[test]
fn a_redis_cluster_serves_as_one_server_does() {
    let server = RedisServer::start(&["--cluster"]);
    let on_cluster = |node: &str, boot| {
        let servers = Servers::Cluster(vec![bus::address(server.port)]);
        Node::on(RedisConfig { servers, ..config(server.port, node, boot, "cql one", 3) }, boot).unwrap()
    };
    let (mut one, mut two) = (on_cluster("n1", 1), on_cluster("n2", 2));
    let users: Vec<String> = (0..100).map(|n| format!("+u{n}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    assert_eq!(two.users(&names), vec![1; 100]);
    assert_eq!(one.users(&names[..50]), vec![2; 50]);
    for room in 0..10 {
        assert_eq!(two.told(&format!("r{room}"), &["+ann!", "+bob"]), [true; 2]);
        assert_eq!(one.told(&format!("r{room}"), &["+ann!"]), [false]);
        assert_eq!(one.members(&format!("r{room}")).0, 2);
    }
    assert_eq!(one.state("u3"), (true, "n1,n2".to_owned()));
    assert_eq!((one.beat(false).lease, two.beat(false).nodes), (Lease::Held, 2));
    one.settle();
    two.driven.leave();
    drop(two);
    let deadline = Instant::now() + PATIENCE;
    let dead = loop {
        assert!(Instant::now() < deadline);
        match one.beat(false).dead {
            Some(dead) => break dead,
            None => std::thread::sleep(Duration::from_millis(300)),
        }
    };
    assert!(matches!(one.ask(ClusterRequest::Reap { dead }), ClusterReply::Reaped(Some((100, 20)))));
    assert_eq!(one.settle().iter().filter(|line| line.starts_with('-')).count(), 50);
    assert_eq!(one.members("r7"), (1, vec!["ann".to_owned()]));
}

#[test]
fn a_second_node_of_the_same_name_is_told_who_has_it() {
    let server = RedisServer::start(&[]);
    let port = server.port;
    let mut first = Node::start(port, "n1", 1);
    // It goes on beating while the second one looks.
    let second = std::thread::spawn(move || Node::try_start(port, "n1", 2, "cql one", 0).map(|_| ()));
    while !second.is_finished() {
        first.beat(false);
        std::thread::sleep(Duration::from_millis(300));
    }
    let refusal = second.join().unwrap().unwrap_err();
    assert!(
        refusal.contains("node.id `n1` is taken") && refusal.contains(&format!("pid {}", std::process::id())),
        "{refusal}"
    );

    // Another store: each node would know only its own messages.
    for (store, cure) in [("embedded of n2 in /x", "store.kind = cql"), ("cql two", "store.cql.keyspace")] {
        let second = std::thread::spawn(move || Node::try_start(port, "n2", 2, store, 0).map(|_| ()));
        while !second.is_finished() {
            first.beat(false);
            std::thread::sleep(Duration::from_millis(300));
        }
        let refusal = second.join().unwrap().unwrap_err();
        assert!(refusal.contains("node `n1`") && refusal.contains(cure), "{refusal}");
    }
    // One that leaves makes room at once, and what it left is given out a little later.
    first.users(&["+ann"]);
    first.driven.leave();
    let mut second = Node::start(port, "n1", 2);
    assert_eq!(second.beat(false).dead, None, "its users have their grace");
    let mut other = server.connect();
    let due: u64 = other.zscore::<_, _, f64>("rw:{nodes}:dead", "n1 1.1").unwrap() as u64;
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut other).unwrap();
    assert!((due / 1_000).abs_diff(seconds + 5) <= 1);
    let _: () = other.zadd("rw:{nodes}:dead", "n1 1.1", 0).unwrap();
    assert!(second.beat(false).dead.is_some());
}

#[test]
fn lost_scripts_are_loaded_again_and_an_emptied_redis_is_known_as_another() {
    let mut server = RedisServer::start(&[]);
    let mut one = Node::start(server.port, "n1", 1);
    let before = one.beat(false).memory;
    assert_eq!(one.beat(false).memory, before);
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connect()).unwrap();
    assert_eq!(one.users(&["+ann"]), [1]);
    assert_eq!(one.told("r", &["+ann!"]), [true]);
    server.down();
    assert!(matches!(
        one.ask(ClusterRequest::AskUsers { users: vec![UserId::new("ann")] }),
        ClusterReply::UsersAre(None)
    ));
    server.up();
    let deadline = Instant::now() + PATIENCE;
    let beaten = loop {
        assert!(Instant::now() < deadline);
        match one.ask(ClusterRequest::Beat { life: one.life, take: false, walking: false }) {
            ClusterReply::Beaten(Some(beaten)) => break beaten,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(beaten.lease == Lease::Lost && beaten.memory != before);
    one.life.number = 2;
    assert_eq!(one.beat(true).lease, Lease::Held);
    assert_eq!(one.users(&["=ann"]), [1]);
    assert_eq!(one.state("ann"), (true, "n1".to_owned()));
}

/// A figure of INFO.
fn info(server: &RedisServer, section: &str, name: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg(section).query(&mut server.connect()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok()).unwrap_or_default()
}

/// What docs/operations.md states. Run with `--nocapture` to see the figures.
#[test]
fn a_user_and_a_member_cost_what_the_docs_say() {
    let server = RedisServer::start(&[]);
    let mut node = Node::try_start(server.port, "n1", 1, "cql one", 500).unwrap();
    let measure = |server: &RedisServer| {
        let figure = |name| info(server, "stats", name);
        [
            info(server, "memory", "used_memory"),
            figure("total_net_input_bytes"),
            figure("total_net_output_bytes"),
            figure("total_commands_processed"),
        ]
    };
    let users: Vec<String> = (0..20_000).map(|n| format!("+user-{n:05}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let told = |what: &str, before: [u64; 4], after: [u64; 4], count: u64| {
        let each: Vec<f64> =
            before.iter().zip(after).map(|(before, after)| (after as f64 - *before as f64) / count as f64).collect();
        println!(
            "{what}: memory {:.0} B, sent {:.0} B, answered {:.0} B, commands {:.2}",
            each[0], each[1], each[2], each[3]
        );
        each
    };
    let before = measure(&server);
    names.chunks(500).for_each(|part| assert_eq!(node.users(part).len(), part.len()));
    let each = told("a user, in a crowd", before, measure(&server), 20_000);
    assert!(each[0] <= 600.0 && each[1] <= 150.0, "{each:?}");
    let before = measure(&server);
    (0..200).for_each(|n| assert_eq!(node.users(&[&format!("+single-{n:03}")]), [1]));
    let each = told("a user, alone", before, measure(&server), 200);
    assert!(each[1] <= 500.0, "{each:?}");
    let before = measure(&server);
    for (room, part) in names.chunks(100).enumerate() {
        node.roster(&format!("room-{room:03}"), part);
    }
    let each = told("a member, in rooms of 100", before, measure(&server), 20_000);
    assert!(each[0] <= 200.0 && each[1] <= 150.0, "{each:?}");
    let before = measure(&server);
    names.iter().take(2_000).for_each(|name| assert_eq!(node.told("one", &[name]).len(), 1));
    let each = told("a member, alone", before, measure(&server), 2_000);
    assert!(each[1] <= 500.0, "{each:?}");
    let text: String = redis::cmd("INFO").arg("commandstats").query(&mut server.connect()).unwrap();
    text.lines()
        .filter(|line| line.contains("evalsha") || line.contains("_set:") || line.contains("sadd"))
        .for_each(|line| println!("{line}"));
}

#[test]
fn a_key_of_another_application_costs_its_room_or_user_alone() {
    let server = RedisServer::start(&[]);
    let mut node = Node::start(server.port, "n1", 7);
    let mut other = server.connect();
    for key in ["rw:{taken}:m", "rw:{presence:taken}:n"] {
        let _: () = other.set(key, "of another").unwrap();
    }
    assert_eq!(node.users(&["+ada", "+taken", "+bob"]), [1, 0, 1]);
    assert!(node.told("taken", &["+ada!"]).is_empty());
    assert_eq!(node.told("lobby", &["+ada!"]), [true]);
    assert_eq!(node.members("lobby"), (1, vec!["ada".to_owned()]));
    assert_eq!(node.state("taken"), (false, String::new()));
    assert_eq!(node.state("bob"), (true, "n1".to_owned()));
    let figures = node.driven.bus.figures();
    assert_eq!(figures.state, BusState::Healthy);
    assert_eq!(figures.wrong_types_total, 3);
    let kept: Vec<String> = ["rw:{taken}:m", "rw:{presence:taken}:n"].map(|key| other.get(key).unwrap()).into();
    assert_eq!(kept, ["of another", "of another"], "what is not ours is left alone");
    assert_eq!(node.users(&["-taken", "-bob"]), [0, 0]);
    // Who reaps a dead life is not held up by it.
    let dead = DeadLife { node: Arc::from("n1"), life: Arc::from(node.life.to_string()) };
    assert!(matches!(node.ask(ClusterRequest::Reap { dead }), ClusterReply::Reaped(Some(_))));
    for key in ["rw:{taken}:m", "rw:{presence:taken}:n"] {
        let _: () = other.del(key).unwrap();
    }
    assert_eq!(node.users(&["+taken"]), [1]);
    assert_eq!(node.told("taken", &["+ada!"]), [true]);
}
