//! When an instance has what it needs to be sent requests.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;
use tourin_chassis::health::Health;

/// What readiness calls the copy of core's spots.
pub(crate) const REPLICA: &str = "replica of spots";
/// How long an instance that has its spots, but is not ready otherwise, waits before it registers all the
/// same: what it can answer is better than nothing.
const REGISTER_AFTER: Duration = Duration::from_secs(5);

/// Waits until the service can answer. For the spots however long it takes: without them it can only
/// refuse, where another instance could answer. For the rest long enough.
pub(crate) async fn reached(health: &Health) {
    health.until(|unready| !unready.contains_key(REPLICA)).await;
    if timeout(REGISTER_AFTER, health.until(BTreeMap::is_empty)).await.is_err() {
        tracing::warn!(unready = ?health.unready(), "not ready, but registering all the same");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_registers_once_it_has_its_spots_and_for_the_rest_waits_no_longer_than_so() {
        let health = Health::new();
        let (replica, other) = (health.register(REPLICA), health.register("other"));
        let an_hour = Duration::from_secs(3_600);
        assert!(timeout(an_hour, reached(&health)).await.is_err());
        replica.set_ready();
        let began = Instant::now();
        reached(&health).await;
        assert_eq!(began.elapsed(), REGISTER_AFTER);
        other.set_ready();
        let began = Instant::now();
        reached(&health).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
