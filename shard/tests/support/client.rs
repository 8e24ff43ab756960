//! A WebSocket client of a hundred lines on a blocking socket: the tests decide each byte that it writes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects, and upgrades as the user of that name.
    pub(crate) fn connect(address: SocketAddr, user: &str) -> io::Result<Client> {
        let mut client = Client::open(address)?;
        client.socket.write_all(upgrade(user).as_bytes())?;
        client.finish_upgrade()?;
        Ok(client)
    }

    /// Connects, and sends nothing.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Client> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { socket, unread: Vec::new() })
    }

    /// Reads the answer to the upgrade.
    pub(crate) fn finish_upgrade(&mut self) -> io::Result<()> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more()?;
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
        }
        Ok(())
    }

    /// Sends one text message.
    pub(crate) fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        self.socket.write_all(&frame(payload))
    }

    /// Waits for a ping.
    pub(crate) fn await_ping(&mut self) -> io::Result<()> {
        loop {
            match self.take_frame() {
                Some((9, _)) => return Ok(()),
                Some(_) => {}
                None => self.read_more()?,
            }
        }
    }

    /// Sends an unasked pong.
    pub(crate) fn pong(&mut self) -> io::Result<()> {
        self.socket.write_all(&[0x8a, 0x80, 0, 0, 0, 0])
    }

    /// The payload of the next data frame. Answers no pings: the tests are shorter than a heartbeat.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<u8>> {
        loop {
            while let Some((opcode, payload)) = self.take_frame() {
                match opcode {
                    1 | 2 => return Ok(payload),
                    8 => return Err(io::Error::other(format!("closed: {payload:?}"))),
                    _ => {}
                }
            }
            self.read_more()?;
        }
    }

    /// Reads until a message contains `text`.
    pub(crate) fn receive_until(&mut self, text: &str) -> io::Result<String> {
        loop {
            let message = String::from_utf8_lossy(&self.receive()?).into_owned();
            if message.contains(text) {
                return Ok(message);
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (opcode, short) = (*self.unread.first()? & 0x0f, *self.unread.get(1)?);
        let (header, length) = match short {
            126 => (4, usize::from(u16::from_be_bytes(self.unread.get(2..4)?.try_into().ok()?))),
            127 => (10, usize::try_from(u64::from_be_bytes(self.unread.get(2..10)?.try_into().ok()?)).ok()?),
            length => (2, usize::from(length)),
        };
        if self.unread.len() < header + length {
            return None;
        }
        let payload = self.unread[header..header + length].to_vec();
        self.unread.drain(..header + length);
        Some((opcode, payload))
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 65_536];
        match self.socket.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.unread.extend_from_slice(&chunk[..length]);
                Ok(())
            }
            // Whoever stops and continues the tests interrupts calls that have a time limit.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An upgrade request whose token is the user's name: the tests' `Verify` believes everything.
pub(crate) fn upgrade(user: &str) -> String {
    format!(
        "GET /ws?token={user} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A masked text frame.
pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

/// So many letters, different at each place, so that a lost or doubled byte shows.
pub(crate) fn letters(length: usize) -> Vec<u8> {
    (0..length).map(|at| b'a' + ((at * 7 + at / 26) % 26) as u8).collect()
}
