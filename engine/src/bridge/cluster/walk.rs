//! A walk through what the homes on the shards know, part by part: in a hurry after the bus forgot, and slowly all the
//! time, so that nothing on the bus runs out and what it lost unnoticed comes back.

use super::Out;
use crate::bridge::BridgeEffect;
use crate::mesh::{Announce, ToShard, WalkPlace};
use crate::names::ShardId;

/// Every user is announced again so often: the keys live for 300 s.
pub(super) const USERS_CYCLE_MS: u64 = 100_000;
/// Every member: the rosters live for 1,800 s.
pub(super) const ROSTERS_CYCLE_MS: u64 = 600_000;
/// The least time between two parts of up to 512, in a hurry and else.
const HURRIED_MS: u64 = 20;
const SLOW_MS: u64 = 100;

#[derive(Debug)]
pub(super) struct Walk {
    what: Announce,
    shard: u16,
    from: WalkPlace,
    /// A part is under way; it belongs to a walk that was begun anew since, if `stale`.
    asked: bool,
    stale: bool,
    due_ms: u64,
    /// In a hurry; whether nobody is to be told.
    hurry: Option<bool>,
    /// How many slots the tables of the shards had when they were last walked through.
    slots: Vec<u32>,
}

impl Walk {
    pub(super) fn new(what: Announce) -> Walk {
        Walk {
            what,
            shard: 0,
            from: WalkPlace::default(),
            asked: false,
            stale: false,
            // A start has announced nothing yet that could run out.
            due_ms: u64::MAX,
            hurry: None,
            slots: Vec::new(),
        }
    }

    fn cycle_ms(&self) -> u64 {
        match self.what {
            Announce::Users => USERS_CYCLE_MS,
            Announce::Rosters => ROSTERS_CYCLE_MS,
        }
    }

    /// Begins anew, in a hurry.
    pub(super) fn hurry(&mut self, quiet: bool) {
        self.hurry = Some(quiet);
        self.stale = self.asked;
        (self.shard, self.from, self.due_ms) = (0, WalkPlace::default(), 0);
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurry.is_some()
    }

    /// Whether what comes is to be announced to nobody. A user of whom the bus lost the trace alone is told of.
    pub(super) fn quiet(&self) -> bool {
        self.hurry.unwrap_or(self.what == Announce::Rosters)
    }

    /// Asks for the next part if it is due.
    pub(super) fn pull(&mut self, out: &mut Out<'_>) {
        if self.due_ms == u64::MAX {
            self.due_ms = out.now_ms() + self.cycle_ms() / 2;
        }
        if !self.asked && self.due_ms <= out.now_ms() {
            self.asked = true;
            let message = ToShard::Announce { what: self.what, from: self.from };
            out.effects.push(BridgeEffect::Shard(ShardId(self.shard), message));
        }
    }

    pub(super) fn due_ms(&self) -> Option<u64> {
        (!self.asked && self.due_ms != u64::MAX).then_some(self.due_ms)
    }

    /// A part came, with so many users or members, from a table of so many slots.
    pub(super) fn arrived(&mut self, now_ms: u64, shards: u16, told: u64, next: Option<WalkPlace>, slots: u32) {
        self.asked = false;
        if std::mem::take(&mut self.stale) {
            return;
        }
        let covered = next.map_or(slots, |next| next.slot).saturating_sub(self.from.slot);
        self.slots.resize(usize::from(shards), slots);
        if let Some(known) = self.slots.get_mut(usize::from(self.shard)) {
            *known = slots;
        }
        let all = self.slots.iter().map(|slots| u64::from(*slots)).sum::<u64>();
        self.due_ms = now_ms
            + match self.hurry {
                Some(_) if told == 0 => 0,
                Some(_) => HURRIED_MS,
                None if all == 0 => self.cycle_ms() / u64::from(shards),
                None => (self.cycle_ms() * u64::from(covered) / all).max(SLOW_MS),
            };
        self.from = next.unwrap_or_default();
        if next.is_none() {
            self.shard += 1;
        }
        if self.shard == shards {
            self.shard = 0;
            if self.hurry.take().is_some() {
                self.due_ms = now_ms + self.cycle_ms() / 2;
            }
        }
    }
}
