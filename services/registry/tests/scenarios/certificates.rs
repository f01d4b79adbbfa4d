//! Certificates that are renewed, that expire, and whose root is replaced, while calls go on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use reqwest::{Client, StatusCode};
use tokio::time::sleep;
use tourin_chassis::http::{HttpLimits, Listener, serve};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry::{Registry, Settings};
use tourin_registry_api::{DirectorySettings, Joined, Workload, root_hash};

use crate::world::*;

const MINUTE: Duration = Duration::from_secs(60);
/// The registry looks once a second whether its own certificate must be renewed.
const LIFETIME_S: u32 = 5;
/// How often the calls are made that must not fail.
const CALL_EVERY: Duration = Duration::from_millis(50);
/// The life of a certificate, and the second at whose end it is over.
const LIFE: Duration = Duration::from_secs(LIFETIME_S as u64 + 1);

async fn short_lived() -> Running {
    Running::start_with(|settings| settings.certificate_lifetime_s = LIFETIME_S).await
}

/// An instance that keeps its certificate.
async fn kept(registry: &Running, (service, id): (&str, &str)) -> Joined {
    let token = registry.authority().join_token(service, None, MINUTE).unwrap();
    registry.join((service, id), &token).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_a_watch_and_calls_go_on() {
    let registry = short_lived().await;
    let joined = kept(&registry, ("core", "a")).await;
    let (workload, client) = (joined.workload.clone(), joined.registry.clone());
    let following = Following::start(client.clone(), None, DirectorySettings::default());
    let registration = start(client.clone(), instance("a", 4001));
    following.sees(&["a"]).await;
    let mut connected = following.directory.connected();
    connected.wait_for(|connected| *connected).await.unwrap();
    connected.mark_unchanged();
    let version = following.directory.version();

    let (mut last, mut renewals) = (workload.chain(), 0);
    let began = Instant::now();
    while renewals < 3 {
        assert!(began.elapsed() < TIMEOUT, "{renewals} renewals");
        let listed = client.list(None).await.expect("no call fails");
        assert_eq!(listed.instances, [instance("a", 4001)]);
        if workload.chain() != last {
            last = workload.chain();
            renewals += 1;
        }
        sleep(CALL_EVERY).await;
    }
    assert!(!connected.has_changed().unwrap(), "the watch was not interrupted");
    assert_eq!(following.directory.version(), version, "no lease was lost");
    assert!(registration.leave().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_after_its_certificate_and_no_other_begins() {
    let registry = short_lived().await;
    let workload = registry.workload("core", "a");
    let http = http_of(&workload);
    let list = || http.get(registry.url("/v1/instances")).send();
    let response = list().await.unwrap();
    assert!(!response.headers().contains_key("connection"));
    response.bytes().await.unwrap();

    sleep(LIFE).await;
    let last = list().await.expect("the connection is still open");
    assert_eq!(last.status(), StatusCode::OK);
    assert_eq!(last.headers()["connection"], "close");
    last.bytes().await.unwrap();
    for _ in 0..2 {
        assert!(list().await.is_err(), "a new connection needs a certificate that is valid");
    }
    // The registry's own has been renewed meanwhile: others still find it.
    registry.list().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_certificate_expired_joins_again_by_its_token() {
    let registry = short_lived().await;
    let link = Proxy::open_to(registry.addr).await;
    let token = registry.authority().join_token("core", None, MINUTE).unwrap();
    let joined = joining(link.address, ("core", "a"), &token).join(None).await.unwrap();
    link.close().await;
    sleep(LIFE).await;
    link.open().await;
    let again = async {
        while joined.registry.list(None).await.is_err() {
            sleep(CALL_EVERY).await;
        }
    };
    tokio::time::timeout(TIMEOUT, again).await.expect("it has a certificate again");
}

/// A service that answers every peer of the mesh.
pub async fn service(workload: &Workload) -> SocketAddr {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    serve_on(tcp, workload);
    addr
}

/// The same on a listener that is there already.
pub fn serve_on(tcp: tokio::net::TcpListener, workload: &Workload) {
    let listener = Listener::with_tls(tcp, workload.server_config(), "tourin");
    tokio::spawn(async move {
        let router = Router::new().route("/", get(|| async { "here" }));
        serve(listener, router, &HttpLimits::default(), Shutdown::new(), MINUTE).await
    });
}

/// A client of core that makes a new connection for each call.
fn caller(workload: &Workload) -> Client {
    let tls = workload.client_config("core").unwrap();
    let client = Client::builder().tls_backend_preconfigured(tls).no_proxy();
    client.pool_max_idle_per_host(0).timeout(TIMEOUT).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_replaced_while_calls_go_on() {
    let registry = short_lived().await;
    let core = kept(&registry, ("core", "a")).await;
    let gateway = kept(&registry, ("gateway", "g")).await;
    let url = format!("https://{}/", service(&core.workload).await);
    let caller = caller(&gateway.workload);
    let old_token = registry.authority().join_token("core", None, MINUTE).unwrap();
    let old_root = root_hash(&core.workload.roots()[0]);
    let knows_old =
        |workload: &Workload| workload.roots().iter().any(|root| root_hash(root) == old_root);

    registry.client_as("operator", "o").rotate_root().await.unwrap();
    let (began, mut most_roots) = (Instant::now(), 0);
    // Trusted after half a certificate's life, signing after a whole one, alone after one more, and
    // known to be so after one more half: each rounded up to a tick.
    while knows_old(&core.workload) || knows_old(&gateway.workload) {
        assert!(began.elapsed() < LIFE * 6, "the old root is still trusted");
        let answer = caller.get(&url).send().await.expect("peers accept each other");
        assert_eq!(answer.status(), StatusCode::OK);
        core.registry.list(None).await.expect("the registry accepts core");
        gateway.registry.list(None).await.expect("the registry accepts the gateway");
        most_roots = most_roots.max(core.workload.roots().len());
        sleep(CALL_EVERY).await;
    }
    assert_eq!(most_roots, 2);
    assert!(caller.get(&url).send().await.is_ok());

    // A token that names the old root finds no registry any more; a new one does.
    let joined = joining(registry.addr, ("core", "b"), &old_token).join(None);
    assert!(tokio::time::timeout(Duration::from_secs(1), joined).await.is_err());
    kept(&registry, ("core", "b")).await;
}

#[tokio::test]
async fn an_authority_without_its_key_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut settings = Settings::new(([127, 0, 0, 1], 0).into(), folder.path());
    settings.authority_certificates = Some(folder.path().join("authority.pem"));
    let refused = Registry::build(settings).await.err().unwrap().to_string();
    assert!(refused.contains("--authority-key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_another_root_than_the_tokens_is_not_joined() {
    let registry = Running::start().await;
    let impostor = Running::start().await;
    let token = registry.authority().join_token("core", None, MINUTE).unwrap();
    // The impostor would answer that it does not know the token: it is not even asked.
    let joining = joining(impostor.addr, ("core", "a"), &token);
    let joined = tokio::time::timeout(Duration::from_secs(1), joining.join(None)).await;
    assert!(joined.is_err(), "it waits for the registry of its mesh");

    // Nor do members of a mesh call a registry of another one.
    let member = registry.workload("core", "a");
    assert!(client_of(&member, impostor.addr).list(None).await.is_err());
    assert!(client_of(&member, registry.addr).list(None).await.is_ok());
}
