//! A request that a client sends before it has the response to the one before has the same fate as one that is
//! sent alone.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_testbed::eventually;

use crate::harness::Mesh;
use crate::harness::raw::{RawResponse, parse};

const ALONE: &str = "";
const AFTER_NO_BODY: &str = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
const AFTER_A_BODY: &str =
    "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
const AFTER_CHUNKS: &str = "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .expect("the connection is closed in time")
        .unwrap();
    bytes
}

/// Sends these parts, each by itself, and reads until the connection is closed.
async fn responses(addr: SocketAddr, parts: &[&str]) -> Vec<RawResponse> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for part in parts {
        // The gateway may refuse and close before it has read everything.
        let _ = stream.write_all(part.as_bytes()).await;
    }
    let mut bytes = read_to_close(&mut stream).await;
    let mut responses = Vec::new();
    while !bytes.is_empty() {
        let first = parse(&bytes);
        let length: usize = first.header("content-length").unwrap_or("0").parse().unwrap();
        let whole = first.head.len() + b"\r\n\r\n".len() + length;
        responses.push(parse(&bytes[..whole]));
        bytes.drain(..whole);
    }
    responses
}

fn ask(method: &str, target: &str, version: &str) -> String {
    format!("{method} {target} {version}\r\nHost: h\r\nConnection: close\r\n\r\n")
}

/// Requests whose line is refused, or changed before Pingora reads it, with what becomes of them.
fn requests() -> Vec<(String, u16)> {
    let long = format!("/{}", "a".repeat(9_000));
    let huge = format!("/{}", "a".repeat(90_000));
    let line =
        |method: &str, target: &str, version: &str, status| (ask(method, target, version), status);
    let get = |target: &str, status| line("GET", target, "HTTP/1.1", status);
    vec![
        get("/api/users", 200),
        get("/api/users?a b", 400),
        get("/api/users/a\tb", 400),
        get("/api/users/\u{1}", 400),
        get("/api/users/\u{7f}", 400),
        get("/api/users ", 400),
        get("/api/users/%zz", 400),
        get("/api/../internal/x", 404),
        get("//internal/x", 404),
        get("*", 400),
        get("http://h/api/users", 200),
        get("http://other.example/api/users", 200),
        get("HTTP://other.example:80?a=b", 404),
        get("http://other.example/api/users/a b", 400),
        get("http://u@h/api/users", 400),
        get("http:///api/users", 400),
        get("ftp://h/api/users", 400),
        get("api/users", 400),
        get(&long, 414),
        get(&huge, 414),
        line("OPTIONS", "*", "HTTP/1.1", 204),
        line("OPTIONS", "http://other.example", "HTTP/1.1", 204),
        line("CONNECT", "h:443", "HTTP/1.1", 405),
        line("GET", "/api/users", "HTTP/1.0", 200),
        line("GET", "/api/users", "HTTP/1.9", 200),
        line("GET", "/api/users", "HTTP/2.0", 505),
        line("GET", "/api/users", "HTTP/0.9", 505),
        line("GET", "/api/users", "HTTP/1.10", 400),
        line("GET", "/api/users", "http/1.1", 400),
        ("what?\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: h\r\na: {}\r\n\r\n", "a".repeat(90_000)), 431),
    ]
}

#[tokio::test]
async fn a_request_line_has_the_same_fate_after_another_request() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    for (request, expected) in requests() {
        let shown = &request[..request.len().min(60)];
        for before in [ALONE, AFTER_NO_BODY, AFTER_A_BODY, AFTER_CHUNKS] {
            let earlier = usize::from(!before.is_empty());
            // In one piece, and cut where a read may end.
            let (start, rest) = request.split_at(5);
            let joined = [before, request.as_str()].concat();
            let cut = [before, start].concat();
            for parts in [vec![joined.as_str()], vec![&cut, rest], vec![before, &request]] {
                let got = responses(gateway.addr, &parts).await;
                let statuses: Vec<_> = got.iter().map(|response| response.status).collect();
                assert_eq!(statuses[..earlier], [200][..earlier], "{shown:?} after {before:?}");
                assert_eq!(statuses[earlier..], [expected], "{shown:?} after {before:?}");
            }
        }
    }
}

#[tokio::test]
async fn many_requests_at_once_are_served_in_their_order() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let one = |n: usize| {
        let body = "x".repeat(1 + n % 7);
        let length = body.len();
        let (framing, body) = match n % 2 {
            0 => (format!("Content-Length: {length}"), body),
            _ => (
                "Transfer-Encoding: chunked".to_owned(),
                format!("{length}\r\n{body}\r\n0\r\n\r\n"),
            ),
        };
        format!(
            "POST http://other.example/api/auth/login?n={n} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}"
        )
    };
    // More than fits into one read.
    let all: String = (0..100).map(one).collect();
    assert!(all.len() > 8_000);
    let last = ask("GET", "/api/users", "HTTP/1.1");
    let got = responses(gateway.addr, &[&all, &last]).await;
    assert_eq!(got.len(), 101);
    for (n, response) in got[..100].iter().enumerate() {
        assert_eq!(response.body["query"], format!("n={n}"), "{response:?}");
        assert_eq!(response.body["body"], 1 + n % 7, "{response:?}");
        assert_eq!(response.body["headers"]["host"], "other.example", "{response:?}");
    }
    assert_eq!(core.calls(), 101);
}

#[tokio::test]
async fn the_last_response_arrives_although_more_was_sent() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let last = ask("GET", "/api/users", "HTTP/1.1");
    let more = AFTER_A_BODY.repeat(1_000);
    for _ in 0..10 {
        let got = responses(gateway.addr, &[&[&last, more.as_str()].concat()]).await;
        let statuses: Vec<_> = got.iter().map(|response| response.status).collect();
        assert_eq!(statuses, [200], "its connection is closed after the first one");
    }
}

#[tokio::test]
async fn a_blank_line_after_a_body_begins_no_request() {
    let mesh = Mesh::start().await;
    let _core = mesh.service("core", "core-1").await;
    let gateway = mesh
        .gateway(|settings| {
            settings.header_read_timeout_ms = 100;
            settings.client_idle_ms = 1_000;
        })
        .await;
    let got = responses(gateway.addr, &[&format!("{AFTER_A_BODY}\r\n")]).await;
    let statuses: Vec<_> = got.iter().map(|response| response.status).collect();
    assert_eq!(statuses, [200], "an idle connection is closed without a word");
}

#[tokio::test]
async fn a_client_that_has_asked_for_more_gets_what_it_has_asked_for() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let held = "GET /api/users?hold HTTP/1.1\r\nHost: h\r\n\r\n";
    stream.write_all(held.as_bytes()).await.unwrap();
    eventually("the service has it", || async { core.held() == 1 }).await;
    // While the gateway waits for the service, it looks whether the client is still there.
    stream.write_all(ask("GET", "/api/users?a b", "HTTP/1.1").as_bytes()).await.unwrap();
    core.release();
    let bytes = read_to_close(&mut stream).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(text.contains("HTTP/1.1 400 Bad Request"), "{text}");
}
