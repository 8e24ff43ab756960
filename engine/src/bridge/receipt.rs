//! Read receipts: to the row first, then to the room.

use super::shared::{Asked, Origin, ReceiptAsked, Turn, hint_ms};
use crate::names::{ConnectionRef, RoomId, UserId};
use crate::store::{StoreReply, StoreRequest};
use bytes::Bytes;
use roomwire_wire::id::MessagePlace;
use roomwire_wire::message::{ErrorCode, ServerMessage};
use std::sync::Arc;

const NOT_FOUND: (ErrorCode, &str) = (ErrorCode::NotFound, "the room has no such message");

/// Begins a receipt.
pub(super) fn ask(turn: &mut Turn<'_>, from: ConnectionRef, room: RoomId, user: UserId, message_id: Arc<str>) {
    let Some(MessagePlace { epoch, seq }) = MessagePlace::decode(&room, &message_id) else {
        turn.refuse(Origin::Connection(from), None, NOT_FOUND, None);
        return;
    };
    let asked = ReceiptAsked { from, room, user, message_id, generation: epoch, seq };
    let (room, user) = (asked.room.clone(), asked.user.clone());
    turn.store(Asked::Receipt(Box::new(asked)), |ticket| StoreRequest::Receipt {
        ticket,
        room,
        generation: epoch,
        seq,
        user,
    });
}

/// The store answered; whether the reader is new, so that the room has to know.
pub(super) fn answered(turn: &mut Turn<'_>, asked: &ReceiptAsked, reply: &StoreReply) -> bool {
    let origin = Origin::Connection(asked.from);
    match reply {
        StoreReply::Receipt { found: true, new, .. } => {
            turn.shared.stats.receipts_total += 1;
            *new
        }
        StoreReply::Receipt { found: false, .. } => {
            turn.refuse(origin, None, NOT_FOUND, None);
            false
        }
        reply => {
            let why = (ErrorCode::Unavailable, "the receipt cannot be stored now");
            let retry_after_ms = hint_ms(reply).max(turn.shared.retry_after_ms());
            turn.refuse(origin, None, why, Some(retry_after_ms));
            false
        }
    }
}

/// What the room is told.
pub(super) fn receipt_json(turn: &Turn<'_>, asked: &ReceiptAsked) -> Bytes {
    let mut json = Vec::new();
    ServerMessage::ReadReceipt {
        user_id: &asked.user,
        message_id: &asked.message_id,
        room_id: &asked.room,
        timestamp: turn.now.unix_ms,
    }
    .write(&mut json);
    Bytes::from(json)
}
