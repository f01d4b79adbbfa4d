//! What other services follow: the feed of events, and all spots.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::refused;
use super::spots::with_spots;
use crate::testing::service;

#[tokio::test]
async fn internal_calls_are_for_services() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for path in ["/internal/events", "/internal/tour-spots"] {
        for caller in [None, Some(&hana)] {
            refused(&core.call("GET", path, caller, None).await, 403, "forbidden", "services");
        }
    }
}

#[tokio::test]
async fn the_feed_is_read_from_a_place_on() {
    let core = with_spots().await;
    let service = service();
    let get = async |path: &str| core.call("GET", path, Some(&service), None).await;
    let all = get("/internal/events").await.json();
    assert_eq!(all["events"].as_array().unwrap().len(), 5);
    assert_eq!(all["events"][0]["routing_key"], "tourSpot.upsert");
    assert_eq!(all["events"][0]["ordering_key"], "1");
    assert_eq!(all["events"][0]["envelope"]["data"]["name"], "경복궁");
    let two = get("/internal/events?limit=2").await.json();
    assert_eq!(two["next"], two["events"][1]["seq"]);
    let rest = get(&format!("/internal/events?after={}", two["next"])).await.json();
    assert_eq!(rest["events"].as_array().unwrap().len(), 3);
    assert_eq!(rest["log_id"], all["log_id"]);
    refused(&get("/internal/events?after=x").await, 422, "invalid", "after");
    let far = get(&format!("/internal/events?after={}", u64::MAX)).await;
    assert_eq!(far.status, StatusCode::OK, "{far:?}");
}

#[tokio::test]
async fn a_store_that_is_away_is_no_fault_of_the_feeds() {
    let core = with_spots().await;
    core.store.close().await;
    let answer = core.call("GET", "/internal/events", Some(&service()), None).await;
    refused(&answer, 503, "unavailable", "the store cannot be reached");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn a_waiting_follower_is_woken_by_a_commit_and_by_the_stop() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    let service = service();
    let end =
        core.call("GET", "/internal/events", Some(&service), None).await.json()["next"].clone();
    let path = format!("/internal/events?after={end}&wait_ms=25000");
    let waiting = core.call("GET", &path, Some(&service), None);
    let placing = async {
        let body = Some(json!({"tourSpotId": "1"}));
        core.call("POST", "/api/users/hana12345/bookmarks", Some(&hana), body).await
    };
    let deadline = Duration::from_secs(5);
    let (woken, placed) =
        tokio::time::timeout(deadline, async { tokio::join!(waiting, placing) }).await.unwrap();
    assert_eq!(placed.status, StatusCode::CREATED);
    let woken = woken.json();
    assert_eq!(woken["events"][0]["routing_key"], "user.bookmarkTourspot");

    let path = format!("/internal/events?after={}&wait_ms=25000", woken["next"]);
    let waiting = core.call("GET", &path, Some(&service), None);
    let stopping = async { core.stopping.begin() };
    let (woken, ()) =
        tokio::time::timeout(deadline, async { tokio::join!(waiting, stopping) }).await.unwrap();
    assert_eq!(woken.json()["events"], json!([]));
}

#[tokio::test]
async fn a_replica_walks_over_all_spots() {
    let core = with_spots().await;
    let service = service();
    let mut path = "/internal/tour-spots?limit=2".to_owned();
    let mut walked = Vec::new();
    loop {
        let page = core.call("GET", &path, Some(&service), None).await.json();
        walked.extend(page["spots"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => path = format!("/internal/tour-spots?limit=2&after={next}"),
            None => break,
        }
    }
    let ids: Vec<_> = walked.iter().map(|spot| spot["tourspot_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5"]);
    assert_eq!(walked[0]["version"], 1);
    assert_eq!(walked[0]["tags"], json!(["역사", "건축/조형"]));
    let bad = core.call("GET", "/internal/tour-spots?after=x", Some(&service), None).await;
    refused(&bad, 422, "invalid", "after");
}
