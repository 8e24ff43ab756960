//! A client as it should be: it keeps a position per room, resumes from it, retries what was not acked, and tells the
//! oracle of all that it sees.

use crate::Counts;
use crate::oracle::{Fact, Oracle, Verdict};
use crate::random::Random;
use crate::store::SimStore;
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Item, Opcode, Role, encode_masked};
use roomwire_wire::id::USER_ROOM_PREFIX;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };

/// What a client has of one room.
#[derive(Debug, Default)]
pub struct View {
    /// It wants to be in the room.
    pub wanted: bool,
    /// It asked to join on this connection.
    asked: bool,
    /// The last page of the join's answer came: live messages follow.
    pub live: bool,
    /// The position: the last seq that it has, and the epoch it came with. `None` before the first answer.
    pub position: Option<(u64, u64)>,
    /// Every message that it has, by seq, since `from`.
    pub messages: BTreeMap<u64, String>,
    /// It has everything above this seq, up to the position.
    pub from: u64,
    /// The position that was given with the join.
    since: Option<(u64, u64)>,
    /// What it had, and from where on, when an answer began to take its place.
    replaced: Option<(u64, BTreeMap<u64, String>)>,
    /// The first page of the join's answer is still to come.
    fresh: bool,
}

impl View {
    /// A message at `seq` takes the place of all that it has from there on: that must have been cut off.
    fn cut_off(&mut self, store: &SimStore, room: &str, seq: u64) -> Result<(), String> {
        let gone = self.messages.split_off(&seq);
        self.from = self.from.min(seq - 1);
        match gone.iter().find(|(_, id)| !store.is_dead(room, id)) {
            Some((kept, _)) => Err(format!("{room} {seq} though it has {kept}, which was not cut off")),
            None => Ok(()),
        }
    }

    /// The last message that it has and that was not cut off.
    fn last_alive(&self, store: &SimStore, room: &str) -> u64 {
        let alive = self.messages.iter().rev().find(|(_, id)| !store.is_dead(room, id));
        alive.map_or(self.from, |(seq, _)| *seq)
    }
}

/// A message on its way.
#[derive(Debug)]
pub struct Pending {
    room: String,
    client_id: String,
    /// As JSON has it, without quotes.
    padding: String,
    /// Each has another content, so that it is seen which one stands at a seq.
    sendings: u32,
    retry_at_ms: u64,
    sent: bool,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// The user id, which is its token too.
    pub user: String,
    /// Rooms.
    pub rooms: BTreeMap<String, View>,
    /// Sent and not acked.
    pub pending: Vec<Pending>,
    /// On a connection now.
    pub connected: bool,
    /// It saw a close frame on this connection: the code.
    pub closed: Option<u16>,
    /// The last seq of its user's own room that came on this connection.
    pub own_last: Option<u64>,
    /// When the connection was made.
    pub connected_ms: u64,
    /// The last `members` counts that it was told.
    pub members: BTreeMap<String, u64>,
    /// Print what it receives.
    is_shown: bool,
    /// Rooms that it left on this connection: what was on its way may still come.
    left: BTreeSet<String>,
    number: usize,
    made: u64,
    upgraded: bool,
    head: Vec<u8>,
    decoder: Decoder,
}

impl Client {
    /// A client that was never connected. Two clients in three have a user of their own.
    #[must_use]
    pub fn new(number: usize) -> Client {
        let user = if number % 3 == 2 { number - 1 } else { number };
        Client {
            user: format!("u{user}"),
            rooms: BTreeMap::new(),
            pending: Vec::new(),
            connected: false,
            closed: None,
            own_last: None,
            connected_ms: 0,
            members: BTreeMap::new(),
            is_shown: std::env::var_os("ROOMWIRE_SIM_SHOW").is_some(),
            left: BTreeSet::new(),
            number,
            made: 0,
            upgraded: false,
            head: Vec::new(),
            decoder: Decoder::new(Role::Client),
        }
    }

    /// The bytes of a new connection: the upgrade, and right behind it the joins and the retries.
    pub fn connect(&mut self, now_ms: u64, counts: &mut Counts, out: &mut Vec<u8>) {
        self.connected = true;
        self.connected_ms = now_ms;
        self.own_last = None;
        self.closed = None;
        self.upgraded = false;
        self.head.clear();
        self.left.clear();
        self.decoder = Decoder::new(Role::Client);
        out.extend_from_slice(
            format!(
                "GET /ws?token={} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                self.user
            )
            .as_bytes(),
        );
        for view in self.rooms.values_mut() {
            view.asked = false;
            view.live = false;
        }
        let wanted: Vec<String> =
            self.rooms.iter().filter(|(_, view)| view.wanted).map(|(room, _)| room.clone()).collect();
        for room in wanted {
            counts.resumes += u64::from(self.rooms[&room].position.is_some());
            self.join(&room, out);
        }
        for pending in &mut self.pending {
            pending.sent = false;
            pending.retry_at_ms = now_ms;
        }
        self.retry(now_ms, out);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.connected = false;
        for view in self.rooms.values_mut() {
            // Only the last page of an answer says whether something is missing: one that broke off counts for nothing.
            if let Some((_, seq)) = view.since.filter(|_| view.asked && !view.live) {
                view.position = view.since;
                if let Some(before) = view.replaced.take() {
                    (view.from, view.messages) = before;
                }
                view.messages.split_off(&(seq + 1));
            }
            view.live = false;
        }
    }

    /// Joins a room, from its position if it has one.
    pub fn join(&mut self, room: &str, out: &mut Vec<u8>) {
        let view = self.rooms.entry(room.to_owned()).or_default();
        view.wanted = true;
        if view.asked {
            return; // the second answer would be told from the first only by its content
        }
        view.asked = true;
        view.fresh = true;
        view.since = view.position;
        let message = match view.position {
            Some((epoch, since)) => json!({"type": "join_room", "roomId": room, "since": since, "epoch": epoch}),
            None => json!({"type": "join_room", "roomId": room, "history": 20}),
        };
        send(&message, out);
    }

    /// Leaves a room and forgets it.
    pub fn leave(&mut self, room: &str, out: &mut Vec<u8>) {
        // A view whose join is not answered yet is kept, or the answer would have no place to go.
        if self.rooms.get(room).is_some_and(|view| view.live) {
            self.rooms.remove(room);
            self.left.insert(room.to_owned());
            send(&json!({"type": "leave_room", "roomId": room}), out);
        }
    }

    /// Publishes a message that no one else ever publishes.
    pub fn publish(&mut self, room: &str, random: &mut Random, now_ms: u64, out: &mut Vec<u8>) {
        self.made += 1;
        let most = if random.one_in(20) { 300 } else { 12 };
        let padding = "\u{e9}\\n\\\"x".repeat(random.index(most));
        self.pending.push(Pending {
            room: room.to_owned(),
            client_id: format!("c{}-{}", self.number, self.made),
            padding,
            sendings: 0,
            retry_at_ms: now_ms,
            sent: false,
        });
        self.retry(now_ms, out);
    }

    /// Sends what is due to be sent, again or for the first time, in order.
    pub fn retry(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        for pending in self.pending.iter_mut().filter(|pending| !pending.sent && pending.retry_at_ms <= now_ms) {
            pending.sent = true;
            pending.sendings += 1;
            let Pending { room, client_id, padding, sendings, .. } = pending;
            let begins = content_begins(client_id);
            let text = format!(
                r#"{{"clientId":"{client_id}","content":"{begins}v{sendings} {padding}","roomId":"{room}","type":"chat_message"}}"#
            );
            encode_masked(Opcode::Text, text.as_bytes(), MASK, out);
        }
    }

    /// Asks or tells something that has no part in the ledger.
    pub fn chatter(&mut self, room: &str, random: &mut Random, out: &mut Vec<u8>) {
        let last = self.rooms.get(room).and_then(|view| view.messages.values().next_back().cloned());
        let message = match (random.below(7), last) {
            (0, Some(id)) => json!({"type": "read_receipt", "roomId": room, "messageId": id}),
            (1, _) => json!({"type": "members", "roomId": room}),
            (2, _) => json!({"type": "watch_presence", "userIds": ["u0", "u1", "u3"]}),
            (3, _) => json!({"type": "unwatch_presence", "userIds": ["u0", "u9"]}),
            (4, _) => json!({"type": "ping"}),
            _ => json!({"type": "typing", "roomId": room}),
        };
        send(&message, out);
    }

    /// Asks for the number of members of a room.
    pub fn ask_members(&mut self, room: &str, out: &mut Vec<u8>) {
        send(&json!({"type": "members", "roomId": room}), out);
    }

    /// Bytes came from the server.
    ///
    /// # Errors
    /// What promise was broken.
    pub fn receive(
        &mut self,
        mut bytes: Vec<u8>,
        now_ms: u64,
        store: &mut SimStore,
        oracle: &mut Oracle,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Verdict {
        if !self.upgraded {
            self.head.append(&mut bytes);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(()) };
            if !self.head.starts_with(b"HTTP/1.1 101") {
                return Ok(()); // refused: the server closes, the client comes again
            }
            bytes = self.head.split_off(end + 4);
            self.upgraded = true;
        }
        let mut input = Input::new(&mut bytes);
        loop {
            let text = match self.decoder.next(&mut input, &LIMITS) {
                Err(violation) => return Err(format!("protocol: the server sent {}", violation.reason)),
                Ok(None) => return Ok(()),
                Ok(Some(Item::Text(text))) => text.to_owned(),
                Ok(Some(Item::Ping(payload))) => {
                    encode_masked(Opcode::Pong, payload, [1, 2, 3, 4], out);
                    continue;
                }
                Ok(Some(Item::Close(code))) => {
                    self.closed = code.map(|(code, _)| code);
                    counts.slow_closes += u64::from(self.closed == Some(4008));
                    return Ok(());
                }
                Ok(Some(_)) => continue,
            };
            let message: Value =
                serde_json::from_str(&text).map_err(|error| format!("protocol: {error} in {text:?}"))?;
            if self.is_shown {
                println!("{now_ms} {}/{} got {text}", self.number, self.user);
            }
            self.take(&message, now_ms, store, oracle, counts)?;
        }
    }

    fn take(
        &mut self,
        message: &Value,
        now_ms: u64,
        store: &mut SimStore,
        oracle: &mut Oracle,
        counts: &mut Counts,
    ) -> Verdict {
        let room = message["roomId"].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str().unwrap_or_default() {
            "chat_message" => {
                counts.delivered += 1;
                self.take_live(&room, message, store, oracle)
            }
            "room_history" => self.take_page(&room, message, store, oracle, counts),
            "ack" => {
                let client_id = message["clientId"].as_str().unwrap_or_default().to_owned();
                self.pending.retain(|pending| pending.client_id != client_id);
                let key = (room, self.user.clone(), client_id);
                let id = message["messageId"].as_str().unwrap_or_default();
                oracle.acked(store, key, id, message["seq"].as_u64().unwrap_or_default())
            }
            "members" => {
                self.members.insert(room, message["count"].as_u64().unwrap_or_default());
                Ok(())
            }
            "error" => self.take_error(message, now_ms, counts),
            _ => Ok(()),
        }
    }

    fn take_error(&mut self, message: &Value, now_ms: u64, counts: &mut Counts) -> Verdict {
        let code = message["code"].as_str().unwrap_or_default();
        if !matches!(code, "unavailable" | "draining" | "not_found") {
            return Err(format!("protocol: a well-behaved client got {message}"));
        }
        let after_ms = message["retryAfterMs"].as_u64().unwrap_or(100);
        match message["clientId"].as_str() {
            Some(client_id) => {
                counts.refused += 1;
                for pending in self.pending.iter_mut().filter(|pending| pending.client_id == client_id) {
                    pending.sent = false;
                    pending.retry_at_ms = now_ms + after_ms;
                }
            }
            // A history that could not be had: the client comes again, as a real one would.
            None if code != "not_found" => self.closed = Some(1011),
            None => {}
        }
        Ok(())
    }

    /// The room that each connection of the user is in from the start.
    #[must_use]
    pub fn own_room(&self) -> String {
        format!("{USER_ROOM_PREFIX}{}", self.user)
    }

    fn take_own(&mut self, room: &str, seq: u64, store: &mut SimStore, oracle: &Oracle) -> Verdict {
        let who = &self.user;
        if let Some(last) = self.own_last.filter(|_| !oracle.may_be_cut_off) {
            if seq <= last {
                return Err(format!("promise 1: {who} got {room} {seq} after {last}"));
            }
            if let Some(lost) = store.rows(room, last, seq).first() {
                return Err(format!("promise 3: {who} got {room} {seq} after {last}: {} is missing", lost.row.seq));
            }
        }
        self.own_last = Some(seq);
        Ok(())
    }

    fn take_live(&mut self, room: &str, message: &Value, store: &mut SimStore, oracle: &mut Oracle) -> Verdict {
        let (seq, epoch) = self.see(room, message, store, oracle)?;
        if room.starts_with(USER_ROOM_PREFIX) {
            return self.take_own(room, seq, store, oracle);
        }
        let who = &self.user;
        let Some(view) = self.rooms.get_mut(room) else { return Ok(()) }; // left meanwhile
        if !view.live && view.fresh && self.left.contains(room) {
            return Ok(()); // sent before the server heard of the leave
        }
        if !view.live {
            return Err(format!("promise 3: {who} got {room} {seq} live before the end of its history"));
        }
        let (last_epoch, last) = view.position.unwrap_or_default();
        if epoch < last_epoch {
            return Err(format!("promise 1: {who} got {room} {seq} of generation {epoch} after one of {last_epoch}"));
        }
        if seq <= last && !(oracle.may_be_cut_off && epoch > last_epoch) {
            return Err(format!("promise 1: {who} got {room} {seq} live after {last}"));
        }
        view.cut_off(store, room, seq).map_err(|why| format!("promise 1: {who} got {why}"))?;
        let last = if oracle.may_be_cut_off { view.last_alive(store, room) } else { last };
        let is_dead = oracle.may_be_cut_off && store.is_dead(room, &id(message));
        if let Some(lost) = store.alive(room, last, seq).first().filter(|_| !is_dead) {
            return Err(format!("promise 3: {who} got {room} {seq} after {last}: {lost} is missing"));
        }
        view.messages.insert(seq, id(message));
        view.position = Some((epoch, seq));
        Ok(())
    }

    fn take_page(
        &mut self,
        room: &str,
        page: &Value,
        store: &mut SimStore,
        oracle: &mut Oracle,
        counts: &mut Counts,
    ) -> Verdict {
        let who = self.user.clone();
        let messages = page["messages"].as_array().cloned().unwrap_or_default();
        let more = page["more"] == true;
        if more && messages.is_empty() {
            return Ok(()); // nothing is certain yet: the answer is still to come
        }
        let Some(view) = self.rooms.get_mut(room) else { return Ok(()) };
        if !more && page["complete"] != true && !oracle.may_be_cut_off {
            // Nothing expires here and every position is a real one, so nothing may ever be missing.
            return Err(format!("promise 3: {who} asked {room} since {:?} and got complete: false", view.since));
        }
        if view.fresh && view.since.is_none() {
            let first = messages.first().and_then(|message| message["seq"].as_u64());
            view.messages.clear();
            view.from = first.map_or(page["seq"].as_u64().unwrap_or_default(), |seq| seq - 1);
            view.position = Some((page["epoch"].as_u64().unwrap_or_default(), view.from));
        }
        let first = messages.first().and_then(|message| message["seq"].as_u64());
        let (last_epoch, last) = view.position.unwrap_or_default();
        // At once, or on the way: then the answer begins anew, under a later epoch.
        let may_begin_below = view.fresh || page["epoch"].as_u64() > Some(last_epoch);
        let begins_below = may_begin_below && oracle.may_be_cut_off && first.is_some_and(|first| first <= last);
        view.fresh = false;
        if begins_below || !more && page["complete"] != true {
            // The position was cut off: the answer is the newest messages, and takes the place of all.
            let before = (view.from, std::mem::take(&mut view.messages));
            view.replaced.get_or_insert(before);
            view.from = first.map_or(page["seq"].as_u64().unwrap_or_default(), |seq| seq - 1);
            view.position = Some((0, view.from));
        }
        for message in &messages {
            counts.replayed += 1;
            let (seq, epoch) = self.see(room, message, store, oracle)?;
            let Some(view) = self.rooms.get_mut(room) else { return Ok(()) };
            let (last_epoch, mut last) = view.position.unwrap_or_default();
            if seq <= last && oracle.may_be_cut_off && epoch > last_epoch {
                // A later generation began below the position while the answer was on its way.
                view.cut_off(store, room, seq).map_err(|why| format!("promise 1: {who} got {why} in history"))?;
                last = seq - 1;
            }
            if seq <= last {
                return Err(format!("promise 1: {who} got {room} {seq} in history after {last}"));
            }
            if let Some(lost) = store.rows(room, last, seq).first().filter(|_| !oracle.may_be_cut_off) {
                return Err(format!(
                    "promise 3: {who} got {room} {seq} in history after {last}: {} is missing",
                    lost.row.seq
                ));
            }
            view.messages.insert(seq, id(message));
            view.position = Some((epoch, seq));
        }
        if let Some(view) = self.rooms.get_mut(room)
            && !more
        {
            view.replaced = None;
            view.live = true;
        }
        Ok(())
    }

    fn see(
        &self,
        room: &str,
        message: &Value,
        store: &mut SimStore,
        oracle: &mut Oracle,
    ) -> Result<(u64, u64), String> {
        let seq = message["seq"].as_u64().unwrap_or_default();
        let fact = Fact {
            message_id: id(message),
            content: message["content"].as_str().unwrap_or_default().to_owned(),
            user: message["userId"].as_str().unwrap_or_default().to_owned(),
        };
        oracle.saw(store, room, seq, fact)?;
        Ok((seq, message["epoch"].as_u64().unwrap_or_default()))
    }
}

fn id(message: &Value) -> String {
    message["messageId"].as_str().unwrap_or_default().to_owned()
}

/// What the content of the message of that client id begins with.
#[must_use]
pub fn content_begins(client_id: &str) -> String {
    format!("{} ", client_id.trim_start_matches('c'))
}

const MASK: [u8; 4] = [7, 11, 13, 17];

fn send(message: &Value, out: &mut Vec<u8>) {
    encode_masked(Opcode::Text, message.to_string().as_bytes(), MASK, out);
}
