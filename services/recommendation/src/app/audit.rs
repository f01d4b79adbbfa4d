//! What the stores hold, for whoever compares it with what was done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_shared_events::bus::Subscriber;
use tourin_shared_events::consumer::ConsumerStats;

use super::ports::{Deeds, HistoryStore, PortError, TrendStore};
use crate::domain::spot::SpotId;

/// The most spots of each kind in the answer about a member.
pub const MAX_DEEDS: usize = 10_000;

/// Answers questions about single spots and members.
#[derive(Clone)]
pub struct Audit {
    /// The trend's scores.
    pub trend: Arc<dyn TrendStore>,
    /// Members' histories.
    pub histories: Arc<dyn HistoryStore>,
    /// The time in which what counts for the trend halves.
    pub half_life: Duration,
    /// The time.
    pub clock: SharedClock,
    /// Where events come from.
    pub events: Arc<dyn Subscriber>,
    /// What has become of them, by queue.
    pub consumers: Vec<(&'static str, Arc<ConsumerStats>)>,
}

/// What spots are worth for the trend at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Worth {
    /// The time.
    pub at: DateTime<Utc>,
    /// By spot; those that never counted are left out.
    pub values: HashMap<SpotId, f64>,
}

impl Audit {
    /// What spots are worth now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn worth(&self, spots: &[SpotId]) -> Result<Worth, PortError> {
        let at = self.clock.now();
        Ok(Worth { at, values: self.trend.values(spots, at).await? })
    }

    /// How many events are still to come, and how many are done with; effects are committed by then.
    ///
    /// # Errors
    /// When the bus is out of reach.
    pub async fn backlog(&self) -> anyhow::Result<(u64, u64)> {
        let waiting = self.events.backlog().await?;
        let handled = self.consumers.iter().map(|(_, stats)| {
            let now = stats.snapshot();
            now.applied + now.duplicate + now.ignored + now.expired + now.dead_lettered
        });
        Ok((waiting, handled.sum()))
    }

    /// What a member has viewed and bookmarked, up to [`MAX_DEEDS`] of each.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn deeds(&self, member: &str) -> Result<Deeds, PortError> {
        self.histories.deeds(member, MAX_DEEDS).await
    }
}
