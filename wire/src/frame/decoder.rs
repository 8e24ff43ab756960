//! The decoder: takes what a read brought, gives whole messages and control frames.

use super::header::{self, HEADER_BYTES_MAX, Header, Kind};
use super::partial::{Completed, Partial, Payload};
use super::{FrameLimits, Input, Item, Opcode, Role, Violation};
use crate::close::peer_may_send;

/// The decoder of one connection. Between two frames it owns no heap memory; a partial frame or message is kept in
/// one box that is freed when the message is complete (with the call after the one that gave it, since the item
/// borrows it).
#[derive(Debug)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    /// The beginning of a header that the end of an input cut off.
    header: [u8; HEADER_BYTES_MAX - 1],
    header_length: u8,
    role: Role,
    /// The peer's close frame came: RFC 6455 section 5.5.1 lets nothing follow it.
    closed: bool,
}

/// Where the next item lies.
enum Found {
    /// A whole frame, unmasked, at this place of the input.
    InInput { opcode: Opcode, start: usize, end: usize },
    /// In the box.
    InPartial(Completed),
}

impl Decoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub fn new(role: Role) -> Decoder {
        Decoder { partial: None, header: [0; HEADER_BYTES_MAX - 1], header_length: 0, role, closed: false }
    }

    /// Takes the next item from `input`; `None` when the input is used up and what is left of a frame is kept.
    ///
    /// # Errors
    /// [`Violation`] as soon as it can be known: bad UTF-8 while fragments still arrive, too big from the header.
    /// After an error the decoder must not be used again.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        limits: &FrameLimits,
    ) -> Result<Option<Item<'a>>, Violation> {
        self.release();
        if self.closed {
            input.at = input.bytes.len();
            return Ok(None);
        }
        let Some(found) = self.find(input, limits)? else { return Ok(None) };
        let item = match found {
            Found::InInput { opcode, start, end } => item(opcode, &input.bytes[start..end])?,
            Found::InPartial(completed) => {
                let Some(partial) = &self.partial else { return Ok(None) };
                kept_item(partial, completed)?
            }
        };
        if let Item::Close(_) = item {
            self.closed = true;
        }
        Ok(Some(item))
    }

    /// Whether part of a frame or of a fragmented message is being kept, for the limit on assembly time.
    #[must_use]
    pub fn is_assembling(&self) -> bool {
        !self.closed && (self.header_length > 0 || self.partial.as_ref().is_some_and(|partial| partial.is_assembling()))
    }

    /// Frees what the last call gave away.
    fn release(&mut self) {
        if self.partial.as_mut().is_some_and(|partial| !partial.release()) {
            self.partial = None;
        }
    }

    /// Goes through the input, frame by frame, until an item is whole.
    fn find(&mut self, input: &mut Input<'_>, limits: &FrameLimits) -> Result<Option<Found>, Violation> {
        loop {
            if let Some(partial) = self.partial.as_mut().filter(|partial| partial.has_frame()) {
                let (taken, completed) = partial.take(&mut input.bytes[input.at..])?;
                input.at += taken;
                if let Some(completed) = completed {
                    return Ok(Some(Found::InPartial(completed)));
                }
                if partial.has_frame() {
                    return Ok(None);
                }
            }
            let Some(header) = self.take_header(input)? else { return Ok(None) };
            self.check(&header, limits)?;
            if let Some(found) = self.whole_frame(&header, input) {
                return Ok(Some(found));
            }
            self.partial.get_or_insert_default().start_frame(&header, limits)?;
        }
    }

    /// Takes a header from the input; keeps its beginning if it is not complete.
    fn take_header(&mut self, input: &mut Input<'_>) -> Result<Option<Header>, Violation> {
        let rest = &input.bytes[input.at..];
        if self.header_length == 0 {
            if let Some(header) = header::parse(rest, self.role)? {
                input.at += header.bytes;
                return Ok(Some(header));
            }
            // Not complete, so shorter than the longest header.
            self.header[..rest.len()].copy_from_slice(rest);
            self.header_length = rest.len() as u8;
            input.at = input.bytes.len();
            return Ok(None);
        }
        let kept = usize::from(self.header_length);
        let added = rest.len().min(HEADER_BYTES_MAX - kept);
        let mut joined = [0; HEADER_BYTES_MAX];
        joined[..kept].copy_from_slice(&self.header[..kept]);
        joined[kept..kept + added].copy_from_slice(&rest[..added]);
        if let Some(header) = header::parse(&joined[..kept + added], self.role)? {
            // It was not complete with the kept bytes alone, so it is longer than they are.
            input.at += header.bytes - kept;
            self.header_length = 0;
            return Ok(Some(header));
        }
        self.header[kept..kept + added].copy_from_slice(&rest[..added]);
        self.header_length += added as u8;
        input.at += added;
        Ok(None)
    }

    /// The rules that tie a frame to the frames before it, and the size limit.
    fn check(&self, header: &Header, limits: &FrameLimits) -> Result<(), Violation> {
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        match (header.kind, message) {
            (Kind::Control(_), _) => return Ok(()),
            (Kind::Continuation, None) => return Err(Violation::protocol("Continuation of no message")),
            (Kind::Message(_), Some(_)) => return Err(Violation::protocol("New message within a fragmented one")),
            (Kind::Continuation, Some(_)) | (Kind::Message(_), None) => {}
        }
        let so_far = self.partial.as_ref().map_or(0, |partial| partial.message_bytes());
        if header.length.saturating_add(so_far as u64) > limits.message_bytes_max as u64 {
            return Err(Violation::too_big("Message too big", "message_bytes_max"));
        }
        Ok(())
    }

    /// The short way, which almost every frame goes: a frame that is an item of its own and lies in the input in full
    /// is unmasked where it is.
    fn whole_frame(&self, header: &Header, input: &mut Input<'_>) -> Option<Found> {
        let opcode = match header.kind {
            Kind::Control(opcode) => opcode,
            Kind::Message(opcode) if header.is_final => opcode,
            Kind::Message(_) | Kind::Continuation => return None,
        };
        let start = input.at;
        let length = usize::try_from(header.length).ok().filter(|&length| length <= input.bytes.len() - start)?;
        let end = start + length;
        if header.mask != [0; 4] {
            super::mask::apply(&mut input.bytes[start..end], header.mask, 0);
        }
        input.at = end;
        Some(Found::InInput { opcode, start, end })
    }
}

/// The item that a whole payload is.
fn item(opcode: Opcode, payload: &[u8]) -> Result<Item<'_>, Violation> {
    Ok(match opcode {
        Opcode::Text => Item::Text(simdutf8::basic::from_utf8(payload).map_err(|_| Violation::bad_text())?),
        Opcode::Binary => Item::Binary(payload),
        Opcode::Ping => Item::Ping(payload),
        Opcode::Pong => Item::Pong(payload),
        Opcode::Close => Item::Close(close_body(payload)?),
    })
}

/// The item that came in pieces.
fn kept_item(partial: &Partial, completed: Completed) -> Result<Item<'_>, Violation> {
    match (completed, &partial.message) {
        (Completed::Control(opcode), _) => item(opcode, &partial.control),
        (Completed::Message, Some(message)) => match &message.payload {
            Payload::Text(text) => text.as_str().map(Item::Text).map_err(|_| Violation::bad_text()),
            Payload::Binary(bytes) => Ok(Item::Binary(bytes)),
        },
        (Completed::Message, None) => Err(Violation::protocol("Continuation of no message")),
    }
}

/// The code and the reason of a close frame (RFC 6455 sections 5.5.1 and 7.4).
fn close_body(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    let Some((&code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::protocol("Close frame of one byte")) };
    };
    let code = u16::from_be_bytes(code);
    if !peer_may_send(code) {
        return Err(Violation::protocol("Invalid close code"));
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| Violation::bad_text())?;
    Ok(Some((code, reason)))
}
