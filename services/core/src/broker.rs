//! The broker that events go to, where the settings name one.
//!
//! Core does not need the broker to do its work: a change commits with its events, and the outbox
//! keeps them until the broker has confirmed them. So it goes on while the broker is away. That it
//! is away is in the log, once when it goes and once when it comes back, and readiness names it: an
//! operator sees what stands still, and no request goes elsewhere for it, since instances are found by
//! the registry.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tourin_chassis::config::ReadinessSettings;
use tourin_chassis::health::{Dependency, Outcomes, StoreWatch, Trouble};
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::bus::rabbitmq::RabbitBus;
use tourin_shared_events::outbox::{OutboxStore, SHARDS, Shard};

/// What readiness calls it.
const NAME: &str = "rabbitmq";
/// How long a confirm may take.
const PROBE_LIMIT: Duration = Duration::from_millis(1_500);
/// How long the last events may take at the stop; those that do not make it wait in the outbox for
/// the next start, or for another instance.
const LAST_ROUND_LIMIT: Duration = Duration::from_millis(300);
/// How often the outbox is asked then whether it is empty.
const LAST_ROUND_POLL: Duration = Duration::from_millis(10);
/// How long the broker may take to say goodbye; it notices by itself that a connection is gone.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Says when the broker goes, when it takes no messages, and when it is back, until `stop`.
pub(crate) async fn watch(
    bus: RabbitBus,
    ready: Dependency,
    readiness: ReadinessSettings,
    stop: Shutdown,
) {
    let watching = async {
        while bus.wait_until_connected(true).await {
            ready.set_ready();
            tracing::info!(?bus, "the event bus is there");
            let probed = bus.clone();
            let probe = move || {
                let bus = probed.clone();
                async move { bus.probe(PROBE_LIMIT).await.map_err(Trouble::Refuses) }
            };
            let watch = StoreWatch::new(Outcomes::default(), readiness.interval(), probe);
            tokio::select! {
                is_open = bus.wait_until_connected(false) => if !is_open { return },
                () = watch.report_to(NAME, &ready) => {}
            }
            ready.set_unready("it is away; events wait in the outbox");
            tracing::warn!(?bus, "the event bus is gone; events wait in the outbox");
        }
    };
    // A bus is closed only by a stop.
    stop.token().run_until_cancelled(watching).await;
    stop.begun().await;
}

/// Lets the relay publish what the last requests left behind, if the broker is there to take it.
pub(crate) async fn last_round(outbox: &dyn OutboxStore, bus: &RabbitBus) {
    let all: Vec<Shard> = (0..SHARDS).collect();
    let deadline = Instant::now() + LAST_ROUND_LIMIT;
    while bus.is_connected() && Instant::now() < deadline {
        let waiting = timeout(LAST_ROUND_LIMIT, outbox.pending(&all, 0, 1)).await;
        match waiting {
            Ok(Ok(waiting)) if !waiting.is_empty() => sleep(LAST_ROUND_POLL).await,
            // Empty, or out of reach: there is nothing to wait for.
            _ => return,
        }
    }
}

/// Closes the connections.
pub(crate) async fn close(bus: RabbitBus) {
    if timeout(CLOSE_LIMIT, bus.close(CLOSE_LIMIT)).await.is_err() {
        tracing::debug!(?bus, "the event bus did not say goodbye");
    }
}
