//! Processes that are killed.

use std::time::Duration;

use crate::audited::audited;

#[tokio::test(flavor = "multi_thread")]
async fn core_killed_and_started_again() {
    audited(async |scene| {
        scene.mesh.core.kill();
        scene.load_for(Duration::from_secs(2)).await;
        scene.mesh.core.start();
        scene.recovers().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_recommendation_replica_of_three_killed_costs_no_request() {
    let report = audited(async |scene| {
        scene.mesh.recommendations[1].kill();
        // Longer than its lease, so that it is listed for a part of the time.
        scene.load_for(Duration::from_secs(5)).await;
        scene.mesh.recommendations[1].start();
        scene.recovers().await;
    })
    .await;
    assert_eq!((report.failed(), report.failed_attempts), (0, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gateway_of_two_killed_and_clients_go_on_by_the_other() {
    let report = audited(async |scene| {
        scene.mesh.gateways[0].kill();
        scene.load_for(Duration::from_secs(4)).await;
        scene.mesh.gateways[0].start();
        scene.recovers().await;
    })
    .await;
    // Only requests in flight at the killed gateway may fail, and of these only the ones that are not safe to
    // repeat.
    let doubtful: Vec<_> =
        report.stats.failed.keys().filter(|kind| !kind.starts_with("review ")).collect();
    assert!(doubtful.is_empty(), "{report}");
    assert!(report.retries > 0, "no request met the dead gateway:\n{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_killed_and_started_again_costs_no_request() {
    let report = audited(async |scene| {
        scene.mesh.registry.kill();
        // Longer than leases: no instance may be dropped because the registry is gone.
        scene.load_for(Duration::from_secs(5)).await;
        scene.mesh.registry.start();
        scene.recovers().await;
    })
    .await;
    assert_eq!((report.failed(), report.failed_attempts), (0, 0), "{report}");
}
