//! Pages of history, tails of rooms, and what retention has left.
//!
//! A room's messages lie in buckets of [`BUCKET_SEQS`] seqs, one partition each. A walk begins in the bucket where the
//! range begins and asks `room_buckets` only for those that follow, so a page of recent messages is one statement.
//!
//! Nothing tells when Cassandra drops a row whose time is over. So the *floor*, the lowest message that is left, is
//! looked for, unless the room is younger than any retention: the first rows of its first bucket, and where those are
//! gone a binary search over probes of [`PROBE_SEQS`] seqs each. It is remembered for [`FLOOR_KEPT`], and walks stop
//! there, so that no page ever reads through thousands of tombstones.

use super::link::{Link, Trouble};
use super::meta::unreadable;
use super::worker::{CACHED_ROOMS_MAX, Worker, locked};
use super::{BUCKET_SEQS, bigint, number, unix_ms};
use bytes::Bytes;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::{From, ReadRow, Row};
use scylla::DeserializeRow;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Kind of a void marker.
const KIND_VOID: i8 = 1;
/// The most readers listed with one message; a page must not grow with the size of the room.
const READ_BY_MAX: usize = 200;
/// Rows of one page of the cluster's.
const PAGE_ROWS: i32 = 1_000;
/// Rows asked for beyond a page's limit: other generations, markers, and the one that shows that more follow.
const PAGE_ROWS_EXTRA: i32 = 8;
/// Buckets of one answer of `room_buckets`.
pub(super) const BUCKETS_AT_ONCE: i32 = 64;
/// A walk through more buckets than this is given up: they were all empty.
const BUCKETS_MAX: usize = 256;
/// The seqs of one probe. It may walk over the tombstones of as many rows, of some eight cells each, and Cassandra warns from
/// 1,000 on. So more messages in a row than this that the cluster lost may be taken for the work of retention.
const PROBE_SEQS: u64 = 64;
/// How long a floor is believed, if no page shows that it may have risen.
const FLOOR_KEPT: Duration = Duration::from_secs(60);

/// What a page is asked for (`StoreRequest::Page`).
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) room: RoomId,
    pub(super) after: u64,
    pub(super) before: u64,
    pub(super) limit: u32,
    pub(super) bytes_max: u32,
    pub(super) from: From,
}

/// A row of the table `messages`. What is not in the key may be missing: a receipt that came after the end of its
/// message's time leaves a row without an author.
#[derive(Debug, DeserializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
pub(super) struct MessageColumns<'a> {
    pub(super) seq: i64,
    pub(super) generation: i64,
    pub(super) kind: i8,
    attempt: i64,
    client_id: Option<&'a str>,
    user_id: Option<&'a str>,
    username: Option<&'a str>,
    content: Option<&'a str>,
    created_at: Option<CqlTimestamp>,
    read_by: Option<Vec<&'a str>>,
}

/// What stands in one place of the table.
#[derive(Debug)]
pub(super) enum Stored {
    Void { seq: u64 },
    Message(ReadRow),
}

impl MessageColumns<'_> {
    /// `None` for a row that is no message and no marker. Of many readers some.
    fn stored(&self, room: &RoomId) -> Option<Stored> {
        self.stored_with(room, READ_BY_MAX)
    }

    /// The same with up to `readers_max` readers.
    pub(super) fn stored_with(&self, room: &RoomId, readers_max: usize) -> Option<Stored> {
        let seq = number(self.seq);
        if self.kind == KIND_VOID {
            return Some(Stored::Void { seq });
        }
        let readers = self.read_by.iter().flatten();
        Some(Stored::Message(ReadRow {
            row: Row {
                room: room.clone(),
                seq,
                generation: number(self.generation),
                user: UserId::new(self.user_id?),
                username: Arc::from(self.username?),
                content: Bytes::copy_from_slice(self.content?.as_bytes()),
                client_id: Arc::from(self.client_id?),
                attempt: self.attempt.cast_unsigned(),
                timestamp: number(self.created_at?.0),
            },
            read_by: readers.take(readers_max).map(|reader| Box::from(*reader)).collect(),
        }))
    }
}

/// What a tail has of a row.
#[derive(Debug, DeserializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
struct TailColumns<'a> {
    seq: i64,
    generation: i64,
    kind: i8,
    attempt: i64,
    client_id: Option<&'a str>,
    user_id: Option<&'a str>,
    created_at: Option<CqlTimestamp>,
}

impl TailColumns<'_> {
    /// `None` for what is no message.
    fn row(&self, room: &RoomId) -> Option<Row> {
        if self.kind == KIND_VOID {
            return None;
        }
        Some(Row {
            room: room.clone(),
            seq: number(self.seq),
            generation: number(self.generation),
            user: UserId::new(self.user_id?),
            username: Arc::from(""),
            content: Bytes::new(),
            client_id: Arc::from(self.client_id?),
            attempt: self.attempt.cast_unsigned(),
            timestamp: number(self.created_at?.0),
        })
    }
}

/// resolve(seq): a marker means absent; else the row of the highest gen, and of its attempts the lowest.
#[derive(Default)]
struct Resolving {
    seq: u64,
    best: Option<ReadRow>,
    void: bool,
}

impl Resolving {
    /// Takes what stands in one place; gives the row of the seq before it, if that is now decided and has one.
    fn next(&mut self, stored: Stored) -> Option<ReadRow> {
        let seq = match &stored {
            Stored::Void { seq } => *seq,
            Stored::Message(read) => read.row.seq,
        };
        let done = if seq == self.seq { None } else { self.finish() };
        self.seq = seq;
        let rank = |read: &ReadRow| (read.row.generation, std::cmp::Reverse(read.row.attempt.cast_signed()));
        match stored {
            Stored::Void { .. } => self.void = true,
            Stored::Message(read) => {
                if self.best.as_ref().is_none_or(|best| rank(best) < rank(&read)) {
                    self.best = Some(read);
                }
            }
        }
        done
    }

    fn finish(&mut self) -> Option<ReadRow> {
        let done = std::mem::take(self);
        if done.void { None } else { done.best }
    }
}

/// Resolved rows on their way into a page.
struct Page<'a> {
    range: &'a Range,
    rows: Vec<ReadRow>,
    bytes: usize,
    cut: bool,
}

impl Page<'_> {
    fn take(&mut self, read: ReadRow) {
        let bytes = self.bytes + read.row.content.len();
        let fits = self.rows.len() < self.range.limit as usize
            && (self.rows.is_empty() || bytes <= self.range.bytes_max as usize);
        if fits && !self.cut {
            self.bytes = bytes;
            self.rows.push(read);
        } else {
            self.cut = true;
        }
    }
}

/// A row of `room_buckets`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) number: u64,
    created_ms: u64,
}

impl Worker {
    /// Resolved rows of a range, whether the limits cut it, and `oldest` as in `StoreReply::Page`.
    pub(super) async fn page(&self, link: &Link, range: &Range) -> Result<(Vec<ReadRow>, bool, u64), Trouble> {
        let mut oldest = self.oldest(link, &range.room, FLOOR_KEPT).await?;
        // A little below the floor, too: it is up to a minute old, and a row may have come late.
        let first = range.after.saturating_add(1).max(oldest.saturating_sub(PROBE_SEQS)).max(1);
        let last = range.before.saturating_sub(1);
        let mut page = Page { range, rows: Vec::new(), bytes: 0, cut: false };
        if first <= last {
            self.walk(link, &mut page, first, last).await?;
        }
        if range.from == From::Newest {
            page.rows.reverse();
        }
        // What is missing at its start has perhaps just expired.
        let start = range.after.saturating_add(1).max(oldest);
        let reaches_start = range.from == From::Oldest || !page.cut;
        if reaches_start && start < range.before && page.rows.first().is_none_or(|read| read.row.seq != start) {
            oldest = self.oldest_now(link, &range.room).await?;
        }
        let oldest = page.rows.first().map_or(oldest, |read| oldest.min(read.row.seq));
        Ok((page.rows, page.cut, oldest))
    }

    /// Reads bucket after bucket until the page is full or the range ends.
    async fn walk(&self, link: &Link, page: &mut Page<'_>, first: u64, last: u64) -> Result<(), Trouble> {
        let (mut low, mut high) = (first / BUCKET_SEQS, last / BUCKET_SEQS);
        let newest = page.range.from == From::Newest;
        // An open end of the range says nothing about where the room ends.
        let is_open = newest && bigint(last) == i64::MAX;
        if !is_open {
            let begin = if newest { high } else { low };
            self.read_bucket(link, page, begin, first, last).await?;
            if page.cut || low == high {
                return Ok(());
            }
            if newest { high -= 1 } else { low += 1 }
        }
        let mut walked = 0;
        loop {
            let buckets = self.buckets(link, &page.range.room, (low, high), newest, BUCKETS_AT_ONCE).await?;
            for bucket in &buckets {
                self.read_bucket(link, page, bucket.number, first, last).await?;
                if page.cut {
                    return Ok(());
                }
            }
            walked += buckets.len();
            let Some(end) = buckets.last().filter(|_| buckets.len() == BUCKETS_AT_ONCE as usize) else { return Ok(()) };
            if walked >= BUCKETS_MAX {
                return Err(Trouble::Passing(format!(
                    "room {} has too many empty buckets in a row",
                    &*page.range.room
                )));
            }
            match newest {
                true if end.number > low => high = end.number - 1,
                false if end.number < high => low = end.number + 1,
                _ => return Ok(()),
            }
        }
    }

    /// Takes a bucket's rows within the range into the page.
    async fn read_bucket(
        &self,
        link: &Link,
        page: &mut Page<'_>,
        bucket: u64,
        first: u64,
        last: u64,
    ) -> Result<(), Trouble> {
        let room = &page.range.room;
        let statement = match page.range.from {
            From::Newest => &link.statements.select_newest,
            From::Oldest => &link.statements.select_oldest,
        };
        let mut statement = statement.clone();
        let wanted = i32::try_from(page.range.limit).unwrap_or(PAGE_ROWS).saturating_add(PAGE_ROWS_EXTRA);
        statement.set_page_size(wanted.clamp(1, PAGE_ROWS));
        let (low, high) = (first.max(bucket * BUCKET_SEQS), last.min(bucket * BUCKET_SEQS + (BUCKET_SEQS - 1)));
        let mut resolving = Resolving::default();
        let mut from = PagingState::start();
        loop {
            let values = (&**room, bigint(bucket), bigint(low), bigint(high));
            let (result, next) = self.execute_page(link, &statement, values, from).await?;
            let rows = result.into_rows_result().map_err(unreadable)?;
            for columns in rows.rows::<MessageColumns<'_>>().map_err(unreadable)? {
                let Some(stored) = columns.map_err(unreadable)?.stored(room) else { continue };
                if let Some(read) = resolving.next(stored) {
                    page.take(read);
                    if page.cut {
                        return Ok(());
                    }
                }
            }
            match next {
                PagingStateResponse::HasMorePages { state } => from = state,
                PagingStateResponse::NoMorePages => break,
            }
        }
        if let Some(read) = resolving.finish() {
            page.take(read);
        }
        Ok(())
    }

    /// The message of (gen, seq), if it is there and not void.
    pub(super) async fn row_at(
        &self,
        link: &Link,
        room: &RoomId,
        generation: u64,
        seq: u64,
    ) -> Result<Option<ReadRow>, Trouble> {
        let values = (&**room, bigint(seq / BUCKET_SEQS), bigint(seq));
        let result = self.execute(link, &link.statements.select_place, values).await?;
        let rows = result.into_rows_result().map_err(unreadable)?;
        let mut found: Option<ReadRow> = None;
        for columns in rows.rows::<MessageColumns<'_>>().map_err(unreadable)? {
            // Whether a reader is new must be seen among all of them.
            match columns.map_err(unreadable)?.stored_with(room, usize::MAX) {
                Some(Stored::Void { .. }) => return Ok(None),
                // Attempts ascend: the first is the one that counts.
                Some(Stored::Message(read)) if read.row.generation == generation && found.is_none() => {
                    found = Some(read);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Every row with `seq > last - window`, ascending, where `last` is the highest seq of any row.
    pub(super) async fn tail(&self, link: &Link, room: &RoomId, window: u32) -> Result<Vec<Row>, Trouble> {
        if window == 0 {
            return Ok(Vec::new());
        }
        let Some(last) = self.last_seq(link, room).await? else { return Ok(Vec::new()) };
        let first = (last + 1).saturating_sub(u64::from(window)).max(1);
        let mut tail = Vec::new();
        for bucket in first / BUCKET_SEQS..=last / BUCKET_SEQS {
            self.rows_of(link, room, bucket, first, &mut tail).await?;
        }
        Ok(tail)
    }

    /// All messages of a bucket from `first` on, of every generation and attempt; without what they say.
    pub(super) async fn rows_of(
        &self,
        link: &Link,
        room: &RoomId,
        bucket: u64,
        first: u64,
        tail: &mut Vec<Row>,
    ) -> Result<(), Trouble> {
        let mut from = PagingState::start();
        loop {
            let values = (&**room, bigint(bucket), bigint(first));
            let statement = paged(&link.statements.select_tail, PAGE_ROWS);
            let (result, next) = self.execute_page(link, &statement, values, from).await?;
            let rows = result.into_rows_result().map_err(unreadable)?;
            for columns in rows.rows::<TailColumns<'_>>().map_err(unreadable)? {
                tail.extend(columns.map_err(unreadable)?.row(room));
            }
            match next {
                PagingStateResponse::HasMorePages { state } => from = state,
                PagingStateResponse::NoMorePages => return Ok(()),
            }
        }
    }

    /// The highest seq of any message of the room.
    async fn last_seq(&self, link: &Link, room: &RoomId) -> Result<Option<u64>, Trouble> {
        Ok(self.last_row(link, room).await?.map(|row| row.seq))
    }

    /// The room's last message.
    pub(super) async fn last_row(&self, link: &Link, room: &RoomId) -> Result<Option<Row>, Trouble> {
        let mut high = bucket_max();
        for _ in 0..BUCKETS_MAX / BUCKETS_AT_ONCE as usize {
            let buckets = self.buckets(link, room, (0, high), true, BUCKETS_AT_ONCE).await?;
            for bucket in &buckets {
                if let Some(row) = self.last_of(link, room, bucket.number).await? {
                    return Ok(Some(row));
                }
            }
            match buckets.last() {
                Some(end) if buckets.len() == BUCKETS_AT_ONCE as usize && end.number > 0 => high = end.number - 1,
                _ => break,
            }
        }
        Ok(None)
    }

    async fn last_of(&self, link: &Link, room: &RoomId, bucket: u64) -> Result<Option<Row>, Trouble> {
        let statement = paged(&link.statements.select_newest, PAGE_ROWS_EXTRA);
        let mut from = PagingState::start();
        loop {
            let values = (&**room, bigint(bucket), 0_i64, i64::MAX);
            let (result, next) = self.execute_page(link, &statement, values, from).await?;
            let rows = result.into_rows_result().map_err(unreadable)?;
            for columns in rows.rows::<MessageColumns<'_>>().map_err(unreadable)? {
                if let Some(Stored::Message(read)) = columns.map_err(unreadable)?.stored(room) {
                    return Ok(Some(read.row));
                }
            }
            match next {
                PagingStateResponse::HasMorePages { state } => from = state,
                PagingStateResponse::NoMorePages => return Ok(None),
            }
        }
    }

    /// Up to `limit` of a room's buckets within a range, from one end or the other.
    pub(super) async fn buckets(
        &self,
        link: &Link,
        room: &RoomId,
        (low, high): (u64, u64),
        newest: bool,
        limit: i32,
    ) -> Result<Vec<Bucket>, Trouble> {
        let statement = if newest { &link.statements.buckets_down } else { &link.statements.buckets_up };
        let result = self.execute(link, statement, (&**room, bigint(low), bigint(high), limit)).await?;
        let rows = result.into_rows_result().map_err(unreadable)?;
        let rows = rows.rows::<(i64, Option<CqlTimestamp>)>().map_err(unreadable)?;
        rows.map(|row| {
            let (bucket, created) = row.map_err(unreadable)?;
            Ok(Bucket { number: number(bucket), created_ms: created.map_or(0, |created| number(created.0)) })
        })
        .collect()
    }

    /// The lowest seq that retention has left; 0 if it has removed nothing.
    async fn oldest(&self, link: &Link, room: &RoomId, believed: Duration) -> Result<u64, Trouble> {
        let known = locked(&self.floors).get(room).copied();
        if let Some((oldest, looked)) = known
            && looked.elapsed() < believed.min(self.config.kept_surely() / 8)
        {
            return Ok(oldest);
        }
        let known = match known {
            Some((oldest, _)) => oldest,
            None => self.imported_floor(link, room).await?,
        };
        let Some(oldest) = self.find_oldest(link, room, known).await? else { return Ok(known) };
        let mut floors = locked(&self.floors);
        if floors.len() >= CACHED_ROOMS_MAX {
            floors.clear();
        }
        floors.insert(room.clone(), (oldest, Instant::now()));
        Ok(oldest)
    }

    /// The same, looked for now.
    pub(super) async fn oldest_now(&self, link: &Link, room: &RoomId) -> Result<u64, Trouble> {
        self.oldest(link, room, Duration::ZERO).await
    }

    /// What retention had removed of an imported room before it came here; 0 if nothing.
    async fn imported_floor(&self, link: &Link, room: &RoomId) -> Result<u64, Trouble> {
        let result = self.execute(link, &link.statements.select_floor, (&**room,)).await?;
        let rows = result.into_rows_result().map_err(unreadable)?;
        let row = rows.maybe_first_row::<(Option<i64>,)>().map_err(unreadable)?;
        Ok(row.and_then(|(floor,)| floor).map_or(0, number))
    }

    /// Looks for the floor, which is at `known` or above; `None` while nothing can be said for long.
    async fn find_oldest(&self, link: &Link, room: &RoomId, known: u64) -> Result<Option<u64>, Trouble> {
        let bottom = self.buckets(link, room, (0, bucket_max()), false, 1).await?;
        let Some(bottom) = bottom.first() else { return Ok(None) };
        if !self.is_old(bottom) {
            return Ok(Some(known));
        }
        let start = (bottom.number * BUCKET_SEQS).max(1).max(known);
        if let Some(found) = self.probe_at(link, room, start).await? {
            let nothing_removed = start == 1 && found == start;
            return Ok(Some(if nothing_removed { 0 } else { found }));
        }
        let Some(last) = self.last_seq(link, room).await? else { return self.all_gone(link, room).await };
        self.search_oldest(link, room, start, last).await.map(Some)
    }

    /// A binary search: nothing is in the probe at `low`, `high` is a message.
    async fn search_oldest(&self, link: &Link, room: &RoomId, mut low: u64, mut high: u64) -> Result<u64, Trouble> {
        while high.saturating_sub(low) > PROBE_SEQS {
            let middle = low + (high - low) / 2;
            match self.probe_at(link, room, middle).await? {
                Some(found) if found == middle => high = middle,
                // What is between has gone, so this is where the rest begins.
                Some(found) => return Ok(found),
                None => low = middle,
            }
        }
        // A probe ends with its bucket.
        for start in [low + 1, (low / BUCKET_SEQS + 1) * BUCKET_SEQS] {
            if start < high
                && let Some(found) = self.probe_at(link, room, start).await?
            {
                return Ok(found.min(high));
            }
        }
        Ok(high)
    }

    /// Whether the first messages of a bucket may have gone.
    fn is_old(&self, bucket: &Bucket) -> bool {
        let kept_ms = u64::try_from(self.config.kept_surely().as_millis()).unwrap_or(u64::MAX);
        bucket.created_ms.saturating_add(kept_ms) < unix_ms()
    }

    /// The end of the last bucket of a room whose messages are all gone; `None` if it may just not have any yet.
    async fn all_gone(&self, link: &Link, room: &RoomId) -> Result<Option<u64>, Trouble> {
        let top = self.buckets(link, room, (0, bucket_max()), true, 1).await?;
        let Some(top) = top.first() else { return Ok(None) };
        Ok(self.is_old(top).then(|| (top.number + 1) * BUCKET_SEQS))
    }

    /// The first seq from `start` on that has a message, within one probe; markers that lead there count.
    async fn probe_at(&self, link: &Link, room: &RoomId, start: u64) -> Result<Option<u64>, Trouble> {
        let bucket = start / BUCKET_SEQS;
        let end = (start + PROBE_SEQS - 1).min(bucket * BUCKET_SEQS + (BUCKET_SEQS - 1));
        let statement = paged(&link.statements.probe, PAGE_ROWS);
        let values = (&**room, bigint(bucket), bigint(start), bigint(end));
        let (result, _) = self.execute_page(link, &statement, values, PagingState::start()).await?;
        let rows = result.into_rows_result().map_err(unreadable)?;
        let mut voided_to = start;
        for row in rows.rows::<(i64, i8, Option<&str>)>().map_err(unreadable)? {
            let (seq, kind, user) = row.map_err(unreadable)?;
            let seq = number(seq);
            if kind == KIND_VOID {
                voided_to = if seq == voided_to { seq + 1 } else { voided_to };
            } else if user.is_some() {
                // Seqs that were voided from the start on were never messages: nothing was removed before this one.
                return Ok(Some(if seq <= voided_to { start } else { seq }));
            }
        }
        Ok(None)
    }
}

pub(super) fn paged(statement: &PreparedStatement, rows: i32) -> PreparedStatement {
    let mut statement = statement.clone();
    statement.set_page_size(rows);
    statement
}

/// No bucket is higher.
fn bucket_max() -> u64 {
    i64::MAX.unsigned_abs() / BUCKET_SEQS
}
