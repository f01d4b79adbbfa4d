//! The times of pruning passes, on MongoDB.

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use mongodb::bson::doc;
use serde::Deserialize;
use tourin_chassis::pruning::{PassLog, StoreTimes};

use super::collections::STATE;
use super::connection::{Connection, Statement};

pub(super) struct MongoPasses(pub(super) Connection);

#[derive(Deserialize)]
struct Passed {
    at: i64,
}

fn id_of(what: &str) -> String {
    format!("prune:{what}")
}

#[async_trait]
impl PassLog for MongoPasses {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let query = doc! { "_id": id_of(what) };
        let passed: Option<Passed> = self.0.get(STATE, query, doc! { "at": 1 }).await?;
        let last_pass = passed
            .map(|passed| {
                DateTime::from_timestamp_micros(passed.at).context("mongodb: invalid time")
            })
            .transpose()?;
        Ok(StoreTimes { server: self.0.time().await?, last_pass })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        let note = Statement {
            query: doc! { "_id": id_of(what) },
            update: doc! { "$set": { "at": at.timestamp_micros() } },
        };
        self.0.upsert_where(STATE, &[note]).await?;
        Ok(())
    }
}
