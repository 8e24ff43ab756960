//! Frames as a client reads them; `swarm` calls it.
//!
//! Not `roomwire_wire::frame::Decoder`: the load shares the machine with the server, so nothing is validated that the
//! ledger does not need; and a decoder of its own does not repeat a mistake of the server's.

/// The longest frame that a server may send: a page of 1,000 long messages fits.
pub(crate) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Text(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The close code, if one was given.
    Close(Option<u16>),
}

/// What lies at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// A frame, and how many bytes it took.
    Frame(Frame<'a>, usize),
    /// The frame is not complete yet.
    More,
    /// The server did something that this client does not take: masked, fragmented, binary or endless frames.
    Broken(&'static str),
}

/// Reads the frame at the start of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Step<'_> {
    let [first, second, rest @ ..] = bytes else { return Step::More };
    if second & 0x80 != 0 {
        return Step::Broken("a masked frame from the server");
    }
    let (length, header) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(long) => (u64::from(u16::from_be_bytes(*long)), 4),
            None => return Step::More,
        },
        127 => match rest.first_chunk::<8>() {
            Some(long) => (u64::from_be_bytes(*long), 10),
            None => return Step::More,
        },
        short => (u64::from(short), 2),
    };
    let length = match usize::try_from(length) {
        Ok(length) if length <= FRAME_BYTES_MAX => length,
        _ => return Step::Broken("a frame beyond 16 MiB"),
    };
    let end = header + length;
    let Some(payload) = bytes.get(header..end) else { return Step::More };
    match first {
        0x81 => Step::Frame(Frame::Text(payload), end),
        0x88 => Step::Frame(Frame::Close(payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code))), end),
        0x89 => Step::Frame(Frame::Ping(payload), end),
        0x8a => Step::Frame(Frame::Pong, end),
        _ => Step::Broken("a fragmented, binary or reserved frame from the server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(short as u8),
            medium @ 126..=65_535 => {
                out.push(126);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_frame_is_read_at_every_length_form_and_wants_more_at_every_cut() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let payload = vec![b'a'; length];
            let bytes = server_frame(0x81, &payload);
            assert_eq!(read(&bytes), Step::Frame(Frame::Text(&payload), bytes.len()));
            for cut in (0..bytes.len()).filter(|cut| *cut < 12 || *cut + 2 > bytes.len()) {
                assert_eq!(read(&bytes[..cut]), Step::More, "length {length}, cut at {cut}");
            }
        }
    }

    #[test]
    fn only_the_first_of_two_frames_is_taken() {
        let mut bytes = server_frame(0x89, b"hi");
        bytes.extend(server_frame(0x88, &[0x0f, 0xa8, b'x']));
        assert_eq!(read(&bytes), Step::Frame(Frame::Ping(b"hi"), 4));
        assert_eq!(read(&bytes[4..]), Step::Frame(Frame::Close(Some(4008)), 5));
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        assert!(matches!(read(&[0x81, 0x81, 0, 0, 0, 0, 0]), Step::Broken(_)));
        assert!(matches!(read(&[0x01, 0]), Step::Broken(_)));
        assert!(matches!(read(&[0x82, 0]), Step::Broken(_)));
        assert!(matches!(read(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]), Step::Broken(_)));
    }
}
