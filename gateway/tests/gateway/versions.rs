//! Clients that speak other versions than HTTP/1.1.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Mesh, raw};

#[tokio::test]
async fn an_older_client_can_read_what_comes() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let ask = |method: &str, target: &str, fields: &str| {
        format!("{method} {target} HTTP/1.0\r\n{fields}\r\n")
    };
    // A request without Host, and a response of unknown length.
    let answer = raw(gateway.addr, ask("GET", "/api/users?chunked", "")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(answer.body["asked"]["path"], "/api/users", "{answer:?}");
    assert_eq!(answer.body["asked"]["headers"]["host"], "");
    assert!(answer.body["asked"]["headers"].get("x-forwarded-host").is_none());
    // Also if the client asks to keep the connection.
    let keep = "Host: h\r\nConnection: keep-alive\r\n";
    let answer = raw(gateway.addr, ask("GET", "/api/users?chunked", keep)).await;
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    assert_eq!(answer.body["asked"]["headers"]["host"], "h");
    let answer = raw(gateway.addr, ask("HEAD", "/api/users?chunked", "")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
    // A response with a length is passed unchanged, and so is a refusal.
    let answer = raw(gateway.addr, ask("GET", "/api/users", "")).await;
    assert_eq!(answer.header("content-length"), Some(answer.text.len().to_string().as_str()));
    raw(gateway.addr, ask("GET", "/nothing", "")).await.assert_refused(404, "not_found");
    raw(gateway.addr, ask("GET", "/api/auth/me", "")).await.assert_refused(401, "unauthenticated");
    // HTTP/1.0 has no interim responses, so `Expect` is dropped.
    let body = "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}";
    let answer = raw(gateway.addr, format!("POST /api/auth/login HTTP/1.0\r\n{body}")).await;
    assert_eq!((answer.status, &answer.body["body"]), (200, &2.into()), "{answer:?}");
    assert!(answer.body["headers"].get("expect").is_none());
    // A chunked request of HTTP/1.0 is malformed.
    let calls = core.calls();
    let chunked = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let request = format!("POST /api/auth/login HTTP/1.0\r\nHost: h\r\n{chunked}");
    raw(gateway.addr, request).await.assert_refused(400, "malformed");
    assert_eq!(core.calls(), calls);
}

/// Sends requests one after the other and gives the heads of the answers until the connection ends.
async fn converse(address: std::net::SocketAddr, requests: &[&str]) -> Vec<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut heads = Vec::new();
    for request in requests {
        if stream.write_all(request.as_bytes()).await.is_err() {
            break;
        }
        let mut answer = Vec::new();
        let whole = |answer: &[u8]| {
            // The spelling of a field's name means nothing.
            let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= length.parse().ok()?).then(|| head.to_owned())
        };
        let head = loop {
            if let Some(head) = whole(&answer) {
                break head;
            }
            if stream.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                return heads;
            }
        };
        heads.push(head.to_lowercase());
    }
    heads
}

#[tokio::test]
async fn keep_alive_follows_the_clients_header() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    for (version, fields, kept) in [
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: x-a, Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "", true),
        ("1.1", "Connection: x-a\r\nConnection: x-b, Close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.2", "", true),
    ] {
        let request = format!("GET /api/users HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
        let heads = converse(gateway.addr, &[&request, &request]).await;
        assert_eq!(heads.len(), if kept { 2 } else { 1 }, "{request:?} {heads:?}");
        let expected = if kept { "connection: keep-alive" } else { "connection: close" };
        assert!(heads[0].contains(expected), "{request:?} {heads:?}");
    }
}

#[tokio::test]
async fn a_minor_version_is_no_reason_to_refuse_and_a_major_one_is() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let ask = |version: &str| {
        format!("GET /api/users HTTP/{version}\r\nHost: h\r\nConnection: close\r\n\r\n")
    };
    for version in ["1.1", "1.2", "1.9"] {
        let answer = raw(gateway.addr, ask(version)).await;
        assert_eq!(answer.status, 200, "{version}: {answer:?}");
    }
    for version in ["2.0", "3.0", "0.9"] {
        raw(gateway.addr, ask(version)).await.assert_refused(505, "malformed");
    }
    raw(gateway.addr, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.assert_refused(505, "malformed");
    for version in ["1", "1.10", "x"] {
        raw(gateway.addr, ask(version)).await.assert_refused(400, "malformed");
    }
}

#[tokio::test]
async fn a_target_names_its_host_in_any_spelling() {
    let (_mesh, core, gateway) = Mesh::complete().await;
    let ask = |target: &str, host: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    for (target, host, asked) in [
        ("http://h:80/api/users", "h", "h:80"),
        ("http://h/api/users", "h:80", "h"),
        ("http://h:/api/users", "h", "h:"),
        ("HTTP://H/api/users", "h", "H"),
        ("https://h/api/users", "h:443", "h"),
        ("http://[::1]:80/api/users", "[0:0::1]", "[::1]:80"),
        // RFC 9112, 3.2.2: Host is ignored.
        ("http://h/api/users", "other", "h"),
        ("/api/users", "%68:8080", "%68:8080"),
    ] {
        let answer = raw(gateway.addr, ask(target, host)).await;
        assert_eq!(answer.status, 200, "{target} {host}: {answer:?}");
        assert_eq!(answer.body["headers"]["host"], asked, "{target} {host}");
        assert_eq!(answer.body["headers"]["x-forwarded-host"], asked, "{target} {host}");
        assert_eq!(answer.body["path"], "/api/users");
    }
    let calls = core.calls();
    for (target, host) in [
        ("/api/users", ""),
        ("/api/users", "u@h"),
        ("/api/users", "h:80:80"),
        ("/api/users", "h:http"),
        ("/api/users", "h:65536"),
        ("/api/users", "h h"),
        ("/api/users", "h/x"),
        ("/api/users", "h%zz"),
        ("/api/users", "[::1"),
        ("/api/users", "::1"),
        ("/api/users", "호스트"),
        ("http://u@h/api/users", "h"),
        ("http:///api/users", "h"),
        ("http://h:x/api/users", "h"),
        ("http://h\\x/api/users", "h"),
        ("http:/h/api/users", "h"),
        ("http://h/api/users", "h h"),
        ("http://h/api/users", ""),
        ("ftp://h/api/users", "h"),
        ("api/users", "h"),
        ("?x", "h"),
    ] {
        raw(gateway.addr, ask(target, host)).await.assert_refused(400, "malformed");
    }
    let without = "GET http://h/api/users HTTP/1.1\r\nConnection: close\r\n\r\n";
    raw(gateway.addr, without).await.assert_refused(400, "malformed");
    assert_eq!(core.calls(), calls);
    for target in ["*", "http://h"] {
        let options = format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let answer = raw(gateway.addr, options).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        assert!(answer.header("allow").unwrap().contains("OPTIONS"));
    }
}

/// Request lines are read only where a request begins, however the bytes arrive.
#[tokio::test]
async fn consecutive_requests_have_separate_traces() {
    let (_mesh, _core, gateway) = Mesh::complete().await;
    let get = "GET http://h:80/api/users HTTP/1.2\r\nHost: h\r\n\r\n";
    let post = "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: LENGTH\r\n\r\n\r\nGET http://h/ HTTP/1.2\r\n\r\n\r\n";
    let length = post.split_once("\r\n\r\n").unwrap().1.len();
    let post = post.replace("LENGTH", &length.to_string());
    let heads = converse(gateway.addr, &[get, &post, get, &post, get]).await;
    assert_eq!(heads.len(), 5, "{heads:?}");
    assert!(heads.iter().all(|head| head.starts_with("http/1.1 200")), "{heads:?}");

    // Byte by byte.
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let last = get.replace("Host", "Connection: close\r\nHost");
    for byte in last.as_bytes() {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // All at once: Pingora has buffered a part of the second request, whose rest is not taken for a new one.
    let plain = "GET /api/users HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let close = plain.replace("Host", "Connection: close\r\nHost");
    stream.write_all(format!("{get}{plain}{close}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
}
