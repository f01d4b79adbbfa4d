//! The key of the day for visitors' pseudonyms: one row, which each day's key overwrites.

use async_trait::async_trait;

use super::Store;
use crate::app::StoreError;
use crate::app::visitor_keys::{VisitorKey, VisitorKeyStore};

#[async_trait]
impl VisitorKeyStore for Store {
    async fn visitor_key(
        &self,
        day: i64,
        candidate: &VisitorKey,
    ) -> Result<VisitorKey, StoreError> {
        operation!(self, "select", "visitor keys", async {
            let mut tx = self.db.write().await?;
            // Locked, so that all processes get the key of the first one.
            let (of, key): (i64, Vec<u8>) = sqlx::query_as(concat!(
                "SELECT day, secret FROM visitor_key WHERE id = 1",
                for_update!()
            ))
            .fetch_one(&mut *tx)
            .await?;
            if (day..=day + 1).contains(&of) {
                return key.try_into().map_err(|_| {
                    StoreError::Failed(anyhow::anyhow!("the stored visitor key is malformed"))
                });
            }
            sqlx::query("UPDATE visitor_key SET day = ?, secret = ? WHERE id = 1")
                .bind(day)
                .bind(candidate.as_slice())
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(*candidate)
        })
    }
}
