//! One run's report: what is printed as a table and written as JSON, and the verdict on it. `runs` fills it, `table`
//! reads it back.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::control::WorkerResult;
use crate::environment::Environment;
use crate::histogram::{Latencies, LatencyCounts, Percentiles};
use crate::ledger::Counts;

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// `idle`, `fanout`, `echo` or `soak`.
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
    pub(crate) server: Option<ServerFigures>,
    pub(crate) drift: Option<Drift>,
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
}

/// Reports from before there were several.
fn one() -> usize {
    1
}

/// What the workers did and saw, added up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LoadFigures {
    pub(crate) scheduled: u64,
    pub(crate) sent: u64,
    pub(crate) scheduled_in_window: u64,
    /// Given to the kernel before the window ended.
    pub(crate) sent_in_window: u64,
    pub(crate) arrived_in_window: u64,
    pub(crate) arrived_per_second: f64,
    pub(crate) deliveries: Counts,
    pub(crate) acks: Counts,
    pub(crate) closed: Vec<(String, u64)>,
    pub(crate) complaints: Vec<(String, u64)>,
    /// The bench's own delay behind the schedule.
    pub(crate) send_lag: Option<Percentiles>,
    /// Of the worker that used most.
    pub(crate) bench_cpu_share: f64,
    /// Of the worker that waited most: ready to run, but no core to run on.
    pub(crate) bench_waiting_share: f64,
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

impl LoadFigures {
    /// Adds up what the workers measured over `seconds`; also the merged histograms of deliveries, those between nodes,
    /// and acks.
    pub(crate) fn merge(results: &[WorkerResult], seconds: f64) -> (LoadFigures, [Option<Percentiles>; 3]) {
        let mut sum = LoadFigures::default();
        for result in results {
            sum.scheduled += result.scheduled;
            sum.sent += result.sent;
            sum.scheduled_in_window += result.scheduled_in_window;
            sum.sent_in_window += result.sent_in_window;
            sum.arrived_in_window += result.arrived_in_window;
            sum.deliveries += result.deliveries;
            sum.acks += result.acks;
            add_texts(&mut sum.closed, &result.closed);
            add_texts(&mut sum.complaints, &result.complaints);
            sum.bench_cpu_share = sum.bench_cpu_share.max(result.cpu_share);
            sum.bench_waiting_share = sum.bench_waiting_share.max(result.waiting_share);
        }
        sum.arrived_per_second = sum.arrived_in_window as f64 / seconds;
        sum.send_lag = merged(results, |result| &result.send_lag);
        let latencies = [
            merged(results, |result| &result.delivery),
            merged(results, |result| &result.delivery_across),
            merged(results, |result| &result.ack),
        ];
        (sum, latencies)
    }

    /// Why the bench's own figures do not count.
    pub(crate) fn invalid(&self, lag_ms_max: u32, cpu_percent_max: u32) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.sent_in_window * 100 < self.scheduled_in_window * 99 {
            let percent = 100.0 * self.sent_in_window as f64 / self.scheduled_in_window as f64;
            reasons.push(format!("only {percent:.1} % of the target rate was sent"));
        }
        if self.bench_cpu_share * 100.0 > f64::from(cpu_percent_max) {
            reasons.push(format!("the bench was the bottleneck: {:.0} % of a core", self.bench_cpu_share * 100.0));
        }
        if let Some(lag) = self.send_lag
            && lag.p99_ms > f64::from(lag_ms_max)
        {
            reasons.push(format!("the bench was the bottleneck: it sent {:.1} ms late (P99)", lag.p99_ms));
        }
        reasons
    }

    /// How the server failed.
    pub(crate) fn void(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for (what, counts) in [("deliveries", self.deliveries), ("acks", self.acks)] {
            if !counts.is_clean() {
                reasons.push(format!(
                    "{what}: {} of {} lost, {} doubled, {} out of order, {} breaks of seq, {} stray",
                    counts.lost(),
                    counts.expected,
                    counts.doubled,
                    counts.out_of_order,
                    counts.seq_breaks,
                    counts.stray
                ));
            }
        }
        reasons.extend(self.closed.iter().map(|(why, count)| format!("{count} connections ended: {why}")));
        reasons.extend(self.complaints.iter().map(|(text, count)| format!("{count} times: {text}")));
        reasons
    }
}

fn merged(results: &[WorkerResult], of: impl Fn(&WorkerResult) -> &LatencyCounts) -> Option<Percentiles> {
    let mut all = Latencies::new();
    for result in results {
        all.merge(of(result));
    }
    all.percentiles()
}

fn add_texts(sum: &mut Vec<(String, u64)>, texts: &[(String, u64)]) {
    for (text, count) in texts {
        match sum.iter_mut().find(|(known, _)| known == text) {
            Some((_, known)) => *known += count,
            None => sum.push((text.clone(), *count)),
        }
    }
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

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn read_json(path: &Path) -> Result<Report> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    /// The report as a table, then the verdict.
    pub(crate) fn print(&self) {
        println!("{} ({}), commit {}", self.scenario, self.label, self.environment.commit);
        for (name, value) in self.rows() {
            println!("  {name:<34} {value}");
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

    fn rows(&self) -> Vec<(&'static str, String)> {
        let (shape, load) = (&self.shape, &self.load);
        let mut rows = vec![(
            "connections, rooms x members, nodes",
            format!("{}, {} x {}, {}", shape.connections, shape.rooms, shape.members, shape.nodes),
        )];
        if load.scheduled > 0 {
            rows.push(("target rate, content", format!("{}/s, {} B", shape.messages_per_second, shape.content_bytes)));
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
        if load.acks.expected > 0 {
            rows.push(("ledger: acks", ledger_row(load.acks)));
        }
        for (name, percentiles) in [
            ("publish to arrival", self.delivery),
            ("publish to arrival, other node", self.delivery_across),
            ("publish to ack", self.ack),
            ("bench's send lag", load.send_lag),
        ] {
            rows.extend(percentiles.map(|percentiles| (name, percentiles_row(percentiles))));
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
mod tests {
    use super::*;

    fn good() -> LoadFigures {
        let counts = Counts { expected: 100, arrived: 100, ..Counts::default() };
        LoadFigures {
            scheduled_in_window: 1000,
            sent_in_window: 990,
            deliveries: counts,
            acks: counts,
            bench_cpu_share: 0.5,
            ..LoadFigures::default()
        }
    }

    #[test]
    fn a_run_counts_from_99_percent_of_its_rate() {
        assert!(good().invalid(20, 95).is_empty());
        let slow = LoadFigures { sent_in_window: 989, ..good() };
        assert_eq!(slow.invalid(20, 95), ["only 98.9 % of the target rate was sent"]);
    }

    #[test]
    fn a_bench_that_was_the_bottleneck_says_so() {
        let busy = LoadFigures { bench_cpu_share: 0.97, ..good() };
        assert_eq!(busy.invalid(20, 95), ["the bench was the bottleneck: 97 % of a core"]);
        let mut lag = Latencies::new();
        lag.record(30_000_000);
        let late = LoadFigures { send_lag: lag.percentiles(), ..good() };
        assert_eq!(late.invalid(20, 95).len(), 1);
        assert!(late.invalid(40, 95).is_empty());
    }

    #[test]
    fn anything_lost_doubled_ended_or_refused_voids_the_run() {
        assert!(good().void().is_empty());
        let lost = Counts { expected: 100, arrived: 99, ..Counts::default() };
        let reasons = LoadFigures { deliveries: lost, ..good() }.void();
        assert_eq!(reasons, ["deliveries: 1 of 100 lost, 0 doubled, 0 out of order, 0 breaks of seq, 0 stray"]);
        assert_eq!(LoadFigures { acks: lost, ..good() }.void().len(), 1);
        assert_eq!(LoadFigures { closed: vec![("closed with 4008".into(), 2)], ..good() }.void().len(), 1);
        assert_eq!(LoadFigures { complaints: vec![("error".into(), 2)], ..good() }.void().len(), 1);
    }

    #[test]
    fn workers_add_up() {
        let one = WorkerResult { sent: 5, cpu_share: 0.2, closed: vec![("x".into(), 1)], ..WorkerResult::default() };
        let two = WorkerResult { sent: 7, cpu_share: 0.4, closed: vec![("x".into(), 2)], ..WorkerResult::default() };
        let (sum, _) = LoadFigures::merge(&[one, two], 1.0);
        assert_eq!((sum.sent, sum.closed, sum.bench_cpu_share), (12, vec![("x".into(), 3)], 0.4));
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
