//! The gateway's own promises: ids, limits, access rules.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::Method;
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_a_request_id() {
    let world = World::start().await;
    let answer = world.get("/api/tour-spots").await;
    assert!(!answer.header("x-request-id").is_empty());
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-tourin")));
    let given = world.request(Method::GET, "/api/tour-spots").header("x-request-id", "mine-123");
    assert_eq!(world.send(given).await.header("x-request-id"), "mine-123");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_identity_is_taken_off() {
    let world = World::start().await;
    world.member("traveller1").await;
    for (name, value) in [
        ("x-tourin-identity", "eyJhbGciOiJIUzI1NiJ9.e30.x"),
        ("x-user-id", "traveller1"),
        ("authorization", "Bearer not.a.token"),
    ] {
        let forged = world.request(Method::GET, "/api/auth/me").header(name, value);
        world.send(forged).await.expect_error(401);
        let public = world.request(Method::GET, "/api/tour-spots").header(name, value);
        world.send(public).await.expect(200);
    }
}

/// Sends raw bytes, which a client library would correct.
fn raw(world: &World, request: &str) -> String {
    let address = world.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::world::TIMEOUT)).unwrap();
    stream.write_all(request.replace("HOST", address).as_bytes()).unwrap();
    let mut answer = Vec::new();
    // The gateway may reset the connection after its response.
    let _closed = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_internal_is_reached_from_outside() {
    let world = World::start().await;
    for path in [
        "/internal/events?after=0",
        "/internal/revocations?after=0",
        "/api/../internal/events",
        "/api/%2e%2e/internal/events",
        "//internal/events",
        "/api/tour-spots/%2e%2e/%2e%2e/internal/events",
        "/api/tour-spots/..%2f..%2finternal/events",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n");
        let answer = tokio::task::block_in_place(|| raw(&world, &request));
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        assert!(["400", "404"].contains(&status.as_str()), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_is_refused() {
    let world = World::start().await;
    let request = "POST /api/auth/login HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\n\
                   Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n";
    let answer = tokio::task::block_in_place(|| raw(&world, request));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_requests_are_refused_with_the_error_body() {
    let world = World::start().await;
    let big = json!({"id": "x".repeat(2 << 20), "password": "y"});
    world.post("/api/auth/login", big).await.expect_error(413);
    let long = world.get(&format!("/api/tour-spots?query={}", "a".repeat(20_000))).await;
    assert!([414, 431].contains(&long.status.as_u16()), "{long:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_served_as_one_openapi_document() {
    let world = World::start().await;
    let document = world.description().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let calls = [
        ("/api/auth/signup", "post"),
        ("/api/auth/login", "post"),
        ("/api/auth/reissue", "post"),
        ("/api/auth/logout", "post"),
        ("/api/auth/me", "get"),
        ("/api/auth/delete-account", "post"),
        ("/api/auth/update-profile", "post"),
        ("/api/auth/update-password", "post"),
        ("/.well-known/jwks.json", "get"),
        ("/api/users", "get"),
        ("/api/users/{userId}", "get"),
        ("/api/users/{userId}/bookmarks", "get"),
        ("/api/users/{userId}/bookmarks", "post"),
        ("/api/users/{userId}/bookmarks/{tourSpotId}", "get"),
        ("/api/users/{userId}/bookmarks/{tourSpotId}", "delete"),
        ("/api/users/{userId}/tour-spot-reviews/likes", "get"),
        ("/api/tour-spots", "get"),
        ("/api/tour-spots/map", "get"),
        ("/api/tour-spots/{id}", "get"),
        ("/api/tour-spots/{id}/reviews", "get"),
        ("/api/tour-spots/{id}/reviews", "post"),
        ("/api/tour-spots/{id}/similar", "get"),
        ("/api/tour-spot-reviews/{id}", "delete"),
        ("/api/tour-spot-reviews/{id}/likes", "put"),
        ("/api/recommendations/trend", "get"),
        ("/api/recommendations/personalized", "get"),
    ];
    for (path, method) in calls {
        assert!(document["paths"][path][method].is_object(), "{method} {path} is not described");
    }
    let internal = document["paths"].as_object().unwrap().keys().find(|p| p.contains("internal"));
    assert_eq!(internal, None);
}
