//! One run's report: what is printed as a table and written as JSON. `runs` fills it; `book` writes and reads files of
//! them; `table`, `diff` and `html` compare and draw them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backends::BackendFigures;
use crate::environment::Environment;
use crate::histogram::Percentiles;
use crate::ledger::Counts;
use crate::load::LoadFigures;
use crate::plan::Pace;
use crate::timed::Timed;

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The command: `idle`, `fanout`, ...
    pub(crate) run: String,
    pub(crate) scenario: String,
    pub(crate) label: String,
    pub(crate) environment: Environment,
    pub(crate) shape: Shape,
    /// Why the figures do not count: the bench did not do what it promised.
    pub(crate) invalid: Vec<String>,
    /// Why the server failed: something lost, doubled, out of order, refused or ended.
    pub(crate) void: Vec<String>,
    pub(crate) load: LoadFigures,
    /// From the intended send time to the arrival at each receiver.
    pub(crate) delivery: Option<Percentiles>,
    /// Of those, from a publisher on one node to a receiver on another.
    #[serde(default)]
    pub(crate) delivery_across: Option<Percentiles>,
    /// From the intended send time to the ack at the publisher.
    pub(crate) ack: Option<Percentiles>,
    /// All other times.
    #[serde(default)]
    pub(crate) times: BTreeMap<Timed, Percentiles>,
    /// Points of the percentile curves: quantile, milliseconds.
    #[serde(default)]
    pub(crate) curves: BTreeMap<Timed, Vec<(f64, f64)>>,
    /// For a step of a rising rate: why the server did not sustain it; empty if it did.
    #[serde(default)]
    pub(crate) beyond_knee: Vec<String>,
    pub(crate) server: Option<ServerFigures>,
    pub(crate) drift: Option<Drift>,
    /// What nodes and Redis counted, where the command line names them.
    #[serde(default)]
    pub(crate) backends: Option<BackendFigures>,
    /// How long the command of `--between` took.
    #[serde(default)]
    pub(crate) between_secs: Option<f64>,
    /// By how much times from one load machine to another may be wrong.
    #[serde(default)]
    pub(crate) clock_error_ms: Option<f64>,
}

/// What was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) connections: u32,
    pub(crate) rooms: u32,
    pub(crate) members: u32,
    pub(crate) publishers_per_room: u32,
    pub(crate) messages_per_second: f64,
    pub(crate) content_bytes: usize,
    pub(crate) warm_up_secs: f64,
    pub(crate) measured_secs: f64,
    pub(crate) workers: u32,
    /// Nodes of the server.
    #[serde(default = "one")]
    pub(crate) nodes: usize,
    #[serde(default)]
    pub(crate) pace: Pace,
}

/// Reports from before there were several.
fn one() -> usize {
    1
}

/// What the run cost the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ServerFigures {
    pub(crate) rss_before_bytes: u64,
    pub(crate) rss_ready_bytes: u64,
    pub(crate) rss_end_bytes: u64,
    pub(crate) rss_bytes_per_connection: f64,
    /// Both ends of each connection are on this machine.
    pub(crate) slab_bytes_per_connection_pair: f64,
    /// In the measured window, of one core.
    pub(crate) cpu_share: f64,
    pub(crate) cpu_us_per_arrival: Option<f64>,
    pub(crate) cpu_us_per_connection_second: f64,
    /// The same by thread; those under a thousandth are left out.
    pub(crate) cpu_share_by_thread: Vec<(String, f64)>,
    pub(crate) switches_voluntary_per_second: f64,
    pub(crate) switches_involuntary_per_second: f64,
    /// What the sockets of the whole machine held in buffers at the end of the window; both ends of each connection.
    #[serde(default)]
    pub(crate) socket_buffer_bytes: u64,
    /// CPU of the window over the connections that came back in it, everything else that happened included.
    #[serde(default)]
    pub(crate) cpu_us_per_move: Option<f64>,
    /// Counted by `perf`, which itself slows each of them: only where it was asked for.
    #[serde(default)]
    pub(crate) syscalls_per_second: Option<f64>,
    #[serde(default)]
    pub(crate) syscalls_per_arrival: Option<f64>,
}

/// How memory went over a soak.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// Median of the first tenth of the samples after warm-up, and of the last.
    pub(crate) first_bytes: u64,
    pub(crate) last_bytes: u64,
    pub(crate) percent: f64,
    /// One each second.
    pub(crate) rss_bytes: Vec<u64>,
}

impl Drift {
    /// `rss_bytes` after warm-up, in order. `None` if there are too few to compare.
    pub(crate) fn of(rss_bytes: Vec<u64>) -> Option<Drift> {
        let tenth = rss_bytes.len() / 10;
        let first_bytes = median(rss_bytes.get(..tenth)?)?;
        let last_bytes = median(rss_bytes.get(rss_bytes.len() - tenth..)?)?;
        let percent = 100.0 * (last_bytes as f64 - first_bytes as f64) / first_bytes.max(1) as f64;
        Some(Drift { first_bytes, last_bytes, percent, rss_bytes })
    }
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

impl Report {
    /// Whether the figures count and the server did all it had to.
    pub(crate) fn is_good(&self) -> bool {
        self.invalid.is_empty() && self.void.is_empty()
    }

    /// Whether it spoils the whole: a step that was too much for the server does not.
    pub(crate) fn is_failure(&self) -> bool {
        !self.is_good() && self.beyond_knee.is_empty()
    }

    /// The report as a table, then the verdict.
    pub(crate) fn print(&self) {
        let Environment { commit, server_version, .. } = &self.environment;
        println!("{} ({}), bench {commit}, server {server_version}", self.scenario, self.label);
        for (name, value) in self.rows() {
            println!("  {name:<34} {value}");
        }
        for (name, value) in self.backends.iter().flat_map(BackendFigures::rows) {
            println!("  {name:<34} {value}");
        }
        for reason in &self.beyond_knee {
            println!("  not sustained: {reason}");
        }
        for reason in &self.invalid {
            println!("  INVALID: {reason}");
        }
        for reason in &self.void {
            println!("  VOID: {reason}");
        }
        if self.is_good() {
            println!("  valid");
        }
    }

    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let (shape, load) = (&self.shape, &self.load);
        let mut rows = vec![(
            "connections, rooms x members, nodes",
            format!("{}, {} x {}, {}", shape.connections, shape.rooms, shape.members, shape.nodes),
        )];
        if load.scheduled > 0 {
            let rate = match shape.pace {
                Pace::Open => format!("{:.0}/s, {} B", shape.messages_per_second, shape.content_bytes),
                Pace::Closed => format!("closed loop, {} B: a maximum, no latencies", shape.content_bytes),
            };
            rows.push(("target rate, content", rate));
            rows.push((
                "sent of scheduled in the window",
                format!("{} of {}", load.sent_in_window, load.scheduled_in_window),
            ));
            rows.push((
                "arrived in the window",
                format!("{} ({:.0}/s)", load.arrived_in_window, load.arrived_per_second),
            ));
            rows.push(("ledger: deliveries", ledger_row(load.deliveries)));
        }
        if let Some(ms) = self.clock_error_ms {
            rows.push(("clocks of the agents agree within", format!("{ms:.3} ms")));
        }
        if let Some(seconds) = self.between_secs {
            rows.push(("the command between", format!("{seconds:.2} s")));
        }
        if load.acks.expected > 0 {
            rows.push(("ledger: acks", ledger_row(load.acks)));
        }
        for (name, percentiles) in [
            ("publish to arrival", self.delivery),
            ("publish to arrival, other node", self.delivery_across),
            ("publish to ack", self.ack),
        ] {
            rows.extend(percentiles.map(|percentiles| (name, percentiles_row(percentiles))));
        }
        rows.extend(self.times.iter().map(|(what, percentiles)| (what.title(), percentiles_row(*percentiles))));
        rows.extend(load.counts.iter().map(|(what, count)| (what.title(), count.to_string())));
        for (name, lag) in [("bench's send lag", load.send_lag), ("bench's read lag", load.read_lag)] {
            rows.extend(lag.map(|lag| (name, percentiles_row(lag))));
        }
        rows.push((
            "bench: CPU, waiting for a core",
            format!("{:.0} %, {:.0} %", load.bench_cpu_share * 100.0, load.bench_waiting_share * 100.0),
        ));
        if let Some(server) = &self.server {
            rows.extend(server.rows());
        }
        if let Some(drift) = &self.drift {
            rows.push((
                "RSS, first and last tenth",
                format!("{} KiB, {} KiB ({:+.2} %)", drift.first_bytes / 1024, drift.last_bytes / 1024, drift.percent),
            ));
        }
        rows
    }
}

impl ServerFigures {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let threads = self.cpu_share_by_thread.iter().map(|(name, share)| format!("{name} {:.1} %", share * 100.0));
        let threads = threads.collect::<Vec<_>>().join(", ");
        let mut rows = vec![("server: CPU share", format!("{:.1} % ({threads})", self.cpu_share * 100.0))];
        if let Some(us) = self.cpu_us_per_arrival {
            rows.push(("server: CPU per arrival", format!("{us:.2} us")));
        }
        rows.push(("server: CPU per connection-second", format!("{:.2} us", self.cpu_us_per_connection_second)));
        rows.push((
            "server: RSS before, ready, end",
            format!(
                "{} KiB, {} KiB, {} KiB",
                self.rss_before_bytes / 1024,
                self.rss_ready_bytes / 1024,
                self.rss_end_bytes / 1024
            ),
        ));
        rows.push(("server: RSS per connection", format!("{:.0} B", self.rss_bytes_per_connection)));
        rows.push(("kernel: slab per connection, both ends", format!("{:.0} B", self.slab_bytes_per_connection_pair)));
        rows.push((
            "server: switches/s, wanted and forced",
            format!("{:.0}, {:.0}", self.switches_voluntary_per_second, self.switches_involuntary_per_second),
        ));
        rows.push(("kernel: socket buffers, all sockets", format!("{} KiB", self.socket_buffer_bytes / 1024)));
        if let Some(us) = self.cpu_us_per_move {
            rows.push(("server: CPU per move", format!("{us:.1} us, {:.0} per second and core", 1e6 / us)));
        }
        if let Some(per_second) = self.syscalls_per_second {
            let each = self.syscalls_per_arrival.map_or(String::new(), |each| format!(", {each:.3} per arrival"));
            rows.push(("server: system calls", format!("{per_second:.0}/s{each}, counted by perf")));
        }
        rows
    }
}

fn ledger_row(counts: Counts) -> String {
    format!(
        "{} of {}, lost {}, doubled {}, out of order {}",
        counts.arrived,
        counts.expected,
        counts.lost(),
        counts.doubled,
        counts.out_of_order + counts.seq_breaks
    )
}

fn percentiles_row(at: Percentiles) -> String {
    format!(
        "P50 {:.2}  P95 {:.2}  P99 {:.2}  P99.9 {:.2}  max {:.2} ms",
        at.p50_ms, at.p95_ms, at.p99_ms, at.p999_ms, at.max_ms
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::environment::Environment;

    /// A good report of `run` with this P99 and this CPU per arrival.
    pub(crate) fn report(run: &str, p99_ms: f64, cpu_us: f64) -> Report {
        let at =
            Percentiles { count: 100, p50_ms: 1.0, p95_ms: 2.0, p99_ms, p999_ms: p99_ms * 2.0, max_ms: p99_ms * 3.0 };
        let counts = Counts { expected: 100, arrived: 100, ..Counts::default() };
        Report {
            run: run.into(),
            scenario: run.into(),
            label: "roomwire".into(),
            environment: Environment::default(),
            shape: Shape {
                connections: 100,
                rooms: 10,
                members: 10,
                publishers_per_room: 1,
                messages_per_second: 1_000.0,
                content_bytes: 128,
                warm_up_secs: 1.0,
                measured_secs: 5.0,
                workers: 1,
                nodes: 1,
                pace: Pace::Open,
            },
            invalid: Vec::new(),
            void: Vec::new(),
            load: LoadFigures { scheduled: 100, deliveries: counts, acks: counts, ..LoadFigures::default() },
            delivery: Some(at),
            delivery_across: None,
            ack: Some(at),
            times: BTreeMap::new(),
            curves: BTreeMap::from([(Timed::Delivery, vec![(0.5, 1.0), (0.99, p99_ms), (1.0, p99_ms * 3.0)])]),
            beyond_knee: Vec::new(),
            server: Some(ServerFigures { cpu_us_per_arrival: Some(cpu_us), ..ServerFigures::default() }),
            drift: None,
            backends: None,
            between_secs: None,
            clock_error_ms: None,
        }
    }

    #[test]
    fn a_step_beyond_the_knee_is_no_failure_but_a_void_run_is() {
        let void = Report { void: vec!["1 lost".into()], ..report("latency", 1.0, 1.0) };
        assert!(void.is_failure());
        assert!(!Report { beyond_knee: vec!["P99".into()], ..void }.is_failure());
    }

    #[test]
    fn drift_compares_the_first_tenth_with_the_last_and_ignores_spikes() {
        let mut samples = vec![1_000; 50];
        samples.extend([1_010; 50]);
        samples[3] = 9_000;
        let drift = Drift::of(samples).expect("enough samples");
        assert_eq!((drift.first_bytes, drift.last_bytes), (1_000, 1_010));
        assert!((drift.percent - 1.0).abs() < 1e-9);
        assert!(Drift::of(vec![1; 9]).is_none());
    }
}
