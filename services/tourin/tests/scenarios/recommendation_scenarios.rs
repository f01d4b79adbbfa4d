//! Trend, personal recommendations, similar spots.

use std::time::Instant;

use serde_json::json;
use tourin_testbed::eventually;

use crate::backends::FRESH;
use crate::world::{Member, World, ids};

/// A mesh whose recommendation has every spot.
async fn filled() -> World {
    World::start().await.filled().await
}

async fn trend(world: &World, member: &Member, k: usize) -> Vec<String> {
    ids(&world.get_as(member, &format!("/api/recommendations/trend?k={k}")).await.expect(200))
}

async fn personal(world: &World, member: &Member, k: usize) -> Vec<String> {
    ids(&world
        .get_as(member, &format!("/api/recommendations/personalized?k={k}"))
        .await
        .expect(200))
}

async fn trend_begins_with(world: &World, member: &Member, expected: &[&String]) {
    eventually("the trend begins so", || async {
        let trend = trend(world, member, 10).await;
        if trend.iter().take(expected.len()).eq(expected.iter().copied()) {
            Ok(())
        } else {
            Err(trend)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_in_the_trend_within_a_second() {
    let world = filled().await;
    let member = world.member("traveller1").await;
    let spots = world.spots(2).await;
    // A mesh that has just started is still declaring its queues.
    world.view(&member, &spots[0]).await;
    trend_begins_with(&world, &member, &[&spots[0]]).await;
    world.view(&member, &spots[1]).await;
    let viewed = Instant::now();
    trend_begins_with(&world, &member, &[&spots[1], &spots[0]]).await;
    assert!(viewed.elapsed() < FRESH, "{:?}", viewed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_weighs_two_views_and_counts_once_an_hour() {
    let world = filled().await;
    let one = world.member("traveller1").await;
    let two = world.member("traveller2").await;
    let spots = world.spots(2).await;
    // Many views by one member count once; so the other spot's bookmark wins.
    for _ in 0..5 {
        world.view(&one, &spots[0]).await;
    }
    world.bookmark(&two, &spots[1]).await;
    trend_begins_with(&world, &one, &[&spots[1], &spots[0]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_view_counts_too() {
    let world = filled().await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    world.get(&format!("/api/tour-spots/{spot}")).await.expect(200);
    trend_begins_with(&world, &member, &[&spot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recommendations_need_a_session_and_a_k_that_is_one() {
    let world = filled().await;
    let member = world.member("traveller1").await;
    for path in ["/api/recommendations/trend", "/api/recommendations/personalized"] {
        world.get(path).await.expect_error(401);
        for k in ["-1", "101", "x", "1.5"] {
            world.get_as(&member, &format!("{path}?k={k}")).await.expect_error(422);
        }
        let none = world.get_as(&member, &format!("{path}?k=0")).await.expect(200);
        assert_eq!(none, json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bookmark_already_changes_what_a_member_sees() {
    let world = filled().await;
    let other = world.member("traveller1").await;
    let newcomer = world.member("traveller2").await;
    let popular = world.spots(3).await;
    for spot in &popular {
        world.view(&other, spot).await;
    }
    eventually("popular spots for a newcomer", || async {
        let seen = personal(&world, &newcomer, 3).await;
        if seen.iter().all(|spot| popular.contains(spot)) && seen.len() == 3 {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;

    let palace = world.spot("경복궁").await;
    world.bookmark(&newcomer, &palace).await;
    eventually("personal spots after a bookmark", || async {
        let seen = personal(&world, &newcomer, 5).await;
        let changed = seen.iter().any(|spot| !popular.contains(spot));
        if changed && !seen.contains(&palace) && seen.len() == 5 { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_spots_are_not_recommended() {
    let world = filled().await;
    let member = world.member("traveller1").await;
    let known = world.spots(12).await;
    for spot in &known {
        world.view(&member, spot).await;
    }
    eventually("a hundred unknown spots", || async {
        let seen = personal(&world, &member, 100).await;
        if seen.len() == 100 && seen.iter().all(|spot| !known.contains(spot)) {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_similar_histories_get_each_others_spots() {
    let world = filled().await;
    let spots = world.spots(40).await;
    let (shared, wanted) = (&spots[3], &spots[37]);
    for number in 1..=3 {
        let member = world.member(&format!("traveller{number}")).await;
        world.bookmark(&member, shared).await;
        world.bookmark(&member, wanted).await;
    }
    let newcomer = world.member("traveller9").await;
    world.bookmark(&newcomer, shared).await;
    eventually("the wanted spot first", || async {
        let seen = personal(&world, &newcomer, 3).await;
        if seen.first() == Some(wanted) { Ok(()) } else { Err(seen) }
    })
    .await;
    let similar = world.get(&format!("/api/tour-spots/{shared}/similar?k=5")).await.expect(200);
    assert_eq!(ids(&similar)[0], *wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_find_similar_spots() {
    let world = filled().await;
    let palace = world.spot("경복궁").await;
    let answer = world.get(&format!("/api/tour-spots/{palace}/similar")).await.expect(200);
    let similar = ids(&answer);
    assert_eq!(similar.len(), 10);
    assert!(!similar.contains(&palace));
    let fields: Vec<_> = answer[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["address", "id", "imageUrl", "lat", "lng", "name", "tags"]);
    // Core and recommendation describe a spot in the same way.
    let query = format!("/api/tour-spots/{}", similar[0]);
    let by_core = world.get(&query).await.expect(200);
    for (field, value) in answer[0].as_object().unwrap() {
        assert_eq!(&by_core[field], value, "{field}");
    }
    world.get("/api/tour-spots/999999/similar").await.expect_error(404);
    world.get(&format!("/api/tour-spots/{palace}/similar?k=101")).await.expect_error(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_answer_and_count_each_event_once() {
    let world =
        World::with(|settings| settings.replicas = "recommendation=3".parse().unwrap()).await;
    let world = world.filled().await;
    let members = [world.member("traveller1").await, world.member("traveller2").await];
    let spots = world.spots(2).await;
    world.view(&members[0], &spots[0]).await;
    world.bookmark(&members[1], &spots[1]).await;
    // More requests than replicas: every replica answers, and all answers are the same.
    for _ in 0..6 {
        trend_begins_with(&world, &members[0], &[&spots[1], &spots[0]]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_a_subscriber_block_nothing() {
    let world = filled().await;
    let member = world.member("traveller1").await;
    let spots = world.spots(2).await;
    // The trend does not follow reviews, and the member's next events must pass all the same.
    for number in 0..20 {
        let body = json!({"userId": "traveller1", "content": format!("{number}")});
        let path = format!("/api/tour-spots/{}/reviews", spots[0]);
        world.post_as(&member, &path, body).await.expect(201);
    }
    world.bookmark(&member, &spots[1]).await;
    trend_begins_with(&world, &member, &[&spots[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_member_is_forgotten() {
    let world = filled().await;
    let spots = world.spots(40).await;
    let (shared, theirs) = (&spots[3], &spots[37]);
    let leaver = world.member("leaving01").await;
    world.bookmark(&leaver, shared).await;
    world.bookmark(&leaver, theirs).await;
    let stayer = world.member("staying01").await;
    world.bookmark(&stayer, shared).await;
    let first_is = async |wanted: bool| {
        eventually("the first spot is or is not theirs", || async {
            let seen = personal(&world, &stayer, 3).await;
            if (seen.first() == Some(theirs)) == wanted { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    first_is(true).await;
    world.post_as(&leaver, "/api/auth/delete-account", json!({})).await.expect(204);
    first_is(false).await;
}
