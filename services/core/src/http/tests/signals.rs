//! Shared signals, with a receiver and a transmitter that are real HTTP servers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tourin_chassis::clock::{Clock, SharedClock};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Shutdown;
use tourin_testbed::{eventually, free_address};

use super::{no_content, refused};
use crate::SERVICE;
use crate::store::Store;
use crate::testing::{Answer, TestCore, session, settings};

const ISSUER: &str = "https://tourin.example";
const ELSEWHERE: &str = "https://idp.example";
const REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    address
}

/// A receiver that answers as told, and 202 after that.
#[derive(Clone, Default)]
struct ReceiverServer {
    answers: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    got: Arc<Mutex<Vec<(HeaderMap, String)>>>,
}

impl ReceiverServer {
    async fn start(answers: &[(u16, &'static str)]) -> (Self, SocketAddr) {
        let server = Self::default();
        server.answers.lock().unwrap().extend(answers);
        let router = Router::new().route("/events", post(take)).with_state(server.clone());
        let address = serve(router).await;
        (server, address)
    }

    fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    /// The claims of the tokens that came, verified with core's published key.
    fn claims(&self, core: &TestCore) -> Vec<Value> {
        let key = DecodingKey::from_ed_components(&core.state.keys.public()[0].x).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&["receiver"]);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        let got = self.got.lock().unwrap();
        got.iter()
            .map(|(_, token)| {
                let read = decode::<Value>(token, &key, &validation).unwrap();
                assert_eq!(read.header.typ.as_deref(), Some("secevent+jwt"));
                assert_eq!(
                    read.header.kid.as_deref(),
                    Some(core.state.keys.public()[0].kid.as_str())
                );
                read.claims
            })
            .collect()
    }
}

async fn take(
    State(server): State<ReceiverServer>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, &'static str) {
    server.got.lock().unwrap().push((headers, body));
    let answer = server.answers.lock().unwrap().pop_front();
    let (status, body) = answer.unwrap_or((202, ""));
    (StatusCode::from_u16(status).unwrap(), body)
}

/// Runs a transmitter of this core, until the returned stop.
fn transmit(core: &TestCore, to: SocketAddr, more: &[&str]) -> Shutdown {
    let url = format!("http://{to}/events");
    let flags = ["--signals-issuer", ISSUER, "--signals-push-url", &url];
    let audience = ["--signals-push-audience", "receiver"];
    let flags: Vec<&str> = flags.iter().chain(&audience).chain(more).copied().collect();
    let clock: SharedClock = core.clock.clone();
    let transmitter = crate::signals::transmitter(
        &settings(&flags).signals,
        &Store::Sqlite(core.store.clone()),
        (&core.state.revocations, &core.state.keys),
        clock,
        &Metrics::new(SERVICE),
    );
    let stop = Shutdown::new();
    tokio::spawn(transmitter.unwrap().expect("a receiver is set").run(stop.clone()));
    stop
}

#[tokio::test]
async fn a_receiver_is_told_of_each_ended_session_once() {
    let core = TestCore::start().await;
    let (receiver, address) = ReceiverServer::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "receivers-secret\n").unwrap();
    let stop = transmit(&core, address, &["--signals-push-token-file", file.to_str().unwrap()]);
    let (_, here) = core.member("hana12345").await;
    let (_, elsewhere) = core.log_in("hana12345").await;
    no_content(&core.call("POST", "/api/auth/logout?everywhere=true", Some(&here), None).await);
    eventually("both were told", || async { receiver.count() == 2 }).await;
    let claims = receiver.claims(&core);
    let mut told: Vec<_> = claims
        .iter()
        .map(|claims| {
            assert_eq!(claims["sub_id"]["format"], "complex");
            assert_eq!(claims["sub_id"]["session"]["format"], "opaque");
            assert_eq!(claims["iat"], core.clock.now().timestamp());
            assert_eq!(claims["events"][REVOKED]["event_timestamp"], claims["iat"]);
            assert_eq!(claims["events"].as_object().unwrap().len(), 1);
            assert!(claims.get("exp").is_none() && claims.get("sub").is_none(), "{claims}");
            claims["sub_id"]["session"]["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut expected = vec![session(&here), session(&elsewhere)];
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_ne!(claims[0]["jti"], claims[1]["jti"]);
    let headers = receiver.got.lock().unwrap()[0].0.clone();
    assert_eq!(headers[CONTENT_TYPE], "application/secevent+jwt");
    assert_eq!(headers["authorization"], "Bearer receivers-secret");
    stop.begin();

    // Another process, or a restart, goes on where this one was. A canary is nobody's session.
    let stop = transmit(&core, address, &[]);
    let canary = json!({"session": "0198c2f1-7a5b-8c3d-9e4f-0123456789ab"});
    let path = "/internal/revocation-canaries";
    no_content(&core.call("POST", path, None, Some(canary)).await);
    let (_, third) = core.log_in("hana12345").await;
    no_content(&core.call("POST", "/api/auth/logout", Some(&third), None).await);
    eventually("the third was told", || async { receiver.count() == 3 }).await;
    let last = receiver.claims(&core).pop().unwrap();
    assert_eq!(last["sub_id"]["session"]["id"], json!(session(&third)));
    stop.begin();
}

#[tokio::test]
async fn a_receiver_that_fails_is_told_again_and_one_that_refuses_is_not() {
    let core = TestCore::start().await;
    let malformed = r#"{"err":"invalid_request","description":"d"}"#;
    let key = r#"{"err":"invalid_key"}"#;
    let answers = [(503, ""), (400, key), (202, ""), (400, malformed)];
    let (receiver, address) = ReceiverServer::start(&answers).await;
    let stop = transmit(&core, address, &[]);
    let (_, hana) = core.member("hana12345").await;
    no_content(&core.call("POST", "/api/auth/logout", Some(&hana), None).await);
    for attempts in 1..=3 {
        eventually("an attempt", || async {
            // Waits are by core's clock.
            core.clock.advance(TimeDelta::seconds(1));
            receiver.count() >= attempts
        })
        .await;
    }
    let claims = receiver.claims(&core);
    assert_eq!(claims[0]["jti"], claims[1]["jti"]);
    assert_eq!(claims[0]["jti"], claims[2]["jti"]);
    let (_, again) = core.log_in("hana12345").await;
    no_content(&core.call("POST", "/api/auth/logout", Some(&again), None).await);
    let signals = Store::Sqlite(core.store.clone()).signals();
    eventually("the refused one is given up", || async {
        core.clock.advance(TimeDelta::seconds(1));
        let now = core.clock.now();
        let (_, left) = signals.prune_signals(now - TimeDelta::days(1), now).await.unwrap();
        receiver.count() == 4 && left == 0
    })
    .await;
    stop.begin();
}

/// A transmitter elsewhere.
struct TransmitterServer {
    key: SigningKey,
    address: SocketAddr,
}

impl TransmitterServer {
    async fn start() -> Self {
        let key = SigningKey::from_bytes(&[5; 32]);
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "t1", "x": x}]});
        let router = Router::new().route("/jwks", get(|| async { axum::Json(keys) }));
        Self { key, address: serve(router).await }
    }

    async fn core(&self) -> TestCore {
        let url = format!("http://{}/jwks", self.address);
        TestCore::with(&[
            "--signals-issuer",
            ISSUER,
            "--signals-accept-issuer",
            ELSEWHERE,
            "--signals-accept-jwks-url",
            &url,
        ])
        .await
    }

    fn claims(core: &TestCore, jti: &str, member: &str) -> Value {
        json!({
            "iss": ELSEWHERE, "aud": [ISSUER, "other"], "jti": jti,
            "iat": core.clock.now().timestamp(),
            "sub_id": {"format": "opaque", "id": member},
            "events": {REVOKED: {"event_timestamp": core.clock.now().timestamp()}},
        })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as("secevent+jwt", "t1", &self.key, claims)
    }

    fn sign_as(&self, typ: &str, kid: &str, key: &SigningKey, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(typ.to_owned());
        header.kid = Some(kid.to_owned());
        let der = key.to_pkcs8_der().unwrap();
        encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
    }
}

async fn push(core: &TestCore, token: &str) -> Answer {
    let request = Request::post("/api/security-events")
        .header(CONTENT_TYPE, "application/secevent+jwt")
        .body(Body::from(token.to_owned()));
    core.send(request.unwrap()).await
}

#[track_caller]
fn assert_error(answer: &Answer, code: &str, what: &str) {
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{what}: {answer:?}");
    assert_eq!(answer.json()["err"], code, "{what}");
    assert!(!answer.json()["description"].as_str().unwrap().is_empty(), "{what}");
    assert_eq!(answer.header("content-type"), "application/json", "{what}");
}

#[tokio::test]
async fn an_event_from_elsewhere_ends_the_members_sessions_once() {
    let transmitter = TransmitterServer::start().await;
    let core = transmitter.core().await;
    let (_, here) = core.member("hana12345").await;
    let (_, elsewhere) = core.log_in("hana12345").await;
    let (_, other) = core.member("minsu1234").await;
    let token = transmitter.sign(&TransmitterServer::claims(&core, "j1", "hana12345"));
    let answer = push(&core, &token).await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::ACCEPTED, ""));
    // The gateway that carried it refuses them at once, the others by the log.
    let mut named = answer.ended();
    let mut expected = vec![session(&here), session(&elsewhere)];
    named.sort_unstable();
    expected.sort_unstable();
    assert_eq!(named, expected);
    let is_open = async |caller| {
        core.call("GET", "/api/auth/me", Some(caller), None).await.status == StatusCode::OK
    };
    assert!(!is_open(&here).await && !is_open(&elsewhere).await && is_open(&other).await);

    // Repeated, it ends no session that was opened since.
    let (_, again) = core.log_in("hana12345").await;
    let repeated = push(&core, &token).await;
    assert_eq!((repeated.status, repeated.ended().len()), (StatusCode::ACCEPTED, 0));
    assert!(is_open(&again).await);
    // Nobody learns whether a member exists; other events have no meaning here.
    let unknown = transmitter.sign(&TransmitterServer::claims(&core, "j2", "nobody123"));
    assert_eq!(push(&core, &unknown).await.status, StatusCode::ACCEPTED);
    for event in [VERIFICATION, "https://schemas.openid.net/secevent/caep/event-type/other"] {
        let mut claims = TransmitterServer::claims(&core, event, "hana12345");
        claims["events"] = json!({event: {}});
        assert_eq!(push(&core, &transmitter.sign(&claims)).await.status, StatusCode::ACCEPTED);
    }
    assert!(is_open(&again).await);
}

#[tokio::test]
async fn an_event_that_is_not_the_transmitters_is_refused() {
    let transmitter = TransmitterServer::start().await;
    let core = transmitter.core().await;
    let (_, hana) = core.member("hana12345").await;
    let claims = || TransmitterServer::claims(&core, "j1", "hana12345");
    let now = core.clock.now().timestamp();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        transmitter.sign(&claims)
    };
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        transmitter.sign(&claims)
    };
    let other = SigningKey::from_bytes(&[6; 32]);
    let of_core = core.call(
        "POST",
        "/api/auth/login",
        None,
        Some(json!({
            "id": "hana12345", "password": crate::testing::PASSWORD,
        })),
    );
    let access_token = of_core.await.json()["accessToken"].as_str().unwrap().to_owned();
    for (what, token, code) in [
        ("no token", "nonsense".to_owned(), "invalid_request"),
        ("too long", "x".repeat(20_000), "invalid_request"),
        (
            "another type",
            transmitter.sign_as("JWT", "t1", &transmitter.key, &claims()),
            "invalid_request",
        ),
        ("core's own access token", access_token, "invalid_request"),
        (
            "unknown key",
            transmitter.sign_as("secevent+jwt", "t9", &other, &claims()),
            "invalid_key",
        ),
        (
            "another's key",
            transmitter.sign_as("secevent+jwt", "t1", &other, &claims()),
            "authentication_failed",
        ),
        ("issuer", with("iss", json!("https://evil.example")), "invalid_issuer"),
        ("audience", with("aud", json!("https://other.example")), "invalid_audience"),
        ("no jti", without("jti"), "invalid_request"),
        ("long jti", with("jti", json!("j".repeat(256))), "invalid_request"),
        ("old", with("iat", json!(now - 86_401)), "invalid_request"),
        ("future", with("iat", json!(now + 61)), "invalid_request"),
        ("absurd time", with("iat", json!(i64::MIN)), "invalid_request"),
        ("no subject", without("sub_id"), "invalid_request"),
        (
            "a subject that is unknown here",
            with("sub_id", json!({"format": "email", "email": "a@b.c"})),
            "invalid_request",
        ),
        ("no events", without("events"), "invalid_request"),
    ] {
        assert_error(&push(&core, &token).await, code, what);
    }
    let json = Request::post("/api/security-events").header(CONTENT_TYPE, "application/json");
    let json = core.send(json.body(Body::from(transmitter.sign(&claims()))).unwrap()).await;
    assert_error(&json, "invalid_request", "another type of body");
    let me = core.call("GET", "/api/auth/me", Some(&hana), None).await;
    assert_eq!(me.status, StatusCode::OK, "none of them ended a session");

    // Without a transmitter there is no such path; without its keys nothing can be judged.
    let off = TestCore::start().await;
    refused(&push(&off, &transmitter.sign(&claims())).await, 404, "not_found", "");
    let address = free_address();
    let lonely = TransmitterServer { key: transmitter.key.clone(), address }.core().await;
    refused(&push(&lonely, &transmitter.sign(&claims())).await, 503, "unavailable", "");
}
