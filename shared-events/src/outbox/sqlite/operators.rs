//! What operators ask for.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{outgoing, signed, unsigned};
use crate::events::Outgoing;
use crate::outbox::operator::{Operation, frozen, state_of};
use crate::outbox::versions::Versions;
use crate::outbox::{Filter, Run, Selected, State, Stored};
use crate::sqlite::{Database, from_micros};

/// Rows looked at and changed per transaction.
const ROWS_PER_CHANGE: usize = 1_000;

const COLUMNS: &str = "seq, event_id, type, exchange, routing_key, ordering_key, shard, occurred_at, recorded_at, \
                       published_at, rejected_at, attempts, last_error";

pub(super) async fn list(database: &Database, filter: &Filter) -> anyhow::Result<Vec<Stored>> {
    let place = match filter.state {
        State::Pending => {
            "INDEXED BY outbox_pending WHERE published_at IS NULL AND rejected_at IS NULL"
        }
        State::Rejected => "INDEXED BY outbox_rejected WHERE rejected_at IS NOT NULL",
        State::Published => "WHERE published_at IS NOT NULL",
    };
    let sql = format!("SELECT {COLUMNS} FROM outbox {place} AND seq > ?1 ORDER BY seq LIMIT ?2");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(signed(filter.after))
        .bind(filter.limit)
        .fetch_all(database.reader())
        .await?;
    rows.iter().map(stored).collect()
}

pub(super) async fn show(
    database: &Database,
    versions: Versions,
    seqs: &[u64],
) -> anyhow::Result<Vec<(Stored, Outgoing)>> {
    let sql = format!(
        "SELECT {COLUMNS}, data, headers FROM outbox
         WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(serde_json::to_string(seqs)?)
        .fetch_all(database.reader())
        .await?;
    rows.iter().map(|row| Ok((stored(row)?, outgoing(row, versions)?))).collect()
}

pub(super) async fn find(database: &Database, events: &[Uuid]) -> anyhow::Result<Vec<u64>> {
    let seqs: Vec<i64> = sqlx::query_scalar(
        "SELECT seq FROM outbox WHERE event_id IN (SELECT value FROM json_each(?)) ORDER BY seq",
    )
    .bind(serde_json::to_string(events)?)
    .fetch_all(database.reader())
    .await?;
    Ok(seqs.into_iter().map(unsigned).collect())
}

pub(super) async fn apply(
    database: &Database,
    operation: Operation,
    seqs: &[u64],
    run: Run,
) -> anyhow::Result<Selected> {
    let change = match operation {
        Operation::Replay => {
            "UPDATE outbox SET published_at = NULL, rejected_at = NULL, attempts = 0, last_error = NULL
             WHERE seq IN (SELECT value FROM json_each(?))"
        }
        Operation::Discard => "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
    };
    let mut selected = Selected::default();
    for asked in frozen(seqs).chunks(ROWS_PER_CHANGE) {
        let mut transaction = database.write().await?;
        let rows: Vec<(i64, Option<i64>, Option<i64>)> = sqlx::query_as(
            "SELECT seq, published_at, rejected_at FROM outbox
             WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq",
        )
        .bind(serde_json::to_string(asked)?)
        .fetch_all(&mut *transaction)
        .await?;
        let found: Vec<(u64, State)> =
            rows.into_iter().map(|(seq, p, r)| (unsigned(seq), state_of(p, r))).collect();
        let before = selected.touched.len();
        selected.add(operation, asked, &found);
        if run == Run::Dry {
            transaction.rollback().await?;
            continue;
        }
        sqlx::query(change)
            .bind(serde_json::to_string(&selected.touched[before..])?)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    Ok(selected)
}

fn stored(row: &SqliteRow) -> anyhow::Result<Stored> {
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
