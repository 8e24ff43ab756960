//! Appends, void markers and receipts: plain, idempotent writes.
//!
//! A row's timestamp in the cluster is its creation, so a repeat changes nothing. Its key ends with the attempt: two
//! attempts at one (seq, gen), which the protocol never makes, would stand beside each other and never mix.

use super::link::{Link, Trouble};
use super::worker::{CACHED_ROOMS_MAX, Worker, locked};
use super::{BUCKET_SEQS, bigint, unix_ms};
use futures_util::future::try_join_all;
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::Row;
use roomwire_wire::id::MessagePlace;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::CqlTimestamp;
use std::collections::BTreeMap;

/// A batch has at most so many rows and content bytes: clusters refuse batches of 50 KiB by default.
const BATCH_ROWS_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a row besides its content, about.
const ROW_BYTES: usize = 160;
/// Void markers of one batch.
const BATCH_MARKERS_MAX: usize = 128;
/// A message keeps so many readers. What is not kept is not announced either: else each of its readers would be announced
/// again and again, and in a room of that size to thousands.
const READERS_MAX: usize = 1_000;
/// A row is kept at least so long, whatever this machine's clock says of its age.
const KEPT_SECS_MIN: u64 = 3_600;

/// The values of `Statements::insert_message`.
type MessageValues<'a> =
    (&'a str, i64, i64, i64, i64, String, &'a str, &'a str, &'a str, &'a str, CqlTimestamp, i64, i32);

impl Worker {
    /// Makes rows durable: one statement for each partition's share.
    pub(super) async fn append(&self, link: &Link, rows: Vec<Row>) -> Result<(), Trouble> {
        let count = rows.len() as u64;
        let mut shares: BTreeMap<(RoomId, u64), Vec<Row>> = BTreeMap::new();
        for row in rows {
            shares.entry((row.room.clone(), row.seq / BUCKET_SEQS)).or_default().push(row);
        }
        let now_ms = unix_ms();
        try_join_all(shares.iter().map(|(place, rows)| self.append_share(link, place, rows, now_ms))).await?;
        locked(&self.figures).rows_appended_total += count;
        Ok(())
    }

    async fn append_share(
        &self,
        link: &Link,
        (room, bucket): &(RoomId, u64),
        rows: &[Row],
        now_ms: u64,
    ) -> Result<(), Trouble> {
        // An imported room is as old as its messages.
        let since_ms = rows.iter().map(|row| row.timestamp).min().unwrap_or(now_ms);
        self.register_bucket(link, room, *bucket, since_ms.min(now_ms)).await?;
        let mut rest = rows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take(BATCH_ROWS_MAX).take_while(|row| {
                bytes += row.content.len() + ROW_BYTES;
                bytes <= BATCH_BYTES_MAX
            });
            // A row that is larger by itself goes alone.
            let (batch, later) = rest.split_at(fitting.count().max(1));
            rest = later;
            let insert = &link.statements.insert_message;
            if let [row] = batch {
                self.execute(link, insert, self.message_values(row, now_ms)?).await?;
                continue;
            }
            let mut statement = Batch::new(BatchType::Unlogged);
            statement.set_is_idempotent(true);
            statement.set_execution_profile_handle(Some(link.writes.clone()));
            batch.iter().for_each(|_| statement.append_statement(insert.clone()));
            let values = batch.iter().map(|row| self.message_values(row, now_ms)).collect::<Result<Vec<_>, _>>()?;
            let _permit = self.permit().await?;
            link.session.batch(&statement, values).await?;
            self.heard();
        }
        Ok(())
    }

    fn message_values<'a>(&self, row: &'a Row, now_ms: u64) -> Result<MessageValues<'a>, Trouble> {
        let content = std::str::from_utf8(&row.content)
            .map_err(|_| Trouble::Passing("a message's content is not UTF-8".to_owned()))?;
        let created_ms = bigint(row.timestamp);
        Ok((
            &row.room,
            bigint(row.seq / BUCKET_SEQS),
            bigint(row.seq),
            bigint(row.generation),
            row.attempt.cast_signed(),
            MessagePlace { epoch: row.generation, seq: row.seq }.encode(&row.room),
            &row.client_id,
            &row.user,
            &row.username,
            content,
            CqlTimestamp(created_ms),
            created_ms.saturating_mul(1_000),
            self.ttl_secs(row.timestamp, now_ms),
        ))
    }

    /// Seconds that a row of that time is still kept; 0 for ever.
    pub(super) fn ttl_secs(&self, created_ms: u64, now_ms: u64) -> i32 {
        let retention_secs = self.config.retention.as_secs();
        if retention_secs == 0 {
            return 0;
        }
        let end_ms = created_ms.saturating_add(retention_secs * 1_000);
        let left_secs = (end_ms.saturating_sub(now_ms) / 1_000).max(KEPT_SECS_MIN.min(retention_secs));
        // The configuration allows no more than twenty years, Cassandra's own limit.
        i32::try_from(left_secs).unwrap_or(i32::MAX)
    }

    /// Notes that the room has this bucket, before anything is written into it. The first note stays as it is.
    async fn register_bucket(&self, link: &Link, room: &RoomId, bucket: u64, since_ms: u64) -> Result<(), Trouble> {
        let key = (room.clone(), bucket);
        if locked(&self.buckets).contains(&key) {
            return Ok(());
        }
        let place = (&**room, bigint(bucket));
        let noted = self.execute(link, &link.statements.select_bucket, place).await?;
        let is_noted = noted.into_rows_result().map_err(|error| Trouble::Passing(error.to_string()))?.rows_num() > 0;
        if !is_noted {
            let since = CqlTimestamp(bigint(since_ms));
            self.execute(link, &link.statements.insert_bucket, (place.0, place.1, since)).await?;
        }
        let mut buckets = locked(&self.buckets);
        if buckets.len() >= CACHED_ROOMS_MAX {
            buckets.clear();
        }
        buckets.insert(key);
        Ok(())
    }

    /// Writes the markers of voided seqs, which the room's facts hold already.
    pub(super) async fn mark_voids(
        &self,
        link: &Link,
        room: &RoomId,
        generation: u64,
        voids: &[u64],
    ) -> Result<(), Trouble> {
        let mut shares: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for seq in voids {
            shares.entry(seq / BUCKET_SEQS).or_default().push(*seq);
        }
        let now_ms = unix_ms();
        let ttl = self.ttl_secs(now_ms, now_ms);
        for (bucket, seqs) in shares {
            self.register_bucket(link, room, bucket, now_ms).await?;
            for seqs in seqs.chunks(BATCH_MARKERS_MAX) {
                let mut statement = Batch::new(BatchType::Unlogged);
                statement.set_is_idempotent(true);
                statement.set_execution_profile_handle(Some(link.writes.clone()));
                let mut values = Vec::with_capacity(seqs.len());
                for seq in seqs {
                    statement.append_statement(link.statements.insert_marker.clone());
                    let now = CqlTimestamp(bigint(now_ms));
                    values.push((&**room, bigint(bucket), bigint(*seq), bigint(generation), now, ttl));
                }
                let _permit = self.permit().await?;
                link.session.batch(&statement, values).await?;
                self.heard();
            }
        }
        Ok(())
    }

    /// Adds readers to a message that is known to be there.
    pub(super) async fn add_readers(&self, link: &Link, row: &Row, readers: &[&str]) -> Result<(), Trouble> {
        let ttl = self.ttl_secs(row.timestamp, unix_ms());
        let (bucket, attempt) = (bigint(row.seq / BUCKET_SEQS), row.attempt.cast_signed());
        let values = (ttl, readers, &*row.room, bucket, bigint(row.seq), bigint(row.generation), attempt);
        self.execute(link, &link.statements.add_reader, values).await?;
        Ok(())
    }

    /// Adds a reader to a message; whether it is there, and whether the reader is new.
    pub(super) async fn receipt(
        &self,
        link: &Link,
        room: &RoomId,
        (generation, seq): (u64, u64),
        user: &UserId,
    ) -> Result<(bool, bool), Trouble> {
        let Some(read) = self.row_at(link, room, generation, seq).await? else { return Ok((false, false)) };
        if read.read_by.iter().any(|reader| **reader == **user) {
            return Ok((true, false));
        }
        if read.read_by.len() >= READERS_MAX {
            return Ok((true, false));
        }
        self.add_readers(link, &read.row, &[&**user]).await?;
        Ok((true, true))
    }
}
