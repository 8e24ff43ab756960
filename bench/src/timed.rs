//! What a worker times and counts, by name, so that what workers send adds up without a field for each. `worker` and
//! `observer` record, `report` reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::histogram::{Latencies, LatencyCounts};

/// A kind of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Timed {
    /// From the intended send time to the arrival at each receiver.
    Delivery,
    /// Of those, from a publisher on one node to a receiver on another.
    DeliveryAcross,
    /// Of those, from a publisher to a receiver on the same node, where there are several.
    DeliveryWithin,
    /// From the intended send time to the ack at the publisher.
    Ack,
    /// From the intended send time of `typing` to its arrival at receivers in the sender's worker.
    Typing,
    /// Of those, from one node to another.
    TypingAcross,
    /// From the moment that a connection was lost to `connected` on the new one.
    Connect,
    /// From the moment that a connection was lost to having joined all its rooms again.
    Reconnect,
    /// From the intended time of a join to its answer.
    Join,
    /// From the intended time of somebody's first join to the last page of history.
    FirstRead,
    /// From the intended time of a member's question to the last page of history.
    NextRead,
    /// From the intended send time to the call that sent: the bench's own delay.
    SendLag,
    /// From the kernel's word that something came to the last of it being read: the bench's own delay at the other end.
    ReadLag,
}

impl Timed {
    /// As it is printed.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Timed::Delivery => "publish to arrival",
            Timed::DeliveryAcross => "publish to arrival, other node",
            Timed::DeliveryWithin => "publish to arrival, same node",
            Timed::Ack => "publish to ack",
            Timed::Typing => "typing to arrival",
            Timed::TypingAcross => "typing to arrival, other node",
            Timed::Connect => "connection lost to connected",
            Timed::Reconnect => "connection lost to joined",
            Timed::Join => "join to history",
            Timed::FirstRead => "first join to history",
            Timed::NextRead => "member's question to history",
            Timed::SendLag => "bench's send lag",
            Timed::ReadLag => "bench's read lag",
        }
    }
}

/// What happened, without a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Counted {
    TypingSent,
    TypingArrived,
    ReceiptsSent,
    ReceiptsArrived,
    PresenceArrived,
    /// Other events: who joined and left, counts of members.
    EventsArrived,
    Leaves,
    Joins,
    Reads,
    Reconnects,
    /// Moves that had not ended when the run did.
    MovesUnfinished,
    /// Messages that came by resume and not live.
    Resumed,
}

impl Counted {
    /// As it is printed.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Counted::TypingSent => "typing sent",
            Counted::TypingArrived => "typing arrived",
            Counted::ReceiptsSent => "receipts sent",
            Counted::ReceiptsArrived => "receipts arrived",
            Counted::PresenceArrived => "presence arrived",
            Counted::EventsArrived => "other events arrived",
            Counted::Leaves => "leaves",
            Counted::Joins => "joins",
            Counted::Reads => "reads of history",
            Counted::Reconnects => "reconnects",
            Counted::MovesUnfinished => "moves unfinished",
            Counted::Resumed => "deliveries by resume",
        }
    }
}

/// All times and counts of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    times: BTreeMap<Timed, Latencies>,
    counts: BTreeMap<Counted, u64>,
}

impl Record {
    pub(crate) fn time(&mut self, what: Timed, ns: u64) {
        self.times.entry(what).or_insert_with(Latencies::new).record(ns);
    }

    pub(crate) fn count(&mut self, what: Counted) {
        *self.counts.entry(what).or_insert(0) += 1;
    }

    #[cfg(test)]
    pub(crate) fn counted(&self, what: Counted) -> u64 {
        self.counts.get(&what).copied().unwrap_or(0)
    }

    pub(crate) fn times(&self) -> BTreeMap<Timed, LatencyCounts> {
        self.times.iter().map(|(what, latencies)| (*what, latencies.counts())).collect()
    }

    pub(crate) fn counts(&self) -> BTreeMap<Counted, u64> {
        self.counts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_travel_by_name() {
        let mut record = Record::default();
        record.time(Timed::DeliveryAcross, 5_000);
        record.count(Counted::TypingSent);
        record.count(Counted::TypingSent);
        let times = serde_json::to_string(&record.times()).expect("plain numbers");
        assert!(times.starts_with(r#"{"delivery_across":"#), "{times}");
        assert_eq!(serde_json::from_str::<BTreeMap<Timed, LatencyCounts>>(&times).expect("its own"), record.times());
        assert_eq!((record.counted(Counted::TypingSent), record.counted(Counted::Joins)), (2, 0));
    }
}
