//! Cut connections and registries that restart.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tourin_registry_api::sse::Parser;
use tourin_registry_api::{Change, Directory, DirectorySettings, Snapshot};
use tourin_testbed::eventually;

use crate::world::*;

fn has(directory: &Directory, id: &str) -> bool {
    directory.instances("core").iter().any(|i| i.id == id)
}

fn follow_at(registry: &Running, link: &Proxy, settings: DirectorySettings) -> Following {
    let client = client_of(&registry.workload("gateway", "follower"), link.address);
    Following::start(client, None, settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_from_its_version_with_every_change_once() {
    let registry = Running::start().await;
    let http = registry.http("gateway", "gateway-1");
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();

    let mut watch = http.get(registry.url("/v1/watch?from=0")).send().await.unwrap();
    let mut parser = Parser::new(100_000);
    let first = events(&mut watch, &mut parser, 1).await;
    assert_eq!(first[0].name, "snapshot");
    let snapshot: Snapshot = serde_json::from_str(&first[0].data).unwrap();
    assert_eq!(snapshot.instances, [instance("a", 4001)]);
    assert_eq!(first[0].id, snapshot.version.to_string());
    drop(watch);

    for (id, port) in [("b", 4002), ("c", 4003)] {
        registry.client(id).register(&instance(id, port), LEASE * 100).await.unwrap();
    }
    registry.client("a").deregister("core", "a", Duration::ZERO).await.unwrap();
    let resume = http
        .get(registry.url("/v1/watch"))
        .header("last-event-id", &first[0].id)
        .query(&[("epoch", snapshot.epoch)]);
    let mut watch = resume.send().await.unwrap();
    let mut parser = Parser::new(100_000);
    let missed = events(&mut watch, &mut parser, 3).await;
    registry.client("b").drain("core", "b", Duration::ZERO).await.unwrap();
    let live = events(&mut watch, &mut parser, 1).await;

    let told: Vec<_> = missed
        .iter()
        .chain(&live)
        .map(|event| {
            assert_eq!(event.name, "change");
            let change: Change = serde_json::from_str(&event.data).unwrap();
            assert_eq!(event.id, change.version.to_string());
            (change.version - snapshot.version, change.instance.id)
        })
        .collect();
    let expected = [(1, "b"), (2, "c"), (3, "a"), (4, "b")].map(|(n, id)| (n, id.to_owned()));
    assert_eq!(told, expected);

    // From another epoch or the future: a snapshot.
    for query in ["from=1&epoch=1", "from=18446744073709551615"] {
        let mut watch = http.get(registry.url(&format!("/v1/watch?{query}"))).send().await.unwrap();
        let first = events(&mut watch, &mut Parser::new(100_000), 1).await;
        assert_eq!(first[0].name, "snapshot", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_catches_up_after_its_connection_was_cut() {
    let registry = Running::start().await;
    let link = Proxy::open_to(registry.addr).await;
    let following = follow_at(&registry, &link, DirectorySettings::default());
    for (id, port) in [("a", 4001), ("b", 4002)] {
        registry.client(id).register(&instance(id, port), LEASE * 100).await.unwrap();
    }
    following.sees(&["a", "b"]).await;

    link.close().await;
    following.directory.connected().wait_for(|connected| !connected).await.unwrap();
    registry.client("a").deregister("core", "a", Duration::ZERO).await.unwrap();
    registry.client("c").register(&instance("c", 4003), LEASE * 100).await.unwrap();
    registry.client("b").drain("core", "b", Duration::ZERO).await.unwrap();
    assert_eq!(ids_up(&following.directory), ["a", "b"], "it continues with what it knows");

    link.open().await;
    following.sees(&["c"]).await;
    let listed = registry.list().await;
    assert_eq!(following.directory.version(), listed.version);
    assert_eq!(*following.directory.all(), listed.instances);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_away_too_long_gets_a_snapshot() {
    let registry = Running::start_with(|settings| settings.history = 2).await;
    let link = Proxy::open_to(registry.addr).await;
    let following = follow_at(&registry, &link, DirectorySettings::default());
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    following.sees(&["a"]).await;
    link.close().await;
    following.directory.connected().wait_for(|connected| !connected).await.unwrap();
    registry.client("a").deregister("core", "a", Duration::ZERO).await.unwrap();
    for (id, port) in [("b", 4002), ("c", 4003), ("d", 4004)] {
        registry.client(id).register(&instance(id, port), LEASE * 100).await.unwrap();
    }
    link.open().await;
    following.sees(&["b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_registry_is_survived_by_everybody_who_lives() {
    let registry = Running::start().await;
    let link = Proxy::open_to(registry.addr).await;
    let settings = DirectorySettings { settle: LEASE, ..DirectorySettings::default() };
    let following = follow_at(&registry, &link, settings);
    let living = start(registry.client_at(link.address, "living"), instance("living", 4001));
    let dying = start(registry.client_at(link.address, "dying"), instance("dying", 4002));
    following.sees(&["dying", "living"]).await;
    let before = registry.list().await;

    // From here on, the live instance must always be visible.
    let watched = following.directory.clone();
    let over = CancellationToken::new();
    let looking = over.clone();
    let guard = tokio::spawn(async move {
        let mut changed = watched.changed();
        let mut looks = 0;
        loop {
            assert!(has(&watched, "living"), "lost at version {}", watched.version());
            looks += 1;
            tokio::select! {
                () = looking.cancelled() => return looks,
                change = changed.changed() => change.unwrap(),
            }
        }
    });

    link.close().await;
    let place = registry.place();
    registry.stop().await;
    drop(dying);
    assert_eq!(ids_up(&following.directory), ["dying", "living"]);
    let registry = Running::start_at(place, |_| {}).await;
    link.open().await;

    following.until(|d| d.version() > before.version, "the new registry is followed").await;
    following.sees(&["living"]).await;
    eventually("the living one has registered again", || async {
        registry.list().await.instances == [instance("living", 4001)]
    })
    .await;
    assert!(living.registered(TIMEOUT).await);
    assert!(registry.list().await.epoch > before.version);
    over.cancel();
    let looks = guard.await.expect("the living one was never lost");
    assert!(looks > 1, "it looked at every change");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_start_before_the_registry() {
    let registry = Running::start().await;
    let link = Proxy::closed_to(registry.addr);
    let following = follow_at(&registry, &link, DirectorySettings::default());
    let registration = start(registry.client_at(link.address, "a"), instance("a", 4001));
    assert!(!registration.registered(HEARTBEAT * 3).await);
    assert_eq!(following.directory.version(), 0);
    link.open().await;
    assert!(registration.registered(TIMEOUT).await);
    following.sees(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_connection_is_closed() {
    let registry = Running::start().await;
    let link = Proxy::open_to(registry.addr).await;
    // Comments come once a second.
    let idle_timeout = Duration::from_secs(5);
    let settings = DirectorySettings { idle_timeout, ..DirectorySettings::default() };
    let following = follow_at(&registry, &link, settings);
    following.directory.connected().wait_for(|connected| *connected).await.unwrap();
    // Kept alive by comments alone, it stays.
    let mut connected = following.directory.connected();
    connected.mark_unchanged();
    assert!(tokio::time::timeout(idle_timeout * 3 / 2, connected.changed()).await.is_err());

    link.stall();
    registry.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    following.sees(&["a"]).await;
}
