//! Rules that the bridge keeps, broken between it and the world: what a node asks and hears is changed on its way, so that
//! the bridge itself needs no switch for its own bugs. Called by `node.rs`; without a plant it changes nothing.

use crate::Plant;
use crate::store::SimStore;
use roomwire_engine::bus::{BusEvent, BusReply, BusRequest};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{RoomMeta, StoreReply, StoreRequest};
use std::collections::BTreeMap;

/// What a node's planted bug remembers.
#[derive(Debug)]
pub(crate) struct Spoil {
    plant: Option<Plant>,
    process: u64,
    /// The newest generation of each room that was heard of, and its base.
    newest: BTreeMap<RoomId, (u64, u64)>,
    /// The generation that an initialisation makes in truth, by its token.
    makes: BTreeMap<u64, u64>,
}

impl Spoil {
    pub(crate) fn new(plant: Option<Plant>, process: u64) -> Spoil {
        Spoil { plant, process, newest: BTreeMap::new(), makes: BTreeMap::new() }
    }

    /// A request to the bus.
    pub(crate) fn ask_bus(&self, mut request: BusRequest) -> BusRequest {
        match (self.plant, &mut request) {
            (Some(Plant::ForgetClientIds), BusRequest::Finish { dedupe, .. }) => dedupe.clear(),
            (Some(Plant::SameToken), BusRequest::Begin { token, .. } | BusRequest::Finish { token, .. }) => {
                *token = self.process;
            }
            (Some(Plant::ReadGenerationLate), BusRequest::Finish { token, generation, .. }) => {
                *generation = self.makes.get(token).copied().unwrap_or(*generation);
            }
            _ => {}
        }
        request
    }

    /// A request to the store, or what to answer in the store's place.
    pub(crate) fn ask_store(
        &mut self,
        store: &SimStore,
        mut request: StoreRequest,
    ) -> Result<StoreRequest, StoreReply> {
        match (self.plant, &mut request) {
            (Some(Plant::SameToken), StoreRequest::AdvanceGen { owner, .. } | StoreRequest::SetBase { owner, .. }) => {
                *owner = self.process;
            }
            (Some(Plant::ReadGenerationLate), StoreRequest::AdvanceGen { room, expect, owner, .. }) => {
                let (_, now) = store.facts(room);
                // The first generation is made without a look at rows: it stays what it is.
                if *expect > 0 {
                    *expect = *self.makes.entry(*owner).or_insert(now + 1) - 1;
                }
            }
            (Some(Plant::ReadGenerationLate), StoreRequest::SetBase { owner, generation, .. }) => {
                *generation = self.makes.get(owner).copied().unwrap_or(*generation);
            }
            (Some(Plant::NeverResolve), StoreRequest::Page { ticket, after, before, bytes_max: u32::MAX, .. })
                if *before == *after + 2 =>
            {
                return Err(StoreReply::Page { ticket: *ticket, rows: Vec::new(), cut: false, oldest: 0 });
            }
            (Some(Plant::NeverLookBehind), StoreRequest::ReadRoom { ticket, window: 1, .. }) => {
                return Err(StoreReply::Room { ticket: *ticket, meta: RoomMeta::default(), tail: Vec::new() });
            }
            _ => {}
        }
        Ok(request)
    }

    /// An answer of the bus, on its way to the bridge.
    pub(crate) fn hear_reply(&mut self, reply: &BusReply) {
        if let BusReply::Head { room, head } = reply {
            self.learn(room, head.generation, head.base);
        }
    }

    /// An event of the bus, on its way to the bridge.
    pub(crate) fn hear_event(&mut self, mut event: BusEvent) -> BusEvent {
        if let BusEvent::Message { room, generation, base, .. } | BusEvent::Control { room, generation, base, .. } =
            &event
        {
            self.learn(room, *generation, *base);
        }
        if self.plant == Some(Plant::KeepOldEvents)
            && let BusEvent::Message { room, generation, base, stable, .. } = &mut event
            && let Some(newest) = self.newest.get(room).filter(|(newest, _)| newest > generation)
        {
            (*generation, *base) = *newest;
            *stable = 0;
        }
        event
    }

    fn learn(&mut self, room: &RoomId, generation: u64, base: u64) {
        if self.plant == Some(Plant::KeepOldEvents) {
            let newest = self.newest.entry(room.clone()).or_default();
            *newest = (*newest).max((generation, base));
        }
    }
}
