//! The calls of [`tourin_registry_api::wire`].

mod certificates;
mod instances;
mod operators;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::routing::{delete, get, post, put};
use tourin_chassis::http::{ANY_PEER, ANYBODY, Callers};
use tourin_chassis::peer::{GATEWAY, OPERATOR};
use tourin_chassis::shutdown::Shutdown;

use crate::app::Discovery;
use crate::app::ports::TokenUses;
use crate::authority::Authority;

/// Who may call what. Handlers check that an instance changes only itself.
pub(crate) const CALLERS: Callers = &[
    ("/v1/certificates", &[ANYBODY]),
    ("/v1/join-tokens", &[OPERATOR]),
    ("/v1/root/rotation", &[OPERATOR]),
    ("/v1/instances", &[ANY_PEER]),
    ("/v1/instances/", &[ANY_PEER]),
    ("/v1/leases", &[OPERATOR]),
    ("/v1/overrides/", &[OPERATOR]),
    ("/v1/protection/", &[OPERATOR]),
    ("/v1/departures", &[OPERATOR]),
    ("/v1/watch", &[ANY_PEER]),
    ("/v1/watchers/", &[GATEWAY]),
];

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) uses: Arc<dyn TokenUses>,
    /// Ends the open watches.
    pub(crate) stop: Shutdown,
}

impl FromRef<Shared> for Arc<Discovery> {
    fn from_ref(shared: &Shared) -> Self {
        Self::clone(&shared.discovery)
    }
}

impl FromRef<Shared> for Arc<Authority> {
    fn from_ref(shared: &Shared) -> Self {
        Self::clone(&shared.authority)
    }
}

impl FromRef<Shared> for Arc<dyn TokenUses> {
    fn from_ref(shared: &Shared) -> Self {
        Self::clone(&shared.uses)
    }
}

impl FromRef<Shared> for Shutdown {
    fn from_ref(shared: &Shared) -> Self {
        shared.stop.clone()
    }
}

pub(crate) fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/v1/certificates", post(certificates::issue))
        .route("/v1/join-tokens", post(certificates::make_join_token))
        .route("/v1/root/rotation", post(certificates::rotate_root))
        .route("/v1/instances", get(instances::list))
        .route(
            "/v1/instances/{service}/{id}",
            put(instances::register).delete(instances::deregister),
        )
        .route("/v1/instances/{service}/{id}/renew", post(instances::renew))
        .route("/v1/instances/{service}/{id}/drain", post(instances::drain))
        .route("/v1/instances/{service}/{id}/leave", post(instances::leave))
        .route("/v1/leases", get(operators::leases))
        .route("/v1/overrides/{service}/{id}", put(operators::set_override))
        .route("/v1/protection/{service}", delete(operators::end_protection))
        .route("/v1/departures", get(operators::departures))
        .route("/v1/watch", get(watch::open))
        .route("/v1/watchers/{watcher}/ack", put(watch::acknowledge))
        .with_state(shared)
}
