//! The broker of events, if the settings name one.

use tokio_util::sync::CancellationToken;
use tourin_chassis::health::Dependency;
use tourin_shared_events::bus::rabbitmq::RabbitBus;

/// Reports whether the broker is reachable, until `stop`. The bus reconnects by itself.
pub(crate) async fn watch(
    bus: RabbitBus,
    address: String,
    ready: Dependency,
    stop: CancellationToken,
) {
    let waiting = format!("waiting for rabbitmq at {address}");
    ready.set_unready(waiting.clone());
    tracing::info!(address, "waiting for rabbitmq");
    let following = bus.follow(|connected| {
        if connected {
            tracing::info!(address, "rabbitmq is there");
            ready.set_ready();
        } else {
            tracing::warn!(address, "rabbitmq is gone");
            ready.set_unready(waiting.clone());
        }
    });
    stop.run_until_cancelled(following).await;
    // A bus is closed only by a service that is stopping.
    stop.cancelled().await;
}
