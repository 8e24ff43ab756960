//! Many clients that do anything at any time, from a seed: whatever they do, what each hears is in order and without
//! gaps, and nothing is kept of those that are gone.

use super::world::{World, frame, head};
use crate::mesh::ToShard;
use crate::shard::Ended;
use crate::shard::random::Random;
use roomwire_wire::frame::Opcode;
use serde_json::Value;

const ROOMS: [&str; 5] = ["a", "b", "c", "d", "user:u1"];

/// What a client knows of each room: the last seq it heard, once it is live.
#[derive(Default)]
struct Ledger {
    last: [Option<u64>; ROOMS.len()],
}

impl Ledger {
    /// Messages carry their room's number as content. In the test's pages, `live` tells the one after which messages go on.
    fn hear(&mut self, text: &str) {
        let Ok(message) = serde_json::from_str::<Value>(text) else { return };
        let seq = message["seq"].as_u64();
        if message["type"] == "chat_message" {
            let room: usize = message["content"].as_str().and_then(|room| room.parse().ok()).expect("a room");
            assert!(self.last[room].is_none_or(|last| seq == Some(last + 1)), "{text} after {:?}", self.last[room]);
            assert!(ROOMS[room].starts_with("user:") || self.last[room].is_some(), "{text} before any history");
            self.last[room] = seq;
        } else if message["type"] == "room_history" && message["live"] == true {
            let room = ROOMS[..4].iter().position(|room| message["roomId"] == *room);
            if let Some(last) = room.map(|room| &mut self.last[room]).filter(|last| last.is_none()) {
                *last = seq;
            }
        }
    }

    fn left(&mut self, room: usize) {
        self.last[room] = None;
    }
}

struct Actor {
    client: usize,
    ledger: Ledger,
    is_open: bool,
}

fn connect(world: &mut World, random: &mut Random) -> Actor {
    let shard = random.below(world.engines.len() as u32) as u16;
    let client = world.accept(shard, None).expect("no limit");
    world.clients[client].is_verbatim = true;
    let bytes = head(&format!("u{}", random.below(12)));
    let cut = random.below(bytes.len() as u32) as usize;
    world.feed(client, &bytes.as_bytes()[..cut]);
    world.feed(client, &bytes.as_bytes()[cut..]);
    Actor { client, ledger: Ledger::default(), is_open: true }
}

fn act(world: &mut World, random: &mut Random, actor: &mut Actor) {
    let client = actor.client;
    let at = random.below(ROOMS.len() as u32) as usize;
    let room = ROOMS[at];
    match random.below(24) {
        0..=3 => world.join(client, room),
        4 => {
            let since = random.below(4);
            world.say(client, &format!(r#"{{"type":"join_room","roomId":"{room}","since":{since},"epoch":1}}"#));
        }
        5 if at < 4 => {
            world.unblock(client);
            world.say(client, &format!(r#"{{"type":"leave_room","roomId":"{room}"}}"#));
            // All that was sent before the leaving is heard; then the ledger begins anew.
            listen(world, actor);
            actor.ledger.left(at);
        }
        6..=11 => world.chat(client, room, &at.to_string()),
        12 => world.say(client, &format!(r#"{{"type":"typing","roomId":"{room}"}}"#)),
        13 => world.say(client, &format!(r#"{{"type":"history","roomId":"{room}"}}"#)),
        14 => world.say(client, &format!(r#"{{"type":"members","roomId":"{room}"}}"#)),
        15 => world.say(client, r#"{"type":"watch_presence","userIds":["u1","u2","u3","nobody"]}"#),
        16 => world.say(client, r#"{"type":"unwatch_presence","userIds":["u1","u2","nobody"]}"#),
        17 => world.clients[client].blocked = true,
        18 | 19 => world.unblock(client),
        20 => {
            let bytes = frame(Opcode::Text, br#"{"type":"ping"}"#);
            let cut = random.below(bytes.len() as u32) as usize;
            world.feed(client, &bytes[..cut]);
            world.feed(client, &bytes[cut..]);
        }
        21 => world.feed(client, &frame(Opcode::Ping, b"p")),
        22 if random.below(4) == 0 => {
            world.end(client, if random.below(2) == 0 { Ended::Eof } else { Ended::Error });
            actor.is_open = false;
        }
        23 if random.below(4) == 0 => world.feed(client, &frame(Opcode::Close, &[0x03, 0xe8])),
        _ => {}
    }
}

fn listen(world: &mut World, actor: &mut Actor) {
    for line in world.heard(actor.client) {
        actor.ledger.hear(&line);
    }
    actor.is_open &= !world.clients[actor.client].gone;
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::with(1 + (seed % 3) as u16, |config| {
        config.seed = seed;
        config.limits.queue_bytes_max = 1_500;
        config.limits.queue_ms_max = 4_000;
        config.limits.messages_per_second_max = 0;
        config.limits.join_events_members_max = 4;
        config.limits.connections_per_user_max = 3;
    });
    world.script.page_messages = 3;
    let mut actors: Vec<Actor> = (0..16).map(|_| connect(&mut world, &mut random)).collect();
    for _ in 0..600 {
        let at = random.below(actors.len() as u32) as usize;
        if actors[at].is_open {
            act(&mut world, &mut random, &mut actors[at]);
        } else {
            actors[at] = connect(&mut world, &mut random);
        }
        world.script.refuse_history = random.below(20) == 0;
        world.script.hold_history ^= random.below(40) == 0;
        if !world.script.hold_history {
            world.answer_held();
        }
        if random.below(8) == 0 {
            world.wait(u64::from(random.below(1_500)));
        }
        for actor in &mut actors {
            listen(&mut world, actor);
        }
    }
    world.script.hold_history = false;
    world.answer_held();
    world.all(&ToShard::Drain { window_ms: 4_000 });
    world.wait(16_000);
    assert_eq!(world.script.drained.len(), world.engines.len(), "seed {seed}");
    for engine in &world.engines {
        assert_eq!(engine.tables(), [0; 6], "seed {seed}");
        assert_eq!(engine.counters.queue_bytes_now, 0, "seed {seed}");
    }
    assert!(world.script.subscribed.values().all(std::collections::BTreeSet::is_empty), "seed {seed}");
}

#[test]
fn whatever_clients_do_rooms_stay_in_order_and_nothing_is_left_behind() {
    for seed in 0..24 {
        run(seed);
    }
}
