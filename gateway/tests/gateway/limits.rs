//! Too much, too long, too often.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_testbed::{SOON, eventually};

use crate::harness::{Mesh, TestGateway, raw};
use tourin_gateway::Settings;

async fn limited(mesh: &Mesh, adjust: impl FnOnce(&mut Settings)) -> TestGateway {
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    mesh.gateway(adjust).await
}

#[tokio::test]
async fn bodies_are_bounded_whether_announced_or_not() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| settings.body_limit_bytes = 1_000).await;
    let url = format!("{}/api/auth/login", gateway.url);
    let fits = gateway.send(gateway.http.post(&url).body(vec![b'x'; 1_000])).await;
    assert_eq!(fits.asked()["body"], 1_000);
    gateway
        .send(gateway.http.post(&url).body(vec![b'x'; 200_000]))
        .await
        .assert_refused(413, "too_large");

    let ask = |chunks: usize| {
        let chunk = format!("64\r\n{}\r\n", "x".repeat(100));
        format!(
            "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(chunks)
        )
    };
    assert_eq!(raw(gateway.addr, ask(10)).await.body["body"], 1_000);
    raw(gateway.addr, ask(11)).await.assert_refused(413, "too_large");
    let absurd = "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n";
    assert!([400, 413].contains(&raw(gateway.addr, absurd).await.status));
}

#[tokio::test]
async fn heads_are_bounded() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| {
        settings.header_limit_bytes = 4_000;
        settings.header_limit_count = 20;
        settings.uri_limit_bytes = 500;
    })
    .await;
    let ask = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n")
    };
    assert_eq!(raw(gateway.addr, ask("/api/users", "")).await.status, 200);
    let long = format!("/api/users?query={}", "a".repeat(500));
    raw(gateway.addr, ask(&long, "")).await.assert_refused(414, "too_large");
    let longer = format!("/api/users?query={}", "a".repeat(5_000));
    let refused = raw(gateway.addr, ask(&longer, "")).await;
    refused.assert_refused(414, "too_large");
    assert!(refused.body["message"].as_str().unwrap().contains("500 bytes"), "{refused:?}");
    let many: String = (0..30).map(|n| format!("A{n}: 1\r\n")).collect();
    raw(gateway.addr, ask("/api/users", &many)).await.assert_refused(431, "too_large");
    let large = format!("A: {}\r\n", "a".repeat(100_000));
    raw(gateway.addr, ask("/api/users", &large)).await.assert_refused(431, "too_large");
    // Blank lines before a request count too.
    raw(gateway.addr, "\r\n".repeat(3_000)).await.assert_refused(414, "too_large");
}

#[tokio::test]
async fn a_slow_head_is_cut_off_as_a_whole() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| {
        settings.header_read_timeout_ms = 1_000;
        settings.client_first_byte_ms = 1_000;
    })
    .await;
    // A slow head does not keep its connection.
    let (mut read, mut write) = TcpStream::connect(gateway.addr).await.unwrap().into_split();
    let start = Instant::now();
    let dripping = tokio::spawn(async move {
        for byte in b"GET /api/users HTTP/1.1\r\nHost: h\r\nX-Slow: ".iter().cycle() {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, read.read_to_end(&mut answer)).await.expect("cut off");
    assert!(start.elapsed() < Duration::from_secs(8), "the default is 10 s");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    dripping.abort();

    // A silent connection is closed without a response.
    let mut idle = TcpStream::connect(gateway.addr).await.unwrap();
    answer.clear();
    tokio::time::timeout(SOON, idle.read_to_end(&mut answer)).await.expect("closed").unwrap();
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_kept_connection_serves_again_and_again() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| settings.header_read_timeout_ms = 1_500).await;
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let mut buffer = vec![0; 8192];
    for _ in 0..3 {
        stream.write_all(b"GET /api/users HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.contains("\"subject\"") || !answer.ends_with('}') {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed after {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK"));
    }
    // The bounds hold for every request of a connection.
    stream.write_all(b"GET /api/us").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "));
}

#[tokio::test]
async fn a_service_that_does_not_answer_costs_504() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| settings.first_byte_timeout_ms = 200).await;
    let start = Instant::now();
    gateway.get("/api/users?hold").await.assert_refused(504, "timeout");
    assert!(start.elapsed() < Duration::from_secs(9), "the default is 12 s");
    drop(gateway);
    let gateway = mesh.gateway(|settings| settings.total_timeout_ms = 200).await;
    gateway.get("/api/users?hold").await.assert_refused(504, "timeout");
}

#[tokio::test]
async fn an_unread_response_ends_at_its_time_limit() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| {
            settings.total_timeout_ms = 3_000;
            settings.client_stall_ms = 60_000;
        })
        .await;
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    stream.write_all(b"GET /api/users?flood HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the answer has begun", || async { core.held() == 1 }).await;
    // The client does not read, so the gateway cannot write.
    eventually("the gateway has closed the connection", || async { core.held() == 0 }).await;
}

/// A connection from another address of this machine than everybody else's.
async fn connect_from(address: &str, gateway: &TestGateway) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(gateway.addr).await.unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(SOON, stream.read(&mut [0; 4096])).await;
    matches!(read.expect("closed at once"), Ok(0) | Err(_))
}

const ASK: &[u8] = b"GET /api/users HTTP/1.1\r\nHost: h\r\n\r\n";
/// Announces a body of one byte.
const ANNOUNCE: &[u8] = b"POST /api/auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n";

#[tokio::test]
async fn silent_connections_of_one_client_leave_room_for_its_next_one_and_for_others() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| {
        settings.max_connections_per_client = 8;
        settings.client_first_byte_ms = 600_000;
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(connect_from("127.0.0.2", &gateway).await);
    }
    // The first one is served, and so has been idle for less time than the others.
    idle[0].write_all(ASK).await.unwrap();
    assert!(idle[0].read(&mut [0; 4096]).await.unwrap() > 0);
    let mut one_more = connect_from("127.0.0.2", &gateway).await;
    one_more.write_all(ASK).await.unwrap();
    assert!(one_more.read(&mut [0; 4096]).await.unwrap() > 0);
    assert!(is_closed(&mut idle[1]).await, "the longest idle one");
    idle[0].write_all(ASK).await.unwrap();
    assert!(idle[0].read(&mut [0; 4096]).await.unwrap() > 0);
    assert_eq!(gateway.get("/api/users").await.status, 200, "another client");
}

#[tokio::test]
async fn connections_of_one_client_that_are_all_busy_leave_no_room_for_its_next_one() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .gateway(|settings| {
            settings.max_connections_per_client = 2;
            // So that a connection that is closed has been refused.
            settings.client_first_byte_ms = 600_000;
        })
        .await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = connect_from("127.0.0.2", &gateway).await;
        stream.write_all(b"GET /api/users?hold HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        busy.push(stream);
    }
    eventually("both are under way", || async { core.held() == 2 }).await;
    assert!(is_closed(&mut connect_from("127.0.0.2", &gateway).await).await);
    assert_eq!(gateway.get("/api/users").await.status, 200, "another client");
    core.release();
}

#[tokio::test]
async fn silent_connections_from_everywhere_leave_room_for_others() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| {
        settings.max_connections = 40;
        settings.max_connections_per_client = 8;
        settings.client_first_byte_ms = 600_000;
    })
    .await;
    let mut silent = Vec::new();
    for n in 0..120 {
        let mut stream = connect_from(&format!("127.0.1.{}", 1 + n % 20), &gateway).await;
        if n % 2 == 0 {
            // Fails where the gateway has closed the connection.
            let _ = stream.write_all(ANNOUNCE).await;
        }
        silent.push(stream);
    }
    for _ in 0..50 {
        let mut next = connect_from("127.0.0.2", &gateway).await;
        next.write_all(ASK).await.unwrap();
        let mut buffer = [0; 4096];
        let served = next.read(&mut buffer);
        let served = tokio::time::timeout(SOON, served).await;
        assert!(served.expect("served").unwrap() > 0);
    }
}

#[tokio::test]
async fn bodies_that_are_announced_and_never_sent_leave_room_for_others() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.max_requests = 64).await;
    let mut held = Vec::new();
    for n in 0..1_200 {
        let mut stream = connect_from(&format!("127.0.0.{}", 2 + n % 3), &gateway).await;
        // Fails where the gateway has closed the connection.
        let _ = stream.write_all(ANNOUNCE).await;
        held.push(stream);
    }
    for _ in 0..20 {
        let log_in = gateway.http.post(format!("{}/api/auth/login", gateway.url)).body("{}");
        assert_eq!(gateway.send(log_in).await.asked()["body"], 2);
        assert_eq!(gateway.get("/api/users").await.status, 200);
    }
    assert_eq!(core.calls(), 40, "no incomplete request reaches a service");
    drop(held);
}

#[tokio::test]
async fn requests_in_flight_are_bounded_per_client() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.max_requests_per_client = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = connect_from("127.0.0.2", &gateway).await;
        stream.write_all(b"GET /api/users?hold HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    eventually("both are under way", || async { core.held() == 2 }).await;
    let mut third = connect_from("127.0.0.2", &gateway).await;
    third.write_all(ASK).await.unwrap();
    let mut answer = [0; 4096];
    let read = third.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 429 ") && answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(gateway.get("/api/users").await.status, 200, "another client");
    core.release();
    eventually("there is a place again", || async {
        let mut next = connect_from("127.0.0.2", &gateway).await;
        next.write_all(ASK).await.unwrap();
        let mut start = [0; 12];
        next.read_exact(&mut start).await.is_ok() && start == *b"HTTP/1.1 200"
    })
    .await;
}

#[tokio::test]
async fn a_call_that_takes_no_body_refuses_one() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;
    for body in ["Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let ask = format!("GET /api/users HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{body}");
        raw(gateway.addr, ask).await.assert_refused(400, "malformed");
    }
    assert_eq!(core.calls(), 0);
    let ask =
        "GET /api/users HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(raw(gateway.addr, ask).await.status, 200);
}

#[tokio::test]
async fn a_new_connection_has_less_patience_than_a_used_one() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |settings| settings.client_first_byte_ms = 1_500).await;
    let mut used = TcpStream::connect(gateway.addr).await.unwrap();
    let ask = b"GET /api/users HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut buffer = [0; 4096];
    used.write_all(ask).await.unwrap();
    assert!(used.read(&mut buffer).await.unwrap() > 0);
    let mut silent = TcpStream::connect(gateway.addr).await.unwrap();
    let closed = tokio::time::timeout(SOON, silent.read(&mut buffer)).await;
    assert_eq!(closed.expect("closed").unwrap(), 0);
    used.write_all(ask).await.unwrap();
    assert!(used.read(&mut buffer).await.unwrap() > 0, "kept between requests");
}

#[tokio::test]
async fn only_so_many_requests_at_once() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.max_requests = 2).await;
    let held: Vec<_> = (0..2)
        .map(|_| tokio::spawn(gateway.http.get(format!("{}/api/users?hold", gateway.url)).send()))
        .collect();
    eventually("both are in progress", || async { core.held() == 2 }).await;
    gateway.get("/api/users").await.assert_refused(503, "unavailable");
    assert_eq!(gateway.get("/healthz").await.status, 200, "probes have no place to lose");
    core.release();
    for call in held {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    eventually("there is a place again", || async {
        gateway.get("/api/users").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn calls_that_invite_guessing_are_rate_limited() {
    let mesh = Mesh::start().await;
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    let table = tourin_gateway::routes::BUILT_IN.replacen(
        "rate_per_minute = 300",
        "rate_per_minute = 3",
        1,
    );
    std::fs::write(&routes, table).unwrap();
    let gateway = limited(&mesh, |settings| settings.routes = Some(routes)).await;
    for _ in 0..3 {
        assert_eq!(gateway.call("POST", "/api/auth/signup", &[]).await.status, 200);
    }
    let refused = gateway.call("POST", "/api/auth/signup", &[]).await;
    refused.assert_refused(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(gateway.call("POST", "/api/auth/login", &[]).await.status, 200);
}

#[tokio::test]
async fn a_client_may_send_its_next_request_early() {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|settings| settings.header_limit_bytes = 1_000).await;
    let body = "x".repeat(5_000);
    let requests = format!(
        "POST /api/auth/login?n=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}\
         POST /api/auth/login?n=2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n{body}\
         GET /api/users?n=3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    );
    let (mut read, mut write) = TcpStream::connect(gateway.addr).await.unwrap().into_split();
    // In pieces that end anywhere in the heads.
    let pieces = requests.into_bytes();
    for piece in pieces.chunks(97) {
        write.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answers = String::new();
    tokio::time::timeout(SOON, read.read_to_string(&mut answers))
        .await
        .expect("closed after the last")
        .unwrap();
    let places: Vec<_> = ["n=1", "n=2", "n=3"].map(|n| answers.find(n)).into();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{answers}");
    assert!(answers.contains("\"body\":5000"), "{answers}");
    assert_eq!(core.calls(), 3);
}

#[tokio::test]
async fn a_client_may_wait_to_be_asked_for_its_body() {
    let mesh = Mesh::start().await;
    let gateway = limited(&mesh, |_| {}).await;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 100 Continue\r\n"));
    stream.write_all(b"{}").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"body\":2"), "{answer}");
}
