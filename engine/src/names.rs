//! Distinct types for the ids that cross threads, and the globs that stand for some of them. Cloning an id counts a
//! reference; nothing is copied.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Wraps `text`, which the caller has checked.
            #[must_use]
            pub fn new(text: &str) -> $type {
                $type(Arc::from(text))
            }
        }

        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        /// As `str` hashes, so that maps can be asked with a borrowed name.
        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// A room id: matches `^[A-Za-z0-9_.:-]{1,128}$` (`wire::id::is_room_id`).
    RoomId
}
name! {
    /// A user id, as the token gave it.
    UserId
}

/// A user as the token named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The name that others see.
    pub name: Arc<str>,
}

/// A shard of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A connection of one shard: a slot and its generation, so that the handle of a dead connection never reaches the
/// slot's next tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The slot.
    pub slot: u32,
    /// Rises with each tenant of the slot; only the low 24 bits are used.
    pub generation: u32,
}

/// A connection of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionRef {
    /// The shard that owns it.
    pub shard: ShardId,
    /// The connection there.
    pub connection: ConnectionId,
}

/// A set of shards; at most [`ShardSet::SHARDS_MAX`] of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet([u64; 4]);

impl ShardSet {
    /// The most shards of a node.
    pub const SHARDS_MAX: usize = 256;

    /// Adds a shard; whether it was new.
    pub fn insert(&mut self, shard: ShardId) -> bool {
        let (word, bit) = (usize::from(shard.0 / 64), 1u64 << (shard.0 % 64));
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Removes a shard; whether it was there.
    pub fn remove(&mut self, shard: ShardId) -> bool {
        let (word, bit) = (usize::from(shard.0 / 64), 1u64 << (shard.0 % 64));
        let there = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        there
    }

    /// Whether the shard is in the set.
    #[must_use]
    pub fn contains(&self, shard: ShardId) -> bool {
        self.0[usize::from(shard.0 / 64)] & (1u64 << (shard.0 % 64)) != 0
    }

    /// Whether no shard is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The shards, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                if left == 0 {
                    return None;
                }
                let bit = left.trailing_zeros();
                left &= left - 1;
                u16::try_from(word * 64).ok().map(|base| ShardId(base + bit as u16))
            })
        })
    }
}

/// The shard that keeps the membership of a room, or the presence of a user: the same on every shard of a node.
#[must_use]
pub fn home(name: &str, shards: u16) -> ShardId {
    // FNV-1a, 64 bit: not exposed to flooding, since it only spreads load; each table behind it has a random seed.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The last bytes of a name reach few of FNV's bits, and names differ there: without this step `u1` to `u99` are all
    // at home on one shard of two.
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ShardId(((hash >> 32) % u64::from(shards.max(1))) as u16)
}

/// Whether `name` matches `glob`, where `*` stands for any run of bytes. Tries at most glob times name steps.
#[must_use]
pub fn matches_glob(glob: &str, name: &str) -> bool {
    let (glob, name) = (glob.as_bytes(), name.as_bytes());
    let (mut in_glob, mut in_name) = (0, 0);
    // Where to go back to: behind the last star, and how much of the name it took so far.
    let mut star = None;
    while in_name < name.len() {
        match glob.get(in_glob) {
            Some(b'*') => {
                star = Some((in_glob + 1, in_name));
                in_glob += 1;
            }
            Some(byte) if *byte == name[in_name] => (in_glob, in_name) = (in_glob + 1, in_name + 1),
            _ => match star {
                Some((behind, took)) => {
                    star = Some((behind, took + 1));
                    (in_glob, in_name) = (behind, took + 1);
                }
                None => return false,
            },
        }
    }
    glob[in_glob..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_their_last_bytes_are_at_home_on_all_shards() {
        for shards in [2, 3, 8, 16] {
            let mut homes = vec![0; usize::from(shards)];
            for n in 0..1_600 {
                homes[usize::from(home(&format!("user{n}"), shards).0)] += 1;
            }
            let even = 1_600 / usize::from(shards);
            assert!(homes.iter().all(|count| (even * 3 / 4..even * 5 / 4).contains(count)), "{homes:?}");
        }
    }

    #[test]
    fn a_set_of_shards_gives_back_what_it_took() {
        let mut set = ShardSet::default();
        for shard in [0, 63, 64, 255] {
            assert!(set.insert(ShardId(shard)));
            assert!(!set.insert(ShardId(shard)));
        }
        assert_eq!(set.iter().map(|shard| shard.0).collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert!(set.remove(ShardId(64)) && !set.remove(ShardId(64)) && !set.contains(ShardId(64)));
    }

    #[test]
    fn a_star_stands_for_any_run() {
        for (glob, name) in
            [("*", ""), ("*", "a"), ("a*", "a"), ("a*c", "abbc"), ("*b*b", "abcb"), ("a", "a"), ("**", "x")]
        {
            assert!(matches_glob(glob, name), "{glob} {name}");
        }
        for (glob, name) in [("", "a"), ("a", "ab"), ("a*c", "abcd"), ("*b", "abc"), ("team.*", "team"), ("b", "a")] {
            assert!(!matches_glob(glob, name), "{glob} {name}");
        }
    }
}
