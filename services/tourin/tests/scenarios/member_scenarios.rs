//! Members as others see them.

use serde_json::json;

use crate::world::{World, ids};

#[tokio::test(flavor = "multi_thread")]
async fn members_are_listed_in_pages_with_id_and_name_only() {
    let world = World::start().await;
    for number in 1..=3 {
        world.member(&format!("traveller{number}")).await;
    }
    let answer = world.get("/api/users?pageNo=2&pageSize=2").await;
    assert_eq!(answer.paging(), [2, 1, 2, 2, 3]);
    assert_eq!(answer.expect(200), json!([{"id": "traveller3", "name": "Traveller"}]));

    let found = world.get("/api/users?query=ler2").await.expect(200);
    assert_eq!(ids(&found), ["traveller2"]);
    let wildcard = world.get("/api/users?query=%25").await.expect(200);
    assert!(ids(&wildcard).is_empty(), "a percent sign is a character like any other");
    assert_eq!(world.get("/api/users?query=%20").await.expect(200).as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_is_found_by_id() {
    let world = World::start().await;
    world.member("traveller1").await;
    let found = world.get("/api/users/traveller1").await.expect(200);
    assert_eq!(found, json!({"id": "traveller1", "name": "Traveller"}));
    world.get("/api/users/nobodyhere").await.expect_error(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_page_is_refused() {
    let world = World::start().await;
    for query in ["pageNo=0", "pageNo=-1", "pageNo=x", "pageSize=0", "pageSize=101", "pageSize=1.5"]
    {
        for path in ["/api/users", "/api/tour-spots", "/api/tour-spots/1/reviews"] {
            world.get(&format!("{path}?{query}")).await.expect_error(422);
        }
    }
    let beyond = world.get("/api/tour-spots?pageNo=18446744073709551615").await;
    assert!([200, 422].contains(&beyond.status.as_u16()), "{beyond:?}");
}
