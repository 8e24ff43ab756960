//! What a dead life left behind: its users go offline, its members leave their rooms. Whoever does it may die at any step:
//! each step may be repeated, and what is left stays in the life's two sets until it is done.

use super::Part;
use super::calls::{Calls, int, items, purge, purged, reap_users};
use super::lease;
use super::scripts::{NODES_TAG, life_key, life_tag};
use crate::bus::redis::connect::text;
use redis::{Value, cmd};
use roomwire_engine::cluster::DeadLife;

/// So many users, or rooms, at a time: between two times other work has its turn, and the claim is renewed.
const STEP_USERS: usize = 256;
const STEP_ROOMS: usize = 32;

impl Part {
    /// How many users and memberships were removed.
    pub(super) async fn reap(&self, dead: &DeadLife) -> Option<(u64, u64)> {
        tracing::info!(node = &*dead.node, "a node is dead, or began anew: what it left behind is removed");
        let (mut users, mut members) = (0, 0);
        loop {
            let some = self.some(dead, "users", STEP_USERS).await?;
            if some.is_empty() {
                break;
            }
            self.send(&reap_users(dead, self.at_once(), &some)).await.ok()?;
            users += some.len() as u64;
        }
        loop {
            let rooms = self.some(dead, "rooms", STEP_ROOMS).await?;
            if rooms.is_empty() {
                break;
            }
            for room in &rooms {
                members += self.purge(dead, room).await?;
            }
            let mut done = cmd("SREM");
            done.arg(life_key(&dead.node, &dead.life, "rooms")).arg(&rooms);
            self.command(life_tag(&dead.node, &dead.life), done).await.ok()?;
        }
        self.command(NODES_TAG, lease::dead(dead, true)).await.ok()?;
        tracing::info!(node = &*dead.node, users, members, "removed");
        Some((users, members))
    }

    /// Some of a set, with the claim renewed.
    async fn some(&self, dead: &DeadLife, what: &str, most: usize) -> Option<Vec<String>> {
        let mut calls = Calls::one(NODES_TAG, lease::dead(dead, false));
        let mut some = cmd("SRANDMEMBER");
        some.arg(life_key(&dead.node, &dead.life, what)).arg(most);
        calls.ask(life_tag(&dead.node, &dead.life), some);
        let values = self.send(&calls).await.ok()?;
        let [claimed, some] = &values[..] else { return None };
        int(claimed)?;
        let names = items(some)?;
        names.iter().map(|name: &Value| text(name).map(str::to_owned)).collect()
    }

    async fn purge(&self, dead: &DeadLife, room: &str) -> Option<u64> {
        let (mut cursor, mut members) = ("0".to_owned(), 0);
        loop {
            let call = purge(&self.card, &self.shared.dialect, dead, room, &cursor);
            let value = self.command(room, call).await.ok()?;
            let (next, removed) = purged(&value)?;
            members += removed;
            if next == "0" {
                return Some(members);
            }
            cursor = next;
        }
    }
}
