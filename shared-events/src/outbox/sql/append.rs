//! Writing events into the outbox.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, QueryBuilder};

use super::{Connection, Engine, statements as sql, to_micros};
use crate::events::Outgoing;
use crate::outbox::{OutboxFull, shard_of};
use crate::trace;

/// Most rows per statement: ten values each, far below the 32,766 that SQLite takes.
const ROWS_PER_INSERT: usize = 200;
/// About how many bytes of data a statement carries at most, unless one event alone has more: 1 MiB, far below the 16 MiB
/// and more that servers take.
const BYTES_PER_INSERT: usize = 1024 * 1024;

/// Appends events, in order, inside the caller's transaction: they are committed with the change they tell of, or not
/// at all, and each with the trace in which it is made. Make it the last thing before the commit, so that events of changes
/// that wait for each other are numbered in their order. After the commit call
/// [`Wake::notify`](crate::outbox::Wake::notify).
///
/// # Errors
/// [`OutboxFull`] when too many events wait for the bus; otherwise the database's. Roll back in any case.
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
    // One event, or a full statement: these come again. The others would push them out of the cache of statements.
    let usual = rows.len() == 1 || rows.len() == ROWS_PER_INSERT;
    insert.build().persistent(usual).execute(connection).await?;
    Ok(())
}
