//! The position in core's feed, on MongoDB.

use async_trait::async_trait;
use mongodb::bson::doc;
use serde::Deserialize;
use tourin_shared_events::bus::feed::{Cursor, CursorStore};

use super::connection::{Connection, Statement};

const CURSORS: &str = "feed_cursors";

/// [`CursorStore`] on MongoDB, in the same database as the effects.
pub(super) struct MongoCursor(Connection);

impl MongoCursor {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection)
    }
}

#[derive(Deserialize)]
struct Stored {
    log_id: String,
    seq: i64,
}

#[async_trait]
impl CursorStore for MongoCursor {
    async fn load(&self, queue: &str) -> anyhow::Result<Option<Cursor>> {
        let stored: Option<Stored> = self.0.get(CURSORS, doc! { "_id": queue }, doc! {}).await?;
        stored
            .map(|stored| Ok(Cursor { log_id: stored.log_id, seq: u64::try_from(stored.seq)? }))
            .transpose()
    }

    async fn save(&self, queue: &str, cursor: &Cursor) -> anyhow::Result<()> {
        let save = Statement {
            query: doc! { "_id": queue },
            update: doc! {
                "$set": { "log_id": &cursor.log_id, "seq": i64::try_from(cursor.seq)? },
            },
        };
        self.0.upsert_where(CURSORS, &[save]).await?;
        Ok(())
    }
}
