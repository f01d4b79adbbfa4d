//! The contract of [`TrendStore`].

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use proptest::prelude::*;
use uuid::Uuid;

use super::{Bench, at, contract, id, moment, open_redis, open_sqlite, start, versioned};
use crate::app::ports::{TrendEvent, TrendOutcome, TrendStore};
use crate::domain::interaction::Kind;
use crate::domain::trend::{Ranked, TrendRules};
use crate::test_servers;

type Store = Arc<dyn TrendStore>;

contract!(trend on on_redis:
    an_event_counts_once_however_often_it_comes,
    one_person_spot_and_kind_count_once_within_the_window,
    a_bookmark_weighs_two_views,
    values_halve_in_a_half_life_and_fall_off_below_the_floor,
    an_old_event_counts_with_its_decayed_weight,
    a_year_without_events_breaks_nothing,
    equal_values_are_ordered_by_id,
    a_forgotten_person_no_longer_counts,
    concurrent_events_count_once_each,
    pruning_keeps_ids_that_can_be_redelivered,
    an_event_from_the_future_counts_as_of_now,
    a_clock_that_was_years_ahead_has_no_lasting_effect,
    a_view_from_a_clock_a_day_ahead_counts_as_one_view,
    a_jump_of_a_clock_that_advances_is_trusted,
    a_new_member_with_a_deleted_id_is_distinguished_by_the_version,
    a_spot_has_the_same_value_alone_as_in_the_trend,
);

const HOUR: i64 = 3_600;

fn event(subject: &str, spot: i64, kind: Kind, seconds: i64) -> TrendEvent {
    TrendEvent {
        event_id: Uuid::now_v7(),
        subject: subject.to_owned(),
        spot: id(spot),
        kind,
        occurred: moment(seconds),
        recorded_at: at(seconds.max(0)),
        remember_until: at(seconds) + TimeDelta::hours(25),
    }
}

async fn view(trend: &Store, subject: &str, spot: i64, seconds: i64) -> TrendOutcome {
    trend.record(&event(subject, spot, Kind::View, seconds)).await.unwrap()
}

async fn top(trend: &Store, seconds: i64) -> Vec<Ranked> {
    trend.top(100, at(seconds)).await.unwrap()
}

async fn spots(trend: &Store, seconds: i64) -> Vec<i64> {
    top(trend, seconds).await.iter().map(|r| r.spot.number()).collect()
}

async fn value(trend: &Store, spot: i64, seconds: i64) -> f64 {
    top(trend, seconds).await.iter().find(|r| r.spot == id(spot)).map_or(0.0, |r| r.value)
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

async fn an_event_counts_once_however_often_it_comes(trend: Store) {
    let bookmark = event("member1", 1, Kind::Bookmark, 0);
    assert_eq!(trend.record(&bookmark).await.unwrap(), TrendOutcome::Applied);
    for _ in 0..3 {
        assert_eq!(trend.record(&bookmark).await.unwrap(), TrendOutcome::Duplicate);
    }
    assert_close(value(&trend, 1, 0).await, 2.0);
}

async fn one_person_spot_and_kind_count_once_within_the_window(trend: Store) {
    assert_eq!(view(&trend, "member1", 1, 0).await, TrendOutcome::Applied);
    assert_eq!(view(&trend, "member1", 1, HOUR - 1).await, TrendOutcome::AlreadyCounted);
    assert_eq!(view(&trend, "member1", 1, -HOUR + 1).await, TrendOutcome::AlreadyCounted);
    assert_eq!(view(&trend, "member2", 1, 1).await, TrendOutcome::Applied);
    assert_eq!(view(&trend, "member1", 2, 1).await, TrendOutcome::Applied);
    let bookmark = event("member1", 1, Kind::Bookmark, 1);
    assert_eq!(trend.record(&bookmark).await.unwrap(), TrendOutcome::Applied);
    assert_eq!(view(&trend, "member1", 1, HOUR).await, TrendOutcome::Applied);
    assert_eq!(view(&trend, "member1", 1, -HOUR).await, TrendOutcome::Applied);
}

async fn a_bookmark_weighs_two_views(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    trend.record(&event("member1", 2, Kind::Bookmark, 0)).await.unwrap();
    assert_eq!(spots(&trend, 0).await, [2, 1]);
    view(&trend, "member2", 1, 0).await;
    assert_close(value(&trend, 1, 0).await, value(&trend, 2, 0).await);
}

async fn values_halve_in_a_half_life_and_fall_off_below_the_floor(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    assert_close(value(&trend, 1, 0).await, 1.0);
    assert_close(value(&trend, 1, HOUR).await, 0.5);
    assert_close(value(&trend, 1, 3 * HOUR).await, 0.125);
    assert_eq!(spots(&trend, 10 * HOUR - 60).await, [1]);
    assert!(spots(&trend, 10 * HOUR + 60).await.is_empty());
}

async fn an_old_event_counts_with_its_decayed_weight(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    view(&trend, "member1", 2, -2 * HOUR).await;
    assert_close(value(&trend, 2, 0).await, 0.25);
    assert_eq!(spots(&trend, 0).await, [1, 2]);
}

async fn a_year_without_events_breaks_nothing(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    let year = 365 * 24 * HOUR;
    assert!(spots(&trend, year).await.is_empty());
    view(&trend, "member1", 2, year).await;
    assert_close(value(&trend, 2, year).await, 1.0);
    view(&trend, "member1", 3, 2 * year).await;
    assert_eq!(spots(&trend, 2 * year).await, [3]);
}

async fn equal_values_are_ordered_by_id(trend: Store) {
    for (number, spot) in [9, 3, 7, 1].into_iter().enumerate() {
        view(&trend, "member1", spot, number as i64).await;
        view(&trend, "member2", spot, 3 - number as i64).await;
    }
    // 3 and 7 were viewed at seconds 1 and 2, 9 and 1 at seconds 0 and 3.
    assert_eq!(spots(&trend, 60).await, [1, 9, 3, 7]);
    let first = trend.top(1, at(60)).await.unwrap();
    assert_eq!(first[0].spot, id(1));
    assert!(trend.top(0, at(60)).await.unwrap().is_empty());
}

async fn a_forgotten_person_no_longer_counts(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    trend.forget("member1", moment(10), at(HOUR * 30)).await.unwrap();
    assert_eq!(view(&trend, "member1", 2, 5).await, TrendOutcome::AlreadyCounted);
    assert_eq!(view(&trend, "member2", 3, 5).await, TrendOutcome::Applied);
    // A new member with the same id.
    assert_eq!(view(&trend, "member1", 4, 20).await, TrendOutcome::Applied);
    assert_eq!(spots(&trend, 20).await, [4, 3, 1]);
}

async fn concurrent_events_count_once_each(trend: Store) {
    let events: Vec<_> =
        (0..60).map(|n| event(&format!("member{n}"), n % 3, Kind::View, 0)).collect();
    let calls = events.iter().chain(&events).map(|event| {
        let trend = Arc::clone(&trend);
        let event = event.clone();
        tokio::spawn(async move { trend.record(&event).await.unwrap() })
    });
    let outcomes: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    let applied = outcomes.iter().filter(|o| **o == TrendOutcome::Applied).count();
    let duplicates = outcomes.iter().filter(|o| **o == TrendOutcome::Duplicate).count();
    assert_eq!((applied, duplicates), (60, 60));
    for spot in 0..3 {
        assert_close(value(&trend, spot, 0).await, 20.0);
    }
}

async fn pruning_keeps_ids_that_can_be_redelivered(trend: Store) {
    let first = event("member1", 1, Kind::View, 0);
    trend.record(&first).await.unwrap();
    trend.prune(at(24 * HOUR)).await.unwrap();
    assert_eq!(trend.record(&first).await.unwrap(), TrendOutcome::Duplicate);
    // The score, and other records that do not expire by themselves.
    assert!(trend.prune(at(48 * HOUR)).await.unwrap() >= 1);
    assert_eq!(trend.prune(at(48 * HOUR)).await.unwrap(), 0);
    assert!(spots(&trend, 48 * HOUR).await.is_empty());
}

async fn an_event_from_the_future_counts_as_of_now(trend: Store) {
    let early = TrendEvent { recorded_at: at(0), ..event("member1", 1, Kind::View, 900 * HOUR) };
    assert_eq!(trend.record(&early).await.unwrap(), TrendOutcome::Applied);
    view(&trend, "member1", 2, 0).await;
    assert_close(value(&trend, 1, 0).await, 1.0);
    assert_close(value(&trend, 2, 0).await, 1.0);
}

async fn a_clock_that_was_years_ahead_has_no_lasting_effect(trend: Store) {
    let years = 5 * 365 * 24 * HOUR;
    view(&trend, "member1", 1, 0).await;
    view(&trend, "member1", 2, years).await;
    // The clock is right again: the earlier counts are restored, and counts of the wrong clock count
    // as of now.
    assert_eq!(spots(&trend, HOUR).await, [2, 1]);
    assert_close(value(&trend, 2, HOUR).await, 1.0);
    assert_close(value(&trend, 1, HOUR).await, 0.5);
    trend.prune(at(HOUR)).await.unwrap();
    trend.record(&event("member1", 3, Kind::Bookmark, HOUR)).await.unwrap();
    view(&trend, "member2", 4, HOUR).await;
    assert_eq!(spots(&trend, HOUR).await, [3, 2, 4, 1]);
    assert_close(value(&trend, 3, 2 * HOUR).await, 1.0);
    assert_close(value(&trend, 2, 2 * HOUR).await, 0.5);
    assert!(top(&trend, 2 * HOUR).await.iter().all(|ranked| ranked.value.is_finite()));
    assert!(spots(&trend, 20 * HOUR).await.is_empty());
}

async fn a_view_from_a_clock_a_day_ahead_counts_as_one_view(trend: Store) {
    view(&trend, "member0", 3, 0).await;
    view(&trend, "member1", 1, 24 * HOUR).await;
    for member in 0..8 {
        trend.record(&event(&format!("fan{member}"), 2, Kind::Bookmark, 60)).await.unwrap();
    }
    assert_eq!(spots(&trend, 60).await, [2, 1, 3]);
    assert_close(value(&trend, 1, 60).await, 1.0);
    assert_close(value(&trend, 2, 60).await, 16.0);
}

/// Nothing happened for two hours, or the service was stopped.
async fn a_jump_of_a_clock_that_advances_is_trusted(trend: Store) {
    view(&trend, "member1", 1, 0).await;
    for minutes in 0..90 {
        let seconds = 2 * HOUR + minutes * 60;
        view(&trend, &format!("visitor{minutes}"), 2, seconds).await;
    }
    assert_close(value(&trend, 1, 3 * HOUR).await, 0.125);
    // Set back by less than a half-life much later: the scores from before the jump are dropped.
    let before = value(&trend, 2, 3 * HOUR + 1_740).await;
    view(&trend, "member2", 3, 3 * HOUR).await;
    assert_close(value(&trend, 2, 3 * HOUR + 1_740).await, before);
    // Set back by more: the scores keep their values.
    view(&trend, "member3", 4, HOUR).await;
    assert_close(value(&trend, 4, HOUR).await, 1.0);
    assert!(value(&trend, 2, HOUR).await <= before * 2.0);
}

async fn a_new_member_with_a_deleted_id_is_distinguished_by_the_version(trend: Store) {
    let view_as = async |version, seconds, spot| {
        let event = event("member1", spot, Kind::View, seconds);
        let event = TrendEvent { occurred: versioned(version, seconds), ..event };
        trend.record(&event).await.unwrap()
    };
    assert_eq!(view_as(1, 600, 1).await, TrendOutcome::Applied);
    trend.forget("member1", versioned(2, 600), at(HOUR * 30)).await.unwrap();
    // With a clock that was set back by ten minutes.
    assert_eq!(view_as(3, 0, 1).await, TrendOutcome::Applied);
    assert_eq!(view_as(4, 10, 1).await, TrendOutcome::AlreadyCounted);
    // The order is redelivered and deletes nothing of the new member.
    trend.forget("member1", versioned(2, 700), at(HOUR * 30)).await.unwrap();
    assert_eq!(view_as(5, 20, 1).await, TrendOutcome::AlreadyCounted);
    // Late events of the old member.
    assert_eq!(view_as(1, 900, 2).await, TrendOutcome::AlreadyCounted);
    assert_eq!(view(&trend, "member1", 2, 900).await, TrendOutcome::AlreadyCounted);
    assert_eq!(view_as(6, 30, 2).await, TrendOutcome::Applied);
}

async fn a_spot_has_the_same_value_alone_as_in_the_trend(trend: Store) {
    assert!(trend.values(&[id(1)], at(0)).await.unwrap().is_empty());
    view(&trend, "member1", 1, 0).await;
    trend.record(&event("member1", 2, Kind::Bookmark, 0)).await.unwrap();
    let asked = [id(1), id(2), id(3)];
    let values = trend.values(&asked, at(HOUR)).await.unwrap();
    assert_eq!(values.len(), 2);
    assert_close(values[&id(1)], 0.5);
    assert_close(values[&id(2)], 1.0);
    assert!(trend.values(&[], at(HOUR)).await.unwrap().is_empty());
    // Values below the floor are returned.
    assert!(trend.values(&asked, at(15 * HOUR)).await.unwrap()[&id(1)] > 0.0);
    // Values from the future count as of now.
    view(&trend, "member1", 3, 900 * HOUR).await;
    assert_close(trend.values(&asked, at(HOUR)).await.unwrap()[&id(3)], 1.0);
}

#[tokio::test]
async fn pruning_sqlite_removes_ids_and_counts_as_well() {
    let bench = Bench::on_sqlite().await;
    let trend = bench.trend.unwrap();
    view(&trend, "member1", 1, 0).await;
    trend.forget("member2", moment(0), at(HOUR)).await.unwrap();
    assert_eq!(trend.prune(at(48 * HOUR)).await.unwrap(), 4);
}

/// A backend on which a test can reopen a trend with other rules.
enum Backend {
    Folder(tempfile::TempDir),
    Prefix(String),
}

impl Backend {
    fn all() -> [Self; 2] {
        [Self::Folder(tempfile::tempdir().unwrap()), Self::Prefix(test_servers::unique())]
    }

    fn another(&self) -> Self {
        match self {
            Self::Folder(_) => Self::Folder(tempfile::tempdir().unwrap()),
            Self::Prefix(_) => Self::Prefix(test_servers::unique()),
        }
    }

    async fn open(&self, rules: TrendRules, now: DateTime<Utc>) -> Store {
        match self {
            Self::Folder(folder) => open_sqlite(folder.path(), rules, now).await.trend,
            Self::Prefix(prefix) => open_redis(prefix, rules, now).await,
        }
    }
}

#[tokio::test]
async fn another_half_life_keeps_the_current_values() {
    for backend in Backend::all() {
        let hourly = TrendRules::default();
        let before = backend.open(hourly, start()).await;
        view(&before, "member1", 1, 0).await;
        drop(before);

        let quick = TrendRules { half_life: Duration::from_secs(60), ..hourly };
        let after = backend.open(quick, at(HOUR)).await;
        assert_close(value(&after, 1, HOUR).await, 0.5);
        assert_close(value(&after, 1, HOUR + 60).await, 0.25);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Every event is of another person, so that no two share a window.
    #[test]
    fn any_order_of_the_same_events_gives_the_same_trend(
        seen in prop::collection::vec((0..600 * HOUR, 0..5i64, any::<bool>()), 1..25),
        order in any::<prop::sample::Index>(),
        reversed in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let trends = runtime.block_on(async {
            let events: Vec<_> = seen
                .iter()
                .enumerate()
                .map(|(n, (seconds, spot, bookmark))| {
                    let kind = if *bookmark { Kind::Bookmark } else { Kind::View };
                    let event = event(&format!("member{n}"), *spot, kind, *seconds);
                    TrendEvent { recorded_at: at(600 * HOUR), ..event }
                })
                .collect();
            let mut other = events.clone();
            other.rotate_left(order.index(events.len()));
            if reversed {
                other.reverse();
            }
            let mut trends = Vec::new();
            for backend in Backend::all() {
                for (backend, events) in [(backend.another(), &events), (backend, &other)] {
                    // A floor so low that nearly no value falls below it.
                    let rules = TrendRules { floor: 1e-8, ..TrendRules::default() };
                    let trend = backend.open(rules, start()).await;
                    for event in events {
                        trend.record(event).await.unwrap();
                    }
                    trends.push(spots(&trend, 600 * HOUR).await);
                }
            }
            trends
        });
        // The engines agree with each other as well.
        for trend in &trends[1..] {
            prop_assert_eq!(&trends[0], trend);
        }
    }
}
