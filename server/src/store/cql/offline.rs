//! The cluster without a node: what `roomwire store export`, `import` and `stat` do to a keyspace.
//!
//! They may run beside nodes: an export is then what the rooms were at some moment after it began. An import claims each
//! room by the same conditional write as a node that begins it, and so finds out if one did. While it runs, and after it
//! broke off, the row `import` stands in `schema_version`: no node starts on half a store. Nothing here runs in a node.
//!
//! A cluster that does not answer for a while is waited for: every step may be repeated.

use super::link::{self, IMPORT, Link, Trouble};
use super::meta::{is_applied, unreadable};
use super::read::{BUCKETS_AT_ONCE, MessageColumns, Range, Stored, paged};
use super::worker::{Setup, Worker};
use super::{BUCKET_SEQS, CqlConfig, bigint, number};
use crate::store::transfer::format::{READERS_AT_ONCE, Record, RoomFacts};
use crate::store::transfer::stat::{Messages, RoomStat, Stat, StatAsk};
use crate::store::transfer::{Sink, Standing};
use futures_util::future::try_join_all;
use roomwire_engine::names::RoomId;
use roomwire_engine::store::{From, ReadRow};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, Statement};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a statement may take here, where nobody waits at the other end.
const STATEMENT_MAX: Duration = Duration::from_secs(15);
/// How long a cluster in trouble is waited for.
const TROUBLE_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Rows of one page of an export: a row can be large.
const PAGE_ROWS: i32 = 200;
/// Rooms of one page of the list of rooms.
const PAGE_ROOMS: i32 = 256;
/// Conditional statements of one batch: clusters refuse batches of 50 KiB by default.
const BATCH_MAX: usize = 128;

/// A keyspace that is looked at or filled by a command.
pub(in crate::store) struct Offline {
    runtime: tokio::runtime::Runtime,
    worker: Worker,
    link: Link,
    /// Every room, with its generation.
    select_rooms: PreparedStatement,
    /// Generation and owner of the rooms whose records come now.
    claimed: HashMap<RoomId, (u64, u64)>,
}

/// Repeats what failed for a reason that may pass.
async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, Trouble>) -> Result<T, Trouble> {
    let deadline = Instant::now() + TROUBLE_MAX;
    let mut pause = PAUSE;
    loop {
        match attempt().await {
            Err(Trouble::Passing(why)) if Instant::now() < deadline => {
                tracing::debug!(why, "the cluster is waited for");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            other => return other,
        }
    }
}

impl Offline {
    /// Connects to a keyspace that has the schema; to read, it has to be whole.
    pub(in crate::store) fn open(config: CqlConfig, to_write: bool) -> Result<Offline, String> {
        let config = CqlConfig { timeout: config.timeout.max(STATEMENT_MAX), ..config };
        let tls = link::tls(&config)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start a runtime: {error}"))?;
        let open = async {
            let link = link::open(&config, tls.clone()).await?;
            if !to_write {
                link::check_whole(&link.session, &config.keyspace).await?;
            }
            let rooms = format!("SELECT DISTINCT room_id, gen FROM {}.room_meta", config.keyspace);
            let mut select_rooms = link.session.prepare(rooms).await.map_err(|error| unreadable(error.to_string()))?;
            select_rooms.set_execution_profile_handle(Some(link.writes.clone()));
            select_rooms.set_is_idempotent(true);
            select_rooms.set_page_size(PAGE_ROOMS);
            Ok((link, select_rooms))
        };
        let (link, select_rooms) = runtime.block_on(open).map_err(|trouble: Trouble| trouble.to_string())?;
        // No node listens to what the worker would tell it.
        let (events, _) = crossbeam_channel::unbounded();
        let setup = Setup { config, tls, waiting: Arc::default(), events, wake: Arc::new(|| {}) };
        Ok(Offline { runtime, worker: Worker::new(setup), link, select_rooms, claimed: HashMap::new() })
    }

    /// Where it is, for people.
    pub(in crate::store) fn place(&self) -> String {
        let config = &self.worker.config;
        format!("keyspace {} at {}", config.keyspace, config.nodes.join(","))
    }

    /// Hands every record of the wanted rooms to `sink`.
    pub(in crate::store) fn export(&mut self, wants: &dyn Fn(&str) -> bool, sink: &mut Sink<'_>) -> Result<(), String> {
        let run = async {
            let mut from = Some(PagingState::start());
            while let Some(state) = from {
                let (rooms, next) = patiently(async || self.rooms(state.clone()).await).await?;
                for (room, _) in rooms.iter().filter(|(room, _)| wants(room)) {
                    self.worker.export_room(&self.link, room, sink).await?;
                }
                from = next;
            }
            Ok(())
        };
        self.runtime.block_on(run).map_err(|trouble: Trouble| trouble.to_string())
    }

    /// A page of the list of rooms, and where the next begins.
    async fn rooms(&self, from: PagingState) -> Result<(Vec<(RoomId, u64)>, Option<PagingState>), Trouble> {
        let (page, next) = self.worker.execute_page(&self.link, &self.select_rooms, (), from).await?;
        let rows = page.into_rows_result().map_err(unreadable)?;
        let rooms = rows.rows::<(&str, Option<i64>)>().map_err(unreadable)?.map(|row| {
            let (room, generation) = row.map_err(unreadable)?;
            Ok((RoomId::new(room), generation.map_or(0, number)))
        });
        let rooms = rooms.collect::<Result<_, Trouble>>()?;
        Ok((
            rooms,
            match next {
                PagingStateResponse::HasMorePages { state } => Some(state),
                PagingStateResponse::NoMorePages => None,
            },
        ))
    }

    /// How rooms of a file stand to what is here.
    pub(in crate::store) fn standings(&mut self, rooms: &[RoomFacts]) -> Result<Vec<Standing>, String> {
        let (worker, link) = (&self.worker, &self.link);
        let looks = rooms.iter().map(async |room| patiently(async || worker.standing(link, room).await).await);
        self.runtime.block_on(try_join_all(looks)).map_err(|trouble| trouble.to_string())
    }

    /// From here on the keyspace is not whole, until [`Offline::finish`].
    pub(in crate::store) fn begin(&mut self) -> Result<(), String> {
        let keyspace = &self.worker.config.keyspace;
        self.change(&format!(
            "INSERT INTO {keyspace}.schema_version (name, version, applied_at) VALUES ('{IMPORT}', 0, toTimestamp(now()))"
        ))
    }

    /// All is written: a node may start.
    pub(in crate::store) fn finish(&mut self) -> Result<(), String> {
        let keyspace = &self.worker.config.keyspace;
        self.change(&format!("DELETE FROM {keyspace}.schema_version WHERE name = '{IMPORT}'"))
    }

    fn change(&self, text: &str) -> Result<(), String> {
        let run = patiently(async || {
            let mut statement = Statement::new(text);
            statement.set_is_idempotent(true);
            statement.set_consistency(Consistency::LocalQuorum);
            self.link.session.query_unpaged(statement, ()).await?;
            Ok(())
        });
        self.runtime.block_on(run).map_err(|trouble| trouble.to_string())
    }

    /// Writes records; what is there already stays. A room's facts come before its messages.
    pub(in crate::store) fn put(&mut self, records: &[Record]) -> Result<(), String> {
        let rooms =
            records.iter().filter_map(|record| if let Record::Room(facts) = record { Some(facts) } else { None });
        let begun: Vec<&RoomFacts> = rooms.collect();
        // Of the rooms before these, only the last one's records may still come.
        let first = records.first().and_then(Record::room);
        self.claimed.retain(|room, _| Some(room) == first);
        self.claimed.extend(begun.iter().map(|facts| (facts.room.clone(), (facts.generation, facts.owner))));
        let run = async {
            let (worker, link) = (&self.worker, &self.link);
            let claims = begun.iter().map(async |facts| patiently(async || worker.claim(link, facts).await).await);
            try_join_all(claims).await?;
            worker.put_messages(link, records).await?;
            worker.put_voids(link, records, &self.claimed).await
        };
        self.runtime.block_on(run).map_err(|trouble| trouble.to_string())
    }

    /// The figures of `roomwire store stat`.
    pub(in crate::store) fn stat(&mut self, ask: &StatAsk<'_>) -> Result<Stat, String> {
        let mut stat = Stat::new("cql", self.place(), ask);
        let run = async {
            let (worker, link) = (&self.worker, &self.link);
            let mut from = Some(PagingState::start());
            while let Some(state) = from {
                let (rooms, next) = patiently(async || self.rooms(state.clone()).await).await?;
                let wanted = rooms.iter().filter(|(room, _)| (ask.wants)(room));
                let looks = wanted.map(async |(room, generation)| {
                    patiently(async || worker.stat_room(link, room, *generation, ask.exact).await).await
                });
                try_join_all(looks).await?.into_iter().for_each(|room| stat.add(room));
                from = next;
            }
            stat.bytes = self.bytes().await;
            Ok(())
        };
        self.runtime.block_on(run).map_err(|trouble: Trouble| trouble.to_string())?;
        Ok(stat)
    }

    /// What each node estimates of the ranges that are its own, added up: one copy. A node that is down, or does not let us
    /// look, counts nothing.
    async fn bytes(&self) -> u64 {
        let keyspace = &self.worker.config.keyspace;
        let text = format!(
            "SELECT mean_partition_size, partitions_count FROM system.size_estimates WHERE keyspace_name = '{keyspace}' AND \
             table_name = 'messages'"
        );
        let state = self.link.session.get_cluster_state();
        let nodes = state.get_nodes_info().iter().map(async |node| {
            let mut statement = Statement::new(&*text);
            statement.set_consistency(Consistency::One);
            let target = SingleTargetLoadBalancingPolicy::new(NodeIdentifier::Node(Arc::clone(node)), None);
            let profile = ExecutionProfile::builder().load_balancing_policy(target).build();
            statement.set_execution_profile_handle(Some(profile.into_handle()));
            let rows = self.link.session.query_unpaged(statement, ()).await.ok()?.into_rows_result().ok()?;
            let rows = rows.rows::<(i64, i64)>().ok()?.filter_map(Result::ok);
            Some(rows.map(|(size, count)| number(size).saturating_mul(number(count))).sum::<u64>())
        });
        futures_util::future::join_all(nodes).await.into_iter().flatten().sum()
    }
}

impl Worker {
    async fn export_room(&self, link: &Link, room: &RoomId, sink: &mut Sink<'_>) -> Result<(), Trouble> {
        // What is written from now on is left out, so that a busy room comes to an end, too.
        let head = patiently(async || Ok(self.last_row(link, room).await?.map_or(0, |row| row.seq))).await?;
        let (before, voids) = patiently(async || self.facts(link, room).await).await?;
        sink(&Record::Room(before.clone())).map_err(Trouble::Refused)?;
        let void = |(seq, generation): (u64, u64)| Record::Void { room: room.clone(), seq, generation };
        for place in &voids {
            sink(&void(*place)).map_err(Trouble::Refused)?;
        }
        let (mut low, high) = (0, head / BUCKET_SEQS);
        loop {
            let buckets =
                patiently(async || self.buckets(link, room, (low, high), false, BUCKETS_AT_ONCE).await).await?;
            for bucket in &buckets {
                self.export_bucket(link, room, (bucket.number, head), sink).await?;
            }
            match buckets.last() {
                Some(last) if buckets.len() == BUCKETS_AT_ONCE as usize && last.number < high => low = last.number + 1,
                _ => break,
            }
        }
        // What was voided meanwhile stands among the rows perhaps.
        let (after, voids_after) = patiently(async || self.facts(link, room).await).await?;
        if (RoomFacts { oldest: before.oldest, ..after }) != before {
            let name = &**room;
            return Err(Trouble::Refused(format!(
                "room {name} began a new epoch while it was exported: export again, best while no node runs"
            )));
        }
        for place in voids_after.into_iter().filter(|place| voids.binary_search(place).is_err()) {
            sink(&void(place)).map_err(Trouble::Refused)?;
        }
        Ok(())
    }

    /// A bucket's messages up to `head`.
    async fn export_bucket(
        &self,
        link: &Link,
        room: &RoomId,
        (bucket, head): (u64, u64),
        sink: &mut Sink<'_>,
    ) -> Result<(), Trouble> {
        let statement = paged(&link.statements.select_oldest, PAGE_ROWS);
        let (low, high) = (bucket * BUCKET_SEQS, head.min(bucket * BUCKET_SEQS + (BUCKET_SEQS - 1)));
        // Of one place's attempts the lowest counts, which comes last.
        let mut held: Option<ReadRow> = None;
        let mut from = Some(PagingState::start());
        while let Some(state) = from {
            let values = (&**room, bigint(bucket), bigint(low), bigint(high));
            let (page, next) =
                patiently(async || self.execute_page(link, &statement, values, state.clone()).await).await?;
            let rows = page.into_rows_result().map_err(unreadable)?;
            for columns in rows.rows::<MessageColumns<'_>>().map_err(unreadable)? {
                let Some(Stored::Message(read)) = columns.map_err(unreadable)?.stored_with(room, usize::MAX) else {
                    continue;
                };
                let place = |read: &ReadRow| (read.row.seq, read.row.generation);
                let is_same = held.as_ref().is_some_and(|held| place(held) == place(&read));
                if let Some(done) = held.replace(read).filter(|_| !is_same) {
                    put_message(done, sink)?;
                }
            }
            from = match next {
                PagingStateResponse::HasMorePages { state } => Some(state),
                PagingStateResponse::NoMorePages => None,
            };
        }
        held.map_or(Ok(()), |read| put_message(read, sink))
    }

    /// A room's facts, and its voids as (seq, gen), ascending.
    async fn facts(&self, link: &Link, room: &RoomId) -> Result<(RoomFacts, Vec<(u64, u64)>), Trouble> {
        let (meta, void_generations) = self.read_meta_whole(link, room).await?;
        let voids = meta.voids.iter().copied().zip(void_generations).collect();
        let oldest = self.oldest_now(link, room).await?;
        let facts =
            RoomFacts { room: room.clone(), generation: meta.generation, owner: meta.owner, oldest, bases: meta.bases };
        Ok((facts, voids))
    }

    async fn standing(&self, link: &Link, room: &RoomFacts) -> Result<Standing, Trouble> {
        let here = self.read_meta(link, &room.room).await?;
        Ok(if here.generation == 0 {
            Standing::Absent
        } else if (here.generation, here.owner) == (room.generation, room.owner)
            && here.bases.iter().all(|base| room.bases.contains(base))
        {
            Standing::Same
        } else {
            Standing::Other { generation: here.generation }
        })
    }

    /// Takes a room that nobody has, or goes on with one that an import took, and writes its facts.
    async fn claim(&self, link: &Link, facts: &RoomFacts) -> Result<(), Trouble> {
        let room = &*facts.room;
        let (generation, owner) = (bigint(facts.generation), facts.owner.cast_signed());
        if facts.generation == 0 {
            return Ok(());
        }
        let values = (generation, owner, room, None::<i64>);
        if !is_applied(self.execute(link, &link.statements.advance, values).await?)?
            && self.standing(link, facts).await? != Standing::Same
        {
            return Err(in_use(room));
        }
        for bases in facts.bases.chunks(BATCH_MAX) {
            let values = bases.iter().map(|(of, base)| (bigint(*base), room, bigint(*of), generation, owner)).collect();
            self.conditional(link, &link.statements.set_base, values, room).await?;
        }
        if facts.oldest > 0 {
            let values = (bigint(facts.oldest), room, generation, owner);
            if !is_applied(self.execute(link, &link.statements.set_floor, values).await?)? {
                return Err(in_use(room));
            }
        }
        Ok(())
    }

    /// A batch of conditional writes to one room, all with its generation and owner as their condition.
    async fn conditional(
        &self,
        link: &Link,
        statement: &PreparedStatement,
        values: Vec<(i64, &str, i64, i64, i64)>,
        room: &str,
    ) -> Result<(), Trouble> {
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_execution_profile_handle(Some(link.writes.clone()));
        values.iter().for_each(|_| batch.append_statement(statement.clone()));
        let _permit = self.permit().await?;
        match is_applied(link.session.batch(&batch, values).await?)? {
            true => Ok(()),
            false => Err(in_use(room)),
        }
    }

    async fn put_messages(&self, link: &Link, records: &[Record]) -> Result<(), Trouble> {
        let reads =
            || records.iter().filter_map(|record| if let Record::Message(read) = record { Some(read) } else { None });
        patiently(async || self.append(link, reads().map(|read| read.row.clone()).collect()).await).await?;
        // Readers beyond what a node would keep stand in lines of their own.
        let receipts = reads().filter(|read| !read.read_by.is_empty()).map(async |read| {
            let readers: Vec<&str> = read.read_by.iter().map(|reader| &**reader).collect();
            patiently(async || self.add_readers(link, &read.row, &readers).await).await
        });
        try_join_all(receipts).await.map(|_| ())
    }

    async fn put_voids(
        &self,
        link: &Link,
        records: &[Record],
        claimed: &HashMap<RoomId, (u64, u64)>,
    ) -> Result<(), Trouble> {
        let mut shares: BTreeMap<(&RoomId, u64), Vec<u64>> = BTreeMap::new();
        for record in records {
            if let Record::Void { room, seq, generation } = record {
                shares.entry((room, *generation)).or_default().push(*seq);
            }
        }
        for ((room, of), seqs) in shares {
            let (generation, owner) = claimed.get(room).copied().unwrap_or_default();
            let condition = (bigint(generation), owner.cast_signed());
            for seqs in seqs.chunks(BATCH_MAX) {
                patiently(async || {
                    let values = seqs.iter().map(|seq| (bigint(of), &**room, bigint(*seq), condition.0, condition.1));
                    self.conditional(link, &link.statements.void_if_owner, values.collect(), room).await
                })
                .await?;
                patiently(async || self.mark_voids(link, room, of, seqs).await).await?;
            }
        }
        Ok(())
    }

    async fn stat_room(&self, link: &Link, room: &RoomId, generation: u64, exact: bool) -> Result<RoomStat, Trouble> {
        let last = self.last_row(link, room).await?.map(|row| (row.seq, row.timestamp));
        let (room, from) = (room.clone(), From::Oldest);
        let range = Range { room: room.clone(), after: 0, before: u64::MAX, limit: 1, bytes_max: u32::MAX, from };
        let (rows, _, _) = self.page(link, &range).await?;
        let first = rows.first().map(|read| (read.row.seq, read.row.timestamp));
        let messages = match (first, last) {
            (Some(first), Some(last)) if !exact => Messages::Estimated(last.0.saturating_sub(first.0) + 1),
            (Some(_), Some(last)) => Messages::Exact(self.count(link, &room, last.0).await?),
            _ => Messages::Exact(0),
        };
        Ok(RoomStat { room, generation, first, last, messages })
    }

    /// All messages of a room, of every generation.
    async fn count(&self, link: &Link, room: &RoomId, head: u64) -> Result<u64, Trouble> {
        let (mut low, high) = (0, head / BUCKET_SEQS);
        let mut count = 0;
        loop {
            let buckets = self.buckets(link, room, (low, high), false, BUCKETS_AT_ONCE).await?;
            for bucket in &buckets {
                let mut rows = Vec::new();
                self.rows_of(link, room, bucket.number, 0, &mut rows).await?;
                count += rows.len() as u64;
            }
            match buckets.last() {
                Some(last) if buckets.len() == BUCKETS_AT_ONCE as usize && last.number < high => low = last.number + 1,
                _ => return Ok(count),
            }
        }
    }
}

/// Puts a message out, and what of its readers finds no place with it.
fn put_message(mut read: ReadRow, sink: &mut Sink<'_>) -> Result<(), Trouble> {
    let later = read.read_by.split_off(read.read_by.len().min(READERS_AT_ONCE));
    let (room, seq, generation) = (read.row.room.clone(), read.row.seq, read.row.generation);
    sink(&Record::Message(read)).map_err(Trouble::Refused)?;
    for readers in later.chunks(READERS_AT_ONCE) {
        let (room, readers) = (room.clone(), readers.to_vec());
        sink(&Record::Readers { room, seq, generation, readers }).map_err(Trouble::Refused)?;
    }
    Ok(())
}

fn in_use(room: &str) -> Trouble {
    Trouble::Refused(format!(
        "room {room} was used by a node while it was imported: stop the nodes, and import into an empty keyspace"
    ))
}
