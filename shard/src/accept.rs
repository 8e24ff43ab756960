//! Accepting: a stock of armed accepts, their pause when sockets or descriptors run out, and the refusal of what is too
//! much.

use crate::ring::{Completion, DataRing, Descriptor};
use crate::turn::Driver;
use roomwire_engine::Now;
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

/// How long accepting pauses after the process ran out of descriptors, unless one is freed before.
const RETRY_MS: u64 = 250;

/// The most accepts that are armed at once, and so the most connections that a turn takes: some milliseconds of
/// handshakes. Not one multishot accept: it tells no addresses, and it cannot be told how many sockets there is room for.
const ACCEPTS_MAX: u32 = 64;

/// Where the kernel writes who has connected.
struct Peer {
    address: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// The state of the listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    /// `None`: closed, the node drains.
    listener: Option<OwnedFd>,
    /// By the accept's number; never freed, since the kernel may write there for as long as the ring exists.
    peers: Vec<NonNull<Peer>>,
    /// The accepts that are not armed.
    idle: Vec<u32>,
    /// So many sockets may be open at once, and how many are.
    places: u32,
    open: u32,
    /// When to try again.
    paused_until_ms: Option<u64>,
    /// The pause was logged, so its end is to be logged too.
    complained: bool,
}

impl Acceptor {
    /// An acceptor that is not armed yet, for at most so many sockets.
    pub(crate) fn new(listener: OwnedFd, places: u32) -> Acceptor {
        // SAFETY: all-zero is a valid address, of no family.
        let peer = || Peer { address: unsafe { std::mem::zeroed() }, length: 0 };
        Acceptor {
            listener: Some(listener),
            peers: (0..ACCEPTS_MAX).map(|_| NonNull::from(Box::leak(Box::new(peer())))).collect(),
            idle: (0..ACCEPTS_MAX).collect(),
            places,
            open: 0,
            paused_until_ms: None,
            complained: false,
        }
    }

    /// When a paused accept is tried again, in ms of CLOCK_MONOTONIC.
    pub(crate) fn retry_ms(&self) -> Option<u64> {
        self.paused_until_ms
    }

    /// A socket was closed: paused accepts may be tried at once.
    pub(crate) fn socket_closed(&mut self) {
        self.open -= 1;
        if self.paused_until_ms.is_some() {
            self.paused_until_ms = Some(0);
        }
    }

    /// Arms as many accepts as there is room for, unless they are paused or the listener is closed.
    pub(crate) fn arm_if_due(&mut self, now: Now, ring: &mut DataRing) {
        if self.paused_until_ms.is_some_and(|until_ms| now.mono_ms() < until_ms) {
            return;
        }
        self.paused_until_ms = None;
        let Some(listener) = &self.listener else { return };
        while self.open + (ACCEPTS_MAX - self.idle.len() as u32) < self.places {
            let Some(number) = self.idle.pop() else { return };
            let peer = self.peers[number as usize].as_ptr();
            // SAFETY: the pointers lead to a `Peer` that is never freed. This accept is not armed, so the kernel does not
            // write there now; we read there only after its completion.
            unsafe {
                (*peer).length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                ring.accept(number, listener.as_fd(), (&raw mut (*peer).address).cast(), &raw mut (*peer).length);
            }
        }
    }

    /// Who has connected, by the completion of accept `number`, which is armed no more.
    fn completed(&mut self, number: u32) -> Option<IpAddr> {
        self.idle.push(number);
        // SAFETY: the accept has completed, so the kernel is done with its `Peer`.
        unsafe { ip_address(&(*self.peers[number as usize].as_ptr()).address) }
    }

    /// A socket was opened. Whether it took the last place.
    fn opened(&mut self) -> bool {
        self.open += 1;
        let is_full = self.open == self.places;
        if is_full && !self.complained {
            self.complained = true;
            tracing::warn!(
                places = self.places,
                "cannot accept: this shard's table of sockets is full; going on when one is closed (raise LimitNOFILE, \
                 which bounds each shard's table, or use more shards)"
            );
        }
        is_full
    }

    fn pause(&mut self, now: Now, error: &io::Error) {
        self.paused_until_ms = Some(now.mono_ms() + RETRY_MS);
        if !self.complained {
            self.complained = true;
            tracing::warn!(%error, "cannot accept; going on when descriptors are freed (raise LimitNOFILE)");
        }
    }

    /// Says once that all is well again: not each time that a single place became free.
    fn recovered(&mut self) {
        if self.complained && self.open <= self.places - self.places / 16 {
            self.complained = false;
            tracing::info!("accepting again");
        }
    }
}

impl Driver {
    /// A socket was accepted, or could not be.
    pub(crate) fn on_accept(&mut self, now: Now, completion: Completion) {
        let peer = self.acceptor.completed(completion.connection.slot);
        let Some(descriptor) = Descriptor::accepted(completion.result) else {
            self.on_accept_failed(now, &io::Error::from_raw_os_error(-completion.result));
            return;
        };
        self.acceptor.recovered();
        if self.acceptor.opened() {
            self.engine.counters.driver.accepts_paused_total += 1;
        }
        match self.engine.accepted(now, peer) {
            Some(connection) => {
                self.sockets.insert(connection, descriptor);
                self.receive_on(connection);
            }
            None => {
                // SAFETY: the engine keeps its refusal unchanged, and outlives all submissions.
                unsafe { self.ring.refuse(descriptor, self.engine.refusal()) };
                self.acceptor.socket_closed();
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
                if self.acceptor.paused_until_ms.is_none() {
                    self.engine.counters.driver.accepts_paused_total += 1;
                }
                self.acceptor.pause(now, error);
            }
        }
    }

    /// Closes the listener: the node drains.
    pub(crate) fn stop_accepting(&mut self) {
        if let Some(listener) = self.acceptor.listener.take() {
            // Armed accepts hold the socket open; shutting it down ends all, with EINVAL for the accepts.
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
            self.acceptor.paused_until_ms = None;
            self.ring.close_listener(listener);
        }
    }
}

fn ip_address(address: &libc::sockaddr_storage) -> Option<IpAddr> {
    let address = &raw const *address;
    // SAFETY: the storage is large and aligned enough for either, and its family says which the kernel wrote.
    unsafe {
        match i32::from((*address).ss_family) {
            libc::AF_INET => {
                let address = (*address.cast::<libc::sockaddr_in>()).sin_addr.s_addr;
                Some(Ipv4Addr::from(address.to_ne_bytes()).into())
            }
            libc::AF_INET6 => Some(Ipv6Addr::from((*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr).into()),
            _ => None,
        }
    }
}
