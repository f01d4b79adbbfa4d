//! The broker that carries events, where the settings name one.

use tokio_util::sync::CancellationToken;
use tourin_chassis::health::Dependency;
use tourin_shared_events::bus::rabbitmq::RabbitBus;

/// Says whether the broker is there, until `stop`. The bus itself keeps on trying to reach it.
pub(crate) async fn watch(
    bus: RabbitBus,
    address: String,
    ready: Dependency,
    stop: CancellationToken,
) {
    let watching = async {
        let waiting = format!("waiting for rabbitmq at {address}");
        ready.set_unready(waiting.clone());
        tracing::info!(address, "waiting for rabbitmq");
        while bus.wait_until_connected(true).await {
            tracing::info!(address, "rabbitmq is there");
            ready.set_ready();
            if !bus.wait_until_connected(false).await {
                break;
            }
            tracing::warn!(address, "rabbitmq is gone");
            ready.set_unready(waiting.clone());
        }
        // Closed, which only a service that is stopping does.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
}
