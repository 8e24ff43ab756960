//! The command line. `main` parses it, `runs` reads it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::agent;
use crate::capacity;
use crate::dialect::Dialect;
use crate::plan::Pace;

/// With the commit that this binary was built of.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// Open-loop load for a room server: latency from the intended send time, cost by the server's pid, and a ledger that
/// proves that nothing was lost, doubled or out of order. Exit status 1 if a run is invalid or void.
#[derive(Debug, Parser)]
#[command(name = "roomwire-bench", version = VERSION, args_override_self = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Run(Run),
    /// The same work for Roomwire and its peers, in turn, each pinned alike: medians and ratios
    Compare(Compare),
    /// Every run against one server, within a budget of minutes
    Suite(Suite),
    /// Print medians and ratios of reports written with --json
    Table(Files),
    /// Make one report of several written with --json: page, pictures, CSV
    Report(Merge),
    /// Compare two reports written with --json: what got better or worse beyond the noise. Exit status 1 if anything got worse
    Diff(Diff),
    /// Hold connections for runs that other machines conduct with --agent
    Agent(agent::Agent),
    /// How many boxes, Redis shards and Cassandra nodes a load wants, from the costs that a suite has measured
    Plan(capacity::Plan),
    /// Write the man pages into a folder: roomwire-bench and one for each command
    #[command(hide = true)]
    Man { folder: PathBuf },
    /// Serve as `floor` wants it; started by it
    #[command(hide = true)]
    FloorServer { addr: SocketAddr },
    /// Hold a share of the connections; started by the other commands, which write its plan to its stdin
    #[command(hide = true)]
    Worker,
}

/// One kind of load. `compare` and `suite` make them of lines like those that people type.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Run {
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
    /// Join rooms that hold messages, as somebody new does: time to the page of history
    History(History),
    /// A chat product: rooms by Zipf, messages, typing, receipts, presence, people who come and go
    Mixed(Mixed),
    /// The same fan-out through a server that does nothing else: what this machine's kernel and loopback allow
    Floor(Floor),
    /// Minutes of chatting: drift of memory after warm-up, ledger
    Soak(Soak),
}

/// The part that every run has, of a `&Run` or of a `&mut Run`.
macro_rules! common_of {
    ($run:expr) => {
        match $run {
            Run::Idle(Idle { common, .. })
            | Run::Fanout(Fanout { common, .. })
            | Run::Echo(Echo { common, .. })
            | Run::Latency(Latency { common, .. })
            | Run::Storm(Storm { common, .. })
            | Run::Churn(Churn { common, .. })
            | Run::History(History { common, .. })
            | Run::Mixed(Mixed { common, .. })
            | Run::Floor(Floor { fanout: Fanout { common, .. }, .. })
            | Run::Soak(Soak { common, .. }) => common,
        }
    };
}

impl Run {
    /// What every run wants to know.
    pub(crate) fn common(&self) -> &Common {
        common_of!(self)
    }

    pub(crate) fn common_mut(&mut self) -> &mut Common {
        common_of!(self)
    }
}

/// What every run wants to know. `compare` names the servers itself.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Where the server listens; with several (--addr A,B) the members of each room are spread over these nodes
    #[arg(long, default_value = "127.0.0.1:8080", value_delimiter = ',')]
    pub(crate) addr: Vec<SocketAddr>,
    /// Path of the upgrade request (default: the dialect's)
    #[arg(long)]
    pub(crate) path: Option<String>,
    #[arg(long, value_enum, default_value = "roomwire")]
    pub(crate) dialect: Dialect,
    /// Secret that tokens for the users u0, u1, ... (HS256) and subscriptions (pusher) are signed with
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub(crate) secret: String,
    /// Pid of the running server, to measure what the run costs it; several are added up
    #[arg(long, conflicts_with = "spawn", value_delimiter = ',')]
    pub(crate) pid: Vec<u32>,
    /// Start the server with this shell command, measure it, and stop it at the end; once for each --addr
    #[arg(long, value_name = "CMD")]
    pub(crate) spawn: Vec<String>,
    /// Cores that --spawn pins the server to, as taskset reads them
    #[arg(long, value_name = "LIST")]
    pub(crate) server_cpu: Option<String>,
    /// Cores that the workers are pinned to, as taskset reads them
    #[arg(long, value_name = "LIST")]
    pub(crate) client_cpu: Option<String>,
    /// Processes that share the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) workers: u32,
    /// Let these load machines hold the connections and not this one: roomwire-bench agent listens there; --workers is then of each
    #[arg(long, value_delimiter = ',', value_name = "ADDR", conflicts_with = "client_cpu")]
    pub(crate) agent: Vec<SocketAddr>,
    /// Source addresses 127.0.0.1, 127.0.0.2, ... so that ports do not run out (loopback only; 0 lets the kernel choose)
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=250))]
    pub(crate) sources: u8,
    /// Number of the first user, so that runs beside each other have users of their own
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1_000_000_000))]
    pub(crate) first_user: u32,
    /// Handshakes under way at once, in each worker
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connect_burst: u32,
    /// Make the run so often, each time with a server of its own if --spawn starts it: `diff` wants three
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Where the nodes serve /metrics: adds what they themselves count and time in the measured window
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    pub(crate) metrics: Vec<SocketAddr>,
    /// The nodes' Redis: adds the commands that it counts in the measured window
    #[arg(long, value_name = "ADDR")]
    pub(crate) redis: Option<SocketAddr>,
    /// Run this shell command when all have joined, before the first message; the report says how long it took
    #[arg(long, value_name = "CMD")]
    pub(crate) between: Option<String>,
    /// What the rooms are named after, to meet them again in another run (default: by the time)
    #[arg(long, value_name = "NAME", value_parser = room_prefix)]
    pub(crate) run_id: Option<String>,
    /// Count the server's system calls with `perf`; slows each of them, so read no CPU figures from such a run
    #[arg(long)]
    pub(crate) syscalls: bool,
    #[command(flatten)]
    pub(crate) outputs: Outputs,
    /// What was measured, for `table` (default: the dialect)
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Name of the scenario, for `table` (default: the run)
    #[arg(long)]
    pub(crate) scenario: Option<String>,
    /// What the server is set to, in a few words for the report
    #[arg(long, value_name = "TEXT")]
    pub(crate) config: Option<String>,
    /// The run is invalid if the bench itself sent or read later than this in one of a hundred cases
    #[arg(long, default_value_t = 20, value_name = "MS")]
    pub(crate) lag_ms_max: u32,
    /// The run is invalid if a worker used more than this share of a core, in percent
    #[arg(long, default_value_t = 95, value_name = "PERCENT")]
    pub(crate) cpu_percent_max: u32,
}

/// Where a report goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Outputs {
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
}

/// What a room's name may hold, and no hyphen: the room's number comes after the last one.
fn room_prefix(text: &str) -> Result<String, String> {
    let is_fine = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_fine { Ok(text.to_owned()) } else { Err("1 to 64 letters and digits".into()) }
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
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Messages a second, all publishers together (default: 1000, in a mixed run 100)
    #[arg(long)]
    pub(crate) rate: Option<f64>,
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
pub(crate) struct Floor {
    /// Where the floor's server is to listen
    #[arg(long, default_value = "127.0.0.1:19070")]
    pub(crate) floor_addr: SocketAddr,
    #[command(flatten)]
    pub(crate) fanout: Fanout,
}

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Rooms, one reader each; a `fanout` with the same --run-id and as many rooms has written to them
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// How often each reader asks: the first time it joins, then it asks again as a member
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) reads: u32,
    /// Reads a second
    #[arg(long, default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// Messages that each read has to bring, the newest of the room and without a gap
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) messages: u32,
    /// Seconds to wait at the end for what is still under way
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) drain: f64,
}

#[derive(Clone, Debug, Args)]
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
    #[arg(long, default_value_t = 50.0)]
    pub(crate) typing: f64,
    /// `read_receipt` a second, over all connections
    #[arg(long, default_value_t = 50.0)]
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

#[derive(Clone, Debug, Args)]
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

#[derive(Clone, Debug, Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Where the peers are: a folder for each, with peer.json, setup and serve
    #[arg(long, default_value = "bench/peers", value_name = "FOLDER")]
    pub(crate) peers: PathBuf,
    /// Only these peers, in this order; ratios are of the first (default: roomwire, then all others)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Only this work (default: all that a peer's peer.json names)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) work: Vec<String>,
    /// Seconds that are measured, in each run
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u32,
    /// Connections of the work `idle`; fewer if the descriptors do not reach
    #[arg(long, short = 'n', default_value_t = 18_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Where the peers listen; the next few ports are theirs, too
    #[arg(long, default_value_t = 19_080)]
    pub(crate) port: u16,
    /// Where the peers' data and the reports go; not into memory, which makes fsync free
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Suite {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Start a new server with an empty folder for each run, as this folder of bench/peers says, in place of --spawn or --pid
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["spawn", "pid"])]
    pub(crate) peer: Option<PathBuf>,
    /// Only these runs (default: all that the server can do)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Where the data of --peer goes; not into memory, which makes fsync free
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// How long all runs together may take, about
    #[arg(long, default_value_t = 15.0)]
    pub(crate) minutes: f64,
    /// Connections of the run `idle`; fewer if the descriptors do not reach
    #[arg(long, short = 'n', default_value_t = 18_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Diff {
    /// The report from before
    pub(crate) first: PathBuf,
    /// The report from after
    pub(crate) second: PathBuf,
    /// Medians that are nearer to each other than this count as the same
    #[arg(long, default_value_t = 3.0, value_name = "PERCENT")]
    pub(crate) noise_percent: f64,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Merge {
    /// Reports
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) outputs: Outputs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Files {
    /// Reports; the label of the first is the one that ratios are of
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
}
