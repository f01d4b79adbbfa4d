//! The connection between core and RabbitMQ.

use std::time::Duration;

use crate::audited::audited;

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_cut_in_mid_publish() {
    audited(async |scene| {
        // Slow, so that events are always in flight.
        scene.mesh.proxy.delay(Duration::from_millis(100));
        for _ in 0..5 {
            scene.load_for(Duration::from_secs(1)).await;
            scene.mesh.proxy.cut().await;
        }
        scene.load_for(Duration::from_secs(1)).await;
        // Unreachable for a while: events stay in the outbox.
        scene.mesh.proxy.close().await;
        scene.load_for(Duration::from_secs(3)).await;
        scene.mesh.proxy.delay(Duration::ZERO);
        scene.mesh.proxy.open().await;
        scene.recovers().await;
    })
    .await;
}
