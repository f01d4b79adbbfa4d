//! Registries that share their state in Redis: any of them serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tourin_chassis::clock::SystemClock;
use tourin_registry::authority::{Authority, AuthoritySettings};
use tourin_registry::{Registry, Settings};
use tourin_registry_api::sse::Parser;
use tourin_registry_api::wire::OverrideRequest;
use tourin_registry_api::{
    Change, ClientError, DirectorySettings, DownReason, JoinError, Snapshot, Status,
};
use tourin_testbed::{Server, User, authority, eventually, given_to, with_authority};
use uuid::Uuid;

use crate::world::*;

const LONG: Duration = Duration::from_secs(60);

/// What registries of one mesh share: an authority, and keys in Redis.
pub struct Shared {
    files: TempDir,
    prefix: String,
    redis: String,
}

impl Shared {
    pub fn new() -> Self {
        let files = TempDir::new().unwrap();
        let settings = AuthoritySettings {
            folder: files.path().to_owned(),
            mesh: "tourin".to_owned(),
            lifetime: LONG,
            given: None,
            tokens: None,
        };
        Authority::open(settings, Arc::new(SystemClock)).unwrap();
        let prefix = format!("test-{}", Uuid::now_v7().simple());
        Self { files, prefix, redis: given_to(User::Registry, Server::Redis) }
    }

    pub async fn registry(&self) -> Running {
        self.registry_with(|_| {}).await
    }

    async fn registry_with(&self, adjust: impl FnOnce(&mut Settings)) -> Running {
        let registry = Running::start_with(|settings| {
            self.adjust(settings);
            adjust(settings);
        })
        .await;
        let client = registry.client("reader");
        eventually("it has read the instances", || async { client.list(None).await }).await;
        registry
    }

    fn adjust(&self, settings: &mut Settings) {
        settings.authority_certificates = Some(self.files.path().join("root.pem"));
        settings.authority_key = Some(self.files.path().join("root-key.pem"));
        settings.registry_redis_url = Some(self.redis.parse().unwrap());
        settings.registry_redis_prefix = self.prefix.clone();
    }
}

/// A gateway that watches the registries in this order, and acknowledges.
fn gateway(of: &Running, name: &str, addrs: &[SocketAddr]) -> Following {
    let client = client_of_all(&of.workload("gateway", name), addrs);
    let gateway = Following::start(client, Some(name), DirectorySettings::default());
    gateway.acknowledge_all();
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_one_registry_is_known_to_all() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    let following = two.follow();
    let registered = instance("a", 4001).with_metadata("zone", "서울").with_metadata("weight", "7");
    let first = one.client("a").register(&registered, LEASE * 100).await.unwrap().version;
    let listed = one.list().await.instances;
    assert_eq!(listed, std::slice::from_ref(&registered), "who registers sees it at once");
    following.until(|d| d.pick("core") == Some(registered.clone()), "the other one tells it").await;
    let again = two.client("a").register(&registered, LEASE * 100).await.unwrap().version;
    assert_eq!(again, first, "the same again is no change, wherever");

    // Another address, a drain and an override, each at the other one.
    let usurper = two.client("a").register(&instance("a", 4002), LEASE).await;
    assert!(matches!(usurper, Err(ClientError::Conflict(_))), "{usurper:?}");
    let out = OverrideRequest { out_of_service: Some(true), ..OverrideRequest::default() };
    let operator = two.client_as("operator", "o");
    operator.set_override(("core", "a"), &out, Duration::ZERO).await.unwrap();
    following.sees(&[]).await;
    eventually("the first one knows", || async {
        one.list().await.instances[0].status == Status::OutOfService
    })
    .await;
    let back = OverrideRequest { out_of_service: Some(false), ..OverrideRequest::default() };
    one.client_as("operator", "o")
        .set_override(("core", "a"), &back, Duration::ZERO)
        .await
        .unwrap();
    following.sees(&["a"]).await;
    one.client("a").drain("core", "a", Duration::ZERO).await.unwrap();
    let drained = |d: &tourin_registry_api::Directory| d.all()[0].status == Status::Draining;
    following.until(drained, "it drains").await;
    two.client("a").renew("core", "a").await.unwrap();
    let last = two.client("a").deregister("core", "a", Duration::ZERO).await.unwrap().version;
    assert_eq!(last, first + 4, "versions count every change of both");
    assert!(two.list().await.instances.is_empty());
    assert_eq!(one.client("a").renew("core", "a").await, Err(ClientError::Unknown));
    let report = one.client_as("operator", "o").scale_report(Some("core")).await.unwrap();
    assert_eq!(report.departures.len(), 1);
    assert_eq!(report.departures[0].reason, DownReason::Left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_resumed_at_another_registry_with_every_change_once() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    one.client("a").register(&instance("a", 4001), LEASE * 100).await.unwrap();
    let http = one.http("gateway", "gateway-1");
    let mut parser = Parser::new(100_000);
    let mut watch = http.get(one.url("/v1/watch?from=0")).send().await.unwrap();
    let first = events(&mut watch, &mut parser, 1).await;
    let snapshot: Snapshot = serde_json::from_str(&first[0].data).unwrap();
    assert_eq!(snapshot.instances, [instance("a", 4001)]);
    drop(watch);
    one.stop().await;

    for (id, port) in [("b", 4002), ("c", 4003)] {
        two.client(id).register(&instance(id, port), LEASE * 100).await.unwrap();
    }
    let resumed = format!("/v1/watch?from={}&epoch={}", snapshot.version, snapshot.epoch);
    let http = two.http("gateway", "gateway-1");
    let mut watch = http.get(two.url(&resumed)).send().await.unwrap();
    let mut parser = Parser::new(100_000);
    let missed = events(&mut watch, &mut parser, 2).await;
    let told: Vec<_> = missed
        .iter()
        .map(|event| {
            let change: Change = serde_json::from_str(&event.data).unwrap();
            (change.version - snapshot.version, change.instance.id)
        })
        .collect();
    assert_eq!(told, [(1, "b".to_owned()), (2, "c".to_owned())]);
    // A registry that starts now knows the latest changes, too.
    let three = shared.registry().await;
    let http = three.http("gateway", "gateway-1");
    let mut watch = http.get(three.url(&resumed)).send().await.unwrap();
    let again = events(&mut watch, &mut Parser::new(100_000), 2).await;
    assert_eq!(again, missed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_departure_waits_for_gateways_at_every_registry() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    let (here, there) = (one.acknowledging("gateway-1"), two.watch("gateway-2"));
    let leaving = start(one.client("a"), instance("a", 4001));
    here.sees(&["a"]).await;
    there.sees(&["a"]).await;
    let departing = tokio::spawn(leaving.depart());
    there.sees(&[]).await;
    here.sees(&[]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!departing.is_finished(), "the gateway at the other registry still sends to it");
    there.acknowledge_all();
    let departing = departing.await.unwrap();
    assert!(departing.is_acknowledged());
    assert!(departing.finish((9, 0)).await);
    let report = two.client_as("operator", "o").scale_report(None).await.unwrap().departures;
    let said = report[0].said.as_ref().unwrap();
    let receipt = said.receipt.as_ref().unwrap();
    assert_eq!((said.served, receipt.watchers), (9, 2));
    assert_eq!(receipt.slowest.as_ref().unwrap().watcher, "gateway-2");

    // One that has died is not waited for: neither a gateway nor, with its gateways, a registry.
    drop(there);
    let leaving = start(one.client("b"), instance("b", 4002));
    here.sees(&["b"]).await;
    assert!(leaving.depart().await.is_acknowledged());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stops_is_replaced_by_the_next_for_everybody() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    let both = [one.addr, two.addr];
    let gateway = gateway(&one, "gateway-1", &both);
    let staying = start(client_of_all(&one.workload("core", "a"), &both), instance("a", 4001));
    let leaving = start(client_of_all(&one.workload("core", "b"), &both), instance("b", 4002));
    gateway.sees(&["a", "b"]).await;
    let before = gateway.directory.version();
    // From here on both must always be visible.
    let (watched, over) = (gateway.directory.clone(), tokio_util::sync::CancellationToken::new());
    let looking = over.clone();
    let guard = tokio::spawn(async move {
        let mut changed = watched.changed();
        while !looking.is_cancelled() {
            assert!(ids_up(&watched).contains(&"a".to_owned()), "lost at {}", watched.version());
            tokio::select! {
                () = looking.cancelled() => {}
                change = changed.changed() => change.unwrap(),
            }
        }
    });

    one.stop().await;
    let new = client_of_all(&two.workload("core", "c"), &both);
    let joining = start(new, instance("c", 4003));
    assert!(joining.registered(TIMEOUT).await);
    gateway.sees(&["a", "b", "c"]).await;
    assert!(gateway.directory.version() > before, "versions go on");
    assert!(leaving.depart().await.is_acknowledged(), "by a gateway that has moved");
    gateway.sees(&["a", "c"]).await;
    // Several leases later the one that stays is still there.
    tokio::time::sleep(LEASE * 3).await;
    assert!(ids_up(&gateway.directory).contains(&"a".to_owned()));
    over.cancel();
    guard.await.unwrap();
    assert!(staying.leave().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_nothing_is_lost_and_nothing_is_new() {
    let shared = Shared::new();
    let link = Proxy::open_to(authority(&shared.redis)).await;
    let through = Shared {
        files: TempDir::new().unwrap(),
        prefix: shared.prefix.clone(),
        redis: with_authority(&shared.redis, &link.address.to_string()),
    };
    let registry = shared
        .registry_with(|settings| {
            settings.registry_redis_url = Some(through.redis.parse().unwrap());
        })
        .await;
    let following = registry.follow();
    let registration = start(registry.client("a"), instance("a", 4001));
    following.sees(&["a"]).await;
    let mut connected = following.directory.connected();
    connected.wait_for(|connected| *connected).await.unwrap();
    connected.mark_unchanged();
    let version = following.directory.version();

    link.close().await;
    let http = plain();
    let ready = format!("http://{}/readyz", registry.addr);
    let readiness = || async { http.get(&ready).send().await.unwrap().status().as_u16() };
    eventually("it is not ready", || async { readiness().await == 503 }).await;
    tokio::time::sleep(LEASE * 2).await;
    let refused = registry.client("b").register(&instance("b", 4002), LEASE).await;
    assert!(
        matches!(refused, Err(ClientError::Refused { status: 503, .. })),
        "another registry may serve it: {refused:?}"
    );
    assert_eq!(registry.list().await.instances, [instance("a", 4001)], "reads go on");
    assert_eq!(ids_up(&following.directory), ["a"]);

    link.open().await;
    eventually("it is ready", || async { readiness().await == 200 }).await;
    registry.client("b").register(&instance("b", 4002), LEASE * 100).await.unwrap();
    following.sees(&["a", "b"]).await;
    assert_eq!(following.directory.version(), version + 1, "nobody has lost a lease");
    assert!(!connected.has_changed().unwrap(), "the watch was not interrupted");
    assert!(registration.leave().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_once_and_are_kept_by_all_when_many_end_together() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    let gateway = two.acknowledging("gateway-1");
    let registrations = ["a", "b", "c", "d"].map(|id| {
        let port = 4001 + u16::from(id.as_bytes()[0] - b'a');
        start(one.client(id), instance(id, port))
    });
    gateway.sees(&["a", "b", "c", "d"]).await;
    let before = gateway.directory.version();
    let [a, b, c, d] = registrations;
    drop(d);
    gateway.sees(&["a", "b", "c"]).await;
    assert_eq!(gateway.directory.version(), before + 1, "two registries sweep, one finds it");

    drop((b, c));
    let operator = one.client_as("operator", "o");
    eventually("both registries say so", || async {
        let here = operator.leases(None).await.unwrap();
        let expired = here.leases.iter().filter(|l| l.instance.status == Status::Expired).count();
        here.protected == ["core"] && expired == 2 && two.list().await.protected == ["core"]
    })
    .await;
    assert_eq!(ids_up(&gateway.directory), ["a", "b", "c"]);
    operator.end_protection("core").await.unwrap();
    gateway.sees(&["a"]).await;
    assert!(a.leave().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_at_every_registry_and_its_uses_are_counted_together() {
    let shared = Shared::new();
    let (one, two) = (shared.registry().await, shared.registry().await);
    let token = one.authority().join_token("core", Some(2), LONG).unwrap();
    let joined = two.join(("core", "a"), &token).await.unwrap();
    joined.registry.register(&instance("a", 4001), LEASE * 100).await.unwrap();
    // Its certificate is good at the other one, below another intermediate.
    client_of(&joined.workload, one.addr).renew("core", "a").await.unwrap();
    one.join(("core", "b"), &token).await.unwrap();
    let refused = two.join(("core", "c"), &token).await;
    assert!(
        matches!(&refused, Err(JoinError::Refused(message)) if message.contains("used up")),
        "{:?}",
        refused.err()
    );
}

#[tokio::test]
async fn registries_that_share_a_redis_need_one_authority() {
    let (shared, folder) = (Shared::new(), TempDir::new().unwrap());
    let mut settings = Settings::new(([127, 0, 0, 1], 0).into(), folder.path());
    shared.adjust(&mut settings);
    (settings.authority_certificates, settings.authority_key) = (None, None);
    let refused = Registry::build(settings).await.err().unwrap().to_string();
    assert!(refused.contains("--authority-certificates"), "{refused}");
}
