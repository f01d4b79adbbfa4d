//! A service that answers every public path with what it was asked, and core's internal calls as
//! the test sets them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tourin_chassis::http::PeerOf;
use tourin_chassis::http::{HttpLimits, Listener, serve};
use tourin_chassis::identity::{IDENTITY_HEADER, IdentityVerifier, SESSION_ENDED_HEADER, Subject};
use tourin_chassis::peer::{GATEWAY, Peer};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::authority::Authority;

use super::Issuer;

const ETAG: &str = "\"v1\"";
/// Begins the entries of the log of ended sessions that are tags of cached responses.
const INVALIDATE: &str = "invalidate ";

#[derive(Clone)]
pub struct Service {
    pub address: SocketAddr,
    pub issuer: Arc<Issuer>,
    pub stop: Shutdown,
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    verifier: IdentityVerifier,
    issuer: Arc<Issuer>,
    jwks: Mutex<Vec<Value>>,
    key_fetches: AtomicUsize,
    token_life_s: AtomicI64,
    renewals: AtomicUsize,
    renewals_held: watch::Sender<bool>,
    ended: watch::Sender<Vec<String>>,
    ended_withheld: AtomicBool,
    canaries_lost: AtomicBool,
    calls: AtomicUsize,
    last_asked: Mutex<Value>,
    hold: Notify,
    held: AtomicUsize,
}

impl Service {
    pub async fn start(
        name: &'static str,
        id: &str,
        authority: &Authority,
        mesh: Shutdown,
    ) -> Self {
        let issuer = Arc::new(Issuer::new(7, "key-1"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: listener.local_addr().unwrap(),
            stop: Shutdown::new(),
            inner: Arc::new(Inner {
                id: id.to_owned(),
                verifier: IdentityVerifier::new(name),
                jwks: Mutex::new(vec![issuer.jwk()]),
                key_fetches: AtomicUsize::new(0),
                issuer: Arc::clone(&issuer),
                token_life_s: AtomicI64::new(600),
                renewals: AtomicUsize::new(0),
                renewals_held: watch::Sender::new(false),
                ended: watch::Sender::new(Vec::new()),
                ended_withheld: AtomicBool::new(false),
                canaries_lost: AtomicBool::new(false),
                calls: AtomicUsize::new(0),
                last_asked: Mutex::default(),
                hold: Notify::new(),
                held: AtomicUsize::new(0),
            }),
            issuer,
        };
        let router = Router::new()
            .route("/.well-known/jwks.json", get(jwks))
            .route("/internal/revocations", get(revocations))
            .route("/internal/revocation-canaries", post(canary))
            .route("/internal/access-tokens", post(access_tokens))
            .route("/internal/openapi.json", get(openapi))
            .route("/internal/visitor-key", get(visitor_key))
            .route("/healthz", get(|| async { r#"{"status":"alive"}"# }))
            .fallback(echo)
            .with_state(Arc::clone(&service.inner));
        let stop = service.stop.clone();
        let tls = authority.workload(name, id).unwrap().server_config();
        tokio::spawn(async move {
            let limits = HttpLimits::default();
            let listener = Listener::with_tls(listener, tls, "tourin");
            let never = Shutdown::new();
            let serving = serve(listener, router, &limits, never, Duration::ZERO);
            tokio::select! {
                _ = serving => {}
                () = stop.begun() => {}
                () = mesh.begun() => {}
            }
        });
        service
    }

    /// Public calls that have arrived.
    pub fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }

    /// What the last public call has asked.
    pub fn last_asked(&self) -> Value {
        self.inner.last_asked.lock().unwrap().clone()
    }

    /// Calls that wait for [`Service::release`].
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::SeqCst)
    }

    /// Lets the calls that asked to be held go on.
    pub fn release(&self) {
        self.inner.hold.notify_waiters();
    }

    /// How long new access tokens hold.
    pub fn set_token_life_s(&self, seconds: i64) {
        self.inner.token_life_s.store(seconds, Ordering::SeqCst);
    }

    /// New access tokens that were asked for.
    pub fn renewals(&self) -> usize {
        self.inner.renewals.load(Ordering::SeqCst)
    }

    /// Whether new access tokens wait to be given.
    pub fn hold_renewals(&self, held: bool) {
        self.inner.renewals_held.send_replace(held);
    }

    /// Appends to the log of ended sessions.
    pub fn end_session(&self, session: &str) {
        self.inner.ended.send_modify(|ended| ended.push(session.to_owned()));
    }

    /// Appends to that log that what is cached with this tag is out of date.
    pub fn invalidate(&self, tag: &str) {
        self.end_session(&format!("{INVALIDATE}{tag}"));
    }

    /// Answers no more calls for ended sessions.
    pub fn withhold_ended_sessions(&self) {
        self.inner.ended_withheld.store(true, Ordering::SeqCst);
    }

    /// Confirms canary sessions and does not append them.
    pub fn lose_canaries(&self) {
        self.inner.canaries_lost.store(true, Ordering::SeqCst);
    }

    /// How often the published keys were asked for.
    pub fn key_fetches(&self) -> usize {
        self.inner.key_fetches.load(Ordering::SeqCst)
    }

    /// Changes the published keys.
    pub fn publish(&self, keys: Vec<Value>) {
        *self.inner.jwks.lock().unwrap() = keys;
    }
}

async fn jwks(State(inner): State<Arc<Inner>>) -> Response {
    inner.key_fetches.fetch_add(1, Ordering::SeqCst);
    let keys = inner.jwks.lock().unwrap().clone();
    axum::Json(json!({"keys": keys})).into_response()
}

#[derive(Deserialize)]
struct After {
    after: usize,
    wait_ms: u64,
}

async fn revocations(
    State(inner): State<Arc<Inner>>,
    Query(page): Query<After>,
    PeerOf(peer): PeerOf,
) -> Response {
    if peer.service != GATEWAY {
        return StatusCode::FORBIDDEN.into_response();
    }
    let is_withheld = || inner.ended_withheld.load(Ordering::SeqCst);
    let mut ended = inner.ended.subscribe();
    let more = ended.wait_for(|ended| is_withheld() || ended.len() > page.after);
    let _ = tokio::time::timeout(Duration::from_millis(page.wait_ms), more).await;
    if is_withheld() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let ended = inner.ended.borrow().clone();
    let until = chrono::Utc::now() + chrono::TimeDelta::minutes(10);
    let entries: Vec<_> = ended
        .iter()
        .enumerate()
        .skip(page.after)
        .map(|(index, ended)| match ended.strip_prefix(INVALIDATE) {
            Some(tag) => json!({"seq": index + 1, "invalidate": tag, "until": until}),
            None => json!({"seq": index + 1, "session": ended, "until": until}),
        })
        .collect();
    axum::Json(json!({"logId": "log-1", "next": ended.len(), "entries": entries})).into_response()
}

async fn canary(State(inner): State<Arc<Inner>>, request: Request) -> StatusCode {
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default();
    let canary: Value = serde_json::from_slice(&body).unwrap();
    let session = canary["session"].as_str().unwrap().to_owned();
    if !inner.canaries_lost.load(Ordering::SeqCst) {
        inner.ended.send_modify(|ended| ended.push(session));
    }
    StatusCode::NO_CONTENT
}

async fn access_tokens(
    State(inner): State<Arc<Inner>>,
    PeerOf(peer): PeerOf,
    request: Request,
) -> Response {
    if peer.service != GATEWAY {
        return StatusCode::FORBIDDEN.into_response();
    }
    inner.renewals.fetch_add(1, Ordering::SeqCst);
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let (member, session) = (asked["member"].as_str().unwrap(), asked["session"].as_str().unwrap());
    let is_open = !inner.ended.borrow().iter().any(|ended| ended == session);
    let mut claims = Issuer::claims(member, session);
    let life = inner.token_life_s.load(Ordering::SeqCst);
    claims["exp"] = json!(claims["iat"].as_i64().unwrap() + life);
    let token = inner.issuer.sign(&claims);
    let mut held = inner.renewals_held.subscribe();
    let _ = held.wait_for(|held| !held).await;
    let cookie = format!("access_token={token}; Path=/; Max-Age=9; HttpOnly; Core=Own");
    let issued = json!({"accessToken": token, "setCookie": cookie});
    axum::Json(if is_open { issued } else { Value::Null }).into_response()
}

async fn visitor_key() -> axum::Json<Value> {
    axum::Json(json!({"key": "A".repeat(43), "msLeft": 3_600_000}))
}

async fn openapi(State(inner): State<Arc<Inner>>) -> Response {
    let path = if inner.id.starts_with("core") {
        "/api/users/{userId}"
    } else {
        "/api/recommendations/trend"
    };
    axum::Json(json!({"openapi": "3.1.0", "paths": {path: {"get": {"responses": {"200": {"description": "ok"}}}}}}))
        .into_response()
}

struct Flood(Arc<Inner>);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn echo(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    inner.calls.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if query.contains("hold") {
        let released = inner.hold.notified();
        inner.held.fetch_add(1, Ordering::SeqCst);
        released.await;
        inner.held.fetch_sub(1, Ordering::SeqCst);
    }
    if query.contains("fail") {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if query.contains("flood") {
        // A response without an end, counted as held until the client closes the connection.
        inner.held.fetch_add(1, Ordering::SeqCst);
        let flood = futures::stream::unfold(Flood(inner), |flood| async {
            Some((Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 64 << 10])), flood))
        });
        return Body::from_stream(flood).into_response();
    }
    let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let peer = parts.extensions.get::<Arc<Peer>>().expect("the gateway has a certificate");
    let verify = |value| inner.verifier.verify(value, peer);
    let subject = parts.headers.get(IDENTITY_HEADER).and_then(verify);
    let headers: BTreeMap<_, _> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or("?").to_owned()))
        .collect();
    let asked = json!({
        "instance": inner.id,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": &query,
        "headers": headers,
        "body": body.len(),
        "subject": subject,
    });
    *inner.last_asked.lock().unwrap() = asked.clone();
    let mut asked = if query.contains("same") { json!({"same": true}) } else { asked };
    if query.contains("large") {
        asked["large"] = "x".repeat(300_000).into();
    }
    let has_etag = query.contains("etag");
    if has_etag {
        asked = json!({"etag": true});
    }
    let body = if query.contains("chunked") {
        let parts = [r#"{"asked":"#.to_owned(), asked.to_string(), "}".to_owned()];
        Body::from_stream(futures::stream::iter(parts.map(Ok::<_, std::io::Error>)))
    } else {
        Body::from(asked.to_string())
    };
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert("content-type", "application/json".parse().unwrap());
    out.insert("server", "stub".parse().unwrap());
    out.insert("x-tourin-internal", "secret".parse().unwrap());
    if has_etag {
        out.insert("etag", ETAG.parse().unwrap());
        out.insert("cache-control", "public, max-age=0".parse().unwrap());
    }
    if query.contains("cacheable") {
        out.insert("cache-control", "public, max-age=60".parse().unwrap());
    }
    if query.contains("removes") {
        out.append("set-cookie", "access_token=; Path=/; Max-Age=0".parse().unwrap());
    }
    if query.contains("theme") {
        out.append("set-cookie", "my_access_token=x; Path=/".parse().unwrap());
    }
    if query.contains("vary") {
        out.append("vary", "Accept-Language".parse().unwrap());
        out.append("vary", "cookie".parse().unwrap());
    }
    if let Some(Subject::Member { session, .. }) = subject
        && parts.uri.path() == "/api/auth/logout"
    {
        let until = chrono::Utc::now().timestamp() + 600;
        let ended = format!("{session};until={until}");
        out.insert(SESSION_ENDED_HEADER, ended.parse().unwrap());
    }
    if has_etag && parts.headers.get("if-none-match").is_some_and(|etag| etag == ETAG) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::empty();
    }
    if query.contains("only-core") && !inner.id.starts_with("core") {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}
