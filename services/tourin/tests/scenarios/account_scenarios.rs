//! Sign-up, profile, password, deletion.

use serde_json::json;

use crate::world::{PASSWORD, World};

fn newcomer(id: &str) -> serde_json::Value {
    json!({"id": id, "password": PASSWORD, "name": "홍길동", "email": "hong@example.com"})
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_up_answers_the_member_and_never_the_password() {
    let world = World::start().await;
    let answer = world.post("/api/auth/signup", newcomer("newcomer1")).await;
    assert!(!answer.text.contains(PASSWORD));
    let body = answer.expect(201);
    assert_eq!(body, json!({"id": "newcomer1", "name": "홍길동", "email": "hong@example.com"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_up_is_refused_with_what_was_expected() {
    let world = World::start().await;
    world.post("/api/auth/signup", newcomer("newcomer1")).await.expect(201);
    let taken = world.post("/api/auth/signup", newcomer("newcomer1")).await.expect_error(422);
    assert!(taken.contains("taken"), "{taken}");

    let wrong = [
        ("id", json!("short")),
        ("id", json!("9startsdigit")),
        ("id", json!("waytoolongforanidentifier")),
        ("id", json!("anonymous")),
        ("password", json!("Sh0rt!")),
        ("password", json!("nodigits!!")),
        ("password", json!("12345678!")),
        ("password", json!("NoSpecial123")),
        ("password", json!("Way2long!".repeat(8))),
        ("name", json!("·")),
        ("name", json!("홍".repeat(25))),
        ("name", json!("R2D2")),
        ("email", json!("not-an-address")),
        ("email", json!(7)),
    ];
    for (field, value) in wrong {
        let mut body = newcomer("newcomer2");
        body[field] = value.clone();
        let message = world.post("/api/auth/signup", body).await.expect_error(422);
        assert!(!message.contains("Way2long"), "a password is never echoed: {message}");
    }
    let mut incomplete = newcomer("newcomer2");
    incomplete.as_object_mut().unwrap().remove("email");
    world.post("/api/auth/signup", incomplete).await.expect_error(422);

    let not_json = world
        .request(reqwest::Method::POST, "/api/auth/signup")
        .header("content-type", "application/json")
        .body("{");
    world.send(not_json).await.expect_error(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_reads_and_changes_the_profile() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let me = world.get_as(&member, "/api/auth/me").await.expect(200);
    assert_eq!(
        me,
        json!({"id": "traveller1", "name": "Traveller", "email": "traveller1@example.com"})
    );

    let changed = world
        .post_as(&member, "/api/auth/update-profile", json!({"name": "김철수"}))
        .await
        .expect(200);
    assert_eq!(changed["name"], "김철수");
    assert_eq!(changed["email"], "traveller1@example.com");
    assert_eq!(world.get_as(&member, "/api/auth/me").await.expect(200), changed);

    world
        .post_as(&member, "/api/auth/update-profile", json!({"email": "nope"}))
        .await
        .expect_error(422);
    world.post("/api/auth/update-profile", json!({"name": "김철수"})).await.expect_error(401);
    world.get("/api/auth/me").await.expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_replaces_the_old_and_ends_the_other_sessions() {
    let world = World::start().await;
    let here = world.member("traveller1").await;
    let elsewhere = world.login("traveller1", PASSWORD).await;
    let path = "/api/auth/update-password";

    let wrong = json!({"oldPassword": "Wrong1!pass", "newPassword": "Fresh1!pass"});
    world.post_as(&here, path, wrong).await.expect_error(401);
    let weak = json!({"oldPassword": PASSWORD, "newPassword": "weak"});
    world.post_as(&here, path, weak).await.expect_error(422);
    world.get_as(&elsewhere, "/api/auth/me").await.expect(200);

    let right = json!({"oldPassword": PASSWORD, "newPassword": "Fresh1!pass"});
    world.post_as(&here, path, right).await.expect(204);
    world.get_as(&here, "/api/auth/me").await.expect(200);
    world.get_as(&elsewhere, "/api/auth/me").await.expect_error(401);
    world
        .post("/api/auth/login", json!({"id": "traveller1", "password": PASSWORD}))
        .await
        .expect_error(401);
    world.login("traveller1", "Fresh1!pass").await;
    world.post(path, json!({"oldPassword": "x", "newPassword": "y"})).await.expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_takes_what_was_the_members_along() {
    let world = World::start().await;
    let leaver = world.member("leaving1").await;
    let reader = world.member("staying1").await;
    let spots = world.spots(2).await;
    world.bookmark(&leaver, &spots[0]).await;
    let reviews = format!("/api/tour-spots/{}/reviews", spots[0]);
    let mine = json!({"userId": "leaving1", "content": "좋아요"});
    world.post_as(&leaver, &reviews, mine).await.expect(201);
    let theirs = json!({"userId": "staying1", "content": "또 올게요"});
    let kept = world.post_as(&reader, &reviews, theirs).await.expect(201);
    let like = format!("/api/tour-spot-reviews/{}/likes", kept["id"].as_str().unwrap());
    world.put_as(&leaver, &like, json!({"userId": "leaving1", "liked": true})).await.expect(200);

    world.post("/api/auth/delete-account", json!({})).await.expect_error(401);
    world.post_as(&leaver, "/api/auth/delete-account", json!({})).await.expect(204);

    world.get_as(&leaver, "/api/auth/me").await.expect_error(401);
    world.get("/api/users/leaving1").await.expect_error(404);
    world
        .post("/api/auth/login", json!({"id": "leaving1", "password": PASSWORD}))
        .await
        .expect_error(401);
    let left = world.get(&reviews).await.expect(200);
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(left[0]["userId"], "staying1");
    assert_eq!(left[0]["likeCount"], 0);
}
