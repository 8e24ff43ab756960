//! An issuer of tokens for tests: keys of its own, made by openssl, and the key set that names them.

#![allow(dead_code, reason = "each test uses a part of it")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value as Json, json};
use std::process::Command;

/// What stands before an RSA key of 2,048 bits in PKCS #8, which the signer wants without.
const PKCS8_RSA_HEAD: usize = 26;

/// A key that signs.
#[derive(Clone)]
pub(crate) struct IssuerKey {
    pub(crate) kid: String,
    pub(crate) algorithm: Algorithm,
    private: EncodingKey,
}

impl IssuerKey {
    pub(crate) fn make(kid: &str, algorithm: Algorithm) -> IssuerKey {
        let private = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&made("EC -pkeyopt ec_paramgen_curve:P-256")),
            Algorithm::ES384 => EncodingKey::from_ec_der(&made("EC -pkeyopt ec_paramgen_curve:P-384")),
            Algorithm::EdDSA => EncodingKey::from_ed_der(&made("ED25519")),
            _ => EncodingKey::from_rsa_der(&made("RSA -pkeyopt rsa_keygen_bits:2048")[PKCS8_RSA_HEAD..]),
        };
        IssuerKey { kid: kid.to_owned(), algorithm, private }
    }

    /// The same key under another name, for another algorithm of its kind.
    pub(crate) fn renamed(&self, kid: &str, algorithm: Algorithm) -> IssuerKey {
        IssuerKey { kid: kid.to_owned(), algorithm, private: self.private.clone() }
    }

    /// Its public part, as it stands in a key set.
    pub(crate) fn public(&self) -> Json {
        let jwk = Jwk::from_encoding_key(&self.private, self.algorithm).expect("a key of that algorithm");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token of these claims that names its key.
    pub(crate) fn token(&self, claims: &Json) -> String {
        self.token_named(claims, Some(&self.kid))
    }

    /// The same with another `kid`, or none.
    pub(crate) fn token_named(&self, claims: &Json, kid: Option<&str>) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.private).expect("signed")
    }
}

/// The document that an issuer with these keys publishes.
pub(crate) fn key_set<'k>(keys: impl IntoIterator<Item = &'k IssuerKey>) -> String {
    json!({ "keys": keys.into_iter().map(IssuerKey::public).collect::<Vec<_>>() }).to_string()
}

/// A new private key in PKCS #8. As PEM, since openssl 3.0 gives DER in forms of its own.
fn made(algorithm: &str) -> Vec<u8> {
    let arguments = format!("genpkey -algorithm {algorithm}");
    let output = Command::new("openssl").args(arguments.split(' ')).output().expect("openssl is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pem = String::from_utf8(output.stdout).expect("PEM");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(body).expect("base64")
}
