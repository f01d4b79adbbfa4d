//! The service's HTTP interface: parses the request, calls one use case, builds the response.

mod auth;
mod backlog;
mod body;
mod bookmarks;
mod cookies;
mod jwks;
mod members;
pub(crate) mod messages;
mod openapi;
pub mod page;
mod resync;
mod reviews;
mod revocations;
mod security_events;
mod source;
mod spots;
#[cfg(test)]
mod tests;
mod visitor_keys;

use std::sync::Arc;
use std::time::Duration;

use tourin_chassis::http::{ApiError, Callers};
use tourin_chassis::peer::{GATEWAY, OPERATOR};
use tourin_chassis::shutdown::Shutdown;
use utoipa_axum::router::OpenApiRouter;

pub use self::cookies::CookieSettings;
use crate::app::StoreError;
use crate::app::accounts::Accounts;
use crate::app::content::Content;
use crate::app::invalidations::Invalidations;
use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::app::signals::receive::Receiver;
use crate::app::signing::SigningKeys;
use crate::app::visitor_keys::VisitorKeys;

/// Who may call what.
pub(crate) const CALLERS: Callers = &[
    ("/api/", &[GATEWAY]),
    ("/.well-known/jwks.json", &[GATEWAY]),
    ("/internal/openapi.json", &[GATEWAY]),
    ("/internal/access-tokens", &[GATEWAY]),
    ("/internal/revocations", &[GATEWAY]),
    ("/internal/revocation-canaries", &[GATEWAY]),
    ("/internal/visitor-key", &[GATEWAY]),
    ("/internal/tour-spots", &["recommendation"]),
    ("/internal/events/backlog", &[OPERATOR]),
];

/// What the handlers need; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// Sign-up, profile, password, deletion, the members' list.
    pub accounts: Arc<Accounts>,
    /// Log-in, rotation, sliding, log-out.
    pub sessions: Arc<Sessions>,
    /// The log of ended sessions that gateways follow.
    pub revocations: Arc<Revocations>,
    /// What gateways have cached and is out of date.
    pub invalidations: Arc<Invalidations>,
    /// The key of the day for visitors' pseudonyms.
    pub visitor_keys: Arc<VisitorKeys>,
    /// Accepts security events from elsewhere, if a transmitter is set.
    pub signals: Option<Arc<Receiver>>,
    /// The keys that sign and verify access tokens.
    pub keys: Arc<SigningKeys>,
    /// How the session's cookies are set.
    pub cookies: CookieSettings,
    /// Whether deletion and a change of e-mail require the password.
    pub step_up: bool,
    /// Spots, bookmarks, reviews, likes, views, the log of events.
    pub content: Content,
    /// Long polls end when this begins.
    pub shutdown: Shutdown,
}

/// Every route of the service with its OpenAPI description.
pub fn router(state: AppState) -> axum::Router {
    let routes = OpenApiRouter::with_openapi(openapi::document())
        .merge(auth::router())
        .merge(members::router())
        .merge(jwks::router())
        .merge(revocations::router())
        .merge(security_events::router())
        .merge(visitor_keys::router())
        .merge(spots::router())
        .merge(bookmarks::router())
        .merge(reviews::router())
        .merge(backlog::router())
        .merge(resync::router());
    openapi::serve(routes).with_state(state)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => {
                // Only the reason for this request. The readiness probe warns once about an unreachable server.
                tracing::info!(error = format!("{cause:#}"), "the store cannot be reached");
                Self::unavailable(messages::store_unreachable(), Duration::from_secs(1))
            }
            StoreError::Failed(cause) => Self::internal(cause),
        }
    }
}
