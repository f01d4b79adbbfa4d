//! Bookmarks, and their refusals.

use http::StatusCode;
use serde_json::json;

use super::spots::with_spots;
use super::{no_content, refused};

const BOOKMARKS: &str = "/api/users/hana12345/bookmarks";

#[tokio::test]
async fn a_bookmark_is_placed_shown_and_taken_back() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let body = || Some(json!({"tourSpotId": "1"}));
    let placed = core.call("POST", BOOKMARKS, Some(&hana), body()).await;
    assert_eq!(placed.status, StatusCode::CREATED);
    let expected = json!({
        "userId": "hana12345", "tourSpotId": "1",
        "tourSpotOverview": {
            "id": "1", "name": "경복궁", "address": "서울특별시 종로구 사직로 161",
            "lat": 37.5796, "lng": 126.977, "imageUrl": "https://example.com/1.jpg",
            "description": "조선의 법궁", "phoneNumber": "02-3700-3900",
            "tags": ["역사", "건축/조형"],
        },
    });
    assert_eq!(placed.json(), expected);
    let again = core.call("POST", BOOKMARKS, Some(&hana), body()).await;
    assert_eq!((again.status, again.json()), (StatusCode::CREATED, expected.clone()));
    let one = format!("{BOOKMARKS}/1");
    assert_eq!(core.call("GET", &one, None, None).await.json(), expected);
    let list = core.call("GET", BOOKMARKS, None, None).await;
    assert_eq!(list.json(), json!([expected]), "one bookmark");
    assert_eq!(list.header("x-pagination-total-item"), "1");

    no_content(&core.call("DELETE", &one, Some(&hana), None).await);
    refused(&core.call("DELETE", &one, Some(&hana), None).await, 404, "not_found", "bookmark");
    refused(&core.call("GET", &one, None, None).await, 404, "not_found", "bookmark");
    assert_eq!(core.call("GET", BOOKMARKS, None, None).await.json(), json!([]));
}

#[tokio::test]
async fn the_newest_bookmark_is_first() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for id in ["3", "1", "2"] {
        core.clock.advance(chrono::TimeDelta::seconds(1));
        core.call("POST", BOOKMARKS, Some(&hana), Some(json!({"tourSpotId": id}))).await;
    }
    let page = core.call("GET", &format!("{BOOKMARKS}?pageSize=2"), None, None).await.json();
    let ids: Vec<_> =
        page.as_array().unwrap().iter().map(|bookmark| bookmark["tourSpotId"].clone()).collect();
    assert_eq!(ids, ["2", "1"]);
    let bad = core.call("GET", &format!("{BOOKMARKS}?pageSize=0"), None, None).await;
    refused(&bad, 422, "invalid", "pageSize");
}

#[tokio::test]
async fn bookmarks_are_their_members_alone() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let (_, duli) = core.member("duli12345").await;
    let body = || Some(json!({"tourSpotId": "1"}));
    refused(&core.call("POST", BOOKMARKS, None, body()).await, 401, "unauthenticated", "session");
    refused(&core.call("POST", BOOKMARKS, Some(&duli), body()).await, 403, "forbidden", "another");
    core.call("POST", BOOKMARKS, Some(&hana), body()).await;
    let one = format!("{BOOKMARKS}/1");
    refused(&core.call("DELETE", &one, None, None).await, 401, "unauthenticated", "session");
    refused(&core.call("DELETE", &one, Some(&duli), None).await, 403, "forbidden", "another");
    assert_eq!(core.call("GET", &one, None, None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_invalid_bookmark_is_refused() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for unknown in ["404", "abc", "", "99999999999999999999"] {
        let body = Some(json!({"tourSpotId": unknown}));
        let answer = core.call("POST", BOOKMARKS, Some(&hana), body).await;
        refused(&answer, 404, "not_found", "no such tour spot");
    }
    for (wrong, message) in [
        (json!({}), "tourSpotId is missing"),
        (json!({"tourSpotId": 1}), "tourSpotId must be a string"),
        (json!([]), "the body must be a JSON object"),
    ] {
        let answer = core.call("POST", BOOKMARKS, Some(&hana), Some(wrong)).await;
        refused(&answer, 422, "invalid", message);
    }
    let list = core.call("POST", BOOKMARKS, Some(&hana), Some(json!(["1"]))).await;
    refused(&list, 422, "invalid", "the body must be a JSON object");
    let nothing = core.call("POST", BOOKMARKS, Some(&hana), None).await;
    refused(&nothing, 400, "malformed", "JSON");
    for path in ["nobody123/bookmarks", "nobody123/bookmarks/1", "hana12345/bookmarks/x"] {
        let answer = core.call("GET", &format!("/api/users/{path}"), None, None).await;
        refused(&answer, 404, "not_found", "no such");
    }
    let odd = core.call("DELETE", &format!("{BOOKMARKS}/x"), Some(&hana), None).await;
    refused(&odd, 404, "not_found", "bookmark");
}

#[tokio::test]
async fn the_identity_of_a_deleted_account_is_401() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    core.call("POST", BOOKMARKS, Some(&hana), Some(json!({"tourSpotId": "1"}))).await;
    core.call("POST", "/api/auth/delete-account", Some(&hana), None).await;
    let body = Some(json!({"tourSpotId": "2"}));
    let placed = core.call("POST", BOOKMARKS, Some(&hana), body).await;
    refused(&placed, 401, "unauthenticated", "account");
    let removed = core.call("DELETE", &format!("{BOOKMARKS}/1"), Some(&hana), None).await;
    refused(&removed, 401, "unauthenticated", "account");
}
