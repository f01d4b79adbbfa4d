//! What every implementation of the stores' ports must do. Each suite is generic over the port; the
//! tests below run them over each implementation.

mod history;
mod spots;
mod trend;

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::ManualClock;

use super::{HistoryRules, Stores};
use crate::domain::spot::{Place, Spot, SpotId};
use crate::domain::trend::TrendRules;

/// The latest spots of a member that the histories under test keep together.
const RECENT: usize = 5;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
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
        place: Place { lat: 37.0 + number as f64 / 100.0, lng: 127.0 },
        image_url: None,
        tags: vec!["자연".to_owned()],
    }
}

async fn open_sqlite(folder: &Path, trend: TrendRules, now: DateTime<Utc>) -> Stores {
    let histories = HistoryRules { recent: RECENT, ..HistoryRules::default() };
    let clock = Arc::new(ManualClock::new(now));
    Stores::open(&folder.join("stores.db"), trend, histories, clock).await.unwrap()
}

/// One test for each rule of a port's contract, each on new stores in SQLite.
macro_rules! on_sqlite {
    ($port:ident: $($rule:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $rule() {
                let folder = tempfile::tempdir().unwrap();
                let rules = crate::domain::trend::TrendRules::default();
                let now = super::super::start();
                let stores = super::super::open_sqlite(folder.path(), rules, now).await;
                super::$rule(stores.$port).await;
            })*
        }
    };
}
use on_sqlite;
