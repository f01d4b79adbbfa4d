//! Text in the Unicode forms of other keyboards.

use serde_json::json;

use crate::world::{PASSWORD, World, form, ids};

/// 홍길동 as macOS and iOS send it: decomposed into letters.
const APART: &str = "\u{1112}\u{1169}\u{11BC}\u{1100}\u{1175}\u{11AF}\u{1103}\u{1169}\u{11BC}";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_one_name_on_every_keyboard() {
    let world = World::start().await;
    let account = |id: &str, name: &str| json!({"id": id, "password": PASSWORD, "name": name, "email": "x@example.com"});
    let signed_up = world.post("/api/auth/signup", account("traveller1", APART)).await.expect(201);
    assert_eq!(signed_up["name"], "홍길동");
    for (id, name) in [
        ("traveller2", "O'Brien"),
        ("traveller3", "Anne-Marie Élodie"),
        ("traveller4", "김 Chulsoo"),
        ("traveller5", "가나다라마바사아"),
        ("traveller6", "𠮷野"),
    ] {
        let answer = world.post("/api/auth/signup", account(id, name)).await.expect(201);
        assert_eq!(answer["name"], name);
    }
    for (query, found) in [
        ("홍길동", "traveller1"),
        (APART, "traveller1"),
        ("홍\u{200B}길동\u{3164}", "traveller1"),
        ("o'b", "traveller2"),
        ("MARIE É", "traveller3"),
        ("e\u{301}lodie", "traveller3"),
        ("𠮷", "traveller6"),
    ] {
        let members = world.get(&format!("/api/users?query={}", form(query))).await.expect(200);
        assert_eq!(ids(&members), [found], "{query:?}");
    }
    for none in ["\u{3164}", "1", "🏞"] {
        world.post("/api/auth/signup", account("traveller7", none)).await.expect_error(422);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invisible_review_is_invalid() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let spot = world.spots(1).await.remove(0);
    let path = format!("/api/tour-spots/{spot}/reviews");
    let body = |content: &str| json!({"userId": "traveller1", "content": content});
    for nothing in ["\u{3164}", "\u{2800}\u{200B}", "\u{202E}", "\u{0}\u{7}"] {
        world.post_as(&member, &path, body(nothing)).await.expect_error(422);
    }
    let written = "\u{1112}\u{1161}\u{11AB}옥\r\n👩\u{200D}🚀\t좋아요\u{0}";
    let review = world.post_as(&member, &path, body(written)).await.expect(201);
    assert_eq!(review["content"], "한옥\n👩\u{200D}🚀 좋아요");
    assert_eq!(world.get(&path).await.expect(200)[0]["content"], review["content"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_filters_go_by_the_names_that_the_older_client_sends() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let total =
        async |query: &str| world.get(&format!("/api/tour-spots?{query}")).await.paging()[4];
    for (name, old) in [("자연", "NATURE"), ("건축/조형", "architecture"), ("공연/행사", "CONCERT")]
    {
        let count = total(&format!("tags={}", form(name))).await;
        assert!(count > 0);
        assert_eq!(total(&format!("tags={old}")).await, count, "{old}");
        assert_eq!(total(&format!("tags={old},{}", form(name))).await, count, "{old}");
    }
    let palace = world.spot("경복궁").await;
    world.bookmark(&member, &palace).await;
    let kept = world.get_as(&member, "/api/tour-spots?customFilters=bookmark").await.expect(200);
    assert_eq!(ids(&kept), [palace]);
}
