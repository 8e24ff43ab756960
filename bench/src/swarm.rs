//! The connections of one worker and their event loop: one epoll set, one shared read buffer, and for each connection no
//! more than a socket and what is half read or half written. `worker` drives it.
//!
//! What it never does: know what the messages mean.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use roomwire_wire::frame::{Opcode, encode_masked};
use socket2::{Domain, Protocol, Socket, Type};

use crate::frames::{self, Frame, Step};
use crate::sys::{self, Epoll, Ready, now_ns};

/// As much as one read takes.
const READ_BYTES: usize = 256 * 1024;
/// The longest answer to an upgrade.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Any mask does: a bench needs no secrecy, and the server has the same work with each.
const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x88];
/// The token of the descriptor given to [`Swarm::watch_control`].
const CONTROL: u64 = u64::MAX;

/// RFC 6455 section 1.3's own example: a fixed key has a fixed answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The answer to every upgrade that this bench asks for.
pub(crate) const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What happened to a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// The upgrade is done.
    Open,
    /// A text message, and when it was read.
    Text { text: &'a [u8], at_ns: u64 },
    /// The connection has ended, and why.
    Closed(String),
}

/// Where a message got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The kernel has all of it.
    Kernel,
    /// The server reads too slowly: it waits here.
    Waiting,
    /// The connection is gone.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Upgrading,
    Open,
}

struct Connection {
    /// `None` once it has ended.
    socket: Option<Socket>,
    state: State,
    /// Half a head or half a frame.
    input: Vec<u8>,
    /// What the kernel did not take.
    output: Vec<u8>,
}

/// See the module.
pub(crate) struct Swarm {
    epoll: Epoll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    /// The frame being sent.
    frame: Vec<u8>,
    last_turn_events: usize,
    last_turn_ns: u64,
}

/// Where and how to connect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) addr: SocketAddr,
    /// Path and query.
    pub(crate) resource: &'a str,
    /// The source address to bind, so that the ports of one address do not run out.
    pub(crate) source: Option<Ipv4Addr>,
}

impl Swarm {
    pub(crate) fn new() -> io::Result<Swarm> {
        Ok(Swarm {
            epoll: Epoll::new()?,
            connections: Vec::new(),
            buffer: vec![0; READ_BYTES],
            frame: Vec::new(),
            last_turn_events: 0,
            last_turn_ns: 0,
        })
    }

    /// Lets [`Swarm::turn`] tell when `descriptor` can be read.
    pub(crate) fn watch_control(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.epoll.add(descriptor, CONTROL, false)
    }

    /// Starts connection `index`: the next free number, or one that was dropped.
    pub(crate) fn connect(&mut self, index: usize, target: Target<'_>) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(target.addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = target.source {
            sys::choose_port_at_connect(socket.as_fd())?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&target.addr.into()) {
            Ok(()) => {}
            // EINPROGRESS has no kind of its own in the oldest Rust that builds this.
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        self.epoll.add(socket.as_fd(), index as u64, true)?;
        let output = upgrade_request(target).into_bytes();
        let connection = Connection { socket: Some(socket), state: State::Upgrading, input: Vec::new(), output };
        match self.connections.get_mut(index) {
            Some(dropped) => *dropped = connection,
            None => self.connections.push(connection),
        }
        Ok(())
    }

    /// Ends connection `index` without a word, as a phone does that loses its network. Between turns only: a turn's
    /// events name connections by their number.
    pub(crate) fn drop_connection(&mut self, index: usize) {
        if let Some(connection) = self.connections.get_mut(index) {
            // Closing the descriptor takes it out of the epoll set.
            connection.socket = None;
            connection.input = Vec::new();
            connection.output = Vec::new();
        }
    }

    /// How many events the last turn had.
    pub(crate) fn last_turn_events(&self) -> usize {
        self.last_turn_events
    }

    /// How long the last turn took from the kernel's word to its last event: what came with it waited as long.
    pub(crate) fn last_turn_ns(&self) -> u64 {
        self.last_turn_ns
    }

    /// Sends one text message.
    pub(crate) fn send(&mut self, index: usize, text: &[u8]) -> io::Result<Sent> {
        self.send_frame(index, Opcode::Text, text)
    }

    fn send_frame(&mut self, index: usize, opcode: Opcode, payload: &[u8]) -> io::Result<Sent> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(Sent::Gone) };
        let Some(mut socket) = connection.socket.as_ref() else { return Ok(Sent::Gone) };
        self.frame.clear();
        encode_masked(opcode, payload, MASK, &mut self.frame);
        if !connection.output.is_empty() {
            connection.output.extend_from_slice(&self.frame);
            return Ok(Sent::Waiting);
        }
        let written = match socket.write(&self.frame) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            // The read side hears of it too and says why.
            Err(_) => return Ok(Sent::Gone),
        };
        if written == self.frame.len() {
            return Ok(Sent::Kernel);
        }
        connection.output.extend_from_slice(&self.frame[written..]);
        self.epoll.modify(socket.as_fd(), index as u64, true)?;
        Ok(Sent::Waiting)
    }

    /// Waits at most `timeout`, hands every event to `handler`, and says whether the control descriptor can be read.
    pub(crate) fn turn(&mut self, timeout: Duration, handler: &mut impl FnMut(usize, Event<'_>)) -> io::Result<bool> {
        let count = self.epoll.wait(timeout)?;
        let woken_ns = now_ns();
        let mut control = false;
        // Taken out for the turn, so that a text may be lent from it while a pong is written.
        let mut buffer = std::mem::take(&mut self.buffer);
        for at in 0..count {
            let Some(ready) = self.epoll.ready(at) else { break };
            if ready.token == CONTROL {
                control = true;
            } else {
                self.serve(ready, &mut buffer, handler);
            }
        }
        self.buffer = buffer;
        (self.last_turn_events, self.last_turn_ns) = (count, now_ns() - woken_ns);
        Ok(control)
    }

    fn serve(&mut self, ready: Ready, buffer: &mut [u8], handler: &mut impl FnMut(usize, Event<'_>)) {
        let index = ready.token as usize;
        let refused = if ready.writable { self.flush(index).err() } else { None };
        if ready.readable
            && let Err(reason) = self.read(index, buffer, handler)
        {
            self.drop_connection(index);
            // The kernel tells an error once: what the write was told, the read is not told again.
            handler(index, Event::Closed(refused.map_or(reason, |error| error.to_string())));
        }
    }

    /// Writes what waits.
    fn flush(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
        let Some(mut socket) = connection.socket.as_ref() else { return Ok(()) };
        match socket.write(&connection.output) {
            Ok(written) if written == connection.output.len() => {
                connection.output = Vec::new();
                self.epoll.modify(socket.as_fd(), index as u64, false)
            }
            Ok(written) => {
                connection.output.drain(..written);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One read: what is left in the kernel makes the descriptor ready again.
    fn read(
        &mut self,
        index: usize,
        buffer: &mut [u8],
        handler: &mut impl FnMut(usize, Event<'_>),
    ) -> Result<(), String> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
        let Some(mut socket) = connection.socket.as_ref() else { return Ok(()) };
        let count = match socket.read(buffer) {
            Ok(0) => return Err("end of stream".into()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let at_ns = now_ns();
        if connection.input.is_empty() {
            let consumed = self.consume(index, &buffer[..count], at_ns, handler)?;
            if consumed < count {
                self.keep(index, &buffer[consumed..count]);
            }
        } else {
            let mut input = std::mem::take(&mut connection.input);
            input.extend_from_slice(&buffer[..count]);
            let consumed = self.consume(index, &input, at_ns, handler)?;
            if consumed < input.len() {
                self.keep(index, &input[consumed..]);
            }
        }
        Ok(())
    }

    fn keep(&mut self, index: usize, rest: &[u8]) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.input = rest.to_vec();
        }
    }

    /// Takes the head and every whole frame from `bytes`, and says how much that was.
    fn consume(
        &mut self,
        index: usize,
        bytes: &[u8],
        at_ns: u64,
        handler: &mut impl FnMut(usize, Event<'_>),
    ) -> Result<usize, String> {
        let mut consumed = 0;
        if self.connections.get(index).is_some_and(|connection| connection.state == State::Upgrading) {
            let Some(end) = head_end(bytes)? else { return Ok(0) };
            check_upgrade(&bytes[..end])?;
            self.connections[index].state = State::Open;
            handler(index, Event::Open);
            consumed = end;
        }
        loop {
            let (frame, length) = match frames::read(&bytes[consumed..]) {
                Step::More => return Ok(consumed),
                Step::Broken(why) => return Err(why.into()),
                Step::Frame(frame, length) => (frame, length),
            };
            consumed += length;
            match frame {
                Frame::Text(text) => handler(index, Event::Text { text, at_ns }),
                Frame::Ping(payload) => {
                    self.send_frame(index, Opcode::Pong, payload).map_err(|error| error.to_string())?;
                }
                Frame::Pong => {}
                Frame::Close(Some(code)) => return Err(format!("closed with {code}")),
                Frame::Close(None) => return Err("closed without a code".into()),
            }
        }
    }
}

fn upgrade_request(target: Target<'_>) -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n",
        target.resource, target.addr
    )
}

/// Where the head ends, or `None` if it is not complete.
fn head_end(bytes: &[u8]) -> Result<Option<usize>, String> {
    match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if bytes.len() > HEAD_BYTES_MAX => Err("an endless answer to the upgrade".into()),
        None => Ok(None),
    }
}

fn check_upgrade(head: &[u8]) -> Result<(), String> {
    let head = String::from_utf8_lossy(head);
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101 ") {
        return Err(format!("upgrade refused: {status}"));
    }
    let accept = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept").then(|| value.trim()));
    if accept == Some(ACCEPT) { Ok(()) } else { Err("upgrade with a wrong Sec-WebSocket-Accept".into()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// Serves one connection: reads the request, writes `pieces` apart, then gives back all that the client sent after.
    fn serve(pieces: Vec<Vec<u8>>) -> (SocketAddr, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("the request");
                request.push(byte[0]);
            }
            for piece in pieces {
                stream.write_all(&piece).expect("the client reads");
                thread::sleep(Duration::from_millis(5));
            }
            stream.shutdown(std::net::Shutdown::Write).expect("connected");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            rest
        });
        (addr, server)
    }

    /// Runs a client until it is closed, and tells what it saw.
    fn see(addr: SocketAddr) -> Vec<String> {
        let mut swarm = Swarm::new().expect("epoll");
        let source = Some(Ipv4Addr::new(127, 0, 0, 9));
        swarm.connect(0, Target { addr, resource: "/?token=x", source }).expect("connects");
        let mut seen = Vec::new();
        while !seen.iter().any(|line: &String| line.starts_with("closed")) {
            swarm
                .turn(Duration::from_secs(10), &mut |_, event| {
                    seen.push(match event {
                        Event::Open => "open".into(),
                        Event::Text { text, .. } => String::from_utf8_lossy(text).into_owned(),
                        Event::Closed(reason) => format!("closed: {reason}"),
                    });
                })
                .expect("turns");
        }
        seen
    }

    #[test]
    fn head_and_frames_are_read_wherever_the_stream_is_cut() {
        let mut stream = ANSWER.to_vec();
        stream.extend(b"\x81\x02hi\x89\x01p\x81\x03you\x88\x02\x0f\xa8");
        for cut in [1, ANSWER.len() - 1, ANSWER.len(), ANSWER.len() + 1, ANSWER.len() + 3, stream.len() - 1] {
            let (addr, server) = serve(vec![stream[..cut].to_vec(), stream[cut..].to_vec()]);
            assert_eq!(see(addr), ["open", "hi", "you", "closed: closed with 4008"], "cut at {cut}");
            let mut pong = Vec::new();
            encode_masked(Opcode::Pong, b"p", MASK, &mut pong);
            assert_eq!(server.join().expect("ends"), pong);
        }
    }

    #[test]
    fn a_refused_or_false_upgrade_is_told() {
        let (addr, _server) = serve(vec![b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec()]);
        assert_eq!(see(addr), ["closed: upgrade refused: HTTP/1.1 503 Service Unavailable"]);
        let (addr, _server) = serve(vec![b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: x\r\n\r\n".to_vec()]);
        assert_eq!(see(addr), ["closed: upgrade with a wrong Sec-WebSocket-Accept"]);
        let (addr, _server) = serve(vec![]);
        assert_eq!(see(addr), ["closed: end of stream"]);
    }
}
