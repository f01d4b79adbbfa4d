//! The service's HTTP API: parses requests, calls one use case each, and writes responses.

mod audit;
mod messages;
mod openapi;
mod overview;
mod recommendations;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tourin_chassis::http::{ApiError, Callers};
use tourin_chassis::peer::{GATEWAY, OPERATOR};

use crate::app::audit::Audit;
use crate::app::ports::PortError;
use crate::app::recommend::Recommender;

pub use overview::TourSpotOverview;

/// Who may call what.
pub(crate) const CALLERS: Callers = &[
    ("/api/", &[GATEWAY]),
    ("/internal/openapi.json", &[GATEWAY]),
    ("/internal/trend/scores", &[OPERATOR]),
    ("/internal/histories/", &[OPERATOR]),
    ("/internal/events/backlog", &[OPERATOR]),
];

/// When a client may retry after a failure of a store.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Every route of the service, with its OpenAPI document under `/internal/openapi.json`.
pub fn router(recommender: Recommender, audit: Audit) -> axum::Router {
    openapi::serve(openapi::describe(recommendations::router()))
        .with_state(recommender)
        .merge(audit::router(audit))
}

/// A failure of a store is answered 503, so that the client may retry.
fn unavailable(error: PortError) -> ApiError {
    match error {
        // At level info: the server's watcher and the registration warn once about an outage or an
        // incomplete replica, not for each request.
        PortError::Unavailable(_) => tracing::info!(%error, "temporarily unavailable"),
        PortError::Failed(_) => tracing::error!(%error, "a store failed"),
    }
    ApiError::unavailable(messages::temporarily_unavailable(), RETRY_AFTER)
}
