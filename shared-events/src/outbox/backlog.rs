//! The bound on what waits.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::OutboxStore;

/// How many events may wait unless configured otherwise. At 200 events a second a bus may be away for 80 minutes, and a
/// million events of about 600 bytes with their indexes take about a gigabyte: room that a database server has, and the
/// backlog is published within minutes of the bus's return.
pub const DEFAULT_MAX_PENDING: u64 = 1_000_000;

/// How often the bound is looked after. What is appended in between may come on top of it.
const INTERVAL: Duration = Duration::from_secs(1);

/// So many events wait for the bus that no more are taken: a change that causes one must be refused, for its event
/// could not be recorded. Roll back, and have the caller try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full: too many events wait for the bus")]
pub struct OutboxFull;

/// From how many on appending is refused, and up to how many it stays so.
pub(super) fn refused_from(max_pending: u64, refused_now: bool) -> u64 {
    if refused_now { (max_pending - max_pending / 10).max(1) } else { max_pending.max(1) }
}

/// Looks after the bound until told to stop.
pub(super) async fn keep_bound(
    store: Arc<dyn OutboxStore>,
    max_pending: Option<u64>,
    shutdown: CancellationToken,
) {
    let mut refused = false;
    loop {
        match store.keep_bound(max_pending).await {
            Ok(now) if now != refused => {
                refused = now;
                if refused {
                    tracing::error!(max_pending, "the outbox is full; changes are refused");
                } else {
                    tracing::info!("the outbox has room again");
                }
            }
            Ok(_) => {}
            // A database that cannot be read takes no events either.
            Err(error) => tracing::debug!(error = format!("{error:#}"), "backlog not looked at"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
