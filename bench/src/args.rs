//! The command line. `main` parses it, `runs` reads it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::plan::Pace;

/// Open-loop load for a room server: latency from the intended send time, cost by the server's pid, and a ledger that
/// proves that nothing was lost, doubled or out of order. Exit status 1 if a run is invalid or void.
#[derive(Debug, Parser)]
#[command(name = "roomwire-bench", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Hold authenticated connections that do nothing: memory and CPU for each
    Idle(Idle),
    /// Publish to rooms at a fixed rate: CPU per delivery, latency, ledger
    Fanout(Fanout),
    /// Send to a server that echoes: CPU per message
    Echo(Echo),
    /// Raise the rate step by step to the knee: latency against rate, then the closed-loop maximum apart
    Latency(Latency),
    /// Let all but the publishers lose their connections at once: time until all are back, cost of each, resume
    Storm(Storm),
    /// Leave, join and reconnect at a fixed rate while rooms talk
    Churn(Churn),
    /// A chat product: rooms by Zipf, messages, typing, receipts, presence, people who come and go
    Mixed(Mixed),
    /// The same fan-out through a server that does nothing else: what this machine's kernel and loopback allow
    Floor(Floor),
    /// Minutes of chatting: drift of memory after warm-up, ledger
    Soak(Soak),
    /// Print medians and ratios of reports written with --json
    Table(Files),
    /// Compare two reports written with --json: what got better or worse beyond the noise. Exit status 1 if anything got worse
    Diff(Diff),
    /// Serve as `floor` wants it; started by it
    #[command(hide = true)]
    FloorServer { addr: SocketAddr },
    /// Hold a share of the connections; started by the other commands, which write its plan to its stdin
    #[command(hide = true)]
    Worker,
}

/// Which server is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// Protocol v1 in full: `clientId` and `ack`, `seq` without gaps, `room_history` at the join
    Roomwire,
    /// The basic messages only: what bench/peers/uws speaks
    Plain,
}

/// What every run wants to know.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where the server listens; with several (--addr A,B) the members of each room are spread over these nodes
    #[arg(long, default_value = "127.0.0.1:8080", value_delimiter = ',')]
    pub(crate) addr: Vec<SocketAddr>,
    /// Path of the upgrade request
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    #[arg(long, value_enum, default_value = "roomwire")]
    pub(crate) dialect: Dialect,
    /// HS256 secret that tokens for the users u0, u1, ... are signed with
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub(crate) secret: String,
    /// Pid of the running server, to measure what the run costs it; several are added up
    #[arg(long, conflicts_with = "spawn", value_delimiter = ',')]
    pub(crate) pid: Vec<u32>,
    /// Start the server with this shell command, measure it, and stop it at the end; once for each --addr
    #[arg(long, value_name = "CMD")]
    pub(crate) spawn: Vec<String>,
    /// Cores that --spawn pins the server to, as taskset reads them
    #[arg(long, value_name = "LIST", requires = "spawn")]
    pub(crate) server_cpu: Option<String>,
    /// Cores that the workers are pinned to, as taskset reads them
    #[arg(long, value_name = "LIST")]
    pub(crate) client_cpu: Option<String>,
    /// Processes that share the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) workers: u32,
    /// Source addresses 127.0.0.1, 127.0.0.2, ... so that ports do not run out (loopback only; 0 lets the kernel choose)
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=250))]
    pub(crate) sources: u8,
    /// Handshakes under way at once, in each worker
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connect_burst: u32,
    /// Make the run so often, each time with a server of its own if --spawn starts it: `diff` wants three
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Count the server's system calls with `perf`; slows each of them, so read no CPU figures from such a run
    #[arg(long)]
    pub(crate) syscalls: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the report's figures as CSV, a line for each run
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write the report as one HTML page with its pictures
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write each picture as SVG into this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) svg: Option<PathBuf>,
    /// What was measured, for `table` (default: the dialect)
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Name of the scenario, for `table` (default: the run)
    #[arg(long)]
    pub(crate) scenario: Option<String>,
    /// The run is invalid if the bench itself sent or read later than this in one of a hundred cases
    #[arg(long, default_value_t = 20, value_name = "MS")]
    pub(crate) lag_ms_max: u32,
    /// The run is invalid if a worker used more than this share of a core, in percent
    #[arg(long, default_value_t = 95, value_name = "PERCENT")]
    pub(crate) cpu_percent_max: u32,
}

/// Who sets the pace.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Closed {
    /// A closed loop instead of a rate: each publisher sends as soon as its last message is through. The most that the
    /// server does for so many publishers; it has no latencies
    #[arg(long = "closed-loop", conflicts_with = "rate")]
    closed_loop: bool,
}

impl Closed {
    pub(crate) fn pace(self) -> Pace {
        if self.closed_loop { Pace::Closed } else { Pace::Open }
    }
}

/// How fast, how long, how much.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Messages a second, all publishers together
    #[arg(long, default_value_t = 1_000.0)]
    pub(crate) rate: f64,
    /// Bytes of one message's content
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// Seconds at the start that are not measured (default: 2, in a soak 60)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) warm_up: Option<f64>,
    /// Seconds to wait at the end for what is still under way
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) drain: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Several counts (-n 6000,12000,18000) make a run each: memory against connections
    #[arg(long, short = 'n', default_value = "18000", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: Vec<u32>,
    /// Let each connection join a room of its own
    #[arg(long)]
    pub(crate) join: bool,
    /// Seconds after the last connection before memory is read
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub(crate) settle: f64,
    /// Seconds over which the CPU of doing nothing is measured
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) hold: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Fanout {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Connections in each room
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) members: u32,
    /// How many members of each room publish, in turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) publishers: u32,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) closed: Closed,
}

#[derive(Debug, Args)]
pub(crate) struct Floor {
    /// Where the floor's server is to listen
    #[arg(long, default_value = "127.0.0.1:19070")]
    pub(crate) floor_addr: SocketAddr,
    #[command(flatten)]
    pub(crate) fanout: Fanout,
}

#[derive(Debug, Args)]
pub(crate) struct Echo {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) closed: Closed,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Connections in each room
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) members: u32,
    /// How many members of each room publish, in turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) publishers: u32,
    /// Bytes of one message's content
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// The lowest rate, in messages a second
    #[arg(long, default_value_t = 500.0)]
    pub(crate) from: f64,
    /// The highest rate
    #[arg(long, default_value_t = 50_000.0)]
    pub(crate) to: f64,
    /// From one step to the next
    #[arg(long, default_value_t = 2.0)]
    pub(crate) factor: f64,
    /// How often the gap around the knee is halved
    #[arg(long, default_value_t = 2)]
    pub(crate) refine: u32,
    /// A step whose P99 is above this is not sustained, nor is one that is invalid or void
    #[arg(long, default_value_t = 50.0, value_name = "MS")]
    pub(crate) p99_ms_max: f64,
    /// Seconds that are measured at each step
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Seconds of each step that are not measured (default: 1)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) warm_up: Option<f64>,
    /// Seconds to wait at the end of each step for what is still under way
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) drain: f64,
    /// Leave out the closed loop at the end
    #[arg(long)]
    pub(crate) no_closed_loop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Storm {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Connections in each room; the first of each publishes and stays
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) members: u32,
    /// Seconds over which the connections are lost; 0: all at once
    #[arg(long, default_value_t = 0.0)]
    pub(crate) over: f64,
    /// Seconds that are measured, from the first loss
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Churn {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Connections in each room; the first of each publishes and stays
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) members: u32,
    /// Leaves, joins and reconnects a second, in whole turns of all three for everybody
    #[arg(long, default_value_t = 300.0)]
    pub(crate) moves: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Mixed {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, short = 'n', default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) connections: u32,
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Rooms of a connection, on average
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) memberships: u32,
    /// How much larger the first rooms are: room n has a share of 1 / n^exponent
    #[arg(long, default_value_t = 1.0)]
    pub(crate) exponent: f64,
    /// The same seed makes the same rooms
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// `typing` a second, over all connections
    #[arg(long, default_value_t = 100.0)]
    pub(crate) typing: f64,
    /// `read_receipt` a second, over all connections
    #[arg(long, default_value_t = 100.0)]
    pub(crate) receipts: f64,
    /// Reconnects a second
    #[arg(long, default_value_t = 10.0)]
    pub(crate) reconnects: f64,
    /// Users whose presence each connection watches
    #[arg(long, default_value_t = 5)]
    pub(crate) watched: u32,
    #[arg(long, default_value_t = 5.0)]
    pub(crate) minutes: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) load: Load,
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Connections in each room
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) members: u32,
    #[arg(long, default_value_t = 10.0)]
    pub(crate) minutes: f64,
    /// The run is void if memory grew more than this, in percent, from the first tenth after warm-up to the last
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    pub(crate) drift_max: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The report from before
    pub(crate) first: PathBuf,
    /// The report from after
    pub(crate) second: PathBuf,
    /// Medians that are nearer to each other than this count as the same
    #[arg(long, default_value_t = 3.0, value_name = "PERCENT")]
    pub(crate) noise_percent: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Files {
    /// Reports; the label of the first is the one that ratios are of
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
}
