//! Calls of other services: all spots, and the number of waiting events.

use chrono::TimeDelta;
use http::StatusCode;
use serde_json::json;
use tourin_shared_events::outbox::OutboxStore as _;
use tourin_shared_events::outbox::testing::recorded;

use super::refused;
use super::spots::with_spots;
use crate::testing::TestCore;

#[tokio::test]
async fn internal_calls_are_for_the_services_in_the_table() {
    let core = with_spots().await;
    let (_, hana) = core.member("hana12345").await;
    for path in ["/internal/events/backlog", "/internal/tour-spots"] {
        for caller in [None, Some(&hana)] {
            refused(&core.call("GET", path, caller, None).await, 403, "forbidden", "may not call");
        }
    }
}

#[tokio::test]
async fn events_waiting_for_the_bus_are_counted() {
    let core = with_spots().await;
    let get = async || core.get_as("operator", "/internal/events/backlog").await;
    let waiting = get().await.json();
    assert_eq!(waiting["pending"], 5);
    assert!(waiting["oldest"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok());
    let outbox = core.store.outbox();
    let seqs: Vec<u64> = recorded(&outbox).await.iter().map(|(row, _)| row.seq).collect();
    outbox.mark_published(&seqs, chrono::Utc::now()).await.unwrap();
    assert_eq!(get().await.json(), json!({"pending": 0}));
}

#[tokio::test]
async fn an_unreachable_store_is_not_a_fault_of_the_service() {
    let core = with_spots().await;
    core.store.close().await;
    for (service, path) in
        [("operator", "/internal/events/backlog"), ("recommendation", "/internal/tour-spots")]
    {
        let answer = core.get_as(service, path).await;
        refused(&answer, 503, "unavailable", "the store cannot be reached");
        assert_eq!(answer.header("retry-after"), "1");
    }
}

#[tokio::test]
async fn a_replica_walks_over_all_spots() {
    let core = with_spots().await;
    let mut path = "/internal/tour-spots?limit=2".to_owned();
    let mut walked = Vec::new();
    loop {
        let page = core.get_as("recommendation", &path).await.json();
        assert_eq!(page["log_id"], core.store.outbox().log_id().await.unwrap());
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
    let bad = core.get_as("recommendation", "/internal/tour-spots?after=x").await;
    refused(&bad, 422, "invalid", "after");
}

/// An attacker with the store, the mesh's keys and every address cannot name last week's visitors:
/// the keys that could are overwritten.
#[tokio::test]
async fn the_key_of_the_day_is_for_gateways_and_changes_with_the_day() {
    let core = TestCore::start().await;
    let path = "/internal/visitor-key";
    refused(&core.get_as("recommendation", path).await, 403, "forbidden", "may not call");
    let (_, hana) = core.member("hana12345").await;
    refused(&core.call("GET", path, Some(&hana), None).await, 403, "forbidden", "own services");
    let ask = async || {
        let answer = core.call("GET", path, None, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
        let body = answer.json();
        (body["key"].as_str().unwrap().to_owned(), body["msLeft"].as_u64().unwrap())
    };
    let (today, left) = ask().await;
    assert_eq!(ask().await.0, today);
    core.clock.advance(TimeDelta::milliseconds(left.cast_signed()) - TimeDelta::milliseconds(1));
    assert_eq!(ask().await, (today.clone(), 1));
    core.clock.advance(TimeDelta::milliseconds(1));
    let (tomorrow, left) = ask().await;
    assert_eq!(left, 86_400_000);
    assert_ne!(tomorrow, today);
    // The clock is set back: the key of that day is gone.
    core.clock.advance(TimeDelta::days(-1));
    assert_eq!(ask().await.0, tomorrow);
}
