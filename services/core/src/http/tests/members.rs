//! Members as others see them.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::json;
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};

use super::{answered, refused};
use crate::app::accounts::CONCURRENT_LISTS;
use crate::app::fair_queue::{MAX_WAITING_PER_CLIENT, Requester};
use crate::testing::{Answer, TestCore};

#[tokio::test]
async fn a_member_shows_id_and_name_only() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    let member = core.call("GET", "/api/users/hana12345", None, None).await;
    answered(&member, StatusCode::OK, &json!({"id": "hana12345", "name": "김하나"}));
    for nobody in ["HANA12345", "nobody1234", "x", "%20", "%EA%B9%80", "a%2Fb"] {
        let answer = core.call("GET", &format!("/api/users/{nobody}"), None, None).await;
        refused(&answer, 404, "not_found", "no such");
    }
}

#[tokio::test]
async fn members_are_listed_by_id_in_pages() {
    let core = TestCore::start().await;
    for id in ["minsu1234", "hana12345", "Anna12345"] {
        core.member(id).await;
    }
    let list = |query: &'static str| core.call("GET", query, None, None);
    let ids = |answer: &Answer| {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let items = answer.json();
        let items = items.as_array().unwrap().iter();
        items.map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = list("/api/users").await;
    assert_eq!(ids(&all), ["Anna12345", "hana12345", "minsu1234"]);
    assert_eq!(all.json()[0], json!({"id": "Anna12345", "name": "김하나"}));
    let page = list("/api/users?query=%20&pageNo=2&pageSize=2").await;
    assert_eq!(ids(&page), ["minsu1234"]);
    for (header, value) in [
        ("x-pagination-page", "2"),
        ("x-pagination-page-size", "1"),
        ("x-pagination-page-limit", "2"),
        ("x-pagination-total-page", "2"),
        ("x-pagination-total-item", "3"),
    ] {
        assert_eq!(page.header(header), value, "{header}");
    }
    assert_eq!(ids(&list("/api/users?query=SU12").await), ["minsu1234"]);
    assert_eq!(ids(&list("/api/users?query=%ED%95%98%EB%82%98").await).len(), 3, "by name");
    for text in ["%25", "_", "'", "OR%201=1", "%00", "ha%00na", "x".repeat(500).as_str()] {
        let answer = core.call("GET", &format!("/api/users?query={text}"), None, None).await;
        assert_eq!(ids(&answer), Vec::<String>::new(), "{text} is text that nobody has");
    }
    for bad in ["pageNo=0", "pageNo=x", "pageSize=0", "pageSize=101", "pageNo=-1"] {
        let answer = core.call("GET", &format!("/api/users?{bad}"), None, None).await;
        refused(&answer, 422, "invalid", "page");
    }
}

async fn list_from(core: Arc<TestCore>, address: &'static str) -> Answer {
    let visitor = Subject::Visitor { pseudonym: format!("anon:{address}") };
    let request = Request::get("/api/users?query=hana")
        .header(IDENTITY_HEADER, core.identity(&visitor))
        .header("x-forwarded-for", address)
        .body(Body::empty());
    core.send(request.unwrap()).await
}

#[tokio::test]
async fn lists_that_one_client_floods_with_leave_room_for_others() {
    let core = Arc::new(TestCore::start().await);
    core.member("hana12345").await;
    let lists = &core.state.accounts.lists;
    let mut held = Vec::new();
    for _ in 0..CONCURRENT_LISTS {
        held.push(lists.acquire(&Requester::not_urgent("slow")).await.unwrap());
    }
    let flood: Vec<_> = (0..MAX_WAITING_PER_CLIENT + 72)
        .map(|_| tokio::spawn(list_from(Arc::clone(&core), "198.51.100.1")))
        .collect();
    let answered = || flood.iter().filter(|list| list.is_finished()).count();
    while answered() < 72 {
        tokio::task::yield_now().await;
    }
    let other = tokio::spawn(list_from(Arc::clone(&core), "203.0.113.9"));
    tokio::task::yield_now().await;
    let answer = core.call("GET", "/api/users/hana12345", None, None).await;
    assert_eq!(answer.status, StatusCode::OK, "other calls need no permit of lists");
    drop(held);
    assert_eq!(other.await.unwrap().status, StatusCode::OK);
    let answered = answered();
    let mut refused_lists = 0;
    for list in flood {
        let answer = list.await.unwrap();
        if answer.status != StatusCode::OK {
            refused(&answer, 503, "unavailable", "limit of concurrent requests");
            refused_lists += 1;
        }
    }
    assert_eq!(refused_lists, 72, "no more wait");
    assert!(answered < 72 + MAX_WAITING_PER_CLIENT / 2, "{answered}: it waited for the flood");
}
