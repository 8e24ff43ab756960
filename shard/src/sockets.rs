//! The driver's table of connections: sixteen bytes each, found by the engine's connection id.

use crate::outbox::Place;
use crate::ring::Descriptor;
use roomwire_engine::names::ConnectionId;

/// What the driver knows of one connection.
#[derive(Debug)]
pub(crate) struct Socket {
    /// `None`: the slot is vacant.
    descriptor: Option<Descriptor>,
    generation: u32,
    /// The chunk that the kernel is sending.
    pub(crate) sending: Place,
    /// A multishot receive is armed.
    pub(crate) receiving: bool,
    /// It is to be closed as soon as nothing is under way. The engine hears no more of it than `closed`.
    pub(crate) leaving: bool,
}

impl Socket {
    /// What the ring knows it by.
    pub(crate) fn descriptor(&self) -> Option<&Descriptor> {
        self.descriptor.as_ref()
    }
}

/// All connections of a shard, by slot.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    slots: Vec<Socket>,
}

impl Sockets {
    /// Enters a connection under the id that the engine gave it.
    pub(crate) fn insert(&mut self, connection: ConnectionId, descriptor: Descriptor) {
        let slot = connection.slot as usize;
        while self.slots.len() <= slot {
            self.slots.push(Socket {
                descriptor: None,
                generation: 0,
                sending: Place::NONE,
                receiving: false,
                leaving: false,
            });
        }
        let socket = &mut self.slots[slot];
        debug_assert!(socket.descriptor.is_none(), "{connection:?} was given a slot in use");
        *socket = Socket {
            descriptor: Some(descriptor),
            generation: connection.generation,
            sending: Place::NONE,
            receiving: false,
            leaving: false,
        };
    }

    /// The connection, if that tenant of the slot still exists.
    pub(crate) fn get_mut(&mut self, connection: ConnectionId) -> Option<&mut Socket> {
        let socket = self.slots.get_mut(connection.slot as usize)?;
        (socket.descriptor.is_some() && same_generation(socket.generation, connection.generation)).then_some(socket)
    }

    /// The connection, if it exists and is not on its way out.
    pub(crate) fn live(&mut self, connection: ConnectionId) -> Option<&mut Socket> {
        self.get_mut(connection).filter(|socket| !socket.leaving)
    }

    /// Empties the slot.
    pub(crate) fn remove(&mut self, connection: ConnectionId) -> Option<Descriptor> {
        self.get_mut(connection)?.descriptor.take()
    }
}

/// Generations are compared by their low 24 bits, all that fits beside the slot in a completion.
fn same_generation(one: u32, other: u32) -> bool {
    (one ^ other) & 0x00ff_ffff == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> Descriptor {
        Descriptor::accepted(7).expect("not negative")
    }

    #[test]
    fn an_idle_connection_costs_sixteen_bytes() {
        assert_eq!(size_of::<Socket>(), 16);
    }

    #[test]
    fn the_handle_of_a_dead_connection_does_not_reach_the_next_tenant() {
        let mut sockets = Sockets::default();
        let first = ConnectionId { slot: 3, generation: 1 };
        let second = ConnectionId { slot: 3, generation: 2 };
        sockets.insert(first, descriptor());
        assert!(sockets.live(first).is_some() && sockets.live(second).is_none());
        assert!(sockets.remove(first).is_some());
        sockets.insert(second, descriptor());
        assert!(sockets.live(first).is_none() && sockets.live(second).is_some());
        // Only the low 24 bits travel in a completion.
        assert!(sockets.live(ConnectionId { slot: 3, generation: 0x0100_0002 }).is_some());
    }
}
