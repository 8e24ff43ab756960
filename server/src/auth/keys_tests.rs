//! Which keys of a document can be used, and which documents are none.

use super::*;
use serde_json::json;

/// The examples of RFC 7515 appendix A.2 (RSA is made of ones, as only its size is looked at), A.3, and RFC 8037 appendix A.2.
fn rsa() -> Json {
    json!({ "kty": "RSA", "kid": "r", "n": URL_SAFE_NO_PAD.encode([0xff; 256]), "e": "AQAB" })
}

fn ec() -> Json {
    json!({
        "kty": "EC", "kid": "e", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
    })
}

fn ed() -> Json {
    json!({ "kty": "OKP", "kid": "o", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
}

/// `key` with these members instead of its own; `null` takes one away.
fn with(mut key: Json, members: Json) -> Json {
    let (Json::Object(object), Json::Object(members)) = (&mut key, members) else { panic!("two objects") };
    for (name, value) in members {
        if value.is_null() {
            object.remove(&name)
        } else {
            object.insert(name, value)
        };
    }
    key
}

fn parse(keys: &[Json]) -> Result<KeySet, BadSet> {
    KeySet::parse(json!({ "keys": keys, "other": 1 }).to_string().as_bytes())
}

/// Why a key is left out; empty if it is not. Another one stands beside it.
fn why(key: Json) -> String {
    let set = parse(&[key, with(ed(), json!({ "kid": "beside" }))]).expect("one of them can be used");
    assert_eq!(set.len() + set.skipped().len(), 2);
    set.skipped().first().cloned().unwrap_or_default()
}

#[test]
fn each_key_has_one_algorithm() {
    let algorithm = |key: Json| parse(&[key]).map(|set| set.names()[0].1);
    assert_eq!(algorithm(rsa()), Ok("RS256"), "that of an RSA key which names none");
    for name in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        assert_eq!(algorithm(with(rsa(), json!({ "alg": name }))), Ok(name));
    }
    assert_eq!(algorithm(ec()), Ok("ES256"));
    let wide = json!({ "crv": "P-384", "x": URL_SAFE_NO_PAD.encode([1; 48]), "y": URL_SAFE_NO_PAD.encode([1; 48]) });
    assert_eq!(algorithm(with(ec(), wide)), Ok("ES384"));
    assert_eq!(algorithm(ed()), Ok("EdDSA"));
    assert_eq!(
        algorithm(with(ed(), json!({ "alg": "EdDSA", "use": "sig", "key_ops": ["sign", "verify"] }))),
        Ok("EdDSA")
    );
    assert_eq!(algorithm(with(rsa(), json!({ "x5c": ["MII="], "x5t": "a", "exp": 1 }))), Ok("RS256"));
}

#[test]
fn a_key_that_cannot_be_used_is_left_out_and_named() {
    let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let long = URL_SAFE_NO_PAD.encode([0xff; 1_025]);
    let padded = URL_SAFE_NO_PAD.encode([&[0; 200][..], &[0xff; 100]].concat());
    for (key, reason) in [
        (json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" }), "kid \"s\": it is a shared secret"),
        (with(rsa(), json!({ "use": "enc" })), "kid \"r\": its use is \"enc\""),
        (with(rsa(), json!({ "key_ops": ["encrypt"] })), "its key_ops lack \"verify\""),
        (with(rsa(), json!({ "alg": "RSA-OAEP" })), "its alg is \"RSA-OAEP\""),
        (with(rsa(), json!({ "alg": "HS256" })), "its alg is \"HS256\""),
        (with(rsa(), json!({ "alg": "none" })), "its alg is \"none\""),
        (with(rsa(), json!({ "alg": "ES256" })), "its alg is \"ES256\""),
        (with(ec(), json!({ "alg": "ES384" })), "its alg is \"ES384\", not ES256"),
        (with(ed(), json!({ "alg": "RS256" })), "its alg is \"RS256\", not EdDSA"),
        (with(rsa(), json!({ "d": "AQAB" })), "it has its private part"),
        (with(rsa(), json!({ "n": short })), "it has 1024 bits"),
        (with(rsa(), json!({ "n": long })), "it has 8200 bits"),
        (with(rsa(), json!({ "n": padded })), "it has 800 bits"),
        (with(rsa(), json!({ "n": "not base64url!" })), "its n is missing or not base64url"),
        (with(rsa(), json!({ "n": null })), "its n is missing"),
        (with(rsa(), json!({ "e": "AQ" })), "its e is no exponent"),
        (with(rsa(), json!({ "e": "Ag" })), "its e is no exponent"),
        (with(rsa(), json!({ "e": "" })), "its e is no exponent"),
        (with(ec(), json!({ "crv": "P-521" })), "its crv is not P-256 or P-384"),
        (with(ec(), json!({ "crv": "secp256k1" })), "its crv is not"),
        (with(ec(), json!({ "y": "AQAB" })), "its y has 3 bytes, not 32"),
        (with(ed(), json!({ "crv": "X25519" })), "its crv is not Ed25519"),
        (with(ed(), json!({ "crv": "Ed448" })), "its crv is not Ed25519"),
        (with(ed(), json!({ "x": "AQAB" })), "its x has 3 bytes"),
        (with(rsa(), json!({ "kty": "rsa" })), "its kty is \"rsa\""),
        (with(rsa(), json!({ "kty": null })), "it is no JSON Web Key"),
        (with(rsa(), json!({ "kid": 7 })), "number 1, without kid: it is no JSON Web Key"),
        (json!("RSA"), "number 1, without kid: it is no JSON Web Key"),
        (with(rsa(), json!({ "kid": "a\n\u{1b}[2J", "use": "enc" })), "kid \"a\\n\\u{1b}[2J\": "),
    ] {
        let found = why(key.clone());
        assert!(found.contains(reason), "{key}: {found:?} lacks {reason:?}");
    }
    assert_eq!(why(rsa()), "", "what they vary can be used");
    for member in ["use", "alg", "kty"] {
        let long = why(with(rsa(), json!({ "kid": "k".repeat(10_000), member: "x".repeat(10_000) })));
        assert!(!long.is_empty() && long.len() < 250, "{} bytes in a line of the log", long.len());
    }
}

#[test]
fn a_document_without_a_key_is_no_set() {
    let parsed = |text: &str| KeySet::parse(text.as_bytes()).map(|_| ());
    for text in ["", "null", "[]", "{}", "<html>", r#"{"keys":{}}"#, r#"{"keys":[]} x"#] {
        assert!(matches!(parsed(text), Err(BadSet::NotASet(_))), "{text}");
    }
    for text in [r#""hunter2""#, r#"{"keys":"hunter2"}"#, "hunter2", r#"{"hunter2":1,"keys":1}"#] {
        let said = parsed(text).expect_err("a secret in the wrong place").to_string();
        assert!(!said.contains("hunter2"), "{said}");
    }
    assert_eq!(parsed(r#"{"keys":[]}"#), Err(BadSet::NoKey(String::new())));
    let none = parse(&[with(ed(), json!({ "use": "enc" }))]).expect_err("none of use");
    assert!(none.to_string().contains("kid \"o\""), "{none}");
    assert_eq!(parsed(&" ".repeat(DOCUMENT_BYTES_MAX + 1)), Err(BadSet::TooLong));
    let many = vec![ed(); KEYS_MAX + 1];
    assert_eq!(parse(&many).map(|_| ()), Err(BadSet::TooMany(KEYS_MAX + 1)));
    assert_eq!(parse(&many[1..]).map(|set| set.len()), Ok(KEYS_MAX));
}

#[test]
fn keys_are_found_by_kid_and_algorithm() {
    let set =
        parse(&[rsa(), ec(), with(ec(), json!({ "kid": "r" })), with(ed(), json!({ "kid": null }))]).expect("a set");
    let found = |algorithm: &str, kid: Option<&str>| set.candidates(algorithm, kid).count();
    assert_eq!([found("RS256", Some("r")), found("ES256", Some("r")), found("ES256", Some("e"))], [1, 1, 1]);
    assert_eq!([found("RS512", Some("r")), found("none", Some("r")), found("HS256", Some("r"))], [0, 0, 0]);
    assert_eq!([found("EdDSA", Some("o")), found("EdDSA", None), found("ES256", None)], [0, 1, 2]);
    assert!(set.knows("r") && !set.knows("R") && !set.knows("") && !set.knows("../r"));
    let many = parse(&vec![with(ed(), json!({ "kid": null })); 9]).expect("a set");
    assert_eq!(many.candidates("EdDSA", None).count(), TRIES_MAX, "a token without kid costs a few checks at most");
}
