//! The server under load as a process: one that runs already, or one that the bench starts, pins and stops.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::args::Common;
use crate::server_usage::{self, Sample};
use crate::sys;

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// See the module. Dropping it stops the server if the bench started it.
pub(crate) struct ServerProcess {
    pid: u32,
    child: Option<Child>,
}

impl ServerProcess {
    /// The server of the command line: by `--pid`, by `--spawn`, or none that could be measured.
    pub(crate) fn of(common: &Common) -> Result<Option<ServerProcess>> {
        match (&common.spawn, common.pid) {
            (Some(command), _) => Self::spawn(command, common).map(Some),
            (None, Some(pid)) => Ok(Some(ServerProcess { pid, child: None })),
            (None, None) => Ok(None),
        }
    }

    fn spawn(command: &str, common: &Common) -> Result<ServerProcess> {
        if TcpStream::connect_timeout(&common.addr, Duration::from_millis(200)).is_ok() {
            bail!("something listens on {} already", common.addr);
        }
        // `exec` leaves one process, so that the child's pid is the server's; taskset does the same.
        let script = format!("exec {command}");
        let mut shell = match &common.server_cpu {
            Some(cpus) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", cpus, "sh", "-c", &script]);
                taskset
            }
            None => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &script]);
                shell
            }
        };
        shell.env("JWT_SECRET", &common.secret).stdin(Stdio::null()).stdout(std::io::stderr());
        let child = shell.spawn().context("cannot start the server")?;
        let mut server = ServerProcess { pid: child.id(), child: Some(child) };
        server.wait_listening(common.addr)?;
        Ok(server)
    }

    fn wait_listening(&mut self, addr: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect_timeout(&addr, Duration::from_millis(500)).is_err() {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("the server ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server does not listen on {addr}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What the server has used so far.
    pub(crate) fn sample(&self) -> Result<Sample> {
        Sample::of(self.pid).with_context(|| format!("cannot read /proc of the server, pid {}", self.pid))
    }

    /// The server's resident memory.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        server_usage::rss_bytes(self.pid).with_context(|| format!("cannot read the memory of pid {}", self.pid))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        sys::terminate(self.pid);
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
