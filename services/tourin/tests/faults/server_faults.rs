//! Servers that are restarted: gone for as long as their start takes, with what they keep kept.

use std::time::Duration;

use crate::audited::audited;

async fn restarted(server: &str) {
    audited(async |scene| {
        scene.mesh.bed.stop(server).await;
        scene.load_for(Duration::from_secs(3)).await;
        scene.mesh.bed.start_again(server).await;
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_restarted() {
    restarted("amqp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarted() {
    restarted("redis").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_restarted() {
    restarted("mysql").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_restarted() {
    restarted("mongodb").await;
}
