//! The floor: the least that a fan-out can cost on this machine. A server of our own that knows no JSON, no tokens, no
//! limits and no order across rooms: it takes frames off a socket and writes each one to every member of the room, one
//! `write` for each delivery. What it costs is the kernel and loopback; what a real server costs beyond is its own.
//! `runs::floor` loads it like any other.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use roomwire_wire::frame::{Opcode, encode};

use crate::swarm::UPGRADED;
use crate::sys::Epoll;

/// The token of the listener in the epoll set.
const LISTENER: u64 = u64::MAX;
const READ_BYTES: usize = 256 * 1024;

struct Client {
    /// `None` once it has ended.
    stream: Option<TcpStream>,
    is_open: bool,
    /// Half a head or half a frame.
    input: Vec<u8>,
}

/// The server. It never ends by itself.
struct Floor {
    listener: TcpListener,
    epoll: Epoll,
    clients: Vec<Client>,
    rooms: HashMap<Vec<u8>, Vec<usize>>,
}

/// Serves on `addr` until the process is ended.
pub(crate) fn serve(addr: SocketAddr) -> Result<bool> {
    let listener = TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(listener.as_fd(), LISTENER, false)?;
    let mut floor = Floor { listener, epoll, clients: Vec::new(), rooms: HashMap::new() };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = floor.epoll.wait(Duration::from_secs(60))?;
        for at in 0..count {
            match floor.epoll.ready(at) {
                Some(ready) if ready.token == LISTENER => floor.accept()?,
                Some(ready) => floor.read(ready.token as usize, &mut buffer),
                None => {}
            }
        }
    }
}

impl Floor {
    fn accept(&mut self) -> Result<()> {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.epoll.add(stream.as_fd(), self.clients.len() as u64, false)?;
            self.clients.push(Client { stream: Some(stream), is_open: false, input: Vec::new() });
        }
        Ok(())
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Some(stream) = &mut client.stream else { return };
        match stream.read(buffer) {
            Ok(count) if count > 0 => client.input.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            _ => client.stream = None,
        }
        let input = std::mem::take(&mut client.input);
        let taken = self.take(index, &input);
        self.clients[index].input = input[taken..].to_vec();
    }

    /// Takes the head and every whole frame from `input`, and says how much that was.
    fn take(&mut self, index: usize, input: &[u8]) -> usize {
        let mut taken = 0;
        if !self.clients[index].is_open {
            let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else { return 0 };
            self.clients[index].is_open = true;
            self.write(index, UPGRADED);
            self.say(index, br#"{"type":"connected"}"#);
            taken = end + 4;
        }
        while let Some((text, length)) = unmasked(&input[taken..]) {
            taken += length;
            self.hear(index, &text);
        }
        taken
    }

    fn hear(&mut self, index: usize, text: &[u8]) {
        let room = value(text, b"\"roomId\":\"");
        if text.starts_with(br#"{"type":"join_room""#) {
            self.rooms.entry(room.to_vec()).or_default().push(index);
        } else if text.starts_with(br#"{"type":"chat_message""#) {
            // Once for the room, whatever its size; what came goes out as it is.
            let mut frame = Vec::new();
            encode(Opcode::Text, text, &mut frame);
            let members = self.rooms.get(room).cloned().unwrap_or_default();
            for member in members {
                self.write(member, &frame);
            }
        } else if text.starts_with(br#"{"type":"ping""#) {
            self.say(index, br#"{"type":"pong"}"#);
        }
    }

    fn say(&mut self, index: usize, text: &[u8]) {
        let mut frame = Vec::new();
        encode(Opcode::Text, text, &mut frame);
        self.write(index, &frame);
    }

    /// One call. A reader whose buffer is full is cut off: the ledger tells, and the floor stays one write for each.
    fn write(&mut self, index: usize, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Some(stream) = &mut client.stream else { return };
        if stream.write(bytes).ok() != Some(bytes.len()) {
            client.stream = None;
        }
    }
}

/// The first frame of a client, unmasked, and how long it was; `None` if it is not complete. The bench's own frames are
/// all there is: one piece, masked, under 64 KiB.
fn unmasked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (length, header) = match bytes.get(1)? & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
        short => (usize::from(short), 2),
    };
    let mask: [u8; 4] = *bytes.get(header..)?.first_chunk()?;
    let payload = bytes.get(header + 4..header + 4 + length)?;
    let text = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((text, header + 4 + length))
}

/// What stands in quotes behind `name`.
fn value<'a>(text: &'a [u8], name: &[u8]) -> &'a [u8] {
    let start = text.windows(name.len()).position(|window| window == name).map_or(text.len(), |at| at + name.len());
    let rest = &text[start..];
    &rest[..rest.iter().position(|byte| *byte == b'"').unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use roomwire_wire::frame::encode_masked;

    use super::*;

    #[test]
    fn frames_are_unmasked_at_both_lengths_and_wanted_whole() {
        for length in [0, 125, 126, 3_000] {
            let text = vec![b'a'; length];
            let mut frame = Vec::new();
            encode_masked(Opcode::Text, &text, [1, 2, 3, 4], &mut frame);
            assert_eq!(unmasked(&frame), Some((text, frame.len())));
            assert_eq!(unmasked(&frame[..frame.len() - 1]), None);
        }
        assert_eq!(unmasked(&[]), None);
    }

    #[test]
    fn a_value_is_what_stands_in_quotes() {
        assert_eq!(value(br#"{"type":"x","roomId":"r-1","content":"y"}"#, b"\"roomId\":\""), b"r-1");
        assert_eq!(value(b"{}", b"\"roomId\":\""), b"");
    }
}
