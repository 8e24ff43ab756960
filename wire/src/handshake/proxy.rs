//! The PROXY protocol, version 2: what a TCP balancer puts before its client's first byte, to say who the client is.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2. Version 1, a line of text, is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header that is taken. Addresses need 52 bytes; what a balancer adds (TLVs) is passed over.
pub const PROXY_BYTES_MAX: usize = 2_048;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED_BYTES: usize = 16;

/// A header that has arrived in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// How many bytes it takes; the client's own begin behind them.
    pub length: usize,
    /// The client. `None` where the balancer speaks for itself (a health check), or over something without addresses.
    pub client: Option<IpAddr>,
}

/// Why bytes are no such header. The connection is to be dropped without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoProxyHeader;

/// Reads the header at the start of `bytes`, all that has arrived so far; `None` while it may still become one.
///
/// # Errors
/// It is none, whatever follows.
pub fn parse_proxy(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let begun = bytes.len().min(SIGNATURE.len());
    if bytes[..begun] != SIGNATURE[..begun] {
        return Err(NoProxyHeader);
    }
    // Each byte is judged as soon as it is there: a stranger does not get to wait for us.
    let is_proxied = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => false,
        Some(0x21) => true,
        Some(_) => return Err(NoProxyHeader),
    };
    let Some(&family) = bytes.get(13) else { return Ok(None) };
    if family >> 4 > 3 || family & 0x0f > 2 {
        return Err(NoProxyHeader);
    }
    let (Some(&high), Some(&low)) = (bytes.get(14), bytes.get(15)) else { return Ok(None) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED_BYTES + rest;
    let address_bytes = match (is_proxied, family >> 4) {
        (true, 1) => 12,
        (true, 2) => 36,
        _ => 0,
    };
    if length > PROXY_BYTES_MAX || rest < address_bytes {
        return Err(NoProxyHeader);
    }
    let Some(rest) = bytes.get(FIXED_BYTES..length) else { return Ok(None) };
    let client = match (address_bytes, rest.first_chunk::<4>(), rest.first_chunk::<16>()) {
        (12, Some(source), _) => Some(IpAddr::V4(Ipv4Addr::from(*source))),
        (36, _, Some(source)) => Some(IpAddr::V6(Ipv6Addr::from(*source))),
        _ => None,
    };
    Ok(Some(ProxyHeader { length, client: client.map(|client| client.to_canonical()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short");
        [&SIGNATURE[..], &[command, family], &length.to_be_bytes(), rest].concat()
    }

    fn v4(tlvs: usize) -> Vec<u8> {
        let addresses = [203, 0, 113, 7, 10, 0, 0, 1, 0x30, 0x39, 0x1f, 0x90];
        header(0x21, 0x11, &[&addresses[..], &vec![0xee; tlvs]].concat())
    }

    fn v6(source: Ipv6Addr) -> Vec<u8> {
        let addresses = [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0x30, 0x39, 0x1f, 0x90]].concat();
        header(0x21, 0x21, &addresses)
    }

    #[test]
    fn clients_are_read_at_every_cut_and_what_follows_is_theirs() {
        let address = |text: &str| text.parse::<IpAddr>().ok();
        let mapped = "::ffff:198.51.100.9".parse().expect("an address");
        let cases = [
            (v4(0), address("203.0.113.7")),
            (v4(300), address("203.0.113.7")),
            (v6("2001:db8::7".parse().expect("an address")), address("2001:db8::7")),
            (v6(mapped), address("198.51.100.9")),
            (header(0x20, 0x00, &[]), None),
            (header(0x20, 0x11, &[1, 2, 3]), None),
            (header(0x21, 0x00, &[9; 40]), None),
            (header(0x21, 0x31, &[0; 216]), None),
        ];
        for (bytes, client) in cases {
            let length = bytes.len();
            for cut in 0..length {
                assert_eq!(parse_proxy(&bytes[..cut]), Ok(None), "cut {cut} of {bytes:?}");
            }
            for follows in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
                let all = [&bytes[..], follows].concat();
                assert_eq!(parse_proxy(&all), Ok(Some(ProxyHeader { length, client })));
            }
        }
    }

    #[test]
    fn anything_else_is_refused_at_its_first_wrong_byte() {
        let good = v4(0);
        for at in 0..14 {
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                let is_fine = match at {
                    12 => value == 0x20 || value == 0x21,
                    13 => value >> 4 <= 3 && value & 0x0f <= 2,
                    _ => value == good[at],
                };
                assert_eq!(
                    parse_proxy(&bytes[..=at]),
                    if is_fine { Ok(None) } else { Err(NoProxyHeader) },
                    "{at} {value}"
                );
            }
        }
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r\n", b"\r\nX", b"\0"] {
            assert_eq!(parse_proxy(bytes), Err(NoProxyHeader), "{bytes:?}");
        }
        // Too short for its addresses, and longer than we take: said before the rest is waited for.
        assert_eq!(parse_proxy(&header(0x21, 0x11, &[0; 11])[..16]), Err(NoProxyHeader));
        assert_eq!(parse_proxy(&header(0x21, 0x21, &[0; 35])[..16]), Err(NoProxyHeader));
        let longest = PROXY_BYTES_MAX - FIXED_BYTES;
        assert_eq!(parse_proxy(&header(0x21, 0x11, &vec![0; longest + 1])[..16]), Err(NoProxyHeader));
        assert!(matches!(parse_proxy(&header(0x21, 0x11, &vec![0; longest])), Ok(Some(_))));
    }

    #[test]
    fn no_bytes_make_it_panic_or_read_beyond_them() {
        // A small generator of our own: seeded, so that a failure repeats.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut bytes = v4(next() as usize % 64);
            for _ in 0..next() % 4 {
                let at = next() as usize % bytes.len();
                bytes[at] = next() as u8;
            }
            bytes.truncate(next() as usize % (bytes.len() + 1));
            if let Ok(Some(header)) = parse_proxy(&bytes) {
                assert!(header.length <= bytes.len());
            }
        }
    }
}
