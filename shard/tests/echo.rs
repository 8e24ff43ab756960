//! The data ring against real sockets: nothing lost, nothing doubled, nobody stuck, whatever runs short.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/client.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod client;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod node;

use client::{Client, PATIENCE, frame, letters, upgrade};
use node::{Node, Setting, both_ways};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

#[test]
fn frames_of_every_size_around_each_boundary_come_back_whole() {
    const BUFFER: usize = 512;
    let node = Node::start(&Setting { buffers: 8, buffer_bytes: BUFFER as u32, ..Setting::default() });
    let mut client = Client::connect(node.address, "alice").unwrap();
    let around = |size: usize| size.saturating_sub(15)..=size + 2;
    let sizes = [0, 125, 126, BUFFER, 2 * BUFFER, 8 * BUFFER, 9 * BUFFER, 16 * 1024, 65_535];
    for size in sizes.into_iter().flat_map(around) {
        let payload = letters(size);
        client.send(&payload).unwrap();
        assert!(client.receive().unwrap() == payload, "{size} bytes");
    }
    drop(client);
    node.stop();
}

#[test]
fn many_frames_in_one_write_come_back_in_order() {
    let node = Node::start(&Setting { buffers: 4, buffer_bytes: 256, ..Setting::default() });
    let mut client = Client::connect(node.address, "alice").unwrap();
    let payloads: Vec<Vec<u8>> = (0..2000).map(|number| format!("{number}:").into_bytes()).collect();
    let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
    let mut writer = client.socket.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for payload in &payloads {
        assert_eq!(&client.receive().unwrap(), payload);
    }
    writing.join().unwrap();
    drop(client);
    node.stop();
}

#[test]
fn a_request_and_frames_that_arrive_byte_by_byte_are_understood() {
    let node = Node::start(&Setting::default());
    let mut client = Client::open(node.address).unwrap();
    // The first frame follows right behind the handshake.
    let mut bytes = upgrade("bob").into_bytes();
    bytes.extend(frame(b"early"));
    bytes.extend(frame(&letters(130)));
    for byte in bytes {
        client.socket.write_all(&[byte]).unwrap();
    }
    client.finish_upgrade().unwrap();
    assert_eq!(client.receive().unwrap(), b"early");
    assert_eq!(client.receive().unwrap(), letters(130));
    drop(client);
    node.stop();
}

#[test]
fn under_load_input_gathers_and_after_a_pause_it_does_not_wait() {
    let node = Node::start(&Setting { gather: Duration::from_secs(4), ..Setting::default() });
    let mut client = Client::connect(node.address, "alice").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let mut echo = |text: &[u8]| {
        let began = Instant::now();
        client.send(text).unwrap();
        assert_eq!(client.receive().unwrap(), text);
        began.elapsed()
    };
    let waited = echo(b"first");
    assert!(waited < Duration::from_secs(2), "{waited:?} after a pause of 2 s, in which four do not come within 4 s");
    std::thread::sleep(Duration::from_millis(200));
    // It comes 200 ms after the first: four of that distance are awaited from now on.
    echo(b"second");
    let waited = echo(b"third");
    assert!(waited >= Duration::from_millis(400), "{waited:?}: it shares a look with whatever comes meanwhile");
    node.stop();
}

/// Each client sends `rounds` messages, the next when the last is back.
fn all_are_echoed(node: &Node, clients: usize, rounds: usize, size: usize) {
    let mut connected: Vec<Client> =
        (0..clients).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
    for round in 0..rounds {
        for (number, client) in connected.iter_mut().enumerate() {
            let mut payload = format!("{number}/{round}/").into_bytes();
            payload.extend(letters(size));
            client.send(&payload).unwrap();
        }
        for (number, client) in connected.iter_mut().enumerate() {
            let message = client.receive().unwrap();
            assert!(message.starts_with(format!("{number}/{round}/").as_bytes()), "client {number}, round {round}");
            assert_eq!(message.len(), format!("{number}/{round}/").len() + size);
        }
    }
}

#[test]
fn one_buffer_and_a_completion_queue_of_eight_hold_a_thousand_clients() {
    let node =
        Node::start(&Setting { buffers: 1, buffer_bytes: 512, sq_entries: 4, cq_entries: 8, ..Setting::default() });
    all_are_echoed(&node, 1000, 3, 700);
    node.wait_until("both ran short", |node| {
        let driver = node.driver();
        driver.buffers_exhausted_total > 0 && driver.completions_overflowed_total > 0
    });
    node.stop();
}

#[test]
fn after_a_stall_what_clients_have_sent_meanwhile_counts_before_their_silence_does() {
    // More than one turn hears.
    const CLIENTS: usize = 1500;
    let node = Node::start(&Setting { heartbeat_ms: 3_000, ..Setting::default() });
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
    for client in &mut clients {
        client.await_ping().unwrap();
    }
    let mut stalls = Client::open(node.address).unwrap();
    stalls.socket.write_all(upgrade("stall-8000").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    for client in &mut clients {
        client.pong().unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(b"still here").unwrap();
        let answer = client.receive();
        assert!(answer.as_ref().is_ok_and(|text| text == b"still here"), "client {number}: {answer:?}");
    }
    drop(clients);
    node.stop();
}

#[test]
fn two_buffers_are_shared_with_one_greedy_client() {
    let node = Node::start(&Setting { buffers: 2, buffer_bytes: 1024, ..Setting::default() });
    let mut greedy = Client::connect(node.address, "greedy").unwrap();
    let mut writer = greedy.socket.try_clone().unwrap();
    let (total, bytes) = (400, frame(&letters(20_000)));
    let writing = std::thread::spawn(move || (0..total).for_each(|_| writer.write_all(&bytes).unwrap()));
    let reading =
        std::thread::spawn(move || (0..total).for_each(|_| assert_eq!(greedy.receive().unwrap().len(), 20_000)));
    all_are_echoed(&node, 50, 10, 100);
    writing.join().unwrap();
    reading.join().unwrap();
    node.stop();
}

#[test]
fn a_slow_reader_gets_every_byte_and_holds_nobody_up() {
    const SIZE: usize = 100_000;
    const COUNT: usize = 200;
    let node = Node::start(&Setting::default());
    let mut slow = Client::connect(node.address, "slow").unwrap();
    let mut writer = slow.socket.try_clone().unwrap();
    let bytes = frame(&letters(SIZE));
    // 20 MB wait in the server: more than the sockets' buffers hold.
    let writing = std::thread::spawn(move || (0..COUNT).for_each(|_| writer.write_all(&bytes).unwrap()));
    all_are_echoed(&node, 20, 20, 100);
    writing.join().unwrap();
    let expected = letters(SIZE);
    for _ in 0..COUNT {
        assert!(slow.receive().unwrap() == expected);
    }
    drop(slow);
    node.stop();
}

#[test]
fn peers_that_vanish_leave_nothing_behind() {
    both_ways(&Setting::default()).for_each(|setting| peers_vanish(&setting));
}

fn peers_vanish(setting: &Setting) {
    let node = Node::start(setting);
    for round in 0..20 {
        let mut clients: Vec<Client> =
            (0..50).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&letters(50_000)).unwrap();
            let socket = socket2::SockRef::from(&client.socket);
            match number % 4 {
                // A reset, with the echo unread or under way.
                0 => socket.set_linger(Some(Duration::ZERO)).unwrap(),
                // Half a frame, then the end.
                1 => client.socket.write_all(&frame(&letters(1000))[..500]).unwrap(),
                2 => client.socket.shutdown(Shutdown::Write).unwrap(),
                _ => assert_eq!(client.receive().unwrap().len(), 50_000, "round {round}"),
            }
        }
    }
    node.wait_until("all are gone", |node| node.connections() == 0);
    all_are_echoed(&node, 10, 2, 100);
    node.stop();
}

#[test]
fn a_full_node_refuses_with_503_and_takes_the_next_when_one_leaves() {
    let mut setting = Setting::default();
    setting.limits.connections_max = 2;
    both_ways(&setting).for_each(|setting| a_full_node_refuses(&setting));
}

fn a_full_node_refuses(setting: &Setting) {
    let node = Node::start(setting);
    let first = Client::connect(node.address, "a").unwrap();
    let second = Client::connect(node.address, "b").unwrap();
    let mut third = Client::open(node.address).unwrap();
    let mut answer = String::new();
    third.socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"), "{answer}");
    drop(first);
    let until = Instant::now() + PATIENCE;
    while Client::connect(node.address, "c").is_err() {
        assert!(Instant::now() < until, "the slot was not freed");
    }
    drop((second, third));
    node.stop();
}

#[test]
fn a_full_table_lets_clients_wait_and_takes_them_as_places_become_free() {
    let Some(_) = Setting::default().table else {
        println!("skipped: this kernel has no tables of sockets that let go of them");
        return;
    };
    let node = Node::start(&Setting { table: Some(20), ..Setting::default() });
    let mut inside: Vec<Client> =
        (0..20).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
    let mut waiting: Vec<Client> = (0..30).map(|_| Client::open(node.address).unwrap()).collect();
    for client in &mut waiting {
        client.socket.write_all(upgrade("late").as_bytes()).unwrap();
    }
    node.wait_until("accepting is paused", |node| node.driver().accepts_paused_total > 0);
    let turns = node.driver().turns_total;
    std::thread::sleep(Duration::from_secs(2));
    assert!(node.driver().turns_total - turns < 200, "it spins");
    for client in &mut inside {
        client.send(b"still here").unwrap();
        assert_eq!(client.receive().unwrap(), b"still here");
    }
    // Each that leaves makes room for one that waits, and nobody who waited was sent away.
    for client in &mut waiting {
        inside.pop();
        client.finish_upgrade().unwrap();
        client.send(b"in").unwrap();
        assert_eq!(client.receive().unwrap(), b"in");
        if inside.is_empty() {
            break;
        }
    }
    drop(waiting);
    node.stop();
}

#[test]
fn a_drained_shard_closes_its_listener_and_ends() {
    both_ways(&Setting { shards: 2, ..Setting::default() }).for_each(|setting| drain(&setting));
}

fn drain(setting: &Setting) {
    let node = Node::start(setting);
    let address = node.address;
    let mut clients: Vec<Client> =
        (0..20).map(|number| Client::connect(address, &format!("u{number}")).unwrap()).collect();
    // Clients answer the close as a browser does, by closing.
    let answering = std::thread::spawn(move || {
        for client in &mut clients {
            let error = client.receive().expect_err("the node drains");
            assert!(error.to_string().starts_with("closed"), "{error}");
            let _ = client.socket.shutdown(Shutdown::Both);
        }
    });
    node.stop();
    answering.join().unwrap();
    assert!(Client::open(address).is_err(), "nobody listens any more");
}
