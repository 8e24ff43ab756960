//! The listening socket, with all that accepted sockets inherit from it.

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Unacknowledged data older than this ends a connection with ETIMEDOUT: a slow consumer is found by its queue long
/// before, so this is for peers that vanished with data on the way.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A safety net under the WebSocket heartbeat, which is primary (FACTS, section 8).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 5;

/// Binds and listens; several shards may bind the same address. Says where it listens, for port 0.
///
/// # Errors
/// One line that names the address, the cause, and the cure where there is one.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<(OwnedFd, SocketAddr)> {
    bind(address, backlog).map_err(|error| {
        let cure = match error.kind() {
            io::ErrorKind::AddrInUse => "; stop what listens there, or choose another address",
            io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{cure}"))
    })
}

fn bind(address: SocketAddr, backlog: u32) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        // [::] means every address, of both families.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES),
    )?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let local = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no IP address"))?;
    Ok((socket.into(), local))
}
