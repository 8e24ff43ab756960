//! Tokens for the bench's users, signed as the server checks them. `worker` calls it, once for each connection.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::dialect::Dialect;

/// Long enough for any soak.
const LIFETIME_SECS: u64 = 24 * 3600;

/// Signs tokens for the users `u0`, `u1`, ...
pub(crate) struct Mint {
    header: Header,
    key: EncodingKey,
    expires_at: u64,
    dialect: Dialect,
}

#[derive(Serialize)]
struct Claims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    exp: u64,
}

impl Mint {
    pub(crate) fn new(secret: &str, dialect: Dialect) -> Mint {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Mint {
            header: Header::new(Algorithm::HS256),
            key: EncodingKey::from_secret(secret.as_bytes()),
            expires_at: now + LIFETIME_SECS,
            dialect,
        }
    }

    /// The token of user `u{user}`.
    pub(crate) fn token(&self, user: u32) -> Result<String> {
        let name = format!("u{user}");
        let (own, sub) = if self.dialect == Dialect::Centrifugo { (None, Some(&*name)) } else { (Some(&*name), None) };
        let claims = Claims { id: own, username: own, sub, exp: self.expires_at };
        jsonwebtoken::encode(&self.header, &claims, &self.key).context("cannot sign a token")
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    #[test]
    fn a_token_names_its_user_and_is_signed_with_the_secret() {
        let token = Mint::new("a secret of the test", Dialect::Roomwire).token(7).expect("signs");
        let decode = |secret: &str| {
            let key = DecodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &Validation::new(Algorithm::HS256))
        };
        let claims = decode("a secret of the test").expect("valid").claims;
        assert_eq!((&claims["id"], &claims["username"]), (&"u7".into(), &"u7".into()));
        assert!(decode("another secret").is_err());
    }
}
