//! Views in MySQL, with the windows of viewers in Redis, where every core process finds them.
//!
//! A window begins after its view is committed, so no view is lost between the two. Two processes that
//! see one viewer at the same moment may both record the view; the trend counts it once. So it does
//! while Redis is away.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{MysqlRedisStore, RedisSessions};
use crate::app::StoreError;
use crate::app::views::{RecordedViews, View, ViewKey, ViewPolicy, ViewStore};

#[async_trait]
impl ViewStore for MysqlRedisStore {
    async fn record(
        &self,
        views: &[View],
        policy: &ViewPolicy,
    ) -> Result<RecordedViews, StoreError> {
        let redis = self.sessions().best_effort();
        let began = redis.windows(views).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "repeated views were not looked up in redis");
            HashMap::new()
        });
        let is_new = |view: &&View| {
            let before = began.get(&view.key());
            before.is_none_or(|before| (view.at - before).abs() >= policy.window)
        };
        let views: Vec<View> = views.iter().filter(is_new).cloned().collect();
        let recorded = self.mysql().record(&views, policy).await?;
        if recorded == RecordedViews::Committed
            && let Err(error) = redis.begin_windows(&views, policy).await
        {
            tracing::debug!(%error, "views were not marked in redis");
        }
        Ok(recorded)
    }
}

impl RedisSessions {
    /// When the windows of these views began, as far as known.
    async fn windows(&self, views: &[View]) -> Result<HashMap<ViewKey, DateTime<Utc>>, StoreError> {
        if views.is_empty() {
            return Ok(HashMap::new());
        }
        let mut look = redis::cmd("ZMSCORE");
        look.arg(&self.keys.views);
        for view in views {
            look.arg(view.key().as_slice());
        }
        let scores: Vec<Option<f64>> = self.ask("select", &look).await?;
        let known = views.iter().zip(scores).filter_map(|(view, score)| {
            // Microseconds of our era are below 2^53, so they are exact.
            Some((view.key(), DateTime::from_timestamp_micros(score? as i64)?))
        });
        Ok(known.collect())
    }

    async fn begin_windows(&self, views: &[View], policy: &ViewPolicy) -> Result<(), StoreError> {
        let Some(latest) = views.iter().map(|view| view.at).max() else { return Ok(()) };
        let mut call = self.scripts.views.prepare_invoke();
        call.key(&self.keys.views);
        call.arg((latest - policy.window).timestamp_micros()).arg(policy.remembered);
        call.arg(policy.window.num_milliseconds().max(1));
        for view in views {
            call.arg(view.at.timestamp_micros()).arg(view.key().as_slice());
        }
        self.run("begin windows", &call).await
    }
}
