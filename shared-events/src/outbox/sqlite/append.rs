//! Writing events into the outbox.

use chrono::{DateTime, Utc};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::events::Outgoing;
use crate::outbox::{OutboxFull, shard_of};
use crate::sqlite::to_micros;
use crate::trace;

/// Rows per INSERT statement: ten values each, far below SQLite's 32,766.
const ROWS_PER_INSERT: usize = 100;

/// Appends events, in order, inside the caller's transaction: they are committed with the change they tell of, or not
/// at all, and each with the trace in which it is made. After the commit call [`Wake::notify`](crate::outbox::Wake::notify).
///
/// # Errors
/// [`OutboxFull`] when too many events wait for the bus; otherwise the database's. Roll back in any case.
pub async fn append(
    connection: &mut SqliteConnection,
    events: &[Outgoing],
    recorded_at: DateTime<Utc>,
) -> anyhow::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let full: bool =
        sqlx::query_scalar("SELECT is_full FROM outbox_state").fetch_one(&mut *connection).await?;
    anyhow::ensure!(!full, OutboxFull);
    for chunk in events.chunks(ROWS_PER_INSERT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for event in chunk {
            rows.push((
                event,
                event.envelope.data.to_string(),
                serde_json::to_string(&*trace::with_current(&event.headers))?,
            ));
        }
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO outbox (event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers, recorded_at, shard) ",
        );
        insert.push_values(rows, |mut row, (event, data, headers)| {
            row.push_bind(event.envelope.id.to_string())
                .push_bind(event.envelope.r#type.clone())
                .push_bind(to_micros(event.envelope.timestamp))
                .push_bind(data)
                .push_bind(event.exchange.clone())
                .push_bind(event.routing_key.clone())
                .push_bind(event.ordering_key.clone())
                .push_bind(headers)
                .push_bind(to_micros(recorded_at))
                .push_bind(shard_of(&event.ordering_key));
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}
