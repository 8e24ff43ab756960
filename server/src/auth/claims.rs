//! A token's header and claims as typed data, strict about types: a claim of the wrong type refuses the token rather
//! than counting as absent.

use serde::{Deserialize, Deserializer};

/// The last second of the year 9999: anything later is not a date but a mistake or an attack.
const DATE_SECS_MAX: f64 = 253_402_300_799.0;

/// A JOSE header. Keys that a token would bring for its own check are named only to be refused.
#[derive(Debug, Deserialize)]
pub struct JoseHeader {
    /// The algorithm that the token claims; compared, never obeyed.
    pub alg: String,
    /// The name of the key that signed it; only looked up.
    pub kid: Option<String>,
    /// Extensions that must be understood: we understand none.
    #[serde(default, deserialize_with = "present")]
    pub crit: bool,
    /// A key in the token.
    #[serde(default, deserialize_with = "present")]
    pub jwk: bool,
    /// A key's address in the token.
    #[serde(default, deserialize_with = "present")]
    pub jku: bool,
    /// A certificate's address in the token.
    #[serde(default, deserialize_with = "present")]
    pub x5u: bool,
    /// A certificate in the token.
    #[serde(default, deserialize_with = "present")]
    pub x5c: bool,
    /// An unencoded payload (RFC 7797).
    #[serde(default, deserialize_with = "present")]
    pub b64: bool,
    /// Only encrypted tokens have it.
    #[serde(default, deserialize_with = "present")]
    pub enc: bool,
    /// A compressed payload.
    #[serde(default, deserialize_with = "present")]
    pub zip: bool,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// What a token claims. A claim given twice is an error of the derived code.
#[derive(Debug, Deserialize)]
pub struct Claims {
    /// The user's id, as the first deployments wrote it.
    pub id: Option<IdClaim>,
    /// The user's id, as RFC 7519 has it; `id` goes first.
    pub sub: Option<IdClaim>,
    /// The name that others see, as the first deployments wrote it.
    pub username: Option<String>,
    /// The name that others see; `username` goes first.
    pub name: Option<String>,
    /// Seconds after which the token is void.
    #[serde(default, deserialize_with = "not_null")]
    pub exp: Option<Date>,
    /// Seconds before which the token is void.
    #[serde(default, deserialize_with = "not_null")]
    pub nbf: Option<Date>,
    /// Seconds of its making.
    #[serde(default, deserialize_with = "not_null")]
    pub iat: Option<Date>,
    /// For whom it was made.
    #[serde(default, deserialize_with = "not_null")]
    pub aud: Option<Audience>,
    /// Who made it.
    #[serde(default, deserialize_with = "not_null")]
    pub iss: Option<String>,
    /// The rooms it allows; absent: all.
    #[serde(default, deserialize_with = "not_null")]
    pub rooms: Option<Vec<RoomClaim>>,
}

/// A claim that may be missing but, where it stands, is of its type: `null` is a wrong type, since for `rooms` and `exp` to read it as
/// absent would give more than was meant.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A user id: text, or the whole number that many a database has.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "named after the JSON type")]
pub enum IdClaim {
    Text(String),
    Unsigned(u64),
    Signed(i64),
}

impl IdClaim {
    /// The id as text.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            IdClaim::Text(text) => text,
            IdClaim::Unsigned(number) => number.to_string(),
            IdClaim::Signed(number) => number.to_string(),
        }
    }
}

/// `aud`: one audience or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "named after the JSON type")]
pub enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    /// Whether `wanted` is among them.
    #[must_use]
    pub fn contains(&self, wanted: &str) -> bool {
        match self {
            Audience::One(one) => one == wanted,
            Audience::Several(several) => several.iter().any(|one| one == wanted),
        }
    }
}

/// One entry of `rooms`. Rights that we do not know allow nothing.
#[derive(Debug, Deserialize)]
pub struct RoomClaim {
    /// A glob over room ids.
    pub room: String,
    /// `join`, `publish`.
    pub can: Vec<String>,
}

/// A NumericDate of RFC 7519: seconds, perhaps with a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Date(f64);

impl TryFrom<f64> for Date {
    type Error = &'static str;

    fn try_from(secs: f64) -> Result<Date, &'static str> {
        if secs.is_finite() && (0.0..=DATE_SECS_MAX).contains(&secs) {
            Ok(Date(secs))
        } else {
            Err("a date that is no date")
        }
    }
}

impl Date {
    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        (self.0 * 1000.0) as u64
    }
}
