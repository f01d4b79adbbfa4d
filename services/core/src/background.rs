//! What runs beside the requests: the relay of events, the pruner, the probe of the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::{Dependency, Health};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::pruning::PruneGuard;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_registry_api::RegistrationState;
use tourin_shared_events::PassTime;
use tourin_shared_events::bus::Publisher;
use tourin_shared_events::outbox::{Pruner, Relay, RelayStats, Retention};

use crate::app::StoreError;
use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::http::AppState;
use crate::store::Store;
use crate::store::redis::{Endings, MysqlRedisStore};

/// How often the database is asked whether it answers.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to answer before the service counts as unready.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How often sessions and revocations that are over are removed. A salt is kept at most this much
/// longer than its grace.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How long events stay in the feed for processes that follow it: a follower may be down this long
/// and miss nothing.
const FEED_RETENTION: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What readiness says of servers.
pub(crate) struct Names {
    pub(crate) database: String,
    pub(crate) redis: Option<String>,
}

/// Starts everything that runs beside the requests. Events go to the publisher, and the relay's counters
/// are answered; without one, other processes follow them over HTTP.
pub(crate) fn start(
    tasks: &Tasks,
    store: &Store,
    state: &AppState,
    publisher: Option<Arc<dyn Publisher>>,
    clock: SharedClock,
    (health, names, metrics): (&Health, Names, &Metrics),
) -> Option<Arc<RelayStats>> {
    let session_guard = PruneGuard::new("sessions", store.session_passes(), Arc::clone(&clock));
    let outbox_guard = PruneGuard::new("outbox", store.outbox_passes(), Arc::clone(&clock));
    PruneGuard::measure(vec![Arc::clone(&session_guard), Arc::clone(&outbox_guard)], metrics);
    let outbox_time: PassTime = Arc::new(move || {
        let guard = Arc::clone(&outbox_guard);
        Box::pin(async move { guard.pass().await })
    });
    let events_clock: tourin_shared_events::Clock = Arc::new(move || clock.now());
    let outbox = store.outbox();
    let token = tasks.shutdown().token();
    let relay = match publisher {
        Some(publisher) => {
            let relay =
                Relay::new(outbox, publisher, store.wake(), events_clock).with_pruning(outbox_time);
            let stats = relay.stats();
            tasks.spawn("relay", relay.run(token));
            Some(stats)
        }
        None => {
            let pruner = Pruner::new(outbox, Retention::Feed(FEED_RETENTION), outbox_time);
            tasks.spawn("feed pruner", async move { pruner.run(token).await });
            None
        }
    };
    tasks.spawn(
        "session pruner",
        prune(
            Arc::clone(&state.sessions),
            Arc::clone(&state.revocations),
            session_guard,
            tasks.shutdown().clone(),
        ),
    );
    let views = state.content.views.clone();
    tasks.spawn("view writer", views.run(tasks.shutdown().clone()));
    let database = health.register("database");
    // Migrated just now, so it works; the probe says when it ceases to.
    database.set_ready();
    let probed = store.clone();
    let ask = move || {
        let store = probed.clone();
        async move { store.probe().await }
    };
    tasks.spawn("database probe", probe(names.database, ask, database, tasks.shutdown().clone()));
    if let (Some(sessions), Some(name)) = (store.with_redis(), names.redis) {
        start_on_redis(tasks, sessions, health, name);
    }
    relay
}

/// Says whether the registry knows of this instance, until `stop`. Without it the instance goes on
/// serving whoever knows its address.
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

/// What runs beside the requests where the sessions are in Redis.
fn start_on_redis(tasks: &Tasks, sessions: &MysqlRedisStore, health: &Health, name: String) {
    let endings = Endings::new(sessions.clone());
    tasks.spawn("session endings", endings.run(tasks.shutdown().clone()));
    let redis = health.register("redis");
    // It has answered just now.
    redis.set_ready();
    let probed = sessions.clone();
    let ask = move || {
        let sessions = probed.clone();
        async move { sessions.probe_redis().await }
    };
    tasks.spawn("redis probe", probe(name, ask, redis, tasks.shutdown().clone()));
}

/// Asks again and again until `stop`. Says once when the answers cease, and once when they are back.
async fn probe<F>(name: String, ask: impl Fn() -> F, dependency: Dependency, stop: Shutdown)
where
    F: Future<Output = Result<(), StoreError>>,
{
    let mut was_there = true;
    loop {
        tokio::select! {
            () = stop.begun() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        let (reason, error) = match tokio::time::timeout(PROBE_LIMIT, ask()).await {
            Ok(Ok(())) => {
                dependency.set_ready();
                if !was_there {
                    tracing::info!(server = %name, "it answers again");
                }
                was_there = true;
                continue;
            }
            Ok(Err(error)) => ("it does not answer", format!("{:#}", anyhow::Error::from(error))),
            Err(_) => ("it takes too long to answer", format!("no answer in {PROBE_LIMIT:?}")),
        };
        dependency.set_unready(format!("{name}: {reason}"));
        if was_there {
            tracing::warn!(server = %name, error, "{reason}");
        }
        was_there = false;
    }
}

async fn prune(
    sessions: Arc<Sessions>,
    revocations: Arc<Revocations>,
    guard: Arc<PruneGuard>,
    stop: Shutdown,
) {
    loop {
        tokio::select! {
            () = stop.begun() => return,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
        // One that fails is tried again in a minute; nothing depends on it but space.
        let now = match guard.pass().await {
            Ok(Some(now)) => now,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "sessions were not pruned");
                continue;
            }
        };
        match sessions.prune(now).await {
            Ok(pruned) => tracing::debug!(pruned, "sessions that were over"),
            Err(error) => tracing::warn!(%error, "sessions were not pruned"),
        }
        match revocations.prune(now).await {
            Ok(pruned) => tracing::debug!(pruned, "revocations that had expired"),
            Err(error) => tracing::warn!(%error, "revocations were not pruned"),
        }
    }
}
