//! The outbox as the log that others follow.

use std::time::Duration;

use async_trait::async_trait;
use tourin_shared_events::outbox::{Depth, Feed, FeedPage};

use super::errors::of_engine;
use crate::app::StoreError;
use crate::app::content::EventLog;

#[async_trait]
impl EventLog for Feed {
    async fn page(&self, after: u64, limit: u32, wait: Duration) -> Result<FeedPage, StoreError> {
        Self::page(self, after, limit, wait).await.map_err(of_engine)
    }

    async fn depth(&self) -> Result<Depth, StoreError> {
        Self::depth(self).await.map_err(of_engine)
    }
}
