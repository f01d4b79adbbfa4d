//! Tests with a file of an older version of the program.

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::ManualClock;
use uuid::Uuid;

use super::*;
use crate::app::ports::{HistoryEvent, HistoryOutcome, TrendEvent, TrendOutcome};
use crate::domain::interaction::{Change, ChangeOrder, Kind};

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

/// Rows written with a clock a day ahead: a bookmark, a deleted account, a view in the trend.
const ROWS: &str = "
INSERT INTO interactions VALUES ('member01', 1, NULL, 1, 1800086400000000, 1, 1800086400000000);
INSERT INTO members VALUES ('member01', 1, '[1]');
INSERT INTO spot_degrees VALUES (1, 1);
INSERT INTO members_forgotten VALUES ('member02', 1800086400000000, 1900000000000000);
INSERT INTO trend_forgotten VALUES ('member02', 1800086400000000, 1900000000000000);
INSERT INTO trend_state VALUES (1, 1800000000000000, 3600000000);
INSERT INTO trend_scores VALUES (1, 16777216.0);
INSERT INTO trend_counted VALUES ('member01', 1, 1, 1800086400000000);
";

#[tokio::test]
async fn changes_with_a_version_are_later_than_rows_of_an_older_program() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recommendation.db");
    let older = Database::open(&file, 1).await.unwrap();
    older.migrate(&MIGRATIONS[..3], "recommendation_migrations").await.unwrap();
    let mut transaction = older.write().await.unwrap();
    sqlx::raw_sql(ROWS).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    older.close().await;

    let clock = Arc::new(ManualClock::new(at(60)));
    let stores = open(&file, TrendRules::default(), HistoryRules::default(), clock).await.unwrap();
    let known = async |member: &str| {
        let mut known: Vec<i64> = stores
            .histories
            .profile(member, 9)
            .await
            .unwrap()
            .known
            .iter()
            .map(|spot| spot.number())
            .collect();
        known.sort_unstable();
        known
    };
    let occurred = |version| ChangeOrder { at: at(60), version };
    let record = async |member: &str, change, version| {
        let event = HistoryEvent {
            member: member.to_owned(),
            spot: SpotId::new(1).unwrap(),
            change,
            occurred: occurred(version),
            recorded_at: at(60),
        };
        stores.histories.record(&event).await.unwrap()
    };
    assert_eq!(known("member01").await, [1]);
    // Without a version the times decide. With a version they do not.
    assert_eq!(record("member01", Change::Unbookmarked, None).await, HistoryOutcome::Stale);
    assert_eq!(record("member01", Change::Unbookmarked, Some(1)).await, HistoryOutcome::Applied);
    assert!(known("member01").await.is_empty());
    assert_eq!(record("member02", Change::Viewed, None).await, HistoryOutcome::Forgotten);
    assert_eq!(record("member02", Change::Viewed, Some(2)).await, HistoryOutcome::Applied);
    assert_eq!(known("member02").await, [1]);

    // A view dated tomorrow counts as one view.
    let count = async |subject: &str, kind, version| {
        let event = TrendEvent {
            event_id: Uuid::now_v7(),
            subject: subject.to_owned(),
            spot: SpotId::new(2).unwrap(),
            kind,
            occurred: occurred(version),
            recorded_at: at(60),
            remember_until: at(90_000),
        };
        stores.trend.record(&event).await.unwrap()
    };
    assert_eq!(count("member03", Kind::Bookmark, Some(3)).await, TrendOutcome::Applied);
    assert_eq!(count("member02", Kind::View, None).await, TrendOutcome::AlreadyCounted);
    assert_eq!(count("member02", Kind::View, Some(4)).await, TrendOutcome::Applied);
    let top = stores.trend.top(9, at(60)).await.unwrap();
    let top: Vec<_> = top.iter().map(|r| (r.spot.number(), (r.value * 1e6).round())).collect();
    assert_eq!(top, [(2, 3e6), (1, 1e6)]);
}
