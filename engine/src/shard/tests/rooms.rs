//! Joining, hearing, leaving; history; what a token allows; the user's own room.

use super::world::World;
use crate::mesh::{Asker, ToBridge, ToShard};
use crate::names::{RoomId, home};
use crate::shard::Ended;
use bytes::Bytes;

#[test]
fn three_clients_on_two_shards_chat_type_read_and_leave() {
    let mut world = World::new(2);
    let (ann, bob, cat) = (world.connect(0, "ann"), world.connect(1, "bob"), world.connect(1, "cat"));
    world.join(ann, "r");
    assert_eq!(world.heard(ann), ["user_joined ann", "room_history .."]);
    world.join(bob, "r");
    world.join(cat, "r");
    assert_eq!(world.heard(ann), ["user_joined bob", "user_joined cat"]);
    assert_eq!(world.heard(bob), ["user_joined bob", "room_history ..", "user_joined cat"]);
    assert_eq!(world.heard(cat), ["user_joined cat", "room_history .."]);
    assert_eq!(world.script.subscribed["r"].len(), 2);

    world.say(ann, r#"{"type":"chat_message","roomId":"r","content":"hi \u00e9","clientId":"c1"}"#);
    assert_eq!(world.heard(ann), ["chat_message 1 hi é", "ack c1 1"]);
    world.say(bob, r#"{"type":"typing","roomId":"r"}"#);
    world.say(bob, r#"{"type":"read_receipt","roomId":"r","messageId":"m"}"#);
    for client in [bob, cat] {
        assert_eq!(world.heard(client), ["chat_message 1 hi é", "typing bob", "read_receipt bob"]);
    }
    assert_eq!(world.heard(ann), ["typing bob", "read_receipt bob"]);

    world.say(bob, r#"{"type":"leave_room","roomId":"r"}"#);
    world.say(bob, r#"{"type":"leave_room","roomId":"r"}"#);
    world.chat(ann, "r", "still?");
    assert_eq!(world.heard(bob), [""; 0], "a leaver does not hear its own leaving");
    assert_eq!(world.heard(cat), ["user_left bob", "chat_message 2 still?"]);
    world.end(cat, Ended::Error);
    assert_eq!(world.heard(ann), ["user_left bob", "chat_message 2 still?", "user_left cat"]);
    assert_eq!(world.script.subscribed["r"].iter().collect::<Vec<_>>(), [&0]);
}

#[test]
fn publishing_needs_no_join_and_a_second_tab_is_no_second_user() {
    let mut world = World::new(2);
    let (ann, bob, bob2) = (world.connect(0, "ann"), world.connect(1, "bob"), world.connect(0, "bob"));
    world.join(ann, "r");
    world.chat(bob, "r", "from outside");
    world.join(bob, "r");
    world.join(bob2, "r");
    world.say(bob, r#"{"type":"leave_room","roomId":"r"}"#);
    let heard = ["user_joined ann", "room_history ..", "chat_message 1 from outside", "user_joined bob"];
    assert_eq!(world.heard(ann), heard);
    assert_eq!(world.heard(bob2), ["room_history 1..1"]);
    world.end(bob2, Ended::Eof);
    assert_eq!(world.heard(ann), ["user_left bob"]);
}

#[test]
fn a_joiner_hears_events_at_once_and_messages_only_behind_its_history() {
    let mut world = World::new(2);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    world.join(ann, "r");
    world.chat(ann, "r", "one");
    world.script.hold_history = true;
    world.join(bob, "r");
    world.chat(ann, "r", "two");
    world.say(ann, r#"{"type":"typing","roomId":"r"}"#);
    assert_eq!(world.heard(bob), ["user_joined bob", "typing ann"]);
    world.answer_held();
    world.chat(ann, "r", "three");
    assert_eq!(world.heard(bob), ["room_history 1..2", "chat_message 3 three"]);
}

#[test]
fn a_resume_comes_in_pages_each_asked_for_when_the_last_one_is_sent() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    for n in 0..25 {
        world.chat(ann, "r", &n.to_string());
    }
    world.script.page_messages = 10;
    world.clients[bob].blocked = true;
    world.say(bob, r#"{"type":"join_room","roomId":"r","since":2,"epoch":1}"#);
    world.say(bob, r#"{"type":"history","roomId":"r","limit":5}"#);
    assert_eq!(
        world.script.asks,
        ["r Since { seq: 2, epoch: Some(1), limit: 50 }"],
        "nothing is asked of a slow reader"
    );
    world.chat(ann, "r", "late");
    world.unblock(bob);
    let heard = world.heard(bob);
    let pages = ["room_history 3..12 more", "room_history 13..22 more", "room_history 23..26"];
    assert_eq!(heard[..4], [&["user_joined bob"], &pages[..]].concat());
    assert!(heard[4].starts_with("room_history 1..10"), "the other request is answered behind it: {heard:?}");
    world.chat(ann, "r", "live");
    assert_eq!(world.heard(bob).last().map(String::as_str), Some("chat_message 27 live"));
}

#[test]
fn a_member_that_joins_again_only_gets_history_and_stays_live() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(ann, "r");
    world.join(bob, "r");
    world.heard(bob);
    world.script.hold_history = true;
    world.say(bob, r#"{"type":"join_room","roomId":"r","since":0}"#);
    world.chat(ann, "r", "x");
    assert_eq!(world.heard(bob), ["chat_message 1 x"]);
    world.answer_held();
    assert_eq!(world.heard(bob), ["room_history 1..1"]);
    world.heard(ann);
    world.say(bob, r#"{"type":"leave_room","roomId":"r"}"#);
    assert_eq!(world.heard(ann), ["user_left bob"]);
}

#[test]
fn a_page_for_a_membership_that_ended_makes_nobody_live() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.join(ann, "r");
    world.script.hold_history = true;
    world.join(bob, "r");
    world.say(bob, r#"{"type":"leave_room","roomId":"r"}"#);
    world.join(bob, "r");
    world.heard(bob);
    assert_eq!(world.script.held.len(), 1, "one page at a time");
    world.answer_one();
    assert_eq!(world.heard(bob), [""; 0], "the page of the first join is not wanted");
    world.chat(ann, "r", "unheard as yet");
    assert_eq!(world.heard(bob), [""; 0]);
    world.answer_one();
    world.chat(ann, "r", "heard");
    assert_eq!(world.heard(bob), ["room_history 1..1", "chat_message 2 heard"]);
}

#[test]
fn a_member_goes_live_in_the_end_though_the_store_refused_its_history() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.script.refuse_history = true;
    world.join(bob, "r");
    assert_eq!(world.heard(bob), ["user_joined bob", "error unavailable"]);
    world.chat(ann, "r", "one");
    world.script.refuse_history = false;
    world.wait(1_000);
    world.chat(ann, "r", "two");
    assert_eq!(world.heard(bob), ["room_history 1..1", "chat_message 2 two"]);
    // A page that was only to be read is not asked for again.
    world.script.refuse_history = true;
    world.say(bob, r#"{"type":"history","roomId":"r"}"#);
    world.script.refuse_history = false;
    world.wait(2_000);
    assert_eq!(world.heard(bob), ["error unavailable"]);
}

#[test]
fn a_history_that_has_to_wait_goes_on_later_and_lets_others_pass() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.chat(ann, "r", "one");
    world.script.defer_history = true;
    world.join(bob, "r");
    assert_eq!(world.heard(bob), ["user_joined bob", "room_history 1..1"]);
    world.say(bob, r#"{"type":"join_room","roomId":"s","since":4}"#);
    assert_eq!(world.heard(bob), ["user_joined bob", "room_history .."], "the first does not keep the second back");
    world.say(bob, r#"{"type":"history","roomId":"r"}"#);
    assert_eq!(world.heard(bob), ["room_history 1..1"]);
    world.chat(ann, "r", "two");
    world.script.refuse_history = true;
    world.wait(3_000);
    world.script.refuse_history = false;
    world.wait(1_000);
    world.script.defer_history = false;
    assert_eq!(world.heard(bob), ["room_history 2..2"], "it knows that it has to wait");
    world.wait(1_000);
    world.chat(ann, "r", "three");
    world.chat(ann, "s", "one");
    let heard = world.heard(bob);
    assert!(heard.ends_with(&["chat_message 3 three".into(), "chat_message 1 one".into()]), "{heard:?}");
}

#[test]
fn a_token_opens_only_the_rooms_that_it_names() {
    let mut world = World::new(2);
    let ann = world.connect(0, "ann;team.*=jp;news=j");
    world.join(ann, "team.a");
    world.join(ann, "news");
    assert_eq!(world.errors(ann), [""; 0]);
    world.join(ann, "other");
    world.say(ann, r#"{"type":"chat_message","roomId":"news","content":"x","clientId":"c"}"#);
    for kind in ["history", "members"] {
        world.say(ann, &format!(r#"{{"type":"{kind}","roomId":"other"}}"#));
    }
    world.say(ann, r#"{"type":"typing","roomId":"news"}"#);
    world.say(ann, r#"{"type":"read_receipt","roomId":"news","messageId":"m"}"#);
    let forbidden = "forbidden";
    let want = [forbidden, "forbidden c", forbidden, forbidden, forbidden, forbidden];
    assert_eq!(world.errors(ann), want);
    assert_eq!(world.script.rooms.len(), 0);
    // A new token brings its own rights.
    world.say(ann, r#"{"type":"refresh","token":"ann;other=jp"}"#);
    world.join(ann, "other");
    world.chat(ann, "team.a", "x");
    assert_eq!(world.errors(ann), [forbidden]);
}

#[test]
fn the_room_of_a_user_is_that_users_alone_and_reaches_every_connection() {
    let mut world = World::new(3);
    let tabs = [0, 1, 2].map(|shard| world.connect(shard, "ann"));
    let bob = world.connect(1, "bob");
    world.chat(tabs[0], "user:ann", "note to self");
    for tab in tabs {
        assert_eq!(world.heard(tab), ["chat_message 1 note to self"]);
    }
    world.chat(bob, "user:ann", "psst");
    world.join(bob, "user:ann");
    world.say(bob, r#"{"type":"typing","roomId":"user:ann"}"#);
    world.say(bob, r#"{"type":"members","roomId":"user:ann"}"#);
    assert_eq!(world.errors(bob), ["forbidden"; 4]);
    world.say(tabs[1], r#"{"type":"typing","roomId":"user:ann"}"#);
    for tab in tabs {
        assert_eq!(world.heard(tab), ["typing ann"]);
    }
    world.join(tabs[2], "user:ann");
    world.say(tabs[2], r#"{"type":"members","roomId":"user:ann"}"#);
    assert_eq!(world.heard(tabs[2]), ["room_history 1..1", "members 1 ann"]);
}

/// A message to the user's own room, as the bridge gives it to the home.
fn deliver(seq: u64) -> ToShard {
    let payload = Bytes::from(format!(r#"{{"type":"chat_message","content":"x","seq":{seq}}}"#));
    ToShard::Deliver { room: RoomId::new("user:ann"), seq, payload, received_us: 0 }
}

#[test]
fn what_was_on_its_way_to_a_users_earlier_connections_is_not_for_later_ones() {
    let mut world = World::new(2);
    let at_home = home("ann", 2).0;
    let away = 1 - at_home;
    let before = world.connect(away, "ann");
    world.engines[usize::from(at_home)].mesh(world.now, deliver(1));
    let on_its_way = std::mem::take(&mut world.engines[usize::from(at_home)].effects.shards);
    assert_eq!(on_its_way.len(), 1);
    world.end(before, Ended::Eof);
    world.mesh(at_home, deliver(2));
    let after = world.connect(away, "ann");
    for (to, message) in on_its_way {
        world.mesh(to.0, message);
    }
    world.mesh(at_home, deliver(3));
    assert_eq!(world.heard(after), ["chat_message 3 x"], "1 and then 3 would be a gap");
    let second = world.connect(away, "ann");
    world.end(after, Ended::Eof);
    world.mesh(at_home, deliver(4));
    assert_eq!(world.heard(second), ["chat_message 4 x"], "the shard was never without a connection of the user");
}

#[test]
fn what_the_bridge_delivers_of_an_earlier_subscription_is_not_passed_on() {
    let mut world = World::with(2, |config| config.cluster = true);
    let at_home = home("ann", 2).0;
    let before = world.connect(0, "ann");
    world.mesh(at_home, deliver(1));
    assert_eq!(world.heard(before), ["chat_message 1 x"]);
    world.end(before, Ended::Eof);
    world.script.hold_subscribed = true;
    let first = world.connect(0, "ann");
    world.end(first, Ended::Eof);
    world.wait(10_000);
    let second = world.connect(1, "ann");
    assert_eq!(world.script.subscribing.len(), 2);
    for (seq, (to, answer)) in (2..).zip(std::mem::take(&mut world.script.subscribing)) {
        world.mesh(at_home, deliver(seq));
        world.mesh(to, answer);
    }
    world.mesh(at_home, deliver(4));
    assert_eq!(world.heard(second), ["chat_message 4 x"], "2 and 3 are of before, and more may have been after them");
    world.end(second, Ended::Eof);
    world.wait(10_000);
    assert_eq!(world.engines[usize::from(at_home)].tables(), [0; 6]);
}

#[test]
fn members_lists_the_first_hundred_in_order_of_arrival_and_counts_all() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..120).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    for client in &clients {
        world.join(*client, "r");
    }
    world.heard(clients[7]);
    world.say(clients[7], r#"{"type":"members","roomId":"r"}"#);
    let names: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
    assert_eq!(world.heard(clients[7]), [format!("members 120 {}", names.join(","))]);
    for client in &clients[20..] {
        world.say(*client, r#"{"type":"leave_room","roomId":"r"}"#);
    }
    world.heard(clients[7]);
    world.say(clients[7], r#"{"type":"members","roomId":"r"}"#);
    assert_eq!(world.heard(clients[7]), [format!("members 20 {}", names[..20].join(","))]);
    let room = RoomId::new("r");
    world.mesh(home("r", 2).0, ToShard::AskMembers { room, asker: Asker::Http(9) });
    assert!(
        matches!(&world.script.answers[..], [ToBridge::MembersAnswer { asker: Asker::Http(9), count: 20, users, .. }] if users.len() == 20)
    );
}

#[test]
fn a_large_room_is_told_its_count_once_a_second_in_place_of_who_came_and_went() {
    let mut world = World::with(2, |config| config.limits.join_events_members_max = 3);
    let clients: Vec<usize> = (0..10).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    for client in &clients {
        world.join(*client, "r");
    }
    let heard = world.heard(clients[0]);
    assert_eq!(heard, ["user_joined u0", "room_history ..", "user_joined u1", "user_joined u2"].map(String::from));
    assert_eq!(world.heard(clients[9]), ["room_history .."]);
    world.wait(3_000);
    assert_eq!(world.heard(clients[9]), ["members 10 -"], "nothing changed after the first count");
    for client in &clients[2..9] {
        world.end(*client, Ended::Eof);
    }
    world.wait(2_000);
    // 10 down to 4 are counted; from 3 on the room is small again.
    assert_eq!(world.heard(clients[9]), ["members 3 -"]);
    world.end(clients[9], Ended::Eof);
    world.heard(clients[0]);
    assert_eq!(world.heard(clients[1]).last().map(String::as_str), Some("user_left u9"));
}

#[test]
fn nothing_is_kept_of_rooms_and_users_that_are_gone() {
    let mut world = World::new(2);
    for round in 0..3 {
        let clients: Vec<usize> = (0..40).map(|n| world.connect(n % 2, &format!("u{round}.{n}"))).collect();
        for (n, client) in clients.iter().enumerate() {
            world.join(*client, &format!("r{round}.{}", n % 7));
            world.join(*client, &format!("all{round}"));
            world.say(*client, r#"{"type":"watch_presence","userIds":["x","u0.1","u1.2"]}"#);
        }
        for client in clients {
            world.end(client, Ended::Eof);
        }
        world.wait(6_000);
        for engine in &world.engines {
            assert_eq!(engine.tables(), [0; 6], "round {round}");
        }
    }
}
