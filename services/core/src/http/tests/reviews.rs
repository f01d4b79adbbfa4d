//! Reviews and likes, and their refusals.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use tourin_chassis::identity::Subject;
use tourin_chassis::shutdown::Shutdown;

use super::spots::with_spots;
use super::{answered, no_content, refused};
use crate::testing::TestCore;

const REVIEWS: &str = "/api/tour-spots/1/reviews";

async fn write(core: &TestCore, member: &Subject, user_id: &str, content: &str) -> Value {
    let body = json!({"userId": user_id, "content": content});
    let answer = core.call("POST", REVIEWS, Some(member), Some(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_review_is_kept_as_sent_and_the_newest_is_first() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let first = write(&core, &hana, "hana12345", " 좋아요! ").await;
    assert_eq!(
        first,
        json!({
            "id": "1", "tourSpotId": "1", "userId": "hana12345",
            "createdAt": "2027-01-15T08:00:00Z", "content": " 좋아요! ", "likeCount": 0,
        })
    );
    core.clock.advance(chrono::TimeDelta::milliseconds(1));
    let second = write(&core, &hana, "hana12345", &"가".repeat(500)).await;
    let list = core.call("GET", REVIEWS, None, None).await;
    assert_eq!(list.json(), json!([second, first]));
    assert_eq!(list.header("x-pagination-total-item"), "2");
    let page = core.call("GET", &format!("{REVIEWS}?pageNo=2&pageSize=1"), None, None).await;
    assert_eq!(page.json(), json!([first]));
}

#[tokio::test]
async fn an_invalid_review_is_refused() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for content in ["", "  \n", &"가".repeat(501)] {
        let body = json!({"userId": "hana12345", "content": content});
        let answer = core.call("POST", REVIEWS, Some(&hana), Some(body)).await;
        refused(&answer, 422, "invalid", "1 to 500 characters");
    }
    for body in [json!({"userId": "hana12345"}), json!({"userId": 1, "content": "a"})] {
        refused(&core.call("POST", REVIEWS, Some(&hana), Some(body)).await, 422, "invalid", "");
    }
    let list = Some(json!(["hana12345", "좋아요"]));
    let list = core.call("POST", REVIEWS, Some(&hana), list).await;
    refused(&list, 422, "invalid", "the body must be a JSON object");
    let good = |user: &str| Some(json!({"userId": user, "content": "좋아요"}));
    let nobody = core.call("POST", REVIEWS, None, good("hana12345")).await;
    refused(&nobody, 401, "unauthenticated", "session");
    let other = core.call("POST", REVIEWS, Some(&hana), good("duli12345")).await;
    refused(&other, 403, "forbidden", "userId");
    for spot in ["404", "abc"] {
        let path = format!("/api/tour-spots/{spot}/reviews");
        let answer = core.call("POST", &path, Some(&hana), good("hana12345")).await;
        refused(&answer, 404, "not_found", "no such tour spot");
        refused(&core.call("GET", &path, None, None).await, 404, "not_found", "no such tour spot");
    }
    let bad = core.call("GET", &format!("{REVIEWS}?pageNo=x"), None, None).await;
    refused(&bad, 422, "invalid", "pageNo");
}

#[tokio::test]
async fn only_the_author_deletes_a_review() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let (_, duli) = core.member("duli12345").await;
    let review = write(&core, &hana, "hana12345", "좋아요").await;
    let path = format!("/api/tour-spot-reviews/{}", review["id"].as_str().unwrap());
    refused(&core.call("DELETE", &path, None, None).await, 401, "unauthenticated", "session");
    refused(&core.call("DELETE", &path, Some(&duli), None).await, 403, "forbidden", "another");
    no_content(&core.call("DELETE", &path, Some(&hana), None).await);
    refused(&core.call("DELETE", &path, Some(&hana), None).await, 404, "not_found", "review");
    let odd = core.call("DELETE", "/api/tour-spot-reviews/x", Some(&hana), None).await;
    refused(&odd, 404, "not_found", "review");
    assert_eq!(core.call("GET", REVIEWS, None, None).await.json(), json!([]));
}

#[tokio::test]
async fn a_like_is_idempotent_both_ways() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let (_, duli) = core.member("duli12345").await;
    write(&core, &hana, "hana12345", "하나").await;
    write(&core, &hana, "hana12345", "둘").await;
    let path = "/api/tour-spot-reviews/1/likes";
    let body = |liked: bool| Some(json!({"userId": "duli12345", "liked": liked}));
    for (liked, count) in [(true, 1), (true, 1), (false, 0), (false, 0), (true, 1)] {
        let answer = core.call("PUT", path, Some(&duli), body(liked)).await;
        let expected = json!({"userId": "duli12345", "tourSpotReviewId": "1", "liked": liked});
        answered(&answer, StatusCode::OK, &expected);
        let reviews = core.call("GET", REVIEWS, None, None).await.json();
        assert_eq!(reviews[1]["likeCount"], count);
    }
    let asked =
        "/api/users/duli12345/tour-spot-reviews/likes?tourSpotReviewIds=2,1&tourSpotReviewIds=404";
    let likes = core.call("GET", asked, None, None).await;
    let entry = |id: &str, liked: bool| json!({"userId": "duli12345", "tourSpotReviewId": id, "liked": liked});
    answered(
        &likes,
        StatusCode::OK,
        &json!([entry("2", false), entry("1", true), entry("404", false)]),
    );
}

#[tokio::test]
async fn likes_need_a_session_and_an_existing_review() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    write(&core, &hana, "hana12345", "하나").await;
    let path = "/api/tour-spot-reviews/1/likes";
    let body = |user: &str| Some(json!({"userId": user, "liked": true}));
    let nobody = core.call("PUT", path, None, body("hana12345")).await;
    refused(&nobody, 401, "unauthenticated", "session");
    let other = core.call("PUT", path, Some(&hana), body("duli12345")).await;
    refused(&other, 403, "forbidden", "userId");
    for id in ["404", "x"] {
        let path = format!("/api/tour-spot-reviews/{id}/likes");
        let answer = core.call("PUT", &path, Some(&hana), body("hana12345")).await;
        refused(&answer, 404, "not_found", "review");
    }
    let wrong = Some(json!({"userId": "hana12345", "liked": "yes"}));
    refused(&core.call("PUT", path, Some(&hana), wrong).await, 422, "invalid", "");
    let list = Some(json!(["hana12345", true]));
    let list = core.call("PUT", path, Some(&hana), list).await;
    refused(&list, 422, "invalid", "the body must be a JSON object");

    let likes = "/api/users/hana12345/tour-spot-reviews/likes";
    assert_eq!(core.call("GET", likes, None, None).await.json(), json!([]));
    let odd = core.call("GET", &format!("{likes}?tourSpotReviewIds=1,x"), None, None).await;
    refused(&odd, 422, "invalid", "tourSpotReviewIds");
    let many = vec!["1"; 101].join(",");
    let many = core.call("GET", &format!("{likes}?tourSpotReviewIds={many}"), None, None).await;
    refused(&many, 422, "invalid", "at most 100");
    let stranger = "/api/users/nobody123/tour-spot-reviews/likes?tourSpotReviewIds=1";
    refused(&core.call("GET", stranger, None, None).await, 404, "not_found", "member");
}

#[tokio::test]
async fn the_identity_of_a_deleted_account_is_401() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let (_, duli) = core.member("duli12345").await;
    write(&core, &duli, "duli12345", "둘리의 것").await;
    core.call("POST", "/api/auth/delete-account", Some(&hana), None).await;
    let review = Some(json!({"userId": "hana12345", "content": "좋아요"}));
    let like = Some(json!({"userId": "hana12345", "liked": true}));
    for (method, path, body) in [
        ("POST", REVIEWS, review),
        ("PUT", "/api/tour-spot-reviews/1/likes", like),
        ("DELETE", "/api/tour-spot-reviews/1", None),
    ] {
        let answer = core.call(method, path, Some(&hana), body).await;
        refused(&answer, 401, "unauthenticated", "account");
    }
}

#[tokio::test]
async fn gateways_are_told_that_a_like_has_changed_a_spots_reviews() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let review = write(&core, &hana, "hana12345", "좋아요").await;
    let stop = Shutdown::new();
    let telling = tokio::spawn(Arc::clone(&core.state.invalidations).run(stop.clone()));
    let path = format!("/api/tour-spot-reviews/{}/likes", review["id"].as_str().unwrap());
    let like = async |liked: bool| {
        let body = json!({"userId": "hana12345", "liked": liked});
        core.call("PUT", &path, Some(&hana), Some(body)).await;
    };
    let told = async |after: u64| {
        let path = format!("/internal/revocations?after={after}&wait_ms=20000");
        let page = core.call("GET", &path, None, None).await.json();
        let tags = page["entries"].as_array().unwrap().iter().map(|entry| &entry["invalidate"]);
        (tags.cloned().collect::<Vec<_>>(), page["next"].as_u64().unwrap())
    };
    like(true).await;
    let (tags, next) = told(0).await;
    assert_eq!(tags, ["spot:1"]);
    // Once more changes nothing; the end of the like does.
    like(true).await;
    like(false).await;
    assert_eq!(told(next).await.0, ["spot:1"]);
    stop.begin();
    telling.await.unwrap();
}
