//! Reads the contents of the stores, for tools that compare them with the actions of members.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_shared_events::bus::Subscriber;
use tourin_shared_events::consumer::QueueMetrics;

use super::ports::{HistoryStore, Interactions, PortError, TrendStore};
use crate::domain::spot::SpotId;

/// The maximum number of spots of each kind in a member's interactions.
pub const MAX_INTERACTIONS: usize = 10_000;

/// Queries about single spots and members.
#[derive(Clone)]
pub struct Audit {
    /// The trend's scores.
    pub trend: Arc<dyn TrendStore>,
    /// Members' histories.
    pub histories: Arc<dyn HistoryStore>,
    /// The trend's half-life.
    pub half_life: Duration,
    /// The clock of trend values.
    pub clock: SharedClock,
    /// The source of events.
    pub events: Arc<dyn Subscriber>,
    /// The metrics of the consumers, by queue.
    pub consumers: Vec<(&'static str, QueueMetrics)>,
}

/// Trend values of spots at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct TrendValues {
    /// The time of the values.
    pub at: DateTime<Utc>,
    /// The values by spot, without spots that never counted.
    pub values: HashMap<SpotId, f64>,
}

impl Audit {
    /// The current trend values of spots.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn trend_values(&self, spots: &[SpotId]) -> Result<TrendValues, PortError> {
        let at = self.clock.now();
        Ok(TrendValues { at, values: self.trend.values(spots, at).await? })
    }

    /// How many events are still to come, and how many are done with; effects are committed by then.
    ///
    /// # Errors
    /// When the bus is unreachable.
    pub async fn backlog(&self) -> anyhow::Result<(u64, u64)> {
        let waiting = self.events.backlog().await?;
        let handled = self.consumers.iter().flat_map(|(_, of)| {
            [&of.applied, &of.duplicate, &of.ignored, &of.expired, &of.dead_lettered]
        });
        Ok((waiting, handled.map(|counter| counter.get()).sum()))
    }

    /// The spots that a member has viewed and bookmarked, up to [`MAX_INTERACTIONS`] of each.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn interactions(&self, member: &str) -> Result<Interactions, PortError> {
        self.histories.interactions(member, MAX_INTERACTIONS).await
    }
}
