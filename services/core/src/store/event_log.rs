//! The outbox behind the port of [`app::content`](crate::app::content).

use std::sync::Arc;

use async_trait::async_trait;
use tourin_shared_events::outbox::{Depth, OutboxStore};

use super::errors::of_engine;
use crate::app::StoreError;
use crate::app::content::EventLog;

#[async_trait]
impl EventLog for Arc<dyn OutboxStore> {
    async fn id(&self) -> Result<String, StoreError> {
        self.log_id().await.map_err(of_engine)
    }

    async fn depth(&self) -> Result<Depth, StoreError> {
        OutboxStore::depth(&**self).await.map_err(of_engine)
    }
}
