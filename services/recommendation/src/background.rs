//! What runs beside the requests: keeping the replica in step with core, and pruning.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tourin_chassis::health::Dependency;
use tourin_chassis::telemetry::Service;
use tourin_registry_api::{Directory, UNREACHABLE};
use tourin_shared_events::backoff::Backoff;

use crate::app::ingest::{Guards, Ingest};
use crate::app::ports::{PortError, SpotReplica};
use crate::app::resync::Resync;
use crate::batcher::Failure;
use crate::upstream::core::CORE;

/// Waits after a resync that failed.
const RETRY: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(3), jitter: 0.5 };
/// How often to ask core whether its data was replaced, in addition to changes of its instances.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The failures in a row that are all logged; of later ones few are.
const FAILURES_LOGGED: u32 = 4;

/// Whether this failure in a row is logged and traced. During a long outage, few are.
fn is_reported(failures: u32) -> bool {
    failures <= FAILURES_LOGGED || failures.is_power_of_two()
}

/// How long events of spots wait for the first reading of the catalogue. The reading is faster than the events and makes
/// them redundant. Without core it does not happen.
const FIRST_READING_LIMIT: Duration = Duration::from_secs(5);

/// How often expired data is removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the replica in step with core: reads the whole catalogue when the service starts, whenever
/// core's data was made anew, and every so often.
pub(crate) struct ReplicaKeeper {
    pub(crate) resync: Resync,
    pub(crate) spots: Arc<dyn SpotReplica>,
    pub(crate) directory: Directory,
    pub(crate) ready: Dependency,
    pub(crate) interval: Duration,
    /// The service in traces.
    pub(crate) service: Service,
    /// Becomes true when the first reading has ended, with or without success, or has taken too long.
    pub(crate) first_reading: watch::Sender<bool>,
}

impl ReplicaKeeper {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep(&self) {
        let mut changed = self.directory.changed();
        let mut failures = 0;
        let mut has_looked = false;
        let mut last: Option<Instant> = None;
        let began = Instant::now();
        loop {
            if began.elapsed() >= FIRST_READING_LIMIT {
                self.first_reading.send_replace(true);
            }
            changed.mark_unchanged();
            let core = self.core_instances();
            has_looked = has_looked || self.accept_existing_replica(failures).await;
            if !has_looked {
                failures += 1;
            } else if core.is_empty() {
                failures = 0;
            } else {
                let stepped = self.step(last, failures).await;
                self.first_reading.send_replace(true);
                match stepped {
                    Ok(true) => {
                        last = Some(Instant::now());
                        self.ready.set_ready();
                        failures = 0;
                    }
                    Ok(false) => failures = 0,
                    Err(error) => {
                        failures += 1;
                        if is_reported(failures) {
                            tracing::warn!(%error, failures, "the replica of spots is not in step with core; trying again");
                        }
                    }
                }
            }
            let pause = if failures > 0 { RETRY.after(failures) } else { PROBE_INTERVAL };
            let other_core = async {
                while self.core_instances() == core {
                    if changed.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                }
            };
            tokio::select! {
                () = sleep(pause.min(self.interval)) => {}
                () = other_core => {}
            }
        }
    }

    /// A replica that was complete before is served at once, and the resync updates it. An incomplete one,
    /// which another instance may be filling, is not served. Returns whether the replica could be read.
    async fn accept_existing_replica(&self, failures: u32) -> bool {
        match self.spots.is_complete().await {
            Ok(is_complete) => {
                if is_complete {
                    self.ready.set_ready();
                }
                true
            }
            Err(error) => {
                if is_reported(failures + 1) {
                    tracing::warn!(%error, "cannot look into the replica of spots; trying again");
                }
                false
            }
        }
    }

    /// Reads the whole catalogue if that is due, and returns whether it was. `last` is the time of the last
    /// reading, `failures` the number of failed readings since then.
    async fn step(&self, last: Option<Instant>, failures: u32) -> Result<bool, PortError> {
        let fresh = last.is_some_and(|last| last.elapsed() < self.interval);
        if fresh && !self.resync.is_due().await? {
            return Ok(false);
        }
        let began = Instant::now();
        // The reading that ends an outage may have no trace.
        let resynced = if is_reported(failures + 1) {
            let span = self.service.work("resync of spots");
            let resynced = span.run(self.resync.run()).await;
            if let Err(error) = &resynced {
                span.set_error(error.class());
            }
            resynced?
        } else {
            self.resync.run().await?
        };
        tracing::info!(
            failures,
            read = resynced.read,
            changed = resynced.changed,
            removed = resynced.removed,
            duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the replica of spots is in step with core"
        );
        Ok(true)
    }

    /// The ids of core's instances, sorted.
    fn core_instances(&self) -> Vec<String> {
        self.directory.instances(CORE).iter().map(|instance| instance.id.clone()).collect()
    }
}

/// Reports the service as unready once its store has stopped for good. Runs until `stop`.
pub(crate) async fn watch_store(mut failure: Failure, store: Dependency, stop: CancellationToken) {
    store.set_ready();
    tokio::select! {
        reason = failure.failed() => {
            tracing::error!(reason, "the store has stopped; the service must be started again");
            store.set_unready(reason);
            // Does not return before the stop: a task that ends stops the service.
            stop.cancelled().await;
        }
        () = stop.cancelled() => {}
    }
}

/// Reports whether the registry is reachable, until `stop`. Without it the service continues with the last
/// known instances.
pub(crate) async fn watch_registry(
    mut connected: watch::Receiver<bool>,
    registry: Dependency,
    stop: CancellationToken,
) {
    let watching = async {
        loop {
            if *connected.borrow_and_update() {
                registry.set_ready();
            } else {
                registry.set_unready(UNREACHABLE);
            }
            if connected.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
}

/// Prunes records that have no effect any more, until `stop`.
pub(crate) async fn prune(ingest: Ingest, guards: Guards, stop: CancellationToken) {
    loop {
        // The first pass is at once: before it the clock is not checked.
        tokio::select! {
            pruned = ingest.prune(&guards) => match pruned {
                Ok(0) => {}
                Ok(removed) => tracing::debug!(removed, "pruned"),
                Err(error) => tracing::warn!(%error, "cannot prune"),
            },
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = sleep(PRUNE_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tourin_chassis::health::Health;

    use super::*;

    #[tokio::test]
    async fn a_store_that_has_stopped_makes_the_service_unready_with_the_reason() {
        let (sender, failure) = Failure::new();
        let (health, stop) = (Health::new(), CancellationToken::new());
        let mut watching = Box::pin(watch_store(failure, health.register("store"), stop.clone()));
        assert!(futures::poll!(&mut watching).is_pending());
        assert!(health.unready().is_empty());
        sender.send_replace(Some("the writer panicked".to_owned()));
        assert!(futures::poll!(&mut watching).is_pending());
        assert_eq!(health.unready()["store"], "the writer panicked");
        stop.cancel();
        watching.await;
    }
}
