//! Which tokens the keys of an issuer let in, and what a reload does to them. What comes over HTTP is in server/tests/jwks.rs.

use super::super::{Authenticator, Rejected};
use super::*;
use crate::config::Secret;
use crate::config::types::Auth;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::{EncodingKey, crypto::sign};
use serde_json::{Value as Json, json};
use std::path::PathBuf;

#[path = "../../tests/support/issuer.rs"]
mod issuer;
use issuer::{IssuerKey, key_set};

const SECRET: &str = "a secret of the tests, long enough to be one";
const NOW_MS: u64 = 1_800_000_000_000;

/// A file that is gone at the end of the test.
struct Document(PathBuf);

impl Document {
    fn new(name: &str, text: &str) -> Document {
        let document = Document(std::env::temp_dir().join(format!("roomwire-keys-{}-{name}", std::process::id())));
        document.write(text);
        document
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).expect("writable");
    }

    fn source(&self) -> Source {
        Source::File(self.0.clone())
    }

    fn start(&self) -> Arc<Jwks> {
        Jwks::start(self.source(), Start::Anyway).expect("a key set")
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn claims() -> Json {
    json!({ "sub": "alice", "exp": NOW_MS / 1000 + 60 })
}

fn authenticator(secret: Option<&str>, jwks: &Arc<Jwks>) -> Authenticator {
    let secret = secret.map(|secret| Secret::new(secret.to_owned()));
    Authenticator::new(secret.as_ref(), Some(Arc::clone(jwks)), &Auth::default(), 8192)
}

fn outcome(authenticator: &Authenticator, token: &str) -> Option<Rejected> {
    authenticator.check(token, NOW_MS).err()
}

/// A token of this header, signed by HMAC.
fn hmac(header: &Json, key: &[u8]) -> String {
    let part = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(&claims()));
    let signature = sign(message.as_bytes(), &EncodingKey::from_secret(key), Algorithm::HS256).expect("signed");
    format!("{message}.{signature}")
}

#[test]
fn a_token_counts_by_the_key_that_it_names_and_by_no_other_algorithm() {
    let rsa = IssuerKey::make("RS256", Algorithm::RS256);
    let keys: Vec<IssuerKey> = [
        ("RS384", Algorithm::RS384),
        ("RS512", Algorithm::RS512),
        ("PS256", Algorithm::PS256),
        ("PS384", Algorithm::PS384),
        ("PS512", Algorithm::PS512),
    ]
    .map(|(kid, algorithm)| rsa.renamed(kid, algorithm))
    .into_iter()
    .chain(
        [("ES256", Algorithm::ES256), ("ES384", Algorithm::ES384), ("EdDSA", Algorithm::EdDSA)]
            .map(|(kid, algorithm)| IssuerKey::make(kid, algorithm)),
    )
    .chain([rsa])
    .collect();
    let document = Document::new("all", &key_set(&keys));
    let authenticator = authenticator(None, &document.start());
    for key in &keys {
        assert_eq!(outcome(&authenticator, &key.token(&claims())), None, "{}", key.kid);
        let nameless = key.token_named(&claims(), None);
        assert_eq!(outcome(&authenticator, &nameless), None, "{} without kid", key.kid);
        // Signed as it says, but not by the key that it names.
        for other in keys.iter().filter(|other| other.kid != key.kid) {
            let borrowed = key.token_named(&claims(), Some(&other.kid));
            assert_eq!(outcome(&authenticator, &borrowed), Some(Rejected::Algorithm), "{} as {}", key.kid, other.kid);
        }
        // By another key of the same name.
        let forged = IssuerKey::make(&key.kid, key.algorithm).token(&claims());
        assert_eq!(outcome(&authenticator, &forged), Some(Rejected::Signature), "{} forged", key.kid);
        let mut late = claims();
        late["exp"] = json!(NOW_MS / 1000 - 31);
        assert_eq!(outcome(&authenticator, &key.token(&late)), Some(Rejected::Expired), "{}", key.kid);
    }
}

#[test]
fn the_public_key_is_no_secret_to_sign_with() {
    let key = IssuerKey::make("k", Algorithm::RS256);
    let document = Document::new("confusion", &key_set([&key]));
    let public = key.public();
    let modulus = public["n"].as_str().expect("a modulus");
    let decoded = URL_SAFE_NO_PAD.decode(modulus).expect("base64url");
    let alone = authenticator(None, &document.start());
    let beside = authenticator(Some(SECRET), &document.start());
    for secret in [modulus.as_bytes(), &decoded, public.to_string().as_bytes(), key_set([&key]).as_bytes(), b"", b"k"] {
        for header in [json!({ "alg": "HS256", "kid": "k" }), json!({ "alg": "HS256" })] {
            let token = hmac(&header, secret);
            assert_eq!(outcome(&alone, &token), Some(Rejected::Algorithm));
            assert_eq!(outcome(&beside, &token), Some(Rejected::Signature));
        }
        for name in ["RS256", "none", "HS384", "rs256", ""] {
            let token = hmac(&json!({ "alg": name, "kid": "k" }), secret);
            assert!(outcome(&alone, &token).is_some() && outcome(&beside, &token).is_some(), "{name}");
        }
    }
    let signed = key.token(&claims());
    let (message, _) = signed.rsplit_once('.').expect("three parts");
    for unsigned in
        [format!("{message}."), message.to_owned(), format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 256]))]
    {
        assert!(outcome(&alone, &unsigned).is_some());
    }
    let bare = |header: &Json| {
        let part = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.", part(header), part(&claims()))
    };
    for name in ["none", "None", "NONE"] {
        assert_eq!(outcome(&beside, &bare(&json!({ "alg": name, "kid": "k" }))), Some(Rejected::Algorithm));
    }
    let embedded = bare(&json!({ "alg": "RS256", "kid": "k", "jwk": public }));
    assert_eq!(outcome(&beside, &embedded), Some(Rejected::HeaderParameter));
}

#[test]
fn a_secret_and_a_key_set_stand_side_by_side() {
    let key = IssuerKey::make("k", Algorithm::EdDSA);
    let document = Document::new("beside", &key_set([&key]));
    let jwks = document.start();
    let by_secret = hmac(&json!({ "alg": "HS256", "kid": "k" }), SECRET.as_bytes());
    let by_key = key.token(&claims());
    let both = authenticator(Some(SECRET), &jwks);
    assert_eq!((outcome(&both, &by_secret), outcome(&both, &by_key)), (None, None));
    let alone = authenticator(None, &jwks);
    assert_eq!((outcome(&alone, &by_secret), outcome(&alone, &by_key)), (Some(Rejected::Algorithm), None));
    let mint = super::super::Mint { user: "a".to_owned(), name: None, ttl_secs: 9, rooms: Vec::new() };
    assert_eq!(alone.mint(&mint, NOW_MS).err(), Some(Rejected::NoSecret));
    assert!(both.mint(&mint, NOW_MS).is_ok());
}

#[test]
fn an_unknown_kid_is_only_looked_up() {
    let key = IssuerKey::make("k", Algorithm::ES256);
    let document = Document::new("unknown", &key_set([&key]));
    let jwks = document.start();
    let authenticator = authenticator(None, &jwks);
    for kid in ["", "K", "k ", "../../../../etc/passwd", "x' OR '1'='1", "https://evil.example/k", "k\0"] {
        assert_eq!(
            outcome(&authenticator, &key.token_named(&claims(), Some(kid))),
            Some(Rejected::UnknownKey),
            "{kid}"
        );
    }
    assert_eq!(jwks.figures().unknown_kids_total, 7);
    // One of an algorithm that no key of ours could have is not even that.
    assert_eq!(outcome(&authenticator, &hmac(&json!({ "alg": "none", "kid": "x" }), b"x")), Some(Rejected::Algorithm));
    assert_eq!(outcome(&authenticator, &hmac(&json!({ "alg": "ES256", "kid": 7 }), b"x")), Some(Rejected::Header));
    assert_eq!(jwks.figures().unknown_kids_total, 7);
}

/// RFC 7515 appendix A.3, RFC 8037 appendix A.4: signed by others than the library that checks them here.
#[test]
fn the_examples_of_the_standards_are_understood() {
    let keys = json!({ "keys": [
        { "kty": "EC", "crv": "P-256",
          "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" },
        { "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
    ] });
    let document = Document::new("standards", &keys.to_string());
    let authenticator = authenticator(None, &document.start());
    let es256 = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb\
                 290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let then_ms = 1_300_819_000_000;
    // The signature is right; it names no user.
    assert_eq!(authenticator.check(es256, then_ms).err(), Some(Rejected::NoUser));
    let flipped = es256.replace(".DtEh", ".EtEh");
    assert_eq!(authenticator.check(&flipped, then_ms).err(), Some(Rejected::Signature));
    let eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
                 hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    // The signature is right; what it signs are no claims.
    assert_eq!(authenticator.check(eddsa, then_ms).err(), Some(Rejected::Claims));
    let flipped = eddsa.replace(".hgyY", ".igyY");
    assert_eq!(authenticator.check(&flipped, then_ms).err(), Some(Rejected::Signature));
}

#[test]
fn a_reload_reads_a_file_again_and_keeps_the_old_keys_if_it_is_bad() {
    let (old, new) = (IssuerKey::make("old", Algorithm::EdDSA), IssuerKey::make("new", Algorithm::EdDSA));
    let document = Document::new("reload", &key_set([&old]));
    let first = document.start();
    assert_eq!(first.figures(), KeyFigures { keys_now: 1, read_total: 1, ..KeyFigures::default() });
    assert_eq!(first.trouble(), None);
    for bad in ["", "{}", r#"{"keys":[]}"#] {
        document.write(bad);
        let line = Jwks::again(Some(&first), Some(document.source())).expect_err(bad);
        assert!(line.starts_with("`auth.jwks`: ") && line.contains("roomwire-keys"), "{line}");
    }
    assert_eq!(outcome(&authenticator(None, &first), &old.token(&claims())), None, "the old keys are as they were");
    document.write(&key_set([&old, &new]));
    let second = Jwks::again(Some(&first), Some(document.source())).expect("read").expect("still wanted");
    let authenticator = authenticator(None, &second);
    assert_eq!(outcome(&authenticator, &old.token(&claims())), None);
    assert_eq!(outcome(&authenticator, &new.token(&claims())), None);
    assert_eq!((second.figures().keys_now, second.figures().read_total), (2, 2), "counted over reloads");
    assert!(Jwks::again(Some(&second), None).expect("fine").is_none());
    assert!(Jwks::start(Source::File("/nowhere/jwks.json".into()), Start::Anyway).is_err(), "a file must be there");
}

#[test]
fn the_thread_of_an_address_ends_with_its_last_user() {
    // Nobody listens there.
    let source = Source::Url { url: "http://127.0.0.1:1/jwks".to_owned(), ca: None };
    assert!(Jwks::start(source.clone(), Start::WithKeys).is_err());
    let jwks = Jwks::start(source, Start::Anyway).expect("it may come later");
    assert!(jwks.trouble().is_some_and(|why| why.contains("http://127.0.0.1:1/jwks")));
    assert_eq!((jwks.figures().failing_now, jwks.figures().failed_total), (true, 1));
    let gone = Arc::downgrade(&jwks);
    drop(jwks);
    // The thread holds it for a moment only.
    let deadline = Instant::now() + std::time::Duration::from_secs(10);
    while gone.strong_count() > 0 {
        assert!(Instant::now() < deadline, "somebody keeps it");
        thread::sleep(std::time::Duration::from_millis(5));
    }
}
