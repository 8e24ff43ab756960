//! What a decoder keeps of a frame or a fragmented message that has not come in full.

use super::header::{Header, Kind};
use super::text::PartialText;
use super::{FrameLimits, Opcode, Violation, mask};

/// The one box of a decoder. Its buffers grow with the bytes that came, never with the length that a header declares.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// The message under assembly.
    pub(super) message: Option<Message>,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// The payload of the control frame that is arriving; it may stand between two fragments of `message`.
    pub(super) control: Vec<u8>,
    /// What the last call gave away. Its bytes are borrowed until the next call, which frees them.
    given: Option<Completed>,
}

/// A message of one frame that comes in pieces, or of many frames.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) payload: Payload,
    /// The frames so far, the current one included.
    frames: u32,
}

#[derive(Debug)]
pub(super) enum Payload {
    Text(PartialText),
    Binary(Vec<u8>),
}

/// A frame whose header came.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    is_final: bool,
    mask: [u8; 4],
    length: u64,
    /// How much of `length` came.
    received: u64,
}

/// What a piece of payload completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completed {
    Message,
    Control(Opcode),
}

impl Partial {
    /// Frees what the last call gave away. Whether anything is left.
    pub(super) fn release(&mut self) -> bool {
        match self.given.take() {
            Some(Completed::Message) => self.message = None,
            Some(Completed::Control(_)) => self.control = Vec::new(),
            None => {}
        }
        self.is_assembling()
    }

    /// Whether something is incomplete.
    pub(super) fn is_assembling(&self) -> bool {
        self.frame.is_some() || (self.message.is_some() && self.given != Some(Completed::Message))
    }

    /// Whether the payload of a frame is arriving; otherwise a header comes next.
    pub(super) fn has_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// The payload bytes of the message under assembly.
    pub(super) fn message_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.payload.len())
    }

    /// Starts the frame of `header`, none of whose payload was taken yet.
    pub(super) fn start_frame(&mut self, header: &Header, limits: &FrameLimits) -> Result<(), Violation> {
        if let Kind::Message(opcode) = header.kind {
            self.message = Some(Message::new(opcode));
        }
        if let (Kind::Message(_) | Kind::Continuation, Some(message)) = (header.kind, &mut self.message) {
            message.count_frame(limits)?;
        }
        let Header { kind, is_final, mask, length, .. } = *header;
        self.frame = Some(Frame { kind, is_final, mask, length, received: 0 });
        Ok(())
    }

    /// Takes payload of the current frame from the start of `bytes`. Gives how much it took and what that completed.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> Result<(usize, Option<Completed>), Violation> {
        let Some(frame) = &mut self.frame else { return Ok((0, None)) };
        let missing = usize::try_from(frame.length - frame.received).unwrap_or(usize::MAX);
        let taken = missing.min(bytes.len());
        let piece = &mut bytes[..taken];
        mask::apply(piece, frame.mask, (frame.received % 4) as usize);
        frame.received += taken as u64;
        match (frame.kind, &mut self.message) {
            (Kind::Message(_) | Kind::Continuation, Some(message)) => message.payload.push(piece)?,
            _ => self.control.extend_from_slice(piece),
        }
        if frame.received < frame.length {
            return Ok((taken, None));
        }
        self.given = match frame.kind {
            Kind::Control(opcode) => Some(Completed::Control(opcode)),
            Kind::Message(_) | Kind::Continuation => frame.is_final.then_some(Completed::Message),
        };
        self.frame = None;
        Ok((taken, self.given))
    }
}

impl Message {
    fn new(opcode: Opcode) -> Message {
        let payload = match opcode {
            Opcode::Text => Payload::Text(PartialText::default()),
            _ => Payload::Binary(Vec::new()),
        };
        Message { payload, frames: 0 }
    }

    fn count_frame(&mut self, limits: &FrameLimits) -> Result<(), Violation> {
        self.frames = self.frames.saturating_add(1);
        if self.frames > limits.fragments_max {
            return Err(Violation::too_big("Message has too many fragments", "fragments_max"));
        }
        Ok(())
    }
}

impl Payload {
    fn len(&self) -> usize {
        match self {
            Payload::Text(text) => text.len(),
            Payload::Binary(bytes) => bytes.len(),
        }
    }

    /// The buffers double when they are full, so that what is kept costs at most twice the bytes received, and each
    /// byte is moved a bounded number of times however small the pieces are.
    fn push(&mut self, piece: &[u8]) -> Result<(), Violation> {
        match self {
            Payload::Text(text) => text.push(piece).map_err(|_| Violation::bad_text()),
            Payload::Binary(bytes) => {
                bytes.extend_from_slice(piece);
                Ok(())
            }
        }
    }
}
