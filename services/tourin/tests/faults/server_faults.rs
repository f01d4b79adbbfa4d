//! Servers that are restarted, with their data.

use std::time::Duration;

use tourin_testbed::{Server, StopSignal};

use crate::audited::audited;

async fn restarted(server: Server) {
    audited(async |scene| {
        scene.mesh.bed.stop(server, StopSignal::Term).await;
        scene.load_for(Duration::from_secs(3)).await;
        scene.mesh.bed.start(server).await;
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_restarted() {
    restarted(Server::Amqp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarted() {
    restarted(Server::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_restarted() {
    restarted(Server::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_restarted() {
    restarted(Server::Mongodb).await;
}
