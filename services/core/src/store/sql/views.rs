//! Views, stored only as events.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::QueryBuilder;
use tourin_shared_events::outbox::OutboxStore as _;

use super::{Connection, Db, Store, record};
use crate::app::StoreError;
use crate::app::views::{RecordedViews, View, ViewPolicy, ViewStore};
use crate::store::errors::of_engine;

/// The viewers that have an account, locked (shared) until the transaction ends.
async fn keep_members(
    conn: &mut Connection,
    viewers: &BTreeSet<&str>,
) -> sqlx::Result<BTreeSet<String>> {
    if viewers.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut members = QueryBuilder::<Db>::new("SELECT id FROM members WHERE id IN (");
    let mut ids = members.separated(", ");
    for viewer in viewers {
        ids.push_bind(*viewer);
    }
    members.push(concat!(") ORDER BY id", in_share_mode!()));
    let found: Vec<String> = members.build_query_scalar().persistent(false).fetch_all(conn).await?;
    Ok(found.into_iter().collect())
}

#[async_trait]
impl ViewStore for Store {
    async fn record(
        &self,
        views: &[View],
        policy: &ViewPolicy,
    ) -> Result<RecordedViews, StoreError> {
        let Some(latest) = views.iter().map(|view| view.at).max() else {
            return Ok(RecordedViews::Committed);
        };
        let backed_up = self.outbox().has_pending(policy.max_pending).await;
        if backed_up.map_err(of_engine)? {
            return Ok(RecordedViews::Shed);
        }
        let by_members = views.iter().filter(|view| view.is_by_member());
        let viewers: BTreeSet<&str> = by_members.map(|view| view.user_id.as_str()).collect();
        retried!(async {
            let mut tx = self.db.write().await?;
            let members = keep_members(&mut tx, &viewers).await?;
            let events: Vec<_> = views
                .iter()
                .filter(|view| !view.is_by_member() || members.contains(&view.user_id))
                .map(View::event)
                .collect();
            record(&mut tx, &events, latest).await?;
            tx.commit().await?;
            self.committed();
            Ok(RecordedViews::Committed)
        })
    }
}
