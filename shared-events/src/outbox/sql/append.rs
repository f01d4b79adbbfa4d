//! Writing events into the outbox.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, QueryBuilder};

use super::{Connection, Engine, statements as sql, to_micros};
use crate::events::Outgoing;
use crate::outbox::{OutboxFull, shard_of};
use crate::trace;

/// The most rows per statement: ten values each, far below SQLite's 32,766.
const ROWS_PER_INSERT: usize = 200;
/// About the most bytes of data in a statement, except for a single larger event: 1 MiB, far below the 16 MiB and more
/// that servers accept.
const BYTES_PER_INSERT: usize = 1024 * 1024;

/// Appends events, in order, inside the caller's transaction: they commit or roll back with the change. Each carries
/// the current trace. Call it last before the commit, so that events of dependent changes are numbered in their order.
/// After the commit call [`Wake::notify`](crate::outbox::Wake::notify).
///
/// # Errors
/// [`OutboxFull`] when too many events wait for the bus; otherwise the database's error. Roll back in any case.
pub async fn append(
    connection: &mut Connection,
    events: &[Outgoing],
    recorded_at: DateTime<Utc>,
) -> anyhow::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let gate = format!("SELECT is_full <> 0 FROM {} WHERE id = 1{}", sql::GATE, sql::SHARED);
    let full: bool = sqlx::query_scalar(AssertSqlSafe(gate)).fetch_one(&mut *connection).await?;
    anyhow::ensure!(!full, OutboxFull);
    let mut rows = Vec::new();
    let mut bytes = 0;
    for event in events {
        let data = event.envelope.data.to_string();
        let headers = serde_json::to_string(&*trace::with_current(&event.headers))?;
        bytes += data.len() + headers.len();
        if rows.len() == ROWS_PER_INSERT || (bytes > BYTES_PER_INSERT && !rows.is_empty()) {
            insert(connection, &rows, recorded_at).await?;
            rows.clear();
            bytes = data.len() + headers.len();
        }
        rows.push((event, data, headers));
    }
    Ok(insert(connection, &rows, recorded_at).await?)
}

async fn insert(
    connection: &mut Connection,
    rows: &[(&Outgoing, String, String)],
    recorded_at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::<Engine>::new(
        "INSERT INTO outbox (event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers, recorded_at, shard) ",
    );
    insert.push_values(rows, |mut row, (event, data, headers)| {
        row.push_bind(event.envelope.id.to_string())
            .push_bind(&event.envelope.r#type)
            .push_bind(to_micros(event.envelope.timestamp))
            .push_bind(data)
            .push_bind(&event.exchange)
            .push_bind(&event.routing_key)
            .push_bind(&event.ordering_key)
            .push_bind(headers)
            .push_bind(to_micros(recorded_at))
            .push_bind(shard_of(&event.ordering_key));
    });
    // Only statements for one event or a full batch recur. Others would push them out of the statement cache.
    let usual = rows.len() == 1 || rows.len() == ROWS_PER_INSERT;
    insert.build().persistent(usual).execute(connection).await?;
    Ok(())
}
