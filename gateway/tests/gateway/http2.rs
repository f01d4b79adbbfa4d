//! HTTP/2 towards clients.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tourin_gateway::Settings;
use tourin_testbed::eventually;

use crate::harness::{Http2, Mesh, Service, Site, TestGateway, ask};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn complete(adjust: impl FnOnce(&mut Settings)) -> (Mesh, Service, Site, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh.tls_gateway(&site, adjust).await;
    (mesh, core, site, gateway)
}

#[tokio::test]
async fn requests_go_through_the_same_checks() {
    let (_mesh, core, site, gateway) = complete(|settings| {
        settings.body_limit_bytes = 1_000;
        settings.header_limit_count = 20;
    })
    .await;
    let client = Http2::open(&site, gateway.addr).await;
    let answer = client.get("/api/users?query=a", &[("x-user-id", "admin")]).await.unwrap();
    let asked = answer.asked();
    assert_eq!((&asked["path"], &asked["query"]), (&"/api/users".into(), &"query=a".into()));
    assert_eq!(asked["headers"]["host"], "tourin.example");
    assert_eq!(asked["headers"]["x-forwarded-host"], "tourin.example");
    assert_eq!(asked["headers"]["x-forwarded-proto"], "https");
    assert!(asked["headers"].get("x-user-id").is_none());
    assert!(answer.header("x-request-id").is_some() && answer.header("server").is_none());

    // Cookies may come in several fields (RFC 9113, 8.2.3).
    let token = core.issuer.token("member01", "s1");
    let session = format!("__Host-access_token={token}");
    let cookies = [("cookie", "theme=dark"), ("cookie", session.as_str()), ("cookie", "a=b")];
    let answer = client.get("/api/auth/me", &cookies).await.unwrap();
    assert_eq!(answer.asked()["subject"]["id"], "member01");
    assert_eq!(answer.asked()["headers"]["cookie"], "theme=dark; a=b");
    client.get("/api/auth/me", &[]).await.unwrap().assert_refused(401, "unauthenticated");
    let cross = [("cookie", session.as_str()), ("origin", "https://evil.example")];
    let write = client.call(ask("POST", "/api/auth/update-profile", &cross), None).await.unwrap();
    write.assert_refused(403, "forbidden");

    client.get("/internal/revocations", &[]).await.unwrap().assert_refused(404, "not_found");
    client.get("/api/%2e%2e/internal/x", &[]).await.unwrap().assert_refused(404, "not_found");
    let deleted = client.call(ask("DELETE", "/api/users", &[]), None).await.unwrap();
    deleted.assert_refused(405, "method_not_allowed");

    // A body needs no length.
    let login = |headers| ask("POST", "/api/auth/login", headers);
    let body = |bytes| Some(Bytes::from(vec![b'x'; bytes]));
    assert_eq!(client.call(login(&[]), body(1_000)).await.unwrap().asked()["body"], 1_000);
    client.call(login(&[]), body(1_001)).await.unwrap().assert_refused(413, "too_large");
    let declared = [("content-length", "1001")];
    client.call(login(&declared), body(1_001)).await.unwrap().assert_refused(413, "too_large");
    let with_body = client.call(ask("GET", "/api/users", &[]), body(1)).await.unwrap();
    with_body.assert_refused(400, "malformed");
    assert!(client.call(login(&[("content-length", "5")]), body(3)).await.is_err());

    let many: Vec<_> = (0..30).map(|n| (format!("a{n}"), "1")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    client.get("/api/users", &many).await.unwrap().assert_refused(431, "too_large");
    let long = format!("/api/users?query={}", "a".repeat(9_000));
    client.get(&long, &[]).await.unwrap().assert_refused(414, "too_large");
    let huge = "a".repeat(100_000);
    let huge = client.get("/api/users", &[("a", &huge)]).await;
    assert!(huge.is_err() || huge.as_ref().is_ok_and(|huge| huge.status == 431), "{huge:?}");
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200, "the connection goes on");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields as HPACK literals without indexing.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap();
        [&[length], text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// What a request that no proper client sends gets: the code of a reset, or the first byte of an answer's
/// header block.
async fn outcome(site: &Site, gateway: &TestGateway, fields: &[(&str, &str)]) -> Result<u32, u8> {
    let mut tls = site.connect(gateway.addr, "tourin.example", &["h2"]).await.unwrap();
    let request = frame(1, 5, 1, &literals(fields));
    tls.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &request].concat()).await.unwrap();
    let read = async {
        loop {
            let mut head = [0; 9];
            tls.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            tls.read_exact(&mut payload).await.unwrap();
            match head[3] {
                1 => return Err(payload[0]),
                3 => return Ok(u32::from_be_bytes(payload.try_into().unwrap())),
                7 => return Ok(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer in time")
}

#[tokio::test]
async fn requests_that_two_servers_could_read_differently_are_refused() {
    const PROTOCOL_ERROR: Result<u32, u8> = Ok(1);
    /// `:status: 400` of HPACK's static table.
    const BAD_REQUEST: Result<u32, u8> = Err(0x8c);
    let (_mesh, core, site, gateway) = complete(|_| {}).await;
    let base = |authority| {
        vec![
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/api/users"),
            (":authority", authority),
        ]
    };
    let served = outcome(&site, &gateway, &base("tourin.example")).await;
    assert_eq!(served, Err(0x88), ":status: 200");
    assert_eq!(core.calls(), 1);
    for (authority, fields, expected) in [
        ("tourin.example", vec![("connection", "close")], PROTOCOL_ERROR),
        ("tourin.example", vec![("transfer-encoding", "chunked")], PROTOCOL_ERROR),
        ("tourin.example", vec![("upgrade", "websocket")], PROTOCOL_ERROR),
        ("tourin.example", vec![("keep-alive", "timeout=5")], PROTOCOL_ERROR),
        ("tourin.example", vec![("proxy-connection", "close")], PROTOCOL_ERROR),
        ("tourin.example", vec![("te", "gzip")], PROTOCOL_ERROR),
        ("tourin.example", vec![("content-length", "5")], PROTOCOL_ERROR),
        ("tourin.example", vec![("content-length", "0"), ("content-length", "7")], PROTOCOL_ERROR),
        ("tourin.example", vec![(":path", "/api/auth/me")], PROTOCOL_ERROR),
        ("tourin.example", vec![("host", "other.example")], BAD_REQUEST),
        ("tourin.example", vec![("host", "tourin.example"), ("host", "h")], BAD_REQUEST),
        ("admin@tourin.example", vec![], BAD_REQUEST),
        ("tourin.example:x", vec![], BAD_REQUEST),
    ] {
        let fields = [base(authority), fields].concat();
        let got = outcome(&site, &gateway, &fields).await;
        assert_eq!(got, expected, "{fields:?}");
    }
    for target in ["http://other.example/api/users", "/api/users\r\nx: y", "/api/users x"] {
        let fields = [(":method", "GET"), (":scheme", "https"), (":path", target)];
        let fields = [fields.as_slice(), &[(":authority", "tourin.example")]].concat();
        let got = outcome(&site, &gateway, &fields).await;
        assert!([PROTOCOL_ERROR, BAD_REQUEST].contains(&got), "{target:?}: {got:?}");
    }
    let tunnel = [(":method", "CONNECT"), (":authority", "tourin.example:443")];
    let tunnel = outcome(&site, &gateway, &tunnel).await;
    assert!(tunnel.is_ok() || tunnel.is_err_and(|status| status != 0x88), "{tunnel:?}");
    assert_eq!(core.calls(), 1);
}

#[tokio::test]
async fn both_protocols_are_offered_or_one() {
    let (mesh, _core, site, gateway) = complete(|_| {}).await;
    let chosen = async |gateway: &TestGateway, alpn: &[&str]| {
        let tls = site.connect(gateway.addr, "tourin.example", alpn).await.ok()?;
        Some(tls.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()))
    };
    let name = |name: &str| Some(Some(name.to_owned()));
    assert_eq!(chosen(&gateway, &["http/1.1", "h2"]).await, name("h2"));
    assert_eq!(chosen(&gateway, &["http/1.1"]).await, name("http/1.1"));
    assert_eq!(chosen(&gateway, &[]).await, Some(None));
    assert_eq!(chosen(&gateway, &["smtp"]).await, None, "no common protocol");
    let older = mesh.tls_gateway(&site, |settings| settings.http2.max_streams = 0).await;
    assert_eq!(chosen(&older, &["h2", "http/1.1"]).await, name("http/1.1"));
}

#[tokio::test]
async fn one_connections_requests_are_limited_like_all_of_a_client() {
    let (_mesh, core, site, gateway) = complete(|settings| {
        settings.http2.max_streams = 3;
        settings.max_requests_per_client = 2;
    })
    .await;
    let client = Http2::open(&site, gateway.addr).await;
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200);
    assert_eq!(client.requests.current_max_send_streams(), 3);
    gateway.is_idle().await;
    let held = || {
        let requests = client.requests.clone();
        tokio::spawn(async move {
            let mut ready = requests.ready().await.unwrap();
            let (response, _) = ready.send_request(ask("GET", "/api/users?hold", &[]), true)?;
            response.await.map(|response| response.status().as_u16())
        })
    };
    let (one, two) = (held(), held());
    eventually("both are under way", || async { core.held() == 2 }).await;
    let third = client.get("/api/users", &[]).await.unwrap();
    third.assert_refused(429, "rate_limited");
    core.release();
    for held in [one, two] {
        assert_eq!(held.await.unwrap().unwrap(), 200);
    }
    gateway.is_idle().await;
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200);
}

#[tokio::test]
async fn refusals_that_are_not_read_are_bounded_too() {
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    let (_mesh, _core, site, gateway) = complete(|settings| {
        settings.max_requests_per_client = 1;
        settings.client_stall_ms = 600_000;
    })
    .await;
    let mut tls = site.connect(gateway.addr, "tourin.example", &["h2"]).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE: no byte of a body may be sent.
    let no_window = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let mut sent = [PREFACE, &no_window].concat();
    for stream in [1, 3, 5] {
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/api/nothing"),
            (":authority", "tourin.example"),
        ];
        sent.extend(frame(1, 5, stream, &literals(&fields)));
    }
    tls.write_all(&sent).await.unwrap();
    let reset = async {
        loop {
            let mut head = [0; 9];
            tls.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            tls.read_exact(&mut payload).await.unwrap();
            if head[3] == 3 {
                return payload;
            }
        }
    };
    let reset = tokio::time::timeout(Duration::from_secs(10), reset).await.expect("one is reset");
    assert_eq!(reset, CANCEL);
}

#[tokio::test]
async fn a_flood_of_resets_closes_its_connection_and_no_other() {
    let (_mesh, core, site, gateway) = complete(|_| {}).await;
    let other = Http2::open(&site, gateway.addr).await;
    assert_eq!(other.get("/api/users", &[]).await.unwrap().status, 200);
    let attacker = Http2::open(&site, gateway.addr).await;
    let before = core.calls();
    let flood = async {
        let mut requests = attacker.requests.clone();
        for sent in 0_usize..100_000 {
            let Ok(mut ready) = requests.ready().await else { return sent };
            let Ok((_, mut stream)) = ready.send_request(ask("GET", "/api/users?hold", &[]), true)
            else {
                return sent;
            };
            // Once a service works on it.
            let reached = || core.calls() - before > sent || attacker.connection.is_finished();
            while !reached() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stream.send_reset(h2::Reason::CANCEL);
            requests = ready;
        }
        100_000
    };
    let sent = tokio::time::timeout(Duration::from_secs(60), flood).await.expect("it is closed");
    assert!((100..200).contains(&sent), "{sent}");
    eventually("the flood is counted", || async {
        gateway.metric("tourin_gateway_http2_reset_floods_total").await == 1.0
    })
    .await;
    assert_eq!(other.get("/api/users", &[]).await.unwrap().status, 200);
    eventually("no request is left", || async {
        gateway.metric("tourin_gateway_requests_in_flight").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_takes_no_new_ones() {
    let (_mesh, core, site, mut gateway) =
        complete(|settings| settings.drain_timeout_ms = 60_000).await;
    let client = Http2::open(&site, gateway.addr).await;
    let idle = Http2::open(&site, gateway.addr).await;
    assert_eq!(idle.get("/api/users", &[]).await.unwrap().status, 200);
    let mut ready = client.requests.clone().ready().await.unwrap();
    let (response, _) = ready.send_request(ask("GET", "/api/users?hold", &[]), true).unwrap();
    let in_flight = tokio::spawn(response);
    eventually("the request is in progress", || async { core.held() == 1 }).await;
    gateway.stop.begin();
    // The idle connection ends; its last frames may come too late.
    let _ = idle.connection.await.unwrap();
    assert!(idle.requests.clone().ready().await.is_err());
    core.release();
    assert_eq!(in_flight.await.unwrap().unwrap().status(), 200);
    drop((ready, client.requests));
    let _ = client.connection.await.unwrap();
    (&mut gateway.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_and_bodies_that_stall_are_ended() {
    let (_mesh, core, site, gateway) = complete(|settings| {
        settings.client_first_byte_ms = 2_000;
        settings.header_read_timeout_ms = 3_000;
        settings.client_stall_ms = 2_000;
        settings.client_idle_ms = 3_000;
    })
    .await;
    for start in [&b""[..], &PREFACE[..10], &[PREFACE, &frame(4, 0, 0, &[])].concat()[..]] {
        let mut tls = site.connect(gateway.addr, "tourin.example", &["h2"]).await.unwrap();
        tls.write_all(start).await.unwrap();
        let mut answer = Vec::new();
        let closed = tls.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
    }
    // An idle connection that has served.
    let idle = Http2::open(&site, gateway.addr).await;
    assert_eq!(idle.get("/api/users", &[]).await.unwrap().status, 200);
    let _ = tokio::time::timeout(Duration::from_secs(10), idle.connection).await.expect("closed");

    // A body that does not come, beside a request that does.
    let client = Http2::open(&site, gateway.addr).await;
    let mut ready = client.requests.clone().ready().await.unwrap();
    let (response, mut body) =
        ready.send_request(ask("POST", "/api/auth/login", &[]), false).unwrap();
    body.send_data(Bytes::from_static(b"{"), false).unwrap();
    assert_eq!(client.get("/api/users", &[]).await.unwrap().status, 200);
    let response = tokio::time::timeout(Duration::from_secs(10), response).await.expect("in time");
    assert_eq!(response.unwrap().status(), 408);
    assert_eq!(core.calls(), 2);
}
