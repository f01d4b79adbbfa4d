//! When an instance may register for requests.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;
use tourin_chassis::health::Health;

/// The name of the replica of core's spots in readiness.
pub(crate) const REPLICA: &str = "replica of spots";
/// How long an instance with a complete replica waits for its other dependencies. Then it registers
/// anyway, because it can answer some of the requests.
const REGISTER_AFTER: Duration = Duration::from_secs(5);

/// Waits until the instance may register: without limit for the replica of spots, without which it
/// could only refuse requests that other instances can answer, then up to [`REGISTER_AFTER`] for the
/// other dependencies.
pub(crate) async fn reached(health: &Health) {
    health.until(|unready| !unready.contains_key(REPLICA)).await;
    if timeout(REGISTER_AFTER, health.until(BTreeMap::is_empty)).await.is_err() {
        tracing::warn!(unready = ?health.unready(), "not ready, but registering anyway");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_replica_without_limit_and_for_the_rest_with_a_limit() {
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
