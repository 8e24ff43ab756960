//! `agent`: workers on other machines. An agent listens; a conductor (any run with `--agent`) connects once for each of
//! its workers there, and from then on talks with it as with a process of its own, over the agent.
//!
//! The shared key is the secret that tokens are signed with, which both sides have already: each proves that it knows it,
//! and it never crosses the network. What does is neither secret nor encrypted: plans, counts, histograms.

mod handshake;
mod remote;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::plan::Plan;
use crate::sys::{self, now_ns};
use handshake::{Ask, Said, read_line, write_line};
pub(crate) use remote::{Clocks, RemoteWorker};

/// Conductors and workers at once.
const SESSIONS_MAX: usize = 256;

/// Where and as whom an agent listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct Agent {
    /// Where to listen
    #[arg(long, default_value = "0.0.0.0:19090", value_name = "ADDR")]
    listen: SocketAddr,
    /// The secret of the conductor's runs: who does not have it is refused
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    secret: String,
    /// Cores that the workers are pinned to, as taskset reads them
    #[arg(long, value_name = "LIST")]
    client_cpu: Option<String>,
}

/// Serves until the process is ended.
pub(crate) fn run(agent: &Agent) -> Result<bool> {
    if agent.secret.is_empty() {
        bail!("--secret is empty: give the secret that tokens are signed with");
    }
    sys::raise_descriptors().context("cannot read the limit of descriptors")?;
    let listener = TcpListener::bind(agent.listen).with_context(|| format!("cannot listen on {}", agent.listen))?;
    eprintln!("listening on {}", listener.local_addr()?);
    let (agent, sessions) = (Arc::new(agent.clone()), Arc::new(AtomicUsize::new(0)));
    for stream in listener.incoming() {
        // A connection that died in the queue is no reason to end.
        let Ok(stream) = stream else { continue };
        if sessions.fetch_add(1, Ordering::Relaxed) >= SESSIONS_MAX {
            sessions.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (agent, sessions) = (Arc::clone(&agent), Arc::clone(&sessions));
        thread::spawn(move || {
            let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |peer| peer.to_string());
            if let Err(error) = session(&agent, &stream) {
                eprintln!("{peer}: {error:#}");
            }
            sessions.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(true)
}

/// One conductor's connection: proof, questions about the clock, and then a worker, if it wants one.
fn session(agent: &Agent, stream: &TcpStream) -> Result<()> {
    handshake::prepare(stream)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    handshake::accept(&agent.secret, &mut reader, stream)?;
    loop {
        match read_line::<Ask>(&mut reader)? {
            None => return Ok(()),
            Some(Ask::Clock) => write_line(stream, &Said::Clock(now_ns()))?,
            Some(Ask::Work(plan)) => {
                let plan = Plan { secret: agent.secret.clone(), ..*plan };
                // From now on the worker sets the pace.
                stream.set_read_timeout(None)?;
                return work(&plan, agent.client_cpu.as_deref(), reader, stream);
            }
        }
    }
}

/// Runs a worker whose ends are the conductor's. It ends with the connection.
fn work(plan: &Plan, cpus: Option<&str>, mut reader: BufReader<TcpStream>, stream: &TcpStream) -> Result<()> {
    let (mut worker, mut stdin, stdout) = start_worker(plan, cpus)?;
    let for_output = stream.try_clone()?;
    let output = thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if (&for_output).write_all(&line).is_err() {
                break;
            }
            line.clear();
        }
        let _ = for_output.shutdown(Shutdown::Both);
    });
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        if stdin.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = worker.kill();
    let _ = worker.wait();
    let _ = output.join();
    Ok(())
}

/// Starts a worker process with its plan, pinned to the cores `cpus` if given.
pub(crate) fn start_worker(
    plan: &Plan,
    cpus: Option<&str>,
) -> Result<(Child, std::process::ChildStdin, std::process::ChildStdout)> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let mut command = match cpus {
        Some(cpus) => {
            let mut taskset = Command::new("taskset");
            taskset.args(["-c", cpus]).arg(own);
            taskset
        }
        None => Command::new(own),
    };
    command.arg("worker").env_remove("JWT_SECRET").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().context("cannot start a worker")?;
    let (Some(mut stdin), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
        bail!("a worker without pipes");
    };
    let line = serde_json::to_string(plan)? + "\n";
    stdin.write_all(line.as_bytes()).context("a worker ended at once")?;
    Ok((process, stdin, stdout))
}
