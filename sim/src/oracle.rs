//! What must never happen. The oracle hears of every ack and every delivery, and looks into the store's durable rows.

use crate::store::SimStore;
use std::collections::BTreeMap;

/// What is known of one published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its id on the wire.
    pub message_id: String,
    /// Its content, as the JSON literal's decoded text.
    pub content: String,
    /// Its author.
    pub user: String,
}

/// The first broken promise ends a run.
pub type Verdict = Result<(), String>;

/// All that was seen so far.
#[derive(Debug, Default)]
pub struct Oracle {
    /// (room, seq) to the message that stands there; once seen, it never changes.
    seen: BTreeMap<(String, u64), Fact>,
    /// (room, user, client id) to (message id, seq), from acks.
    acked: BTreeMap<(String, String, String), (String, u64)>,
    /// (room, content) to seq: contents are unique, so one content at two seqs is a doubled message.
    contents: BTreeMap<(String, String), u64>,
}

impl Oracle {
    /// A client saw a message, live or in history (promises 1, 2 and 4).
    ///
    /// # Errors
    /// What was broken.
    pub fn saw(&mut self, store: &mut SimStore, room: &str, seq: u64, fact: Fact) -> Verdict {
        if !store.is_durable(room, seq, &fact.message_id) {
            return Err(format!("promise 2: {room} {seq} {:?} was seen and is not in the store", fact.content));
        }
        if let Some(other) = self.contents.insert((room.to_owned(), fact.content.clone()), seq)
            && other != seq
        {
            return Err(format!("promise 4: {room} has {:?} at seq {other} and at seq {seq}", fact.content));
        }
        match self.seen.get(&(room.to_owned(), seq)) {
            Some(known) if *known != fact => {
                Err(format!("promise 1: {room} {seq} was {known:?} for one client and is {fact:?} for another"))
            }
            Some(_) => Ok(()),
            None => {
                self.seen.insert((room.to_owned(), seq), fact);
                Ok(())
            }
        }
    }

    /// A client got an ack (promises 2 and 4).
    ///
    /// # Errors
    /// What was broken.
    pub fn acked(
        &mut self,
        store: &mut SimStore,
        key: (String, String, String),
        message_id: &str,
        seq: u64,
    ) -> Verdict {
        if !store.is_durable(&key.0, seq, message_id) {
            return Err(format!("promise 2: {key:?} was acked at seq {seq} and is not in the store"));
        }
        match self.acked.get(&key) {
            Some((id, at)) if id != message_id || *at != seq => {
                Err(format!("promise 4: {key:?} was acked as {id} {at} and again as {message_id} {seq}"))
            }
            Some(_) => Ok(()),
            None => {
                self.acked.insert(key, (message_id.to_owned(), seq));
                Ok(())
            }
        }
    }

    /// The highest seq of a room that anybody saw or that was acked.
    #[must_use]
    pub fn last_seen(&self, room: &str) -> u64 {
        let seen = self.seen.keys().filter(|(of, _)| of == room).map(|(_, seq)| *seq).max().unwrap_or(0);
        self.acked_in(room).map(|(seq, _)| seq).max().unwrap_or(0).max(seen)
    }

    /// How many messages were acked.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.acked.len()
    }

    /// The acked messages of a room: seq and message id.
    pub fn acked_in<'a>(&'a self, room: &'a str) -> impl Iterator<Item = (u64, &'a str)> + 'a {
        self.acked.iter().filter(move |(key, _)| key.0 == room).map(|(_, (id, seq))| (*seq, id.as_str()))
    }
}
