//! A TCP proxy for tests: passes bytes on until it is told to hold back what the server says, or to cut.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the proxy does.
#[derive(Debug, Default)]
struct Orders {
    /// Milliseconds by which each piece of the server's bytes is late.
    delay_ms: AtomicU64,
    /// Nothing of the server's passes.
    holds: AtomicBool,
    /// New connections are closed at once.
    refuses: AtomicBool,
    links: Mutex<Vec<TcpStream>>,
}

/// A proxy in front of one server.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    orders: Arc<Orders>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let orders = Arc::new(Orders::default());
        let theirs = Arc::clone(&orders);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.refuses.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server))) else { continue };
                let twin = |stream: &TcpStream| stream.try_clone().expect("descriptors");
                theirs.links.lock().expect("not poisoned").extend([twin(&client), twin(&server)]);
                let (up, down) = ((twin(&client), twin(&server)), (server, client));
                let orders = Arc::clone(&theirs);
                std::thread::spawn(move || pass(up.0, up.1, None));
                std::thread::spawn(move || pass(down.0, down.1, Some(&orders)));
            }
        });
        Proxy { port, orders }
    }

    /// Makes all that the server says so late.
    pub(crate) fn delay(&self, delay: Duration) {
        self.orders.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Keeps back all that the server says, or passes it on again.
    pub(crate) fn hold(&self, holds: bool) {
        self.orders.holds.store(holds, Ordering::Relaxed);
    }

    /// Refuses new connections, or takes them again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.orders.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        for link in self.orders.links.lock().expect("not poisoned").drain(..) {
            let _ = link.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, orders: Option<&Orders>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if let Some(orders) = orders {
            std::thread::sleep(Duration::from_millis(orders.delay_ms.load(Ordering::Relaxed)));
            while orders.holds.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
