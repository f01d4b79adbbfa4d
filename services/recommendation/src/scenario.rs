//! A small world for scenario tests: spots, members, a manual clock.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::{Clock, ManualClock, SharedClock};
use tourin_chassis::metrics::Metrics;
use tourin_shared_events::bus::in_process::InProcessBus;
use uuid::Uuid;

use crate::SERVICE;
use crate::app::audit::Audit;
use crate::app::ingest::{Guards, Ingest};
use crate::app::last_trend::LastTrend;
use crate::app::model::{CoOccurrence, CoOccurrenceRules};
use crate::app::ports::{HistoryOutcome, SpotState, TrendOutcome};
use crate::app::recommend::Recommender;
use crate::config::RuleSettings;
use crate::domain::content::ContentRules;
use crate::domain::interaction::{Change, ChangeOrder, Kind};
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::store::Stores;

pub(crate) fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

pub(crate) fn id(number: i64) -> SpotId {
    SpotId::new(number).unwrap()
}

/// A spot on a north-south line, a tenth of a degree (11 km) from the next.
pub(crate) fn spot(number: i64, tags: &[&str]) -> Spot {
    Spot {
        id: id(number),
        version: 1,
        name: format!("곳 {number}"),
        address: format!("길 {number}"),
        coordinates: Coordinates { lat: 35.0 + number as f64 / 10.0, lng: 127.0 },
        image_url: None,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
    }
}

pub(crate) fn numbers(spots: &[Spot]) -> Vec<i64> {
    spots.iter().map(|spot| spot.id.number()).collect()
}

/// Stores in a temporary folder, with the use cases on them.
pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) stores: Stores,
    pub(crate) ingest: Ingest,
    pub(crate) guards: Guards,
    pub(crate) recommender: Recommender,
    _folder: tempfile::TempDir,
}

impl World {
    /// A world whose replica is complete and empty.
    pub(crate) async fn new() -> Self {
        let world = Self::before_resync().await;
        let resync = world.stores.spots.begin_resync().await.unwrap();
        world.stores.spots.sweep(resync).await.unwrap();
        world
    }

    /// A world before the end of the first resync. The model's rows are not cached.
    pub(crate) async fn before_resync() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(start()));
        let time: SharedClock = clock.clone();
        let rules = RuleSettings::default();
        let file = folder.path().join("recommendation.db");
        let stores =
            Stores::open(&file, rules.trend(), rules.histories(), time.clone()).await.unwrap();
        let ingest = Ingest::new(
            stores.trend.clone(),
            stores.histories.clone(),
            stores.spots.clone(),
            time.clone(),
            rules.ages(),
        );
        let co_occurrence =
            CoOccurrenceRules { row_max_age: Duration::ZERO, ..CoOccurrenceRules::default() };
        let recommender = Recommender {
            trend: stores.trend.clone(),
            histories: stores.histories.clone(),
            spots: stores.spots.clone(),
            model: Arc::new(CoOccurrence::new(stores.histories.clone(), co_occurrence)),
            content: ContentRules::default(),
            history_limit: 100,
            clock: time.clone(),
            last_trend: LastTrend::new(&Metrics::new(SERVICE)),
            was_complete: Arc::default(),
        };
        let passes = (stores.trend_passes.clone(), stores.history_passes.clone());
        let guards = Guards::new(passes.0, passes.1, &time);
        Self { clock, stores, ingest, guards, recommender, _folder: folder }
    }

    /// A world with spots 1 to `count`: odd ones are nature, even ones history.
    pub(crate) async fn with_spots(count: i64) -> Self {
        let world = Self::new().await;
        for number in 1..=count {
            let tag = if number % 2 == 0 { "역사" } else { "자연" };
            world.add(spot(number, &[tag])).await;
        }
        world
    }

    pub(crate) async fn add(&self, spot: Spot) {
        self.ingest.merge_spots(&[SpotState::Live(spot)]).await.unwrap();
    }

    pub(crate) async fn delete(&self, number: i64) {
        let deleted = SpotState::Deleted { id: id(number), version: 1_000 };
        self.ingest.merge_spots(&[deleted]).await.unwrap();
    }

    pub(crate) fn audit(&self) -> Audit {
        Audit {
            trend: self.stores.trend.clone(),
            histories: self.stores.histories.clone(),
            half_life: RuleSettings::default().trend().half_life,
            clock: self.clock.clone(),
            events: Arc::new(InProcessBus::new(self.stores.dead_letters.clone())),
            consumers: Vec::new(),
        }
    }

    pub(crate) fn pass(&self, time: TimeDelta) {
        self.clock.advance(time);
    }

    /// Applies a view like core's event does, and advances the clock by a second.
    pub(crate) async fn view(
        &self,
        who: &str,
        number: i64,
    ) -> (TrendOutcome, Option<HistoryOutcome>) {
        self.act(who, number, Kind::View, Change::Viewed).await
    }

    /// Applies a bookmark like core's event does, and advances the clock by a second.
    pub(crate) async fn bookmark(
        &self,
        who: &str,
        number: i64,
    ) -> (TrendOutcome, Option<HistoryOutcome>) {
        self.act(who, number, Kind::Bookmark, Change::Bookmarked).await
    }

    async fn act(
        &self,
        who: &str,
        number: i64,
        kind: Kind,
        change: Change,
    ) -> (TrendOutcome, Option<HistoryOutcome>) {
        let now = ChangeOrder { at: self.clock.now(), version: None };
        let counted =
            self.ingest.count((Uuid::now_v7(), now.at), who, id(number), kind, now).await.unwrap();
        let kept = self.ingest.remember(who, id(number), change, now).await.unwrap();
        self.pass(TimeDelta::seconds(1));
        (counted, kept)
    }

    pub(crate) async fn trend(&self, k: usize) -> Vec<i64> {
        numbers(&self.recommender.trend(k).await.unwrap())
    }

    pub(crate) async fn personalized(&self, member: &str, k: usize) -> Vec<i64> {
        numbers(&self.recommender.personalized(member, k).await.unwrap())
    }

    pub(crate) async fn similar(&self, number: i64, k: usize) -> Option<Vec<i64>> {
        let similar = self.recommender.similar(id(number), k).await.unwrap();
        similar.map(|spots| numbers(&spots))
    }
}
