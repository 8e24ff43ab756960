//! A room that the bus does not hold: its head is what the store has, if that can be told without deciding anything.
//!
//! A join needs a position; a receiver that knows its place only looks whether the bus that is gone said more. Either
//! waits for the room's turn ([`super::super::pace`]). Where somebody has to decide, a generation is begun.

use super::super::init::Survey;
use super::super::pace::Haste;
use super::super::room::Room;
use super::super::shared::{Purpose, Turn, hint_ms};
use super::{Position, Receiver, TAIL_ROWS, oldest_request};
use crate::store::{RoomMeta, Row, StoreReply, StoreRequest};

/// And how many tell whether there is more than a receiver has, with the room's facts.
const GLANCE_ROWS: u32 = 1;

/// The store's view of a room that is not live on the bus.
#[derive(Debug, Default)]
pub(super) struct ColdRead {
    /// Of the HEAD that was answered "not live".
    number: u64,
    /// The server that answered, if it had no trace of the room.
    server: Option<u64>,
    /// Asked by a receiver that knows its place, and wants to know only whether there is more.
    is_glance: bool,
    step: Step,
    meta: RoomMeta,
    tail: Vec<Row>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// The room waits for its turn.
    #[default]
    Waits,
    /// The store is being asked.
    Asked,
    /// Nothing read was undecided: this is the room's head, if the bus says once more that the room is not live.
    Read(u64),
}

impl ColdRead {
    /// The latest generation that has a base, and that base.
    fn latest(&self) -> (u64, u64) {
        self.meta.bases.last().copied().unwrap_or((0, 1))
    }

    /// Nothing is left of the room but that it was there.
    fn is_empty(&self) -> bool {
        self.tail.is_empty() && self.meta.generation > 0
    }

    /// The highest seq that the store knows anything of.
    fn last_heard_of(&self) -> u64 {
        let rows = self.tail.iter().map(|row| row.seq);
        let bases = self.meta.bases.iter().map(|(_, base)| base.saturating_sub(1));
        rows.chain(bases).chain(self.meta.voids.last().copied()).max().unwrap_or(0)
    }
}

impl Receiver {
    /// The store is being asked for a room that is not live, or will be when it is the room's turn.
    pub(in crate::bridge) fn is_looking(&self) -> bool {
        self.reading_cold.as_ref().is_some_and(|cold| !matches!(cold.step, Step::Read(_)))
    }
}

impl Room {
    /// The bus does not hold the room; `server` is the one that has no trace of it.
    pub(in crate::bridge) fn head_needs_init(&mut self, turn: &mut Turn<'_>, number: u64, server: Option<u64>) {
        if self.init.is_none() && (self.has_unresolved() || self.has_queue()) {
            self.init_wanted = true;
        }
        if let Some(cold) = self.receiver.reading_cold.take_if(|cold| matches!(cold.step, Step::Read(_))) {
            self.cold_confirmed(turn, *cold);
            return;
        }
        let is_asking = self.receiver.position == Position::Asking;
        if is_asking && (self.init_wanted || self.init.as_ref().is_some_and(|init| init.failures == 0)) {
            // The head is asked for again when the room is live, or its initialisation has failed.
            self.receiver.position = Position::Unknown;
            return;
        }
        // One that knows its place may have missed messages of a bus that is gone: the store tells.
        let may_lack = self.receiver.is_known() && self.receiver.listens && self.init.is_none() && !self.init_wanted;
        // But not if the same server had no trace of the room when the store was last read: nothing can have been said on
        // it since. In a split the other server can have, and strict mode keeps that.
        let is_sure = server.is_some() && server == self.receiver.absent_on && !turn.shared.config.strict;
        if may_lack && is_sure && !self.someone_is_beyond() {
            self.receiver.checked = self.receiver.checked.max(number);
            return;
        }
        if (is_asking || may_lack) && self.receiver.reading_cold.is_none() {
            let is_glance = !is_asking;
            self.receiver.reading_cold = Some(Box::new(ColdRead { number, server, is_glance, ..ColdRead::default() }));
        }
    }

    /// Another node has begun the room, while this one perhaps waited for its turn to do so, or to look at it.
    pub(super) fn begun_elsewhere(&mut self, turn: &mut Turn<'_>) {
        let receiver = &mut self.receiver;
        if receiver.reading_cold.take_if(|cold| cold.step == Step::Waits).is_some()
            && receiver.position == Position::Asking
        {
            receiver.position = Position::Unknown;
        }
        if self.init.is_none() && std::mem::take(&mut self.init_wanted) {
            self.writer_may_go_on(turn);
        }
    }

    /// Asks the store, when it is the room's turn.
    pub(in crate::bridge) fn pump_cold(&mut self, turn: &mut Turn<'_>) {
        let Some(cold) = self.receiver.reading_cold.as_ref().filter(|cold| cold.step == Step::Waits) else { return };
        let is_short = cold.is_glance || turn.shared.config.cluster;
        let haste = if cold.is_glance && !self.someone_is_beyond() { Haste::Anytime } else { Haste::Awaited };
        if !turn.shared.pace.ask(&self.id, &mut self.permit, haste) {
            return;
        }
        if let Some(cold) = &mut self.receiver.reading_cold {
            cold.step = Step::Asked;
        }
        let window = if is_short { GLANCE_ROWS } else { TAIL_ROWS };
        self.ask_store(turn, Purpose::Cold, |ticket, room| StoreRequest::ReadRoom { ticket, room, window });
    }

    pub(in crate::bridge) fn cold_read(&mut self, turn: &mut Turn<'_>, reply: StoreReply) {
        let Some(mut cold) = self.receiver.reading_cold.take_if(|cold| cold.step == Step::Asked) else { return };
        let StoreReply::Room { meta, tail, .. } = reply else {
            self.cold_failed(turn, hint_ms(&reply));
            return;
        };
        (cold.meta, cold.tail) = (meta, tail);
        if cold.is_glance {
            self.glanced(&cold);
            return;
        }
        let survey = Survey::of(&cold.meta, &cold.tail, 0);
        let is_cluster = turn.shared.config.cluster;
        let needs_oldest = if is_cluster { cold.is_empty() } else { survey.needs_oldest(&cold.meta) };
        if needs_oldest {
            self.receiver.reading_cold = Some(cold);
            self.ask_store(turn, Purpose::ColdOldest, oldest_request);
        } else {
            self.cold_surveyed(turn, cold, &survey);
        }
    }

    /// What a receiver that knows its place saw of a room that the bus has lost: a generation is made only if something
    /// is there that it does not have, be it a row that no generation will keep.
    fn glanced(&mut self, cold: &ColdRead) {
        let (meta, receiver) = (&cold.meta, &self.receiver);
        if !receiver.is_known() {
            // The position is asked for anew.
            self.receiver.position = Position::Unknown;
            return;
        }
        let last = cold.last_heard_of();
        // A client from another node may know a generation in which nothing was said yet.
        let is_behind = meta.generation > receiver.generation && (receiver.is_stale || self.someone_is_beyond());
        if last >= receiver.next || is_behind {
            self.init_wanted = true;
        } else {
            self.receiver.checked = self.receiver.checked.max(cold.number);
            self.receiver.absent_on = cold.server;
        }
    }

    pub(in crate::bridge) fn cold_oldest(&mut self, turn: &mut Turn<'_>, reply: &StoreReply) {
        let Some(cold) = self.receiver.reading_cold.take_if(|cold| cold.step == Step::Asked) else { return };
        let StoreReply::Page { oldest, .. } = reply else {
            self.cold_failed(turn, hint_ms(reply));
            return;
        };
        let survey = Survey::of(&cold.meta, &cold.tail, *oldest);
        self.cold_surveyed(turn, cold, &survey);
    }

    fn cold_failed(&mut self, turn: &mut Turn<'_>, hint_ms: u32) {
        if self.receiver.position == Position::Asking {
            self.position_failed(turn, hint_ms);
            self.refuse_history(turn, hint_ms);
        }
        self.check_failed(turn);
    }

    fn cold_surveyed(&mut self, turn: &mut Turn<'_>, mut cold: Box<ColdRead>, survey: &Survey) {
        if self.receiver.position != Position::Asking {
            return;
        }
        // A generation without a base is one that is being made, or was given up: what lies behind its beginning may be
        // left out of it by who makes it, though it is here already.
        let (latest, base) = cold.latest();
        let is_being_made = latest != cold.meta.generation;
        // In a cluster the last row tells enough. All below the latest generation's base was decided when that began. What
        // came after may have been pending on the bus that is gone, and a void of it on its way to the store: only another
        // generation keeps that out, be the row one that it will not keep. A bus in this process takes its voids along:
        // what is there without a gap was decided.
        let (is_decided, last) = match turn.shared.config.cluster {
            true => (cold.last_heard_of().max(survey.last) < base, base.saturating_sub(1)),
            false => (survey.missing.is_empty(), survey.last),
        };
        if is_decided && !is_being_made {
            cold.step = Step::Read(last);
            self.receiver.reading_cold = Some(cold);
            self.want_head();
            return;
        }
        // Only an initialisation may decide what nobody decided yet.
        if self.init.is_some() {
            self.position_failed(turn, 0);
            self.refuse_history(turn, 0);
        } else {
            self.receiver.position = Position::Unknown;
            self.init_wanted = true;
        }
    }

    /// The room was not live before the read, nor after.
    fn cold_confirmed(&mut self, turn: &mut Turn<'_>, cold: ColdRead) {
        if let (Position::Asking, Step::Read(last)) = (self.receiver.position, cold.step) {
            let (generation, base) = cold.latest();
            self.settle(turn, (generation, base, last), Some(cold.meta.bases.into()));
            self.receiver.absent_on = cold.server;
        }
    }
}
