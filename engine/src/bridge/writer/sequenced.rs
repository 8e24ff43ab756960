//! What SEQ's answers do: each message of the batch has its seq now, was there before, or waits on.

use super::super::receiver::PENDING_MS_MAX;
use super::super::room::Room;
use super::super::shared::{BACK_OFF_MS, Origin, Turn};
use super::{PAUSE_MS, Publish, WHY_UNAVAILABLE};
use crate::bus::{BusReply, Sequenced};

impl Room {
    pub(in super::super) fn sequenced(&mut self, turn: &mut Turn<'_>, reply: BusReply) {
        let Some(writer) = &mut self.writer else { return };
        let batch = std::mem::take(&mut writer.sequencing);
        match reply {
            BusReply::Sequenced { answers, .. } => self.sequenced_each(turn, batch, answers),
            BusReply::NeedInit { .. } => {
                writer.put_back(batch);
                // What stands at a seq may be another message after the re-init.
                writer.queue.iter_mut().for_each(|publish| publish.except.clear());
                self.init_wanted = true;
            }
            // Others may take long to see to it: nobody is kept waiting for that.
            BusReply::Refused { .. } => batch.iter().for_each(|publish| self.give_up(turn, publish, WHY_UNAVAILABLE)),
            other => {
                let wait_ms = match other {
                    BusReply::Failed { retry_after_ms, .. } => u64::from(retry_after_ms),
                    _ => 0,
                };
                let (probes, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(|publish| publish.is_probe);
                writer.put_back(others);
                writer.pause_ms = turn.now_ms() + wait_ms.max(BACK_OFF_MS);
                for probe in &probes {
                    self.give_up(turn, probe, WHY_UNAVAILABLE);
                }
            }
        }
    }

    /// The generation that the bus gave a seq in, if a later one is known here.
    fn older_generation(&self, answer: &Sequenced) -> Option<u64> {
        match answer {
            Sequenced::Mine { generation, .. } => Some(*generation).filter(|generation| self.is_older(*generation)),
            _ => None,
        }
    }

    fn sequenced_each(&mut self, turn: &mut Turn<'_>, batch: Vec<Publish>, answers: Vec<Sequenced>) {
        if let Some(generation) = answers.iter().find_map(|answer| self.older_generation(answer)) {
            if let Some(writer) = &mut self.writer {
                writer.put_back(batch);
            }
            self.left_behind(turn, generation);
            return;
        }
        let now_ms = turn.now_ms();
        let mut back = Vec::new();
        let mut overdue = None;
        let mut is_waiting = false;
        let origins: Vec<Origin> = batch.iter().map(|publish| publish.origin).collect();
        for (index, (mut publish, answer)) in batch.into_iter().zip(answers).enumerate() {
            match answer {
                Sequenced::Mine { generation, seq, timestamp } => {
                    publish.timestamp = timestamp;
                    self.append(turn, (generation, seq), publish);
                }
                Sequenced::Done { generation, seq, timestamp } => {
                    turn.shared.stored_before();
                    publish.timestamp = timestamp;
                    self.ack(turn, &publish, generation, seq);
                }
                Sequenced::Perhaps { seq } => {
                    self.read_known(turn, publish.attempt, seq);
                    publish.is_reading = true;
                    back.push(publish);
                    is_waiting = true;
                }
                Sequenced::Behind => back.push(publish),
                Sequenced::Wait { generation, seq, age_ms } => {
                    if age_ms >= PENDING_MS_MAX {
                        overdue = Some((generation, seq));
                    }
                    if origins[index + 1..].contains(&publish.origin) {
                        // A later message of the same connection has its seq: this one must not come after it.
                        self.give_up(turn, &publish, "another attempt of this message is under way");
                    } else {
                        publish.not_before_ms = now_ms + PAUSE_MS;
                        back.push(publish);
                        is_waiting = true;
                    }
                }
                Sequenced::Busy { generation, seq, age_ms } => {
                    if age_ms >= PENDING_MS_MAX {
                        overdue = Some((generation, seq));
                    }
                    if let Some(writer) = &mut self.writer {
                        writer.pause_ms = now_ms + PAUSE_MS;
                    }
                    back.push(publish);
                }
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.put_back(back);
            writer.has_waiting |= is_waiting;
        }
        if let Some((generation, seq)) = overdue {
            self.void_seq(turn, generation, seq);
        }
    }
}
