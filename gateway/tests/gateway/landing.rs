//! The page at `/`.

use http::Method;

use crate::harness::{Mesh, TestGateway};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn fetch(gateway: &TestGateway, method: Method, accept: &str) -> reqwest::Response {
    let request = gateway.http.request(method, format!("{}/", gateway.url));
    request.header("accept", accept).send().await.unwrap()
}

#[tokio::test]
async fn a_browser_gets_the_landing_page_and_a_program_does_not() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| {
            settings.traces_url = Some("http://traces.example/".to_owned());
            settings.metrics_url = Some("http://metrics.example/".to_owned());
        })
        .await;
    let page = fetch(&gateway, Method::GET, BROWSER).await;
    assert_eq!(page.status(), 200);
    let headers = page.headers().clone();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["vary"], "accept");
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = page.text().await.unwrap();
    for part in [
        "http://traces.example/",
        "http://metrics.example/",
        "/api/openapi.json",
        "lang=\"ko\"",
        &format!("{}/api/auth/signup", gateway.url),
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("{{"), "{page}");

    let head = fetch(&gateway, Method::HEAD, BROWSER).await;
    assert_eq!(head.headers()["content-length"], page.len().to_string());
    for (method, accept) in
        [("GET", "*/*"), ("GET", "application/json"), ("GET", "text/html;q=0.1, */*")]
    {
        let answer = gateway.call(method, "/", &[("accept", accept)]).await;
        answer.assert_refused(404, "not_found");
        assert!(answer.varies_by("accept"), "{accept}");
    }
    let answer = gateway.call("POST", "/", &[("accept", BROWSER)]).await;
    answer.assert_refused(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn a_route_for_the_exact_path_takes_precedence() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    let table = "[[route]]\npath = \"/\"\nservice = \"core\"\nmethods = { GET = \"public\" }\n";
    std::fs::write(&routes, table).unwrap();
    let gateway = mesh.gateway(|settings| settings.routes = Some(routes.clone())).await;
    let answer = gateway.call("GET", "/", &[("accept", BROWSER)]).await;
    assert_eq!(answer.asked()["path"], "/");
}

#[tokio::test]
async fn a_route_to_a_service_that_never_comes_is_503_and_no_more() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    let absent =
        "[[route]]\npath = \"/api/nobody\"\nservice = \"nobody\"\nmethods = { GET = \"public\" }\n";
    std::fs::write(&routes, format!("{}\n{absent}", tourin_gateway::routes::BUILT_IN)).unwrap();
    // Waits until the gateway is ready.
    let gateway = mesh.gateway(|settings| settings.routes = Some(routes.clone())).await;
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &"degraded".into()), "{ready:?}");
    assert!(ready.body["unready"]["nobody"].is_string(), "{ready:?}");
    let refused = gateway.get("/api/nobody").await;
    refused.assert_refused(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(gateway.get("/api/users").await.status, 200);
}
