//! The recent messages of one room, in memory: a join or a short resume then costs no read of the store.
//!
//! Invariant: every message with `floor < seq <= last`, `last` being what the receiver has delivered, is here, with all
//! its readers. A void seq is simply absent.

use super::shared::Shared;
use crate::names::{RoomId, UserId};
use crate::store::{ReadRow, Row};
use std::collections::{BTreeMap, VecDeque};

/// What a row costs beside its content.
const ROW_BYTES: usize = 256;

/// The recent messages of one room.
#[derive(Debug, Default)]
pub(super) struct Recent {
    floor: u64,
    rows: VecDeque<ReadRow>,
    bytes: usize,
    /// Rows that this node made durable and that are not delivered yet, by seq: an event carries no row. Boxed, as an
    /// empty map keeps a node with room for eleven.
    staged: BTreeMap<u64, Box<ReadRow>>,
    /// Asked since the clock's hand passed.
    used: bool,
    /// The stamp of its entry in the clock; 0 while it has none.
    stamp: u64,
}

fn cost(read: &ReadRow) -> usize {
    let readers: usize = read.read_by.iter().map(|reader| reader.len() + 24).sum();
    ROW_BYTES + read.row.content.len() + readers
}

fn add_reader(read: &mut ReadRow, generation: u64, user: &UserId) -> bool {
    let new = read.row.generation == generation && !read.read_by.iter().any(|reader| **reader == **user);
    if new {
        read.read_by.push(Box::from(&**user));
    }
    new
}

/// Adds a reader to the row of that place, if it is among `rows` (ascending).
pub(super) fn read_in<'a>(
    rows: impl IntoIterator<Item = &'a mut ReadRow>,
    (generation, seq): (u64, u64),
    user: &UserId,
) -> bool {
    rows.into_iter().find(|read| read.row.seq == seq).is_some_and(|read| add_reader(read, generation, user))
}

impl Recent {
    /// Forgets all; the next message is the one after `last`.
    pub(super) fn clear(&mut self, shared: &mut Shared, last: u64) {
        shared.recent_bytes -= self.bytes;
        *self = Recent {
            floor: last,
            staged: std::mem::take(&mut self.staged),
            stamp: self.stamp,
            used: self.used,
            ..Recent::default()
        };
    }

    /// Forgets all: nobody listens any more.
    pub(super) fn end(&mut self, shared: &mut Shared) {
        self.clear(shared, 0);
        *self = Recent::default();
    }

    /// Whether the clock's entry with this stamp is this room's.
    pub(super) fn is_clocked(&self, stamp: u64) -> bool {
        self.stamp == stamp
    }

    /// The clock's hand passes: `true` spares the room this time; else it has to [`Recent::clear`].
    pub(super) fn take_used(&mut self) -> bool {
        let used = std::mem::take(&mut self.used);
        if !used {
            self.stamp = 0;
        }
        used
    }

    /// Every message above it, and up to the receiver's last, is here.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Rows with `after < seq < before`, ascending; only sensible from `floor` on.
    pub(super) fn range(&mut self, after: u64, before: u64) -> impl DoubleEndedIterator<Item = &ReadRow> {
        self.used = true;
        let start = self.rows.partition_point(|read| read.row.seq <= after);
        let end = self.rows.partition_point(|read| read.row.seq < before).max(start);
        self.rows.range(start..end)
    }

    /// A row of this node is durable; it will be delivered.
    pub(super) fn stage(&mut self, row: Row) {
        self.staged.insert(row.seq, Box::new(ReadRow { row, read_by: Vec::new() }));
    }

    /// The staged row of a seq that was delivered now.
    pub(super) fn unstage(&mut self, generation: u64, seq: u64) -> Option<ReadRow> {
        let row = self.staged.remove(&seq);
        // What is below was voided or written again under another generation.
        while self.staged.first_key_value().is_some_and(|(staged, _)| *staged < seq) {
            self.staged.pop_first();
        }
        row.filter(|read| read.row.generation == generation).map(|read| *read)
    }

    /// A message was delivered, with its row if it is known.
    pub(super) fn push(&mut self, shared: &mut Shared, room: &RoomId, seq: u64, row: Option<ReadRow>) {
        let Some(row) = row else {
            self.clear(shared, seq);
            return;
        };
        let bytes = cost(&row);
        self.bytes += bytes;
        shared.recent_bytes += bytes;
        self.rows.push_back(row);
        self.enter_clock(shared, room);
        while self.bytes > shared.config.recent_bytes_max as usize
            && let Some(oldest) = self.rows.pop_front()
        {
            let bytes = cost(&oldest);
            self.bytes -= bytes;
            shared.recent_bytes -= bytes;
            self.floor = oldest.row.seq;
        }
    }

    /// Rows read from the store hold every message of `(after, ..]` up to the floor or further: as many as there is room for.
    pub(super) fn extend_down(&mut self, shared: &mut Shared, room: &RoomId, after: u64, rows: &[ReadRow]) {
        let end = rows.partition_point(|read| read.row.seq <= self.floor);
        for read in rows[..end].iter().rev() {
            let bytes = cost(read);
            if self.bytes + bytes > shared.config.recent_bytes_max as usize {
                self.floor = read.row.seq;
                return;
            }
            self.bytes += bytes;
            shared.recent_bytes += bytes;
            self.rows.push_front(read.clone());
            self.enter_clock(shared, room);
        }
        self.floor = self.floor.min(after);
    }

    /// What stood from `base` on was cut off.
    pub(super) fn cut_off(&mut self, shared: &mut Shared, base: u64) {
        if self.floor >= base {
            self.clear(shared, base.saturating_sub(1));
            return;
        }
        let kept = self.rows.partition_point(|read| read.row.seq < base);
        let bytes: usize = self.rows.drain(kept..).map(|read| cost(&read)).sum();
        self.bytes -= bytes;
        shared.recent_bytes -= bytes;
    }

    /// A receipt was stored.
    pub(super) fn read(&mut self, shared: &mut Shared, generation: u64, seq: u64, user: &UserId) {
        if let Some(staged) = self.staged.get_mut(&seq) {
            add_reader(staged, generation, user);
        }
        let start = self.rows.partition_point(|read| read.row.seq < seq);
        if read_in(self.rows.range_mut(start..).take(1), (generation, seq), user) {
            self.bytes += user.len() + 24;
            shared.recent_bytes += user.len() + 24;
        }
    }

    fn enter_clock(&mut self, shared: &mut Shared, room: &RoomId) {
        if self.stamp == 0 {
            shared.recent_stamp += 1;
            self.stamp = shared.recent_stamp;
            shared.recent_clock.push_back((room.clone(), self.stamp));
        }
    }
}
