//! What the workers of one run did and saw, added up, and the verdict on it: figures that do not count (`invalid`) and
//! servers that failed (`void`). `runs` calls it, `report` keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::WorkerResult;
use crate::histogram::{Latencies, Percentiles};
use crate::ledger::Counts;
use crate::timed::{Counted, Timed};

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
    /// How long what had arrived waited for the bench to read it.
    #[serde(default)]
    pub(crate) read_lag: Option<Percentiles>,
    /// What else happened.
    #[serde(default)]
    pub(crate) counts: BTreeMap<Counted, u64>,
    /// Of the worker that used most.
    pub(crate) bench_cpu_share: f64,
    /// Of the worker that waited most: ready to run, but no core to run on.
    pub(crate) bench_waiting_share: f64,
}

impl LoadFigures {
    /// Adds up what the workers measured over `seconds`; also their merged times.
    pub(crate) fn merge(results: &[WorkerResult], seconds: f64) -> (LoadFigures, BTreeMap<Timed, Latencies>) {
        let mut sum = LoadFigures::default();
        let mut times: BTreeMap<Timed, Latencies> = BTreeMap::new();
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
            for (what, count) in &result.counts {
                *sum.counts.entry(*what).or_insert(0) += count;
            }
            for (what, counts) in &result.times {
                times.entry(*what).or_insert_with(Latencies::new).merge(counts);
            }
        }
        sum.arrived_per_second = sum.arrived_in_window as f64 / seconds;
        sum.send_lag = times.get(&Timed::SendLag).and_then(Latencies::percentiles);
        sum.read_lag = times.get(&Timed::ReadLag).and_then(Latencies::percentiles);
        (sum, times)
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
        for (lag, what) in [(self.send_lag, "sent"), (self.read_lag, "read")] {
            if let Some(lag) = lag.filter(|lag| lag.p99_ms > f64::from(lag_ms_max)) {
                reasons.push(format!("the bench was the bottleneck: it {what} {:.1} ms late (P99)", lag.p99_ms));
            }
        }
        reasons
    }

    /// How the server failed.
    pub(crate) fn void(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        // Nobody promises an order of acks.
        for (what, counts, is_fine) in
            [("deliveries", self.deliveries, self.deliveries.is_clean()), ("acks", self.acks, self.acks.is_each_once())]
        {
            if !is_fine {
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
        if let Some(count) = self.counts.get(&Counted::MovesUnfinished) {
            reasons.push(format!("{count} joins or reconnects did not end"));
        }
        reasons.extend(self.closed.iter().map(|(why, count)| format!("{count} connections ended: {why}")));
        reasons.extend(self.complaints.iter().map(|(text, count)| format!("{count} times: {text}")));
        reasons
    }
}

fn add_texts(sum: &mut Vec<(String, u64)>, texts: &[(String, u64)]) {
    for (text, count) in texts {
        match sum.iter_mut().find(|(known, _)| known == text) {
            Some((_, known)) => *known += count,
            None => sum.push((text.clone(), *count)),
        }
    }
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
        let slow_reader = LoadFigures { read_lag: lag.percentiles(), ..good() };
        assert_eq!(slow_reader.invalid(20, 95), ["the bench was the bottleneck: it read 30.0 ms late (P99)"]);
    }

    #[test]
    fn anything_lost_doubled_ended_or_refused_voids_the_run() {
        assert!(good().void().is_empty());
        let lost = Counts { expected: 100, arrived: 99, ..Counts::default() };
        let reasons = LoadFigures { deliveries: lost, ..good() }.void();
        assert_eq!(reasons, ["deliveries: 1 of 100 lost, 0 doubled, 0 out of order, 0 breaks of seq, 0 stray"]);
        assert_eq!(LoadFigures { acks: lost, ..good() }.void().len(), 1);
        let late = Counts { expected: 100, arrived: 100, out_of_order: 1, ..Counts::default() };
        assert_eq!(LoadFigures { deliveries: late, ..good() }.void().len(), 1);
        assert!(LoadFigures { acks: late, ..good() }.void().is_empty());
        assert_eq!(LoadFigures { closed: vec![("closed with 4008".into(), 2)], ..good() }.void().len(), 1);
        assert_eq!(LoadFigures { complaints: vec![("error".into(), 2)], ..good() }.void().len(), 1);
        assert_eq!(LoadFigures { counts: [(Counted::MovesUnfinished, 3)].into(), ..good() }.void().len(), 1);
    }

    #[test]
    fn workers_add_up() {
        let worker = |sent, cpu_share, ended, ns| {
            let mut record = crate::timed::Record::default();
            record.time(Timed::Delivery, ns);
            record.count(Counted::Joins);
            WorkerResult {
                sent,
                cpu_share,
                closed: vec![("x".into(), ended)],
                times: record.times(),
                counts: record.counts(),
                ..WorkerResult::default()
            }
        };
        let (sum, times) = LoadFigures::merge(&[worker(5, 0.2, 1, 1_000_000), worker(7, 0.4, 2, 3_000_000)], 1.0);
        assert_eq!((sum.sent, sum.closed, sum.bench_cpu_share), (12, vec![("x".into(), 3)], 0.4));
        assert_eq!(sum.counts[&Counted::Joins], 2);
        let delivery = times[&Timed::Delivery].percentiles().expect("two of them");
        assert_eq!(delivery.count, 2);
        assert!((delivery.max_ms - 3.0).abs() < 0.01, "{delivery:?}");
    }
}
