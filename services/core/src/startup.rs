//! The service while it waits for its database: alive, not ready, and naming what it waits for.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use tokio::net::TcpListener;
use tourin_chassis::health::Health;
use tourin_chassis::http::{Admission, ApiError, HttpLimits, Listener, serve, service_router};
use tourin_chassis::shutdown::Shutdown;

use crate::SERVICE;
use crate::http::{CALLERS, messages};

/// How long requests in flight may take once the database answers.
const HAND_OVER: Duration = Duration::from_millis(200);

/// Two handles of one listening socket; either accepts connections.
pub(crate) fn share(listener: TcpListener) -> std::io::Result<(TcpListener, TcpListener)> {
    let listener = listener.into_std()?;
    let other = TcpListener::from_std(listener.try_clone()?)?;
    Ok((TcpListener::from_std(listener)?, other))
}

/// Serves until `opening` is done: `/healthz` says that the process is alive, `/readyz` what it waits
/// for, and everything else responds 503 with `Retry-After`.
pub(crate) async fn serve_while_opening<T>(
    listener: Listener,
    waits_for: &str,
    opening: impl Future<Output = T>,
) -> T {
    let health = Health::new();
    health.register("database").set_unready(format!("waiting for {waits_for}"));
    let routes = Router::new().route("/", any(not_yet)).route("/{*path}", any(not_yet));
    let limits = HttpLimits::default();
    let admission = Admission::new(SERVICE, CALLERS);
    let router = service_router(SERVICE, routes, admission, health, &limits);
    let opened = Shutdown::new();
    let serving = serve(listener, router, &limits, opened.clone(), HAND_OVER);
    let (served, result) = tokio::join!(serving, async {
        let result = opening.await;
        opened.begin();
        result
    });
    if let Err(error) = served {
        tracing::warn!(%error, "could not answer while waiting for the database");
    }
    result
}

async fn not_yet() -> ApiError {
    ApiError::unavailable(messages::starting(), Duration::from_secs(1))
}
