//! Who may still connect: the node's limit on connections and the one on each address, this shard's part of both.

use crate::limits::Limits;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::net::IpAddr;

/// Counts connections by address, where a limit asks for it; else it costs nothing.
#[derive(Debug)]
pub(super) struct Peers {
    connections_max: usize,
    address_max: u32,
    by_address: HashMap<u128, u32, FixedState>,
    by_slot: HashMap<u32, u128, FixedState>,
}

impl Peers {
    /// `seed` is secret: addresses are chosen by clients.
    pub(super) fn new(limits: &Limits, shards: u16, seed: u64) -> Peers {
        let mut peers = Peers {
            connections_max: usize::MAX,
            address_max: 0,
            by_address: HashMap::with_hasher(FixedState::with_seed(seed)),
            by_slot: HashMap::with_hasher(FixedState::with_seed(seed)),
        };
        peers.limit(limits, shards);
        peers
    }

    /// Other limits, from now on. Connections that came while addresses had none are not counted.
    pub(super) fn limit(&mut self, limits: &Limits, shards: u16) {
        let part = |limit: u32| limit.div_ceil(u32::from(shards.max(1)));
        self.connections_max = match limits.connections_max {
            0 => usize::MAX,
            limit => part(limit) as usize,
        };
        self.address_max = part(limits.connections_per_address_max);
    }

    /// Whether one more may come while there are `connections`; else the limit that says no.
    pub(super) fn admit(&self, connections: usize, peer: Option<IpAddr>) -> Result<(), &'static str> {
        if connections >= self.connections_max {
            return Err("connections_max");
        }
        let taken = peer.and_then(|peer| self.by_address.get(&key(peer))).copied().unwrap_or(0);
        if self.address_max > 0 && taken >= self.address_max {
            return Err("connections_per_address_max");
        }
        Ok(())
    }

    /// A balancer said who a connection that was let in is.
    pub(super) fn introduce(&mut self, slot: u32, peer: Option<IpAddr>) -> Result<(), &'static str> {
        self.admit(0, peer)?;
        self.entered(slot, peer);
        Ok(())
    }

    pub(super) fn entered(&mut self, slot: u32, peer: Option<IpAddr>) {
        if let (Some(peer), true) = (peer, self.address_max > 0) {
            *self.by_address.entry(key(peer)).or_insert(0) += 1;
            self.by_slot.insert(slot, key(peer));
        }
    }

    pub(super) fn left(&mut self, slot: u32) {
        let Some(key) = self.by_slot.remove(&slot) else { return };
        if let Some(taken) = self.by_address.get_mut(&key) {
            *taken -= 1;
            if *taken == 0 {
                self.by_address.remove(&key);
            }
        }
    }
}

/// One customer's line: an IPv4 address, or an IPv6 /64.
fn key(peer: IpAddr) -> u128 {
    match peer.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_line_count_together_and_only_until_they_leave() {
        let limits = Limits { connections_per_address_max: 4, connections_max: 20, ..Limits::default() };
        let mut peers = Peers::new(&limits, 2, 5);
        let address = |text: &str| text.parse::<IpAddr>().ok();
        peers.entered(0, address("2001:db8::1"));
        peers.entered(1, address("2001:db8::2"));
        let full = Err("connections_per_address_max");
        assert_eq!(peers.admit(2, address("2001:db8::3")), full);
        assert_eq!(peers.admit(2, address("2001:db8:0:1::3")), Ok(()));
        peers.left(0);
        assert_eq!(peers.admit(1, address("2001:db8::3")), Ok(()));
        peers.entered(2, address("10.0.0.1"));
        peers.entered(3, address("::ffff:10.0.0.1"));
        assert_eq!(peers.admit(4, address("10.0.0.1")), full);
        assert_eq!(peers.admit(4, address("10.0.0.2")), Ok(()));
        assert_eq!(peers.admit(4, None), Ok(()));
        assert_eq!(peers.admit(10, None), Err("connections_max"));
    }
}
