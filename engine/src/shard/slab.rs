//! Slots that stay where they are: the tables of a shard's connections, rooms and users.
//!
//! A table grows by chunks, so that growing never copies what is there and never doubles what is resident. Freed
//! slots are used again, last freed first, which keeps memory dense and the simulator's runs equal.

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use hashbrown::HashTable;
use std::hash::Hasher;
use std::rc::Rc;

/// Entries of one chunk: a power of two.
const CHUNK: usize = 256;

/// Slots of `T`, found by number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    length: u32,
    taken: u32,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { chunks: Vec::new(), free: Vec::new(), length: 0, taken: 0 }
    }

    /// How many slots are taken.
    pub(super) fn len(&self) -> usize {
        self.taken as usize
    }

    /// One more than the highest slot ever taken.
    pub(super) fn end(&self) -> u32 {
        self.length
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.as_mut()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.taken += 1;
        if let Some(slot) = self.free.pop() {
            self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(value);
            return slot;
        }
        let slot = self.length;
        if (slot as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[slot as usize / CHUNK].push(Some(value));
        self.length += 1;
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.take()?;
        self.free.push(slot);
        self.taken -= 1;
        Some(value)
    }
}

/// What a [`Table`] finds by name.
pub(super) trait Named {
    fn name(&self) -> &str;
}

/// The secret of an engine's hash tables: names are chosen by clients, who must not be able to make them collide.
#[derive(Clone)]
pub(super) struct HashSeed {
    shared: Rc<SharedSeed>,
    seed: u64,
}

impl HashSeed {
    pub(super) fn new(seed: u64) -> HashSeed {
        HashSeed { shared: Rc::new(SharedSeed::from_u64(seed)), seed: seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15 }
    }

    pub(super) fn hash(&self, name: &str) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write(name.as_bytes());
        hasher.finish()
    }
}

/// A slab whose entries are also found by name. Nothing ever walks the hash table, so its order decides nothing.
pub(super) struct Table<T> {
    slots: Slab<T>,
    index: HashTable<u32>,
    seed: HashSeed,
}

impl<T: Named> Table<T> {
    pub(super) fn new(seed: &HashSeed) -> Table<T> {
        Table { slots: Slab::new(), index: HashTable::new(), seed: seed.clone() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// One more than the highest slot ever taken.
    pub(super) fn end(&self) -> u32 {
        self.slots.end()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot)
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        let named = |slot: &u32| self.slots.get(*slot).is_some_and(|entry| entry.name() == name);
        self.index.find(self.seed.hash(name), named).copied()
    }

    /// The slot of that name, which `make` fills if there is none yet.
    pub(super) fn find_or_insert(&mut self, name: &str, make: impl FnOnce() -> T) -> u32 {
        if let Some(slot) = self.find(name) {
            return slot;
        }
        let slot = self.slots.insert(make());
        let (slots, seed) = (&self.slots, &self.seed);
        let rehash = |slot: &u32| slots.get(*slot).map_or(0, |entry| seed.hash(entry.name()));
        self.index.insert_unique(seed.hash(name), slot, rehash);
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let hash = self.seed.hash(self.slots.get(slot)?.name());
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        self.slots.remove(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Named for String {
        fn name(&self) -> &str {
            self
        }
    }

    #[test]
    fn a_table_finds_by_name_and_by_slot_through_growth_and_removal() {
        let mut table: Table<String> = Table::new(&HashSeed::new(7));
        let slots: Vec<u32> =
            (0..1_000).map(|n| table.find_or_insert(&format!("room{n}"), || format!("room{n}"))).collect();
        assert_eq!(table.find_or_insert("room5", String::new), slots[5]);
        for (n, slot) in slots.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
            assert_eq!(table.remove(*slot).as_deref(), Some(format!("room{n}").as_str()));
        }
        assert_eq!(table.len(), 500);
        assert_eq!((table.find("room0"), table.find("room1")), (None, Some(slots[1])));
        // The last slot that was freed is the first to be used again.
        assert_eq!(table.find_or_insert("new", || "new".to_owned()), slots[998]);
    }

    #[test]
    fn a_slab_keeps_others_where_they_are() {
        let mut slab = Slab::new();
        let slots: Vec<u32> = (0..600).map(|n| slab.insert(n)).collect();
        slab.remove(slots[300]);
        assert_eq!((slab.get(300), slab.get(299), slab.len(), slab.end()), (None, Some(&299), 599, 600));
        assert_eq!(slab.get(9_999), None);
    }
}
