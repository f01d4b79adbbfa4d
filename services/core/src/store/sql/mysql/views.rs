//! Views in MySQL: they are kept as their events only.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::mysql::MySqlConnection;
use sqlx::{MySql, QueryBuilder};

use super::{MysqlStore, record};
use crate::app::StoreError;
use crate::app::views::{View, ViewStore};

/// Those of the viewers who have an account; it stays until the transaction ends.
async fn keep_members(
    conn: &mut MySqlConnection,
    viewers: &BTreeSet<&str>,
) -> sqlx::Result<BTreeSet<String>> {
    if viewers.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut members = QueryBuilder::<MySql>::new("SELECT id FROM members WHERE id IN (");
    let mut ids = members.separated(", ");
    for viewer in viewers {
        ids.push_bind(*viewer);
    }
    members.push(") ORDER BY id LOCK IN SHARE MODE");
    let found: Vec<String> = members.build_query_scalar().persistent(false).fetch_all(conn).await?;
    Ok(found.into_iter().collect())
}

impl MysqlStore {
    async fn try_record(&self, views: &[View]) -> Result<(), StoreError> {
        let Some(latest) = views.iter().map(|view| view.at).max() else {
            return Ok(());
        };
        let viewers: BTreeSet<&str> = views
            .iter()
            .filter(|view| view.is_by_member())
            .map(|view| view.user_id.as_str())
            .collect();
        let mut transaction = self.db.write().await?;
        let members = keep_members(&mut transaction, &viewers).await?;
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

#[async_trait]
impl ViewStore for MysqlStore {
    async fn record(&self, views: &[View]) -> Result<(), StoreError> {
        retried!(self.try_record(views))
    }
}
