//! Canary releases, forced versions and mirrored traffic.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tourin_registry_api::Instance;
use tourin_testbed::eventually;

use crate::harness::websocket::read_head;
use crate::harness::{Issuer, LEASE, Mesh, Service, TestGateway};

const BASE: &str = r#"
[[route]]
path = "/api/auth/me"
service = "core"
methods = { GET = "session" }

[[route]]
path = "/api/users"
service = "core"
methods = { GET = "public", PUT = "public", POST = "public" }
"#;

/// An instance of core whose metadata names its version.
async fn versioned(mesh: &Mesh, id: &str, version: &str) -> Service {
    let service = Service::start("core", id, &mesh.authority, mesh.stop.clone()).await;
    let mut instance = Instance::new("core", id, service.address);
    instance.metadata.insert("version".to_owned(), version.to_owned());
    let registry = mesh.registry_as("core", id);
    registry.register(&instance, LEASE).await.unwrap();
    service
}

async fn steered(mesh: &Mesh, policy: &str) -> TestGateway {
    mesh.gateway_with(&format!("{BASE}\n{policy}"), |_| {}).await
}

/// Which instances answered so many requests.
async fn answered(
    gateway: &TestGateway,
    count: usize,
    headers: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> BTreeMap<String, usize> {
    let mut by_instance = BTreeMap::new();
    for n in 0..count {
        let headers = headers(n);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = gateway.call("GET", "/api/users", &headers).await;
        let instance = answer.asked()["instance"].as_str().unwrap().to_owned();
        *by_instance.entry(instance).or_insert(0) += 1;
    }
    by_instance
}

fn nothing(_: usize) -> Vec<(&'static str, String)> {
    Vec::new()
}

fn as_member(issuer: &Issuer, n: usize) -> Vec<(&'static str, String)> {
    let token = issuer.token(&format!("member{n}"), &format!("s{n}"));
    vec![("authorization", format!("Bearer {token}"))]
}

#[tokio::test]
async fn a_share_of_the_members_meets_the_canary_and_stays_with_it() {
    let mesh = Mesh::start().await;
    let old = versioned(&mesh, "core-old", "1").await;
    let _new = versioned(&mesh, "core-new", "2").await;
    let canary = "[route.canary]\nversion = \"2\"\npercent = 30\n";
    let (one, other) = (steered(&mesh, canary).await, steered(&mesh, canary).await);
    let mut of_canary = 0;
    for n in 0..100 {
        let headers = |_| as_member(&old.issuer, n);
        let first = answered(&one, 2, headers).await;
        assert_eq!(first.len(), 1, "a member stays on one side");
        assert_eq!(first, answered(&other, 2, headers).await, "at every gateway");
        of_canary += usize::from(first.contains_key("core-new"));
    }
    // 100 members with 30 %: the expectation is 30, and the hash of these members is always the same.
    assert!((15..=45).contains(&of_canary), "{of_canary}");
    let counted = |choice: &str| {
        format!(r#"tourin_gateway_canary_requests_total{{route="/api/users",choice="{choice}"}}"#)
    };
    let canary = one.metric(&counted("canary")).await;
    let stable = one.metric(&counted("stable")).await;
    assert_eq!((canary as usize, (canary + stable) as usize), (2 * of_canary, 200));
}

#[tokio::test]
async fn a_share_of_the_requests_meets_the_canary() {
    let mesh = Mesh::start().await;
    let _old = versioned(&mesh, "core-old", "1").await;
    let _new = versioned(&mesh, "core-new", "2").await;
    let gateway =
        steered(&mesh, "[route.canary]\nversion = \"2\"\npercent = 20\nby = \"request\"\n").await;
    let by_instance = answered(&gateway, 500, nothing).await;
    // Seven standard deviations of a binomial distribution: 100 +- 63.
    assert!((37..=163).contains(&by_instance["core-new"]), "{by_instance:?}");
}

#[tokio::test]
async fn a_side_without_instances_is_served_by_the_other() {
    let mesh = Mesh::start().await;
    let _old = versioned(&mesh, "core-old", "1").await;
    let whole = steered(&mesh, "[route.canary]\nversion = \"2\"\npercent = 100\n").await;
    assert_eq!(answered(&whole, 5, nothing).await, BTreeMap::from([("core-old".to_owned(), 5)]));
    let none = steered(&mesh, "[route.canary]\nversion = \"1\"\npercent = 0\n").await;
    assert_eq!(answered(&none, 5, nothing).await, BTreeMap::from([("core-old".to_owned(), 5)]));
}

#[tokio::test]
async fn a_side_that_is_down_is_served_by_the_other() {
    let mesh = Mesh::start().await;
    let _old = versioned(&mesh, "core-old", "1").await;
    let new = versioned(&mesh, "core-new", "2").await;
    let gateway = steered(&mesh, "[route.canary]\nversion = \"2\"\npercent = 100\n").await;
    assert_eq!(answered(&gateway, 5, nothing).await, BTreeMap::from([("core-new".to_owned(), 5)]));
    // The registry still has it.
    new.stop.begin();
    let down = r#"tourin_gateway_instances_down{upstream="core",state="unreachable"}"#;
    eventually("the gateway knows", || async {
        gateway.get("/api/users").await;
        gateway.metric(down).await == 1.0
    })
    .await;
    let retries = r#"tourin_gateway_upstream_retries_total{upstream="core"}"#;
    let before = gateway.metric(retries).await;
    assert_eq!(
        answered(&gateway, 20, nothing).await,
        BTreeMap::from([("core-old".to_owned(), 20)])
    );
    assert_eq!(gateway.metric(retries).await, before, "none was sent to the other side first");
}

#[tokio::test]
async fn a_version_is_forced_only_where_the_route_allows_it() {
    let mesh = Mesh::start().await;
    let old = versioned(&mesh, "core-old", "1").await;
    let _new = versioned(&mesh, "core-new", "2").await;
    let ask =
        |version: &'static str| move |_: usize| vec![("x-tourin-version", version.to_owned())];
    let both = steered(&mesh, "").await;
    assert_eq!(answered(&both, 10, ask("2")).await.len(), 2, "ignored");
    let gateway = steered(&mesh, "[route.canary]\nforce = [\"anybody\"]\n").await;
    assert_eq!(answered(&gateway, 6, ask("2")).await.len(), 1);
    let forced = gateway.call("GET", "/api/users", &[("x-tourin-version", "2")]).await;
    assert_eq!(forced.asked()["instance"], "core-new");
    assert_eq!(forced.header("x-tourin-version"), Some("2"));
    assert!(forced.asked()["headers"].get("x-tourin-version").is_none(), "{forced:?}");
    assert!(gateway.get("/api/users").await.header("x-tourin-version").is_none());
    // There is no other version for it, nor a guess at what was meant.
    let ask = async |version: &str| {
        gateway.call("GET", "/api/users", &[("x-tourin-version", version)]).await
    };
    ask("3").await.assert_refused(503, "unavailable");
    ask("2 or so").await.assert_refused(400, "malformed");

    let members = steered(&mesh, "[route.canary]\nforce = [\"session\"]\n").await;
    let visitor = |_| vec![("x-tourin-version", "2".to_owned())];
    assert_eq!(answered(&members, 10, visitor).await.len(), 2, "ignored");
    let member = |n| [as_member(&old.issuer, n), visitor(n)].concat();
    assert_eq!(answered(&members, 6, member).await, BTreeMap::from([("core-new".to_owned(), 6)]));
}

async fn outcome(gateway: &TestGateway, outcome: &str) -> f64 {
    let series = format!(
        r#"tourin_gateway_mirrored_requests_total{{route="/api/users",outcome="{outcome}"}}"#
    );
    gateway.metric(&series).await
}

/// The instance of another service that copies go to.
async fn mirror(mesh: &Mesh) -> Service {
    mesh.service("shadow", "shadow-1").await
}

const TO_SHADOW: &str = "[route.mirror]\nservice = \"shadow\"\npercent = 100\n";

#[tokio::test]
async fn copies_go_to_the_mirror_without_anything_personal_and_are_compared() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let shadow = mirror(&mesh).await;
    let gateway = steered(&mesh, TO_SHADOW).await;
    let token = core.issuer.token("member01", "s1");
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("cookie", "theme=dark"),
        ("accept-language", "ko"),
        ("x-own", "1"),
    ];
    let answer = gateway.call("GET", "/api/users?same&a=1", &headers).await;
    assert_eq!(answer.asked()["same"], true);
    eventually("the copy has been compared", || async { outcome(&gateway, "same").await == 1.0 })
        .await;
    let copy: Value = shadow.last_asked();
    assert_eq!((&copy["path"], &copy["query"]), (&"/api/users".into(), &"same&a=1".into()));
    assert_eq!(copy["headers"]["accept-language"], "ko");
    assert_eq!(copy["headers"]["x-tourin-mirrored"], "1");
    assert_eq!(copy["subject"]["pseudonym"], "mirror", "{copy}");
    for personal in ["authorization", "cookie", "x-forwarded-for", "forwarded", "x-own"] {
        assert!(copy["headers"].get(personal).is_none(), "{personal}: {copy}");
    }
    // Each instance names itself, so these answers differ.
    gateway.get("/api/users").await.asked();
    eventually("a difference is counted", || async {
        outcome(&gateway, "body_differs").await == 1.0
    })
    .await;
    gateway.get("/api/users?only-core").await.asked();
    eventually("a status is counted", || async {
        outcome(&gateway, "status_differs").await == 1.0
    })
    .await;
    // What cannot be repeated is not copied.
    let calls = shadow.calls();
    gateway.call("POST", "/api/users", &[]).await.asked();
    gateway.send(gateway.http.put(format!("{}/api/users", gateway.url)).body("x")).await.asked();
    gateway.get("/api/users?same").await.asked();
    eventually("the last one is copied", || async { outcome(&gateway, "same").await == 2.0 }).await;
    assert_eq!(shadow.calls(), calls + 1);
}

#[tokio::test]
async fn copies_of_writes_and_of_the_callers_identity_are_made_where_the_route_says_so() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let shadow = mirror(&mesh).await;
    let gateway =
        steered(&mesh, &format!("{TO_SHADOW}writes = true\nidentity = \"caller\"\n")).await;
    let put = gateway.http.put(format!("{}/api/users?same", gateway.url)).body("body");
    gateway.send(put.bearer_auth(core.issuer.token("member01", "s1"))).await.asked();
    eventually("the copy has been compared", || async { outcome(&gateway, "same").await == 1.0 })
        .await;
    let copy = shadow.last_asked();
    assert_eq!((&copy["method"], &copy["body"]), (&"PUT".into(), &4.into()));
    assert_eq!(copy["subject"]["id"], "member01", "{copy}");
}

#[tokio::test]
async fn with_a_cache_whole_responses_are_compared() {
    let mesh = Mesh::start().await;
    let _core = mesh.service("core", "core-1").await;
    let shadow = mirror(&mesh).await;
    let gateway = steered(&mesh, &format!("{TO_SHADOW}[route.cache]\n")).await;
    // The service is asked for what the client does not want, so that it can be stored.
    assert_eq!(gateway.call("HEAD", "/api/users?same&cacheable", &[]).await.status, 200);
    assert_eq!(gateway.get("/api/users?etag").await.status, 200);
    // It has not changed, says the service; there is no response to compare.
    assert_eq!(gateway.get("/api/users?etag").await.status, 200);
    assert_eq!(gateway.get("/api/users?same").await.status, 200);
    eventually("the others are the same", || async { outcome(&gateway, "same").await == 3.0 })
        .await;
    assert_eq!((outcome(&gateway, "status_differs").await, shadow.calls()), (0.0, 3));
}

#[tokio::test]
async fn a_dead_or_slow_mirror_costs_the_client_nothing() {
    let mesh = Mesh::start().await;
    let _core = mesh.service("core", "core-1").await;
    // Nobody is behind this mirror yet: the gateway is ready all the same.
    let gateway = mesh
        .gateway_with(&format!("{BASE}\n{TO_SHADOW}timeout_ms = 2000\n"), |settings| {
            settings.traffic.mirror.mirror_requests = 2;
        })
        .await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/api/users").await.status, 200);
    }
    eventually("copies without a receiver are counted", || async {
        outcome(&gateway, "no_instance").await + outcome(&gateway, "dropped").await == 20.0
    })
    .await;

    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("shadow", "shadow-1", silent.local_addr().unwrap()).await;
    eventually("copies time out", || async {
        assert_eq!(gateway.get("/api/users").await.status, 200);
        outcome(&gateway, "timed_out").await > 0.0
    })
    .await;
    let dropped = outcome(&gateway, "dropped").await;
    let start = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(gateway.get("/api/users").await.status, 200);
    }
    // One after the other they would take 100 s.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(outcome(&gateway, "dropped").await > dropped, "copies are bounded");

    // It refuses connections.
    drop(silent);
    eventually("copies fail", || async {
        assert_eq!(gateway.get("/api/users").await.status, 200);
        outcome(&gateway, "failed").await > 0.0
    })
    .await;
}

/// Instances of a service. The first ones of them that a request comes to hang up on it, the last one answers.
async fn hang_up_first(mesh: &Mesh, instances: usize) {
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    for n in 0..instances {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        mesh.register("flaky", &format!("flaky-{n}"), listener.local_addr().unwrap()).await;
        let (tls, seen) = (mesh.tls("flaky"), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = tls.accept(stream).await else { continue };
                let head = read_head(&mut stream).await;
                let line = head.lines().next().unwrap_or_default().to_owned();
                let is_check = line.starts_with("GET /healthz ");
                let attempt = {
                    let mut seen = seen.lock().unwrap();
                    let attempt = seen.entry(line).or_default();
                    *attempt += 1;
                    *attempt
                };
                if attempt < instances && !is_check {
                    continue;
                }
                let fine = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(fine).await;
                let _ = stream.shutdown().await;
            }
        });
    }
}

#[tokio::test]
async fn whether_a_request_is_copied_is_drawn_once_however_often_it_is_sent() {
    const REQUESTS: usize = 80;
    let mesh = Mesh::start().await;
    let _core = mesh.service("core", "core-1").await;
    hang_up_first(&mesh, 5).await;
    let route =
        "[[route]]\npath = \"/api/flaky\"\nservice = \"flaky\"\nmethods = { GET = \"public\" }\n";
    let half = "[route.mirror]\nservice = \"nobody\"\npercent = 50\n";
    let gateway = mesh
        .gateway_with(&format!("{BASE}\n{route}\n{half}"), |settings| {
            settings.upstream_tries = 5;
            settings.retries.retry_pause_ms = 0;
            settings.retries.retry_budget_min = 1_000_000;
            // All of them stay in use.
            settings.outliers.eject_failures = 0;
            settings.outliers.eject_failure_percent = 0;
            settings.health_checks.health_check_interval_ms = 0;
            settings.health_checks.health_check_failures = u32::MAX;
            settings.health_checks.silence_ms = 3_600_000;
        })
        .await;
    for n in 0..REQUESTS {
        let answer = gateway.get(&format!("/api/flaky?n={n}")).await;
        assert_eq!(answer.status, 200, "{n}: {answer:?}");
    }
    let retries = r#"tourin_gateway_upstream_retries_total{upstream="flaky"}"#;
    assert_eq!(gateway.metric(retries).await, 4.0 * REQUESTS as f64);
    gateway.is_idle().await;
    let copied = Cell::new(0.0);
    eventually("all copies have been counted", || async {
        let outcome = |outcome: &str| {
            format!(r#"tourin_gateway_mirrored_requests_total{{route="/api/flaky",outcome="{outcome}"}}"#)
        };
        let now = gateway.metric(&outcome("no_instance")).await + gateway.metric(&outcome("dropped")).await;
        now > 0.0 && copied.replace(now) == now
    })
    .await;
    // Half of them, and six standard deviations of a binomial distribution. With a draw for each attempt it
    // would be 97 of 100.
    assert!((13.0..=67.0).contains(&copied.get()), "{copied:?} of {REQUESTS}");
}
