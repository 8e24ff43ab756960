//! What time brings: each connection's deadlines by the wheel, and the shard's own by the tick.

use super::Engine;
use super::closing::LINGER_TICKS;
use super::connection::{Connection, Phase};
use super::outbox::Kind;
use super::wheel::{NEVER, ticks};
use crate::mesh::ToBridge;
use crate::names::ConnectionId;
use crate::stats::ShardStats;
use roomwire_wire::close::CloseCode;
use roomwire_wire::handshake::Refusal;
use std::rc::Rc;

/// Milliseconds between two reports of the shard's figures.
pub(super) const STATS_MS: u64 = 1_000;
/// Ticks between two looks at the age of what waits to be sent.
const OVERDUE_TICKS: u32 = 5;

impl Engine {
    /// Does what is due by now.
    pub(super) fn deadlines(&mut self) {
        while let Some((tick, slots)) = self.wheel.turn(self.tick) {
            for slot in &slots {
                let Some(connection) = self.connections.get_mut(*slot).filter(|known| known.wheel == tick) else {
                    continue;
                };
                connection.wheel = NEVER;
                let id = connection.id;
                self.due(id);
                self.arm(id);
            }
            self.wheel.give_back(tick, slots);
        }
        self.end_graces();
        self.recount();
        self.close_overdue();
    }

    /// Puts the connection into the wheel, unless it comes up early enough as it is.
    pub(super) fn arm(&mut self, id: ConnectionId) {
        let Some(due) = self.connection(id).map(|connection| self.next_due(connection)) else { return };
        let Engine { connections, wheel, .. } = self;
        if let Some(connection) = connections.get_mut(id.slot).filter(|connection| due < connection.wheel) {
            connection.wheel = wheel.insert(id.slot, due);
        }
    }

    pub(super) fn heartbeat_ticks(&self) -> u32 {
        self.config.heartbeat_ms.div_ceil(super::wheel::TICK_MS as u32)
    }

    fn next_due(&self, connection: &Connection) -> u32 {
        let limits = &self.config.limits;
        match connection.phase {
            Phase::Handshake => after(connection.mark, limits.handshake_ms_max),
            Phase::Open => {
                let mut due = connection.expires.min(connection.mark).min(self.heartbeat_due(connection));
                if connection.assembling != NEVER {
                    due = due.min(after(connection.assembling, limits.assembly_ms_max));
                }
                if let Some(rare) = connection.rare.as_deref() {
                    due = due.min(if rare.pong.is_some() { self.tick + 1 } else { NEVER });
                    due = due.min(if rare.ask_at != 0 { rare.ask_at } else { NEVER });
                }
                due
            }
            Phase::Closing | Phase::Shut => connection.mark + LINGER_TICKS,
            Phase::Dead => NEVER,
        }
    }

    fn heartbeat_due(&self, connection: &Connection) -> u32 {
        let heartbeat_ticks = self.heartbeat_ticks();
        if heartbeat_ticks == 0 {
            return NEVER;
        }
        connection.heard.saturating_add(if connection.pinged { 2 * heartbeat_ticks } else { heartbeat_ticks })
    }

    /// The connection came up in the wheel: perhaps something is due.
    fn due(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        let tick = self.tick;
        match connection.phase {
            Phase::Handshake if self.next_due(connection) <= tick => {
                self.counters.limit_crossed("handshake_ms_max");
                self.refuse(id, Refusal::RequestTimeout);
            }
            Phase::Open => self.due_open(id),
            Phase::Closing | Phase::Shut if self.next_due(connection) <= tick => self.drop_now(id),
            _ => {}
        }
    }

    fn due_open(&mut self, id: ConnectionId) {
        self.late_pong(id);
        self.retry_page(id);
        let Some(connection) = self.connection(id) else { return };
        let tick = self.tick;
        let assembly_ms_max = self.config.limits.assembly_ms_max;
        if connection.assembling != NEVER && after(connection.assembling, assembly_ms_max) <= tick {
            self.counters.limit_crossed("assembly_ms_max");
            return self.close(id, CloseCode::Policy, "The message took too long to arrive");
        }
        if connection.expires <= tick {
            return self.close(id, CloseCode::TokenExpired, CloseCode::TokenExpired.row().text);
        }
        if connection.mark <= tick {
            return self.close(id, CloseCode::Restart, CloseCode::Restart.row().text);
        }
        if self.heartbeat_due(connection) <= tick {
            self.heartbeat(id);
        }
    }

    /// Nothing was heard for a heartbeat: a ping; nothing for another: the peer is gone.
    fn heartbeat(&mut self, id: ConnectionId) {
        let (tick, heartbeat_ticks) = (self.tick, self.heartbeat_ticks());
        let Some(connection) = self.connection_mut(id) else { return };
        if connection.pinged {
            self.counters.peers_vanished_total += 1;
            return self.drop_now(id);
        }
        connection.pinged = true;
        // A ping that comes late, after a stall, is given as much time for its answer as any other.
        connection.heard = connection.heard.max(tick.saturating_sub(heartbeat_ticks));
        let ping = Rc::clone(&self.ping);
        self.send_frame(id, &ping, Kind::Control);
    }

    /// Closes connections whose queue grew too old. A look at what has a queue, twice a second, costs less than a
    /// deadline for each delivery.
    fn close_overdue(&mut self) {
        let queue_ms_max = self.config.limits.queue_ms_max;
        if queue_ms_max == 0 || self.tick < self.overdue_at_tick {
            return;
        }
        self.overdue_at_tick = self.tick + OVERDUE_TICKS;
        let mut overdue = std::mem::take(&mut self.overdue);
        self.outboxes.overdue(ticks(queue_ms_max), &mut overdue);
        for id in overdue.drain(..) {
            if self.is_open(id) {
                self.counters.limit_crossed("queue_ms_max");
                self.close_slow(id);
            }
        }
        self.overdue = overdue;
    }

    /// Once a second: the shard's figures, which also prove that it turns.
    pub(super) fn tell_stats(&mut self) {
        let now_ms = self.now.mono_ms();
        if now_ms < self.stats_at_ms {
            return;
        }
        self.stats_at_ms = now_ms + STATS_MS;
        let stats = ShardStats { counters: self.counters.clone(), fanout_us: self.fanout_us.clone() };
        self.effects.bridge.push(ToBridge::Stats { shard: self.shard, stats: Box::new(stats) });
    }
}

/// `limit_ms` after `since`; a limit of 0 never strikes.
fn after(since: u32, limit_ms: u32) -> u32 {
    if limit_ms == 0 { NEVER } else { since.saturating_add(ticks(limit_ms)) }
}
