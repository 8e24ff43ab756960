//! Frames of an open connection: messages, pings, the close handshake, and what breaks the protocol.

use super::Engine;
use super::connection::Phase;
use super::outbox::Kind;
use super::wheel::NEVER;
use crate::names::ConnectionId;
use roomwire_wire::close::{CLOSE_TABLE, CloseCode};
use roomwire_wire::frame::{Decoder, Input, Item, Opcode, Role, encode, encode_close};

impl Engine {
    /// Takes all frames of one read. Stops when one of them ends the connection.
    pub(super) fn frames_received(&mut self, id: ConnectionId, bytes: &mut [u8]) {
        let Some(connection) = self.connection_mut(id) else { return };
        // The decoder lends out the items while the engine acts on them, so it is taken out meanwhile.
        let mut decoder = std::mem::replace(&mut connection.decoder, Decoder::new(Role::Server));
        let mut input = Input::new(bytes);
        let limits = self.frame_limits;
        let mut completed = false;
        let mut messages = 0;
        let violation = loop {
            match decoder.next(&mut input, &limits) {
                Ok(Some(item)) => {
                    let is_message = matches!(item, Item::Text(_) | Item::Binary(_));
                    completed |= is_message;
                    messages += u64::from(is_message);
                    self.item(id, &item);
                }
                Ok(None) => break None,
                Err(violation) => break Some(violation),
            }
            if !self.is_open(id) {
                break None;
            }
        };
        self.counters.messages_received_total += messages;
        if let Some(violation) = violation {
            if let Some(limit) = violation.limit {
                self.counters.limit_crossed(limit);
            }
            return self.close(id, violation.code, violation.reason);
        }
        if self.is_open(id) {
            self.keep_decoder(id, decoder, completed);
        }
    }

    /// Puts the decoder back, and starts or stops the time that a message may take to arrive.
    fn keep_decoder(&mut self, id: ConnectionId, decoder: Decoder, completed: bool) {
        let tick = self.tick;
        let Some(connection) = self.connection_mut(id) else { return };
        let was = connection.assembling;
        connection.assembling = match decoder.is_assembling() {
            false => NEVER,
            // Only a completed message starts the time anew: pings between fragments do not.
            true if completed || was == NEVER => tick,
            true => was,
        };
        connection.decoder = decoder;
        if connection.assembling != NEVER && was == NEVER {
            self.arm(id);
        }
    }

    fn item(&mut self, id: ConnectionId, item: &Item<'_>) {
        match item {
            Item::Text(text) if self.config.echo => self.echo(id, Opcode::Text, text.as_bytes()),
            Item::Binary(bytes) if self.config.echo => self.echo(id, Opcode::Binary, bytes),
            Item::Text(text) => self.text(id, text),
            Item::Binary(_) => self.close(id, CloseCode::Unsupported, CloseCode::Unsupported.row().text),
            Item::Ping(payload) => self.ping_received(id, payload),
            Item::Pong(_) => self.pong_received(id),
            Item::Close(None) => self.close_received(id, None),
            Item::Close(Some((code, _))) => self.close_received(id, Some(*code)),
        }
    }

    fn echo(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        if self.is_within_rate(id, || None) {
            let frame = self.framer.frame(opcode, payload);
            self.send_frame(id, &frame, Kind::Kept);
        }
    }

    /// Ten pongs a second. Beyond that only the newest ping is answered, at the next tick (RFC 6455 section 5.5.3), and
    /// pings count like messages towards a flood.
    fn ping_received(&mut self, id: ConnectionId, payload: &[u8]) {
        let (tick, rate) = (self.tick, self.config.limits.messages_per_second_max);
        let Some(connection) = self.connection_mut(id) else { return };
        let waiting = connection.rare.as_ref().is_some_and(|rare| rare.pong.is_some());
        if !waiting && connection.pongs.pong(tick) {
            let frame = self.framer.frame(Opcode::Pong, payload);
            return self.send_frame(id, &frame, Kind::Ephemeral);
        }
        connection.rare_mut().pong = Some(payload.into());
        if connection.messages.excess(tick, rate) {
            return self.close_flood(id);
        }
        if !waiting {
            self.arm(id);
        }
    }

    /// Asks for nothing, but must not come in floods either.
    fn pong_received(&mut self, id: ConnectionId) {
        let (tick, rate) = (self.tick, self.config.limits.messages_per_second_max);
        if self.connection_mut(id).is_some_and(|connection| connection.messages.excess(tick, rate)) {
            self.close_flood(id);
        }
    }

    /// The newest ping beyond the rate is answered now.
    pub(super) fn late_pong(&mut self, id: ConnectionId) {
        let tick = self.tick;
        let Some(connection) = self.connection_mut(id) else { return };
        if connection.rare.as_ref().is_none_or(|rare| rare.pong.is_none()) || !connection.pongs.pong(tick) {
            return;
        }
        let Some(payload) = connection.rare.as_mut().and_then(|rare| rare.pong.take()) else { return };
        connection.tidy();
        let frame = self.framer.frame(Opcode::Pong, &payload);
        self.send_frame(id, &frame, Kind::Ephemeral);
    }

    /// The peer closes: its code is echoed, as RFC 6455 section 5.5.1 asks.
    fn close_received(&mut self, id: ConnectionId, code: Option<u16>) {
        if !self.connection(id).is_some_and(|connection| connection.phase == Phase::Open) {
            return;
        }
        let row = CLOSE_TABLE.iter().position(|row| Some(row.code as u16) == code);
        self.counters.closes_total[row.unwrap_or(CloseCode::Normal.index())] += 1;
        let answer = self.framer.raw(|out| match code {
            Some(code) => encode_close(code, "", out),
            None => encode(Opcode::Close, &[], out),
        });
        self.finish(id, &answer);
    }
}
