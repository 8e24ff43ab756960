//! Checks tokens, and makes them for the `token` command and the demo page.

use super::claims::{Claims, JoseHeader, RoomClaim};
use super::jwks::Jwks;
use super::keys;
use crate::config::Secret;
use crate::config::types::Auth;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use roomwire_engine::names::{User, UserId};
use roomwire_engine::shard::{Grant, Identity, Verify};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The fewest bytes of a secret: HMAC-SHA256 is as strong as its key, up to 32 bytes (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The algorithm of the secrets, as tokens name it.
const HMAC: &str = "HS256";

/// The longest user id: `user:{id}` is a room id of at most 128 bytes.
pub const USER_ID_BYTES_MAX: usize = 123;

/// The longest name.
pub const USER_NAME_BYTES_MAX: usize = 256;

/// Why a token was refused. For the log; a client is never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the text says it")]
pub enum Rejected {
    #[error("no token")]
    Missing,
    #[error("longer than limits.token_bytes_max")]
    TooLong,
    #[error("not three base64url parts")]
    Malformed,
    #[error("the header is not a JSON object with an algorithm")]
    Header,
    #[error("no key has the token's algorithm and kid, or that algorithm is none that counts")]
    Algorithm,
    #[error("no key of auth.jwks has the token's kid")]
    UnknownKey,
    #[error(
        "the header asks for something that is not supported (crit, b64, enc, zip) or brings its own key (jwk, jku, x5u, x5c)"
    )]
    HeaderParameter,
    #[error("the signature does not match the key")]
    Signature,
    #[error("there is no auth.secret to sign it with")]
    NoSecret,
    #[error("a claim has the wrong type, or stands twice")]
    Claims,
    #[error("no exp claim (auth.require_exp = false allows that)")]
    NoExpiry,
    #[error("expired")]
    Expired,
    #[error("not valid yet (nbf)")]
    NotYet,
    #[error("issued in the future (iat): is a clock wrong?")]
    IssuedInFuture,
    #[error("iss is not auth.issuer")]
    Issuer,
    #[error("aud does not contain auth.audience")]
    Audience,
    #[error("neither an id nor a sub claim")]
    NoUser,
    #[error("the user id is not 1 to 123 of the characters A-Z a-z 0-9 _ . : -")]
    UserId,
    #[error("the user name is longer than 256 bytes or has control characters")]
    UserName,
    #[error("an entry of the rooms claim is not a glob over room ids")]
    Rooms,
}

/// Checks tokens against one secret, or two, and against a key set. The algorithm belongs to the key, whatever a token says:
/// HS256 to the secrets, and to each key of the set its own.
pub struct Authenticator {
    secrets: Option<Secrets>,
    jwks: Option<Arc<Jwks>>,
    require_exp: bool,
    issuer: Option<String>,
    audience: Option<String>,
    leeway_ms: u64,
    token_bytes_max: usize,
    log: RejectionLog,
}

/// What HS256 tokens are checked with, and signed.
struct Secrets {
    decoding: DecodingKey,
    second: Option<DecodingKey>,
    encoding: EncodingKey,
    validation: Validation,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("issuer", &self.issuer).field("audience", &self.audience).finish()
    }
}

/// The authenticator in use; a reload puts another in its place.
#[derive(Debug)]
pub struct Current(ArcSwap<Authenticator>);

impl Current {
    /// Begins with this one.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Arc<Current> {
        Arc::new(Current(ArcSwap::from_pointee(authenticator)))
    }

    /// From now on another one. Who is connected stays so.
    pub fn replace(&self, authenticator: Authenticator) {
        self.0.store(Arc::new(authenticator));
    }

    /// The one in use now.
    #[must_use]
    pub fn get(&self) -> Arc<Authenticator> {
        self.0.load_full()
    }

    /// The closure that shards call; it logs why a token was refused.
    #[must_use]
    pub fn verify(self: &Arc<Self>) -> Verify {
        let this = Arc::clone(self);
        Arc::new(move |token, unix_ms| {
            let authenticator = this.0.load();
            match authenticator.check(token, unix_ms) {
                Ok(identity) => Some(identity),
                Err(rejected) => {
                    authenticator.log.note(rejected, unix_ms);
                    None
                }
            }
        })
    }
}

/// What [`Authenticator::mint`] puts into a token.
#[derive(Clone, Debug)]
pub struct Mint {
    /// `id`.
    pub user: String,
    /// `username`.
    pub name: Option<String>,
    /// Seconds until it expires.
    pub ttl_secs: u64,
    /// `rooms`: glob, may join, may publish. Empty: no claim, all rooms.
    pub rooms: Vec<(String, bool, bool)>,
}

impl Authenticator {
    /// An authenticator for `secret`, which the configuration's checks found long enough, and for the keys of `jwks`.
    #[must_use]
    pub fn new(secret: Option<&Secret>, jwks: Option<Arc<Jwks>>, auth: &Auth, token_bytes_max: u32) -> Authenticator {
        let decoding = |secret: &Secret| DecodingKey::from_secret(secret.expose().as_bytes());
        let secrets = secret.map(|secret| Secrets {
            decoding: decoding(secret),
            second: auth.second_secret.as_ref().map(decoding),
            encoding: EncodingKey::from_secret(secret.expose().as_bytes()),
            validation: validation_of(Algorithm::HS256),
        });
        Authenticator {
            secrets,
            jwks,
            require_exp: auth.require_exp,
            issuer: auth.issuer.clone(),
            audience: auth.audience.clone(),
            leeway_ms: u64::from(auth.leeway_secs) * 1000,
            token_bytes_max: if token_bytes_max == 0 { usize::MAX } else { token_bytes_max as usize },
            log: RejectionLog::default(),
        }
    }

    /// Who the bearer is.
    ///
    /// # Errors
    /// The first reason found why the token does not count.
    pub fn check(&self, token: &str, unix_ms: u64) -> Result<Identity, Rejected> {
        if token.is_empty() {
            return Err(Rejected::Missing);
        }
        if token.len() > self.token_bytes_max {
            return Err(Rejected::TooLong);
        }
        let header = checked_header(token)?;
        let claims = match &self.secrets {
            Some(secrets) if header.alg == HMAC => secrets.claims(token)?,
            _ => self.claims_by_jwks(token, &header)?,
        };
        let expires_ms = self.check_times(&claims, unix_ms)?;
        self.check_parties(&claims)?;
        let user = user_of(claims.id, claims.sub, claims.username, claims.name)?;
        let grants = claims.rooms.map(|rooms| rooms.into_iter().map(grant_of).collect()).transpose()?;
        Ok(Identity { user, expires_ms, grants })
    }

    /// By the keys of the set that have the header's algorithm and `kid`. A `kid` that no key has may belong to a new one.
    fn claims_by_jwks(&self, token: &str, header: &JoseHeader) -> Result<Claims, Rejected> {
        let jwks = self.jwks.as_ref().filter(|_| keys::is_asymmetric(&header.alg)).ok_or(Rejected::Algorithm)?;
        let keys = jwks.keys();
        let kid = header.kid.as_deref();
        if kid.is_some_and(|kid| !keys.knows(kid)) {
            jwks.ask();
            return Err(Rejected::UnknownKey);
        }
        let mut outcome = Err(Rejected::Algorithm);
        for key in keys.candidates(&header.alg, kid) {
            outcome = claims_by(token, &key.decoding, &key.validation);
            if !matches!(outcome, Err(Rejected::Signature)) {
                break;
            }
        }
        outcome
    }

    fn check_times(&self, claims: &Claims, unix_ms: u64) -> Result<Option<u64>, Rejected> {
        let expires_ms = claims.exp.map(|exp| exp.unix_ms() + self.leeway_ms);
        match expires_ms {
            None if self.require_exp => return Err(Rejected::NoExpiry),
            Some(expires_ms) if expires_ms <= unix_ms => return Err(Rejected::Expired),
            _ => {}
        }
        let latest_ms = unix_ms.saturating_add(self.leeway_ms);
        if claims.nbf.is_some_and(|nbf| nbf.unix_ms() > latest_ms) {
            return Err(Rejected::NotYet);
        }
        if claims.iat.is_some_and(|iat| iat.unix_ms() > latest_ms) {
            return Err(Rejected::IssuedInFuture);
        }
        Ok(expires_ms)
    }

    fn check_parties(&self, claims: &Claims) -> Result<(), Rejected> {
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Rejected::Issuer);
        }
        let Some(wanted) = &self.audience else { return Ok(()) };
        match &claims.aud {
            Some(audience) if audience.contains(wanted) => Ok(()),
            _ => Err(Rejected::Audience),
        }
    }

    /// Makes a token, signed with the secret, with the configured issuer and audience.
    ///
    /// # Errors
    /// Where [`Authenticator::check`] would refuse it, and where there is no secret.
    pub fn mint(&self, mint: &Mint, unix_ms: u64) -> Result<String, Rejected> {
        let secrets = self.secrets.as_ref().ok_or(Rejected::NoSecret)?;
        let mut claims = serde_json::Map::new();
        claims.insert("id".to_owned(), mint.user.as_str().into());
        claims.insert("username".to_owned(), mint.name.as_deref().unwrap_or(&mint.user).into());
        claims.insert("iat".to_owned(), (unix_ms / 1000).into());
        claims.insert("exp".to_owned(), (unix_ms / 1000).saturating_add(mint.ttl_secs).into());
        if let Some(issuer) = &self.issuer {
            claims.insert("iss".to_owned(), issuer.as_str().into());
        }
        if let Some(audience) = &self.audience {
            claims.insert("aud".to_owned(), audience.as_str().into());
        }
        if !mint.rooms.is_empty() {
            let rooms = mint.rooms.iter().map(|(room, join, publish)| {
                let can: Vec<&str> = [(*join, "join"), (*publish, "publish")]
                    .into_iter()
                    .filter_map(|(may, right)| may.then_some(right))
                    .collect();
                serde_json::json!({ "room": room, "can": can })
            });
            claims.insert("rooms".to_owned(), rooms.collect());
        }
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secrets.encoding)
            .map_err(|_| Rejected::Claims)?;
        self.check(&token, unix_ms)?;
        Ok(token)
    }
}

impl Secrets {
    fn claims(&self, token: &str) -> Result<Claims, Rejected> {
        match (claims_by(token, &self.decoding, &self.validation), &self.second) {
            (Err(Rejected::Signature), Some(second)) => claims_by(token, second, &self.validation),
            (claims, _) => claims,
        }
    }
}

/// That a token is signed by a key of this algorithm, and nothing else: times and names are checked by the authenticator,
/// against the caller's clock and with reasons.
pub(super) fn validation_of(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn claims_by(token: &str, key: &DecodingKey, validation: &Validation) -> Result<Claims, Rejected> {
    let decoded = jsonwebtoken::decode::<Claims>(token, key, validation);
    decoded.map(|token| token.claims).map_err(|error| rejected_by_decode(error.kind()))
}

/// Looks at the header before any crypto: exactly three parts, and nothing that we would have to understand.
fn checked_header(token: &str) -> Result<JoseHeader, Rejected> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Rejected::Malformed);
    };
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Rejected::Malformed)?;
    let header: JoseHeader = serde_json::from_slice(&header).map_err(|_| Rejected::Header)?;
    let JoseHeader { alg: _, kid: _, crit, jwk, jku, x5u, x5c, b64, enc, zip } = header;
    if crit || jwk || jku || x5u || x5c || b64 || enc || zip {
        return Err(Rejected::HeaderParameter);
    }
    Ok(header)
}

fn rejected_by_decode(kind: &jsonwebtoken::errors::ErrorKind) -> Rejected {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::InvalidSignature => Rejected::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Rejected::Algorithm,
        ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::InvalidClaimFormat(_) => Rejected::Claims,
        _ => Rejected::Malformed,
    }
}

type IdClaim = super::claims::IdClaim;

fn user_of(
    id: Option<IdClaim>,
    sub: Option<IdClaim>,
    username: Option<String>,
    name: Option<String>,
) -> Result<User, Rejected> {
    let id = id.or(sub).ok_or(Rejected::NoUser)?.into_text();
    if id.is_empty() || id.len() > USER_ID_BYTES_MAX || !id.bytes().all(is_id_byte) {
        return Err(Rejected::UserId);
    }
    let name = username.or(name).filter(|name| !name.trim().is_empty()).unwrap_or_else(|| id.clone());
    if name.len() > USER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Rejected::UserName);
    }
    Ok(User { id: UserId::new(&id), name: Arc::from(name.as_str()) })
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-')
}

fn grant_of(claim: RoomClaim) -> Result<Grant, Rejected> {
    let room = claim.room;
    if room.is_empty() || room.len() > 128 || !room.bytes().all(|byte| is_id_byte(byte) || byte == b'*') {
        return Err(Rejected::Rooms);
    }
    let may = |right: &str| claim.can.iter().any(|can| can == right);
    Ok(Grant { join: may("join"), publish: may("publish"), room: room.into_boxed_str() })
}

/// Logs refusals: at most one line a second, so that a flood of bad tokens is not also a flood of lines.
#[derive(Debug, Default)]
struct RejectionLog {
    logged_sec: AtomicU64,
    unlogged: AtomicU64,
}

impl RejectionLog {
    fn note(&self, reason: Rejected, unix_ms: u64) {
        let sec = unix_ms / 1000;
        // Relaxed: the worst that a race does is one line more or less.
        if self.logged_sec.swap(sec, Ordering::Relaxed) == sec {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(reason = %reason, "token refused");
        } else {
            let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            tracing::info!(reason = %reason, unlogged_before = unlogged, "token refused");
        }
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
