//! Who a token says its bearer is: HS256 tokens, checked against one secret, or two while it is changed.
//!
//! Shards call [`Current::verify`]'s closure. Why a token was refused is logged, never the token itself; the
//! client only hears "Authentication failed".

pub mod claims;
pub mod token;

pub use token::{Authenticator, Current, Mint, Rejected};
