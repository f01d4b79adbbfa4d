//! Anonymous callers, wrong secrets and malformed calls.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tourin_registry_api::{ClientError, RegistryClient};
use tourin_testbed::eventually;

use crate::world::*;

async fn outcome(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn registration() -> Value {
    json!({"address": "127.0.0.1:4001", "lease_ms": 3000, "metadata": {}})
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_secret_nothing_can_be_changed() {
    let registry = Running::start().await;
    registry.client().register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let before = registry.list().await;
    let http = reqwest::Client::new();
    let writes = [
        (Method::PUT, "/v1/instances/core/b"),
        (Method::POST, "/v1/instances/core/a/renew"),
        (Method::POST, "/v1/instances/core/a/drain"),
        (Method::DELETE, "/v1/instances/core/a"),
        (Method::PUT, "/v1/watchers/gateway-1/ack"),
        (Method::GET, "/v1/watch?watcher=gateway-1"),
    ];
    for (method, path) in writes {
        let request = || http.request(method.clone(), registry.url(path)).json(&registration());
        let wrong = format!("{SECRET}x");
        for request in [
            request(),
            request().bearer_auth(&wrong),
            request().bearer_auth(""),
            request().basic_auth("registry", Some(SECRET)),
            request().header("authorization", SECRET),
        ] {
            let (status, body) = outcome(request).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(body["error"], "unauthenticated");
        }
    }
    let http = tourin_chassis::http_client::client(None).unwrap();
    let wrong = RegistryClient::new(http, &registry.url(""), "another-secret-0123456789").unwrap();
    let refused = wrong.register(&instance("b", 4002), LEASE).await;
    assert_eq!(refused, Err(ClientError::Unauthorized));
    assert_eq!(registry.list().await, before, "reading is open, and nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_settings_are_refused_by_name() {
    let registry = Running::start().await;
    let http = reqwest::Client::new();
    let put = |path: &str, body: &Value| {
        http.put(registry.url(&format!("/v1/instances/{path}"))).bearer_auth(SECRET).json(body)
    };
    let with = |name: &str, value: Value| {
        let mut body = registration();
        body[name] = value;
        body
    };
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("n{n}"), json!("x"))).collect();
    let cases = [
        ("Core/a", registration()),
        ("co%20re/a", registration()),
        ("core/a%2Fb", registration()),
        ("core/-a", registration()),
        ("core/a", with("lease_ms", json!(0))),
        ("core/a", with("lease_ms", json!(u64::MAX))),
        ("core/a", with("lease_ms", json!("3000"))),
        ("core/a", with("address", json!("nowhere"))),
        ("core/a", with("address", json!("127.0.0.1:0"))),
        ("core/a", with("address", json!("0.0.0.0:4001"))),
        ("core/a", with("metadata", json!({"a b": "x"}))),
        ("core/a", with("metadata", json!({"a": "x\r\ny"}))),
        ("core/a", with("metadata", json!({"a": "x".repeat(513)}))),
        ("core/a", with("metadata", many.into())),
        ("core/a", with("status", json!("gone"))),
        ("core/a", with("colour", json!("blue"))),
    ];
    for (path, body) in cases {
        let (status, answer) = outcome(put(path, &body)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {body}");
        assert_eq!(answer["error"], "invalid");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{path} {body}");
    }
    let huge = with("metadata", json!({"a": "x".repeat(20_000)}));
    let too_large = (put("core/a", &huge), StatusCode::PAYLOAD_TOO_LARGE);
    let syntax = put("core/a", &json!({})).body("{");
    let get = |path: &str| http.get(registry.url(path)).bearer_auth(SECRET);
    let delete = |path: &str| http.delete(registry.url(path)).bearer_auth(SECRET);
    for (request, expected) in [
        too_large,
        (syntax, StatusCode::BAD_REQUEST),
        (get("/v1/watch?from=soon"), StatusCode::UNPROCESSABLE_ENTITY),
        (get("/v1/watch?watcher=a%20b"), StatusCode::UNPROCESSABLE_ENTITY),
        (delete("/v1/instances/core/a"), StatusCode::NOT_FOUND),
        (delete("/v1/instances/core/a?wait_ms=60000"), StatusCode::UNPROCESSABLE_ENTITY),
        (delete("/v1/instances"), StatusCode::METHOD_NOT_ALLOWED),
        (get("/v1/nothing"), StatusCode::NOT_FOUND),
    ] {
        let (status, body) = outcome(request).await;
        assert_eq!(status, expected, "{body}");
        assert!(body["error"].is_string() && body["message"].is_string(), "{body}");
    }
    assert!(registry.list().await.instances.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_watchers_are_bounded_in_number() {
    let registry = Running::start_with({
        let mut settings = settings();
        settings.max_instances = 1;
        settings.max_watchers = 2;
        settings.max_anonymous_watchers = 1;
        settings
    })
    .await;
    let client = registry.client();
    client.register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let refused = client.register(&instance("b", 4002), LEASE * 100).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 503, .. })), "{refused:?}");

    let http = reqwest::Client::new();
    let open = |query: &str| {
        http.get(registry.url(&format!("/v1/watch?{query}"))).bearer_auth(SECRET).send()
    };
    let open_as_stranger = || http.get(registry.url("/v1/watch")).send();
    let stranger = open_as_stranger().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::OK);
    assert_eq!(open_as_stranger().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let gateway = open("watcher=gateway-1").await.unwrap();
    assert_eq!(gateway.status(), StatusCode::OK, "anonymous watchers take no slot of the gateways");
    let follower = registry.follow();
    follower.sees(&["a"]).await;
    for query in ["watcher=gateway-2", ""] {
        let full = open(query).await.unwrap();
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE, "{query:?}");
        assert!(full.headers().contains_key("retry-after"));
    }
    // A watcher replaces its own lost connection.
    assert_eq!(open("watcher=gateway-1").await.unwrap().status(), StatusCode::OK);
    drop(stranger);
    eventually("the anonymous watcher's slot is free again", || async {
        open_as_stranger().await.unwrap().status() == StatusCode::OK
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_that_it_is_alive_and_ready() {
    let registry = Running::start().await;
    for path in ["/healthz", "/readyz"] {
        let status = reqwest::get(registry.url(path)).await.unwrap().status();
        assert_eq!(status, StatusCode::OK, "{path}");
    }
}
