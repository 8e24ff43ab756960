//! Both directions, as a client sees them.

use std::borrow::Cow;

use super::*;

const NO_LIMITS: FieldLimits = FieldLimits { content_bytes_max: usize::MAX, token_bytes_max: usize::MAX };

#[test]
fn a_chat_message_is_borrowed_from_the_text() {
    let text = r#"{"type":"chat_message","roomId":"a","content":"h\u00e9\n\"x\" 😀","clientId":"c1","more":[1]}"#;
    let Ok(ClientMessage::ChatMessage { room_id, content, client_id }) = parse(text, &NO_LIMITS) else { panic!() };
    assert!(matches!(room_id, Cow::Borrowed("a")));
    assert_eq!(content.as_str(), r#"h\u00e9\n\"x\" 😀"#);
    assert!(matches!(client_id, Some(Cow::Borrowed("c1"))));
}

/// The error of a message that must not be taken.
fn rejected(text: &str) -> (ErrorCode, Option<String>) {
    match parse(text, &NO_LIMITS) {
        Err(rejection) => {
            assert!(!rejection.message.is_empty());
            (rejection.code, rejection.client_id.map(Cow::into_owned))
        }
        Ok(message) => panic!("{text} gave {message:?}"),
    }
}

#[test]
fn every_message_of_the_protocol_is_read() {
    let room = || Cow::Borrowed("a:b");
    let ids = |ids: &[&'static str]| ids.iter().copied().map(Cow::Borrowed).collect::<Vec<_>>();
    let cases = [
        (
            r#"{"type":"join_room","roomId":"a:b"}"#,
            ClientMessage::JoinRoom { room_id: room(), since: None, epoch: None, history: 50 },
        ),
        (
            r#"{"roomId":"a:b","type":"join_room","since":7,"epoch":2,"history":0}"#,
            ClientMessage::JoinRoom { room_id: room(), since: Some(7), epoch: Some(2), history: 0 },
        ),
        (
            r#"{"type":"join_room","roomId":"a:b","since":null,"epoch":null,"history":null}"#,
            ClientMessage::JoinRoom { room_id: room(), since: None, epoch: None, history: 50 },
        ),
        (
            r#"{"type":"join_room","roomId":"a:b","since":18446744073709551615,"history":1001}"#,
            ClientMessage::JoinRoom { room_id: room(), since: Some(u64::MAX), epoch: None, history: 1000 },
        ),
        (r#"{"type":"leave_room","roomId":"a:b"}"#, ClientMessage::LeaveRoom { room_id: room() }),
        (
            r#"{"type":"chat_message","roomId":"a:b","content":" "}"#,
            ClientMessage::ChatMessage { room_id: room(), content: RawText(" "), client_id: None },
        ),
        (
            r#"{"type":"chat_message","roomId":"a:b","content":"x","clientId":null}"#,
            ClientMessage::ChatMessage { room_id: room(), content: RawText("x"), client_id: None },
        ),
        (r#"{"type":"typing","roomId":"a:b"}"#, ClientMessage::Typing { room_id: room() }),
        (
            r#"{"type":"read_receipt","roomId":"a:b","messageId":"m"}"#,
            ClientMessage::ReadReceipt { room_id: room(), message_id: Cow::Borrowed("m") },
        ),
        (
            r#"{"type":"history","roomId":"a:b"}"#,
            ClientMessage::History { room_id: room(), before: None, after: None, limit: 50 },
        ),
        (
            r#"{"type":"history","roomId":"a:b","before":9,"after":0,"limit":4294967297}"#,
            ClientMessage::History { room_id: room(), before: Some(9), after: Some(0), limit: 1000 },
        ),
        (
            r#"{"type":"history","roomId":"a:b","limit":0}"#,
            ClientMessage::History { room_id: room(), before: None, after: None, limit: 1 },
        ),
        (r#"{"type":"members","roomId":"a:b"}"#, ClientMessage::Members { room_id: room() }),
        (
            r#"{"type":"watch_presence","userIds":["u1","u2"]}"#,
            ClientMessage::WatchPresence { user_ids: ids(&["u1", "u2"]) },
        ),
        (r#"{"type":"watch_presence","userIds":[]}"#, ClientMessage::WatchPresence { user_ids: ids(&[]) }),
        (r#"{"type":"unwatch_presence","userIds":["u1"]}"#, ClientMessage::UnwatchPresence { user_ids: ids(&["u1"]) }),
        (r#"{"type":"refresh","token":"a.b.c"}"#, ClientMessage::Refresh { token: Cow::Borrowed("a.b.c") }),
        (r#"{"type":"ping"}"#, ClientMessage::Ping),
    ];
    for (text, message) in cases {
        assert_eq!(parse(text, &NO_LIMITS), Ok(message), "{text}");
    }
}

#[test]
fn json_may_be_written_in_any_way_that_json_allows() {
    for text in [
        " {\n\t\"type\" : \"ping\" }\r\n",
        r#"{"type":"\u0070ing"}"#,
        r#"{"\u0074ype":"ping"}"#,
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"typing","type":"ping"}"#,
        r#"{"type":"ping","roomId":5,"content":[],"clientId":{},"userIds":1}"#,
        r#"{"type":"ping","x":{"type":"typing","a":[[[{}]]]},"":0,"y":1e400,"z":-0.5E-7}"#,
    ] {
        assert_eq!(parse(text, &NO_LIMITS), Ok(ClientMessage::Ping), "{text}");
    }
    let escaped = r#"{"type":"chat_message","roomId":"\u0061","content":"x","clientId":"\u00e9\ud83d\ude00"}"#;
    let Ok(ClientMessage::ChatMessage { room_id, client_id, .. }) = parse(escaped, &NO_LIMITS) else { panic!() };
    assert_eq!((&*room_id, client_id.as_deref()), ("a", Some("é😀")));
}

#[test]
fn what_is_no_json_object_is_bad_json() {
    let texts = [
        "",
        " ",
        "{",
        "}",
        "{}}",
        "{} {}",
        "[]",
        "[\"ping\"]",
        "null",
        "true",
        "5",
        "\"ping\"",
        "ping",
        "\u{feff}{}",
        "{type:\"ping\"}",
        "{'type':'ping'}",
        "{\"type\":\"ping\",}",
        "{\"type\" \"ping\"}",
        "{\"type\":}",
        "{,}",
        "{\"type\":\"ping\"",
        "{\"type\":\"ping",
        "{\"type\":\"pi\nng\"}",
        "{\"type\":\"\\x\"}",
        "{\"type\":\"\\u12\"}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":1.}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":undefined}",
        "{\"a\":tru}",
        "{\"a\":nul}",
        "{\"a\":[1,]}",
        "{\"a\":[}",
        "{\"a\":{\"b\":]}",
        "{5:1}",
        "{\"a\":1 /* c */}",
        "{\"type\":\"ping\"}\0",
        "{\"type\":\"a\u{0}\"}",
    ];
    for text in texts {
        assert_eq!(rejected(text), (ErrorCode::BadJson, None), "{text}");
    }
}

#[test]
fn depth_is_no_danger() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = format!("{}0{}", open.repeat(100_000), close.repeat(100_000));
        let ignored = format!(r#"{{"type":"ping","x":{nested}}}"#);
        let verdict = parse(&ignored, &NO_LIMITS);
        assert!(matches!(verdict, Ok(ClientMessage::Ping)) || verdict.is_err());
        for field in ["type", "roomId", "content", "clientId"] {
            let text = format!(r#"{{"type":"chat_message","roomId":"a","content":"b","{field}":{nested}}}"#);
            assert!(parse(&text, &NO_LIMITS).is_err());
        }
        let users = format!(r#"{{"type":"watch_presence","userIds":{nested}}}"#);
        assert!(parse(&users, &NO_LIMITS).is_err());
        let unclosed = format!(r#"{{"type":"ping","x":{}"#, open.repeat(100_000));
        assert_eq!(rejected(&unclosed).0, ErrorCode::BadJson);
    }
}

#[test]
fn the_type_must_be_a_known_string() {
    for text in [r#"{}"#, r#"{"Type":"ping"}"#, r#"{"type":null}"#, r#"{"type":5}"#, r#"{"type":["ping"]}"#] {
        assert_eq!(rejected(text).0, ErrorCode::BadRequest, "{text}");
    }
    for text in [r#"{"type":""}"#, r#"{"type":"PING"}"#, r#"{"type":"ping "}"#, r#"{"type":"connected"}"#] {
        assert_eq!(rejected(text).0, ErrorCode::UnknownType, "{text}");
    }
    assert_eq!(rejected(r#"{"type":"x","clientId":"c"}"#), (ErrorCode::UnknownType, Some("c".to_owned())));
    assert_eq!(rejected(r#"{"type":7,"clientId":"c"}"#), (ErrorCode::BadRequest, Some("c".to_owned())));
    assert_eq!(rejected(r#"{"clientId":"c"}"#), (ErrorCode::BadRequest, Some("c".to_owned())));
}

/// A field: its name, a good value, whether it may be left out.
type Field = (&'static str, &'static str, bool);

/// The known fields of each message.
const FIELDS: [(&str, &[Field]); 10] = [
    ("join_room", &[("roomId", "\"a\"", false), ("since", "1", true), ("epoch", "1", true), ("history", "1", true)]),
    ("leave_room", &[("roomId", "\"a\"", false)]),
    ("chat_message", &[("roomId", "\"a\"", false), ("content", "\"b\"", false), ("clientId", "\"c\"", true)]),
    ("typing", &[("roomId", "\"a\"", false)]),
    ("read_receipt", &[("roomId", "\"a\"", false), ("messageId", "\"m\"", false)]),
    ("history", &[("roomId", "\"a\"", false), ("before", "1", true), ("after", "1", true), ("limit", "1", true)]),
    ("members", &[("roomId", "\"a\"", false)]),
    ("watch_presence", &[("userIds", "[\"u\"]", false)]),
    ("unwatch_presence", &[("userIds", "[\"u\"]", false)]),
    ("refresh", &[("token", "\"t\"", false)]),
];

/// A message of `kind` whose field `name` has `value`, or is left out.
fn with_field(kind: &str, fields: &[Field], name: &str, value: Option<&str>) -> String {
    let mut text = format!(r#"{{"type":"{kind}""#);
    for (field, good, _) in fields {
        match (*field == name, value) {
            (true, None) => {}
            (true, Some(value)) => text.push_str(&format!(r#","{field}":{value}"#)),
            (false, _) => text.push_str(&format!(r#","{field}":{good}"#)),
        }
    }
    if name != "clientId" && kind != "chat_message" {
        text.push_str(r#","clientId":"c""#);
    }
    text.push('}');
    text
}

#[test]
fn a_wrong_type_in_any_field_is_a_bad_request_that_echoes_the_client_id() {
    let values =
        ["5", "\"x\"", "true", "[]", "[1]", "[[]]", "{}", "1.5", "-1", "1e2", "-0", "18446744073709551616", "[null]"];
    for (kind, fields) in FIELDS {
        for (name, good, optional) in fields {
            for value in values {
                let same_type = match good.as_bytes()[0] {
                    b'"' => value.starts_with('"'),
                    b'[' => value == "[]",
                    _ => value == "5",
                };
                let text = with_field(kind, fields, name, Some(value));
                if same_type {
                    assert!(parse(&text, &NO_LIMITS).is_ok(), "{text}");
                } else {
                    let echoed = (*name != "clientId").then(|| "c".to_owned());
                    assert_eq!(rejected(&text), (ErrorCode::BadRequest, echoed), "{text}");
                }
            }
            for value in [None, Some("null")] {
                let text = with_field(kind, fields, name, value);
                if *optional {
                    assert!(parse(&text, &NO_LIMITS).is_ok(), "{text}");
                } else {
                    assert_eq!(rejected(&text), (ErrorCode::BadRequest, Some("c".to_owned())), "{text}");
                }
            }
        }
    }
}

#[test]
fn a_room_id_outside_the_pattern_is_a_bad_request() {
    let long = "r".repeat(129);
    for room in ["", " ", "a b", "a{b}", "a/b", "é", "a\\n", "a\\u0000", "\\ud800", "*", "a,b", long.as_str()] {
        for kind in ["join_room", "leave_room", "chat_message", "typing", "read_receipt", "history", "members"] {
            let text = format!(r#"{{"type":"{kind}","roomId":"{room}","content":"x","messageId":"m","clientId":"c"}}"#);
            assert_eq!(rejected(&text), (ErrorCode::BadRequest, Some("c".to_owned())), "{text}");
        }
    }
}

#[test]
fn a_client_id_has_1_to_64_characters() {
    for good in ["c", "é", &"😀".repeat(64), "\\ud83d\\ude00"] {
        let text = format!(r#"{{"type":"chat_message","roomId":"a","content":"x","clientId":"{good}"}}"#);
        assert!(parse(&text, &NO_LIMITS).is_ok(), "{good}");
        let text = format!(r#"{{"type":"chat_message","roomId":"a","clientId":"{good}"}}"#);
        assert!(rejected(&text).1.is_some(), "{good}");
    }
    for bad in [&"c".repeat(65), &"é".repeat(65), &"c".repeat(100_000), "\\ud83d"] {
        let text = format!(r#"{{"type":"chat_message","roomId":"a","content":"x","clientId":"{bad}"}}"#);
        assert_eq!(rejected(&text), (ErrorCode::BadRequest, None), "{bad}");
    }
    let empty = r#"{"type":"chat_message","roomId":"a","content":"x","clientId":""}"#;
    assert_eq!(rejected(empty), (ErrorCode::BadRequest, Some(String::new())));
}

#[test]
fn content_is_a_string_that_every_reader_of_json_accepts() {
    for good in [
        "x",
        "\\n",
        "\\\\",
        "\\\"",
        "\\\\ud800",
        "\\ud83d\\ude00",
        "\\uD83D\\uDE00x\\ud83d\\udE00",
        "\\u0000",
        "\u{7f}é😀",
    ] {
        let text = format!(r#"{{"type":"chat_message","roomId":"a","content":"{good}"}}"#);
        let Ok(ClientMessage::ChatMessage { content, .. }) = parse(&text, &NO_LIMITS) else { panic!("{text}") };
        assert_eq!(content.as_str(), good);
        assert!(serde_json::from_str::<String>(&format!("\"{good}\"")).is_ok());
    }
    for bad in [
        "",
        "\\ud83d",
        "\\ude00",
        "\\ude00\\ud83d",
        "\\ud83d\\ud83d\\ude00",
        "\\ud83dx\\ude00",
        "x\\uDBFF\\n",
        "\\ud83d\\\\ude00",
    ] {
        let text = format!(r#"{{"type":"chat_message","roomId":"a","content":"{bad}","clientId":"c"}}"#);
        assert_eq!(rejected(&text), (ErrorCode::BadRequest, Some("c".to_owned())), "{bad}");
    }
}

#[test]
fn a_limit_that_is_crossed_is_named() {
    let limits = FieldLimits { content_bytes_max: 4, token_bytes_max: 4 };
    let chat =
        |content: &str| format!(r#"{{"type":"chat_message","roomId":"a","content":"{content}","clientId":"c"}}"#);
    let refresh = |token: &str| format!(r#"{{"type":"refresh","token":"{token}","clientId":"c"}}"#);
    for (good, bad, limit) in [
        (chat("1234"), chat("12345"), "content_bytes_max"),
        (chat("éé"), chat("ééx"), "content_bytes_max"),
        (chat("\\n\\n"), chat("\\n\\nx"), "content_bytes_max"),
        (refresh("1234"), refresh("12345"), "token_bytes_max"),
    ] {
        assert!(parse(&good, &limits).is_ok(), "{good}");
        let rejection = parse(&bad, &limits).expect_err("too large");
        assert_eq!((rejection.code, rejection.limit), (ErrorCode::TooLarge, Some(limit)), "{bad}");
        assert_eq!(rejection.client_id.as_deref(), Some("c"));
    }
    assert_eq!(rejected(&refresh("")).0, ErrorCode::BadRequest);
}

#[test]
fn a_watch_has_500_user_ids_that_may_become_keys() {
    let watch = |count: usize| {
        let ids: Vec<String> = (0..count).map(|index| format!("\"u{index}\"")).collect();
        format!(r#"{{"type":"watch_presence","userIds":[{}]}}"#, ids.join(","))
    };
    assert!(parse(&watch(500), &NO_LIMITS).is_ok());
    assert_eq!(rejected(&watch(501)).0, ErrorCode::BadRequest);
    for bad in ["", " ", "a b", "{x}", "a\\n", &"u".repeat(124)] {
        let text = format!(r#"{{"type":"watch_presence","userIds":["ok","{bad}"]}}"#);
        assert_eq!(rejected(&text).0, ErrorCode::BadRequest, "{text}");
    }
}

/// Names and texts that try to break out of a JSON string.
const HOSTILE: [&str; 8] = [
    "plain",
    "",
    "\"},{\"x\":\"",
    "back\\slash\\",
    "\n\r\t\u{8}\u{c}\0\u{1f}",
    "</script>\u{2028}",
    "é😀\u{10ffff}",
    "\u{7f}\u{feff}",
];

fn written(message: &ServerMessage<'_>) -> String {
    let mut out = b"before".to_vec();
    message.write(&mut out);
    let text = String::from_utf8(out).expect("UTF-8");
    text.strip_prefix("before").expect("appended").to_owned()
}

/// The JSON value and, since a value forgets it, the order of its fields.
fn assert_written(message: &ServerMessage<'_>, expected: &serde_json::Value, order: &[&str]) {
    let text = written(message);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(&value, expected);
    assert_eq!(value.as_object().map(serde_json::Map::len), Some(order.len()));
    if HOSTILE.iter().skip(2).all(|hostile| !text.contains(hostile)) {
        let places: Vec<_> = order.iter().map(|name| text.find(&format!("\"{name}\":"))).collect();
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{text}");
    }
}

#[test]
fn every_message_of_the_server_is_the_json_that_the_protocol_says() {
    use serde_json::json;
    for name in HOSTILE {
        let timestamp = 1_800_000_000_123;
        assert_written(
            &ServerMessage::Connected {
                username: name,
                timestamp,
                user_id: name,
                connection_id: "c",
                node: "n",
                heartbeat_ms: 30_000,
            },
            &json!({"type": "connected", "message": format!("Welcome {name}!"), "timestamp": timestamp, "userId": name,
                "connectionId": "c", "node": "n", "heartbeatMs": 30_000}),
            &["type", "message", "timestamp", "userId", "connectionId", "node", "heartbeatMs"],
        );
        let user_event =
            |kind: &str| json!({"type": kind, "userId": "u", "username": name, "roomId": "r", "timestamp": timestamp});
        let order = ["type", "userId", "username", "roomId", "timestamp"];
        let (user_id, username, room_id) = ("u", name, "r");
        assert_written(
            &ServerMessage::UserJoined { user_id, username, room_id, timestamp },
            &user_event("user_joined"),
            &order,
        );
        assert_written(
            &ServerMessage::UserLeft { user_id, username, room_id, timestamp },
            &user_event("user_left"),
            &order,
        );
        assert_written(&ServerMessage::Typing { user_id, username, room_id, timestamp }, &user_event("typing"), &order);
        assert_written(
            &ServerMessage::Ack { client_id: name, message_id: "m", room_id, seq: 0, timestamp },
            &json!({"type": "ack", "clientId": name, "messageId": "m", "roomId": "r", "seq": 0, "timestamp": timestamp}),
            &["type", "clientId", "messageId", "roomId", "seq", "timestamp"],
        );
        assert_written(
            &ServerMessage::ReadReceipt { user_id: name, message_id: "m", room_id, timestamp },
            &json!({"type": "read_receipt", "userId": name, "messageId": "m", "roomId": "r", "timestamp": timestamp}),
            &["type", "userId", "messageId", "roomId", "timestamp"],
        );
        assert_written(
            &ServerMessage::Presence { user_id: name, online: true, timestamp: u64::MAX },
            &json!({"type": "presence", "userId": name, "status": "online", "timestamp": u64::MAX}),
            &["type", "userId", "status", "timestamp"],
        );
        assert_written(
            &ServerMessage::Reconnect { after_ms: 10, reason: name },
            &json!({"type": "reconnect", "afterMs": 10, "reason": name}),
            &["type", "afterMs", "reason"],
        );
        assert_written(
            &ServerMessage::Error {
                code: ErrorCode::Unavailable,
                message: name,
                client_id: Some(name),
                retry_after_ms: Some(9),
            },
            &json!({"type": "error", "code": "unavailable", "message": name, "clientId": name, "retryAfterMs": 9}),
            &["type", "code", "message", "clientId", "retryAfterMs"],
        );
        let users = [Member { user_id: "u", username: name }, Member { user_id: name, username: "v" }];
        assert_written(
            &ServerMessage::Members { room_id, count: 2, users: Some(&users) },
            &json!({"type": "members", "roomId": "r", "count": 2,
                "users": [{"userId": "u", "username": name}, {"userId": name, "username": "v"}]}),
            &["type", "roomId", "count", "users"],
        );
    }
    assert_written(
        &ServerMessage::Members { room_id: "r", count: 1_000, users: None },
        &json!({"type": "members", "roomId": "r", "count": 1_000}),
        &["type", "roomId", "count"],
    );
    assert_written(
        &ServerMessage::Members { room_id: "r", count: 0, users: Some(&[]) },
        &json!({"type": "members", "roomId": "r", "count": 0, "users": []}),
        &["type", "roomId", "count", "users"],
    );
    assert_written(
        &ServerMessage::Error { code: ErrorCode::BadJson, message: "m", client_id: None, retry_after_ms: None },
        &json!({"type": "error", "code": "bad_json", "message": "m"}),
        &["type", "code", "message"],
    );
    assert_written(
        &ServerMessage::Presence { user_id: "u", online: false, timestamp: 0 },
        &json!({"type": "presence", "userId": "u", "status": "offline", "timestamp": 0}),
        &["type", "userId", "status", "timestamp"],
    );
    assert_eq!(written(&ServerMessage::Pong { timestamp: 10 }), r#"{"type":"pong","timestamp":10}"#);
    assert_eq!(written(&ServerMessage::Refreshed { expires_at: 100 }), r#"{"type":"refreshed","expiresAt":100}"#);
}

#[test]
fn a_chat_message_passes_its_content_on_byte_for_byte_live_and_in_history() {
    let content = RawText::from_escaped(r#"\u00e9é\/\n\ud83d\ude00"#);
    let chat =
        Chat { message_id: "m", room_id: "r", user_id: "u", username: "n\"", content, timestamp: 3, seq: 2, epoch: 1 };
    let fields = r#""messageId":"m","roomId":"r","userId":"u","username":"n\"","content":"\u00e9é\/\n\ud83d\ude00","timestamp":3,"seq":2,"epoch":1"#;
    assert_eq!(written(&ServerMessage::ChatMessage(chat)), format!(r#"{{"type":"chat_message",{fields}}}"#));
    let readers: [Box<str>; 2] = ["u1".into(), "u\"2".into()];
    let messages = [HistoryEntry { chat, read_by: &[] }, HistoryEntry { chat, read_by: &readers }];
    let page =
        ServerMessage::RoomHistory { room_id: "r", messages: &messages, seq: 2, epoch: 1, complete: true, more: false };
    assert_eq!(
        written(&page),
        format!(
            r#"{{"type":"room_history","roomId":"r","messages":[{{{fields},"readBy":[]}},{{{fields},"readBy":["u1","u\"2"]}}],"seq":2,"epoch":1,"complete":true,"more":false}}"#
        )
    );
    let empty =
        ServerMessage::RoomHistory { room_id: "r", messages: &[], seq: 0, epoch: 0, complete: false, more: true };
    assert_eq!(
        written(&empty),
        r#"{"type":"room_history","roomId":"r","messages":[],"seq":0,"epoch":0,"complete":false,"more":true}"#
    );
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// The contract that clients are generated from; a test of the real server holds the rest of it.
    #[test]
    fn asyncapi_names_every_error_code_and_limit() {
        let document: serde_json::Value =
            serde_json::from_str(include_str!("../../../docs/asyncapi.json")).expect("JSON");
        let fields = |message: &str| document["components"]["messages"][message]["payload"]["properties"].clone();
        let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(fields("error")["code"]["enum"], serde_json::json!(codes));
        assert_eq!(document["components"]["schemas"]["clientId"]["maxLength"], CLIENT_ID_CHARS_MAX);
        assert_eq!(fields("watchPresence")["userIds"]["maxItems"], WATCH_USERS_MAX);
        assert_eq!(fields("roomHistory")["messages"]["maxItems"], HISTORY_MESSAGES_MAX);
        assert_eq!(fields("joinRoom")["history"]["default"], HISTORY_MESSAGES_DEFAULT);
    }

    proptest! {

        #![proptest_config(crate::seeded())]

        #[test]
        fn any_text_is_escaped_as_serde_json_reads_it(text: String, number: u64) {
            let escaped = RawText::escape(&text);
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{escaped}\"")).ok(), Some(text.clone()));
            let json = written(&ServerMessage::Presence { user_id: &text, online: true, timestamp: number });
            let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(&value["userId"], &serde_json::Value::from(text));
            prop_assert_eq!(&value["timestamp"], &serde_json::Value::from(number));
        }

        #[test]
        fn any_content_reaches_the_others_as_it_was_meant(text in "\\PC{1,50}|[\\x00-\\x7f]{1,50}") {
            let sent = serde_json::json!({"type": "chat_message", "roomId": "r", "content": text}).to_string();
            let Ok(ClientMessage::ChatMessage { content, .. }) = parse(&sent, &NO_LIMITS) else {
                return Err(TestCaseError::fail(sent));
            };
            let chat = Chat {
                message_id: "m", room_id: "r", user_id: "u", username: "n", content, timestamp: 0, seq: 1, epoch: 1,
            };
            let json = written(&ServerMessage::ChatMessage(chat));
            let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(&value["content"], &serde_json::Value::from(text));
        }

        #[test]
        fn any_text_is_taken_or_rejected_but_never_a_panic(
            garbage in "\\PC{0,80}",
            index: prop::sample::Index,
            byte in 0u8..128,
        ) {
            let _ = parse(&garbage, &NO_LIMITS);
            let good = r#"{"type":"chat_message","roomId":"a","content":"b\ud83d\ude00","clientId":"c","since":1}"#;
            let mut damaged = good.as_bytes().to_vec();
            let index = index.index(damaged.len());
            damaged[index] = byte;
            let damaged = String::from_utf8(damaged).expect("ASCII");
            let is_json = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&damaged).is_ok();
            match parse(&damaged, &NO_LIMITS) {
                Ok(_) => prop_assert!(is_json, "{}", damaged),
                Err(rejection) => prop_assert!(is_json || rejection.code != ErrorCode::UnknownType, "{}", damaged),
            }
        }
    }
}
