//! Bookmarks.

use serde_json::json;

use crate::world::{World, ids};

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_is_placed_once_and_found() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    let body = json!({"tourSpotId": spot});
    let placed =
        world.post_as(&member, "/api/users/traveller1/bookmarks", body.clone()).await.expect(201);
    assert_eq!(placed["userId"], "traveller1");
    assert_eq!(placed["tourSpotId"], spot.as_str());
    for field in ["id", "name", "address", "lat", "lng", "tags", "description"] {
        assert!(!placed["tourSpotOverview"][field].is_null(), "{field} in {placed}");
    }
    let again = world.post_as(&member, "/api/users/traveller1/bookmarks", body).await.expect(201);
    assert_eq!(again, placed);

    let list = world.get("/api/users/traveller1/bookmarks").await;
    assert_eq!(list.paging(), [1, 1, 10, 1, 1]);
    assert_eq!(list.expect(200), json!([placed]));
    let one = world.get(&format!("/api/users/traveller1/bookmarks/{spot}")).await.expect(200);
    assert_eq!(one, placed);
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_are_listed_newest_first() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let spots = world.spots(3).await;
    for spot in &spots {
        world.bookmark(&member, spot).await;
    }
    let list = world.get("/api/users/traveller1/bookmarks?pageSize=2").await.expect(200);
    let listed: Vec<_> = list.as_array().unwrap().iter().map(|b| b["tourSpotId"].clone()).collect();
    assert_eq!(listed, [json!(spots[2]), json!(spots[1])]);

    let query = "/api/tour-spots?customFilters=bookmarked&pageSize=100";
    let mut bookmarked = ids(&world.get_as(&member, query).await.expect(200));
    let mut expected = spots.clone();
    bookmarked.sort();
    expected.sort();
    assert_eq!(bookmarked, expected);
    world.get(query).await.expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_member_writes_the_members_bookmarks() {
    let world = World::start().await;
    let owner = world.member("traveller1").await;
    let other = world.member("traveller2").await;
    let spot = world.spots(1).await.remove(0);
    world.bookmark(&owner, &spot).await;
    let path = "/api/users/traveller1/bookmarks";
    let body = json!({"tourSpotId": spot});
    world.post(path, body.clone()).await.expect_error(401);
    world.post_as(&other, path, body).await.expect_error(403);
    world.post_as(&owner, path, json!({"tourSpotId": "999999"})).await.expect_error(404);
    world.post_as(&owner, path, json!({"tourSpotId": "x"})).await.expect_error(404);
    world.post_as(&owner, path, json!({})).await.expect_error(422);

    let one = format!("{path}/{spot}");
    world.delete_as(&other, &one).await.expect_error(403);
    world.delete_as(&owner, &one).await.expect(204);
    world.delete_as(&owner, &one).await.expect_error(404);
    world.get(&one).await.expect_error(404);
}
