//! Log-in, refresh, log-out, and the public keys.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Member, PASSWORD, Response, World};

async fn reissue(world: &World, refresh: &str) -> Response {
    world.post("/api/auth/reissue", json!({"refreshToken": refresh})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_in_gives_tokens_and_cookies() {
    let world = World::start().await;
    world.member("traveller1").await;
    let answer =
        world.post("/api/auth/login", json!({"id": "traveller1", "password": PASSWORD})).await;
    let cookies = answer.cookies();
    for name in ["access_token=", "refresh_token="] {
        let cookie = cookies.iter().find(|cookie| cookie.starts_with(name)).expect("the cookie");
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite="), "{cookie}");
    }
    let body = answer.expect(200);
    assert_eq!(body["id"], "traveller1");
    assert_eq!(body["tokenType"], "Bearer");
    assert_eq!(body["expiresIn"], 600);
    let claims = claims(body["accessToken"].as_str().unwrap());
    for claim in ["iss", "aud", "sub", "sid", "iat", "exp", "jti", "roles"] {
        assert!(!claims[claim].is_null(), "{claim} in {claims}");
    }
    assert_eq!(claims["sub"], "traveller1");
}

fn claims(token: &str) -> Value {
    use base64::Engine;
    let payload = token.split('.').nth(1).expect("three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_log_in_does_not_say_what_was_wrong() {
    let world = World::start().await;
    world.member("traveller1").await;
    let login = |id: &str, password: &str| {
        world.post("/api/auth/login", json!({"id": id, "password": password}))
    };
    let password = login("traveller1", "Wrong1!pass").await.expect_error(401);
    let id = login("nobodyhere", PASSWORD).await.expect_error(401);
    assert_eq!(password, id);
    world.post("/api/auth/login", json!({"id": "traveller1"})).await.expect_error(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_a_password_is_slowed_down_for_that_account_only() {
    let world = World::start().await;
    world.member("traveller1").await;
    world.member("traveller2").await;
    let mut limited = None;
    for _ in 0..40 {
        let guess = json!({"id": "traveller1", "password": "Wrong1!pass"});
        let answer = world.post("/api/auth/login", guess).await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
        answer.expect_error(401);
    }
    let limited = limited.expect("guessing is limited at some point");
    assert!(limited.header("retry-after").parse::<u64>().unwrap() >= 1);
    limited.expect_error(429);
    world.login("traveller2", PASSWORD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_as_good_as_a_header() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let with_cookie = |method, path| world.request(method, path).header("cookie", member.cookie());
    let me = world.send(with_cookie(Method::GET, "/api/auth/me")).await.expect(200);
    assert_eq!(me["id"], "traveller1");

    let write =
        || with_cookie(Method::POST, "/api/auth/update-profile").json(&json!({"name": "김철수"}));
    world.send(write().header("origin", "https://evil.example")).await.expect_error(403);
    world.send(write().header("sec-fetch-site", "cross-site")).await.expect_error(403);
    world.send(write().header("origin", &world.url)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_used_once_and_then_rotated() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let body = reissue(&world, &member.refresh).await.expect(200);
    let next = Member::from_tokens("traveller1", &body);
    assert_ne!(next.refresh, member.refresh);
    world.get_as(&next, "/api/auth/me").await.expect(200);
    reissue(&world, "no-such-token").await.expect_error(401);
    world.post("/api/auth/reissue", json!({})).await.expect_error(401);

    // The token may be in the cookie or in the body.
    let cookie = format!("refresh_token={}", next.refresh);
    let by_cookie = world.request(Method::POST, "/api/auth/reissue").header("cookie", cookie);
    let answer = world.send(by_cookie).await;
    assert!(answer.cookies().iter().any(|cookie| cookie.starts_with("refresh_token=")));
    let body = answer.expect(200);
    assert!(body.get("accessToken").is_none() && body.get("refreshToken").is_none(), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_that_refresh_at_once_both_stay_logged_in() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let (one, other) =
        tokio::join!(reissue(&world, &member.refresh), reissue(&world, &member.refresh));
    let one = Member::from_tokens("traveller1", &one.expect(200));
    let other = Member::from_tokens("traveller1", &other.expect(200));
    assert_eq!(one.refresh, other.refresh, "both get the one successor");
    world.get_as(&one, "/api/auth/me").await.expect(200);
    world.get_as(&other, "/api/auth/me").await.expect(200);
    reissue(&world, &one.refresh).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_used_again_after_its_successor_ends_the_session() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let second =
        Member::from_tokens("traveller1", &reissue(&world, &member.refresh).await.expect(200));
    let third =
        Member::from_tokens("traveller1", &reissue(&world, &second.refresh).await.expect(200));
    // The first token's successor has been used, so no honest tab still holds the first one.
    reissue(&world, &member.refresh).await.expect_error(401);
    reissue(&world, &third.refresh).await.expect_error(401);
    world.get_as(&third, "/api/auth/me").await.expect_error(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_this_session_at_once_and_no_other() {
    let world = World::start().await;
    let here = world.member("traveller1").await;
    let elsewhere = world.login("traveller1", PASSWORD).await;
    let answer = world.post_as(&here, "/api/auth/logout", json!({})).await;
    assert!(answer.headers.get("x-tourin-session-ended").is_none(), "an internal header");
    answer.expect(204);
    world.get_as(&here, "/api/auth/me").await.expect_error(401);
    reissue(&world, &here.refresh).await.expect_error(401);
    world.get_as(&elsewhere, "/api/auth/me").await.expect(200);
    // Again, and without a token.
    world.post_as(&here, "/api/auth/logout", json!({})).await.expect(204);
    world.post("/api/auth/logout", json!({})).await.expect(204);
    world.get_as(&elsewhere, "/api/auth/me").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_works_by_whatever_is_left_and_ends_what_that_names() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let log_out = async |path: &str, cookies: &str| {
        let request = world.request(Method::POST, path).header("cookie", cookies.to_owned());
        let answer = world.send(request).await;
        let cookies = answer.cookies();
        for removed in ["access_token=;", "refresh_token=;"] {
            assert!(cookies.iter().any(|cookie| cookie.starts_with(removed)), "{cookies:?}");
        }
        answer.expect(204);
    };
    for rubbish in ["access_token=rubbish", "refresh_token=rubbish", "access_token=; a=b"] {
        log_out("/api/auth/logout?everywhere=true", rubbish).await;
    }
    let forged = format!("access_token={}x", member.access);
    log_out("/api/auth/logout?everywhere=true", &forged).await;
    world.get_as(&member, "/api/auth/me").await.expect(200);

    // The refresh cookie alone, or beside rubbish, ends its session.
    log_out("/api/auth/logout", &format!("refresh_token={}", member.refresh)).await;
    world.get_as(&member, "/api/auth/me").await.expect_error(401);
    let here = world.login("traveller1", PASSWORD).await;
    let elsewhere = world.login("traveller1", PASSWORD).await;
    let left = format!("access_token=rubbish; refresh_token={}", here.refresh);
    log_out("/api/auth/logout", &left).await;
    world.get_as(&here, "/api/auth/me").await.expect_error(401);
    reissue(&world, &here.refresh).await.expect_error(401);
    world.get_as(&elsewhere, "/api/auth/me").await.expect(200);
    let last = world.login("traveller1", PASSWORD).await;
    log_out("/api/auth/logout?everywhere=true", &format!("refresh_token={}", last.refresh)).await;
    for ended in [&elsewhere, &last] {
        world.get_as(ended, "/api/auth/me").await.expect_error(401);
    }

    // Another site's page can end no session: neither by the browser's cookies, nor by a response that
    // removes them.
    for cookies in ["", "refresh_token=rubbish"] {
        let request = world.request(Method::POST, "/api/auth/logout").header("cookie", cookies);
        let answer = world.send(request.header("sec-fetch-site", "cross-site")).await;
        assert_eq!(answer.cookies(), Vec::<String>::new());
        answer.expect_error(403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_everywhere_ends_every_session() {
    let world = World::start().await;
    let here = world.member("traveller1").await;
    let elsewhere = world.login("traveller1", PASSWORD).await;
    world.post_as(&here, "/api/auth/logout?everywhere=true", json!({})).await.expect(204);
    for session in [&here, &elsewhere] {
        world.get_as(session, "/api/auth/me").await.expect_error(401);
        reissue(&world, &session.refresh).await.expect_error(401);
    }
    world.login("traveller1", PASSWORD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_verified_with_the_published_keys() {
    let world = World::start().await;
    let member = world.member("traveller1").await;
    let keys = world.get("/.well-known/jwks.json").await.expect(200);
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys).unwrap();
    let header = jsonwebtoken::decode_header(&member.access).unwrap();
    let key = keys.find(&header.kid.expect("a kid")).expect("the key is published");
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_audience(&["tourin"]);
    let decoding = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
    let token = jsonwebtoken::decode::<Value>(&member.access, &decoding, &validation).unwrap();
    assert_eq!(token.claims["sub"], "traveller1");
}
