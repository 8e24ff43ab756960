//! What a run makes the nodes do behind their sockets, by their own count: counters and times of `/metrics` of each
//! node, and the commands that Redis has counted. `ask` samples it at both ends of the measured window.
//!
//! What it never does: judge. Who shares the Redis is counted too, and so is what runs inside of scripts.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::args::Common;
use crate::histogram::Percentiles;

/// How long a node or Redis may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Counters worth a line, without `roomwire_` and `_total`.
const COUNTERS: &[&str] = &[
    "bridge_published",
    "bridge_inits",
    "bridge_history_pages",
    "bridge_history_from_memory",
    "bridge_history_from_log",
    "bus_commands",
    "bus_pipelines",
    "bus_events",
    "store_statements",
    "store_rows_appended",
    "store_commits",
    "store_failures",
];
/// Times worth a line, without `roomwire_` and `_seconds`.
const TIMES: &[&str] =
    &["durable", "store_append", "store_commit", "store_read", "store_conditional", "bus_pipeline", "fanout"];

/// Everything counted up to one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// The series of all nodes, added up by name and labels.
    series: BTreeMap<String, f64>,
    /// Calls of each Redis command, and the microseconds that they took.
    commands: BTreeMap<String, (u64, u64)>,
}

/// What the measured window made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BackendFigures {
    /// Increments of the nodes' counters.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Calls of each command that Redis counted, those inside of scripts included.
    pub(crate) redis: BTreeMap<String, u64>,
    /// Microseconds that Redis spent in each, its sockets left aside; in `evalsha` those of what runs inside.
    #[serde(default)]
    pub(crate) redis_us: BTreeMap<String, u64>,
    /// The nodes' own times, by the bounds of their histograms.
    pub(crate) times: BTreeMap<String, Percentiles>,
}

impl Sample {
    /// `None` if the command line names neither nodes nor a Redis.
    pub(crate) fn of(common: &Common) -> Result<Option<Sample>> {
        if common.metrics.is_empty() && common.redis.is_none() {
            return Ok(None);
        }
        let mut sample = Sample::default();
        for addr in &common.metrics {
            let text = scrape(*addr).with_context(|| format!("no metrics at http://{addr}/metrics"))?;
            for (name, value) in series(&text) {
                *sample.series.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        if let Some(addr) = common.redis {
            let text = command_stats(addr).with_context(|| format!("no INFO from Redis at {addr}"))?;
            sample.commands = commands(&text);
        }
        Ok(Some(sample))
    }

    /// What happened from `self` to `later`.
    pub(crate) fn until(&self, later: &Sample) -> BackendFigures {
        let grown = |name: &str| {
            let value = |sample: &Sample| sample.series.get(name).copied();
            value(later).map(|to| to - value(self).unwrap_or(0.0))
        };
        let counts = COUNTERS.iter().filter_map(|name| {
            let count = grown(&format!("roomwire_{name}_total"))?;
            (count > 0.0).then(|| ((*name).to_owned(), count as u64))
        });
        let times = TIMES.iter().filter_map(|name| Some(((*name).to_owned(), self.times(later, name)?)));
        let (mut redis, mut redis_us) = (BTreeMap::new(), BTreeMap::new());
        for (name, (calls_to, us_to)) in later.commands.iter().filter(|(name, _)| *name != "info") {
            let (calls, us) = self.commands.get(name).copied().unwrap_or_default();
            if *calls_to > calls {
                redis.insert(name.clone(), calls_to - calls);
                redis_us.insert(name.clone(), us_to.saturating_sub(us));
            }
        }
        BackendFigures { counts: counts.collect(), times: times.collect(), redis, redis_us }
    }

    fn times(&self, later: &Sample, name: &str) -> Option<Percentiles> {
        let prefix = format!("roomwire_{name}_seconds_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = later
            .series
            .range(prefix.clone()..)
            .take_while(|(series, _)| series.starts_with(&prefix))
            .filter_map(|(series, to)| {
                let bound = series[prefix.len()..].strip_suffix("\"}")?;
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
                Some((bound, to - self.series.get(series).copied().unwrap_or(0.0)))
            })
            .collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        percentiles(&buckets)
    }
}

/// From counts of what is at most so many seconds. A value is taken to lie in its bucket as evenly as can be.
fn percentiles(buckets: &[(f64, f64)]) -> Option<Percentiles> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let at = |quantile: f64| {
        let wanted = quantile * all;
        let index = buckets.iter().position(|(_, count)| *count >= wanted).unwrap_or(buckets.len() - 1);
        let (low, below) = index.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
        let (high, count) = buckets[index];
        if high.is_infinite() {
            return low * 1e3;
        }
        let part = if count > below { (wanted - below) / (count - below) } else { 1.0 };
        (low + (high - low) * part) * 1e3
    };
    Some(Percentiles {
        count: all as u64,
        p50_ms: at(0.5),
        p95_ms: at(0.95),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: at(1.0),
    })
}

impl BackendFigures {
    /// As they are printed.
    pub(crate) fn rows(&self) -> Vec<(String, String)> {
        let messages = self.counts.get("bridge_published").copied().unwrap_or(0);
        let counted = |count: u64| match messages {
            0 => count.to_string(),
            messages => format!("{count} ({:.3} per message)", count as f64 / messages as f64),
        };
        let mut rows: Vec<(String, String)> =
            self.counts.iter().map(|(name, count)| (format!("nodes: {name}"), counted(*count))).collect();
        rows.extend(self.times.iter().map(|(name, at)| {
            let row =
                format!("P50 {:.2}  P95 {:.2}  P99 {:.2} ms ({} times)", at.p50_ms, at.p95_ms, at.p99_ms, at.count);
            (format!("nodes: {name}, by bounds"), row)
        }));
        rows.extend(self.redis.iter().map(|(name, count)| {
            let us = self.redis_us.get(name).map_or(0.0, |us| *us as f64 / *count as f64);
            (format!("redis: {name}"), format!("{}, {us:.1} us each", counted(*count)))
        }));
        rows
    }
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    Ok(stream)
}

/// The body of `/metrics`.
fn scrape(addr: SocketAddr) -> Result<String> {
    let mut stream = connect(addr)?;
    // HTTP/1.0: the answer ends with the connection and comes in one piece.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{status}");
    }
    Ok(body.to_owned())
}

/// The lines that hold a series: its name with labels, and its value.
fn series(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name, value.parse().ok()?))
    })
}

/// What Redis says to `INFO commandstats`.
fn command_stats(addr: SocketAddr) -> Result<String> {
    let mut stream = BufReader::new(connect(addr)?);
    stream.get_mut().write_all(b"INFO commandstats\r\n")?;
    let mut head = String::new();
    stream.read_line(&mut head)?;
    let length = head.trim_end().strip_prefix('$').and_then(|length| length.parse().ok());
    let Some(length) = length else { bail!("{}", head.trim_end()) };
    let mut body = vec![0_u8; length];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Calls and microseconds by command, from lines like `cmdstat_evalsha:calls=5,usec=60,...`.
fn commands(stats: &str) -> BTreeMap<String, (u64, u64)> {
    let command = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let (calls, rest) = rest.split_once(",usec=")?;
        let us = rest.split([',', '\r']).next()?;
        Some((name.to_owned(), (calls.parse().ok()?, us.parse().ok()?)))
    };
    stats.lines().filter_map(command).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn sample(text: &str, stats: &str) -> Sample {
        Sample {
            series: series(text).map(|(name, value)| (name.to_owned(), value)).collect(),
            commands: commands(stats),
        }
    }

    const FIRST: &str = "# HELP x y\nroomwire_bridge_published_total 100\nroomwire_bus_commands_total 7\n\
        roomwire_durable_seconds_bucket{le=\"0.001\"} 10\nroomwire_durable_seconds_bucket{le=\"0.002\"} 10\n\
        roomwire_durable_seconds_bucket{le=\"+Inf\"} 10\n# EOF\n";
    const LATER: &str = "roomwire_bridge_published_total 300\nroomwire_bus_commands_total 407\n\
        roomwire_durable_seconds_bucket{le=\"0.001\"} 60\nroomwire_durable_seconds_bucket{le=\"0.002\"} 110\n\
        roomwire_durable_seconds_bucket{le=\"+Inf\"} 110\n";

    #[test]
    fn what_grew_in_the_window_is_told_per_message() {
        let first =
            sample(FIRST, "cmdstat_evalsha:calls=50,usec=1,usec_per_call=0.02\r\ncmdstat_info:calls=1,usec=9\r\n");
        let later = sample(
            LATER,
            "cmdstat_evalsha:calls=350,usec=601\r\ncmdstat_client|list:calls=4,usec=0\r\ncmdstat_info:calls=2,usec=9\r\n",
        );
        let figures = first.until(&later);
        assert_eq!(figures.counts, [("bridge_published".to_owned(), 200), ("bus_commands".to_owned(), 400)].into());
        assert_eq!(figures.redis, [("client|list".to_owned(), 4), ("evalsha".to_owned(), 300)].into());
        let rows = figures.rows();
        assert_eq!(figures.redis_us["evalsha"], 600);
        assert!(rows.contains(&("redis: evalsha".into(), "300 (1.500 per message), 2.0 us each".into())), "{rows:?}");
    }

    #[test]
    fn a_percentile_lies_within_its_bucket() {
        let at = sample(FIRST, "").until(&sample(LATER, "")).times["durable"];
        assert_eq!(at.count, 100);
        // Of a hundred, fifty took up to one millisecond and fifty between one and two.
        assert!((at.p50_ms - 1.0).abs() < 1e-9 && (at.p95_ms - 1.9).abs() < 1e-9, "{at:?}");
        assert_eq!(percentiles(&[(0.001, 0.0), (f64::INFINITY, 0.0)]), None);
        assert_eq!(percentiles(&[(0.001, 0.0), (f64::INFINITY, 5.0)]).map(|at| at.p50_ms), Some(1.0));
    }

    /// Answers one client with `answer`.
    fn serve(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = [0; 256];
            let _ = stream.read(&mut asked);
            let _ = stream.write_all(answer);
        });
        addr
    }

    #[test]
    fn nodes_and_redis_are_asked_over_sockets_and_a_refusal_is_told() {
        assert_eq!(scrape(serve(b"HTTP/1.0 200 OK\r\n\r\na 1\n")).expect("an answer"), "a 1\n");
        assert!(scrape(serve(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")).is_err());
        let stats = command_stats(serve(b"$27\r\ncmdstat_get:calls=3,usec=7,\r\n")).expect("an answer");
        assert_eq!(commands(&stats), [("get".to_owned(), (3, 7))].into());
        let refused = command_stats(serve(b"-NOAUTH Authentication required.\r\n"));
        assert!(refused.is_err_and(|error| error.to_string().contains("NOAUTH")));
    }
}
