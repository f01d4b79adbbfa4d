//! The position in core's feed, on SQLite.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tourin_shared_events::bus::feed::{Cursor, CursorStore};
use tourin_shared_events::sqlite::Database;

use super::writer::{Change, Writer};

/// [`CursorStore`] on SQLite, in the same file as the effects.
pub(super) struct SqliteCursor {
    db: Database,
    writer: Writer,
}

impl SqliteCursor {
    pub(super) fn new(db: Database, writer: Writer) -> Self {
        Self { db, writer }
    }
}

#[async_trait]
impl CursorStore for SqliteCursor {
    async fn load(&self, queue: &str) -> anyhow::Result<Option<Cursor>> {
        let row: Option<(String, i64)> =
            sqlx::query_as("SELECT log_id, seq FROM feed_cursors WHERE queue = ?")
                .bind(queue)
                .fetch_optional(self.db.reader())
                .await?;
        row.map(|(log_id, seq)| Ok(Cursor { log_id, seq: u64::try_from(seq)? })).transpose()
    }

    async fn save(&self, queue: &str, cursor: &Cursor) -> anyhow::Result<()> {
        let change = Save {
            queue: queue.to_owned(),
            log_id: cursor.log_id.clone(),
            seq: i64::try_from(cursor.seq)?,
        };
        Ok(self.writer.commit(change).await?)
    }
}

struct Save {
    queue: String,
    log_id: String,
    seq: i64,
}

#[async_trait]
impl Change for Save {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO feed_cursors (queue, log_id, seq) VALUES (?, ?, ?)
             ON CONFLICT DO UPDATE SET log_id = excluded.log_id, seq = excluded.seq",
        )
        .bind(&self.queue)
        .bind(&self.log_id)
        .bind(self.seq)
        .execute(connection)
        .await?;
        Ok(())
    }
}
