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
