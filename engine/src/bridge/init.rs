//! ORDERING.md's re-init: a room that the bus does not hold is rebuilt from the store, under the next generation.
//!
//! Each step may be repeated; what fails is tried again after a pause, and a lost race starts over with a fresh token.

use super::pace::Haste;
use super::receiver::{TAIL_ROWS, oldest_request};
use super::room::{BusAsked, Room};
use super::shared::{Purpose, Turn, back_off_ms, hint_ms};
use crate::bus::{
    Begun, BusReply, BusRequest, DEDUPE_MESSAGES, DedupeEntry, DedupeKey, Finished, PENDING_MESSAGES_MAX,
};
use crate::store::{RoomMeta, Row, StoreReply, StoreRequest};
use std::collections::{BTreeMap, BTreeSet};

/// What a re-init asks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The generation, before BEGIN.
    Meta,
    Begin,
    /// The generation's compare-and-set.
    Advance,
    Tail,
    /// What retention left, where rows are missing.
    Oldest,
    /// The base's compare-and-set.
    Base,
    Finish,
}

/// A re-init under way.
#[derive(Debug)]
pub(super) struct Init {
    token: u64,
    step: Step,
    /// A request is under way.
    is_asked: bool,
    /// The generation that is being made.
    generation: u64,
    meta: RoomMeta,
    tail: Vec<Row>,
    survey: Survey,
    pub(super) failures: u32,
    pub(super) retry_ms: Option<u64>,
}

impl Init {
    fn new(token: u64, failures: u32) -> Init {
        Init {
            token,
            step: Step::Meta,
            is_asked: false,
            generation: 0,
            meta: RoomMeta::default(),
            tail: Vec::new(),
            survey: Survey::default(),
            failures,
            retry_ms: None,
        }
    }

    /// It does not wait for its next attempt.
    fn is_due(&self, now_ms: u64) -> bool {
        self.retry_ms.is_none_or(|due| due <= now_ms)
    }
}

/// What a room's rows and voids say about it, no generation being live.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// M: the last seq of any valid row, void or generation.
    pub(super) last: u64,
    /// Seqs in (M - W, M] that nobody decided.
    pub(super) missing: Vec<u64>,
    dedupe: Vec<DedupeEntry>,
}

impl Survey {
    /// `oldest` as in `StoreReply::Page`: what is missing below was decided, and removed since.
    pub(super) fn of(meta: &RoomMeta, tail: &[Row], oldest: u64) -> Survey {
        let is_dead = |row: &Row| meta.bases.iter().any(|(later, base)| *later > row.generation && row.seq >= *base);
        let mut valid: BTreeMap<u64, &Row> = BTreeMap::new();
        for row in tail.iter().filter(|row| row.generation <= meta.generation && !is_dead(row)) {
            let entry = valid.entry(row.seq).or_insert(row);
            if row.generation > entry.generation {
                *entry = row;
            }
        }
        let voids: BTreeSet<u64> = meta.voids.iter().copied().collect();
        let last = [
            valid.last_key_value().map_or(0, |(seq, _)| *seq),
            voids.last().copied().unwrap_or(0),
            meta.bases.iter().map(|(_, base)| base.saturating_sub(1)).max().unwrap_or(0),
            oldest.saturating_sub(1),
        ];
        let last = last.into_iter().max().unwrap_or(0);
        // The read says nothing about rows below its window.
        let read_from = tail.iter().map(|row| row.seq).max().unwrap_or(0).saturating_sub(u64::from(TAIL_ROWS));
        let from = last.saturating_sub(PENDING_MESSAGES_MAX).max(oldest.saturating_sub(1)).max(read_from);
        let missing = (from + 1..=last).filter(|seq| !valid.contains_key(seq) && !voids.contains(seq)).collect();
        let dedupe = valid
            .range(last.saturating_sub(DEDUPE_MESSAGES) + 1..)
            .filter(|(seq, _)| !voids.contains(seq))
            .map(|(seq, row)| DedupeEntry {
                key: DedupeKey { user: row.user.clone(), client_id: row.client_id.clone() },
                seq: *seq,
                generation: row.generation,
                timestamp: row.timestamp,
            })
            .collect();
        Survey { last, missing, dedupe }
    }

    /// Whether it matters what retention removed: rows are missing, or all are.
    pub(super) fn needs_oldest(&self, meta: &RoomMeta) -> bool {
        !self.missing.is_empty() || self.dedupe.is_empty() && meta.generation > 0
    }
}

impl Room {
    pub(super) fn pump_init(&mut self, turn: &mut Turn<'_>) {
        let is_due = match &self.init {
            None => self.init_wanted,
            Some(init) => !init.is_asked && init.is_due(turn.now_ms()),
        };
        self.init_wanted &= self.init.is_none();
        if !is_due || !turn.shared.pace.ask(&self.id, &mut self.permit, Haste::Awaited) {
            return;
        }
        self.init_wanted = false;
        let init = self.init.get_or_insert_with(|| Box::new(Init::new(turn.shared.new_token(), 0)));
        init.is_asked = true;
        init.retry_ms = None;
        self.init_step(turn);
    }

    /// Whether the store is being asked for what makes the room whole, or is to be as soon as it is the room's turn.
    pub(super) fn needs_permit(&self, now_ms: u64) -> bool {
        let is_begun = self.init.as_ref().is_some_and(|init| init.is_asked || init.is_due(now_ms));
        self.init_wanted || is_begun || self.receiver.is_looking()
    }

    /// Sends the request of the step that is due.
    fn init_step(&mut self, turn: &mut Turn<'_>) {
        let Some(init) = &mut self.init else { return };
        let (token, generation) = (init.token, init.generation);
        let purpose = Purpose::Init { token };
        match init.step {
            Step::Meta => {
                self.ask_store(turn, purpose, |ticket, room| StoreRequest::ReadGen { ticket, room });
            }
            Step::Begin => {
                let request = BusRequest::Begin { room: self.id.clone(), token };
                self.ask_bus(turn, BusAsked::Begin, request);
            }
            Step::Advance => self.ask_store(turn, purpose, |ticket, room| StoreRequest::AdvanceGen {
                ticket,
                room,
                expect: generation - 1,
                owner: token,
            }),
            Step::Tail => {
                self.ask_store(turn, purpose, |ticket, room| StoreRequest::ReadRoom { ticket, room, window: TAIL_ROWS })
            }
            Step::Oldest => self.ask_store(turn, purpose, oldest_request),
            Step::Base => {
                let (base, voids) = (init.survey.last + 1, init.survey.missing.clone());
                self.ask_store(turn, purpose, |ticket, room| StoreRequest::SetBase {
                    ticket,
                    room,
                    generation,
                    owner: token,
                    base,
                    voids,
                });
            }
            Step::Finish => {
                let (last, dedupe) = (init.survey.last, init.survey.dedupe.clone());
                let request = BusRequest::Finish { room: self.id.clone(), token, generation, last, dedupe };
                self.ask_bus(turn, BusAsked::Finish, request);
            }
        }
    }

    pub(super) fn init_stored(&mut self, turn: &mut Turn<'_>, token: u64, reply: StoreReply) {
        let Some(init) = self.init.as_mut().filter(|init| init.token == token) else { return };
        init.is_asked = false;
        match (init.step, reply) {
            (Step::Meta, StoreReply::Gen { generation, .. }) => {
                init.generation = generation + 1;
                init.step = Step::Begin;
            }
            (Step::Advance, StoreReply::Compared { applied: true, .. }) => {
                turn.shared.store_works();
                // No row can be of a generation before the first.
                init.step = if init.generation == 1 { Step::Base } else { Step::Tail };
            }
            (Step::Tail, StoreReply::Room { meta, tail, .. }) => {
                init.survey = Survey::of(&meta, &tail, 0);
                init.step = if init.survey.needs_oldest(&meta) { Step::Oldest } else { Step::Base };
                (init.meta, init.tail) = (meta, tail);
            }
            (Step::Oldest, StoreReply::Page { oldest, .. }) => {
                init.survey = Survey::of(&init.meta, &init.tail, oldest);
                init.step = Step::Base;
            }
            (Step::Base, StoreReply::Compared { applied: true, .. }) => {
                turn.shared.store_works();
                init.step = Step::Finish;
                self.made = init.generation;
            }
            // Another was faster.
            (_, StoreReply::Compared { applied: false, .. }) => self.init_again(turn, 0),
            (step, reply) => {
                if matches!(step, Step::Meta | Step::Advance | Step::Tail | Step::Base) {
                    turn.shared.store_failed(turn.now, hint_ms(&reply));
                }
                self.init_failed(turn, hint_ms(&reply));
            }
        }
    }

    /// The same step again, after a pause.
    fn init_failed(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        let Some(init) = &mut self.init else { return };
        init.is_asked = false;
        init.retry_ms = Some(turn.now_ms() + back_off_ms(init.failures, hint_ms));
        init.failures += 1;
    }

    /// From the start, with a fresh token.
    fn init_again(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        let failures = self.init.as_ref().map_or(0, |init| init.failures);
        self.init = Some(Box::new(Init::new(turn.shared.new_token(), failures)));
        self.init_failed(turn, hint_ms);
    }

    pub(super) fn begun(&mut self, turn: &mut Turn<'_>, reply: &BusReply) {
        let Some(init) = &mut self.init else { return };
        init.is_asked = false;
        match reply {
            BusReply::Begun { answer: Begun::Ok, .. } => init.step = Step::Advance,
            BusReply::Begun { answer: Begun::Live, .. } => self.init_ends(turn),
            _ => self.init_again(turn, 0),
        }
    }

    pub(super) fn init_finished(&mut self, turn: &mut Turn<'_>, reply: &BusReply) {
        let Some(init) = &mut self.init else { return };
        init.is_asked = false;
        match reply {
            BusReply::Finished { answer: Finished::Ok, .. } => {
                turn.shared.stats.inits_total += 1;
                self.init_ends(turn);
            }
            BusReply::Finished { answer: Finished::Live, .. } => self.init_ends(turn),
            BusReply::Failed { retry_after_ms, .. } => self.init_failed(turn, *retry_after_ms),
            _ => self.init_again(turn, 0),
        }
    }

    fn init_ends(&mut self, turn: &mut Turn<'_>) {
        self.init = None;
        self.init_wanted = false;
        self.writer_may_go_on(turn);
        self.position_may_be_asked();
    }
}
