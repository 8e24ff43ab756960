//! What a store holds, for `roomwire store stat`: as text for people, as JSON for programs.

use roomwire_engine::names::RoomId;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What is asked.
pub struct StatAsk<'a> {
    /// Which rooms count.
    pub wants: &'a dyn Fn(&str) -> bool,
    /// Count each message, however long that takes.
    pub exact: bool,
    /// So many of the largest rooms are listed.
    pub rooms: usize,
}

/// A number of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// Counted.
    Exact(u64),
    /// From the first to the last seq.
    Estimated(u64),
}

/// A room's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomStat {
    /// Its name.
    pub room: RoomId,
    /// The latest generation.
    pub generation: u64,
    /// Seq and time (Unix milliseconds) of its first message.
    pub first: Option<(u64, u64)>,
    /// The same of its last message.
    pub last: Option<(u64, u64)>,
    /// How many there are.
    pub messages: Messages,
}

/// A store's figures.
#[derive(Clone, Debug)]
pub struct Stat {
    /// `embedded` or `cql`.
    pub kind: &'static str,
    /// The directory, or nodes and keyspace.
    pub place: String,
    /// How many rooms.
    pub rooms: u64,
    /// How many messages.
    pub messages: u64,
    /// Whether each message was counted.
    pub is_exact: bool,
    /// Bytes on disk.
    pub bytes: u64,
    /// Room, seq and time of the oldest message.
    pub oldest: Option<(RoomId, u64, u64)>,
    /// The same of the newest.
    pub newest: Option<(RoomId, u64, u64)>,
    /// The rooms with the most messages, the largest first.
    pub largest: Vec<RoomStat>,
    listed: usize,
}

impl Messages {
    fn count(self) -> u64 {
        let (Messages::Exact(count) | Messages::Estimated(count)) = self;
        count
    }
}

impl Stat {
    pub(in crate::store) fn new(kind: &'static str, place: String, ask: &StatAsk<'_>) -> Stat {
        Stat {
            kind,
            place,
            rooms: 0,
            messages: 0,
            is_exact: true,
            bytes: 0,
            oldest: None,
            newest: None,
            largest: Vec::new(),
            listed: ask.rooms,
        }
    }

    pub(in crate::store) fn add(&mut self, room: RoomStat) {
        self.rooms += 1;
        self.messages += room.messages.count();
        self.is_exact &= matches!(room.messages, Messages::Exact(_));
        if let Some((seq, at)) = room.first
            && self.oldest.as_ref().is_none_or(|oldest| at < oldest.2)
        {
            self.oldest = Some((room.room.clone(), seq, at));
        }
        if let Some((seq, at)) = room.last
            && self.newest.as_ref().is_none_or(|newest| at > newest.2)
        {
            self.newest = Some((room.room.clone(), seq, at));
        }
        let count = room.messages.count();
        let place = self.largest.partition_point(|larger| larger.messages.count() >= count);
        if place < self.listed {
            self.largest.insert(place, room);
            self.largest.truncate(self.listed);
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<10}{value}");
        };
        line("store", format!("{}, {}", self.kind, self.place));
        line("rooms", grouped(self.rooms));
        line(
            "messages",
            match self.is_exact {
                true => grouped(self.messages),
                false => format!("about {}, by the rooms' first and last seq (--exact counts)", grouped(self.messages)),
            },
        );
        line("bytes", format!("{} {}", grouped(self.bytes), self.bytes_are()));
        let message = |message: &Option<(RoomId, u64, u64)>| match message {
            Some((room, seq, at)) => format!("{} (room {}, seq {seq})", utc(*at), &**room),
            None => "none".to_owned(),
        };
        line("oldest", message(&self.oldest));
        line("newest", message(&self.newest));
        if !self.largest.is_empty() {
            let width = self.largest.iter().map(|room| room.room.len()).max().unwrap_or(0).max(12);
            let _ =
                writeln!(text, "\n{:<width$} {:>12} {:>12} {:>7}  NEWEST", "LARGEST ROOM", "MESSAGES", "HEAD", "EPOCH");
            for room in &self.largest {
                let (head, newest) = room.last.map_or((0, "-".to_owned()), |(seq, at)| (seq, utc(at)));
                let (name, messages, epoch) = (&*room.room, grouped(room.messages.count()), room.generation);
                let _ = writeln!(text, "{name:<width$} {messages:>12} {:>12} {epoch:>7}  {newest}", grouped(head));
            }
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let message = |message: &Option<(RoomId, u64, u64)>| {
            message.as_ref().map(|(room, seq, at)| json!({"roomId": **room, "seq": seq, "timestamp": at}))
        };
        let end = |end: Option<(u64, u64)>| end.map(|(seq, at)| json!({"seq": seq, "timestamp": at}));
        let rooms = self.largest.iter().map(|room| {
            json!({"roomId": *room.room, "epoch": room.generation, "seq": room.last.map_or(0, |(seq, _)| seq),
                "messages": room.messages.count(), "first": end(room.first), "last": end(room.last)})
        });
        json!({"store": self.kind, "place": self.place, "rooms": self.rooms, "messages": self.messages,
            "messagesAre": if self.is_exact { "exact" } else { "estimated" }, "bytes": self.bytes,
            "bytesAre": self.bytes_are(), "oldest": message(&self.oldest), "newest": message(&self.newest),
            "largest": rooms.collect::<Vec<_>>()})
    }

    fn bytes_are(&self) -> &'static str {
        match self.kind {
            "embedded" => "on disk",
            _ => "estimated: one copy, as the nodes last wrote it to disk",
        }
    }
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time as `2026-11-25T07:30:00Z`. Days become dates by the calendar's own arithmetic: years that begin in March, so
/// that the leap day is a year's last, in eras of 400.
fn utc(unix_ms: u64) -> String {
    let secs = unix_ms / 1_000;
    let (days, of_day) = (secs / 86_400 + 719_468, secs % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_read_as_people_write_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_561_200_000, "2026-11-24T23:00:00Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn the_largest_rooms_are_listed_and_the_ends_of_time_found() {
        let wants = |_: &str| true;
        let mut stat = Stat::new("embedded", "here".to_owned(), &StatAsk { wants: &wants, exact: true, rooms: 2 });
        for (room, count, at) in [("a", 5, 100), ("b", 9, 50), ("c", 7, 900)] {
            let (first, last) = (Some((1, at)), Some((count, at + 9)));
            let messages = Messages::Exact(count);
            stat.add(RoomStat { room: RoomId::new(room), generation: 1, first, last, messages });
        }
        stat.add(RoomStat {
            room: RoomId::new("empty"),
            generation: 1,
            first: None,
            last: None,
            messages: Messages::Exact(0),
        });
        let names: Vec<&str> = stat.largest.iter().map(|room| &*room.room).collect();
        assert_eq!((names, stat.rooms, stat.messages, stat.is_exact), (vec!["b", "c"], 4, 21, true));
        assert_eq!(stat.oldest, Some((RoomId::new("b"), 1, 50)));
        assert_eq!(stat.newest, Some((RoomId::new("c"), 7, 909)));
        let json = stat.json();
        assert_eq!((json["messagesAre"].as_str(), json["largest"][0]["seq"].as_u64()), (Some("exact"), Some(9)));
        assert!(stat.text().contains("b                       9"), "{}", stat.text());
    }
}
