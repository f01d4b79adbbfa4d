//! Views in SQLite: they are kept as their events only.

use std::collections::HashSet;

use async_trait::async_trait;

use super::{SqliteStore, record};
use crate::app::StoreError;
use crate::app::views::{View, ViewStore};

#[async_trait]
impl ViewStore for SqliteStore {
    async fn record(&self, views: &[View]) -> Result<(), StoreError> {
        let Some(latest) = views.iter().map(|view| view.at).max() else {
            return Ok(());
        };
        let viewers: HashSet<&str> = views
            .iter()
            .filter(|view| view.is_by_member())
            .map(|view| view.user_id.as_str())
            .collect();
        let viewers =
            serde_json::to_string(&viewers).map_err(|error| StoreError::Failed(error.into()))?;

        let mut transaction = self.db.write().await?;
        let members: HashSet<String> = sqlx::query_scalar(
            "SELECT m.id FROM json_each(?1) AS viewer CROSS JOIN members AS m ON m.id = viewer.value",
        )
        .bind(viewers)
        .fetch_all(&mut *transaction)
        .await?
        .into_iter()
        .collect();
        let events: Vec<_> = views
            .iter()
            .filter(|view| !view.is_by_member() || members.contains(&view.user_id))
            .map(View::event)
            .collect();
        record(&mut transaction, &events, latest).await?;
        transaction.commit().await?;
        self.committed();
        Ok(())
    }
}
