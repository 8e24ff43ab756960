//! Parts of the address space, as an operator writes them: `10.0.0.0/8`, `fc00::/7`, or one address.
//!
//! Used to tell whose word counts about who a client is ([`crate::limits::EngineConfig::proxies`]).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// As IPv6; IPv4 is mapped into it.
    bits: u128,
    /// How many of its first bits count.
    prefix: u32,
}

/// Bits before an IPv4 address that is mapped into IPv6.
const MAPPED_BITS: u32 = 96;

impl Network {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        (mapped(address) ^ self.bits).checked_shr(128 - self.prefix).unwrap_or(0) == 0
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Network, &'static str> {
        const FORM: &str = "an address, or one with a number of bits, such as 10.0.0.0/8 or fc00::/7";
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| FORM)?;
        let own_bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => own_bits,
            Some(prefix) => prefix.parse::<u32>().ok().filter(|bits| *bits <= own_bits).ok_or(FORM)?,
        };
        let network =
            Network { bits: mapped(address), prefix: if own_bits == 32 { prefix + MAPPED_BITS } else { prefix } };
        let rest = network.bits & u128::MAX.checked_shr(network.prefix).unwrap_or(0);
        if rest == 0 { Ok(network) } else { Err("no bits set behind those that count, such as 10.0.0.0/8") }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", std::net::Ipv6Addr::from_bits(self.bits), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().expect("a network");
        network.contains(address.parse().expect("an address"))
    }

    #[test]
    fn addresses_are_in_the_networks_that_begin_as_they_do() {
        assert!(contains("10.0.0.0/8", "10.255.255.255") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"), "as a listener on :: sees it");
        assert!(contains("127.0.0.1", "127.0.0.1") && !contains("127.0.0.1", "127.0.0.2"));
        assert!(contains("fc00::/7", "fdff::1") && !contains("fc00::/7", "fe00::1"));
        assert!(contains("0.0.0.0/0", "203.0.113.7") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "203.0.113.7") && contains("::/0", "2001:db8::1"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "::/129",
            "10.0.0",
            "10.0.0.1/8",
            "fc00::1/7",
            "localhost",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
