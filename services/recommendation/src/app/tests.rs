//! Scenarios of the use cases over the embedded stores.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::TimeDelta;
use tourin_chassis::clock::Clock;
use uuid::Uuid;

use super::ports::{Catalogue, CataloguePage, PortError, SpotState, TrendOutcome};
use super::resync::{Resync, Resynced};
use crate::domain::interaction::{Change, ChangeOrder, Kind};
use crate::domain::spot::Spot;
use crate::scenario::{World, id, spot};

fn assert_distinct_and_unknown(answer: &[i64], known: &[i64]) {
    let distinct: HashSet<_> = answer.iter().collect();
    assert_eq!(distinct.len(), answer.len(), "{answer:?}");
    assert!(answer.iter().all(|spot| !known.contains(spot)), "{answer:?}");
}

#[tokio::test]
async fn the_trend_follows_interactions_and_decays_without_them() {
    let world = World::with_spots(9).await;
    assert!(world.trend(5).await.is_empty());
    for visitor in ["anon:aaaa", "anon:bbbb", "anon:cccc"] {
        world.view(visitor, 3).await;
    }
    world.bookmark("member01", 4).await;
    assert_eq!(world.trend(5).await, [3, 4]);
    world.pass(TimeDelta::hours(2));
    world.view("member02", 5).await;
    // Three views two hours ago are worth less than one now.
    assert_eq!(world.trend(5).await, [5, 3, 4]);
    assert_eq!(world.trend(1).await, [5]);
    assert!(world.trend(0).await.is_empty());
    world.pass(TimeDelta::hours(12));
    assert!(world.trend(5).await.is_empty());
}

#[tokio::test]
async fn spots_that_are_deleted_or_not_yet_known_leave_room_in_the_trend_for_others() {
    let world = World::with_spots(40).await;
    for number in 1..=40 {
        world.view("member01", number).await;
    }
    world.bookmark("member01", 99).await;
    for number in 3..=40 {
        world.delete(number).await;
    }
    assert_eq!(world.trend(2).await, [2, 1]);
    world.add(spot(99, &[])).await;
    assert_eq!(world.trend(2).await, [99, 2]);
}

#[tokio::test]
async fn an_event_from_the_future_stays_no_longer_in_the_trend() {
    let world = World::with_spots(3).await;
    let tomorrow = ChangeOrder { at: world.clock.now() + TimeDelta::days(1), version: None };
    let counted = world
        .ingest
        .count((Uuid::now_v7(), tomorrow.at), "member01", id(1), Kind::View, tomorrow)
        .await
        .unwrap();
    assert_eq!(counted, TrendOutcome::Applied);
    world.bookmark("member02", 2).await;
    assert_eq!(world.trend(5).await, [2, 1]);
}

#[tokio::test]
async fn a_newcomer_gets_the_trend_and_then_more() {
    let world = World::with_spots(9).await;
    world.bookmark("member01", 8).await;
    world.view("member01", 7).await;
    assert_eq!(world.personalized("newcomer", 2).await, [8, 7]);
    // The trend is short. It is filled with the spots that have the most tags, by id.
    assert_eq!(world.personalized("newcomer", 5).await, [8, 7, 1, 2, 3]);
}

#[tokio::test]
async fn the_first_bookmark_changes_what_a_member_sees() {
    let world = World::with_spots(30).await;
    for number in [2, 4, 6, 8, 10, 12] {
        world.view("member01", number).await;
        world.view("member02", number).await;
    }
    let before = world.personalized("newcomer", 5).await;
    world.bookmark("newcomer", 25).await;
    let after = world.personalized("newcomer", 5).await;
    assert_ne!(before, after);
    // The nature spots next to 25 come first, although they do not co-occur with it.
    assert!([23, 27].contains(&after[0]), "{after:?}");
    assert_distinct_and_unknown(&after, &[25]);
}

#[tokio::test]
async fn the_first_view_changes_what_a_member_sees_as_well() {
    let world = World::with_spots(30).await;
    let before = world.personalized("newcomer", 5).await;
    world.view("newcomer", 25).await;
    let after = world.personalized("newcomer", 5).await;
    assert_ne!(before, after);
    assert_distinct_and_unknown(&after, &[25]);
}

#[tokio::test]
async fn co_occurring_spots_come_before_spots_that_are_only_near() {
    let world = World::with_spots(30).await;
    for member in ["member01", "member02", "member03"] {
        for number in [5, 20, 28] {
            world.bookmark(member, number).await;
        }
    }
    world.bookmark("member04", 6).await;
    world.pass(TimeDelta::hours(24));
    world.bookmark("newcomer", 5).await;
    let answer = world.personalized("newcomer", 5).await;
    assert_eq!(answer[..2], [20, 28]);
    assert_eq!(answer.len(), 5);
    assert_eq!(world.similar(5, 3).await.unwrap()[..2], [20, 28]);
}

#[tokio::test]
async fn an_interaction_counts_for_other_members_at_once() {
    let world = World::with_spots(30).await;
    world.bookmark("newcomer", 5).await;
    assert_ne!(world.personalized("newcomer", 1).await, [29]);
    world.bookmark("member01", 5).await;
    world.bookmark("member01", 29).await;
    assert_eq!(world.personalized("newcomer", 1).await, [29]);
}

#[tokio::test]
async fn nothing_a_member_knows_is_ever_shown_and_the_answer_is_full_while_there_is_anything_left()
{
    let world = World::with_spots(30).await;
    for number in 1..=30 {
        world.view("member01", number).await;
    }
    let mut known = Vec::new();
    for number in 1..=30 {
        for k in [1, 5, 100] {
            let answer = world.personalized("member02", k).await;
            assert_distinct_and_unknown(&answer, &known);
            assert_eq!(answer.len(), k.min(30 - known.len()), "k={k}, known={known:?}");
        }
        if number % 2 == 0 {
            world.bookmark("member02", number).await;
        } else {
            world.view("member02", number).await;
        }
        known.push(number);
    }
    assert!(world.personalized("member02", 5).await.is_empty());
    assert!(world.personalized("member01", 5).await.is_empty());
}

#[tokio::test]
async fn a_bookmark_taken_back_may_be_recommended_again_but_a_view_may_not() {
    let world = World::with_spots(3).await;
    world.bookmark("member01", 1).await;
    world.view("member01", 2).await;
    world.bookmark("member01", 2).await;
    assert_eq!(world.personalized("member01", 5).await, [3]);
    for number in [1, 2] {
        let now = ChangeOrder { at: world.clock.now(), version: None };
        let back = Change::Unbookmarked;
        world.ingest.remember("member01", id(number), back, now).await.unwrap();
    }
    let mut answer = world.personalized("member01", 5).await;
    answer.sort_unstable();
    assert_eq!(answer, [1, 3]);
}

#[tokio::test]
async fn deleted_spots_vanish_from_every_answer() {
    let world = World::with_spots(10).await;
    for member in ["member01", "member02"] {
        for number in [1, 2, 3] {
            world.bookmark(member, number).await;
        }
    }
    world.bookmark("newcomer", 1).await;
    assert_eq!(world.personalized("newcomer", 2).await, [2, 3]);
    world.delete(2).await;
    assert_eq!(world.personalized("newcomer", 1).await, [3]);
    assert!(!world.personalized("newcomer", 100).await.contains(&2));
    assert!(!world.trend(100).await.contains(&2));
    assert!(!world.similar(1, 100).await.unwrap().contains(&2));
    assert_eq!(world.similar(2, 100).await, None);
}

#[tokio::test]
async fn similar_spots_share_tags_and_are_near_and_fill_the_answer() {
    let world = World::with_spots(30).await;
    assert_eq!(world.similar(10, 4).await.unwrap(), [8, 12, 6, 14]);
    let all = world.similar(10, 100).await.unwrap();
    assert_eq!(all.len(), 29);
    assert_distinct_and_unknown(&all, &[10]);
    assert!(world.similar(10, 0).await.unwrap().is_empty());
    assert_eq!(world.similar(31, 10).await, None);
}

#[tokio::test]
async fn queries_fail_until_the_first_resync_has_ended() {
    let world = World::before_resync().await;
    let resync = world.stores.spots.begin_resync().await.unwrap();
    world.add(spot(1, &[])).await;
    for spot in [1, 2] {
        let unknown = world.recommender.similar(id(spot), 10).await;
        assert!(matches!(unknown, Err(PortError::Unavailable(_))), "{unknown:?}");
    }
    world.stores.spots.sweep(resync).await.unwrap();
    assert_eq!(world.similar(1, 10).await.unwrap(), [0; 0]);
    assert_eq!(world.similar(2, 10).await, None);
    world.add(spot(2, &[])).await;
    assert_eq!(world.similar(2, 10).await.unwrap(), [1]);
}

#[tokio::test]
async fn the_same_question_has_the_same_answer() {
    let world = World::with_spots(60).await;
    for number in 1..=60 {
        world.view(&format!("member{:02}", number % 7), number).await;
    }
    let first = world.personalized("member03", 20).await;
    for _ in 0..5 {
        assert_eq!(world.personalized("member03", 20).await, first);
    }
}

#[tokio::test]
async fn a_visitor_counts_for_the_trend_but_has_no_history() {
    let world = World::with_spots(3).await;
    let (counted, kept) = world.view("anon:abcd", 1).await;
    assert_eq!((counted, kept), (TrendOutcome::Applied, None));
    assert_eq!(world.trend(1).await, [1]);
    let profile = world.stores.histories.profile("anon:abcd", 9).await.unwrap();
    assert!(profile.known.is_empty());
}

#[tokio::test]
async fn a_deleted_member_is_a_newcomer_again() {
    let world = World::with_spots(9).await;
    world.bookmark("member01", 5).await;
    let now = ChangeOrder { at: world.clock.now(), version: None };
    world.ingest.forget_history("member01", now).await.unwrap();
    world.ingest.forget_in_trend("member01", now).await.unwrap();
    assert_eq!(world.personalized("member01", 1).await, [5]);
}

/// Core's catalogue in pages of two; an event may come between two pages.
struct FakeCatalogue {
    log_id: Mutex<String>,
    spots: Mutex<Vec<Spot>>,
    fails: Mutex<bool>,
    between_pages: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl FakeCatalogue {
    fn new(log_id: &str, spots: Vec<Spot>) -> Arc<Self> {
        Arc::new(Self {
            log_id: Mutex::new(log_id.to_owned()),
            spots: Mutex::new(spots),
            fails: Mutex::new(false),
            between_pages: Mutex::default(),
        })
    }
}

#[async_trait]
impl Catalogue for FakeCatalogue {
    async fn log_id(&self) -> Result<String, PortError> {
        Ok(self.log_id.lock().unwrap().clone())
    }

    async fn page(&self, after: Option<&str>) -> Result<CataloguePage, PortError> {
        if *self.fails.lock().unwrap() && after.is_some() {
            return Err(PortError::unavailable(anyhow::anyhow!("core went away")));
        }
        if let Some(happens) = &*self.between_pages.lock().unwrap() {
            happens();
        }
        let after = after.map_or(-1, |after| after.parse().unwrap());
        let spots = self.spots.lock().unwrap();
        let page: Vec<Spot> =
            spots.iter().filter(|spot| spot.id.number() > after).take(2).cloned().collect();
        let next = (page.len() == 2).then(|| page[1].id.to_string());
        Ok(CataloguePage { spots: page, next })
    }
}

fn version(version: u64, spot: Spot) -> Spot {
    Spot { version, ..spot }
}

#[tokio::test]
async fn a_resync_brings_the_replica_up_to_the_catalogue() {
    let world = World::with_spots(2).await;
    world.ingest.merge_spots(&[SpotState::Live(version(7, spot(4, &["문화"])))]).await.unwrap();
    world.pass(TimeDelta::seconds(1));
    let catalogue = FakeCatalogue::new(
        "log",
        vec![version(3, spot(1, &["축제"])), spot(3, &[]), version(6, spot(4, &[]))],
    );
    let resync = Resync::new(catalogue, world.stores.spots.clone());
    assert!(resync.is_due().await.unwrap());
    let resynced = resync.run().await.unwrap();
    assert_eq!(resynced, Resynced { read: 3, changed: 2, removed: 1 });
    let spots = world.stores.spots.get_many(&[id(1), id(2), id(3), id(4)]).await.unwrap();
    assert_eq!(spots.len(), 3);
    assert_eq!(spots[&id(1)].tags, ["축제"]);
    assert_eq!(spots[&id(4)].version, 7);
    assert!(!resync.is_due().await.unwrap());
}

#[tokio::test]
async fn a_resync_that_breaks_off_removes_nothing_and_can_be_repeated() {
    let world = World::with_spots(5).await;
    world.pass(TimeDelta::seconds(1));
    let catalogue = FakeCatalogue::new("log", (1..=4).map(|n| spot(n, &[])).collect());
    *catalogue.fails.lock().unwrap() = true;
    let spots = world.stores.spots.clone();
    let resync = Resync::new(catalogue.clone(), spots.clone());
    assert!(resync.run().await.is_err());
    assert!(spots.get_many(&[id(5)]).await.unwrap().contains_key(&id(5)));
    *catalogue.fails.lock().unwrap() = false;
    assert_eq!(resync.run().await.unwrap().removed, 1);
}

#[tokio::test]
async fn a_clock_that_is_set_back_during_a_resync_removes_nothing() {
    let world = World::with_spots(5).await;
    let catalogue = FakeCatalogue::new("log", (1..=4).map(|n| spot(n, &[])).collect());
    let clock = world.clock.clone();
    *catalogue.between_pages.lock().unwrap() =
        Some(Box::new(move || clock.advance(TimeDelta::hours(-2))));
    let resync = Resync::new(catalogue, world.stores.spots.clone());
    for removed in [1, 0] {
        assert_eq!(resync.run().await.unwrap(), Resynced { read: 4, changed: 0, removed });
        assert_eq!(world.stores.spots.most_tagged(None, 10).await.unwrap().len(), 4);
    }
}

#[tokio::test]
async fn when_core_starts_anew_its_low_versions_win_and_its_old_spots_go() {
    let world = World::new().await;
    let catalogue = FakeCatalogue::new("old", (1..=3).map(|n| version(9, spot(n, &[]))).collect());
    let spots = world.stores.spots.clone();
    let resync = Resync::new(catalogue.clone(), spots.clone());
    resync.run().await.unwrap();
    world.pass(TimeDelta::seconds(1));

    *catalogue.log_id.lock().unwrap() = "new".to_owned();
    *catalogue.spots.lock().unwrap() = vec![version(1, spot(2, &["체험"]))];
    assert!(resync.is_due().await.unwrap());
    resync.run().await.unwrap();
    let all = spots.most_tagged(None, 10).await.unwrap();
    assert_eq!(all, [version(1, spot(2, &["체험"]))]);
}
