//! The HTTP/1.1 upgrade head (RFC 9112, RFC 6455 section 4.2): found incrementally, parsed once, answered in full.
//!
//! Who calls it: `engine`, for a connection that is not yet upgraded. What it never does: judge a token or an origin,
//! or put a token into an answer.

mod proxy;
mod refusal;
mod request;
mod scanner;

pub use proxy::{NoProxyHeader, PROXY_BYTES_MAX, ProxyHeader, parse_proxy};
pub use refusal::Refusal;
pub use request::{HEADERS_MAX, SUBPROTOCOL, URI_BYTES_MAX, Upgrade, encode_accept, parse};
pub use scanner::HeadScanner;

#[cfg(test)]
mod tests;
