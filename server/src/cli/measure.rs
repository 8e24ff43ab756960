//! `roomwire store measure`: how many messages a second a cluster takes from this machine, by the very statements that a
//! node sends, without a node. `cli::store` calls it. It writes into rooms of its own, and only there.

use super::Failure;
use crate::store::cql::{self, CqlConfig};
use crate::store::{StoreEvent, Wake};
use bytes::Bytes;
use clap::Args;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::stats::latency_histogram;
use roomwire_engine::store::{StoreReply, StoreRequest, Ticket};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The rows of a measurement are kept for a day, the least that retention knows.
const RETENTION: Duration = Duration::from_secs(86_400);
/// Without an answer for so long it is over.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Events taken at once.
const EVENTS_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Measure {
    /// Seconds that are measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Seconds before, in which a cluster just started gets warm
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Rooms, and so partitions, that are written to in turn
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rooms: u64,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=32_768))]
    size: u64,
    /// Messages under way at once; by default what store.cql.in_flight_max allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_384))]
    in_flight: Option<u64>,
}

pub(super) fn measure(config: CqlConfig, ask: &Measure) -> Result<String, Failure> {
    let in_flight = ask.in_flight.unwrap_or(config.in_flight_max as u64);
    let config = CqlConfig {
        retention: RETENTION,
        in_flight_max: config.in_flight_max.max(in_flight as usize),
        queue_max: config.queue_max.max(in_flight as usize),
        ..config
    };
    let (ring, rung) = crossbeam_channel::bounded(1);
    // A full channel means that it has rung already.
    let wake: Wake = Arc::new(move || {
        let _ = ring.try_send(());
    });
    let mut store = cql::spawn(config, wake).map_err(|error| Failure::runtime(error.to_string()))?;
    let mut rows = Rows::new(ask);
    let mut under_way: HashMap<Ticket, Instant> = HashMap::new();
    let mut events = Vec::new();
    let mut times = latency_histogram();
    let from = Instant::now() + Duration::from_secs(ask.warm_up);
    let to = from + Duration::from_secs(ask.seconds);
    let mut heard = Instant::now();
    loop {
        let now = Instant::now();
        if now >= to {
            break;
        }
        while (under_way.len() as u64) < in_flight {
            let request = rows.next();
            under_way.insert(request.ticket(), Instant::now());
            store.send(request);
        }
        // Woken or not, it looks.
        let _ = rung.recv_timeout(Duration::from_millis(100));
        store.receive(EVENTS_MAX, &mut events);
        for event in events.drain(..) {
            let StoreEvent::Reply(reply) = event else { continue };
            let Some(began) = under_way.remove(&reply.ticket()) else { continue };
            heard = Instant::now();
            if !matches!(reply, StoreReply::Appended { .. }) {
                return Err(Failure::runtime("the cluster failed to take a message: is it there, and is it well?"));
            }
            if (from..to).contains(&heard) {
                let us = heard.duration_since(began).as_micros();
                times.saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
            }
        }
        if heard.elapsed() > SILENCE_MAX {
            return Err(Failure::runtime(format!("no answer for {} s", SILENCE_MAX.as_secs())));
        }
    }
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    Ok(format!(
        "{} appends a second, {in_flight} under way, {} B, {} partitions: P50 {:.1}  P95 {:.1}  P99 {:.1} ms",
        times.len() / ask.seconds,
        ask.size,
        ask.rooms,
        at(0.5),
        at(0.95),
        at(0.99)
    ))
}

/// The rows to write, one after the other.
struct Rows {
    rooms: Vec<RoomId>,
    content: Bytes,
    user: UserId,
    username: Arc<str>,
    attempt: u64,
    count: u64,
}

impl Rows {
    fn new(ask: &Measure) -> Rows {
        let started_ms = unix_ms();
        Rows {
            rooms: (0..ask.rooms).map(|room| RoomId::new(&format!("roomwire-measure-{started_ms}-{room}"))).collect(),
            content: Bytes::from(vec![b'x'; ask.size as usize]),
            user: UserId::new("roomwire-measure"),
            username: Arc::from("roomwire-measure"),
            attempt: started_ms,
            count: 0,
        }
    }

    /// The next row's append; its ticket is its number.
    fn next(&mut self) -> StoreRequest {
        let rooms = self.rooms.len() as u64;
        let row = roomwire_engine::store::Row {
            room: self.rooms[(self.count % rooms) as usize].clone(),
            seq: self.count / rooms + 1,
            generation: 1,
            user: self.user.clone(),
            username: Arc::clone(&self.username),
            content: self.content.clone(),
            client_id: Arc::from(self.count.to_string()),
            attempt: self.attempt,
            timestamp: unix_ms(),
        };
        self.count += 1;
        StoreRequest::Append { ticket: self.count, rows: vec![row] }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_take_turns_and_each_counts_without_a_gap() {
        let mut rows = Rows::new(&Measure { seconds: 1, warm_up: 0, rooms: 2, size: 3, in_flight: None });
        let mut places = Vec::new();
        for number in 1..=4 {
            let StoreRequest::Append { ticket, rows } = rows.next() else { panic!("no append") };
            assert_eq!((ticket, rows.len(), rows[0].content.len()), (number, 1, 3));
            assert!(roomwire_wire::id::is_room_id(&rows[0].room));
            places.push((rows[0].room.clone(), rows[0].seq));
        }
        assert_eq!((places[0].1, places[1].1, places[2].1), (1, 1, 2));
        assert!(places[0].0 == places[2].0 && places[0].0 != places[1].0);
    }
}
