//! Accepting: the multishot accept, its pause when descriptors run out, and the refusal of what is too much.

use crate::ring::{Completion, DataRing};
use crate::turn::Driver;
use roomwire_engine::Now;
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// How long accepting pauses after the process ran out of descriptors, unless one is freed before.
const RETRY_MS: u64 = 250;

/// The state of the listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    /// `None`: closed, the node drains.
    listener: Option<OwnedFd>,
    armed: bool,
    /// When to try again.
    paused_until_ms: Option<u64>,
    /// The pause was logged, so its end is to be logged too.
    complained: bool,
}

impl Acceptor {
    /// An acceptor that is not armed yet.
    pub(crate) fn new(listener: OwnedFd) -> Acceptor {
        Acceptor { listener: Some(listener), armed: false, paused_until_ms: None, complained: false }
    }

    /// When a paused accept is tried again, in ms of CLOCK_MONOTONIC.
    pub(crate) fn retry_ms(&self) -> Option<u64> {
        self.paused_until_ms
    }

    /// A descriptor was closed: a paused accept may be tried at once.
    pub(crate) fn descriptor_freed(&mut self) {
        if self.paused_until_ms.is_some() {
            self.paused_until_ms = Some(0);
        }
    }

    /// Arms the accept, unless it is armed, paused or closed.
    pub(crate) fn arm_if_due(&mut self, now: Now, ring: &mut DataRing) {
        if self.armed || self.paused_until_ms.is_some_and(|until_ms| now.mono_ms() < until_ms) {
            return;
        }
        if let Some(listener) = &self.listener {
            self.paused_until_ms = None;
            self.armed = true;
            ring.accept(listener.as_fd());
        }
    }

    fn pause(&mut self, now: Now, error: &io::Error) {
        self.paused_until_ms = Some(now.mono_ms() + RETRY_MS);
        if !self.complained {
            self.complained = true;
            tracing::warn!(%error, "cannot accept; going on when descriptors are freed (raise LimitNOFILE)");
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.complained) {
            tracing::info!("accepting again");
        }
    }
}

impl Driver {
    /// A socket was accepted, or could not be.
    pub(crate) fn on_accept(&mut self, now: Now, completion: Completion) {
        if !completion.more {
            self.acceptor.armed = false;
        }
        if completion.result < 0 {
            self.on_accept_failed(now, &io::Error::from_raw_os_error(-completion.result));
            return;
        }
        self.acceptor.recovered();
        // SAFETY: the descriptor is fresh from the kernel, which gave it to this completion alone.
        let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
        // A system call, so only where the engine wants it.
        let peer = if self.engine.wants_peers() { peer_address(&fd) } else { None };
        match self.engine.accepted(now, peer) {
            Some(connection) => {
                self.sockets.insert(connection, fd);
                self.receive_on(connection);
            }
            None => {
                refuse(&fd, self.engine.refusal());
                self.ring.close(fd);
            }
        }
    }

    fn on_accept_failed(&mut self, now: Now, error: &io::Error) {
        if self.acceptor.listener.is_none() {
            return;
        }
        match error.raw_os_error() {
            // The peer gave up, or the network under it: accept(2) says to try again.
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ECANCELED,
            ) => {}
            // It listens no more: `ShardHandle::stop_listening`.
            Some(libc::EINVAL) => self.stop_accepting(),
            // Out of descriptors or memory. Anything else is unknown, and must not make us spin either.
            _ => {
                self.engine.counters.driver.accepts_paused_total += 1;
                self.acceptor.pause(now, error);
            }
        }
    }

    /// Closes the listener: the node drains.
    pub(crate) fn stop_accepting(&mut self) {
        if let Some(listener) = self.acceptor.listener.take() {
            // The armed accept holds the socket open; shutting it down ends both, with EINVAL for the accept.
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
            self.acceptor.paused_until_ms = None;
            self.ring.close(listener);
        }
    }
}

fn peer_address(fd: &OwnedFd) -> Option<IpAddr> {
    Some(SockRef::from(fd).peer_addr().ok()?.as_socket()?.ip())
}

/// Says no, if that fits into the socket's buffer at once.
fn refuse(fd: &OwnedFd, answer: &[u8]) {
    let socket = SockRef::from(fd);
    let _ = socket.send_with_flags(answer, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // What the peer has sent so far is thrown away: closing over unread bytes would reset the connection, and the
    // answer with it.
    let mut request = [std::mem::MaybeUninit::uninit(); 2048];
    let _ = socket.recv_with_flags(&mut request, libc::MSG_DONTWAIT);
}
