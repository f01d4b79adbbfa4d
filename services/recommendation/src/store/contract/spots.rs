//! The contract of [`SpotReplica`].

use std::sync::Arc;

use super::{contract, id, spot};
use crate::app::ports::{SpotReplica, SpotState, TagCursor};
use crate::domain::spot::{Coordinates, Spot};

type Store = Arc<dyn SpotReplica>;

contract!(spots on on_mongodb:
    the_highest_version_wins_in_any_order,
    a_deletion_leaves_its_version_behind,
    it_is_complete_once_a_resync_has_ended,
    near_spots_come_nearest_first,
    near_spots_can_be_filtered_by_tag,
    all_spots_can_be_listed_by_number_of_tags,
    a_sweep_removes_spots_that_were_not_mentioned,
    a_swept_spot_returns_with_the_same_version,
    resyncs_may_overlap,
    versions_restart_with_another_log,
);

async fn merge(store: &Store, states: &[SpotState]) -> usize {
    store.merge(states).await.unwrap()
}

async fn upsert(store: &Store, number: i64, version: u64) -> bool {
    merge(store, &[SpotState::Live(spot(number, version))]).await == 1
}

async fn delete(store: &Store, number: i64, version: u64) -> bool {
    merge(store, &[SpotState::Deleted { id: id(number), version }]).await == 1
}

async fn get(store: &Store, number: i64) -> Option<Spot> {
    store.get_many(&[id(number)]).await.unwrap().remove(&id(number))
}

fn numbers(spots: &[Spot]) -> Vec<i64> {
    spots.iter().map(|spot| spot.id.number()).collect()
}

async fn the_highest_version_wins_in_any_order(store: Store) {
    assert!(upsert(&store, 1, 2).await);
    assert!(!upsert(&store, 1, 1).await);
    assert!(!upsert(&store, 1, 2).await);
    assert_eq!(get(&store, 1).await, Some(spot(1, 2)));
    assert!(upsert(&store, 1, 5).await);
    assert_eq!(get(&store, 1).await, Some(spot(1, 5)));
}

async fn a_deletion_leaves_its_version_behind(store: Store) {
    upsert(&store, 1, 1).await;
    assert!(delete(&store, 1, 3).await);
    assert!(!upsert(&store, 1, 2).await);
    assert_eq!(get(&store, 1).await, None);
    // A spot that was never in the replica.
    assert!(delete(&store, 2, 4).await);
    assert!(!upsert(&store, 2, 4).await);
    assert!(upsert(&store, 2, 5).await);
    assert_eq!(get(&store, 2).await, Some(spot(2, 5)));
    assert!(store.near(Coordinates { lat: 37.0, lng: 127.0 }, None, 9).await.unwrap().len() == 1);
}

async fn it_is_complete_once_a_resync_has_ended(store: Store) {
    let resync = store.begin_resync().await.unwrap();
    store.adopt_log("a").await.unwrap();
    assert!(upsert(&store, 1, 1).await);
    assert!(!store.is_complete().await.unwrap(), "one spot is not the catalogue");
    store.sweep(resync).await.unwrap();
    assert!(store.is_complete().await.unwrap());
    store.adopt_log("b").await.unwrap();
    store.begin_resync().await.unwrap();
    assert!(store.is_complete().await.unwrap(), "the spots from before are a complete catalogue");
}

async fn near_spots_come_nearest_first(store: Store) {
    let mut states: Vec<SpotState> = (1..=9).map(|n| SpotState::Live(spot(n, 1))).collect();
    let mut far = spot(50, 1);
    far.coordinates = Coordinates { lat: -33.9, lng: 151.2 };
    states.push(SpotState::Live(far));
    merge(&store, &states).await;
    let coordinates = Coordinates { lat: 37.041, lng: 127.0 };
    let near = store.near(coordinates, None, 4).await.unwrap();
    assert_eq!(numbers(&near), [4, 5, 3, 6]);
    let all = store.near(coordinates, None, 100).await.unwrap();
    assert_eq!(numbers(&all), [4, 5, 3, 6, 2, 7, 1, 8, 9, 50]);
}

async fn near_spots_can_be_filtered_by_tag(store: Store) {
    for (number, tags) in [(1, vec!["역사"]), (2, vec!["자연"]), (3, vec!["자연", "역사"])]
    {
        let tags = tags.into_iter().map(str::to_owned).collect();
        let spot = Spot { tags, ..spot(number, 1) };
        merge(&store, &[SpotState::Live(spot)]).await;
    }
    let coordinates = Coordinates { lat: 37.0, lng: 127.0 };
    let history = ["역사".to_owned()];
    let near = store.near(coordinates, Some(&history), 10).await.unwrap();
    assert_eq!(numbers(&near), [1, 3]);
    // The tags change with the spot.
    upsert(&store, 1, 2).await;
    let near = store.near(coordinates, Some(&history), 10).await.unwrap();
    assert_eq!(numbers(&near), [3]);
}

async fn all_spots_can_be_listed_by_number_of_tags(store: Store) {
    for number in 1..=7 {
        let tags = (0..number % 3).map(|n| format!("tag{n}")).collect();
        let spot = Spot { tags, ..spot(number, 1) };
        merge(&store, &[SpotState::Live(spot)]).await;
    }
    let mut walked = Vec::new();
    let mut after = None;
    loop {
        let page = store.most_tagged(after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(TagCursor { tags: last.tags.len(), id: last.id });
        walked.extend(numbers(&page));
    }
    assert_eq!(walked, [2, 5, 1, 4, 7, 3, 6]);
}

async fn a_sweep_removes_spots_that_were_not_mentioned(store: Store) {
    for number in 1..=3 {
        upsert(&store, number, 4).await;
    }
    let resync = store.begin_resync().await.unwrap();
    // The resync finds 1 unchanged, an event updates 2, and 3 is not mentioned.
    upsert(&store, 1, 4).await;
    upsert(&store, 2, 5).await;
    assert_eq!(store.sweep(resync).await.unwrap(), 1);
    assert_eq!(get(&store, 3).await, None);
    assert!(get(&store, 1).await.is_some() && get(&store, 2).await.is_some());
    assert_eq!(store.sweep(resync).await.unwrap(), 0);
}

async fn a_swept_spot_returns_with_the_same_version(store: Store) {
    upsert(&store, 1, 4).await;
    let resync = store.begin_resync().await.unwrap();
    assert_eq!(store.sweep(resync).await.unwrap(), 1);
    assert!(!upsert(&store, 1, 3).await);
    assert_eq!(get(&store, 1).await, None);
    assert!(upsert(&store, 1, 4).await);
    assert_eq!(get(&store, 1).await, Some(spot(1, 4)));
    assert!(!upsert(&store, 1, 4).await);
    // A deletion by core is final for its version.
    let resync = store.begin_resync().await.unwrap();
    store.sweep(resync).await.unwrap();
    assert!(delete(&store, 1, 5).await);
    assert!(!upsert(&store, 1, 5).await);
    assert_eq!(get(&store, 1).await, None);
}

async fn resyncs_may_overlap(store: Store) {
    upsert(&store, 1, 1).await;
    upsert(&store, 2, 1).await;
    let first = store.begin_resync().await.unwrap();
    upsert(&store, 1, 1).await;
    let second = store.begin_resync().await.unwrap();
    assert!(second > first);
    upsert(&store, 2, 1).await;
    assert_eq!(store.sweep(first).await.unwrap(), 0);
    upsert(&store, 1, 1).await;
    assert_eq!(store.sweep(second).await.unwrap(), 0);
}

async fn versions_restart_with_another_log(store: Store) {
    assert_eq!(store.log_id().await.unwrap(), None);
    upsert(&store, 1, 9).await;
    delete(&store, 2, 9).await;
    store.adopt_log("first").await.unwrap();
    assert!(!upsert(&store, 1, 1).await);
    store.adopt_log("first").await.unwrap();
    assert!(!upsert(&store, 1, 1).await);
    store.adopt_log("second").await.unwrap();
    assert_eq!(store.log_id().await.unwrap().as_deref(), Some("second"));
    assert!(upsert(&store, 1, 0).await);
    assert!(upsert(&store, 2, 1).await);
    assert_eq!(get(&store, 1).await, Some(spot(1, 0)));
}
