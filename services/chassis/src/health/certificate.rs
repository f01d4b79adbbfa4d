//! The life of a process's own certificate.

use std::sync::Arc;
use std::time::Duration;

use super::Health;
use crate::metrics::Metrics;

/// Lets readiness and metrics tell of this process's certificate, of whose life `left` is left. Once it has
/// ended, others refuse the process's calls and do not call it any more.
pub fn watch_certificate(
    left: impl Fn() -> Duration + Send + Sync + 'static,
    (health, metrics): (&Health, &Metrics),
) {
    let left = Arc::new(left);
    let measured = Arc::clone(&left);
    metrics.gauge_read(
        "tourin_certificate_left_seconds",
        "What is left of the life of this process's certificate; 0 once it has ended",
        move || Some(measured().as_secs_f64()),
    );
    health.check("certificate", move || {
        left().is_zero().then(|| "it has expired, and the registry has given no new one".to_owned())
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_service_is_ready_for_as_long_as_its_certificate_lasts() {
        let (health, metrics) = (Health::new(), Metrics::new("core"));
        let left_s = Arc::new(AtomicU64::new(90));
        let read = Arc::clone(&left_s);
        let left = move || Duration::from_secs(read.load(Ordering::Relaxed));
        watch_certificate(left, (&health, &metrics));
        let says = |value: &str| {
            let text = metrics.render();
            assert!(
                text.contains(&format!("\ntourin_certificate_left_seconds {value}\n")),
                "{text}"
            );
        };
        assert!(health.unready().is_empty());
        says("90.0");
        left_s.store(0, Ordering::Relaxed);
        let unready = health.unready();
        assert!(unready["certificate"].contains("expired"), "{unready:?}");
        assert!(health.missed().is_empty());
        says("0.0");
        // It has joined again.
        left_s.store(3_600, Ordering::Relaxed);
        assert!(health.unready().is_empty());
        health.until(std::collections::BTreeMap::is_empty).await;
    }
}
