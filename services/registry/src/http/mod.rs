//! The calls of [`tourin_registry_api::wire`].

mod authority;
mod instances;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::routing::{get, post, put};
use tourin_chassis::secret::Secret;
use tourin_chassis::shutdown::Shutdown;

use crate::app::Discovery;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) secret: Secret,
    /// Ends the open watches.
    pub(crate) stop: Shutdown,
}

impl FromRef<Shared> for Arc<Discovery> {
    fn from_ref(shared: &Shared) -> Self {
        Self::clone(&shared.discovery)
    }
}

impl FromRef<Shared> for Secret {
    fn from_ref(shared: &Shared) -> Self {
        shared.secret.clone()
    }
}

impl FromRef<Shared> for Shutdown {
    fn from_ref(shared: &Shared) -> Self {
        shared.stop.clone()
    }
}

pub(crate) fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/v1/instances", get(instances::list))
        .route(
            "/v1/instances/{service}/{id}",
            put(instances::register).delete(instances::deregister),
        )
        .route("/v1/instances/{service}/{id}/renew", post(instances::renew))
        .route("/v1/instances/{service}/{id}/drain", post(instances::drain))
        .route("/v1/watch", get(watch::open))
        .route("/v1/watchers/{watcher}/ack", put(watch::acknowledge))
        .with_state(shared)
}
