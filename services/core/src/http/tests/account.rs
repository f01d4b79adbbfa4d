//! Signing up, the profile, the password, deletion.

use axum::body::Body;
use http::header::{CONTENT_TYPE, COOKIE};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tourin_shared_events::outbox::testing::recorded;

use super::sessions::{refresh_token, reissue};
use super::{answered, no_content, refused};
use crate::testing::{PASSWORD, TestCore, claims, session};

fn hana() -> Value {
    json!({"id": "hana12345", "password": PASSWORD, "name": "김하나", "email": "hana@example.com"})
}

fn with(field: &str, value: Value) -> Value {
    let mut body = hana();
    body[field] = value;
    body
}

async fn sign_up(core: &TestCore, body: Value) -> crate::testing::Answer {
    core.call("POST", "/api/auth/signup", None, Some(body)).await
}

#[tokio::test]
async fn signing_up_answers_the_account_without_its_password() {
    let core = TestCore::start().await;
    let answer = sign_up(&core, hana()).await;
    let account = json!({"id": "hana12345", "name": "김하나", "email": "hana@example.com"});
    answered(&answer, StatusCode::CREATED, &account);
    assert_eq!(answer.cookie("access_token"), None, "signing up is not logging in");
}

#[tokio::test]
async fn an_id_is_taken_whatever_its_case() {
    let core = TestCore::start().await;
    sign_up(&core, hana()).await;
    for id in ["hana12345", "HANA12345"] {
        refused(&sign_up(&core, with("id", json!(id))).await, 422, "invalid", "taken");
    }
}

#[tokio::test]
async fn an_invalid_account_is_reported_field_by_field() {
    let core = TestCore::start().await;
    for (field, value, says) in [
        ("id", "1hana2345", "`id` must be 8 to 17 letters and digits"),
        ("id", "hana123", "`id` must be 8 to 17"),
        ("id", "anonymous", "not \"anonymous\""),
        ("password", "nodigits!", "`password` must be 8 to 64 characters"),
        ("name", "a1", "`name` must be 1 to 24 characters: letters of any script"),
        ("name", "\u{3164}", "`name` must be"),
        ("email", "hana@localhost", "`email` must be an email address such as"),
    ] {
        refused(&sign_up(&core, with(field, json!(value))).await, 422, "invalid", says);
    }
    let all = json!({"id": "", "password": "", "name": "", "email": ""});
    let answer = sign_up(&core, all).await;
    for field in ["`id`", "`password`", "`name`", "`email`"] {
        refused(&answer, 422, "invalid", field);
    }
}

#[tokio::test]
async fn a_body_is_refused_by_what_is_wrong_with_it() {
    let core = TestCore::start().await;
    refused(
        &sign_up(&core, json!({"id": "hana12345"})).await,
        422,
        "invalid",
        "password is missing",
    );
    refused(&sign_up(&core, with("id", json!(7))).await, 422, "invalid", "id must be a string");
    let list = json!(["hana12345", PASSWORD, "김하나", "hana@example.com"]);
    for body in [list, json!([]), json!(PASSWORD), json!(7), Value::Null] {
        let answer = sign_up(&core, body).await;
        refused(&answer, 422, "invalid", "the body must be a JSON object");
    }
    let absent = core.call("POST", "/api/auth/signup", None, None).await;
    refused(&absent, 400, "malformed", "the body is empty: expected JSON");
    let untyped = Request::post("/api/auth/signup").body(Body::from(hana().to_string())).unwrap();
    let untyped = core.send(untyped).await;
    refused(&untyped, 415, "unsupported", "Content-Type: application/json");
    assert_eq!(untyped.header("accept"), "application/json");
    let broken = Request::post("/api/auth/signup")
        .header("content-type", "application/json")
        .body(Body::from("{\"id\": "))
        .unwrap();
    refused(&core.send(broken).await, 400, "malformed", "the body is not JSON: look at line 1");
    let big = with("name", json!("x".repeat(2 << 20)));
    refused(&sign_up(&core, big).await, 413, "too_large", "");
}

#[tokio::test]
async fn a_password_never_comes_back_whatever_is_wrong_with_it() {
    let core = TestCore::start().await;
    for password in [json!("hunter2"), json!(8_675_309), json!({"hunter2": 1}), json!(["hunter2"])]
    {
        let answer = sign_up(&core, with("password", password)).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(!answer.text.contains("hunter2") && !answer.text.contains("8675309"), "{answer:?}");
    }
}

#[tokio::test]
async fn me_is_the_account_of_an_open_session() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let me = core.call("GET", "/api/auth/me", Some(&hana), None).await;
    let account = json!({"id": "hana12345", "name": "김하나", "email": "hana@example.com"});
    answered(&me, StatusCode::OK, &account);
    assert_eq!(me.header("cache-control"), "private, no-store");
}

#[tokio::test]
async fn calls_that_need_a_session_refuse_anonymous_callers() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    let visitor = Subject::Visitor { pseudonym: "anon:mfrggzdf".to_owned() };
    let made_up = Subject::Member {
        id: "hana12345".to_owned(),
        session: uuid::Uuid::new_v4().to_string(),
        roles: vec![],
    };
    let passwords = json!({"oldPassword": PASSWORD, "newPassword": "new-breeze2!"});
    for (method, path, body) in [
        ("GET", "/api/auth/me", None),
        ("POST", "/api/auth/delete-account", None),
        ("POST", "/api/auth/update-profile", Some(json!({}))),
        ("POST", "/api/auth/update-password", Some(passwords)),
    ] {
        for stranger in [None, Some(&visitor), Some(&made_up)] {
            let answer = core.call(method, path, stranger, body.clone()).await;
            refused(&answer, 401, "unauthenticated", "");
        }
    }
}

#[tokio::test]
async fn a_profile_changes_the_given_fields() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let update = |body| core.call("POST", "/api/auth/update-profile", Some(&hana), Some(body));
    let named = json!({"id": "hana12345", "name": "Hana Kim", "email": "hana@example.com"});
    answered(&update(json!({"name": "Hana Kim"})).await, StatusCode::OK, &named);
    answered(&update(json!({"email": null})).await, StatusCode::OK, &named);
    let both = json!({"id": "hana12345", "name": "박하나", "email": "h.kim@example.org"});
    let change = json!({"name": "박하나", "email": "h.kim@example.org"});
    answered(&update(change).await, StatusCode::OK, &both);
    refused(&update(json!({"name": "-"})).await, 422, "invalid", "`name` must be");
    refused(&update(json!({"email": "x"})).await, 422, "invalid", "`email` must be");
    refused(&update(json!({"email": 1})).await, 422, "invalid", "");
}

#[tokio::test]
async fn a_new_password_replaces_the_old_and_ends_other_sessions() {
    let core = TestCore::start().await;
    let (_, here) = core.member("hana12345").await;
    let (_, there) = core.log_in("hana12345").await;
    let update = |old: &str, new: &str| {
        let body = json!({"oldPassword": old, "newPassword": new});
        core.call("POST", "/api/auth/update-password", Some(&here), Some(body))
    };
    refused(
        &update("wrong", "new-breeze2!").await,
        401,
        "unauthenticated",
        "`oldPassword` is wrong",
    );
    refused(&update(PASSWORD, "weak").await, 422, "invalid", "`newPassword` must be 8 to 64");
    refused(
        &update(PASSWORD, "P@ssw0rd123").await,
        422,
        "invalid",
        "`newPassword` is one of the most",
    );

    let changed = update(PASSWORD, "new-breeze2!").await;
    no_content(&changed);
    assert_eq!(changed.ended(), [session(&there)]);
    let me = |subject| core.call("GET", "/api/auth/me", Some(subject), None);
    assert_eq!(me(&here).await.status, StatusCode::OK);
    assert_eq!(me(&there).await.status, StatusCode::UNAUTHORIZED);

    let log_in = |password: &'static str| {
        let body = json!({"id": "hana12345", "password": password});
        core.call("POST", "/api/auth/login", None, Some(body))
    };
    assert_eq!(log_in(PASSWORD).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(log_in("new-breeze2!").await.status, StatusCode::OK);
}

#[tokio::test]
async fn guessing_the_old_password_is_slowed_down_like_logging_in() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let body = json!({"oldPassword": "wrong", "newPassword": "new-breeze2!"});
    let guess = || core.call("POST", "/api/auth/update-password", Some(&hana), Some(body.clone()));
    for _ in 0..10 {
        assert_eq!(guess().await.status, StatusCode::UNAUTHORIZED);
    }
    refused(&guess().await, 429, "rate_limited", "too many failed attempts");
}

#[tokio::test]
async fn a_deleted_account_leaves_nothing_but_the_fact() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let (_, there) = core.log_in("hana12345").await;
    let deleted = core.call("POST", "/api/auth/delete-account", Some(&hana), None).await;
    no_content(&deleted);
    assert_eq!(deleted.cookie("access_token").as_deref(), Some(""));
    let mut ended = deleted.ended();
    ended.sort();
    let mut sessions = [session(&hana), session(&there)];
    sessions.sort();
    assert_eq!(ended, sessions);

    let body = json!({"id": "hana12345", "password": PASSWORD});
    let log_in = core.call("POST", "/api/auth/login", None, Some(body)).await;
    refused(&log_in, 401, "unauthenticated", "the id or the password is wrong");
    let member = core.call("GET", "/api/users/hana12345", None, None).await;
    refused(&member, 404, "not_found", "no such member");
    let again = core.call("POST", "/api/auth/delete-account", Some(&hana), None).await;
    refused(&again, 401, "unauthenticated", "the session has ended");
    let events = recorded(&core.store.outbox()).await;
    assert_eq!(events.last().unwrap().1.routing_key, "user.delete");
}

#[tokio::test]
async fn the_commonest_passwords_open_no_account() {
    let core = TestCore::start().await;
    for (password, message) in
        [("Qwerty123!", "one of the most common"), (&*format!("a1!{}", "x".repeat(62)), "8 to 64")]
    {
        let account = json!({
            "id": "hana12345", "password": password, "name": "김하나", "email": "hana@example.com",
        });
        let answer = core.call("POST", "/api/auth/signup", None, Some(account)).await;
        refused(&answer, 422, "invalid", message);
        assert!(!answer.text.contains(password), "{answer:?}");
    }
    let longest = format!("a1!{}", "x".repeat(61));
    let account = json!({
        "id": "hana12345", "password": longest, "name": "김하나", "email": "hana@example.com",
    });
    let answer = core.call("POST", "/api/auth/signup", None, Some(account)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let all = json!({"id": "hana12345", "password": longest});
    let answer = core.call("POST", "/api/auth/login", None, Some(all)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let cut = json!({"id": "hana12345", "password": longest[..63]});
    let answer = core.call("POST", "/api/auth/login", None, Some(cut)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "every character counts");
}

/// A thief of the session knows no password. One that is sent must be right, whether it is required
/// or not.
#[tokio::test]
async fn a_password_that_is_sent_along_must_be_right() {
    for flags in [&[][..], &["--step-up"]] {
        let required = !flags.is_empty();
        let core = TestCore::with(flags).await;
        let (_, hana) = core.member("hana12345").await;
        let email = |password: Option<&str>| {
            let body = json!({"email": "thief@example.com", "password": password});
            core.call("POST", "/api/auth/update-profile", Some(&hana), Some(body))
        };
        let delete =
            |body: Option<Value>| core.call("POST", "/api/auth/delete-account", Some(&hana), body);
        refused(&email(Some("wrong")).await, 401, "unauthenticated", "`password` is wrong");
        refused(&email(Some("")).await, 401, "unauthenticated", "`password` is wrong");
        let wrong = delete(Some(json!({"password": "wrong"}))).await;
        refused(&wrong, 401, "unauthenticated", "`password` is wrong");
        refused(&delete(Some(json!({"password": 1}))).await, 422, "invalid", "");
        if required {
            refused(&email(None).await, 422, "invalid", "`password` is missing");
            for body in [None, Some(json!({})), Some(json!(null)), Some(json!({"password": null}))]
            {
                refused(&delete(body).await, 422, "invalid", "`password` is missing");
            }
        }
        let me = core.call("GET", "/api/auth/me", Some(&hana), None).await;
        assert_eq!(me.json()["email"], "hana@example.com", "nothing has changed");
        // What is not sensitive needs none.
        for body in [json!({"name": "Hana Kim"}), json!({"email": "hana@example.com"})] {
            let named =
                core.call("POST", "/api/auth/update-profile", Some(&hana), Some(body)).await;
            assert_eq!(named.status, StatusCode::OK, "{named:?}");
        }
        let changed = email(required.then_some(PASSWORD)).await;
        assert_eq!(changed.json()["email"], "thief@example.com", "{changed:?}");
        no_content(&delete(required.then(|| json!({"password": PASSWORD}))).await);
    }
}

#[tokio::test]
async fn guessing_the_password_of_a_stolen_session_is_slowed_down() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let body = json!({"password": "wrong"});
    let guess = || core.call("POST", "/api/auth/delete-account", Some(&hana), Some(body.clone()));
    for _ in 0..10 {
        assert_eq!(guess().await.status, StatusCode::UNAUTHORIZED);
    }
    refused(&guess().await, 429, "rate_limited", "too many failed attempts");
}

#[tokio::test]
async fn a_new_password_ends_the_refresh_token_of_this_session_too() {
    let core = TestCore::start().await;
    let (first, here) = core.member("hana12345").await;
    let stolen = refresh_token(&first);
    let change = |old: &str, new: &str, cookies: &str| {
        let request = Request::post("/api/auth/update-password")
            .header(IDENTITY_HEADER, core.identity(&here))
            .header(COOKIE, cookies)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(json!({"oldPassword": old, "newPassword": new}).to_string()));
        core.send(request.unwrap())
    };
    let changed = change(PASSWORD, "new-breeze2!", &format!("refresh_token={stolen}")).await;
    no_content(&changed);
    let kept = changed.cookie("refresh_token").unwrap();
    assert_eq!(claims(&changed.cookie("access_token").unwrap()).sid, session(&here));
    refused(&reissue(&core, &stolen).await, 401, "unauthenticated", "");
    // The stolen token, used now, does not end the member's session.
    assert_eq!(reissue(&core, &kept).await.status, StatusCode::OK);
    // A client without cookies gets no tokens; its session ends with its access token.
    let changed = change("new-breeze2!", "old-breeze3!", "theme=dark").await;
    no_content(&changed);
    assert_eq!(changed.cookie("access_token"), None);
    assert_eq!(core.call("GET", "/api/auth/me", Some(&here), None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_id_of_a_deleted_member_cannot_be_taken() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    no_content(&core.call("POST", "/api/auth/delete-account", Some(&hana), None).await);
    for id in ["hana12345", "Hana12345"] {
        let account = json!({
            "id": id, "password": PASSWORD, "name": "다른 이", "email": "other@example.com",
        });
        let answer = core.call("POST", "/api/auth/signup", None, Some(account)).await;
        refused(&answer, 422, "invalid", "the id is taken");
    }
}
