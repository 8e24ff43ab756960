//! An agent as its conductor sees it: a worker behind a socket, and a clock of its own. `coordinator` calls it.

use std::io::BufReader;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::handshake::{self, Ask, Clock, write_line};
use crate::plan::Plan;

/// How long an agent may take to be reached.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A worker on another machine; its plan has been sent. Dropping it ends the worker.
pub(crate) struct RemoteWorker {
    pub(crate) stream: TcpStream,
    pub(crate) reader: Option<BufReader<TcpStream>>,
}

/// What the clocks of all agents said when a run began.
#[derive(Default)]
pub(crate) struct Clocks(Vec<(SocketAddr, Clock)>);

impl RemoteWorker {
    /// Starts a worker at the agent `addr`, in this machine's time.
    pub(crate) fn start(addr: SocketAddr, plan: &Plan, clocks: &mut Clocks) -> Result<RemoteWorker> {
        let (mut reader, stream) = meet(addr, &plan.secret)?;
        let clock = handshake::clock(&mut reader, &stream).with_context(|| format!("agent {addr}"))?;
        clocks.0.push((addr, clock));
        let plan = Plan { secret: String::new(), clock_offset_ns: clock.offset_ns, ..plan.clone() };
        write_line(&stream, &Ask::Work(Box::new(plan))).with_context(|| format!("agent {addr}"))?;
        // It may have nothing to say for as long as a run lasts.
        stream.set_read_timeout(None)?;
        Ok(RemoteWorker { stream, reader: Some(reader) })
    }
}

impl Drop for RemoteWorker {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Clocks {
    /// By how much times between machines may be wrong after a run: what the clocks could not be told apart by, and what
    /// they have drifted since. `None` without agents.
    pub(crate) fn error_ns(&self, secret: &str) -> Result<Option<u64>> {
        let mut most = None;
        for (addr, began) in &self.0 {
            let (mut reader, stream) = meet(*addr, secret)?;
            let ended = handshake::clock(&mut reader, &stream).with_context(|| format!("agent {addr}"))?;
            most = most.max(Some(error_ns(*began, ended)));
        }
        Ok(most)
    }
}

fn error_ns(began: Clock, ended: Clock) -> u64 {
    began.offset_ns.abs_diff(ended.offset_ns) + began.uncertainty_ns.max(ended.uncertainty_ns)
}

fn meet(addr: SocketAddr, secret: &str) -> Result<(BufReader<TcpStream>, TcpStream)> {
    let meet = || -> Result<_> {
        let stream = TcpStream::connect_timeout(&addr, CONNECT_MAX)?;
        handshake::prepare(&stream)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        handshake::connect(secret, &mut reader, &stream)?;
        Ok((reader, stream))
    };
    meet().with_context(|| format!("agent {addr}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_and_uncertainty_add_up() {
        let clock = |offset_ns, uncertainty_ns| Clock { offset_ns, uncertainty_ns };
        assert_eq!(error_ns(clock(-1_000, 50), clock(-1_400, 80)), 480);
        assert_eq!(error_ns(clock(7, 50), clock(7, 20)), 50);
    }
}
