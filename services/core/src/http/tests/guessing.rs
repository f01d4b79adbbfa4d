//! Guessing passwords, and logging in while others guess.

use axum::body::Body;
use http::header::{CONTENT_TYPE, COOKIE};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tourin_chassis::identity::{IDENTITY_HEADER, Subject};

use super::sessions::log_in;
use super::{no_content, refused};
use crate::testing::{Answer, PASSWORD, TestCore};

#[tokio::test]
async fn guessing_a_password_is_slowed_down_before_it_costs_a_hash() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    core.member("minsu1234").await;
    for _ in 0..10 {
        assert_eq!(log_in(&core, "hana12345", "wrong").await.status, StatusCode::UNAUTHORIZED);
    }
    let answer = log_in(&core, "hana12345", PASSWORD).await;
    refused(&answer, 429, "rate_limited", "too many failed attempts");
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=6).contains(&seconds), "{answer:?}");
    assert_eq!(log_in(&core, "minsu1234", PASSWORD).await.status, StatusCode::OK);
    // An unknown id is treated like a known one.
    for _ in 0..10 {
        assert_eq!(log_in(&core, "unknown1234", "wrong").await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(log_in(&core, "unknown1234", "x").await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn guesses_lock_out_their_own_network_only() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    let wrong = json!({"id": "hana12345", "password": "wrong"});
    let right = json!({"id": "hana12345", "password": PASSWORD});
    // Another browser name is not another network.
    for n in 0..10 {
        let answer = core.log_in_from("198.51.100.1", &format!("browser {n}"), &wrong).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    for n in 10..50 {
        let answer = core.log_in_from("198.51.100.1", &format!("browser {n}"), &right).await;
        refused(&answer, 429, "rate_limited", "too many failed attempts");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    let answer = core.log_in_from("203.0.113.9", "browser", &right).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let (_, hana) = core.log_in("hana12345").await;
    let body = json!({"oldPassword": PASSWORD, "newPassword": "new-breeze2!"});
    no_content(&core.call("POST", "/api/auth/update-password", Some(&hana), Some(body)).await);
}

#[tokio::test]
async fn guessing_from_many_networks_is_bounded_for_the_account() {
    let flags = ["--login-account-burst", "15", "--login-account-refill-ms", "3600000"];
    let core = TestCore::with(&flags).await;
    core.member("hana12345").await;
    let wrong = json!({"id": "hana12345", "password": "wrong"});
    for n in 0..15 {
        let answer = core.log_in_from(&format!("198.51.100.{n}"), "", &wrong).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "attempt {n}");
    }
    let answer = core.log_in_from("203.0.113.9", "", &wrong).await;
    refused(&answer, 429, "rate_limited", "too many failed attempts");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 3_000, "{answer:?}");
}

/// Tries to log in from a device that has the cookie.
async fn log_in_by_device(core: &TestCore, address: &str, device: &str, body: &Value) -> Answer {
    let visitor = Subject::Visitor { pseudonym: format!("anon:{address}") };
    let request = Request::post("/api/auth/login")
        .header(IDENTITY_HEADER, core.identity(&visitor))
        .header("x-forwarded-for", address)
        .header(COOKIE, format!("theme=dark; device={device}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()));
    core.send(request.unwrap()).await
}

#[tokio::test]
async fn strangers_who_guess_lock_out_strangers_and_not_the_member() {
    let flags = ["--login-account-burst", "15", "--login-account-refill-ms", "3600000"];
    let core = TestCore::with(&flags).await;
    let (first, _) = core.member("hana12345").await;
    let device = first.cookie("device").unwrap();
    let (of_another, _) = core.member("minsu1234").await;
    let of_another = of_another.cookie("device").unwrap();
    let wrong = json!({"id": "hana12345", "password": "wrong"});
    let right = json!({"id": "hana12345", "password": PASSWORD});
    assert_eq!(core.log_in_from("203.0.113.7", "", &right).await.status, StatusCode::OK);
    for n in 0..15 {
        let answer = core.log_in_from(&format!("198.51.100.{n}"), "", &wrong).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "attempt {n}");
    }
    let stranger = core.log_in_from("198.51.100.99", "", &right).await;
    assert_eq!(stranger.status, StatusCode::TOO_MANY_REQUESTS, "a stranger, right or wrong");
    for device in ["", "A", &of_another] {
        let stranger = log_in_by_device(&core, "198.51.100.99", device, &right).await;
        assert_eq!(stranger.status, StatusCode::TOO_MANY_REQUESTS, "{device:?}");
    }

    let known = core.log_in_from("203.0.113.7", "", &right).await;
    assert_eq!(known.status, StatusCode::OK, "from a network of the member");
    let travelling = log_in_by_device(&core, "192.0.2.1", &device, &right).await;
    assert_eq!(travelling.status, StatusCode::OK, "from a device of the member");
    assert_eq!(travelling.cookie("device"), None, "it is known already");
    // A stolen device is no way to guess faster.
    for _ in 0..10 {
        let guess = log_in_by_device(&core, "192.0.2.1", &device, &wrong).await;
        assert_eq!(guess.status, StatusCode::UNAUTHORIZED);
    }
    let guess = log_in_by_device(&core, "192.0.2.2", &device, &wrong).await;
    assert_eq!(guess.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn one_password_on_many_accounts_is_slowed_down() {
    let core = TestCore::with(&["--login-network-burst", "20"]).await;
    core.member("hana12345").await;
    let guess = |n| json!({"id": format!("member{n:03}"), "password": "password1!"});
    for n in 0..20 {
        let answer = core.log_in_from("198.51.100.1", "", &guess(n)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "attempt {n}");
    }
    let answer = core.log_in_from("198.51.100.1", "", &guess(20)).await;
    refused(&answer, 429, "rate_limited", "too many failed attempts");
    let answer = core.log_in_from("198.51.100.2", "", &guess(20)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "another network");
}

#[tokio::test]
async fn logging_in_often_is_not_guessing() {
    let core = TestCore::start().await;
    core.member("hana12345").await;
    for _ in 0..30 {
        assert_eq!(log_in(&core, "hana12345", PASSWORD).await.status, StatusCode::OK);
    }
}
