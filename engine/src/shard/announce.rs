//! What a home tells the bus again, part by part: after the bus forgot, and slowly all the time, so that nothing there
//! runs out. Asked for by the bridge, which sets the pace; in a cluster only.

use super::Engine;
use crate::mesh::{Announce, Announced, ToBridge, WalkPlace};

/// The most slots that one part looks at, and the most users that it names.
const PART_MAX: usize = 512;

impl Engine {
    pub(super) fn announce(&mut self, what: Announce, from: WalkPlace) {
        let part = match what {
            Announce::Users => self.part_of_users(from),
            Announce::Rosters => self.part_of_rosters(from),
        };
        self.effects.bridge.push(ToBridge::Announced { shard: self.shard, part: Box::new(part) });
    }

    fn part_of_users(&self, from: WalkPlace) -> Announced {
        let slots = self.user_homes.end();
        let end = slots.min(from.slot.saturating_add(PART_MAX as u32));
        let homes = (from.slot..end).filter_map(|slot| self.user_homes.get(slot));
        let users = homes.filter(|home| home.is_online()).map(|home| home.user().clone()).collect();
        let next = (end < slots).then_some(WalkPlace { slot: end, at: 0 });
        Announced { what: Announce::Users, users, rosters: Vec::new(), next, slots }
    }

    fn part_of_rosters(&mut self, from: WalkPlace) -> Announced {
        let slots = self.room_homes.end();
        let (mut place, mut budget) = (from, PART_MAX);
        let mut rosters = Vec::new();
        while place.slot < slots && budget > 0 && (place.slot - from.slot) < PART_MAX as u32 {
            let home = self.room_homes.get(place.slot).filter(|home| self.spans_nodes(home.room()));
            if let Some(home) = home {
                let users: Vec<_> = home.users_from(place.at).take(budget).cloned().collect();
                budget -= users.len();
                place.at += users.len() as u32;
                let is_whole = home.users_from(place.at).next().is_none();
                if !users.is_empty() {
                    rosters.push((home.room().clone(), users));
                }
                if !is_whole {
                    break;
                }
            }
            place = WalkPlace { slot: place.slot + 1, at: 0 };
        }
        self.walk = place;
        let next = (place.slot < slots).then_some(place);
        Announced { what: Announce::Rosters, users: Vec::new(), rosters, next, slots }
    }
}
