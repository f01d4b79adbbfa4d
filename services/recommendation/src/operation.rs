//! Operations of a store: their spans, their outcomes for readiness, their metrics, and what a failure
//! says about the server.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, SemaphorePermit};
use tourin_chassis::health::{Access, Outcomes, Trouble};
use tourin_chassis::telemetry::{DbCall, Span, db_call};
use tourin_shared_events::sqlite;

use crate::app::ports::PortError;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of the servers of stores. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct StoreMetrics {
    commands: Family<Labels<1>, Counter>,
    operations: Family<Labels<2>, Gauge>,
    limits: Family<Labels<1>, Gauge>,
}

impl StoreMetrics {
    /// Adds them to a service's metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Commands sent to the servers of stores";
        registry.register("tourin_store_commands", help, self.commands.clone());
        let help =
            "Operations on a server of a store, by state: in progress, or waiting for a permit";
        registry.register("tourin_store_operations", help, self.operations.clone());
        let help = "The maximum number of operations in progress on a server of a store";
        registry.register("tourin_store_operations_limit", help, self.limits.clone());
    }
}

/// The engine of a store. Clones share its outcomes.
#[derive(Clone, Debug)]
pub struct Engine {
    name: &'static str,
    outcomes: Outcomes,
    /// Commands sent, each with one round trip.
    pub(crate) commands: Counter,
}

impl Engine {
    /// The engine of a file, by OpenTelemetry's name.
    pub(crate) fn embedded(name: &'static str) -> Self {
        Self { name, outcomes: Outcomes::default(), commands: Counter::default() }
    }

    /// The engine of a server, by OpenTelemetry's name, such as `redis`.
    pub(crate) fn of_server(name: &'static str, metrics: &StoreMetrics) -> Self {
        let commands = metrics.commands.get_or_create_owned(&[("server", name)]);
        Self { commands, ..Self::embedded(name) }
    }

    /// How many commands were sent, each with one round trip.
    pub fn commands(&self) -> u64 {
        self.commands.get()
    }

    /// OpenTelemetry's name of the engine.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The outcomes of the operations.
    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    async fn run<T>(
        &self,
        access: Access,
        operation: &'static str,
        collection: &'static str,
        run: impl Future<Output = Result<T, PortError>>,
    ) -> Result<T, PortError> {
        let call = DbCall::new(self.name, operation, collection);
        let result = db_call(call, PortError::class, run).await;
        match &result {
            Ok(_) => self.outcomes.succeeded(access),
            Err(error @ PortError::Unavailable(cause)) => {
                let (Trouble::Refuses(why) | Trouble::Away(why)) = trouble(error);
                self.outcomes.failed(access, &why);
                if let Some(BreakerOpen(server)) = cause.downcast_ref() {
                    Span::current().annotate("breaker_open", &[("server", server)]);
                }
            }
            // The event may be the cause, not the engine.
            Err(PortError::Failed(_)) => {}
        }
        result
    }
}

/// Runs an operation that only reads, in a client span. The span has fixed names only, no parameters
/// such as members or spots.
pub(crate) async fn read<T>(
    engine: &Engine,
    operation: &'static str,
    collection: &'static str,
    run: impl Future<Output = Result<T, PortError>>,
) -> Result<T, PortError> {
    engine.run(Access::Read, operation, collection, run).await
}

/// [`read`] for an operation that writes. The span of one that is written in a batch with others lasts
/// until it is done.
pub(crate) async fn write<T>(
    engine: &Engine,
    operation: &'static str,
    collection: &'static str,
    run: impl Future<Output = Result<T, PortError>>,
) -> Result<T, PortError> {
    engine.run(Access::Write, operation, collection, run).await
}

/// Bounds the operations on a server, and counts those in progress and those that wait. Clones share the
/// bound.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    permits: Arc<Semaphore>,
    under_way: Gauge,
    waiting: Gauge,
}

/// An operation in progress, until it is dropped.
pub(crate) struct UnderWay<'a> {
    _permit: Option<SemaphorePermit<'a>>,
    _counted: CountedOperation<'a>,
}

/// Counts an operation until it is dropped.
struct CountedOperation<'a>(&'a Gauge);

impl<'a> CountedOperation<'a> {
    fn one(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for CountedOperation<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Operations {
    /// At most `max` operations in progress on `server`.
    pub(crate) fn bounded(server: &'static str, metrics: &StoreMetrics, max: u32) -> Self {
        metrics.limits.get_or_create(&[("server", server)]).set(max.into());
        let gauge =
            |state| metrics.operations.get_or_create_owned(&[("server", server), ("state", state)]);
        Self {
            permits: Arc::new(Semaphore::new(max as usize)),
            under_way: gauge("under_way"),
            waiting: gauge("waiting"),
        }
    }

    /// Begins an operation; waits while too many are in progress.
    pub(crate) async fn begin(&self) -> UnderWay<'_> {
        let waiting = CountedOperation::one(&self.waiting);
        // Cannot fail: the semaphore is never closed.
        let permit = self.permits.acquire().await.ok();
        drop(waiting);
        UnderWay { _permit: permit, _counted: CountedOperation::one(&self.under_way) }
    }
}

/// Why a server refuses, for drivers whose error types do not show it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub &'static str);

/// What a failure shows about the server, for operators and without data of the event or request.
pub(crate) fn trouble(error: &PortError) -> Trouble {
    let (PortError::Unavailable(cause) | PortError::Failed(cause)) = error;
    let refusal = if let Some(Refusal(reason)) = cause.downcast_ref() {
        Some((*reason).to_owned())
    } else if let Some(error) = cause.downcast_ref::<redis::RedisError>() {
        tourin_chassis::redis::refusal(error).map(str::to_owned)
    } else if let Some(error) = cause.downcast_ref::<sqlx::Error>() {
        sqlite::refusal(error)
    } else {
        None
    };
    match refusal {
        Some(reason) => Trouble::Refuses(reason),
        None => Trouble::Away(error.to_string()),
    }
}

/// A request was not sent, because the last probe failed. Requests fail at once until a probe
/// succeeds.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the server is unavailable")]
pub(crate) struct BreakerOpen(pub &'static str);

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn operations_beyond_the_limit_wait_and_dropped_ones_do_not_count() {
        let operations = Operations::bounded("redis", &StoreMetrics::default(), 2);
        let now = || (operations.under_way.get(), operations.waiting.get());
        let first = operations.begin().await;
        let _second = operations.begin().await;
        let mut third = Box::pin(operations.begin());
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(now(), (2, 1));
        drop(first);
        let third = third.await;
        assert_eq!(now(), (2, 0));
        drop(third);
        assert_eq!(now(), (1, 0));
    }
}
