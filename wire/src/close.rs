//! The one table of close codes (RFC 6455 section 7.4, and ours from the private range 4000-4999).

/// A close code that this server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs, reason = "the table below gives each its text")]
pub enum CloseCode {
    Normal = 1000,
    GoingAway = 1001,
    Protocol = 1002,
    Unsupported = 1003,
    InvalidData = 1007,
    Policy = 1008,
    TooBig = 1009,
    Internal = 1011,
    Restart = 1012,
    TokenExpired = 4001,
    Kicked = 4003,
    TooSlow = 4008,
    RateLimit = 4029,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct CloseRow {
    /// The code.
    pub code: CloseCode,
    /// The reason text sent when the caller gives none (at most 123 bytes, RFC 6455 section 5.5).
    pub text: &'static str,
    /// Whether a client should connect again by itself.
    pub reconnect: bool,
    /// Whose fault the close is, as used for metrics and docs: `peer`, `overload`, `ours`, or `none`.
    pub fault: &'static str,
}

/// Every close code that this server sends, in ascending order.
pub const CLOSE_TABLE: [CloseRow; 13] = [
    row(CloseCode::Normal, "Goodbye", false, "none"),
    row(CloseCode::GoingAway, "Going away", true, "none"),
    row(CloseCode::Protocol, "Protocol error", false, "peer"),
    row(CloseCode::Unsupported, "Only text frames are accepted", false, "peer"),
    row(CloseCode::InvalidData, "Text is not valid UTF-8", false, "peer"),
    row(CloseCode::Policy, "Authentication failed", false, "peer"),
    row(CloseCode::TooBig, "Message too big", false, "peer"),
    row(CloseCode::Internal, "Internal error", true, "ours"),
    row(CloseCode::Restart, "Server restarts, connect again", true, "none"),
    row(CloseCode::TokenExpired, "Token expired", true, "peer"),
    row(CloseCode::Kicked, "Disconnected by an operator", false, "none"),
    row(CloseCode::TooSlow, "Reading too slowly, connect again and resume", true, "overload"),
    row(CloseCode::RateLimit, "Too many messages", true, "peer"),
];

const fn row(code: CloseCode, text: &'static str, reconnect: bool, fault: &'static str) -> CloseRow {
    CloseRow { code, text, reconnect, fault }
}

impl CloseCode {
    /// This code's row.
    #[must_use]
    pub fn row(self) -> &'static CloseRow {
        &CLOSE_TABLE[self.index()]
    }

    /// This code's position in [`CLOSE_TABLE`], for counters.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            CloseCode::Normal => 0,
            CloseCode::GoingAway => 1,
            CloseCode::Protocol => 2,
            CloseCode::Unsupported => 3,
            CloseCode::InvalidData => 4,
            CloseCode::Policy => 5,
            CloseCode::TooBig => 6,
            CloseCode::Internal => 7,
            CloseCode::Restart => 8,
            CloseCode::TokenExpired => 9,
            CloseCode::Kicked => 10,
            CloseCode::TooSlow => 11,
            CloseCode::RateLimit => 12,
        }
    }
}

/// Whether a peer may send `code` in a close frame (RFC 6455 section 7.4: 1000-1003, 1007-1014, 3000-4999).
#[must_use]
pub fn peer_may_send(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_each_code_is_its_row() {
        for (index, row) in CLOSE_TABLE.iter().enumerate() {
            assert_eq!(row.code.index(), index);
            assert!(row.text.len() <= 123);
        }
    }
}
