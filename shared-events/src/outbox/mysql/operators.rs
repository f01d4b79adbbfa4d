//! What operators ask for.

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{ROWS_PER_CHANGE, numbers, outgoing, signed, unsigned};
use crate::events::Outgoing;
use crate::mysql::{Conflicts, Database, bounded, from_micros};
use crate::outbox::operator::{Operation, frozen, state_of};
use crate::outbox::versions::Versions;
use crate::outbox::{Filter, Run, Selected, State, Stored};

const COLUMNS: &str = "o.seq, o.event_id, o.type, o.exchange, o.routing_key, o.ordering_key, o.shard, o.occurred_at, \
                       o.recorded_at, o.published_at, o.rejected_at, o.attempts, o.last_error";

pub(super) async fn list(database: &Database, filter: &Filter) -> anyhow::Result<Vec<Stored>> {
    let place = match filter.state {
        State::Pending => {
            "FORCE INDEX (outbox_waiting) WHERE o.published_at IS NULL AND o.rejected_at IS NULL"
        }
        State::Rejected => {
            "FORCE INDEX (outbox_waiting) WHERE o.published_at IS NULL AND o.rejected_at > 0"
        }
        State::Published => "FORCE INDEX (PRIMARY) WHERE o.published_at IS NOT NULL",
    };
    let sql =
        format!("SELECT {COLUMNS} FROM outbox AS o {place} AND o.seq > ? ORDER BY o.seq LIMIT ?");
    let read = async {
        sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(signed(filter.after))
            .bind(filter.limit)
            .fetch_all(database.reader())
            .await
    };
    bounded(read).await?.iter().map(stored).collect()
}

pub(super) async fn show(
    database: &Database,
    versions: Versions,
    seqs: &[u64],
) -> anyhow::Result<Vec<(Stored, Outgoing)>> {
    let mut shown = Vec::new();
    for seqs in frozen(seqs).chunks(ROWS_PER_CHANGE) {
        let sql = format!(
            "SELECT {COLUMNS}, o.data, o.headers FROM {} STRAIGHT_JOIN outbox AS o ON o.seq = w.v ORDER BY o.seq",
            numbers!()
        );
        let json = serde_json::to_string(seqs)?;
        let read = async {
            sqlx::query(AssertSqlSafe(sql))
                .persistent(false)
                .bind(json)
                .fetch_all(database.reader())
                .await
        };
        for row in bounded(read).await? {
            shown.push((stored(&row)?, outgoing(&row, versions)?));
        }
    }
    Ok(shown)
}

pub(super) async fn find(database: &Database, events: &[Uuid]) -> anyhow::Result<Vec<u64>> {
    let json = serde_json::to_string(events)?;
    let read = async {
        sqlx::query_scalar(
            "SELECT seq FROM outbox WHERE JSON_CONTAINS(?, JSON_QUOTE(event_id)) ORDER BY seq",
        )
        .persistent(false)
        .bind(json)
        .fetch_all(database.reader())
        .await
    };
    let seqs: Vec<i64> = bounded(read).await?;
    Ok(seqs.into_iter().map(unsigned).collect())
}

pub(super) async fn apply(
    database: &Database,
    operation: Operation,
    seqs: &[u64],
    run: Run,
) -> anyhow::Result<Selected> {
    let mut selected = Selected::default();
    for asked in frozen(seqs).chunks(ROWS_PER_CHANGE) {
        let mut conflicts = Conflicts::default();
        let found = loop {
            match bounded(try_apply(database, operation, asked, run)).await {
                Err(error) if conflicts.again(&error).await => {}
                found => break found?,
            }
        };
        selected.add(operation, asked, &found);
    }
    Ok(selected)
}

/// Locks the rows, changes those that are fit for it, and says what it found.
async fn try_apply(
    database: &Database,
    operation: Operation,
    asked: &[u64],
    run: Run,
) -> sqlx::Result<Vec<(u64, State)>> {
    let json = |seqs: &[u64]| serde_json::to_string(seqs).expect("numbers are JSON");
    let mut transaction = database.write().await?;
    let rows: Vec<(i64, Option<i64>, Option<i64>)> = sqlx::query_as(concat!(
        "SELECT o.seq, o.published_at, o.rejected_at FROM ",
        numbers!(),
        " STRAIGHT_JOIN outbox AS o ON o.seq = w.v ORDER BY o.seq FOR UPDATE"
    ))
    .bind(json(asked))
    .fetch_all(&mut *transaction)
    .await?;
    let found: Vec<(u64, State)> =
        rows.into_iter().map(|(seq, p, r)| (unsigned(seq), state_of(p, r))).collect();
    if run == Run::Dry {
        transaction.rollback().await?;
        return Ok(found);
    }
    let mut selected = Selected::default();
    selected.add(operation, asked, &found);
    let change = match operation {
        Operation::Replay => concat!(
            "UPDATE ",
            numbers!(),
            " STRAIGHT_JOIN outbox AS o ON o.seq = w.v
              SET o.published_at = NULL, o.rejected_at = NULL, o.attempts = 0, o.last_error = NULL"
        ),
        Operation::Discard => {
            concat!("DELETE o FROM ", numbers!(), " STRAIGHT_JOIN outbox AS o ON o.seq = w.v")
        }
    };
    sqlx::query(change).bind(json(&selected.touched)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(found)
}

fn stored(row: &MySqlRow) -> anyhow::Result<Stored> {
    let time = |name: &str| row.try_get::<Option<i64>, _>(name);
    let (published_at, rejected_at) = (time("published_at")?, time("rejected_at")?);
    Ok(Stored {
        seq: unsigned(row.try_get("seq")?),
        event_id: Uuid::parse_str(row.try_get("event_id")?)?,
        r#type: row.try_get("type")?,
        exchange: row.try_get("exchange")?,
        ordering_key: row.try_get("ordering_key")?,
        shard: row.try_get("shard")?,
        state: state_of(published_at, rejected_at),
        occurred_at: from_micros(row.try_get("occurred_at")?)?,
        recorded_at: from_micros(row.try_get("recorded_at")?)?,
        published_at: published_at.map(from_micros).transpose()?,
        rejected_at: rejected_at.map(from_micros).transpose()?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}
