//! Members as others see them.

use http::StatusCode;
use serde_json::json;

use super::{answered, refused};
use crate::testing::TestCore;

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
    let ids = |answer: &crate::testing::Answer| {
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
