//! The service's stores behind the ports of [`app::ports`](crate::app::ports).

mod interaction;
pub mod mongodb;
pub mod sqlite;

#[cfg(test)]
mod contract;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::PassLog;
use tourin_shared_events::dead_letters::DeadLetterStore;

use crate::app::ports::{HistoryStore, SpotReplica, TrendStore};
use crate::batcher::Failure;
use crate::domain::trend::TrendRules;
use crate::operation::StoreMetrics;
use crate::servers::Server;

/// How histories are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRules {
    /// The number of a member's latest spots that co-occur. Default 100: a member with thousands of
    /// spots must not make every row of the model longer.
    pub recent: usize,
    /// The maximum age of events. Default 30 days.
    pub max_age: Duration,
}

impl Default for HistoryRules {
    fn default() -> Self {
        Self { recent: 100, max_age: Duration::from_secs(30 * 24 * 3_600) }
    }
}

/// All stores of the service. Clones share them, and so do replicas in one process: an event that
/// one replica handles changes the responses of all.
#[derive(Clone)]
pub struct Stores {
    /// The trend's scores.
    pub trend: Arc<dyn TrendStore>,
    /// Members' histories.
    pub histories: Arc<dyn HistoryStore>,
    /// The replica of spots.
    pub spots: Arc<dyn SpotReplica>,
    /// When the trend was pruned last, and the time of the server that it is on.
    pub trend_passes: Arc<dyn PassLog>,
    /// The pruning passes of the histories.
    pub history_passes: Arc<dyn PassLog>,
    /// Dead letters, used without a bus that keeps them.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// The server of the trend, unless it is embedded.
    pub trend_server: Option<Arc<dyn Server>>,
    /// The server of histories and spots, when they are not embedded.
    pub document_server: Option<Arc<dyn Server>>,
    /// The embedded file, if any store is in it.
    pub embedded: Option<Arc<dyn Server>>,
    /// Says when nothing can be written any more.
    pub failure: Failure,
    /// The metrics of the servers.
    pub metrics: StoreMetrics,
    /// Keeps other processes out of the folder for as long as the stores are in use.
    pub held: Option<Arc<File>>,
}

impl Stores {
    /// Opens the embedded stores in one SQLite file. Creates or migrates it if needed.
    ///
    /// # Errors
    /// When the file cannot be opened or migrated.
    pub async fn open(
        file: &Path,
        trend: TrendRules,
        histories: HistoryRules,
        clock: SharedClock,
    ) -> anyhow::Result<Self> {
        sqlite::open(file, trend, histories, clock).await
    }
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stores")
    }
}
