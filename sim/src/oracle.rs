//! What must never happen. The oracle hears of every ack and every delivery, and looks into the store's durable rows.
//!
//! Two limits that ORDERING.md states are known here. A client that repeats a message after more than the dedupe window may
//! double it; but one *sending* of a message is never at two seqs. And where a Redis that was replaced lived on, and strict
//! mode is off, what was published there may be cut off by the generation that took its place.

use crate::client::content_begins;
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
#[derive(Debug)]
pub struct Oracle {
    /// (room, seq) to the message that stands there; once seen, it never changes.
    seen: BTreeMap<(String, u64), Fact>,
    /// (room, user, client id) to (message id, seq), from acks.
    acked: BTreeMap<(String, String, String), (String, u64)>,
    /// (room, content) to seq and message id: each sending of each message has a content of its own.
    sendings: BTreeMap<(String, String), (u64, String)>,
    /// The same for all sendings of a message: (room, the first word of its content).
    messages: BTreeMap<(String, String), (u64, String)>,
    window: u64,
    /// What was published on a replaced Redis may be cut off.
    pub may_be_cut_off: bool,
}

impl Oracle {
    /// `window`: within how many messages of a room a repeat is known to be one.
    #[must_use]
    pub fn new(window: u64) -> Oracle {
        Oracle {
            seen: BTreeMap::new(),
            acked: BTreeMap::new(),
            sendings: BTreeMap::new(),
            messages: BTreeMap::new(),
            window,
            may_be_cut_off: false,
        }
    }

    /// A client saw a message, live or in history (promises 1, 2 and 4).
    ///
    /// # Errors
    /// What was broken.
    pub fn saw(&mut self, store: &mut SimStore, room: &str, seq: u64, fact: Fact) -> Verdict {
        let is_gone = |id: &str| self.may_be_cut_off && store.is_dead(room, id);
        if is_gone(&fact.message_id) {
            return Ok(());
        }
        let (content, id) = (fact.content.clone(), fact.message_id.clone());
        let word = content.split(' ').next().unwrap_or_default().to_owned();
        if let Some((other, was)) = self.sendings.get(&(room.to_owned(), content.clone()))
            && *other != seq
            && !is_gone(was)
        {
            return Err(format!("promise 4: {room} has {content:?} at seq {other} and at seq {seq}"));
        }
        if let Some((other, was)) = self.messages.get(&(room.to_owned(), word.clone()))
            && other.abs_diff(seq) > 0
            && other.abs_diff(seq) <= self.window
            && !is_gone(was)
        {
            return Err(format!("promise 4: {room} has {word:?} at seq {other} and, sent again, at seq {seq}"));
        }
        if let Some(known) = self.seen.get(&(room.to_owned(), seq))
            && *known != fact
            && !is_gone(&known.message_id)
        {
            return Err(format!("promise 1: {room} {seq} was {known:?} for one client and is {fact:?} for another"));
        }
        if store.message(room, seq, &id).is_none() {
            return Err(format!("promise 2: {room} {seq} {content:?} was seen and is not in the store"));
        }
        self.sendings.insert((room.to_owned(), content), (seq, id.clone()));
        self.messages.insert((room.to_owned(), word), (seq, id));
        self.seen.insert((room.to_owned(), seq), fact);
        Ok(())
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
        let is_gone = |id: &str| self.may_be_cut_off && store.is_dead(&key.0, id);
        if is_gone(message_id) {
            return Ok(());
        }
        if let Some((id, at)) = self.acked.get(&key)
            && (id != message_id || *at != seq)
            && at.abs_diff(seq) <= self.window
            && !is_gone(id)
        {
            return Err(format!("promise 4: {key:?} was acked as {id} {at} and again as {message_id} {seq}"));
        }
        let Some(row) = store.message(&key.0, seq, message_id) else {
            return Err(format!("promise 2: {key:?} was acked at seq {seq} and is not in the store"));
        };
        if *row.user != *key.1
            || *row.client_id != *key.2
            || !row.content.starts_with(content_begins(&key.2).as_bytes())
        {
            return Err(format!("promise 4: {key:?} was acked at seq {seq}, where another message stands: {row:?}"));
        }
        self.acked.insert(key, (message_id.to_owned(), seq));
        Ok(())
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
