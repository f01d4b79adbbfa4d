//! What operators see of a gateway: its state as JSON, and the access log.

use serde_json::Value;
use tourin_testbed::eventually;

use crate::harness::{Mesh, Response, TestGateway, raw};

async fn page(gateway: &TestGateway, path: &str) -> Response {
    gateway.send(gateway.http.get(format!("http://{}{path}", gateway.admin))).await
}

#[tokio::test]
async fn the_state_is_shown_to_operators_alone() {
    let (mesh, _core, gateway) = Mesh::complete().await;
    let index = page(&gateway, "/internal/state").await;
    let pages: Vec<_> = index.body["pages"].as_array().unwrap().clone();
    for name in ["config", "reloads", "routes", "instances", "guards", "sessions", "load"] {
        assert!(pages.contains(&format!("/internal/state/{name}").into()), "{name}: {index:?}");
    }
    for path in &pages {
        let shown = page(&gateway, path.as_str().unwrap()).await;
        assert_eq!((shown.status, shown.body.is_object()), (200, true), "{path}: {shown:?}");
        // The clients' listener has none of it.
        assert_eq!(gateway.get(path.as_str().unwrap()).await.status, 404, "{path}");
    }
    assert_eq!(page(&gateway, "/internal/state/nothing").await.status, 404);

    let instances = page(&gateway, "/internal/state/instances").await.body;
    assert_eq!(instances["connected"], true);
    let version = instances["version"].as_u64().unwrap();
    let of_core: Vec<_> = instances["instances"].as_array().unwrap().iter().collect();
    assert!(of_core.iter().any(|instance| instance["id"] == "core-1"), "{instances}");
    mesh.service("core", "core-2").await;
    eventually("the new instance is shown", || async {
        let shown = page(&gateway, "/internal/state/instances").await.body;
        let instances = shown["instances"].as_array().unwrap();
        instances.iter().any(|instance| instance["id"] == "core-2")
            && shown["version"].as_u64().unwrap() > version
    })
    .await;

    let routes = page(&gateway, "/internal/state/routes").await.body;
    assert_eq!(routes["version"].as_str().unwrap().len(), 12, "{routes}");
    let login = routes["routes"].as_array().unwrap().iter().find(|route| {
        route["path"] == "/api/auth/login" && route["methods"]["POST"] == "anonymous"
    });
    assert_eq!(login.unwrap()["rate_per_minute"], 300);
    let sessions = page(&gateway, "/internal/state/sessions").await.body;
    assert_eq!(sessions["revocations"]["loaded"], true, "{sessions}");
    assert!(sessions["tokenKeys"]["ageSeconds"].is_number(), "{sessions}");
}

#[tokio::test]
async fn an_instance_has_its_own_rate_errors_and_duration_while_it_lives() {
    let (mesh, _core, gateway) = Mesh::complete().await;
    let registry = mesh.registry_as("core", "core-2");
    let second = mesh.service("core", "core-2").await;
    eventually("both instances are asked", || async {
        gateway.get("/api/users").await;
        second.calls() > 0
    })
    .await;
    let metrics = async || {
        let url = format!("http://{}/metrics", gateway.admin);
        gateway.http.get(url).send().await.unwrap().text().await.unwrap()
    };
    let text = metrics().await;
    for id in ["core-1", "core-2"] {
        let label = format!(r#"{{upstream="core",instance="{id}""#);
        assert!(
            text.contains(&format!(
                "tourin_gateway_instance_requests_total{label},outcome=\"ok\"}}"
            )),
            "{text}"
        );
        assert!(
            text.contains(&format!("tourin_gateway_instance_answer_seconds_total{label}}}")),
            "{text}"
        );
    }
    registry.deregister("core", "core-2", std::time::Duration::ZERO).await.unwrap();
    eventually("the one that has left is forgotten", || async {
        !metrics().await.contains(r#"instance="core-2""#)
    })
    .await;
}

#[tokio::test]
async fn the_access_log_has_a_line_per_request_and_nothing_of_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let file = path.clone();
    let gateway = mesh.gateway(|settings| settings.access_log.access_log = Some(file)).await;
    let token = core.issuer.token("member01", "s1");
    let lines = || {
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        (whole.to_owned(), lines.filter(|line| line["route"] != "/readyz").collect::<Vec<_>>())
    };
    // One after the other: a line comes a moment after the response.
    let are_logged = async |count: usize| {
        eventually("the requests are logged", || async { lines().1.len() == count }).await;
    };
    gateway.call_as(&token, "GET", "/api/users/member01?q=secret").await;
    are_logged(1).await;
    gateway.get("/nowhere/member01").await;
    are_logged(2).await;
    raw(gateway.addr, "what?\r\n\r\n").await;
    are_logged(3).await;
    let (text, lines) = lines();
    let seen: Vec<_> = lines.iter().map(|line| (&line["route"], &line["status"])).collect();
    let expected = [("/api/users/{userId}", 200), ("unmatched", 404), ("malformed", 400)];
    let expected = expected.map(|(route, status)| (Value::from(route), Value::from(status)));
    assert_eq!(seen, expected.iter().map(|(route, status)| (route, status)).collect::<Vec<_>>());
    let served = &lines[0];
    assert_eq!((&served["service"], &served["instance"]), (&"core".into(), &"core-1".into()));
    assert_eq!((&served["tries"], &served["method"]), (&1.into(), &"GET".into()));
    assert!(served["response_bytes"].as_u64().unwrap() > 2, "{served}");
    assert!(served["duration_us"].as_u64() >= served["answered_us"].as_u64(), "{served}");
    assert_eq!(served["trace_id"].as_str().unwrap().len(), 32, "{served}");
    for personal in ["member01", "secret", "127.0.0.1"] {
        assert!(!text.contains(personal), "{personal}: {text}");
    }
}
