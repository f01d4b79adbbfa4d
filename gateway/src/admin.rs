//! The listener for operators: metrics, health and the log's filter. Separate from the clients'
//! listener, which is public.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tourin_chassis::http::{HttpLimits, guard_operators, operators_router, serve};
use tourin_chassis::identity::IdentityVerifier;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::secret::Secret;
use tourin_chassis::shutdown::Shutdown;

use crate::admission::AdmissionFilter;
use crate::mesh_client::GATEWAY;

/// The metadata key of this listener's address in the registry.
pub const ADMIN_ADDRESS: &str = "admin";

/// Time for open requests when the gateway stops.
const DRAIN: Duration = Duration::from_millis(200);
/// Operators' requests at once.
const CONCURRENT_REQUESTS: usize = 32;

/// The state that readiness reports.
#[derive(Clone)]
pub struct ReadinessState {
    /// The admission filter, with the data that it uses.
    pub admission: Arc<AdmissionFilter>,
    /// Begins when the gateway stops; it is unready from then on.
    pub stopping: Shutdown,
}

/// The operators' pages, for requests whose `Host` is one of `hosts` or local.
pub fn operators(
    metrics: &Metrics,
    state: ReadinessState,
    secret: &Secret,
    hosts: &[String],
) -> Router {
    let router = operators_router(metrics, IdentityVerifier::new(secret, GATEWAY))
        .merge(Router::new().route("/readyz", get(readiness)).with_state(state));
    guard_operators(router, hosts)
}

/// Serves operators until `stop`.
pub async fn serve_operators(listener: TcpListener, router: Router, stop: Shutdown) {
    let limits = HttpLimits { concurrent_requests: CONCURRENT_REQUESTS, ..HttpLimits::default() };
    if let Err(error) = serve(listener, router, &limits, stop, DRAIN).await {
        tracing::error!(%error, "the operators' listener failed");
    }
}

async fn readiness(State(state): State<ReadinessState>) -> Response {
    let (status, report) = state.admission.readiness(state.stopping.is_begun());
    (status, axum::Json(report)).into_response()
}
