//! The server under load as processes, one for each node: those that run already, or those that the bench starts, pins
//! and stops. `runs` calls it.

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

/// All nodes of the server; what they use is added up.
pub(crate) struct Servers(Vec<ServerProcess>);

impl Servers {
    /// The server of the command line: by `--pid`, by `--spawn`, or none that could be measured.
    pub(crate) fn of(common: &Common) -> Result<Option<Servers>> {
        let (addrs, commands) = (&common.addr, &common.spawn);
        if !commands.is_empty() && commands.len() != addrs.len() {
            bail!(
                "--spawn was given {} times for {} addresses: give one command for each",
                commands.len(),
                addrs.len()
            );
        }
        let mut nodes = common.pid.iter().map(|pid| ServerProcess { pid: *pid, child: None }).collect::<Vec<_>>();
        for (command, addr) in commands.iter().zip(addrs) {
            nodes.push(ServerProcess::spawn(command, *addr, common)?);
        }
        Ok((!nodes.is_empty()).then_some(Servers(nodes)))
    }

    /// What the server has used so far.
    pub(crate) fn sample(&self) -> Result<Sample> {
        let mut nodes = self.0.iter().map(ServerProcess::sample);
        let mut sum = nodes.next().context("no server to measure")??;
        for node in nodes {
            sum.add(&node?);
        }
        Ok(sum)
    }

    /// The pids of all nodes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|node| node.pid).collect()
    }

    /// What the first node's program answers to `--version`: reports name what they measured, not what is checked out.
    pub(crate) fn version(&self) -> String {
        let answer = self
            .0
            .first()
            .map(|node| Command::new(format!("/proc/{}/exe", node.pid)).arg("--version").stdin(Stdio::null()).output());
        let answer = answer.and_then(Result::ok).filter(|output| output.status.success());
        answer.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The server's resident memory.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        self.0.iter().map(ServerProcess::rss_bytes).sum()
    }
}

/// One node. Dropping it stops the node if the bench started it.
struct ServerProcess {
    pid: u32,
    child: Option<Child>,
}

impl ServerProcess {
    fn spawn(command: &str, addr: SocketAddr, common: &Common) -> Result<ServerProcess> {
        if TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok() {
            bail!("something listens on {addr} already");
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
        server.wait_listening(addr)?;
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

    fn sample(&self) -> Result<Sample> {
        Sample::of(self.pid).with_context(|| format!("cannot read /proc of the server, pid {}", self.pid))
    }

    fn rss_bytes(&self) -> Result<u64> {
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
