//! WebSockets and server-sent events.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_gateway::Settings;
use tourin_testbed::eventually;

use crate::harness::websocket::{ACCEPT, BINARY, CLOSE, Frame, KEY, TEXT, handshake};
use crate::harness::{Http2, Live, Mesh, Service, Site, TestGateway, WebSocket, ask, raw};

const ROUTES: &str = r#"
[[route]]
path = "/api/auth/me"
service = "core"
methods = { GET = "session" }

[[route]]
path = "/api/users"
service = "core"
methods = { GET = "public" }

[[route]]
path = "/api/live"
service = "live"
methods = { GET = "public" }
upgrade = "websocket"

[[route]]
path = "/api/live/mine"
service = "live"
methods = { GET = "session" }
upgrade = "websocket"

[[route]]
path = "/api/events"
service = "live"
methods = { GET = "public" }
stream = true

[[route]]
path = "/api/events/mine"
service = "live"
methods = { GET = "session" }
stream = true
"#;

async fn streaming(adjust: impl FnOnce(&mut Settings)) -> (Mesh, Service, Live, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let live = Live::start(&mesh).await;
    let gateway = mesh.gateway_with(ROUTES, adjust).await;
    (mesh, core, live, gateway)
}

/// A client of events, which have been opened.
async fn events(gateway: &TestGateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let ask = "GET /api/events HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip, br\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains("text/event-stream"), "{head}");
    assert!(!head.contains("content-encoding"), "{head}");
    stream
}

/// Reads until the text has come.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(end) {
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "ended after {:?}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it comes");
    String::from_utf8(read).unwrap()
}

async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let reading = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it ends");
}

#[tokio::test]
async fn a_websocket_passes_both_ways_with_the_callers_identity() {
    let (_mesh, core, live, gateway) = streaming(|_| {}).await;
    let bearer = format!("Bearer {}", core.issuer.token("member01", "s1"));
    let headers = [
        ("Authorization", bearer.as_str()),
        ("X-Tourin-Identity", "forged"),
        ("Sec-WebSocket-Protocol", "chat"),
    ];
    let mut socket = WebSocket::connect(gateway.addr, "/api/live/mine?a=1", &headers).await;
    assert_eq!(socket.head.header("sec-websocket-accept"), Some(ACCEPT));
    assert_eq!(socket.head.header("upgrade"), Some("websocket"));
    assert!(socket.head.header("x-tourin-internal").is_none());
    assert!(socket.head.header("x-request-id").is_some());
    let head = live.last_head();
    assert!(head.starts_with("get /api/live/mine?a=1 "), "{head}");
    assert!(head.contains("\nupgrade: websocket\r") && head.contains("\nconnection: upgrade\r"));
    assert!(head.contains(&format!("\nsec-websocket-key: {}\r", KEY.to_ascii_lowercase())));
    assert!(head.contains("\nsec-websocket-protocol: chat\r"));
    assert!(head.contains("\nx-tourin-identity: ") && !head.contains("forged"));
    assert!(!head.contains("\nauthorization:"), "{head}");

    socket.say("안녕하세요").await;
    assert_eq!(socket.receive().await.unwrap().text(), "안녕하세요");
    for length in [0, 125, 126, 65_535, 65_536, 300_000] {
        let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let send = socket.send(BINARY, &payload);
        send.await;
        let frame = socket.receive().await.unwrap();
        assert!(frame.opcode == BINARY && frame.payload == payload, "{length}");
    }
    assert_eq!(gateway.metric(r#"tourin_gateway_streams{kind="websocket"}"#).await, 1.0);
    assert_eq!(gateway.metric("tourin_gateway_streams_of_busiest_client").await, 1.0);

    socket.send(CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(socket.receive().await.unwrap().status(), 1000);
    assert_eq!(socket.receive().await, None);
    eventually("the stream is counted as ended", || async {
        gateway.metric(r#"tourin_gateway_streams_closed_total{reason="ended"}"#).await == 1.0
    })
    .await;
    assert_eq!(gateway.metric(r#"tourin_gateway_streams{kind="websocket"}"#).await, 0.0);
    assert_eq!(live.closes(), [1000]);
}

#[tokio::test]
async fn a_websocket_stays_open_however_fast_its_service_answers() {
    let (_mesh, _core, live, gateway) = streaming(|_| {}).await;
    for round in 0..200 {
        let mut socket = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
        socket.say("hello").await;
        let frame = socket.receive().await;
        assert_eq!(frame.as_ref().map(Frame::text), Some("hello"), "round {round}");
        socket.send(CLOSE, &1000_u16.to_be_bytes()).await;
        assert_eq!(socket.receive().await.unwrap().status(), 1000);
    }
    assert_eq!(live.closes().len(), 200);
    // A refused handshake leaves no connection that another one could get.
    for _ in 0..20 {
        let refused = WebSocket::try_connect(gateway.addr, "/api/live?refuse", &[]).await;
        assert_eq!(refused.unwrap_err().status, 403);
    }
    eventually("the service has been left", || async { live.open() == 0 }).await;
}

#[tokio::test]
async fn frames_that_come_with_the_handshake_are_not_lost() {
    let (_mesh, _core, _live, gateway) = streaming(|_| {}).await;
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let mut wire = handshake("/api/live", &[]).into_bytes();
    wire.extend(crate::harness::websocket::encode(TEXT, b"early", Some([1, 2, 3, 4])));
    stream.write_all(&wire).await.unwrap();
    let head = crate::harness::websocket::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let frame = crate::harness::websocket::read_frame(&mut stream);
    let frame = tokio::time::timeout(Duration::from_secs(10), frame).await.expect("a frame");
    assert_eq!(frame.unwrap().text(), "early");
}

#[tokio::test]
async fn a_handshake_is_refused_unless_all_of_it_is_right() {
    let (_mesh, core, live, gateway) = streaming(|settings| {
        settings.allowed_origins = vec!["https://app.example".parse().unwrap()];
    })
    .await;
    let refused = async |path: &str, headers: &[(&str, &str)], status: u16, error: &str| {
        let response = WebSocket::try_connect(gateway.addr, path, headers).await.unwrap_err();
        response.assert_refused(status, error);
        response
    };
    refused("/api/live/mine", &[], 401, "unauthenticated").await;
    refused("/api/live/mine", &[("Authorization", "Bearer x")], 401, "unauthenticated").await;
    let old = refused("/api/live", &[("Sec-WebSocket-Version", "8")], 426, "upgrade_required");
    assert_eq!(old.await.header("sec-websocket-version"), Some("13"));
    refused("/api/live", &[("Sec-WebSocket-Key", "short")], 400, "malformed").await;
    refused("/api/live", &[("Content-Length", "1")], 400, "malformed").await;
    gateway.get("/api/live").await.assert_refused(426, "upgrade_required");
    let old =
        "GET /api/live HTTP/1.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    raw(gateway.addr, old).await.assert_refused(426, "upgrade_required");

    // Any page may open a WebSocket, and the browser adds its cookies.
    let cookie = format!("__Host-access_token={}", core.issuer.token("member01", "s1"));
    let from = |origin| [("Cookie", cookie.as_str()), ("Origin", origin)];
    refused("/api/live/mine", &from("https://evil.example"), 403, "forbidden").await;
    refused("/api/live/mine", &from("null"), 403, "forbidden").await;
    refused("/api/live", &[("Origin", "https://evil.example")], 403, "forbidden").await;
    assert_eq!(live.open(), 0);
    for origin in ["http://h", "https://app.example"] {
        WebSocket::connect(gateway.addr, "/api/live/mine", &from(origin)).await;
    }
    // No other path upgrades.
    let plain = WebSocket::try_connect(gateway.addr, "/api/users", &[]).await.unwrap_err();
    assert_eq!(plain.status, 200);
    assert!(plain.body["headers"].get("upgrade").is_none(), "{plain:?}");
    // A service may refuse too.
    let refused = WebSocket::try_connect(gateway.addr, "/api/live?refuse", &[]).await.unwrap_err();
    assert_eq!((refused.status, refused.text.as_str()), (403, "{}"));
}

#[tokio::test]
async fn an_open_stream_has_no_deadline_and_holds_no_permit_but_an_idle_one_ends() {
    let (_mesh, _core, live, gateway) = streaming(|settings| {
        settings.first_byte_timeout_ms = 1_000;
        settings.total_timeout_ms = 1_200;
        settings.client_stall_ms = 1_000;
        settings.max_requests = 1;
        settings.max_requests_per_client = 1;
        settings.streams.stream_idle_ms = 5_000;
    })
    .await;
    let mut socket = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    let mut feed = events(&gateway).await;
    for round in ["one", "two"] {
        // Longer than each time-out of an ordinary exchange.
        assert!(socket.is_quiet_for(Duration::from_millis(2_000)).await);
        socket.say(round).await;
        assert_eq!(socket.receive().await.unwrap().text(), round);
        live.send_event(round);
        assert!(read_until(&mut feed, "\n\n").await.contains(round));
        gateway.is_idle().await;
        assert_eq!(gateway.get("/api/users").await.status, 200);
    }
    let closed = socket.receive().await.unwrap();
    assert_eq!(closed.status(), 1001);
    ends(&mut feed).await;
    eventually("both are counted as idle", || async {
        gateway.metric(r#"tourin_gateway_streams_closed_total{reason="idle"}"#).await == 2.0
    })
    .await;
    // Before a stream has begun the ordinary time-outs hold.
    let silent = WebSocket::try_connect(gateway.addr, "/api/live?silent", &[]).await.unwrap_err();
    silent.assert_refused(504, "timeout");
    gateway.is_idle().await;
    gateway.get("/api/events?silent").await.assert_refused(504, "timeout");
    gateway.is_idle().await;
    // And for a response that is no stream, although its route allows one.
    let plain = "GET /api/events?plain HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut cut = TcpStream::connect(gateway.addr).await.unwrap();
    cut.write_all(plain.as_bytes()).await.unwrap();
    ends(&mut cut).await;
    eventually("the service has been left", || async { live.open() == 0 }).await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_service_down() {
    const BOUND: u64 = 64 << 20;
    let (_mesh, _core, live, gateway) = streaming(|_| {}).await;
    let mut socket = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    socket.say("flood").await;
    // The service writes until all buffers on the way are full, and no further.
    eventually("the service is held up", || async {
        let before = live.flooded();
        tokio::time::sleep(Duration::from_millis(500)).await;
        before > 0 && live.flooded() == before
    })
    .await;
    let buffered = live.flooded();
    assert!(buffered < BOUND, "{buffered} bytes are buffered");
    // What the client takes makes room for as much.
    let mut taken = 0;
    while taken < 2 * buffered {
        taken += socket.receive().await.unwrap().payload.len() as u64;
    }
    assert!(live.flooded() >= taken && live.flooded() <= taken + BOUND, "{}", live.flooded());
    drop(socket);
    eventually("the service is told of the end", || async { live.open() == 0 }).await;
}

#[tokio::test]
async fn streams_are_bounded_per_client_and_in_all() {
    let (_mesh, _core, _live, gateway) = streaming(|settings| {
        settings.streams.max_streams_per_client = 2;
        settings.streams.max_streams = 3;
    })
    .await;
    let one = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    let _events = events(&gateway).await;
    let refused = WebSocket::try_connect(gateway.addr, "/api/live", &[]).await.unwrap_err();
    refused.assert_refused(429, "rate_limited");
    gateway.get("/api/events").await.assert_refused(429, "rate_limited");
    assert_eq!(gateway.get("/api/users").await.status, 200);
    drop(one);
    eventually("there is room again", || async {
        WebSocket::try_connect(gateway.addr, "/api/live", &[]).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_its_session() {
    let (_mesh, core, live, gateway) = streaming(|_| {}).await;
    let bearer = |session| format!("Bearer {}", core.issuer.token("member01", session));
    let (one, two) = (bearer("s1"), bearer("s2"));
    let mine = "/api/live/mine";
    let mut ends = WebSocket::connect(gateway.addr, mine, &[("Authorization", &one)]).await;
    let mut stays = WebSocket::connect(gateway.addr, mine, &[("Authorization", &two)]).await;
    core.end_session("s1");
    assert_eq!(ends.receive().await.unwrap().status(), 1008);
    // The service hears it from the client, which answers the Close frame.
    ends.send(CLOSE, &1008_u16.to_be_bytes()).await;
    assert_eq!(ends.receive().await, None);
    eventually("the service knows", || async { live.closes() == [1008] }).await;
    stays.say("still here").await;
    assert_eq!(stays.receive().await.unwrap().text(), "still here");
}

#[tokio::test]
async fn a_stop_closes_streams_between_two_frames() {
    let (_mesh, _core, live, mut gateway) =
        streaming(|settings| settings.drain_timeout_ms = 10_000).await;
    let mut polite = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    let mut mute = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    let mut half = WebSocket::connect(gateway.addr, "/api/live", &[]).await;
    let mut feed = events(&gateway).await;
    polite.say("hello").await;
    assert_eq!(polite.receive().await.unwrap().text(), "hello");
    half.say("half").await;
    eventually("half a frame has come", || async {
        half.stream.peek(&mut [0; 512]).await.unwrap() >= 300
    })
    .await;

    gateway.stop.begin();
    assert_eq!(polite.receive().await.unwrap().status(), 1001);
    // At once: it has a second for it.
    polite.send(CLOSE, &1001_u16.to_be_bytes()).await;
    assert_eq!(mute.receive().await.unwrap().status(), 1001);
    // The frame under way is finished first, and nothing follows it but the Close frame.
    live.send_the_rest();
    assert_eq!(half.receive().await.unwrap().payload, [b'y'; 1_000]);
    assert_eq!(half.receive().await.unwrap().status(), 1001);
    assert_eq!(polite.receive().await, None);
    ends(&mut feed).await;
    // A client that does not answer does not hold the gateway up.
    assert_eq!(mute.receive().await, None);
    assert_eq!(half.receive().await, None);
    (&mut gateway.running).await.unwrap().unwrap();
    assert_eq!(live.closes(), [1001]);
}

#[tokio::test]
async fn each_event_is_passed_on_at_once() {
    let (_mesh, _core, live, gateway) = streaming(|_| {}).await;
    let mut feed = events(&gateway).await;
    for number in 0..20 {
        let event = format!("number {number}");
        live.send_event(&event);
        let passed = read_until(&mut feed, "\n\n").await;
        assert!(passed.contains(&format!("data: {event}\n\n")), "{passed}");
    }
    assert_eq!(gateway.metric(r#"tourin_gateway_streams{kind="events"}"#).await, 1.0);
    drop(feed);
    eventually("the service is told of the end", || async { live.open() == 0 }).await;
}

/// The next part of a body over HTTP/2; `None` if it ends, or breaks off.
async fn next_part(body: &mut h2::RecvStream) -> Option<String> {
    let part = tokio::time::timeout(Duration::from_secs(10), body.data()).await.expect("in time");
    let part = part?.ok()?;
    body.flow_control().release_capacity(part.len()).unwrap();
    Some(String::from_utf8(part.to_vec()).unwrap())
}

async fn streaming_over_tls(
    adjust: impl FnOnce(&mut Settings),
) -> (Mesh, Service, Live, Site, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    let live = Live::start(&mesh).await;
    let site = Site::new(&["tourin.example"]);
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    std::fs::write(&routes, ROUTES).unwrap();
    let set = |settings: &mut Settings| {
        settings.routes = Some(routes);
        settings.drain_timeout_ms = 60_000;
        adjust(settings);
    };
    let gateway = mesh.tls_gateway(&site, set).await;
    (mesh, core, live, site, gateway)
}

#[tokio::test]
async fn events_over_http2_end_with_their_session_and_at_a_stop() {
    let (_mesh, core, live, site, mut gateway) = streaming_over_tls(|_| {}).await;
    let address = gateway.addr;
    let open = async |path: &str, headers: &[(&str, &str)]| {
        let client = Http2::open(&site, address).await;
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, _) = requests.send_request(ask("GET", path, headers), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        (client, response.into_body())
    };
    let bearer = format!("Bearer {}", core.issuer.token("member01", "s1"));
    let (member, mut mine) = open("/api/events/mine", &[("authorization", &bearer)]).await;
    let (_visitor, mut all) = open("/api/events", &[]).await;
    live.send_event("one");
    for body in [&mut mine, &mut all] {
        assert_eq!(next_part(body).await.as_deref(), Some("data: one\n\n"));
    }
    core.end_session("s1");
    assert_eq!(next_part(&mut mine).await, None);
    let closed = tokio::time::timeout(Duration::from_secs(10), member.connection).await;
    let _ = closed.expect("a connection without other requests ends");
    live.send_event("two");
    assert_eq!(next_part(&mut all).await.as_deref(), Some("data: two\n\n"));
    eventually("it is counted", || async {
        let closed = r#"tourin_gateway_streams_closed_total{reason="session_ended"}"#;
        gateway.metric(closed).await == 1.0
    })
    .await;

    let stopped = std::time::Instant::now();
    gateway.stop.begin();
    assert_eq!(next_part(&mut all).await, None);
    (&mut gateway.running).await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(30), "the drain has not waited for it");
    eventually("the service has been left", || async { live.open() == 0 }).await;
}

#[tokio::test]
async fn quiet_events_over_http2_end_as_idle() {
    let (_mesh, _core, live, site, gateway) = streaming_over_tls(|settings| {
        settings.first_byte_timeout_ms = 1_000;
        settings.streams.stream_idle_ms = 1_000;
    })
    .await;
    let client = Http2::open(&site, gateway.addr).await;
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (response, _) = requests.send_request(ask("GET", "/api/events", &[]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next_part(&mut body).await, None);
    eventually("it is counted", || async {
        gateway.metric(r#"tourin_gateway_streams_closed_total{reason="idle"}"#).await == 1.0
    })
    .await;
    eventually("the service has been left", || async { live.open() == 0 }).await;
}

#[tokio::test]
async fn an_ended_sessions_events_are_withheld_while_its_connection_has_other_requests() {
    let (_mesh, core, live, site, gateway) = streaming_over_tls(|_| {}).await;
    let client = Http2::open(&site, gateway.addr).await;
    let bearer = format!("Bearer {}", core.issuer.token("member01", "s1"));
    let mut requests = client.requests.clone().ready().await.unwrap();
    let events = ask("GET", "/api/events/mine", &[("authorization", &bearer)]);
    let (mine, _) = requests.send_request(events, true).unwrap();
    let mut mine = mine.await.unwrap().into_body();
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (held, _) = requests.send_request(ask("GET", "/api/users?hold", &[]), true).unwrap();
    eventually("a request is under way", || async { core.held() == 1 }).await;
    live.send_event("one");
    assert_eq!(next_part(&mut mine).await.as_deref(), Some("data: one\n\n"));
    core.end_session("s1");
    eventually("the gateway knows", || async {
        gateway.call_as(&bearer["Bearer ".len()..], "GET", "/api/auth/me").await.status == 401
    })
    .await;
    // The streams are compared with the ended sessions now and then.
    eventually("nothing more is passed on", async || {
        live.send_event("two");
        next_part(&mut mine).await.is_none()
    })
    .await;
    core.release();
    assert_eq!(held.await.unwrap().status(), 200, "the other request is not cut");
}

#[tokio::test]
async fn over_http2_too_a_response_has_its_timeouts_until_it_is_a_stream() {
    let (_mesh, _core, live, site, gateway) = streaming_over_tls(|settings| {
        settings.first_byte_timeout_ms = 2_000;
        settings.total_timeout_ms = 4_000;
    })
    .await;
    let client = Http2::open(&site, gateway.addr).await;
    let open = async |path: &str| {
        let mut requests = client.requests.clone().ready().await.unwrap();
        requests.send_request(ask("GET", path, &[]), true).unwrap().0.await.unwrap().into_body()
    };
    let mut events = open("/api/events").await;
    let mut plain = open("/api/events?plain").await;
    client.get("/api/events?silent", &[]).await.unwrap().assert_refused(504, "timeout");
    assert_eq!(next_part(&mut plain).await, None, "it is no stream");
    live.send_event("one");
    assert_eq!(next_part(&mut events).await.as_deref(), Some("data: one\n\n"));
    drop(events);
    eventually("the service has been left", || async { live.open() == 0 }).await;
}
