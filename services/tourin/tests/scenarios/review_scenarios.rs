//! Reviews and likes.

use serde_json::{Value, json};
use tourin_testbed::eventually;

use crate::world::{Member, World};

async fn write(world: &World, member: &Member, spot: &str, content: &str) -> Value {
    let body = json!({"userId": member.id, "content": content});
    world.post_as(member, &format!("/api/tour-spots/{spot}/reviews"), body).await.expect(201)
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_are_written_and_listed_newest_first() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    let first = write(&world, &member, &spot, "처음").await;
    let second = write(&world, &member, &spot, "다시").await;
    assert_eq!(first["tourSpotId"], spot.as_str());
    assert_eq!(first["userId"], "traveller1");
    assert_eq!(first["likeCount"], 0);
    chrono::DateTime::parse_from_rfc3339(first["createdAt"].as_str().unwrap()).unwrap();

    let answer = world.get(&format!("/api/tour-spots/{spot}/reviews")).await;
    assert_eq!(answer.paging(), [1, 2, 10, 1, 2]);
    assert_eq!(answer.expect(200), json!([second, first]));
    world.get("/api/tour-spots/999999/reviews").await.expect_error(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_refused_with_the_reason() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/reviews");
    let body = |user: &str, content: &str| json!({"userId": user, "content": content});
    world.post(&path, body("traveller1", "좋아요")).await.expect_error(401);
    world.post_as(&member, &path, body("traveller2", "좋아요")).await.expect_error(403);
    world.post_as(&member, &path, body("traveller1", "")).await.expect_error(422);
    world.post_as(&member, &path, body("traveller1", &"가".repeat(501))).await.expect_error(422);
    world.post_as(&member, &path, body("traveller1", &"가".repeat(500))).await.expect(201);
    let nowhere = "/api/tour-spots/999999/reviews";
    world.post_as(&member, nowhere, body("traveller1", "좋아요")).await.expect_error(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_author_deletes_a_review() {
    let world = World::start().await;
    let author = world.member("traveller1").await;
    let other = world.member("traveller2").await;
    let spot = world.spots(1).await.remove(0);
    let review = write(&world, &author, &spot, "지울 글").await;
    let path = format!("/api/tour-spot-reviews/{}", review["id"].as_str().unwrap());
    let anonymous = world.request(reqwest::Method::DELETE, &path);
    world.send(anonymous).await.expect_error(401);
    world.delete_as(&other, &path).await.expect_error(403);
    world.delete_as(&author, &path).await.expect(204);
    world.delete_as(&author, &path).await.expect_error(404);
    let left = world.get(&format!("/api/tour-spots/{spot}/reviews")).await.expect(200);
    assert_eq!(left, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_counts_once_and_can_be_taken_back() {
    let world = World::start().await;
    let author = world.member("traveller1").await;
    let fan = world.member("traveller2").await;
    let spot = world.spots(1).await.remove(0);
    let review = write(&world, &author, &spot, "추천").await;
    let id = review["id"].as_str().unwrap();
    let path = format!("/api/tour-spot-reviews/{id}/likes");
    let likes = async || {
        world.get(&format!("/api/tour-spots/{spot}/reviews")).await.expect(200)[0]["likeCount"]
            .clone()
    };
    for (liked, count) in [(true, 1), (true, 1), (false, 0), (false, 0), (true, 1)] {
        let body = json!({"userId": "traveller2", "liked": liked});
        world.put_as(&fan, &path, body).await.expect(200);
        assert_eq!(likes().await, count);
    }
    let asked =
        format!("/api/users/traveller2/tour-spot-reviews/likes?tourSpotReviewIds=999999,{id}");
    let expected = json!([
        {"userId": "traveller2", "tourSpotReviewId": "999999", "liked": false},
        {"userId": "traveller2", "tourSpotReviewId": id, "liked": true},
    ]);
    assert_eq!(world.get(&asked).await.expect(200), expected);

    let body = json!({"userId": "traveller2", "liked": true});
    world.put_as(&author, &path, body.clone()).await.expect_error(403);
    world.put_as(&fan, "/api/tour-spot-reviews/999999/likes", body.clone()).await.expect_error(404);
    world.send(world.request(reqwest::Method::PUT, &path).json(&body)).await.expect_error(401);
    world.put_as(&fan, &path, json!({"userId": "traveller2"})).await.expect_error(422);
}

/// The built-in table, with a cache on the reviews of a spot.
fn caching_routes() -> String {
    let built_in = include_str!("../../../../gateway/routes.toml");
    let reviews = "path = \"/api/tour-spots/{id}/reviews\"\n";
    assert_eq!(built_in.matches(reviews).count(), 1);
    let cache = "cache = { tags = [\"spot:{id}\"], max_age_s = 600, default_age_s = 600 }\n";
    built_in.replace(reviews, &format!("{reviews}{cache}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_reviews_are_read_anew_once_one_is_written_liked_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    std::fs::write(&routes, caching_routes()).unwrap();
    let world = World::with(|settings| settings.parts.gateway.routes = Some(routes)).await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    let reviews = format!("/api/tour-spots/{spot}/reviews");
    let shows = async |expected: Value| {
        eventually("the change is shown, and from the cache", || async {
            let answer = world.get(&reviews).await;
            let is_hit = answer.header("cache-status") == "tourin; hit";
            if is_hit && answer.expect(200) == expected { Ok(()) } else { Err(is_hit) }
        })
        .await;
    };
    shows(json!([])).await;

    let mut review = write(&world, &member, &spot, "좋아요").await;
    shows(json!([review])).await;
    let path = format!("/api/tour-spot-reviews/{}", review["id"].as_str().unwrap());
    let like = json!({"userId": member.id, "liked": true});
    world.put_as(&member, &format!("{path}/likes"), like).await.expect(200);
    review["likeCount"] = json!(1);
    shows(json!([review])).await;
    world.delete_as(&member, &path).await.expect(204);
    shows(json!([])).await;
}
