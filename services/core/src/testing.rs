//! A core service without a port, for tests of its HTTP interface. Requests have identities signed as
//! the gateway signs them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use chrono::DateTime;
use clap::Parser;
use ed25519_dalek::SigningKey;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tourin_chassis::clock::{ManualClock, SharedClock};
use tourin_chassis::health::Health;
use tourin_chassis::http::{Admission, HttpLimits, service_router};
use tourin_chassis::identity::testing::{gateway_signer, peer};
use tourin_chassis::identity::{IDENTITY_HEADER, SESSION_ENDED_HEADER, Subject};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::session_cookies::{CookieNames, SESSION_COOKIES_HEADER, SessionCookies};
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::outbox::Wake;

use crate::app::signing::SigningKeys;
use crate::assemble::assemble;
use crate::config::Settings;
use crate::http::AppState;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::{SERVICE, http as service_http};

/// A password that satisfies the rules.
pub(crate) const PASSWORD: &str = "sea-breeze1!";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// The default settings with cheap hashes and `flags`.
pub(crate) fn settings(flags: &[&str]) -> Settings {
    let always = ["core", "--password-memory-kib", "16", "--password-iterations", "1", "--no-demo"];
    Flags::parse_from(always.iter().chain(flags)).settings
}

/// The service, its store and its clock. Owns the store's folder.
pub(crate) struct TestCore {
    pub(crate) router: Router,
    pub(crate) store: SqliteStore,
    pub(crate) state: AppState,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) stopping: Shutdown,
    _dir: tempfile::TempDir,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// A header's value; empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The sessions that the response names as ended.
    pub(crate) fn ended(&self) -> Vec<String> {
        let list = self.header(SESSION_ENDED_HEADER.as_str());
        let sessions = list.split(", ").filter_map(|entry| entry.split_once(";until="));
        sessions.map(|(id, _)| id.to_owned()).collect()
    }

    /// The value of a set cookie.
    pub(crate) fn cookie(&self, name: &str) -> Option<String> {
        self.headers
            .get_all(SET_COOKIE)
            .iter()
            .filter_map(|cookie| cookie.to_str().unwrap().split(';').next()?.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }
}

impl TestCore {
    /// A service with an empty store.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// The same with `flags`.
    pub(crate) async fn with(flags: &[&str]) -> Self {
        let settings = settings(flags);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.sqlite3");
        let store = SqliteStore::open(&path, 2, Wake::new()).await.unwrap();
        let keys = SigningKeys::new(&SigningKey::from_bytes(&[7; 32]), &[]).unwrap();
        let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).unwrap()));
        let shared: SharedClock = clock.clone();
        let stopping = Shutdown::new();
        let metrics = Metrics::new(SERVICE);
        let on = Store::Sqlite(store.clone());
        let state = assemble(&settings, &on, keys, &shared, &stopping, &metrics).unwrap();
        let router = service_router(
            SERVICE,
            service_http::router(state.clone()),
            Admission::new(SERVICE, service_http::CALLERS),
            Health::new(),
            &HttpLimits::default(),
        );
        Self { router, store, state, clock, stopping, _dir: dir }
    }

    /// The gateway's header that identifies the caller.
    pub(crate) fn identity(&self, subject: &Subject) -> http::HeaderValue {
        gateway_signer().sign(subject, SERVICE)
    }

    /// Sends a request as the gateway, with its header about session cookies unless it has one: those of a
    /// client over plain HTTP.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        request.extensions_mut().insert(peer("gateway"));
        if !request.headers().contains_key(SESSION_COOKIES_HEADER) {
            let cookies = SessionCookies::of(CookieNames::Plain, request.headers());
            request.headers_mut().insert(SESSION_COOKIES_HEADER, cookies.to_header());
        }
        self.pass(request).await
    }

    /// `GET`s a path as a service other than the gateway.
    pub(crate) async fn get_as(&self, service: &str, path: &str) -> Answer {
        let request = Request::get(path).extension(peer(service)).body(Body::empty()).unwrap();
        self.pass(request).await
    }

    async fn pass(&self, request: Request<Body>) -> Answer {
        let response: Response =
            tower::ServiceExt::oneshot(self.router.clone(), request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// A request by the gateway itself, or by it for a member or a visitor, with or without a JSON body.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        subject: Option<&Subject>,
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(subject) = subject {
            request = request.header(IDENTITY_HEADER, gateway_signer().sign(subject, SERVICE));
        }
        let body = match body {
            None => Body::empty(),
            Some(json) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Body::from(json.to_string())
            }
        };
        self.send(request.body(body).unwrap()).await
    }

    /// Tries to log in as a visitor from `address`, through the gateway.
    pub(crate) async fn log_in_from(&self, address: &str, agent: &str, body: &Value) -> Answer {
        let visitor = Subject::Visitor { pseudonym: format!("anon:{address}/{agent}") };
        let request = Request::post("/api/auth/login")
            .header(IDENTITY_HEADER, gateway_signer().sign(&visitor, SERVICE))
            .header("x-forwarded-for", address)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        self.send(request.unwrap()).await
    }

    /// Signs a member up with [`PASSWORD`] and logs in. Returns the response and the identity that
    /// the gateway would derive from it.
    pub(crate) async fn member(&self, id: &str) -> (Answer, Subject) {
        let account = json!({
            "id": id, "password": PASSWORD, "name": "김하나", "email": "hana@example.com",
        });
        let signed_up = self.call("POST", "/api/auth/signup", None, Some(account)).await;
        assert_eq!(signed_up.status, StatusCode::CREATED, "{signed_up:?}");
        self.log_in(id).await
    }

    /// Opens another session of a member whose password is [`PASSWORD`].
    pub(crate) async fn log_in(&self, id: &str) -> (Answer, Subject) {
        let credentials = json!({"id": id, "password": PASSWORD});
        let answer = self.call("POST", "/api/auth/login", None, Some(credentials)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let claims = claims(answer.json()["accessToken"].as_str().unwrap());
        let subject = Subject::Member { id: claims.sub, session: claims.sid, roles: claims.roles };
        (answer, subject)
    }
}

/// The claims of an access token of core; does not check its times.
pub(crate) fn claims(token: &str) -> crate::domain::token::Claims {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
    let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
    let key = DecodingKey::from_ed_components(&crate::app::signing::PublicKey::new(&key).x);
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&["tourin"]);
    validation.set_issuer(&["tourin-core"]);
    validation.validate_exp = false;
    decode(token, &key.unwrap(), &validation).unwrap().claims
}

/// The session of a member's identity.
pub(crate) fn session(subject: &Subject) -> String {
    match subject {
        Subject::Member { session, .. } => session.clone(),
        other => panic!("{other:?} has no session"),
    }
}
