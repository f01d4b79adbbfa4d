//! The contract of [`HistoryStore`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::join_all;

use super::{RECENT, at, contract, id, moment, versioned};
use crate::app::ports::{HistoryEvent, HistoryOutcome, HistoryStore, Interactions, Profile};
use crate::domain::interaction::{Change, Kind};
use crate::domain::similarity::Holder;
use crate::domain::spot::SpotId;

type Store = Arc<dyn HistoryStore>;

contract!(histories on on_mongodb:
    viewed_and_bookmarked_spots_are_known_newest_first,
    views_and_bookmarks_are_listed_separately,
    a_spot_with_a_removed_bookmark_is_known_only_if_it_was_viewed,
    changes_may_come_late_and_more_than_once,
    neighbours_are_the_members_who_know_a_spot_and_what_they_know,
    a_long_history_is_known_completely_but_co_occurs_with_its_latest,
    a_forgotten_member_leaves_nothing_behind,
    forgetting_twice_spares_a_new_member_with_the_same_id,
    concurrent_duplicates_count_once,
    pruning_removes_only_what_can_no_longer_be_overtaken,
    of_two_changes_the_one_with_the_higher_version_is_the_later,
    a_change_with_a_version_is_later_than_one_without,
    a_new_member_with_a_deleted_id_is_distinguished_by_the_version,
    a_view_from_the_future_is_replaced_by_a_current_one,
);

async fn change(
    store: &Store,
    member: &str,
    spot: i64,
    change: Change,
    seconds: i64,
) -> HistoryOutcome {
    let event = HistoryEvent {
        member: member.to_owned(),
        spot: id(spot),
        change,
        occurred: moment(seconds),
        recorded_at: at(seconds),
    };
    store.record(&event).await.unwrap()
}

/// A change with a version. The clock need not agree with it.
async fn change_as(
    store: &Store,
    (spot, change): (i64, Change),
    (version, seconds): (u64, i64),
) -> HistoryOutcome {
    let event = HistoryEvent {
        member: "member1".to_owned(),
        spot: id(spot),
        change,
        occurred: versioned(version, seconds),
        recorded_at: at(seconds),
    };
    store.record(&event).await.unwrap()
}

async fn profile(store: &Store, member: &str) -> Profile {
    store.profile(member, 100).await.unwrap()
}

async fn recent(store: &Store, member: &str) -> Vec<(i64, Kind)> {
    let profile = profile(store, member).await;
    profile.recent.iter().map(|remembered| (remembered.spot.number(), remembered.kind)).collect()
}

async fn degree(store: &Store, spot: i64) -> u64 {
    let degrees = store.degrees(&[id(spot)]).await.unwrap();
    degrees.get(&id(spot)).copied().unwrap_or_default()
}

fn ids(numbers: &[i64]) -> Vec<SpotId> {
    numbers.iter().copied().map(id).collect()
}

async fn viewed_and_bookmarked_spots_are_known_newest_first(store: Store) {
    assert_eq!(profile(&store, "nobody").await, Profile::default());
    change(&store, "member1", 1, Change::Viewed, 1).await;
    change(&store, "member1", 2, Change::Bookmarked, 2).await;
    change(&store, "member1", 3, Change::Viewed, 3).await;
    change(&store, "member1", 1, Change::Viewed, 4).await;
    assert_eq!(
        recent(&store, "member1").await,
        [(1, Kind::View), (3, Kind::View), (2, Kind::Bookmark)]
    );
    let short = store.profile("member1", 1).await.unwrap();
    assert_eq!(short.recent.len(), 1);
    assert_eq!(short.recent[0].last_at, at(4));
    assert_eq!(short.known, HashSet::from([id(1), id(2), id(3)]));
}

async fn views_and_bookmarks_are_listed_separately(store: Store) {
    assert_eq!(store.interactions("member1", 9).await.unwrap(), Interactions::default());
    change(&store, "member1", 3, Change::Viewed, 1).await;
    change(&store, "member1", 1, Change::Viewed, 2).await;
    change(&store, "member1", 1, Change::Bookmarked, 3).await;
    change(&store, "member1", 2, Change::Bookmarked, 4).await;
    change(&store, "member1", 4, Change::Bookmarked, 5).await;
    change(&store, "member1", 4, Change::Unbookmarked, 6).await;
    change(&store, "member2", 9, Change::Viewed, 7).await;
    let interactions = store.interactions("member1", 9).await.unwrap();
    assert_eq!(interactions, Interactions { bookmarked: ids(&[1, 2]), viewed: ids(&[1, 3]) });
    let first = store.interactions("member1", 1).await.unwrap();
    assert_eq!(first, Interactions { bookmarked: ids(&[1]), viewed: ids(&[1]) });
}

async fn a_spot_with_a_removed_bookmark_is_known_only_if_it_was_viewed(store: Store) {
    change(&store, "member1", 1, Change::Viewed, 1).await;
    change(&store, "member1", 1, Change::Bookmarked, 2).await;
    change(&store, "member1", 2, Change::Bookmarked, 3).await;
    change(&store, "member1", 1, Change::Unbookmarked, 4).await;
    change(&store, "member1", 2, Change::Unbookmarked, 5).await;
    assert_eq!(recent(&store, "member1").await, [(1, Kind::View)]);
    assert_eq!(degree(&store, 1).await, 1);
    assert_eq!(degree(&store, 2).await, 0);
    assert!(store.neighbourhood(id(2), 10).await.unwrap().holders.is_empty());
}

async fn changes_may_come_late_and_more_than_once(store: Store) {
    assert_eq!(
        change(&store, "member1", 1, Change::Unbookmarked, 10).await,
        HistoryOutcome::Applied
    );
    assert_eq!(change(&store, "member1", 1, Change::Bookmarked, 5).await, HistoryOutcome::Stale);
    assert!(recent(&store, "member1").await.is_empty());
    assert_eq!(change(&store, "member1", 1, Change::Bookmarked, 11).await, HistoryOutcome::Applied);
    assert_eq!(change(&store, "member1", 1, Change::Bookmarked, 11).await, HistoryOutcome::Stale);
    assert_eq!(change(&store, "member1", 1, Change::Unbookmarked, 10).await, HistoryOutcome::Stale);
    assert_eq!(recent(&store, "member1").await, [(1, Kind::Bookmark)]);
    assert_eq!(change(&store, "member1", 1, Change::Viewed, 3).await, HistoryOutcome::Applied);
    assert_eq!(change(&store, "member1", 1, Change::Viewed, 2).await, HistoryOutcome::Stale);
    assert_eq!(degree(&store, 1).await, 1);
    assert_eq!(profile(&store, "member1").await.recent[0].last_at, at(11));
}

async fn neighbours_are_the_members_who_know_a_spot_and_what_they_know(store: Store) {
    for (member, spot, seconds) in [
        ("member1", 1, 1),
        ("member1", 2, 2),
        ("member2", 1, 3),
        ("member2", 3, 4),
        ("member3", 4, 5),
    ] {
        change(&store, member, spot, Change::Viewed, seconds).await;
    }
    let neighbourhood = store.neighbourhood(id(1), 10).await.unwrap();
    assert_eq!(neighbourhood.degree, 2);
    let holder = |spots: &[i64]| Holder { degree: 2, recent: ids(spots) };
    assert_eq!(neighbourhood.holders, [holder(&[3, 1]), holder(&[2, 1])]);
    let latest = store.neighbourhood(id(1), 1).await.unwrap();
    assert_eq!(latest.degree, 2);
    assert_eq!(latest.holders, [holder(&[3, 1])]);
    assert_eq!(
        store.degrees(&ids(&[1, 2, 9])).await.unwrap(),
        HashMap::from([(id(1), 2), (id(2), 1)])
    );
}

async fn a_long_history_is_known_completely_but_co_occurs_with_its_latest(store: Store) {
    let many = RECENT as i64 + 3;
    for spot in 1..=many {
        change(&store, "member1", spot, Change::Viewed, spot).await;
    }
    assert_eq!(profile(&store, "member1").await.known.len(), RECENT + 3);
    let neighbourhood = store.neighbourhood(id(1), 10).await.unwrap();
    let latest: Vec<i64> = (4..=many).rev().collect();
    assert_eq!(neighbourhood.holders[0].recent, ids(&latest));
    assert_eq!(neighbourhood.holders[0].degree, many as u64);
}

async fn a_forgotten_member_leaves_nothing_behind(store: Store) {
    change(&store, "member1", 1, Change::Bookmarked, 1).await;
    change(&store, "member1", 2, Change::Viewed, 2).await;
    change(&store, "member2", 1, Change::Viewed, 3).await;
    store.forget("member1", moment(10), at(10_000)).await.unwrap();
    assert_eq!(profile(&store, "member1").await, Profile::default());
    assert_eq!((degree(&store, 1).await, degree(&store, 2).await), (1, 0));
    assert_eq!(store.neighbourhood(id(1), 10).await.unwrap().holders.len(), 1);
    // A late event has no effect.
    assert_eq!(change(&store, "member1", 3, Change::Viewed, 9).await, HistoryOutcome::Forgotten);
    assert_eq!(profile(&store, "member1").await, Profile::default());
}

async fn forgetting_twice_spares_a_new_member_with_the_same_id(store: Store) {
    change(&store, "member1", 1, Change::Viewed, 1).await;
    store.forget("member1", moment(10), at(10_000)).await.unwrap();
    assert_eq!(change(&store, "member1", 2, Change::Viewed, 20).await, HistoryOutcome::Applied);
    store.forget("member1", moment(10), at(10_000)).await.unwrap();
    assert_eq!(recent(&store, "member1").await, [(2, Kind::View)]);
    assert_eq!(degree(&store, 2).await, 1);
}

async fn concurrent_duplicates_count_once(store: Store) {
    let calls = (0..40).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { change(&store, "member1", n % 4, Change::Viewed, n % 4).await })
    });
    let outcomes: Vec<HistoryOutcome> =
        join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|kept| **kept == HistoryOutcome::Applied).count(), 4);
    for spot in 0..4 {
        assert_eq!(degree(&store, spot).await, 1);
    }
    assert_eq!(store.neighbourhood(id(0), 10).await.unwrap().holders[0].degree, 4);
}

async fn pruning_removes_only_what_can_no_longer_be_overtaken(store: Store) {
    const DAY: i64 = 24 * 3_600;
    change(&store, "member1", 1, Change::Unbookmarked, 10).await;
    change(&store, "member1", 2, Change::Bookmarked, 10).await;
    assert_eq!(store.prune(at(29 * DAY)).await.unwrap(), 0);
    assert_eq!(change(&store, "member1", 1, Change::Bookmarked, 9).await, HistoryOutcome::Stale);
    assert_eq!(store.prune(at(32 * DAY)).await.unwrap(), 1);
    assert_eq!(recent(&store, "member1").await, [(2, Kind::Bookmark)]);
}

async fn of_two_changes_the_one_with_the_higher_version_is_the_later(store: Store) {
    const HOUR: i64 = 3_600;
    let (placed, back) = ((1, Change::Bookmarked), (1, Change::Unbookmarked));
    assert_eq!(change_as(&store, placed, (7, HOUR)).await, HistoryOutcome::Applied);
    // The clock was corrected by an hour.
    assert_eq!(change_as(&store, back, (8, 60)).await, HistoryOutcome::Applied);
    assert!(recent(&store, "member1").await.is_empty());
    assert_eq!(degree(&store, 1).await, 0);
    // Late, duplicated, or from a dead letter with a new date.
    for seconds in [60, HOUR, 9 * HOUR] {
        assert_eq!(change_as(&store, placed, (7, seconds)).await, HistoryOutcome::Stale);
        assert_eq!(change_as(&store, back, (8, seconds)).await, HistoryOutcome::Stale);
    }
    assert_eq!(change_as(&store, placed, (9, 30)).await, HistoryOutcome::Applied);
    assert_eq!(recent(&store, "member1").await, [(1, Kind::Bookmark)]);
    // In the wrong order, with a clock that was behind.
    assert_eq!(
        change_as(&store, (2, Change::Unbookmarked), (11, -HOUR)).await,
        HistoryOutcome::Applied
    );
    assert_eq!(change_as(&store, (2, Change::Bookmarked), (10, 0)).await, HistoryOutcome::Stale);
    assert_eq!(recent(&store, "member1").await, [(1, Kind::Bookmark)]);
}

/// Rows and events from before versions existed have no version.
async fn a_change_with_a_version_is_later_than_one_without(store: Store) {
    const YEAR: i64 = 365 * 24 * 3_600;
    assert_eq!(
        change(&store, "member1", 1, Change::Bookmarked, YEAR).await,
        HistoryOutcome::Applied
    );
    assert_eq!(change_as(&store, (1, Change::Unbookmarked), (1, 0)).await, HistoryOutcome::Applied);
    assert!(recent(&store, "member1").await.is_empty());
    assert_eq!(
        change(&store, "member1", 1, Change::Bookmarked, 2 * YEAR).await,
        HistoryOutcome::Stale
    );
    assert!(recent(&store, "member1").await.is_empty());
    // An account deleted before versions existed, with a clock that was ahead.
    store.forget("member1", moment(YEAR), at(2 * YEAR)).await.unwrap();
    assert_eq!(change_as(&store, (2, Change::Bookmarked), (2, 0)).await, HistoryOutcome::Applied);
    assert_eq!(
        change(&store, "member1", 3, Change::Viewed, YEAR - 1).await,
        HistoryOutcome::Forgotten
    );
    assert_eq!(recent(&store, "member1").await, [(2, Kind::Bookmark)]);
}

async fn a_new_member_with_a_deleted_id_is_distinguished_by_the_version(store: Store) {
    const HOUR: i64 = 3_600;
    change_as(&store, (1, Change::Bookmarked), (7, HOUR)).await;
    store.forget("member1", versioned(8, HOUR), at(99 * HOUR)).await.unwrap();
    assert_eq!(profile(&store, "member1").await, Profile::default());
    // The clock is right again.
    assert_eq!(change_as(&store, (2, Change::Viewed), (9, 0)).await, HistoryOutcome::Applied);
    assert_eq!(
        change_as(&store, (1, Change::Bookmarked), (7, 2 * HOUR)).await,
        HistoryOutcome::Forgotten
    );
    store.forget("member1", versioned(8, 9 * HOUR), at(99 * HOUR)).await.unwrap();
    assert_eq!(recent(&store, "member1").await, [(2, Kind::View)]);
    assert_eq!((degree(&store, 1).await, degree(&store, 2).await), (0, 1));
}

async fn a_view_from_the_future_is_replaced_by_a_current_one(store: Store) {
    const DAY: i64 = 24 * 3_600;
    change_as(&store, (1, Change::Viewed), (1, DAY)).await;
    change_as(&store, (1, Change::Viewed), (2, 10)).await;
    change_as(&store, (2, Change::Viewed), (3, 20)).await;
    assert_eq!(recent(&store, "member1").await, [(2, Kind::View), (1, Kind::View)]);
}
