//! Two shards, rooms across them: the lanes and the bells under real traffic.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/client.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod client;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod node;

use client::Client;
use node::{Node, Setting};

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
