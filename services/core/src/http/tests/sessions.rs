//! Logging in and out, renewing, the revocation log.

use std::time::Duration;

use axum::body::Body;
use chrono::TimeDelta;
use http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};
use tourin_chassis::session_cookies::{CookieNames, SESSION_COOKIES_HEADER, SessionCookies};

use super::{no_content, refused};
use crate::testing::{Answer, PASSWORD, TestCore, claims, session};

pub(super) async fn log_in(core: &TestCore, id: &str, password: &str) -> Answer {
    let body = json!({"id": id, "password": password});
    core.call("POST", "/api/auth/login", None, Some(body)).await
}

pub(super) async fn reissue(core: &TestCore, token: &str) -> Answer {
    let body = json!({"refreshToken": token});
    core.call("POST", "/api/auth/reissue", None, Some(body)).await
}

async fn reissue_by_cookie(core: &TestCore, cookie: &str) -> Answer {
    let request = Request::post("/api/auth/reissue")
        .header(COOKIE, format!("theme=dark; refresh_token={cookie}"))
        .body(Body::empty());
    core.send(request.unwrap()).await
}

/// A stale or malformed cookie of the same name must not cost a member the session.
#[tokio::test]
async fn a_session_is_renewed_beside_any_other_cookie() {
    let core = TestCore::start().await;
    let mut token = refresh_token(&core.member("hana12345").await.0);
    let other = refresh_token(&core.member("minsu1234").await.0);
    let gone = refresh_token(&reissue(&core, &other).await);
    for cookies in ["ad=광고; refresh_token=TOKEN", "refresh_token=stale; refresh_token=TOKEN"] {
        let cookies = cookies.replace("TOKEN", &token).into_bytes();
        let request = Request::post("/api/auth/reissue").header(COOKIE, cookies);
        let answer = core.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        token = answer.cookie("refresh_token").unwrap();
    }
    // A reused token ends its own session only.
    core.clock.advance(TimeDelta::minutes(5));
    let cookies = format!("{other}; refresh_token={token}");
    let answer = reissue_by_cookie(&core, &cookies).await;
    assert_eq!((answer.status, answer.ended().len()), (StatusCode::OK, 1), "{answer:?}");
    assert_eq!(reissue(&core, &gone).await.status, StatusCode::UNAUTHORIZED);
}

pub(super) fn refresh_token(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.cookie("refresh_token").unwrap()
}

#[tokio::test]
async fn logging_in_answers_the_account_and_its_tokens_and_sets_the_cookies() {
    let core = TestCore::start().await;
    let (answer, _) = core.member("hana12345").await;
    let body = answer.json();
    assert_eq!(
        (&body["id"], &body["name"], &body["email"], &body["tokenType"], &body["expiresIn"]),
        (
            &json!("hana12345"),
            &json!("김하나"),
            &json!("hana@example.com"),
            &json!("Bearer"),
            &json!(600)
        )
    );
    assert_eq!(body.as_object().unwrap().len(), 7, "{body}");
    assert_eq!(answer.header("cache-control"), "private, no-store");
    let cookies: Vec<_> =
        answer.headers.get_all(SET_COOKIE).iter().map(|c| c.to_str().unwrap()).collect();
    let access = body["accessToken"].as_str().unwrap();
    let refresh = body["refreshToken"].as_str().unwrap();
    assert_eq!(
        cookies[..2],
        [
            format!("access_token={access}; Path=/; Max-Age=2400; HttpOnly; SameSite=Lax"),
            format!(
                "refresh_token={refresh}; Path=/api/auth; Max-Age=1209600; HttpOnly; SameSite=Strict"
            ),
        ]
    );

    let device = answer.cookie("device").unwrap();
    assert_eq!(
        cookies[2..],
        [format!(
            "device={device}; Path=/api/auth/login; Max-Age=15552000; HttpOnly; SameSite=Strict"
        )]
    );

    let claims = claims(access);
    assert_eq!(
        (claims.sub.as_str(), claims.iat, claims.nbf),
        ("hana12345", 1_800_000_000, 1_800_000_000)
    );
    assert_eq!(claims.exp, 1_800_000_600);
    assert_eq!(claims.roles, ["member"]);
    assert!(
        uuid::Uuid::parse_str(&claims.jti).is_ok() && uuid::Uuid::parse_str(&claims.sid).is_ok()
    );
}

#[tokio::test]
async fn a_wrong_id_and_a_wrong_password_are_refused_alike() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    let wrong_password = log_in(&core, "hana12345", "wrong").await;
    for answer in [
        log_in(&core, "nobody1234", PASSWORD).await,
        log_in(&core, "x", PASSWORD).await,
        log_in(&core, "HANA12345", PASSWORD).await,
        log_in(&core, "hana12345", "").await,
    ] {
        refused(&answer, 401, "unauthenticated", "the id or the password is wrong");
        // Only the trace id differs.
        assert_eq!(answer.json()["message"], wrong_password.json()["message"]);
        assert_eq!(answer.text.len(), wrong_password.text.len());
        assert_eq!(answer.headers.get(SET_COOKIE), None);
    }
    let shapeless =
        core.call("POST", "/api/auth/login", None, Some(json!({"id": "hana12345"}))).await;
    refused(&shapeless, 422, "invalid", "password");
}

#[tokio::test]
async fn one_session_too_many_ends_the_oldest() {
    let core = TestCore::with(&["--sessions-per-member", "2"]).await;
    let (_, first) = core.member("hana12345").await;
    core.clock.advance(TimeDelta::seconds(1));
    core.log_in("hana12345").await;
    core.clock.advance(TimeDelta::seconds(1));
    let (third, _) = core.log_in("hana12345").await;
    assert_eq!(third.ended(), [session(&first)]);
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_for_a_new_pair_of_the_same_session() {
    let core = TestCore::start().await;
    let (first, hana) = core.member("hana12345").await;
    core.clock.advance(TimeDelta::minutes(9));
    let second = reissue(&core, &refresh_token(&first)).await;
    assert_eq!(second.status, StatusCode::OK, "{second:?}");
    let body = second.json();
    assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
    assert_eq!((&body["tokenType"], &body["expiresIn"]), (&json!("Bearer"), &json!(600)));
    let access = body["accessToken"].as_str().unwrap();
    assert_eq!(claims(access).sid, session(&hana));
    assert_eq!(claims(access).iat, 1_800_000_540);
    assert_eq!(second.cookie("access_token").as_deref(), Some(access));
    assert_eq!(second.cookie("refresh_token").as_deref(), body["refreshToken"].as_str());
    assert_ne!(refresh_token(&second), refresh_token(&first));
    // By cookie; the body has precedence.
    let third = reissue_by_cookie(&core, &refresh_token(&second)).await;
    assert_eq!(third.status, StatusCode::OK);
    assert_eq!(third.json(), json!({"tokenType": "Bearer", "expiresIn": 600}), "cookies alone");
    let both = Request::post("/api/auth/reissue")
        .header(COOKIE, "refresh_token=outdated")
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(json!({"refreshToken": refresh_token(&third)}).to_string()));
    let both = core.send(both.unwrap()).await;
    assert_eq!(both.status, StatusCode::OK);
    assert_eq!(both.json(), third.json(), "a call with cookies gets no token in the body");
}

/// A script in the page cannot read the browser's cookies. It must not get their tokens by calling
/// either.
#[tokio::test]
async fn a_call_that_brought_cookies_is_never_answered_with_tokens_in_the_body() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    for (names, sent, expected) in [
        (CookieNames::Plain, false, 7),
        (CookieNames::Plain, true, 5),
        (CookieNames::HostPrefixed, false, 7),
        (CookieNames::HostPrefixed, true, 5),
    ] {
        let cookies = SessionCookies { names, sent };
        let log_in = Request::post("/api/auth/login")
            .header(SESSION_COOKIES_HEADER, cookies.to_header())
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(json!({"id": "hana12345", "password": PASSWORD}).to_string()));
        let answer = core.send(log_in.unwrap()).await;
        assert_eq!(answer.json().as_object().unwrap().len(), expected, "{cookies:?}: {answer:?}");
        let refresh = answer.cookie(names.refresh()).unwrap();
        let access = answer.cookie(names.access()).unwrap();
        for token in [&refresh, &access] {
            assert_eq!(answer.text.contains(token.as_str()), !sent, "{cookies:?}");
        }
        // And so when the tokens are renewed, by a cookie of this name only.
        for (name, status) in [(names.refresh(), 200), ("x-refresh_token", 401)] {
            let renew = Request::post("/api/auth/reissue")
                .header(SESSION_COOKIES_HEADER, SessionCookies { names, sent: true }.to_header())
                .header(COOKIE, format!("{name}={refresh}"))
                .body(Body::empty());
            let answer = core.send(renew.unwrap()).await;
            assert_eq!(answer.status.as_u16(), status, "{name}: {answer:?}");
            if status == 200 {
                let renewed = answer.cookie(names.refresh()).unwrap();
                assert!(!answer.text.contains(&renewed), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn two_tabs_that_renew_at_once_get_the_same_successor() {
    let core = TestCore::start().await;
    let (first, _) = core.member("hana12345").await;
    let token = refresh_token(&first);
    let tabs = futures::future::join_all((0..4).map(|_| reissue_by_cookie(&core, &token))).await;
    let successors: Vec<_> = tabs.iter().map(refresh_token).collect();
    assert!(successors.iter().all(|next| *next == successors[0]), "{successors:?}");
    // The slow tab repeats the token; then the successor works in every tab.
    core.clock.advance(TimeDelta::seconds(9));
    assert_eq!(refresh_token(&reissue(&core, &token).await), successors[0]);
    assert_eq!(reissue(&core, &successors[0]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_used_token_that_comes_back_late_ends_the_session() {
    let core = TestCore::start().await;
    let (first, hana) = core.member("hana12345").await;
    let second = reissue(&core, &refresh_token(&first)).await;
    core.clock.advance(TimeDelta::seconds(10));
    let stolen = reissue_by_cookie(&core, &refresh_token(&first)).await;
    refused(
        &stolen,
        401,
        "unauthenticated",
        "the refresh token is unknown, used, expired or revoked",
    );
    assert_eq!(stolen.ended(), [session(&hana)]);
    assert_eq!(stolen.cookie("access_token").as_deref(), Some(""));
    assert_eq!(stolen.cookie("refresh_token").as_deref(), Some(""));
    // The newest token is refused as well.
    let newest = reissue(&core, &refresh_token(&second)).await;
    refused(&newest, 401, "unauthenticated", "");
    let me = core.call("GET", "/api/auth/me", Some(&hana), None).await;
    refused(&me, 401, "unauthenticated", "the session has ended");
}

#[tokio::test]
async fn useless_refresh_tokens_are_refused_and_the_cookies_removed() {
    let core = TestCore::start().await;
    let (first, _) = core.member("hana12345").await;
    let unknown = "A".repeat(43);
    for body in [
        Some(json!({"refreshToken": unknown})),
        Some(json!({"refreshToken": "x"})),
        // Another site's page can make a browser send these.
        Some(json!({"refreshToken": ""})),
        Some(json!({"refreshToken": null})),
        Some(json!({})),
        Some(Value::Null),
        None,
    ] {
        let answer = core.call("POST", "/api/auth/reissue", None, body).await;
        refused(&answer, 401, "unauthenticated", "log in again");
        // No cookie was sent, so none is cleared.
        assert_eq!(answer.cookie("refresh_token"), None, "{answer:?}");
    }
    for cookie in [unknown.as_str(), "x"] {
        let answer = reissue_by_cookie(&core, cookie).await;
        refused(&answer, 401, "unauthenticated", "log in again");
        assert_eq!(answer.cookie("refresh_token").as_deref(), Some(""), "{answer:?}");
    }
    let shapeless = json!({"refreshToken": 7});
    let answer = core.call("POST", "/api/auth/reissue", None, Some(shapeless)).await;
    refused(&answer, 422, "invalid", "must be a string");
    let list = core.call("POST", "/api/auth/reissue", None, Some(json!(["x"]))).await;
    refused(&list, 422, "invalid", "must be a JSON object");
    let broken = Request::post("/api/auth/reissue")
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from("{"));
    refused(&core.send(broken.unwrap()).await, 400, "malformed", "");
    let form = Request::post("/api/auth/reissue").body(Body::from("refreshToken=x"));
    refused(&core.send(form.unwrap()).await, 415, "unsupported", "application/json");

    core.clock.advance(TimeDelta::days(14));
    refused(&reissue(&core, &refresh_token(&first)).await, 401, "unauthenticated", "expired");
}

#[tokio::test]
async fn logging_out_ends_this_session_or_all() {
    let core = TestCore::start().await;
    let (first, here) = core.member("hana12345").await;
    let (_, there) = core.log_in("hana12345").await;
    let (_, elsewhere) = core.log_in("hana12345").await;
    let out = core.call("POST", "/api/auth/logout", Some(&here), None).await;
    no_content(&out);
    assert_eq!(out.ended(), [session(&here)]);
    assert_eq!(out.cookie("access_token").as_deref(), Some(""));
    assert_eq!(out.cookie("refresh_token").as_deref(), Some(""));
    refused(&reissue(&core, &refresh_token(&first)).await, 401, "unauthenticated", "");
    let me = core.call("GET", "/api/auth/me", Some(&there), None).await;
    assert_eq!(me.status, StatusCode::OK, "{me:?}");

    let odd = core.call("POST", "/api/auth/logout?everywhere=maybe", Some(&there), None).await;
    refused(&odd, 422, "invalid", "everywhere must be true or false");
    let all = core.call("POST", "/api/auth/logout?everywhere=true", Some(&there), None).await;
    no_content(&all);
    let mut ended = all.ended();
    ended.sort();
    let mut expected = [session(&there), session(&elsewhere)];
    expected.sort();
    assert_eq!(ended, expected);
}

/// Logs out with a refresh cookie, with or without a member's identity.
async fn log_out(core: &TestCore, path: &str, caller: Option<&Subject>, refresh: &str) -> Answer {
    let mut request = Request::post(path).header(COOKIE, format!("refresh_token={refresh}"));
    if let Some(caller) = caller {
        request = request.header(IDENTITY_HEADER, core.identity(caller));
    }
    core.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn logging_out_ends_what_is_named_and_always_clears_the_cookies() {
    let core = TestCore::start().await;
    let (first, here) = core.member("hana12345").await;
    let (second, there) = core.log_in("hana12345").await;
    let visitor = Subject::Visitor { pseudonym: "anon:mfrggzdf".to_owned() };
    let unknown = "A".repeat(43);
    for (caller, refresh) in [
        (None, "rubbish"),
        (None, ""),
        (Some(&visitor), unknown.as_str()),
        (Some(&visitor), "%00="),
    ] {
        let out = log_out(&core, "/api/auth/logout?everywhere=true", caller, refresh).await;
        no_content(&out);
        assert_eq!(out.cookie("access_token").as_deref(), Some(""), "{refresh}");
        assert_eq!(out.cookie("refresh_token").as_deref(), Some(""), "{refresh}");
        assert_eq!(out.ended(), Vec::<String>::new(), "{refresh}");
    }
    // By the refresh cookie alone, used or not; the second time there is no session.
    let used = refresh_token(&first);
    reissue(&core, &used).await;
    let out = log_out(&core, "/api/auth/logout", Some(&visitor), &used).await;
    no_content(&out);
    assert_eq!(out.ended(), [session(&here)]);
    let again = log_out(&core, "/api/auth/logout", Some(&visitor), &used).await;
    no_content(&again);
    assert_eq!(again.ended(), Vec::<String>::new());
    let me = core.call("GET", "/api/auth/me", Some(&there), None).await;
    assert_eq!(me.status, StatusCode::OK, "{me:?}");
    // An ended session does not end others, and both named sessions end.
    let path = "/api/auth/logout?everywhere=true";
    let over = core.call("POST", path, Some(&here), None).await;
    assert_eq!(over.ended(), [session(&here)]);
    let (third, _) = core.log_in("hana12345").await;
    let out = log_out(&core, "/api/auth/logout", Some(&there), &refresh_token(&third)).await;
    let third = claims(third.json()["accessToken"].as_str().unwrap()).sid;
    assert_eq!(out.ended(), [session(&there), third]);
    refused(&reissue(&core, &refresh_token(&second)).await, 401, "unauthenticated", "");
}

#[tokio::test]
async fn the_refresh_cookie_alone_ends_every_session_of_the_member() {
    let core = TestCore::start().await;
    let (first, here) = core.member("hana12345").await;
    let (_, there) = core.log_in("hana12345").await;
    let (_, minsu) = core.member("minsu1234").await;
    let path = "/api/auth/logout?everywhere=true";
    let out = log_out(&core, path, None, &refresh_token(&first)).await;
    no_content(&out);
    let mut ended = out.ended();
    ended.sort();
    let mut expected = [session(&here), session(&there)];
    expected.sort();
    assert_eq!(ended, expected);
    let me = core.call("GET", "/api/auth/me", Some(&minsu), None).await;
    assert_eq!(me.status, StatusCode::OK, "{me:?}");
}

#[tokio::test]
async fn logging_out_during_an_outage_of_the_store_fails() {
    let core = TestCore::start().await;
    let (first, hana) = core.member("hana12345").await;
    core.store.close().await;
    for caller in [None, Some(&hana)] {
        let out = log_out(&core, "/api/auth/logout", caller, &refresh_token(&first)).await;
        refused(&out, 503, "unavailable", "the store cannot be reached");
    }
}

#[tokio::test]
async fn gateways_follow_the_revocations() {
    let core = TestCore::start().await;
    let (_, hana) = core.member("hana12345").await;
    let stranger = core.call("GET", "/internal/revocations", Some(&hana), None).await;
    refused(&stranger, 403, "forbidden", "");

    let empty = core.call("GET", "/internal/revocations", None, None).await.json();
    assert_eq!((&empty["next"], &empty["entries"]), (&json!(0), &json!([])));
    let path = "/internal/revocations?after=0&wait_ms=20000";
    let (followed, _) = tokio::join!(core.call("GET", path, None, None), async {
        core.call("POST", "/api/auth/logout", Some(&hana), None).await
    });
    let page = followed.json();
    assert_eq!(page["logId"], empty["logId"]);
    let entry = &page["entries"][0];
    assert_eq!(entry["session"], json!(session(&hana)));
    assert_eq!(entry["seq"], page["next"]);
    // Ten minutes of the access token, ten seconds in which a repeated rotation issues another one, and
    // one minute for clock differences.
    assert_eq!(entry["until"], "2027-01-15T08:11:10.000000Z");
}

#[tokio::test]
async fn a_waiting_follower_is_released_at_shutdown() {
    let core = TestCore::start().await;
    let path = "/internal/revocations?after=0&wait_ms=20000";
    let waiting = core.call("GET", path, None, None);
    let stopping = async {
        tokio::task::yield_now().await;
        core.stopping.begin();
    };
    let both = futures::future::join(waiting, stopping);
    let (answer, ()) = tokio::time::timeout(Duration::from_secs(12), both).await.unwrap();
    assert_eq!(answer.json()["entries"], json!([]));
}

#[tokio::test]
async fn a_gateway_may_log_a_canary_and_nothing_that_could_be_a_session() {
    let core = TestCore::start().await;
    let path = "/internal/revocation-canaries";
    let append = async |id: &str| core.call("POST", path, None, Some(json!({"session": id}))).await;
    let canary = "0198c2f1-7a5b-8c3d-9e4f-0123456789ab";
    no_content(&append(canary).await);
    let (_, hana) = core.member("hana12345").await;
    for id in [session(&hana).as_str(), "", "canary", "0198c2f1-7a5b-7c3d-9e4f-0123456789ab"] {
        refused(&append(id).await, 422, "invalid", "version 8");
    }
    let body = json!({"session": canary});
    refused(&core.call("POST", path, Some(&hana), Some(body)).await, 403, "forbidden", "");
    let log = core.call("GET", "/internal/revocations", None, None).await.json();
    let logged: Vec<_> = log["entries"].as_array().unwrap().iter().map(|e| &e["session"]).collect();
    assert_eq!(logged, [canary]);
}
