//! Background tasks: the relay of events, the pruner, the watch of the stores.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::config::ReadinessSettings;
use tourin_chassis::health::{Dependency, Health, StoreWatch};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::pruning::PruneGuard;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_registry_api::RegistrationState;
use tourin_shared_events::PassTime;
use tourin_shared_events::bus::Publisher;
use tourin_shared_events::outbox::Relay;

use crate::app::invalidations::InvalidatingPublisher;
use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::app::visitor_keys::VisitorKeys;
use crate::http::AppState;
use crate::store::Store;
use crate::store::redis::{MysqlRedisStore, PendingRevocations};

/// How often expired sessions and revocations are removed. A salt is kept at most this much longer
/// than its grace.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The servers' names in readiness.
pub(crate) struct Names {
    pub(crate) database: String,
    pub(crate) redis: Option<String>,
}

/// Starts the background tasks. The relay sends events to the publisher.
pub(crate) fn start(
    tasks: &Tasks,
    store: &Store,
    state: &AppState,
    publisher: Arc<dyn Publisher>,
    clock: SharedClock,
    (health, names, metrics): (&Health, Names, &Metrics),
    readiness: &ReadinessSettings,
) {
    let session_guard = PruneGuard::new("sessions", store.session_passes(), Arc::clone(&clock));
    let outbox_guard = PruneGuard::new("outbox", store.outbox_passes(), Arc::clone(&clock));
    PruneGuard::measure(vec![Arc::clone(&session_guard), Arc::clone(&outbox_guard)], metrics);
    let outbox_time: PassTime = Arc::new(move || {
        let guard = Arc::clone(&outbox_guard);
        Box::pin(async move { guard.pass().await })
    });
    let events_clock: tourin_shared_events::Clock = Arc::new(move || clock.now());
    let invalidations = Arc::clone(&state.invalidations);
    let publisher = InvalidatingPublisher::new(publisher, Arc::clone(&invalidations));
    tasks.spawn("invalidations", invalidations.run(tasks.shutdown().clone()));
    let publisher = Arc::new(publisher);
    let relay =
        Relay::new(store.outbox(), publisher, store.wake(), events_clock).with_pruning(outbox_time);
    metrics.with_registry(|registry| relay.metrics().register(registry));
    tasks.spawn("relay", relay.run(tasks.shutdown().token()));
    tasks.spawn(
        "session pruner",
        prune(
            Arc::clone(&state.sessions),
            Arc::clone(&state.revocations),
            Arc::clone(&state.visitor_keys),
            session_guard,
            tasks.shutdown().clone(),
        ),
    );
    let views = state.content.views.clone();
    tasks.spawn("view writer", views.run(tasks.shutdown().clone()));
    let database = health.register("database");
    // The migration has just succeeded; the watch reports later failures.
    database.set_ready();
    let probed = store.clone();
    let probe = move || {
        let store = probed.clone();
        async move { store.write_probe().await }
    };
    let watch = StoreWatch::new(store.outcomes(), readiness.interval(), probe);
    tasks
        .spawn("database watch", report(watch, names.database, database, tasks.shutdown().clone()));
    if let (Some(sessions), Some(name)) = (store.with_redis(), names.redis) {
        start_on_redis(tasks, sessions, health, name, readiness);
    }
}

/// Reports to readiness whether this instance is registered, until `stop`. An unregistered instance
/// still serves clients that know its address.
pub(crate) async fn watch_registry(
    mut state: watch::Receiver<RegistrationState>,
    registry: Dependency,
    stop: Shutdown,
) {
    let watching = async {
        loop {
            match &*state.borrow_and_update() {
                RegistrationState::Registered => registry.set_ready(),
                RegistrationState::Registering(None) => registry.set_unready("not reached yet"),
                RegistrationState::Registering(Some(error))
                | RegistrationState::Unreachable(error) => registry.set_unready(error.to_string()),
            }
            if state.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.begun() => {}
    }
}

/// Starts the background tasks of sessions in Redis.
fn start_on_redis(
    tasks: &Tasks,
    sessions: &MysqlRedisStore,
    health: &Health,
    name: String,
    readiness: &ReadinessSettings,
) {
    let pending = PendingRevocations::new(sessions.clone());
    tasks.spawn("pending revocations", pending.run(tasks.shutdown().clone()));
    let redis = health.register("redis");
    // Redis has just answered; the watch reports later failures.
    redis.set_ready();
    let probed = sessions.sessions().clone();
    let outcomes = probed.outcomes();
    let probe = move || {
        let sessions = probed.clone();
        async move { sessions.write_probe().await }
    };
    let watch = StoreWatch::new(outcomes, readiness.interval(), probe);
    tasks.spawn("redis watch", report(watch, name, redis, tasks.shutdown().clone()));
}

/// Reports the state of a store to readiness, until `stop`.
async fn report(watch: StoreWatch, name: String, dependency: Dependency, stop: Shutdown) {
    stop.token().run_until_cancelled(watch.report_to(&name, &dependency)).await;
}

async fn prune(
    sessions: Arc<Sessions>,
    revocations: Arc<Revocations>,
    visitor_keys: Arc<VisitorKeys>,
    guard: Arc<PruneGuard>,
    stop: Shutdown,
) {
    loop {
        tokio::select! {
            () = stop.begun() => return,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
        // Also without a gateway that asks, yesterday's key is overwritten. By a doubtful clock too:
        // a key that is overwritten early only makes visitors count twice.
        if let Err(error) = visitor_keys.today().await {
            tracing::warn!(%error, "the visitor key of the day before was not destroyed");
        }
        // A failed pass is retried in a minute; a delay only costs space.
        let now = match guard.pass().await {
            Ok(Some(now)) => now,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "sessions were not pruned");
                continue;
            }
        };
        match sessions.prune(now).await {
            Ok(pruned) => tracing::debug!(pruned, "expired sessions pruned"),
            Err(error) => tracing::warn!(%error, "sessions were not pruned"),
        }
        match revocations.prune(now).await {
            Ok(pruned) => tracing::debug!(pruned, "expired revocations pruned"),
            Err(error) => tracing::warn!(%error, "revocations were not pruned"),
        }
    }
}
