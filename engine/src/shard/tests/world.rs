//! The stage: engines, a scripted bridge, clients that decode what they are sent. No I/O; time passes when told.

use crate::mesh::{HistoryAsk, NextPage, ToBridge, ToShard};
use crate::names::{ConnectionId, ConnectionRef, RoomId, ShardId, User, UserId, home};
use crate::shard::{Chunk, Ended, Grant, Identity};
use crate::stats::ShardStats;
use crate::{Engine, Now, limits::EngineConfig, limits::Limits};
use bytes::Bytes;
use roomwire_wire::frame::{Decoder, FrameLimits, Input, Item, Opcode, Role, encode_masked};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

pub(super) const START_MS: u64 = 1_700_000_000_000;

/// One client and its socket.
pub(super) struct Client {
    pub(super) shard: u16,
    pub(super) id: ConnectionId,
    /// What the server sent and the client has not decoded.
    bytes: Vec<u8>,
    decoder: Decoder,
    upgraded: bool,
    /// The client reads nothing: the chunk in flight stays there.
    pub(super) blocked: bool,
    flight: Option<Chunk>,
    heard: Vec<String>,
    /// Hears messages as the JSON that they are.
    pub(super) is_verbatim: bool,
    /// The whole HTTP answer.
    answer: String,
    /// How many sends it took to reach the client.
    pub(super) chunks: u32,
    pub(super) shut: bool,
    pub(super) gone: bool,
}

/// The bridge: orders and keeps messages in memory, answers at once unless told to hold.
#[derive(Default)]
pub(super) struct Script {
    pub(super) rooms: BTreeMap<String, Vec<String>>,
    pub(super) subscribed: BTreeMap<String, BTreeSet<u16>>,
    /// Messages of one page.
    pub(super) page_messages: usize,
    /// History waits here instead of being answered.
    pub(super) hold_history: bool,
    pub(super) held: VecDeque<(ConnectionRef, RoomId, HistoryAsk)>,
    pub(super) refuse_history: bool,
    /// The answers to subscriptions of users' rooms wait here.
    pub(super) hold_subscribed: bool,
    pub(super) subscribing: Vec<(u16, ToShard)>,
    /// Joins are told what there is, and that the rest comes later.
    pub(super) defer_history: bool,
    pub(super) asks: Vec<String>,
    pub(super) drained: Vec<u16>,
    pub(super) stats: Option<Box<ShardStats>>,
    pub(super) answers: Vec<ToBridge>,
}

pub(super) struct World {
    pub(super) engines: Vec<Engine>,
    pub(super) script: Script,
    pub(super) now: Now,
    pub(super) clients: Vec<Client>,
    pub(super) stopped_accepting: bool,
}

pub(super) fn config(limits: Limits, shards: u16) -> EngineConfig {
    EngineConfig {
        limits,
        heartbeat_ms: 30_000,
        presence_grace_ms: 5_000,
        node: Arc::from("n1"),
        shards,
        cluster: false,
        echo: false,
        allowed_origins: Arc::from([String::from("*")]),
        reject_by_http: false,
        proxies: None,
        seed: 42,
    }
}

/// A token is `user`, then `;exp=UNIX_MS` and `;GLOB=jp` for grants; `bad` is none.
fn verify(token: &str, unix_ms: u64) -> Option<Identity> {
    let mut parts = token.split(';');
    let id = parts.next().filter(|id| *id != "bad")?;
    let (mut expires_ms, mut grants) = (None, Vec::new());
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "exp" => expires_ms = value.parse().ok(),
            room => grants.push(Grant { room: room.into(), join: value.contains('j'), publish: value.contains('p') }),
        }
    }
    let user = User { id: UserId::new(id), name: Arc::from(id.to_uppercase()) };
    let grants = (!grants.is_empty()).then(|| Arc::from(grants));
    expires_ms.is_none_or(|expires| expires > unix_ms).then_some(Identity { user, expires_ms, grants })
}

pub(super) fn head(token: &str) -> String {
    format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

pub(super) fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_masked(opcode, payload, [1, 2, 3, 4], &mut bytes);
    bytes
}

impl World {
    pub(super) fn new(shards: u16) -> World {
        World::with(shards, |_| {})
    }

    pub(super) fn with(shards: u16, change: impl Fn(&mut EngineConfig)) -> World {
        let now = Now { mono_us: 77_000_000, unix_ms: START_MS };
        let mut config = config(Limits::default(), shards);
        change(&mut config);
        let engine = |shard| Engine::new(ShardId(shard), config.clone(), Arc::new(verify), now);
        World {
            engines: (0..shards).map(engine).collect(),
            script: Script { page_messages: 1_000, ..Script::default() },
            now,
            clients: Vec::new(),
            stopped_accepting: false,
        }
    }

    /// A socket that has sent nothing yet.
    pub(super) fn accept(&mut self, shard: u16, peer: Option<IpAddr>) -> Option<usize> {
        let id = self.engines[usize::from(shard)].accepted(self.now, peer)?;
        self.clients.push(Client {
            shard,
            id,
            bytes: Vec::new(),
            decoder: Decoder::new(Role::Client),
            upgraded: false,
            blocked: false,
            flight: None,
            heard: Vec::new(),
            is_verbatim: false,
            answer: String::new(),
            chunks: 0,
            shut: false,
            gone: false,
        });
        Some(self.clients.len() - 1)
    }

    /// A client with a token, upgraded; its `connected` is heard already.
    pub(super) fn connect(&mut self, shard: u16, token: &str) -> usize {
        let client = self.accept(shard, None).expect("no limit is near");
        self.feed(client, head(token).as_bytes());
        assert_eq!(self.heard(client), [format!("connected {}", token.split(';').next().expect("a user"))]);
        client
    }

    pub(super) fn feed(&mut self, client: usize, bytes: &[u8]) {
        let (shard, id) = (self.clients[client].shard, self.clients[client].id);
        self.engines[usize::from(shard)].received(self.now, id, &mut bytes.to_vec());
        self.run();
    }

    pub(super) fn say(&mut self, client: usize, json: &str) {
        self.feed(client, &frame(Opcode::Text, json.as_bytes()));
    }

    pub(super) fn join(&mut self, client: usize, room: &str) {
        self.say(client, &format!(r#"{{"type":"join_room","roomId":"{room}"}}"#));
    }

    pub(super) fn chat(&mut self, client: usize, room: &str, content: &str) {
        self.say(client, &format!(r#"{{"type":"chat_message","roomId":"{room}","content":"{content}"}}"#));
    }

    /// The peer's socket ends.
    pub(super) fn end(&mut self, client: usize, how: Ended) {
        let (shard, id) = (self.clients[client].shard, self.clients[client].id);
        let engine = &mut self.engines[usize::from(shard)];
        engine.ended(self.now, id, how);
        engine.closed(id);
        self.clients[client].gone = true;
        self.run();
    }

    /// Lets time pass in steps of 50 ms, as the driver would tick.
    pub(super) fn wait(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now.mono_us += 50_000;
            self.now.unix_ms += 50;
            for shard in 0..self.engines.len() {
                if self.now.mono_ms() >= self.engines[shard].next_tick_ms() {
                    self.engines[shard].tick(self.now);
                }
            }
            self.run();
        }
    }

    pub(super) fn mesh(&mut self, shard: u16, message: ToShard) {
        self.engines[usize::from(shard)].mesh(self.now, message);
        self.run();
    }

    pub(super) fn all(&mut self, message: &ToShard) {
        for shard in 0..self.engines.len() as u16 {
            self.mesh(shard, message.clone());
        }
    }

    /// Reads again what a blocked client was sent.
    pub(super) fn unblock(&mut self, client: usize) {
        self.clients[client].blocked = false;
        self.pass_one(client);
    }

    /// A blocked client takes the one chunk that is in flight.
    pub(super) fn pass_one(&mut self, client: usize) {
        if let Some(chunk) = self.clients[client].flight.take() {
            self.sent(client, chunk);
            self.run();
        }
    }

    fn sent(&mut self, client: usize, chunk: Chunk) {
        let known = &mut self.clients[client];
        known.bytes.extend_from_slice(chunk.as_ref());
        known.chunks += 1;
        self.engines[usize::from(known.shard)].sent(self.now, known.id, chunk);
    }

    /// Carries out effects until there are none.
    pub(super) fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            for shard in 0..self.engines.len() as u16 {
                is_quiet &= !self.carry_out(shard);
            }
            if is_quiet {
                return;
            }
        }
    }

    fn client_of(&self, shard: u16, id: ConnectionId) -> usize {
        self.clients.iter().position(|known| (known.shard, known.id) == (shard, id)).expect("a connection has a client")
    }

    fn carry_out(&mut self, shard: u16) -> bool {
        let effects = std::mem::take(&mut self.engines[usize::from(shard)].effects);
        let mut any = false;
        self.stopped_accepting |= effects.stop_accepting;
        for id in effects.sends {
            any = true;
            let client = self.client_of(shard, id);
            if let Some(chunk) = self.engines[usize::from(shard)].take_chunk(id) {
                if self.clients[client].blocked {
                    self.clients[client].flight = Some(chunk);
                } else {
                    self.sent(client, chunk);
                }
            }
        }
        for (to, message) in effects.shards {
            any = true;
            self.engines[usize::from(to.0)].mesh(self.now, message);
        }
        for message in effects.bridge {
            any = true;
            for (to, answer) in self.bridge(message) {
                self.engines[usize::from(to)].mesh(self.now, answer);
            }
        }
        for id in effects.shutdowns {
            any = true;
            let client = self.client_of(shard, id);
            self.clients[client].shut = true;
        }
        for id in effects.drops {
            any = true;
            let client = self.client_of(shard, id);
            self.clients[client].gone = true;
            self.engines[usize::from(shard)].closed(id);
        }
        any
    }

    fn bridge(&mut self, message: ToBridge) -> Vec<(u16, ToShard)> {
        match message {
            ToBridge::Publish { from, room, user, content, client_id, received_us } => {
                let messages = self.script.rooms.entry(room.to_string()).or_default();
                let seq = messages.len() as u64 + 1;
                let content = String::from_utf8(content.to_vec()).expect("wire checked it");
                let payload =
                    format!(r#"{{"type":"chat_message","userId":"{}","content":"{content}","seq":{seq}}}"#, &*user.id);
                messages.push(content);
                let mut out = Vec::new();
                let shards = match room.strip_prefix("user:") {
                    Some(owner) => vec![home(owner, self.engines.len() as u16).0],
                    None => self.script.subscribed.get(&*room).into_iter().flatten().copied().collect(),
                };
                let payload = Bytes::from(payload);
                for shard in shards {
                    let payload = payload.clone();
                    out.push((shard, ToShard::Deliver { room: room.clone(), seq, payload, received_us }));
                }
                if let Some(client_id) = client_id {
                    let message_id = Arc::from("m");
                    let timestamp = self.now.unix_ms;
                    out.push((
                        from.shard.0,
                        ToShard::Published { to: from, room, client_id, message_id, seq, timestamp },
                    ));
                }
                out
            }
            ToBridge::Receipt { room, user, message_id, .. } => {
                let payload = format!(r#"{{"type":"read_receipt","userId":"{}","messageId":"{message_id}"}}"#, &*user);
                let payload = Bytes::from(payload);
                let shards = self.script.subscribed.get(&*room).cloned().unwrap_or_default();
                let event = |shard| (shard, ToShard::Event { room: room.clone(), payload: payload.clone() });
                shards.into_iter().map(event).collect()
            }
            ToBridge::History { from, room, ask } => {
                self.script.asks.push(format!("{} {ask:?}", &*room));
                if self.script.hold_history {
                    self.script.held.push_back((from, room, ask));
                    return Vec::new();
                }
                vec![(from.shard.0, self.page(from, &room, &ask))]
            }
            ToBridge::Subscribe { room, shard } => {
                assert!(
                    self.script.subscribed.entry(room.to_string()).or_default().insert(shard.0),
                    "subscribed twice"
                );
                let Some(user) = room.strip_prefix("user:") else { return Vec::new() };
                let answer = (shard.0, ToShard::UserSubscribed { user: UserId::new(user) });
                if self.script.hold_subscribed {
                    self.script.subscribing.push(answer);
                    return Vec::new();
                }
                vec![answer]
            }
            ToBridge::Unsubscribe { room, shard } => {
                assert!(self.script.subscribed.entry(room.to_string()).or_default().remove(&shard.0));
                Vec::new()
            }
            ToBridge::Stats { stats, .. } => {
                self.script.stats = Some(stats);
                Vec::new()
            }
            ToBridge::Drained { shard } => {
                self.script.drained.push(shard.0);
                Vec::new()
            }
            answer => {
                self.script.answers.push(answer);
                Vec::new()
            }
        }
    }

    pub(super) fn answer_held(&mut self) {
        while !self.script.held.is_empty() {
            self.answer_one();
        }
    }

    pub(super) fn answer_one(&mut self) {
        let (from, room, ask) = self.script.held.pop_front().expect("something is held");
        let page = self.page(from, &room, &ask);
        self.mesh(from.shard.0, page);
    }

    fn page(&self, to: ConnectionRef, room: &RoomId, ask: &HistoryAsk) -> ToShard {
        let head = self.script.rooms.get(&**room).map_or(0, Vec::len);
        let is_told = matches!(ask, HistoryAsk::Next(next) if next.after as usize >= head);
        if self.script.refuse_history || self.script.defer_history && is_told {
            let code = roomwire_wire::message::ErrorCode::Unavailable;
            let message = "the store does not answer";
            return ToShard::HistoryRefused { to, room: room.clone(), code, message, retry_after_ms: Some(700) };
        }
        let (after, is_read) = match ask {
            HistoryAsk::Last { limit } => (head.saturating_sub(*limit as usize), false),
            HistoryAsk::Since { seq, .. } => (*seq as usize, false),
            HistoryAsk::Range { after, .. } => (after.unwrap_or(0) as usize, true),
            HistoryAsk::Next(next) => (next.after as usize, next.left != u32::MAX),
        };
        let until = head.min(after + self.script.page_messages);
        let seqs: Vec<String> = (after + 1..=until).map(|seq| format!(r#"{{"seq":{seq}}}"#)).collect();
        let more = until < head;
        let live = !more && !is_read;
        let room_id: &str = room;
        let payload = format!(
            r#"{{"type":"room_history","roomId":"{room_id}","messages":[{}],"seq":{until},"more":{more},"live":{live}}}"#,
            seqs.join(",")
        );
        if self.script.defer_history && !is_read {
            // What follows is not asked for until later; who knows all that there is has nothing to follow.
            let next = NextPage { after: until as u64, epoch: 1, before: None, left: u32::MAX, complete: true };
            let next = (!matches!(ask, HistoryAsk::Since { .. })).then_some(next);
            let payload = Bytes::from(payload);
            return ToShard::HistoryPage {
                to,
                room: room.clone(),
                payload,
                next,
                live: false,
                later_ms: NonZeroU16::new(700),
            };
        }
        let left = if is_read { 1_000 } else { u32::MAX };
        let next = more.then_some(NextPage { after: until as u64, epoch: 1, before: None, left, complete: true });
        ToShard::HistoryPage { to, room: room.clone(), payload: Bytes::from(payload), next, live, later_ms: None }
    }

    /// What the client heard since it was asked last, one short line for each frame.
    pub(super) fn heard(&mut self, client: usize) -> Vec<String> {
        self.clients[client].decode();
        std::mem::take(&mut self.clients[client].heard)
    }

    /// The `connectionId` of the `connected` that has not been decoded yet.
    pub(super) fn raw_connected(&self, client: usize) -> String {
        let bytes = String::from_utf8_lossy(&self.clients[client].bytes);
        let (_, id) = bytes.split_once(r#""connectionId":""#).expect("connected was sent");
        id.split('"').next().expect("a string ends").to_owned()
    }

    pub(super) fn answer_of(&mut self, client: usize) -> &str {
        self.clients[client].decode();
        &self.clients[client].answer
    }

    /// The texts of the error codes heard, with all else left out.
    pub(super) fn errors(&mut self, client: usize) -> Vec<String> {
        self.heard(client).into_iter().filter_map(|line| line.strip_prefix("error ").map(str::to_owned)).collect()
    }
}

impl Client {
    fn decode(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if !self.upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                self.bytes = bytes;
                return;
            };
            let rest = bytes.split_off(end + 4);
            self.answer = String::from_utf8(bytes).expect("heads are ASCII");
            bytes = rest;
            self.upgraded = self.answer.starts_with("HTTP/1.1 101 ");
            if !self.upgraded {
                self.heard.push(self.answer.split_whitespace().nth(1).unwrap_or_default().to_owned());
                return;
            }
        }
        let limits = FrameLimits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
        let mut input = Input::new(&mut bytes);
        while let Some(item) = self.decoder.next(&mut input, &limits).expect("the engine sends valid frames") {
            let line = match item {
                Item::Text(text) if self.is_verbatim => text.to_owned(),
                Item::Text(text) => match serde_json::from_str(text) {
                    Ok(value) => line(&value),
                    Err(_) => format!("text {text}"),
                },
                Item::Binary(bytes) => format!("binary {}", bytes.len()),
                Item::Ping(payload) => format!("ping {}", payload.len()),
                Item::Pong(payload) => format!("pong {}", String::from_utf8_lossy(payload)),
                Item::Close(Some((code, reason))) => format!("close {code} {reason}"),
                Item::Close(None) => "close".to_owned(),
            };
            self.heard.push(line);
        }
    }
}

/// A message as its type and what matters in it.
fn line(value: &Value) -> String {
    let field = |name: &str| value[name].as_str().map_or_else(|| value[name].to_string(), str::to_owned);
    let shown = match field("type").as_str() {
        "connected" | "user_joined" | "user_left" | "typing" | "read_receipt" => field("userId"),
        "chat_message" => format!("{} {}", field("seq"), field("content")),
        "ack" => format!("{} {}", field("clientId"), field("seq")),
        "room_history" => {
            let messages = value["messages"].as_array().cloned().unwrap_or_default();
            let seq = |message: Option<&Value>| message.map_or(String::new(), |message| message["seq"].to_string());
            let more = if value["more"] == true { " more" } else { "" };
            format!("{}..{}{more}", seq(messages.first()), seq(messages.last()))
        }
        "members" => {
            let names = value["users"].as_array().map(|users| {
                users.iter().map(|user| user["userId"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
            });
            format!("{} {}", field("count"), names.map_or("-".to_owned(), |names| names.join(",")))
        }
        "presence" => format!("{} {}", field("userId"), field("status")),
        "reconnect" => field("afterMs"),
        "refreshed" => field("expiresAt"),
        "error" if value.get("clientId").is_some() => format!("{} {}", field("code"), field("clientId")),
        "error" => field("code"),
        _ => String::new(),
    };
    format!("{} {shown}", field("type")).trim_end().to_owned()
}
