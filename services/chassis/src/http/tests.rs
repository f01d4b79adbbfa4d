use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{any, get, post};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_testbed::eventually;
use tower::ServiceExt;

use super::*;
use crate::health::Health;
use crate::identity::testing::{gateway_signer, peer};
use crate::identity::{IDENTITY_HEADER, Subject};
use crate::peer::Peer;
use crate::shutdown::Shutdown;

/// For the gateway and an operator; what a test does not say otherwise, the gateway asks.
const CALLERS: Callers = &[("/", &["gateway"])];

fn router(health: Health, limits: &HttpLimits) -> Router {
    let routes = Router::new()
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("boom")
                }
            }),
        )
        .route("/echo", post(|Json(body): Json<Vec<u32>>| async move { Json(body) }))
        .route("/me", get(|caller: MemberCaller| async move { caller.id }))
        .route("/who", get(|caller: Caller| async move { format!("{:?}", caller.0.is_some()) }))
        .route("/slow", any(|| async { std::future::pending::<()>().await }));
    service_router("demo", routes, Admission::new("demo", CALLERS), health, limits)
}

fn plain() -> Router {
    router(Health::new(), &HttpLimits::default())
}

async fn answer(
    router: Router,
    mut request: Request<Body>,
) -> (StatusCode, http::HeaderMap, String) {
    if request.extensions().get::<Arc<Peer>>().is_none() {
        let is_probe = ["/healthz", "/readyz", "/metrics"].contains(&request.uri().path());
        request.extensions_mut().insert(peer(if is_probe { "operator" } else { "gateway" }));
    }
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn get_request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

fn kind(body: &str) -> String {
    serde_json::from_str::<ErrorBody>(body).unwrap().error
}

#[tokio::test]
async fn every_refusal_has_the_error_body() {
    let (status, _, body) = answer(plain(), get_request("/nowhere")).await;
    assert_eq!((status, kind(&body).as_str()), (StatusCode::NOT_FOUND, "not_found"));

    let (status, headers, body) = answer(plain(), get_request("/echo")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(headers[header::ALLOW], "POST");
    assert_eq!(kind(&body), "method_not_allowed");

    let (status, _, body) = answer(plain(), get_request("/panic")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!body.contains("boom"), "the cause must not reach the client: {body}");
}

#[tokio::test]
async fn each_kind_of_invalid_body_has_its_own_error() {
    let json = |body: &'static str| {
        Request::post("/echo")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    assert_eq!(answer(plain(), json("[1,2]")).await.2, "[1,2]");
    for (sent, status, message) in [
        ("[1,", 400, "the body is not JSON: look at line 1, column 3"),
        ("", 400, "the body is empty: expected JSON"),
        ("{}", 422, "the body is JSON, but not of the form that this call accepts"),
        (r#"[1,"2"]"#, 422, "[1] must be a whole number from 0 on"),
    ] {
        let (answered, _, body) = answer(plain(), json(sent)).await;
        let said = serde_json::from_str::<ErrorBody>(&body).unwrap().message;
        assert_eq!((answered.as_u16(), &*said), (status, message), "{sent}");
    }
    let untyped = Request::post("/echo").body(Body::from("[1]")).unwrap();
    assert_eq!(answer(plain(), untyped).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let limits = HttpLimits { body_bytes: 4, ..HttpLimits::default() };
    let router = router(Health::new(), &limits);
    let (status, _, body) = answer(router, json("[1,2,3]")).await;
    assert_eq!((status, kind(&body).as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too_large"));
}

#[tokio::test]
async fn every_refusal_is_in_the_readers_language() {
    let ask = |method: &str, path: &str, languages: &str| {
        let request = Request::builder().method(method).uri(path);
        request.header(header::ACCEPT_LANGUAGE, languages).body(Body::empty()).unwrap()
    };
    let limits = HttpLimits { request_timeout_ms: 50, ..HttpLimits::default() };
    let router = router(Health::new(), &limits);
    for (method, path, status, korean) in [
        ("GET", "/nowhere", 404, "요청하신 경로를 찾을 수 없습니다."),
        ("GET", "/echo", 405, "이 경로에서 사용할 수 없는 메서드입니다."),
        ("POST", "/echo", 400, "요청 본문이 비어 있습니다."),
        ("GET", "/me", 401, "로그인이 필요합니다."),
        ("GET", "/panic", 500, "서버에 문제가 생겼습니다."),
        ("GET", "/slow", 503, "요청을 처리하는 데 시간이 너무 오래 걸렸습니다."),
    ] {
        let answered = answer(router.clone(), ask(method, path, "ko-KR,ko;q=0.9,en;q=0.8")).await;
        let (answered, headers, body) = answered;
        let body: ErrorBody = serde_json::from_str(&body).unwrap();
        assert_eq!(answered.as_u16(), status, "{path}");
        assert!(body.message.starts_with(korean), "{path}: {body:?}");
        assert_eq!(headers[header::CONTENT_LANGUAGE], "ko", "{path}");
        assert_eq!(headers[header::VARY], "accept-language", "{path}");
        let trace = body.trace_id.expect("a trace");
        assert_eq!(headers[crate::identity::REQUEST_ID_HEADER], trace.as_str(), "{path}");

        let (answered, headers, english) =
            answer(router.clone(), ask(method, path, "fr, de;q=0.5")).await;
        let english: ErrorBody = serde_json::from_str(&english).unwrap();
        assert_eq!((answered.as_u16(), &english.error), (status, &body.error), "{path}");
        assert!(english.message.is_ascii(), "{path}: {english:?}");
        assert_eq!(headers[header::CONTENT_LANGUAGE], "en", "{path}");
        assert_eq!(headers[header::VARY], "accept-language", "{path}");
    }
    // Messages for operators are in English.
    let (status, headers, _) =
        answer(router.clone(), ask("GET", "/internal/log-filter", "ko")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(headers[header::CONTENT_LANGUAGE], "en");
    assert!(!headers.contains_key(header::VARY));
    // A successful response is not changed.
    let (_, headers, _) = answer(router, ask("GET", "/who", "ko")).await;
    assert!(!headers.contains_key(header::VARY) && !headers.contains_key(header::CONTENT_LANGUAGE));
}

#[tokio::test]
async fn only_a_signed_identity_counts() {
    let router = router(Health::new(), &HttpLimits::default());
    let member = Subject::Member { id: "traveller".into(), session: "s".into(), roles: Vec::new() };
    let mut signed = get_request("/me");
    let value = gateway_signer().sign(&member, "demo");
    signed.headers_mut().insert(IDENTITY_HEADER, value);
    assert_eq!(answer(router.clone(), signed).await.2, "traveller");

    assert_eq!(answer(router.clone(), get_request("/me")).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(answer(router.clone(), get_request("/who")).await.2, "false");

    // One for another service, one by another key, and one that somebody else brings.
    let elsewhere = gateway_signer().sign(&member, "other");
    let good = gateway_signer().sign(&member, "demo");
    let other_gateway = Arc::new(Peer { public_key: [7; 32], ..(*peer("gateway")).clone() });
    for (value, from) in
        [(elsewhere, peer("gateway")), (good.clone(), other_gateway), (good, peer("operator"))]
    {
        let mut forged = get_request("/who");
        forged.headers_mut().insert(IDENTITY_HEADER, value);
        forged.extensions_mut().insert(from);
        assert_eq!(answer(router.clone(), forged).await.0, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_liveness_does_not_care() {
    let health = Health::new();
    let database = health.register("database");
    let router = router(health, &HttpLimits::default());
    let (status, _, body) = answer(router.clone(), get_request("/readyz")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains(r#""database":"not reached yet""#), "{body}");
    assert_eq!(answer(router.clone(), get_request("/healthz")).await.0, StatusCode::OK);
    database.set_ready();
    assert_eq!(answer(router, get_request("/readyz")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn work_over_the_limits_is_answered_503_with_retry_after() {
    let limits =
        HttpLimits { concurrent_requests: 1, request_timeout_ms: 50, ..HttpLimits::default() };
    let router = router(Health::new(), &limits);
    let (first, second) = tokio::join!(
        answer(router.clone(), get_request("/slow")),
        answer(router.clone(), get_request("/slow")),
    );
    for (status, headers, _) in [first, second] {
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers[header::RETRY_AFTER], "1");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_the_clients_fault_and_a_slow_handler_is_not() {
    let limits = HttpLimits { request_timeout_ms: 50, ..HttpLimits::default() };
    let router = router(Health::new(), &limits);
    let begun = futures::stream::iter([Ok::<_, std::io::Error>("[1")]);
    let stalled = futures::StreamExt::chain(begun, futures::stream::pending());
    let request = |path: &str, body| {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        request.body(body).unwrap()
    };
    let late = answer(router.clone(), request("/echo", Body::from_stream(stalled))).await;
    assert_eq!((late.0, kind(&late.2).as_str()), (StatusCode::REQUEST_TIMEOUT, "timeout"));
    let slow = answer(router, request("/slow", Body::from("[1]"))).await;
    assert_eq!(slow.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn bodies_that_do_not_come_take_no_permits() {
    let limits = HttpLimits { concurrent_requests: 2, ..HttpLimits::default() };
    let router = router(Health::new(), &limits);
    let stalled = || {
        let begun = futures::stream::iter([Ok::<_, std::io::Error>("[1")]);
        let body = Body::from_stream(futures::StreamExt::chain(begun, futures::stream::pending()));
        Request::post("/echo").header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
    };
    let waiting: Vec<_> =
        (0..400).map(|_| tokio::spawn(answer(router.clone(), stalled()))).collect();
    tokio::task::yield_now().await;
    let served = Request::post("/echo")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from("[1]"))
        .unwrap();
    assert_eq!(answer(router, served).await.2, "[1]");
    assert!(waiting.iter().all(|call| !call.is_finished()));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Even if the handler ignores the body.
#[tokio::test]
async fn the_handler_runs_only_with_a_complete_body() {
    static DONE: AtomicU32 = AtomicU32::new(0);
    let routes =
        Router::new().route("/do", post(|| async { DONE.fetch_add(1, SeqCst).to_string() }));
    let limits = HttpLimits { body_bytes: 4, request_timeout_ms: 50, ..HttpLimits::default() };
    let admission = Admission::new("demo", CALLERS);
    let router = service_router("demo", routes, admission, Health::new(), &limits);
    let ask = |body| answer(router.clone(), Request::post("/do").body(body).unwrap());
    let begun = || futures::stream::iter([Ok::<_, std::io::Error>("ab")]);
    let stalled = futures::StreamExt::chain(begun(), futures::stream::pending());
    let cut = futures::stream::iter([Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe))]);
    let cut = futures::StreamExt::chain(begun(), cut);
    for (body, status, error) in [
        (Body::from_stream(stalled), 408, "timeout"),
        (Body::from_stream(cut), 400, "malformed"),
        (Body::from("abcde"), 413, "too_large"),
    ] {
        let refused = ask(body).await;
        assert_eq!((refused.0.as_u16(), kind(&refused.2).as_str()), (status, error));
        assert_eq!(DONE.load(SeqCst), 0, "{error}");
    }
    for body in [Body::empty(), Body::from("abcd")] {
        assert_eq!(ask(body).await.0, StatusCode::OK);
    }
    assert_eq!(DONE.load(SeqCst), 2);
}

/// A server of one route, whose requests say that they have `arrived` and wait for their `release`.
async fn serve_one(
    arrived: Arc<tokio::sync::Notify>,
    release: Arc<tokio::sync::Notify>,
) -> (SocketAddr, Shutdown, tokio::task::JoinHandle<std::io::Result<()>>) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Shutdown::new();
    let routes = Router::new().route(
        "/wait",
        get(move || {
            let (arrived, release) = (arrived.clone(), release.clone());
            async move {
                arrived.notify_one();
                release.notified().await;
                "done"
            }
        }),
    );
    let serving = {
        let stop = stop.clone();
        tokio::spawn(async move {
            serve(listener, routes, &HttpLimits::default(), stop, Duration::from_secs(60)).await
        })
    };
    (address, stop, serving)
}

#[tokio::test]
async fn a_request_in_flight_finishes_and_new_connections_are_refused() {
    let [arrived, release] = [(); 2].map(|()| Arc::new(tokio::sync::Notify::new()));
    let (address, stop, serving) = serve_one(arrived.clone(), release.clone()).await;
    // An idle kept-alive connection must not delay the drain.
    let _idle = TcpStream::connect(address).await.unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /wait HTTP/1.1\r\nhost: demo\r\n\r\n").await.unwrap();
    // Connections are accepted in their order.
    arrived.notified().await;

    stop.begin();
    // Before the drain is over, which ends with the request.
    eventually("new connections are refused", async || TcpStream::connect(address).await.is_err())
        .await;

    release.notify_one();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("done"), "{text}");
    tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = bind(address).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("taken"), "{error}");
}

#[tokio::test]
async fn every_answer_names_its_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = |path: &str| {
        Request::get(path)
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .body(Body::empty())
            .unwrap()
    };
    let (_, headers, body) = answer(plain(), request("/panic")).await;
    let error: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!(error.trace_id.as_deref(), Some(TRACE));
    assert_eq!(headers[crate::identity::REQUEST_ID_HEADER], TRACE);
    let trace_response = headers[TRACE_RESPONSE_HEADER].to_str().unwrap();
    assert!(trace_response.starts_with(&format!("00-{TRACE}-")), "{trace_response}");

    // Without the caller's trace there is a new one. The caller's request id stays.
    let named = Request::get("/who").header("x-request-id", "mine-1").body(Body::empty()).unwrap();
    let (_, headers, _) = answer(plain(), named).await;
    assert_eq!(headers["x-request-id"], "mine-1");
    assert!(headers.contains_key(TRACE_RESPONSE_HEADER));
    // An id that is not safe to log is replaced.
    let odd = Request::get("/who").header("x-request-id", "<b>").body(Body::empty()).unwrap();
    assert_eq!(answer(plain(), odd).await.1["x-request-id"].len(), 32);

    let (_, headers, _) = answer(plain(), get_request("/healthz")).await;
    assert!(!headers.contains_key(TRACE_RESPONSE_HEADER), "probes have no trace");
}

#[tokio::test]
async fn requests_and_panics_are_counted() {
    let router = plain();
    answer(router.clone(), get_request("/panic")).await;
    answer(router.clone(), get_request("/no/such/path")).await;
    let (status, headers, text) = answer(router, get_request("/metrics")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(headers[header::CONTENT_TYPE].to_str().unwrap().contains("openmetrics-text"));
    for line in [
        r#"tourin_http_requests_total{service="demo",route="/panic",method="GET",status_class="5xx"} 1"#,
        r#"tourin_http_requests_total{service="demo",route="unmatched",method="GET",status_class="4xx"} 1"#,
    ] {
        assert!(text.contains(line), "{text}");
    }
    let panics = text.lines().find_map(|line| line.strip_prefix("tourin_panics_total "));
    // The count is per process: other tests may add to it.
    assert!(panics.unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn only_operators_may_set_the_log_filter() {
    let router = router(Health::new(), &HttpLimits::default());
    crate::telemetry::init(&crate::config::LogSettings {
        log_format: crate::config::LogFormat::Text,
        log: "info".to_owned(),
    })
    .unwrap();
    let put = |filter: &'static str, by_operator: bool| {
        let mut request = Request::put("/internal/log-filter");
        if by_operator {
            request = request.extension(peer("operator"));
        }
        request.body(Body::from(filter)).unwrap()
    };
    assert_eq!(answer(router.clone(), put("debug", false)).await.0, StatusCode::FORBIDDEN);
    let (status, _, now) = answer(router.clone(), put("warn,demo=debug", true)).await;
    assert_eq!(status, StatusCode::OK, "{now}");
    assert!(now.contains("demo=debug"), "{now}");
    let (status, _, body) = answer(router.clone(), put("demo=chatty", true)).await;
    assert_eq!((status, kind(&body).as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid"));
    assert_eq!(answer(router, put("info", true)).await.0, StatusCode::OK);
}
