//! Callers without a certificate, peers that call for others, join tokens, and malformed calls.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tourin_chassis::peer::Peer;
use tourin_registry_api::wire::{
    CertificateRequest, JoinTokenRequest, LeaveRequest, OverrideRequest, codes,
};
use tourin_registry_api::{ClientError, Instance, JoinError, WorkloadKey};
use tourin_testbed::eventually;

use crate::world::*;

const MINUTE: Duration = Duration::from_secs(60);
const REFUSED: &str = "tourin_peer_refused_total";

pub async fn outcome(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn registration() -> Value {
    json!({"address": "127.0.0.1:4001", "lease_ms": 3000, "metadata": {}})
}

/// Every call of the registry but the one for certificates.
fn calls() -> [(Method, &'static str, Value); 15] {
    [
        (Method::GET, "/v1/instances", Value::Null),
        (Method::PUT, "/v1/instances/core/b", registration()),
        (Method::POST, "/v1/instances/core/a/renew", Value::Null),
        (Method::POST, "/v1/instances/core/a/drain", Value::Null),
        (Method::DELETE, "/v1/instances/core/a", Value::Null),
        (
            Method::POST,
            "/v1/instances/core/a/leave",
            json!({"served": 1, "errors": 0, "drain_ms": 1}),
        ),
        (Method::GET, "/v1/leases", Value::Null),
        (Method::PUT, "/v1/overrides/core/a", json!({"out_of_service": true})),
        (Method::DELETE, "/v1/protection/core", Value::Null),
        (Method::GET, "/v1/departures", Value::Null),
        (Method::GET, "/v1/watch", Value::Null),
        (Method::PUT, "/v1/watchers/gateway-1/ack", json!({"version": 1})),
        (Method::POST, "/v1/join-tokens", json!({"service": "core", "ttl_s": 60})),
        (Method::POST, "/v1/root/rotation", Value::Null),
        (Method::PUT, "/internal/log-filter", json!("trace")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_nothing_can_be_read_or_changed() {
    let registry = Running::start().await;
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let before = registry.list().await;
    let (stranger, named) = registry.stranger();
    let token = registry.authority().join_token("core", None, MINUTE).unwrap();
    let mut refusals = 0;
    for (method, path, body) in calls() {
        // A join token is for certificates alone.
        let bearers = [None, Some(token.as_str())];
        let bases = [(&stranger, named.clone()), (&plain(), format!("http://{}", registry.addr))];
        for (client, base) in bases {
            for bearer in bearers {
                let request = client.request(method.clone(), format!("{base}{path}")).json(&body);
                let request = match bearer {
                    Some(token) => request.bearer_auth(token),
                    None => request,
                };
                let (status, said) = outcome(request).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{method} {base}{path}");
                assert_eq!(said["error"], "forbidden", "{method} {base}{path}");
                refusals += 1;
            }
        }
    }
    assert_eq!(registry.list().await, before, "nothing has changed");
    assert_eq!(registry.counted(REFUSED, "peer=\"none\"").await, refusals);

    let asked = stranger.post(format!("{named}/v1/certificates"));
    let (status, said) = outcome(asked.json(&certificate_request("a"))).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(said["message"].as_str().is_some_and(|text| text.contains("join token")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_does_not_go_on_after_its_handshake_is_cut() {
    let registry = Running::start().await;
    let mut silent = registry.connection_of_a_stranger().await;
    // A peer could stay for a minute.
    let read = timeout(TIMEOUT, silent.read(&mut [0])).await.expect("the connection ends");
    assert!(!matches!(read, Ok(1)), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_from_this_machine_reads_the_probes() {
    let registry = Running::start().await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        let response = plain().get(format!("http://{}{path}", registry.addr)).send().await;
        assert_eq!(response.unwrap().status(), StatusCode::OK, "{path}");
        // Peers that are no operators have no reason to.
        let peer = registry.http("core", "a").get(registry.url(path)).send().await.unwrap();
        assert_eq!(peer.status(), StatusCode::FORBIDDEN, "{path}");
        let operator = registry.http("operator", "o").get(registry.url(path)).send().await.unwrap();
        assert_eq!(operator.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(registry.counted(REFUSED, "peer=\"core\"").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_speaks_for_itself_alone() {
    let registry = Running::start().await;
    let own = registry.client("a");
    own.register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let before = registry.list().await;
    for (service, id) in
        [("core", "b"), ("recommendation", "a"), ("gateway", "a"), ("operator", "a")]
    {
        let other = registry.client_as(service, id);
        let refusals = [
            other.register(&instance("a", 4001), LEASE * 100).await.map(|_| ()),
            other.renew("core", "a").await,
            other.drain("core", "a", Duration::ZERO).await.map(|_| ()),
            other.deregister("core", "a", Duration::ZERO).await.map(|_| ()),
            other.leave("core", "a", &LeaveRequest::default()).await.map(|_| ()),
            other.register(&instance("new", 4002), LEASE * 100).await.map(|_| ()),
        ];
        for refused in refusals {
            let Err(ClientError::Refused { status: 403, message, .. }) = refused else {
                panic!("{service}/{id}: {refused:?}");
            };
            assert!(message.contains(&format!("{service}/{id}")), "{message}");
        }
    }
    assert_eq!(registry.list().await, before);
    own.renew("core", "a").await.unwrap();
}

pub fn certificate_request(id: &str) -> CertificateRequest {
    let csr = WorkloadKey::random().signing_request().unwrap();
    CertificateRequest { csr, instance: id.to_owned() }
}

/// What the registry answers when somebody without a certificate asks for one by `token`.
async fn redeemed(registry: &Running, token: &str) -> (StatusCode, String) {
    let (stranger, named) = registry.stranger();
    let asked = stranger.post(format!("{named}/v1/certificates")).bearer_auth(token);
    let (status, said) = outcome(asked.json(&certificate_request("a"))).await;
    (status, said["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_join_token_gives_a_certificate_whose_holder_may_register() {
    let registry = Running::start().await;
    let operator = registry.client_as("operator", "o");
    let request = JoinTokenRequest { service: "core".to_owned(), uses: None, ttl_s: 60 };
    let token = operator.join_token(&request).await.unwrap();
    // Without a limit of uses, any number may join.
    for (id, port) in [("a", 4001), ("b", 4002)] {
        let joined = registry.join(("core", id), &token).await.unwrap();
        joined.registry.register(&instance(id, port), LEASE * 100).await.unwrap();
        let peer = Peer::of_certificate(&joined.workload.chain()[0]).unwrap();
        assert_eq!(peer.id, format!("spiffe://tourin/core/{id}"));
    }
    let listed = registry.list().await.instances;
    assert_eq!(listed, [instance("a", 4001), instance("b", 4002)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_that_is_not_good_is_refused_with_its_reason() {
    let registry = Running::start().await;
    let other_mesh = Running::start_with(|settings| settings.mesh = "other".to_owned()).await;
    let authority = registry.authority();
    let good = authority.join_token("core", None, MINUTE).unwrap();
    let expired = authority.join_token("core", None, Duration::ZERO).unwrap();
    let foreign = other_mesh.authority().join_token("core", None, MINUTE).unwrap();
    for token in [&format!("{good}AAAA"), &expired, &foreign, "rubbish", "a.b.c"] {
        let (status, message) = redeemed(&registry, token).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{token}");
        assert!(message.contains("not valid, or has expired"), "{message}");
        assert!(message.contains("tourin join-token"), "{message}");
    }
    for token in [&format!("{good}AAAA"), &expired] {
        let refused = registry.join(("core", "a"), token).await;
        assert!(matches!(refused, Err(JoinError::Refused(_))), "{:?}", refused.err());
    }
    // Its holder would get a certificate of the service that it names.
    let other = authority.join_token("recommendation", None, MINUTE).unwrap();
    let refused = registry.join(("core", "a"), &other).await.err().unwrap().to_string();
    assert!(refused.contains("for recommendation, and this is core"), "{refused}");
    let refused = registry.join(("core", "a"), "rubbish").await.err().unwrap().to_string();
    assert!(refused.contains("expected a join token"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_a_join_token_are_counted_also_across_a_restart() {
    let registry = Running::start().await;
    let token = registry.authority().join_token("core", Some(2), MINUTE).unwrap();
    let once = registry.authority().join_token("core", Some(1), MINUTE).unwrap();
    registry.join(("core", "a"), &token).await.unwrap();
    registry.join(("core", "a"), &once).await.unwrap();
    let refused = registry.join(("core", "b"), &once).await;
    assert!(
        matches!(&refused, Err(JoinError::Refused(message)) if message.contains("used up")),
        "{:?}",
        refused.err()
    );

    let place = registry.place();
    registry.stop().await;
    let registry = Running::start_at(place, |_| {}).await;
    let (status, message) = redeemed(&registry, &once).await;
    assert_eq!((status, message.contains("used up")), (StatusCode::UNAUTHORIZED, true));
    let second = registry.join(("core", "b"), &token).await.unwrap();
    second.registry.register(&instance("b", 4002), LEASE * 100).await.unwrap();
    let third = registry.join(("core", "c"), &token).await;
    assert!(matches!(third, Err(JoinError::Refused(_))), "{:?}", third.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_decide_is_for_operators() {
    let registry = Running::start().await;
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let out = OverrideRequest { out_of_service: Some(true), ..OverrideRequest::default() };
    for service in ["core", "recommendation", "gateway", "registry"] {
        let peer = registry.client_as(service, "a");
        let refusals = [
            peer.leases(None).await.map(|_| ()),
            peer.scale_report(None).await.map(|_| ()),
            peer.set_override(("core", "a"), &out, Duration::ZERO).await.map(|_| ()),
            peer.end_protection("core").await,
        ];
        for refused in refusals {
            assert!(
                matches!(refused, Err(ClientError::Refused { status: 403, .. })),
                "{service}: {refused:?}"
            );
        }
    }
    assert_eq!(registry.list().await.instances, [instance("a", 4001)]);
    let operator = registry.client_as("operator", "o");
    let heavy = OverrideRequest { weight: Some(1_001), ..OverrideRequest::default() };
    let refused = operator.set_override(("core", "a"), &heavy, Duration::ZERO).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 422, .. })), "{refused:?}");
    let refused = operator.set_override(("core", "b"), &out, Duration::ZERO).await;
    assert_eq!(refused, Err(ClientError::Unknown));
    assert_eq!(operator.end_protection("core").await, Err(ClientError::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens_and_a_new_root_are_for_operators() {
    let registry = Running::start().await;
    let request =
        |service: &str, uses, ttl_s| JoinTokenRequest { service: service.to_owned(), uses, ttl_s };
    for service in ["core", "recommendation", "gateway", "registry"] {
        let peer = registry.client_as(service, "a");
        let refusals = [
            peer.join_token(&request("operator", None, 60)).await.map(|_| ()),
            peer.rotate_root().await,
        ];
        for refused in refusals {
            assert!(
                matches!(refused, Err(ClientError::Refused { status: 403, .. })),
                "{refused:?}"
            );
        }
        let label = format!("peer=\"{service}\"");
        assert_eq!(registry.counted(REFUSED, &label).await, 2, "{service}");
    }
    let operator = registry.client_as("operator", "o");
    let year = 365 * 24 * 60 * 60;
    for invalid in [
        request("core", None, 0),
        request("core", None, year + 1),
        request("core", Some(0), 60),
        request("Core", None, 60),
    ] {
        let refused = operator.join_token(&invalid).await;
        assert!(matches!(refused, Err(ClientError::Refused { status: 422, .. })), "{invalid:?}");
    }
    operator.join_token(&request("core", Some(1), year)).await.unwrap();
    operator.rotate_root().await.unwrap();
    let again = operator.rotate_root().await;
    assert!(matches!(again, Err(ClientError::Conflict(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_keeps_the_name_of_the_peer() {
    let registry = Running::start().await;
    let client = registry.client("a");
    let issued = client.certificate(&certificate_request("b")).await.unwrap();
    let first = pem::parse(issued.chain).unwrap();
    let peer = Peer::of_certificate(first.contents()).unwrap();
    assert_eq!(peer.id, "spiffe://tourin/core/a");

    let rubbish = CertificateRequest { csr: "rubbish".to_owned(), instance: "a".to_owned() };
    let refused = client.certificate(&rubbish).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 422, .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_settings_are_refused_by_name() {
    let registry = Running::start().await;
    let http = registry.http("core", "a");
    let put = |path: &str, body: &Value| {
        http.put(registry.url(&format!("/v1/instances/{path}"))).json(body)
    };
    let with = |name: &str, value: Value| {
        let mut body = registration();
        body[name] = value;
        body
    };
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("n{n}"), json!("x"))).collect();
    for body in [
        with("lease_ms", json!(0)),
        with("lease_ms", json!(u64::MAX)),
        with("lease_ms", json!("3000")),
        with("address", json!("nowhere")),
        with("address", json!("127.0.0.1:0")),
        with("address", json!("0.0.0.0:4001")),
        with("metadata", json!({"a b": "x"})),
        with("metadata", json!({"a": "x\r\ny"})),
        with("metadata", json!({"a": "x".repeat(513)})),
        with("metadata", many.into()),
        with("status", json!("gone")),
        with("status", json!("out_of_service")),
        with("metadata", json!({"weight": "heavy"})),
        with("colour", json!("blue")),
    ] {
        let (status, answer) = outcome(put("core/a", &body)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(answer["error"], "invalid");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
    }
    let huge = with("metadata", json!({"a": "x".repeat(20_000)}));
    let syntax = put("core/a", &json!({})).body("{");
    let get = |path: &str| http.get(registry.url(path));
    let delete = |path: &str| http.delete(registry.url(path));
    for (request, expected) in [
        (put("core/a", &huge), StatusCode::PAYLOAD_TOO_LARGE),
        (syntax, StatusCode::BAD_REQUEST),
        // No certificate has such a name.
        (put("Core/a", &registration()), StatusCode::FORBIDDEN),
        (put("core/a%2Fb", &registration()), StatusCode::FORBIDDEN),
        (get("/v1/watch?from=soon"), StatusCode::UNPROCESSABLE_ENTITY),
        (get("/v1/watch?watcher=a%20b"), StatusCode::UNPROCESSABLE_ENTITY),
        (delete("/v1/instances/core/a"), StatusCode::NOT_FOUND),
        (delete("/v1/instances/core/a?wait_ms=60000"), StatusCode::UNPROCESSABLE_ENTITY),
        (delete("/v1/instances"), StatusCode::METHOD_NOT_ALLOWED),
        (get("/v1/instances/nothing"), StatusCode::NOT_FOUND),
        // A path that is in no row of the table of callers is for nobody.
        (get("/v1/nothing"), StatusCode::FORBIDDEN),
    ] {
        let (status, body) = outcome(request).await;
        assert_eq!(status, expected, "{body}");
        assert!(body["error"].is_string() && body["message"].is_string(), "{body}");
    }
    assert!(registry.list().await.instances.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_watchers_are_bounded_in_number() {
    let registry = Running::start_with(|settings| {
        settings.max_instances = 2;
        settings.max_instances_per_service = 1;
        settings.max_watchers = 2;
        settings.max_watches_per_peer = 1;
    })
    .await;
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let refused = registry.client("b").register(&instance("b", 4002), LEASE * 100).await;
    assert!(matches!(refused, Err(ClientError::Conflict(_))), "of one service: {refused:?}");
    let as_service = |service: &str| {
        let client = registry.client_as(service, "b");
        let instance = Instance::new(service, "b", ([127, 0, 0, 1], 4003).into());
        async move { client.register(&instance, LEASE * 100).await }
    };
    as_service("recommendation").await.unwrap();
    let Err(ClientError::Refused { status: 503, code, .. }) = as_service("gateway").await else {
        panic!("the registry is full");
    };
    assert_eq!(code, codes::REGISTRY_FULL);

    let open = |query: &str| {
        let name = query.strip_prefix("watcher=").unwrap_or("gateway-0");
        let http = registry.http("gateway", name);
        http.get(registry.url(&format!("/v1/watch?{query}"))).send()
    };
    let other =
        registry.http("gateway", "gateway-3").get(registry.url("/v1/watch?watcher=gateway-1"));
    assert_eq!(other.send().await.unwrap().status(), StatusCode::FORBIDDEN, "another's name");
    let namesake = registry.http("recommendation", "gateway-1");
    let namesake = namesake.get(registry.url("/v1/watch?watcher=gateway-1")).send().await.unwrap();
    assert_eq!(namesake.status(), StatusCode::FORBIDDEN, "a name that is not its service's");
    let gateway = open("watcher=gateway-1").await.unwrap();
    assert_eq!(gateway.status(), StatusCode::OK);
    let unnamed = open("").await.unwrap();
    assert_eq!(unnamed.status(), StatusCode::OK);
    let (status, said) =
        outcome(registry.http("gateway", "gateway-1").get(registry.url("/v1/watch"))).await;
    assert_eq!((status, &said["error"]), (StatusCode::CONFLICT, &json!(codes::TOO_MANY_WATCHES)));
    for query in ["watcher=gateway-2", ""] {
        let http = registry.http("gateway", "gateway-2");
        let full = http.get(registry.url(&format!("/v1/watch?{query}"))).send().await.unwrap();
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE, "{query:?}");
        assert!(full.headers().contains_key("retry-after"));
    }
    // A watcher replaces its own lost connection.
    let again = open("watcher=gateway-1").await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    drop(unnamed);
    eventually("the slot of a watcher that has left is free again", async || {
        open("watcher=gateway-2").await.unwrap().status() == StatusCode::OK
    })
    .await;
}
