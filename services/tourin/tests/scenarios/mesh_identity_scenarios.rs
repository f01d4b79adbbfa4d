//! Attacks from within: callers without a certificate, and peers that want more than their certificate gives
//! them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tourin::data_dir::MESH_FILE;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::http::{HttpLimits, Listener, serve};
use tourin_chassis::http_client;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_chassis::peer::{Peer, spiffe_id};
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::{ClientError, Instance, JoinError, Joined};
use tourin_testbed::eventually;

use crate::peers::{Operator, client, instance, join};
use crate::process::command;
use crate::world::{TIMEOUT, World, access};

const LEASE: Duration = Duration::from_secs(60);

async fn mesh() -> (World, Operator) {
    let world = World::start().await.filled().await;
    let operator = Operator::of(access(world.mesh())).await;
    (world, operator)
}

/// The status of a call.
async fn status(client: &reqwest::Client, method: Method, url: String) -> u16 {
    client.request(method, url).send().await.expect("an answer").status().as_u16()
}

/// Signs identities with the key of a peer.
fn signer(peer: &Joined) -> IdentitySigner {
    let name = peer.workload.name();
    let id = spiffe_id(&name.mesh, &name.service, &name.instance);
    IdentitySigner::new(peer.workload.key(), &id)
}

fn member() -> Subject {
    Subject::Member { id: "traveller1".into(), session: "session-1".into(), roles: Vec::new() }
}

/// The requests that came to a listener of a peer, which answers each with the same JSON.
#[derive(Clone)]
struct Spy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    answer: Value,
}

impl Spy {
    async fn start(peer: &Joined, answer: Value) -> Self {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let spy = Self { address, seen: Arc::default(), answer };
        let router = Router::new().fallback(Self::see).with_state(spy.clone());
        let listener = Listener::with_tls(tcp, peer.workload.server_config(), "tourin");
        tokio::spawn(async move {
            serve(listener, router, &HttpLimits::default(), Shutdown::new(), TIMEOUT).await
        });
        spy
    }

    async fn see(State(spy): State<Self>, request: Request) -> axum::Json<Value> {
        spy.seen.lock().unwrap().push(request);
        axum::Json(spy.answer)
    }

    /// The identities that were brought to it.
    fn identities(&self) -> Vec<HeaderValue> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter_map(|request| request.headers().get(IDENTITY_HEADER).cloned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_a_certificate_gets_probes_alone() {
    let (_world, operator) = mesh().await;
    let plain = http_client::client(TIMEOUT).unwrap();
    // A server without a certificate of the mesh would do, too: this client verifies none.
    let stranger = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
        .build()
        .unwrap();
    let gateway = operator.instances("gateway").await.remove(0);
    let registry = operator.joined.registry.url().trim_start_matches("https://").to_owned();
    for address in [
        operator.address("core").await.to_string(),
        operator.address("recommendation").await.to_string(),
        gateway.metadata["admin"].clone(),
        registry.clone(),
    ] {
        for probe in ["/healthz", "/readyz", "/metrics"] {
            let url = format!("http://{address}{probe}");
            assert_eq!(status(&plain, Method::GET, url.clone()).await, 200, "{url}");
            let forged = signer(&operator.joined).sign(&member(), "core");
            let brought = plain.get(&url).header(IDENTITY_HEADER, forged).send().await.unwrap();
            assert_eq!(brought.status(), 403, "{url} with an identity");
        }
        for (method, path) in [
            (Method::GET, "/api/tour-spots"),
            (Method::GET, "/api/recommendations/trend"),
            (Method::GET, "/.well-known/jwks.json"),
            (Method::POST, "/internal/access-tokens"),
            (Method::GET, "/internal/tour-spots"),
            (Method::GET, "/internal/histories/traveller1"),
            (Method::PUT, "/internal/log-filter"),
            (Method::GET, "/v1/instances"),
            (Method::POST, "/v1/join-tokens"),
            (Method::POST, "/v1/root/rotation"),
        ] {
            let url = format!("http://{address}{path}");
            assert_eq!(status(&plain, method.clone(), url).await, 403, "{address}{path}");
            let by_tls = stranger.request(method, format!("https://{address}{path}")).send().await;
            if address == registry {
                assert_eq!(by_tls.unwrap().status(), 403, "{path}");
            } else {
                by_tls.expect_err("no handshake without a certificate");
            }
        }
    }
    // Who joins has no certificate yet, and needs a token.
    let request = json!({"csr": "", "instance": "core-1"});
    let asked = stranger.post(format!("https://{registry}/v1/certificates")).json(&request);
    assert_eq!(asked.send().await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn recommendations_certificate_opens_what_recommendation_needs_and_no_more() {
    let (_world, operator) = mesh().await;
    let peer = operator.peer("recommendation").await;
    let to_core = client(&peer, "core");
    let core = format!("https://{}", operator.address("core").await);
    let spots = format!("{core}/internal/tour-spots");
    assert_eq!(status(&to_core, Method::GET, spots.clone()).await, 200);
    for (method, path) in [
        (Method::POST, "/internal/access-tokens"),
        (Method::GET, "/internal/revocations?after=0"),
        (Method::GET, "/internal/visitor-key"),
        (Method::GET, "/internal/openapi.json"),
        (Method::GET, "/internal/events/backlog"),
        (Method::PUT, "/internal/log-filter"),
        (Method::GET, "/internal/tour-spots/1"),
        (Method::GET, "/.well-known/jwks.json"),
        (Method::GET, "/api/tour-spots"),
        (Method::GET, "/metrics"),
    ] {
        let url = format!("{core}{path}");
        assert_eq!(status(&to_core, method, url).await, 403, "{path}");
    }
    let forged = signer(&peer).sign(&member(), "core");
    for path in ["/internal/tour-spots", "/api/auth/me"] {
        let brought = to_core.get(format!("{core}{path}")).header(IDENTITY_HEADER, &forged);
        assert_eq!(brought.send().await.unwrap().status(), 403, "{path} with an identity");
    }

    let own = instance(&peer, "127.0.0.1:9".parse().unwrap());
    peer.registry.register(&own, LEASE).await.expect("it speaks for itself");
    let of_core = operator.instances("core").await.remove(0);
    for another in [
        Instance { service: "core".to_owned(), ..own.clone() },
        Instance { address: own.address, ..of_core.clone() },
        Instance { id: "recommendation-other".to_owned(), ..own.clone() },
    ] {
        let refused = peer.registry.register(&another, LEASE).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { status: 403, .. }), "{refused:?}");
    }
    let gone = peer.registry.deregister("core", &of_core.id, Duration::ZERO).await.unwrap_err();
    assert!(matches!(gone, ClientError::Refused { status: 403, .. }), "{gone:?}");
    assert_eq!(operator.instances("core").await, [of_core]);
    let rotated = peer.registry.rotate_root().await.unwrap_err();
    assert!(matches!(rotated, ClientError::Refused { status: 403, .. }), "{rotated:?}");
}

/// The address of an instance of core leads to somebody who has another service's certificate, as after
/// a change of routes or names on the network.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_cores_certificate_is_asked_for_token_keys() {
    let (world, operator) = mesh().await;
    let traveller = world.member("traveller1").await;
    let impostor = operator.peer("recommendation").await;
    let certificate = impostor.workload.chain().remove(0);
    let public_key = Peer::of_certificate(&certificate).expect("one of the mesh").public_key;
    let key = json!({
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "forged",
        "x": URL_SAFE_NO_PAD.encode(public_key),
    });
    let spy = Spy::start(&impostor, json!({"keys": [key]})).await;
    let claims = traveller.access.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let header = Header {
        typ: Some("at+jwt".to_owned()),
        kid: Some("forged".to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let secret = EncodingKey::from_ed_der(impostor.workload.key());
    let forged = encode(&header, &claims, &secret).unwrap();
    let ask = async || {
        let request = world.request(Method::GET, "/api/auth/me").bearer_auth(&forged);
        request.send().await.expect("an answer").status()
    };
    assert_eq!(ask().await, 401, "core has no such key");

    let core = operator.peer("core").await;
    core.registry.register(&instance(&core, spy.address), LEASE).await.unwrap();
    eventually("the gateway has tried to ask the impostor for keys", async || {
        let answer = ask().await;
        assert!([StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE].contains(&answer));
        answer == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    // Nor do clients' requests go there: they are sent to the real one. A new instance gets few at first.
    let metrics = format!("{}/metrics/gateway", world.operator_url());
    let client = http_client::client(TIMEOUT).unwrap();
    let failed =
        r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="connect_failed"}"#;
    eventually("one was tried there", async || {
        world.get_as(&traveller, "/api/auth/me").await.expect(200);
        world.get("/api/tour-spots?pageSize=1").await.expect(200);
        let metrics = client.get(&metrics).send().await.unwrap().text().await.unwrap();
        let count = metrics.lines().find_map(|line| line.strip_prefix(failed));
        count.expect("it is counted").trim().parse::<f64>().unwrap() >= 1.0
    })
    .await;
    assert_eq!(spy.seen.lock().unwrap().len(), 0, "it was asked for nothing");
}

/// An instance of recommendation gets identities of members from the gateway. They are of use to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_captured_identity_is_refused_from_another_peer() {
    let (world, operator) = mesh().await;
    let traveller = world.member("traveller1").await;
    let path = "/api/recommendations/trend";
    let honest = operator.address("recommendation").await;
    let thief = operator.peer("recommendation").await;
    let spy = Spy::start(&thief, json!([])).await;
    thief.registry.register(&instance(&thief, spy.address), LEASE).await.unwrap();
    let captured = eventually("the gateway has sent a member's request there", async || {
        world.get_as(&traveller, path).await.expect(200);
        spy.identities().pop().ok_or("none")
    })
    .await;

    let url = format!("https://{honest}{path}");
    let bring = async |peer: &Joined, identity: &HeaderValue| {
        let request = client(peer, "recommendation").get(&url).header(IDENTITY_HEADER, identity);
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(bring(&thief, &captured).await, 403, "from its own kind");
    let gateway = operator.peer("gateway").await;
    for _unknown_and_remembered in 0..2 {
        assert_eq!(bring(&gateway, &captured).await, 403, "from another gateway");
    }
    let own = signer(&gateway).sign(&member(), "recommendation");
    assert_eq!(bring(&gateway, &own).await, 200, "that gateway's own");
    assert_eq!(bring(&gateway, &captured).await, 403, "a good one before changes nothing");
    let core = format!("https://{}/api/auth/me", operator.address("core").await);
    let at_core = client(&gateway, "core").get(core).header(IDENTITY_HEADER, own);
    assert_eq!(at_core.send().await.unwrap().status(), 403, "it is for recommendation");
}

async fn refusal(access: &MeshAccess, service: &str) -> JoinError {
    join(access, service).await.map(drop).expect_err("it may not join")
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_find_the_mesh_by_its_file_also_after_its_root_was_replaced() {
    let world = World::with(|settings| {
        settings.parts.registry.certificate_lifetime_s = 6;
    })
    .await;
    let tourin = async |arguments: &[&str]| {
        let mut tourin = command("tourin");
        tourin.args(arguments).arg("--config");
        tourin.arg(world.mesh().data_dir().path().join(MESH_FILE));
        let ran = tokio::task::spawn_blocking(move || tourin.output().expect("it runs"));
        ran.await.unwrap()
    };
    let before = access(world.mesh());
    let rotated = tourin(&["rotate-root"]).await;
    assert!(rotated.status.success(), "{rotated:?}");
    let authority = world.mesh().data_dir().path().join("registry");
    eventually("the old root is not trusted any more", async || {
        !["next-root.pem", "old-root.pem"].iter().any(|file| authority.join(file).exists())
    })
    .await;
    // At once, and not after the next start.
    eventually("the file names the new root", async || {
        access(world.mesh()).join_token() != before.join_token()
    })
    .await;
    let made = tourin(&["join-token", "core", "--ttl", "10m"]).await;
    assert!(made.status.success(), "{made:?}");
    // Nobody joins by the old one: neither who looks at the root that it names, nor who does not.
    let joined = tokio::time::timeout(Duration::from_secs(1), join(&before, "operator")).await;
    assert!(joined.is_err() || joined.is_ok_and(|joined| joined.is_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_holds_for_one_service_its_uses_and_its_time() {
    let (world, operator) = mesh().await;
    let file = world.mesh().data_dir().path().join(MESH_FILE);
    let make = async |arguments: &[&str]| {
        let mut tourin = command("tourin");
        tourin.arg("join-token").args(arguments).arg("--config").arg(&file);
        let made = tokio::task::spawn_blocking(move || tourin.output().expect("it runs"));
        let made = made.await.unwrap();
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    };

    let once = operator.access_by(&make(&["core", "--uses", "1", "--ttl", "10m"]).await);
    let (one, other) = tokio::join!(join(&once, "core"), join(&once, "core"));
    let refused = [one, other].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    let [JoinError::Refused(reason)] = &refused[..] else { panic!("one of two: {refused:?}") };
    assert!(reason.contains("used up"), "{reason}");

    let token = make(&["recommendation", "--ttl", "15s"]).await;
    let refused = refusal(&operator.access_by(&token), "core").await;
    assert!(matches!(refused, JoinError::OtherService { .. }), "{refused:?}");
    let joined = join(&operator.access_by(&token), "recommendation").await;
    let name = joined.expect("in time").workload.name().clone();
    assert_eq!((&*name.mesh, &*name.service), ("tourin", "recommendation"));

    // The same token, altered so that it names core.
    let parts: Vec<_> = token.split('.').collect();
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    claims["sub"] = "core".into();
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let altered = operator.access_by(&[parts[0], &claims, parts[2]].join("."));
    let refused = refusal(&altered, "core").await;
    assert!(matches!(refused, JoinError::Refused(_)), "it is not signed: {refused:?}");

    let late = eventually("its time is over", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let joined = join(&operator.access_by(&token), "recommendation").await;
        joined.err().ok_or("it may join")
    })
    .await;
    assert!(matches!(late, JoinError::Refused(_)), "{late:?}");
}
