//! The bound on waiting events.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::OutboxStore;

/// The default bound on waiting events. At 200 events a second the bus may be down for 80 minutes. A million events of
/// about 600 bytes with their indexes take about a gigabyte, and are published within minutes of the bus's return.
pub const DEFAULT_MAX_PENDING: u64 = 1_000_000;

/// How often the bound is checked. Events appended in between may exceed it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Too many events wait for the bus, so the outbox takes no more. A change that causes an event must be refused: roll
/// back, and have the caller try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full: too many events wait for the bus")]
pub struct OutboxFull;

/// The number of waiting events from which appending is refused, and the number below which it resumes.
pub(super) fn refused_from(max_pending: u64, refused_now: bool) -> u64 {
    if refused_now { (max_pending - max_pending / 10).max(1) } else { max_pending.max(1) }
}

/// Checks the bound until it is stopped.
pub(super) async fn enforce_bound(
    store: Arc<dyn OutboxStore>,
    max_pending: Option<u64>,
    shutdown: CancellationToken,
) {
    let mut refused = false;
    loop {
        match store.enforce_bound(max_pending).await {
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
            Err(error) => tracing::debug!(error = format!("{error:#}"), "backlog not checked"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
