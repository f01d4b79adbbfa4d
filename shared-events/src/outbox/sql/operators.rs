//! Operations for operators.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::rows::{ROWS_PER_CHANGE, STORED, json, outgoing, signed, stored, unsigned};
use super::{Database, bounded, statements as sql, transaction};
use crate::events::Outgoing;
use crate::outbox::operator::{Operation, frozen, state_of};
use crate::outbox::versions::Versions;
use crate::outbox::{Filter, Run, Selected, State, Stored};

pub(super) async fn list(database: &Database, filter: &Filter) -> anyhow::Result<Vec<Stored>> {
    let rows = match filter.state {
        State::Pending => sql::WAITING,
        State::Rejected => sql::REJECTED,
        State::Published => sql::PUBLISHED,
    };
    let select = format!("SELECT {STORED} FROM {rows} AND seq > ? ORDER BY seq LIMIT ?");
    let reading = sqlx::query(AssertSqlSafe(select)).bind(signed(filter.after)).bind(filter.limit);
    let rows = bounded(reading.fetch_all(database.reader())).await?;
    rows.iter().map(stored).collect()
}

pub(super) async fn show(
    database: &Database,
    versions: Versions,
    seqs: &[u64],
) -> anyhow::Result<Vec<(Stored, Outgoing)>> {
    let mut shown = Vec::new();
    for seqs in frozen(seqs).chunks(ROWS_PER_CHANGE) {
        let select = format!("SELECT {STORED}, data, headers FROM {} ORDER BY seq", sql::LISTED);
        let reading = sqlx::query(AssertSqlSafe(select)).bind(json(seqs));
        for row in bounded(reading.fetch_all(database.reader())).await? {
            shown.push((stored(&row)?, outgoing(&row, versions)?));
        }
    }
    Ok(shown)
}

pub(super) async fn find(database: &Database, events: &[Uuid]) -> anyhow::Result<Vec<u64>> {
    let select = format!("SELECT seq FROM outbox WHERE {} ORDER BY seq", sql::IS_OF_EVENTS);
    let reading = sqlx::query_scalar(AssertSqlSafe(select)).bind(json(events));
    let seqs: Vec<i64> = bounded(reading.fetch_all(database.reader())).await?;
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
        let found = transaction(|| try_apply(database, operation, asked, run)).await?;
        selected.add(operation, asked, &found);
    }
    Ok(selected)
}

/// Locks the rows, changes those in a suitable state, and reports the result.
async fn try_apply(
    database: &Database,
    operation: Operation,
    asked: &[u64],
    run: Run,
) -> sqlx::Result<Vec<(u64, State)>> {
    let mut transaction = database.write().await?;
    let select = format!(
        "SELECT seq, published_at, rejected_at FROM {} ORDER BY seq{}",
        sql::LISTED,
        sql::FOR_UPDATE
    );
    let rows: Vec<(i64, Option<i64>, Option<i64>)> = sqlx::query_as(AssertSqlSafe(select))
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
        Operation::Replay => sql::REPLAY,
        Operation::Discard => sql::DELETE,
    };
    sqlx::query(change).bind(json(&selected.touched)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(found)
}
