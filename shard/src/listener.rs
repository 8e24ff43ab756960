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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    #[test]
    fn shards_share_a_port_and_accepted_sockets_inherit_the_options() {
        let (first, address) = listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let (second, same) = listen(address, 16).unwrap();
        assert_eq!(address, same);
        drop(second);
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) = TcpListener::from(first).accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }

    #[test]
    fn the_unspecified_ipv6_address_takes_both_families() {
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            // No IPv6 on this machine.
            return;
        }
        let (_listener, address) = listen((Ipv6Addr::UNSPECIFIED, 0).into(), 16).unwrap();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).is_ok());
        assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).is_ok());
    }

    #[test]
    fn a_taken_address_is_named_with_its_cure() {
        // Without SO_REUSEPORT, nobody else may bind it.
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = other.local_addr().unwrap();
        let error = listen(address, 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains("stop what"), "{error}");
    }
}
