//! Who a token says its bearer is: HS256 tokens by one secret, or two while it is changed; RSA, elliptic curve and EdDSA
//! tokens by the key set of an issuer.
//!
//! Shards call [`Current::verify`]'s closure, which waits for nothing: a key set is read by a thread of its own. Why a token
//! was refused is logged, never the token itself; the client only hears "Authentication failed".

pub mod claims;
pub mod jwks;
pub mod keys;
mod pace;
pub mod source;
pub mod token;

pub use jwks::{Jwks, KeyFigures};
pub use source::Source;
pub use token::{Authenticator, Current, Mint, Rejected};
