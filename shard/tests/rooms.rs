//! Two shards, rooms across them: the lanes and the bells under real traffic.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/client.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod client;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod node;

use client::{Client, frame};
use node::{Node, Setting};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

#[test]
fn a_message_reaches_each_member_on_either_shard_once_and_in_order() {
    const CLIENTS: usize = 40;
    const MESSAGES: usize = 200;
    let node = Node::start(&Setting { shards: 2, echo: false, ..Setting::default() });
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::connect(node.address, &format!("u{number}")).unwrap()).collect();
    for client in &mut clients {
        client.send(br#"{"type":"join_room","roomId":"r"}"#).unwrap();
    }
    for client in &mut clients {
        client.receive_until("room_history").unwrap();
    }
    for number in 0..MESSAGES {
        let message = format!(r#"{{"type":"chat_message","roomId":"r","content":"m{number}."}}"#);
        clients[number % CLIENTS].send(message.as_bytes()).unwrap();
        // Each bell is asleep again by the time the next message comes, so every one of them is needed.
        for client in &mut clients {
            let message = client.receive_until("chat_message").unwrap();
            assert!(message.contains(&format!("m{number}.")), "{message}, not {number}");
        }
    }
    node.stop();
}

#[test]
fn what_the_bridge_sends_does_not_wait_for_the_gathering_of_input() {
    const DISTANCE: Duration = Duration::from_secs(1);
    let node = Node::start(&Setting { echo: false, gather: DISTANCE * 10, ..Setting::default() });
    let mut client = Client::connect(node.address, "alice").unwrap();
    std::thread::sleep(DISTANCE);
    let asked = Instant::now();
    client.send(br#"{"type":"join_room","roomId":"r"}"#).unwrap();
    client.receive_until("room_history").unwrap();
    assert!(
        asked.elapsed() < DISTANCE * 3,
        "the bridge's answer came while input gathered for four times its distance"
    );
    node.stop();
}

/// Whether `text` lies in the client's socket, unread.
fn has_come(client: &Client, text: &str) -> bool {
    let mut bytes = [0; 16 * 1024];
    client.socket.set_nonblocking(true).unwrap();
    let length = client.socket.peek(&mut bytes).unwrap_or(0);
    client.socket.set_nonblocking(false).unwrap();
    bytes[..length].windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_small_room_does_not_wait_until_a_large_one_has_its_message() {
    const MEMBERS: usize = 700;
    let node = Node::start(&Setting { echo: false, ..Setting::default() });
    let join = |name: &str, room: &str| {
        let mut client = Client::connect(node.address, name).unwrap();
        client.send(format!(r#"{{"type":"join_room","roomId":"{room}"}}"#).as_bytes()).unwrap();
        client.receive_until("room_history").unwrap();
        client
    };
    let mut large: Vec<Client> = (0..MEMBERS).map(|number| join(&format!("u{number}"), "large")).collect();
    let mut small = join("small", "small");
    let mut writer = Client::connect(node.address, "writer").unwrap();
    let last = &mut large[MEMBERS - 1];
    // In the order of their messages the last of the large room would always be served before the small one. How soon
    // we look is the machine's affair, so once is enough.
    let was_before = (0..50).any(|number| {
        let text = |room: &str| format!("{room} {number}.");
        let publish = |room: &str| {
            frame(format!(r#"{{"type":"chat_message","roomId":"{room}","content":"{}"}}"#, text(room)).as_bytes())
        };
        writer.socket.write_all(&[publish("large"), publish("small")].concat()).unwrap();
        small.receive_until(&text("small")).unwrap();
        let was_before = !has_come(last, &text("large"));
        last.receive_until(&text("large")).unwrap();
        was_before
    });
    assert!(was_before, "the small room's message came behind all of the large room's");
    node.stop();
}

#[test]
fn a_shard_whose_lanes_are_full_stops_reading_and_loses_nothing() {
    let node = Node::start(&Setting { echo: false, ..Setting::default() });
    let mut reader = Client::connect(node.address, "reader").unwrap();
    reader.send(br#"{"type":"join_room","roomId":"r"}"#).unwrap();
    reader.receive_until("room_history").unwrap();
    let mut writer = Client::connect(node.address, "writer").unwrap();
    writer.receive_until("connected").unwrap();

    // More than a lane, the spill and the sockets' buffers take: at some point the writer is not heard any more.
    node.stall(true);
    writer.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut bytes = Vec::new();
    let mut messages = 0;
    let stuck = loop {
        let message = format!(r#"{{"type":"chat_message","roomId":"r","content":"m{messages}."}}"#);
        let next = frame(message.as_bytes());
        messages += 1;
        bytes.extend_from_slice(&next);
        match writer.socket.write(&bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(error) => break error,
        }
        assert!(messages < 2_000_000, "the shard reads on and on");
    };
    assert!(matches!(stuck.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stuck}");

    node.stall(false);
    writer.socket.set_write_timeout(Some(client::PATIENCE)).unwrap();
    let writing = std::thread::spawn(move || {
        writer.socket.write_all(&bytes).unwrap();
        writer
    });
    for number in 0..messages {
        let message = reader.receive_until("chat_message").unwrap();
        assert!(message.contains(&format!("\"m{number}.\"")), "{message}, not {number}");
    }
    drop(writing.join().unwrap());
    node.wait_until("reads were paused, and go on", |node| {
        let driver = node.driver();
        driver.reads_paused_total > 0 && driver.mesh_spilled_total > 0 && driver.mesh_spilled_now == 0
    });
    drop(reader);
    node.stop();
}
