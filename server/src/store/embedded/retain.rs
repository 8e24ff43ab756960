//! Retention by age and by count, in small steps between commits: never a pause that a publisher would feel.
//!
//! It removes from the old end of a room and always leaves the newest row, so that a room's numbers go on from there.

use super::EmbeddedConfig;
use super::layout::{self, Stored};
use super::read::{ReadError, facts};
use super::tables::Tables;
use fjall::OwnedWriteBatch as WriteBatch;
use roomwire_engine::names::RoomId;
use std::time::{Duration, Instant};

/// Rooms looked at in one step.
const STEP_ROOMS_MAX: usize = 64;
/// Rows and receipts removed in one step.
const STEP_REMOVALS_MAX: usize = 512;
/// Between two steps of a walk over all rooms.
const STEP_EVERY: Duration = Duration::from_millis(100);
/// Between two walks.
const WALK_EVERY: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Where the walk stands.
pub(super) struct Retention {
    age_ms: u64,
    count: u64,
    /// The key behind which the next step goes on.
    cursor: Vec<u8>,
    due: Instant,
}

impl Retention {
    pub(super) fn new(config: &EmbeddedConfig) -> Retention {
        Retention {
            age_ms: u64::from(config.retention_days) * DAY_MS,
            count: config.messages_per_room_max,
            cursor: Vec::new(),
            due: Instant::now(),
        }
    }

    /// Whether there is anything to do at `now`.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        (self.age_ms > 0 || self.count > 0) && now >= self.due
    }

    /// Puts one step's removals into the batch; how many rows.
    pub(super) fn step(&mut self, tables: &Tables, batch: &mut WriteBatch, unix_ms: u64) -> Result<u64, ReadError> {
        self.due = Instant::now() + STEP_EVERY;
        let cutoff = if self.age_ms == 0 { 0 } else { unix_ms.saturating_sub(self.age_ms) };
        let mut removed = 0;
        let mut rooms = Vec::new();
        for guard in tables.rooms.range(self.cursor.clone()..).take(STEP_ROOMS_MAX) {
            rooms.push(guard.key()?);
        }
        if rooms.is_empty() {
            self.cursor.clear();
            self.due = Instant::now() + WALK_EVERY;
            return Ok(0);
        }
        for key in rooms {
            if let Some(room) = layout::room_of(&key) {
                removed += self.trim(tables, batch, &RoomId::new(room), cutoff)?;
            }
            if batch.len() >= STEP_REMOVALS_MAX {
                // Perhaps there is more to remove in this room: it comes again.
                self.cursor = key.to_vec();
                return Ok(removed);
            }
            // The least key that is greater.
            self.cursor = [&key[..], &[0]].concat();
        }
        Ok(removed)
    }

    /// Removes what is too old or too many at the room's old end.
    fn trim(&self, tables: &Tables, batch: &mut WriteBatch, room: &RoomId, cutoff: u64) -> Result<u64, ReadError> {
        let Some(last) = tables.messages.prefix(layout::room_prefix(room)).next_back() else { return Ok(0) };
        let last = layout::place(&last.key()?).map_or(0, |(seq, _, _)| seq);
        let keep_from = if self.count == 0 { 0 } else { (last + 1).saturating_sub(self.count) };
        let mut oldest = 0;
        let mut removed = 0;
        for guard in tables.messages.range(layout::room_prefix(room)..layout::seq_key(room, last)) {
            let (key, value) = guard.into_inner()?;
            let Some((seq, generation, _)) = layout::place(&key) else { continue };
            let expired = seq < keep_from
                || match layout::decode_row(room, seq, generation, &value)? {
                    Stored::Message(row) => row.timestamp < cutoff,
                    // A marker goes with the first row behind it.
                    Stored::Void => cutoff > 0,
                };
            if !expired || (batch.len() >= STEP_REMOVALS_MAX && oldest != seq + 1) {
                break;
            }
            batch.remove(&tables.messages, key);
            oldest = seq + 1;
            removed += 1;
        }
        if oldest > 0 {
            for guard in tables.receipts.range(layout::room_prefix(room)..layout::seq_key(room, oldest)) {
                batch.remove(&tables.receipts, guard.key()?);
            }
            let mut facts = facts(tables, room)?;
            facts.oldest = facts.oldest.max(oldest);
            batch.insert(&tables.rooms, layout::room_prefix(room), layout::encode_facts(&facts));
        }
        Ok(removed)
    }
}
