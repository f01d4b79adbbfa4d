//! The response cache.

use tourin_gateway::Settings;
use tourin_testbed::eventually;

use crate::harness::{Mesh, Response, Service, TestGateway};

const ROUTES: &str = r#"
[[route]]
path = "/api/auth/me"
service = "core"
methods = { GET = "session" }

[[route]]
path = "/api/tour-spots/{id}"
service = "core"
methods = { GET = "public", POST = "public" }
[route.cache]
tags = ["spot:{id}"]
max_body_bytes = 200_000

[[route]]
path = "/api/shared/{id}"
service = "core"
methods = { GET = "public" }
[route.cache]
shared = true
"#;

async fn caching(adjust: impl FnOnce(&mut Settings)) -> (Mesh, Service, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let gateway = mesh.gateway_with(ROUTES, adjust).await;
    (mesh, core, gateway)
}

fn status(response: &Response) -> &str {
    response.header("cache-status").expect("it says how the cache was used")
}

const HIT: &str = "tourin; hit";
const MISS: &str = "tourin; fwd=uri-miss";

#[tokio::test]
async fn a_response_is_served_again_to_those_it_is_for() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    let path = "/api/tour-spots/1?cacheable&b=2";
    let first = gateway.get(path).await;
    assert_eq!((first.status, status(&first)), (200, MISS));
    let again = gateway.get(path).await;
    assert_eq!((status(&again), core.calls()), (HIT, 1));
    assert_eq!(again.body, first.body);
    assert!(again.header("age").is_some() && again.header("x-tourin-internal").is_none());
    assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    let head = gateway.call("HEAD", path, &[]).await;
    assert_eq!((head.status, status(&head), core.calls()), (200, HIT, 1));
    // Another query, path or method is another resource.
    for other in ["/api/tour-spots/1?cacheable", "/api/tour-spots/2?cacheable&b=2"] {
        assert_eq!(status(&gateway.get(other).await), MISS, "{other}");
    }
    let written = gateway.call("POST", path, &[]).await;
    assert_eq!((status(&written), core.calls()), ("tourin; fwd=bypass", 4));
    let hits = r#"tourin_gateway_cache_requests_total{route="/api/tour-spots/{id}",outcome="hit"}"#;
    eventually("both are counted", || async { gateway.metric(hits).await == 2.0 }).await;
    eventually("the cache tells its size", || async {
        gateway.metric("tourin_gateway_cache_bytes").await > 0.0
    })
    .await;
}

#[tokio::test]
async fn hosts_and_schemes_have_their_own_responses() {
    let (_mesh, core, gateway) =
        caching(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let path = "/api/tour-spots/1?cacheable";
    let ask = |host: &'static str, scheme: &'static str| {
        let headers =
            [("host", host), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", scheme)];
        let gateway = &gateway;
        async move { gateway.call("GET", path, &headers).await }
    };
    let sides = [("a.example", "https"), ("b.example", "https"), ("a.example", "http")];
    for (host, scheme) in sides {
        assert_eq!(status(&ask(host, scheme).await), MISS, "{host} {scheme}");
    }
    for (host, scheme) in sides {
        let answer = ask(host, scheme).await;
        assert_eq!(status(&answer), HIT, "{host} {scheme}");
        assert_eq!(answer.asked()["headers"]["host"], host);
        assert_eq!(answer.asked()["headers"]["x-forwarded-proto"], scheme);
    }
    assert_eq!(core.calls(), 3);
}

#[tokio::test]
async fn nothing_personal_is_stored_or_served() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    let path = "/api/tour-spots/1?cacheable";
    gateway.get(path).await.asked();
    // A member is not served what is for visitors, and the other way round.
    let token = core.issuer.token("member01", "s1");
    for _ in 0..2 {
        let mine = gateway.call_as(&token, "GET", path).await;
        assert_eq!(mine.asked()["subject"]["id"], "member01");
        assert_eq!(status(&mine), "tourin; fwd=bypass");
    }
    let by_cookie = gateway.call_by_cookie(&token, "GET", path).await;
    assert_eq!(by_cookie.asked()["subject"]["id"], "member01");
    let wrong = gateway.call_as("wrong", "GET", path).await;
    assert_eq!(status(&wrong), "tourin; fwd=bypass");
    assert_eq!(core.calls(), 5);
    assert_eq!(status(&gateway.get(path).await), HIT);
    // Nor is a response that sets a cookie, or that its service did not call cacheable.
    for query in ["cacheable&theme", "cacheable&vary", "b=1"] {
        let path = format!("/api/tour-spots/1?{query}");
        let calls = core.calls();
        gateway.get(&path).await.asked();
        gateway.get(&path).await.asked();
        assert_eq!(core.calls(), calls + 2, "{query}");
    }
}

#[tokio::test]
async fn a_shared_response_does_not_know_for_whom_it_is() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    let path = "/api/shared/1?cacheable";
    let token = core.issuer.token("member01", "s1");
    let mine = gateway.call_as(&token, "GET", path).await;
    assert_eq!((status(&mine), &mine.asked()["subject"]["pseudonym"]), (MISS, &"cache".into()));
    assert!(!mine.body.to_string().contains("member01"), "{mine:?}");
    let everybodys = gateway.get(path).await;
    assert_eq!((status(&everybodys), &everybodys.body, core.calls()), (HIT, &mine.body, 1));
}

#[tokio::test]
async fn a_stale_response_is_validated_and_a_client_can_do_so_too() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    let path = "/api/tour-spots/1?etag";
    let first = gateway.get(path).await;
    assert_eq!(status(&first), MISS);
    let etag = first.header("etag").unwrap().to_owned();
    // It is stale at once, so the service is asked whether it has changed.
    let again = gateway.get(path).await;
    assert_eq!(status(&again), "tourin; fwd=stale; fwd-status=304");
    assert_eq!((again.status, &again.body, core.calls()), (200, &first.body, 2));
    let mine = gateway.call("GET", path, &[("if-none-match", &etag)]).await;
    assert_eq!((mine.status, core.calls()), (304, 3));
    let other = gateway.call("GET", path, &[("if-none-match", "\"other\"")]).await;
    assert_eq!((other.status, &other.body), (200, &first.body));
}

#[tokio::test]
async fn what_is_too_large_passes_and_is_not_stored() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    for query in ["cacheable&large", "cacheable&large&chunked"] {
        let path = format!("/api/tour-spots/1?{query}");
        let calls = core.calls();
        for _ in 0..2 {
            let answer = gateway.get(&path).await;
            assert_eq!(answer.status, 200);
            assert!(answer.body.to_string().len() > 300_000, "{query}");
        }
        assert_eq!(core.calls(), calls + 2, "{query}");
    }
}

#[tokio::test]
async fn requests_at_the_same_time_are_one_call() {
    let (_mesh, core, gateway) = caching(|_| {}).await;
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let ask = gateway.http.get(format!("{}/api/tour-spots/1?cacheable&hold", gateway.url));
            tokio::spawn(ask.send())
        })
        .collect();
    eventually("one waits at the service", || async { core.held() == 1 }).await;
    core.release();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(core.calls(), 1);
}

#[tokio::test]
async fn an_event_invalidates_what_has_its_tag() {
    let (mesh, core, gateway) = caching(|_| {}).await;
    let other_gateway = mesh.gateway_with(ROUTES, |_| {}).await;
    let paths = ["/api/tour-spots/1?cacheable", "/api/tour-spots/2?cacheable"];
    for gateway in [&gateway, &other_gateway] {
        for path in paths {
            gateway.get(path).await.asked();
            assert_eq!(status(&gateway.get(path).await), HIT);
        }
    }
    core.invalidate("spot:1");
    for gateway in [&gateway, &other_gateway] {
        eventually("the changed spot is read anew", || async {
            status(&gateway.get(paths[0]).await) == MISS
        })
        .await;
        assert_eq!(status(&gateway.get(paths[0]).await), HIT);
        assert_eq!(status(&gateway.get(paths[1]).await), HIT, "the other one has not changed");
    }
    eventually("it is counted", || async {
        gateway.metric("tourin_gateway_cache_invalidations_total").await == 1.0
    })
    .await;
}
