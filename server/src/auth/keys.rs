//! A JSON Web Key Set (RFC 7517) as the keys that tokens are checked with.
//!
//! Called by [`super::jwks`] with a document, and by the authenticator on the shards with a token's header. Knows no file,
//! no socket and no clock. A key has one algorithm, its own: a token's header only chooses among the keys.

use super::token::validation_of;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value as Json;
use std::ops::RangeInclusive;

/// The longest document that is read: large issuers publish some 20 KB, with certificates.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// The most keys of a set.
pub const KEYS_MAX: usize = 64;
/// With so many keys a token without `kid` is tried.
const TRIES_MAX: usize = 4;
/// Fewer bits can be broken, more are a burden.
const RSA_BITS: RangeInclusive<usize> = 2_048..=8_192;
/// The longest public exponent of RSA that the crypto library takes, in bytes.
const RSA_EXPONENT_BYTES_MAX: usize = 4;
/// So much of what a document says is logged.
const LETTERS_SHOWN: usize = 64;

/// The algorithms of keys, with their names in tokens.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Why a document is no key set that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the text says it")]
pub enum BadSet {
    #[error("longer than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("not a JSON Web Key Set: {0}")]
    NotASet(String),
    #[error("{0} keys, more than {KEYS_MAX}")]
    TooMany(usize),
    #[error("no key in it can be used{0}")]
    NoKey(String),
}

/// A key with its one algorithm.
pub struct Key {
    kid: Option<String>,
    name: &'static str,
    pub(super) decoding: DecodingKey,
    pub(super) validation: Validation,
}

/// The keys of an issuer. Empty only before the first document was read.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<String>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.names()).field("skipped", &self.skipped).finish()
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Json>,
}

/// The members of a JSON Web Key that matter here (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a document. Keys that cannot be used are left out, and [`KeySet::skipped`] says why.
    ///
    /// # Errors
    /// [`BadSet`]: nothing in it could be used.
    pub fn parse(document: &[u8]) -> Result<KeySet, BadSet> {
        if document.len() > DOCUMENT_BYTES_MAX {
            return Err(BadSet::TooLong);
        }
        let Document { keys } = serde_json::from_slice(document).map_err(|error| not_a_set(&error))?;
        if keys.len() > KEYS_MAX {
            return Err(BadSet::TooMany(keys.len()));
        }
        let mut set = KeySet::default();
        for (number, json) in (1..).zip(keys) {
            let name = match json.get("kid").and_then(Json::as_str) {
                Some(kid) => format!("kid {}", shown(kid)),
                None => format!("number {number}, without kid"),
            };
            let jwk = serde_json::from_value::<Jwk>(json).map_err(|_| "it is no JSON Web Key".to_owned());
            match jwk.and_then(key_of) {
                Ok(key) => set.keys.push(key),
                Err(why) => set.skipped.push(format!("{name}: {why}")),
            }
        }
        if set.keys.is_empty() {
            let why = set.skipped.first().map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(BadSet::NoKey(why));
        }
        Ok(set)
    }

    /// How many keys can be used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that were left out, each with its reason.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// `kid` and algorithm of each key, to see whether a set is another one.
    pub(super) fn names(&self) -> Vec<(Option<&str>, &'static str)> {
        self.keys.iter().map(|key| (key.kid.as_deref(), key.name)).collect()
    }

    /// Whether a key has that `kid`.
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// The keys of that algorithm and `kid`; without a `kid` the first few of that algorithm.
    pub(super) fn candidates(&self, algorithm: &str, kid: Option<&str>) -> impl Iterator<Item = &Key> {
        let fits = move |key: &&Key| key.name == algorithm && (kid.is_none() || key.kid.as_deref() == kid);
        self.keys.iter().filter(fits).take(TRIES_MAX)
    }
}

/// Whether a key could have that algorithm at all.
pub(super) fn is_asymmetric(algorithm: &str) -> bool {
    ALGORITHMS.iter().any(|(name, _)| *name == algorithm)
}

/// Quoted, and not at any length.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(LETTERS_SHOWN).collect::<String>())
}

/// Without a word of the document: it may be a secret that stands in the wrong place.
fn not_a_set(error: &serde_json::Error) -> BadSet {
    BadSet::NotASet(match error.classify() {
        serde_json::error::Category::Data => "it has no list `keys`".to_owned(),
        _ => error.to_string(),
    })
}

fn key_of(jwk: Jwk) -> Result<Key, String> {
    if jwk.d.is_some() {
        return Err("it has its private part, so that anybody could sign with it".to_owned());
    }
    if let Some(purpose) = jwk.purpose.as_deref().filter(|purpose| *purpose != "sig") {
        return Err(format!("its use is {}, not \"sig\"", shown(purpose)));
    }
    if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("its key_ops lack \"verify\"".to_owned());
    }
    // The first algorithm is that of a key which names none.
    let (algorithms, decoding): (&[&str], DecodingKey) = match jwk.kty.as_str() {
        "RSA" => (&["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], rsa_key(&jwk)?),
        "EC" => ec_key(&jwk)?,
        "OKP" => (&["EdDSA"], ed_key(&jwk)?),
        "oct" => return Err("it is a shared secret, which must not be published: see auth.secret".to_owned()),
        other => return Err(format!("its kty is {}, not RSA, EC or OKP", shown(other))),
    };
    let wanted = jwk.alg.as_deref().unwrap_or(algorithms[0]);
    let (name, algorithm) = ALGORITHMS
        .into_iter()
        .find(|(name, _)| *name == wanted && algorithms.contains(name))
        .ok_or_else(|| format!("its alg is {}, not {}", shown(wanted), algorithms.join(", ")))?;
    Ok(Key { kid: jwk.kid, name, decoding, validation: validation_of(algorithm) })
}

fn rsa_key(jwk: &Jwk) -> Result<DecodingKey, String> {
    let (modulus, exponent) = (member(jwk.n.as_ref(), "n")?, member(jwk.e.as_ref(), "e")?);
    let significant = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let (modulus, exponent) = (&modulus[significant(&modulus)..], &exponent[significant(&exponent)..]);
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(format!("it has {bits} bits, not {} to {}", RSA_BITS.start(), RSA_BITS.end()));
    }
    let is_odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if !is_odd || exponent == [1] || exponent.len() > RSA_EXPONENT_BYTES_MAX {
        return Err("its e is no exponent".to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

fn ec_key(jwk: &Jwk) -> Result<(&'static [&'static str], DecodingKey), String> {
    let (algorithms, bytes): (&[&str], usize) = match jwk.crv.as_deref() {
        Some("P-256") => (&["ES256"], 32),
        Some("P-384") => (&["ES384"], 48),
        _ => return Err("its crv is not P-256 or P-384".to_owned()),
    };
    let mut point = vec![4];
    for (coordinate, name) in [(&jwk.x, "x"), (&jwk.y, "y")] {
        let coordinate = member(coordinate.as_ref(), name)?;
        if coordinate.len() != bytes {
            return Err(format!("its {name} has {} bytes, not {bytes}", coordinate.len()));
        }
        point.extend(coordinate);
    }
    Ok((algorithms, DecodingKey::from_ec_der(&point)))
}

fn ed_key(jwk: &Jwk) -> Result<DecodingKey, String> {
    if jwk.crv.as_deref() != Some("Ed25519") {
        return Err("its crv is not Ed25519".to_owned());
    }
    let point = member(jwk.x.as_ref(), "x")?;
    if point.len() != 32 {
        return Err(format!("its x has {} bytes, not 32", point.len()));
    }
    Ok(DecodingKey::from_ed_der(&point))
}

fn member(text: Option<&String>, name: &str) -> Result<Vec<u8>, String> {
    let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    bytes.ok_or_else(|| format!("its {name} is missing or not base64url"))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
