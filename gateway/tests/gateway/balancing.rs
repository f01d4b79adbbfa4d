//! The choice of instances, and retries at other ones.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tourin_testbed::{eventually, free_address};

use crate::harness::{Mesh, TestGateway};

async fn count(
    gateway: &TestGateway,
    method: &str,
    path: &str,
    calls: usize,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let answer = gateway.call(method, path, &[]).await;
        let instance = answer.asked()["instance"].as_str().unwrap().to_owned();
        *counts.entry(instance).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn requests_go_round_robin_over_the_instances_of_the_service() {
    let mesh = Mesh::start().await;
    for id in ["core-1", "core-2", "core-3"] {
        mesh.service("core", id).await;
    }
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;

    let expected = BTreeMap::from(["core-1", "core-2", "core-3"].map(|id| (id.to_owned(), 4)));
    assert_eq!(count(&gateway, "GET", "/api/tour-spots", 12).await, expected);
    let similar = gateway.get("/api/tour-spots/7/similar?k=3").await;
    assert_eq!(similar.asked()["instance"], "recommendation-1");
    assert_eq!(similar.asked()["query"], "k=3");
    assert_eq!(gateway.get("/api/tour-spots/7").await.asked()["path"], "/api/tour-spots/7");
}

#[tokio::test]
async fn unlisted_paths_are_404() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    gateway.get("/nothing").await.assert_refused(404, "not_found");
    gateway.get("/internal/revocations").await.assert_refused(404, "not_found");
    let wrong = gateway.call("DELETE", "/api/users", &[]).await;
    wrong.assert_refused(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), Some("GET, HEAD"));
    let head = gateway.call("HEAD", "/nothing", &[]).await;
    assert_eq!((head.status, head.body.is_null()), (404, true));
    assert!(head.header("content-length").unwrap().parse::<usize>().unwrap() > 0);
    assert_eq!(core.calls(), 0);
    let head = gateway.call("HEAD", "/api/users", &[]).await;
    assert_eq!((head.status, head.body.is_null(), core.calls()), (200, true, 1));
}

#[tokio::test]
async fn a_dead_instance_fails_no_request() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    mesh.register("core", "core-0", free_address()).await;
    let gateway = mesh.gateway(|_| {}).await;
    // A write is retried as well, because nothing was sent to the dead instance.
    let counts = count(&gateway, "POST", "/api/auth/login", 10).await;
    assert_eq!(counts, BTreeMap::from([("core-1".to_owned(), 10)]));
    assert_eq!(core.calls(), 10, "each request arrived once");
}

#[tokio::test]
async fn without_a_live_instance_the_response_is_503() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let gateway = mesh.starting_gateway(|_| {}).await;
    eventually("core is known", || async { gateway.get("/api/users").await.status == 200 }).await;

    let none = gateway.get("/api/tour-spots/1/similar").await;
    none.assert_refused(503, "unavailable");
    assert_eq!(none.header("retry-after"), Some("1"));
    let unready = gateway.get("/readyz").await;
    assert_eq!(unready.status, 503);
    assert!(unready.body["unready"]["recommendation"].is_string(), "{unready:?}");
    assert_eq!(gateway.get("/healthz").await.status, 200);

    core.stop.begin();
    eventually("core is down", || async { gateway.get("/api/users").await.status == 503 }).await;
    gateway.get("/api/users").await.assert_refused(503, "unavailable");
}

#[tokio::test]
async fn an_instance_that_drains_gets_nothing_new() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    let leaving = mesh.service("core", "core-2").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;
    eventually("both are in use", || async {
        gateway.get("/api/users").await;
        leaving.calls() > 0
    })
    .await;

    let departure = {
        let core_2 = mesh.registry_as("core", "core-2");
        core_2.drain("core", "core-2", Duration::from_secs(2)).await.unwrap()
    };
    assert!(departure.acknowledged, "the gateway says when it has stopped choosing it");
    let before = leaving.calls();
    count(&gateway, "GET", "/api/users", 10).await;
    assert_eq!(leaving.calls(), before);
}

/// A service that answers one request per connection and closes it at the next, as a server does that has
/// just closed an idle connection.
async fn answers_once(listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        tokio::spawn(async move {
            let mut stream = tls.accept(stream).await.unwrap();
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            let answer =
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
            let _ = stream.read(&mut buffer).await;
        });
    }
}

#[tokio::test]
async fn a_stale_connection_is_retried_only_where_that_is_safe() {
    let mesh = Mesh::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("core", "core-1", listener.local_addr().unwrap()).await;
    tokio::spawn(answers_once(listener, mesh.tls("core")));
    let gateway = mesh.starting_gateway(|_| {}).await;
    eventually("core is known", || async { gateway.get("/api/users").await.status == 200 }).await;

    // Every second request is sent on a connection that is closed then.
    for _ in 0..6 {
        gateway.is_idle().await;
        assert_eq!(gateway.get("/api/users").await.status, 200);
    }
    // A write that may have been read is not repeated.
    let login = async || {
        // The connection of the request before is given back, so that there is one.
        gateway.is_idle().await;
        gateway.call("POST", "/api/auth/login", &[]).await
    };
    let answers = [login().await, login().await];
    let lost =
        answers.iter().find(|answer| answer.status != 200).expect("one meets a dead connection");
    lost.assert_refused(502, "bad_gateway");
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
}

/// Reads a request, writes `answer`, and closes the connection. It passes health checks.
async fn broken(listener: TcpListener, tls: TlsAcceptor, answer: &'static [u8]) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = tls.accept(stream).await else { continue };
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap_or_default();
        let is_check = buffer[..read].starts_with(b"GET /healthz ");
        let passed: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
        let answer = if is_check { passed } else { answer };
        let _ = stream.write_all(answer).await;
    }
}

#[tokio::test]
async fn an_instance_that_breaks_off_is_not_asked_twice() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("core", "core-2", listener.local_addr().unwrap()).await;
    tokio::spawn(broken(listener, mesh.tls("core"), b""));
    // It stays in use, so that each of its failures shows.
    let gateway = mesh.gateway(|settings| settings.outliers.eject_failures = 0).await;

    // Idempotent requests are sent again to the other instance, with their bodies.
    assert_eq!(count(&gateway, "GET", "/api/users", 6).await["core-1"], 6);
    for _ in 0..4 {
        let url = format!("{}/api/tour-spot-reviews/1/likes", gateway.url);
        let put = gateway.http.put(url).bearer_auth(core.issuer.token("member01", "s1"));
        let answer = gateway.send(put.body("body")).await;
        assert_eq!(answer.asked()["body"], 4);
    }
    // A write that may have taken effect is not sent again.
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(gateway.call("POST", "/api/auth/login", &[]).await.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
}

#[tokio::test]
async fn half_an_answer_is_not_passed_off_as_one() {
    let mesh = Mesh::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("core", "core-1", listener.local_addr().unwrap()).await;
    tokio::spawn(broken(
        listener,
        mesh.tls("core"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
    ));
    let gateway = mesh.starting_gateway(|_| {}).await;
    eventually("core is known", || async {
        let answer = gateway.http.get(format!("{}/api/users", gateway.url)).send();
        answer.await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    // The client may see the cut before the answer's head, or after it.
    let request = gateway.http.get(format!("{}/api/users", gateway.url)).send();
    let whole = async { request.await?.bytes().await };
    assert!(whole.await.is_err());
}

#[tokio::test]
async fn one_description_covers_the_services() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    eventually("both parts are in", || async {
        let api = gateway.get("/api/openapi.json").await;
        api.body["paths"].as_object().is_some_and(|paths| paths.len() == 3)
    })
    .await;
    let api = gateway.get("/api/openapi.json").await;
    assert_eq!(api.asked()["openapi"], "3.1.0");
    let etag = api.header("etag").unwrap();
    let again = gateway.call("GET", "/api/openapi.json", &[("if-none-match", etag)]).await;
    assert_eq!((again.status, again.body.is_null()), (304, true));
}
