//! How a node's own messages are told from what others publish on the same channels.
//!
//! The scripts end what they publish with a MAC under a key that the nodes keep in Redis as `rw:key`: software that may
//! publish, but not read that key, can neither forge a message nor a new generation. Nested SHA-1 as in HMAC, since
//! `redis.sha1hex` is the only digest that every Redis and Valkey offers to a script.

use sha1_smol::Sha1;

/// Hex digits of the MAC.
const MAC_BYTES: usize = 40;

/// A new key: 32 hex digits.
///
/// # Errors
/// The system has no random numbers.
pub(super) fn new_key() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The part of `payload` that is vouched for on this channel: all before the MAC, if it is one of ours. `tail` is what
/// follows the MAC.
#[must_use]
pub(super) fn vouched<'p>(key: &str, channel: &str, payload: &'p [u8], tail: &[u8]) -> Option<&'p [u8]> {
    let rest = payload.strip_suffix(tail)?;
    let (text, mac) = rest.split_at_checked(rest.len().checked_sub(MAC_BYTES)?)?;
    if !text.ends_with(b",\"mac\":\"") {
        return None;
    }
    let digest = |parts: &[&[u8]]| {
        let mut sha = Sha1::new();
        parts.iter().for_each(|part| sha.update(part));
        sha.digest().to_string()
    };
    let expected = digest(&[key.as_bytes(), digest(&[key.as_bytes(), channel.as_bytes(), b" ", text]).as_bytes()]);
    // Whoever could measure the time of this comparison sees only what is published anyway.
    (expected.as_bytes() == mac).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unchanged_text_is_vouched_for() {
        let text = r#"{"a":1,"mac":""#;
        let inner = Sha1::from(format!("kroom:a {text}")).digest().to_string();
        let mac = Sha1::from(format!("k{inner}")).digest().to_string();
        let payload = format!("{text}{mac}\"}}");
        assert_eq!(vouched("k", "room:a", payload.as_bytes(), b"\"}"), Some(text.as_bytes()));
        assert_eq!(vouched("other", "room:a", payload.as_bytes(), b"\"}"), None);
        assert_eq!(vouched("k", "room:b", payload.as_bytes(), b"\"}"), None, "copied to another channel");
        assert_eq!(vouched("k", "room:a", payload.replace('1', "2").as_bytes(), b"\"}"), None);
        for cut in 0..payload.len() {
            assert_eq!(vouched("k", "room:a", &payload.as_bytes()[..cut], b"\"}"), None, "cut at {cut}");
        }
    }

    #[test]
    fn keys_differ() {
        let (one, other) = (new_key().expect("random"), new_key().expect("random"));
        assert!(one.len() == 32 && one != other);
    }
}
