//! The broker that events are published to, if the settings name one.
//!
//! Core works without the broker: a change commits with its events, and the outbox keeps them until
//! the broker has confirmed them. The log says once when the broker becomes unreachable and once when
//! it is back, and readiness names it for operators. This does not redirect requests, since instances
//! are found through the registry.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tourin_chassis::config::ReadinessSettings;
use tourin_chassis::health::{Dependency, Outcomes, StoreWatch, Trouble};
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::bus::rabbitmq::RabbitBus;
use tourin_shared_events::outbox::{OutboxStore, SHARDS, Shard};

/// The broker's name in readiness.
const NAME: &str = "rabbitmq";
/// How long a publisher confirm may take.
const PROBE_LIMIT: Duration = Duration::from_millis(1_500);
/// How long the last events may take at the stop. Unpublished events wait in the outbox for the next
/// start, or for another instance.
const LAST_ROUND_LIMIT: Duration = Duration::from_millis(300);
/// How often the stop checks whether the outbox is empty.
const LAST_ROUND_POLL: Duration = Duration::from_millis(10);
/// How long the broker may take to close the connections. It detects a lost connection by itself.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Reports when the broker is unreachable, refuses messages, or is back, until `stop`.
pub(crate) async fn watch(
    bus: RabbitBus,
    ready: Dependency,
    readiness: ReadinessSettings,
    stop: Shutdown,
) {
    let watching = async {
        while bus.wait_until_connected(true).await {
            ready.set_ready();
            tracing::info!(?bus, "the event bus is connected");
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
            ready.set_unready("it is disconnected; events wait in the outbox");
            tracing::warn!(?bus, "the event bus is disconnected; events wait in the outbox");
        }
    };
    // Only a stop closes the bus.
    stop.token().run_until_cancelled(watching).await;
    stop.begun().await;
}

/// Lets the relay publish the events of the last requests, if the broker is reachable.
pub(crate) async fn last_round(outbox: &dyn OutboxStore, bus: &RabbitBus) {
    let all: Vec<Shard> = (0..SHARDS).collect();
    let deadline = Instant::now() + LAST_ROUND_LIMIT;
    while bus.is_connected() && Instant::now() < deadline {
        let waiting = timeout(LAST_ROUND_LIMIT, outbox.pending(&all, 0, 1)).await;
        match waiting {
            Ok(Ok(waiting)) if !waiting.is_empty() => sleep(LAST_ROUND_POLL).await,
            // The outbox is empty or unreachable: there is nothing to wait for.
            _ => return,
        }
    }
}

pub(crate) async fn close(bus: RabbitBus) {
    if timeout(CLOSE_LIMIT, bus.close(CLOSE_LIMIT)).await.is_err() {
        tracing::debug!(?bus, "the event bus did not close in time");
    }
}
