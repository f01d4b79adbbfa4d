//! The listener for operators: metrics, health, the log's filter, and the gateway's state as JSON.
//! Separate from the clients' listener, which is public.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};
use tourin_chassis::config::effective_settings;
use tourin_chassis::http::{
    Admission, Callers, HttpLimits, Listener, THIS_MACHINE, admitted, guard_operators,
    operators_router, serve,
};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::peer::{GATEWAY, OPERATOR};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::ADMIN_ADDRESS;

use crate::admission::AdmissionFilter;
use crate::handover::any_begun;
use crate::reload::ReloadStates;

/// Time for open requests when the gateway stops.
const DRAIN: Duration = Duration::from_millis(200);
/// Operators' requests at once.
const CONCURRENT_REQUESTS: usize = 32;
/// The state is for operators, and over plain HTTP for this machine: it has no secret in it.
const CALLERS: Callers = &[
    ("/internal/state", &[OPERATOR, THIS_MACHINE]),
    ("/internal/state/", &[OPERATOR, THIS_MACHINE]),
];

/// A page of the gateway's state: its name, and what reads it.
pub type StatePage = (&'static str, Arc<dyn Fn() -> Value + Send + Sync>);

/// The state that the pages report.
#[derive(Clone)]
pub struct OperatorsState {
    /// The admission filter, with the data that it uses.
    pub admission: Arc<AdmissionFilter>,
    /// Begins when the gateway stops; it is unready from then on.
    pub stopping: Shutdown,
    /// Pages by name, at `/internal/state/NAME`.
    pub pages: Vec<StatePage>,
}

impl OperatorsState {
    /// The state of a gateway that ends when `stopping` begins.
    pub fn new(
        admission: &Arc<AdmissionFilter>,
        reloads: ReloadStates,
        stopping: Shutdown,
    ) -> Self {
        let pages = state_pages(admission, reloads);
        Self { admission: Arc::clone(admission), stopping, pages }
    }
}

/// The pages of what the gateway always has.
fn state_pages(admission: &Arc<AdmissionFilter>, reloads: ReloadStates) -> Vec<StatePage> {
    let page = |name, read: fn(&AdmissionFilter) -> Value| -> StatePage {
        let admission = Arc::clone(admission);
        (name, Arc::new(move || read(&admission)))
    };
    vec![
        ("config", Arc::new(|| json!({"settings": effective_settings()}))),
        ("reloads", Arc::new(move || json!({"reloads": reloads.all()}))),
        page("routes", |admission| admission.routes.table().to_json()),
        page("instances", |admission| admission.upstreams.to_json()),
        page("guards", |admission| json!(admission.guards.report())),
        page("sessions", sessions),
        page("load", |admission| {
            json!({
                "requestsInFlight": admission.concurrency.in_use(),
                "maxRequests": admission.concurrency.limit(),
            })
        }),
    ]
}

/// How current the data is by which tokens are checked. Ages are in seconds, `null` before the first load.
fn sessions(admission: &AdmissionFilter) -> Value {
    let revocations = &admission.authenticator.revocations;
    json!({
        "revocations": {
            "loaded": revocations.is_loaded(),
            "ageSeconds": revocations.age().map(|age| age.as_secs_f64()),
            "count": revocations.count(),
        },
        "tokenKeys": {
            "loaded": admission.keys.is_loaded(),
            "ageSeconds": admission.keys.age().map(|age| age.as_secs_f64()),
        },
    })
}

/// This listener's address as metadata of the gateway's entry in the registry: the advertised IP if it
/// listens on all addresses.
pub fn metadata(listening: SocketAddr, advertised: SocketAddr) -> (String, String) {
    let mut address = listening;
    if listening.ip().is_unspecified() {
        address.set_ip(advertised.ip());
    }
    (ADMIN_ADDRESS.to_owned(), address.to_string())
}

/// The operators' pages, for operators' certificates and for this machine, and for requests whose `Host`
/// is one of `hosts` or local.
pub fn operators(metrics: &Metrics, state: OperatorsState, hosts: &[String]) -> Router {
    let own = Router::new()
        .route("/readyz", get(readiness))
        .route("/internal/state", get(index))
        .route("/internal/state/{page}", get(page))
        .with_state(state);
    let router = operators_router(metrics).merge(own);
    guard_operators(admitted(router, Admission::new(GATEWAY, CALLERS), metrics), hosts)
}

/// Serves operators until `stop`. Accepts no more once the gateway is `replaced`: its successor may accept from
/// the same socket.
pub async fn serve_operators(
    listener: Listener,
    router: Router,
    stop: Shutdown,
    replaced: Shutdown,
) {
    let limits = HttpLimits { concurrent_requests: CONCURRENT_REQUESTS, ..HttpLimits::default() };
    let closing = Shutdown::new();
    let mut serving = serve(listener, router, &limits, closing.clone(), DRAIN);
    let served = tokio::select! {
        served = &mut serving => served,
        () = any_begun(&stop, &replaced) => {
            closing.begin();
            serving.await
        }
    };
    match served {
        Ok(()) => stop.begun().await,
        Err(error) => tracing::error!(%error, "the operators' listener failed"),
    }
}

async fn readiness(State(state): State<OperatorsState>) -> Response {
    let (status, report) = state.admission.readiness(state.stopping.is_begun());
    (status, axum::Json(report)).into_response()
}

async fn index(State(state): State<OperatorsState>) -> Response {
    let paths = state.pages.iter().map(|(name, _)| format!("/internal/state/{name}"));
    axum::Json(json!({"pages": paths.collect::<Vec<_>>()})).into_response()
}

async fn page(State(state): State<OperatorsState>, Path(name): Path<String>) -> Response {
    match state.pages.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => axum::Json(read()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
