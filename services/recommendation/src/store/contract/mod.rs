//! The contracts of the stores' ports. Each suite is generic over the port and runs on every
//! implementation.

mod history;
mod spots;
mod trend;

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::ManualClock;

use super::mongodb::TestDatabase;
use super::{HistoryRules, Stores};
use crate::app::ports::{HistoryStore, SpotReplica, TrendStore};
use crate::cache::redis::OnRedis;
use crate::domain::interaction::ChangeOrder;
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::domain::trend::TrendRules;
use crate::operation::StoreMetrics;
use crate::test_servers;

/// The number of a member's latest spots that co-occur in these tests.
const RECENT: usize = 5;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

/// A moment without a version.
fn moment(seconds: i64) -> ChangeOrder {
    ChangeOrder { at: at(seconds), version: None }
}

fn versioned(version: u64, seconds: i64) -> ChangeOrder {
    ChangeOrder { version: Some(version), ..moment(seconds) }
}

fn id(number: i64) -> SpotId {
    SpotId::new(number).unwrap()
}

fn spot(number: i64, version: u64) -> Spot {
    Spot {
        id: id(number),
        version,
        name: format!("곳 {number} 판 {version}"),
        address: format!("길 {number}"),
        coordinates: Coordinates { lat: 37.0 + number as f64 / 100.0, lng: 127.0 },
        image_url: None,
        tags: vec!["자연".to_owned()],
    }
}

async fn open_sqlite(folder: &Path, trend: TrendRules, now: DateTime<Utc>) -> Stores {
    let histories = HistoryRules { recent: RECENT, ..HistoryRules::default() };
    let clock = Arc::new(ManualClock::new(now));
    Stores::open(&folder.join("stores.db"), trend, histories, clock).await.unwrap()
}

/// The trend on the test bed's Redis under `prefix`.
async fn open_redis(prefix: &str, rules: TrendRules, now: DateTime<Utc>) -> Arc<dyn TrendStore> {
    let url = test_servers::redis();
    let clock = Arc::new(ManualClock::new(now));
    let OnRedis { trend, server, .. } =
        crate::cache::redis::open(&url, prefix, rules, clock, &StoreMetrics::default()).unwrap();
    server.prepare().await.unwrap();
    trend
}

/// New stores on one engine. Ports that the engine does not implement are `None`.
struct Bench {
    trend: Option<Arc<dyn TrendStore>>,
    histories: Option<Arc<dyn HistoryStore>>,
    spots: Option<Arc<dyn SpotReplica>>,
    _folder: Option<tempfile::TempDir>,
    database: Option<TestDatabase>,
}

impl Bench {
    async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = open_sqlite(folder.path(), TrendRules::default(), start()).await;
        Self {
            trend: Some(stores.trend),
            histories: Some(stores.histories),
            spots: Some(stores.spots),
            _folder: Some(folder),
            database: None,
        }
    }

    async fn on_redis() -> Self {
        let trend = open_redis(&test_servers::unique(), TrendRules::default(), start()).await;
        Self { trend: Some(trend), histories: None, spots: None, _folder: None, database: None }
    }

    async fn on_mongodb() -> Self {
        let rules = HistoryRules { recent: RECENT, ..HistoryRules::default() };
        let database = TestDatabase::open(rules, start()).await;
        Self {
            trend: None,
            histories: Some(Arc::clone(&database.documents.histories)),
            spots: Some(Arc::clone(&database.documents.spots)),
            _folder: None,
            database: Some(database),
        }
    }

    async fn clear(self) {
        if let Some(database) = self.database {
            database.drop().await;
        }
    }
}

/// One test for each rule of a contract, on new stores in SQLite and on a real server.
macro_rules! contract {
    ($port:ident on $server:ident: $($rule:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $rule() {
                let bench = super::super::Bench::on_sqlite().await;
                super::$rule(bench.$port.clone().unwrap()).await;
                bench.clear().await;
            })*
        }
        mod $server {
            $(#[tokio::test]
            async fn $rule() {
                let bench = super::super::Bench::$server().await;
                super::$rule(bench.$port.clone().unwrap()).await;
                bench.clear().await;
            })*
        }
    };
}
use contract;
