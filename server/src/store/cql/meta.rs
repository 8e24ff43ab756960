//! A room's rare facts: conditional writes (LWT), and the serial read that sees them.
//!
//! ORDERING.md allows them here and nowhere else. A condition on the static columns stands on every statement of a
//! batch; what the driver cannot know of is never repeated by it, but by the state machine, whose requests all may be.

use super::link::{Link, Trouble};
use super::worker::Worker;
use super::{bigint, number};
use roomwire_engine::names::RoomId;
use roomwire_engine::store::RoomMeta;
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row as AnyRow};

/// Kinds of rows in `room_meta`; a third one holds what retention had removed of an imported room (`link::set_floor`).
const KIND_BASE: i8 = 0;
const KIND_VOID: i8 = 1;
/// Voids of one conditional batch: clusters refuse batches of 50 KiB by default.
const BATCH_VOIDS_MAX: usize = 128;

impl Worker {
    /// All facts of a room, as the last conditional write left them.
    pub(super) async fn read_meta(&self, link: &Link, room: &RoomId) -> Result<RoomMeta, Trouble> {
        Ok(self.read_meta_whole(link, room).await?.0)
    }

    /// The same, and which generation voided each of its voids.
    pub(super) async fn read_meta_whole(&self, link: &Link, room: &RoomId) -> Result<(RoomMeta, Vec<u64>), Trouble> {
        let mut meta = RoomMeta::default();
        let mut void_generations = Vec::new();
        let mut from = PagingState::start();
        loop {
            let (page, next) = self.execute_page(link, &link.statements.select_meta, (&**room,), from).await?;
            let rows = page.into_rows_result().map_err(unreadable)?;
            type Columns = (Option<i8>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
            for row in rows.rows::<Columns>().map_err(unreadable)? {
                let (kind, n, generation, owner, base) = row.map_err(unreadable)?;
                meta.generation = number(generation.unwrap_or(0));
                meta.owner = owner.unwrap_or(0).cast_unsigned();
                match (kind, n, base) {
                    (Some(KIND_BASE), Some(n), Some(base)) => meta.bases.push((number(n), number(base))),
                    (Some(KIND_VOID), Some(n), by) => {
                        meta.voids.push(number(n));
                        void_generations.push(by.map_or(0, number));
                    }
                    // A room with a generation and nothing else, or the third kind.
                    _ => {}
                }
            }
            match next {
                PagingStateResponse::HasMorePages { state } => from = state,
                PagingStateResponse::NoMorePages => return Ok((meta, void_generations)),
            }
        }
    }

    /// The room's generation alone.
    pub(super) async fn read_generation(&self, link: &Link, room: &RoomId) -> Result<u64, Trouble> {
        self.generation_by(link, &link.statements.select_generation, room).await
    }

    /// Whether the room ever had a generation that somebody could have written in: one whose conditional write was
    /// answered. Most users' own rooms never have.
    pub(super) async fn was_begun(&self, link: &Link, room: &RoomId) -> Result<bool, Trouble> {
        Ok(self.generation_by(link, &link.statements.select_begun, room).await? > 0)
    }

    async fn generation_by(&self, link: &Link, statement: &PreparedStatement, room: &RoomId) -> Result<u64, Trouble> {
        let result = self.execute(link, statement, (&**room,)).await?;
        let rows = result.into_rows_result().map_err(unreadable)?;
        let row = rows.maybe_first_row::<(Option<i64>,)>().map_err(unreadable)?;
        Ok(row.and_then(|(generation,)| generation).map_or(0, number))
    }

    /// gen from `expect` to `expect + 1`.
    pub(super) async fn advance(&self, link: &Link, room: &RoomId, expect: u64, owner: u64) -> Result<bool, Trouble> {
        let next = expect.saturating_add(1);
        // A room without a generation has none stored.
        let stored = (expect > 0).then(|| bigint(expect));
        let values = (bigint(next), owner.cast_signed(), &**room, stored);
        let result = self.execute(link, &link.statements.advance, values).await?;
        if is_applied(result)? {
            return Ok(true);
        }
        // A repeat finds its own change.
        let meta = self.read_meta(link, room).await?;
        Ok((meta.generation, meta.owner) == (next, owner))
    }

    /// The base of a generation and the voids before it; then the markers.
    ///
    /// The voids come first, in batches that a cluster takes, and the base last. A part of them alone does no harm: each
    /// names a seq that nobody has decided and that the generation's owner has taken out of the running, and once
    /// voided it stays so.
    pub(super) async fn set_base(
        &self,
        link: &Link,
        room: &RoomId,
        (generation, owner): (u64, u64),
        base: u64,
        voids: &[u64],
    ) -> Result<bool, Trouble> {
        let condition = (bigint(generation), owner.cast_signed());
        for voids in voids.chunks(BATCH_VOIDS_MAX) {
            let mut batch = Batch::new(BatchType::Unlogged);
            batch.set_is_idempotent(false);
            batch.set_execution_profile_handle(Some(link.writes.clone()));
            let mut values = Vec::with_capacity(voids.len());
            for seq in voids {
                batch.append_statement(link.statements.void_if_owner.clone());
                values.push((bigint(generation), &**room, bigint(*seq), condition.0, condition.1));
            }
            let _permit = self.permit().await?;
            let result = link.session.batch(&batch, values).await?;
            self.heard();
            if !is_applied(result)? {
                return Ok(false);
            }
        }
        let values = (bigint(base), &**room, bigint(generation), condition.0, condition.1);
        let result = self.execute(link, &link.statements.set_base, values).await?;
        if !is_applied(result)? {
            return Ok(false);
        }
        self.mark_voids(link, room, generation, voids).await?;
        Ok(true)
    }

    /// Voids a seq, if the generation is still this one; then its marker.
    pub(super) async fn void(&self, link: &Link, room: &RoomId, generation: u64, seq: u64) -> Result<bool, Trouble> {
        let values = (bigint(generation), &**room, bigint(seq), bigint(generation));
        let result = self.execute(link, &link.statements.void, values).await?;
        if !is_applied(result)? {
            return Ok(false);
        }
        self.mark_voids(link, room, generation, &[seq]).await?;
        Ok(true)
    }
}

/// The column `[applied]` of a conditional write's answer, always the first.
pub(super) fn is_applied(result: QueryResult) -> Result<bool, Trouble> {
    let rows = result.into_rows_result().map_err(unreadable)?;
    let row = rows.first_row::<AnyRow>().map_err(unreadable)?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        _ => Err(Trouble::Passing("the answer to a conditional write has no [applied]".to_owned())),
    }
}

/// An answer of another form than the statement's.
pub(super) fn unreadable(error: impl std::fmt::Display) -> Trouble {
    Trouble::Passing(format!("an answer of Cassandra cannot be read: {error}"))
}
