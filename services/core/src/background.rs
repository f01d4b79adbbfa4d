//! What runs beside the requests: the relay of events, the pruner, the probe of the database.

use std::sync::Arc;
use std::time::Duration;

use tourin_chassis::health::{Dependency, Health};
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_shared_events::outbox::{Pruner, Relay, Retention};

use crate::Dependencies;
use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::http::AppState;
use crate::store::sqlite::SqliteStore;

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

/// Starts everything that runs beside the requests.
pub(crate) fn start(
    tasks: &Tasks,
    store: &SqliteStore,
    state: &AppState,
    dependencies: &Dependencies,
    health: &Health,
) {
    let clock = Arc::clone(&dependencies.clock);
    let events_clock: tourin_shared_events::Clock = Arc::new(move || clock.now());
    let outbox = Arc::new(store.outbox());
    let token = tasks.shutdown().token();
    match &dependencies.publisher {
        Some(publisher) => {
            let relay = Relay::new(outbox, Arc::clone(publisher), store.wake.clone(), events_clock);
            tasks.spawn("relay", relay.run(token));
        }
        None => {
            let pruner = Pruner::new(outbox, Retention::Feed(FEED_RETENTION), events_clock);
            tasks.spawn("feed pruner", async move { pruner.run(token).await });
        }
    }
    tasks.spawn(
        "session pruner",
        prune(
            Arc::clone(&state.sessions),
            Arc::clone(&state.revocations),
            tasks.shutdown().clone(),
        ),
    );
    let views = state.content.views.clone();
    tasks.spawn("view writer", views.run(tasks.shutdown().clone()));
    let database = health.register("database");
    // Migrated just now, so it works; the probe says when it ceases to.
    database.set_ready();
    tasks.spawn("database probe", probe(store.clone(), database, tasks.shutdown().clone()));
}

async fn probe(store: SqliteStore, database: Dependency, stop: Shutdown) {
    loop {
        tokio::select! {
            () = stop.begun() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        match tokio::time::timeout(PROBE_LIMIT, store.probe()).await {
            Ok(Ok(())) => database.set_ready(),
            Ok(Err(error)) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "database");
                database.set_unready("it does not answer");
            }
            Err(_) => database.set_unready("it takes too long to answer"),
        }
    }
}

async fn prune(sessions: Arc<Sessions>, revocations: Arc<Revocations>, stop: Shutdown) {
    loop {
        tokio::select! {
            () = stop.begun() => return,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
        // One that fails is tried again in a minute; nothing depends on it but space.
        match sessions.prune().await {
            Ok(pruned) => tracing::debug!(pruned, "sessions that were over"),
            Err(error) => tracing::warn!(%error, "sessions were not pruned"),
        }
        match revocations.prune().await {
            Ok(pruned) => tracing::debug!(pruned, "revocations that had expired"),
            Err(error) => tracing::warn!(%error, "revocations were not pruned"),
        }
    }
}
