//! Any text as a client's message: no panic, the same view of what is JSON as serde_json's own value, and what is
//! passed on is JSON again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roomwire_wire::message::{Chat, ClientMessage, ErrorCode, FieldLimits, ServerMessage, parse};
use serde_json::{Map, Value};

const LIMITS: FieldLimits = FieldLimits { content_bytes_max: 1024, token_bytes_max: 1024 };

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let object = serde_json::from_str::<Map<String, Value>>(text);
    match parse(text, &LIMITS) {
        Ok(ClientMessage::ChatMessage { room_id, content, client_id }) => {
            let message = ServerMessage::ChatMessage(Chat {
                message_id: "m",
                room_id: &room_id,
                user_id: "u",
                username: client_id.as_deref().unwrap_or("n"),
                content,
                timestamp: 1,
                seq: 1,
                epoch: 1,
            });
            let mut out = Vec::new();
            message.write(&mut out);
            let written: Value = serde_json::from_slice(&out).expect("what is written is JSON");
            if let Ok(object) = object {
                assert_eq!(Some(&written["content"]), object.get("content"));
            }
        }
        Ok(_) => {}
        Err(rejection) if rejection.code == ErrorCode::BadJson => assert!(object.is_err(), "{text}"),
        Err(_) => {}
    }
});
