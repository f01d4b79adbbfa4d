//! The service's HTTP face: parses at the edge, calls one use case, shapes the answer.

mod audit;
mod messages;
mod openapi;
mod overview;
mod recommendations;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tourin_chassis::http::ApiError;

use crate::app::audit::Audit;
use crate::app::ports::PortError;
use crate::app::recommend::Recommender;

pub use overview::TourSpotOverview;

/// When to try again after a store failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Every route of the service, with its OpenAPI description under `/internal/openapi.json`.
pub fn router(recommender: Recommender, audit: Audit) -> axum::Router {
    openapi::serve(openapi::describe(recommendations::router()))
        .with_state(recommender)
        .merge(audit::router(audit))
}

/// A store that fails is a dependency that is down: the client may try again.
fn unavailable(error: PortError) -> ApiError {
    match error {
        // Whoever watches the server warns of it, and an instance that registers before its replica is
        // whole: once and not for each request. This is why this one failed.
        PortError::Unavailable(_) => tracing::info!(%error, "no answer at the moment"),
        PortError::Failed(_) => tracing::error!(%error, "a store failed"),
    }
    ApiError::unavailable(messages::no_answer_at_the_moment(), RETRY_AFTER)
}
