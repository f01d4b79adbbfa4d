//! Certificates that end, and roots that are replaced, while clients make requests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::{Certificate, Client, Identity};
use serde_json::json;
use tourin_testbed::eventually;

use crate::separate_process_scenarios::{Flags, Services};
use crate::world::{Member, World};

/// The shortest life of a certificate. Each is renewed at half of it.
const SHORT: Flags<'_> =
    Flags { registry: &["--certificate-lifetime-s", "10"], gateway: &[], core: &[] };
/// Clients at once.
const CLIENTS: usize = 3;

async fn start() -> (World, Services) {
    let (world, services) = Services::start_with(2, SHORT).await;
    let spot = world.spots(1).await.remove(0);
    for _each_replica in 0..2 {
        eventually("the replicas know the spots", async || {
            let answer = world.get(&format!("/api/tour-spots/{spot}/similar")).await;
            if answer.status == 200 { Ok(()) } else { Err(answer) }
        })
        .await;
    }
    (world, services)
}

/// Reads from both services and writes, as several clients, for some time. Each request must be answered as
/// if nothing happened. Returns how many there were.
async fn load(world: &World, time: Duration) -> usize {
    let end = Instant::now() + time;
    let spots = world.spots(CLIENTS).await;
    let clients = spots.iter().enumerate().map(async |(number, spot)| {
        let member: Member = world.member(&format!("traveller{number}")).await;
        let bookmarks = format!("/api/users/{}/bookmarks", member.id);
        let mut requests = 0;
        while Instant::now() < end {
            world.get("/api/tour-spots?pageSize=1").await.expect(200);
            world.get(&format!("/api/tour-spots/{spot}/similar")).await.expect(200);
            let body = json!({"tourSpotId": spot});
            world.post_as(&member, &bookmarks, body).await.expect(201);
            world.delete_as(&member, &format!("{bookmarks}/{spot}")).await.expect(204);
            requests += 4;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        requests
    });
    join_all(clients).await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_of_certificates_cost_no_request_also_without_the_registry_for_a_while() {
    let (world, mut services) = start().await;
    let outage = async {
        tokio::time::sleep(Duration::from_secs(11)).await;
        services.registry_is_away_for(Duration::from_secs(4)).await;
    };
    let (requests, ()) = tokio::join!(load(&world, Duration::from_secs(25)), outage);
    assert!(requests > 100, "only {requests} requests");
    // All have registered anew by certificates of the registry's next run.
    services.wait_for(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_replaced_without_a_failed_request() {
    let (world, mut services) = start().await;
    let root = services.authority_file("root.pem");
    let before = fs::read(&root).unwrap();
    let rotate = async || {
        let mut command = services.operators_command("rotate-root");
        let ran = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        ran.await.unwrap()
    };
    let rotation = async {
        let begun = rotate().await;
        assert!(begun.status.success(), "{begun:?}");
        let again = rotate().await;
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.status.success() && said.contains("being replaced already"), "{said}");
    };
    let (requests, ()) = tokio::join!(load(&world, Duration::from_secs(25)), rotation);
    assert!(requests > 100, "only {requests} requests");
    eventually("the old root is gone", async || {
        let others = ["next-root.pem", "next-root-key.pem", "old-root.pem"];
        !others.iter().any(|name| services.authority_file(name).exists())
    })
    .await;
    assert_ne!(fs::read(&root).unwrap(), before);
    // A new instance joins by the token that it finds.
    services.add_recommendation(3);
    services.wait_for(3).await;
    world.get("/api/tour-spots").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_certificate_in_files_reads_the_metrics() {
    let (_world, services) = Services::start_with(2, SHORT).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made/prometheus");
    let write = async || {
        let mut command = services.operators_command("certificate");
        command.arg("--out").arg(&out);
        let ran = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        let ran = ran.await.unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let read = |name: &str| {
            let path = out.join(name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            fs::read_to_string(path).unwrap()
        };
        ["certificate.pem", "key.pem", "roots.pem"].map(read)
    };
    let [first, _, _] = write().await;
    let [certificate, key, roots] = write().await;
    assert_ne!(certificate, first, "renewed by running it again");
    // As a Prometheus does with `server_name`.
    let instance = services.replica().await;
    let roots = Certificate::from_pem_bundle(roots.as_bytes()).unwrap();
    let client = Client::builder()
        .tls_certs_only(roots)
        .identity(Identity::from_pem(format!("{key}{certificate}").as_bytes()).unwrap())
        .resolve("recommendation.tourin", instance)
        .build()
        .unwrap();
    let url = format!("https://recommendation.tourin:{}/metrics", instance.port());
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("\n# TYPE tourin_"));
}
