use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ED25519,
};
use reqwest::Client;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConnection, Connection, ServerConnection};
use serde_json::json;

use super::join::{JoinToken, PinnedRoot, pause_before_renewal};
use super::*;
use crate::client::RegistryClient;

/// A mesh's authority, which signs by its root.
struct Authority {
    root: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, key: &WorkloadKey, dns_name: &str) -> IssuedCertificate {
        let mut params = CertificateParams::new([dns_name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(rand::random::<u64>().into());
        let certificate = params.signed_by(&key.pair().unwrap(), &self.issuer).unwrap();
        let roots = self.root.pem();
        IssuedCertificate { chain: certificate.pem(), roots, lifetime_s: 60 }
    }

    fn workload(&self, service: &str) -> Workload {
        let key = WorkloadKey::random();
        let issued = self.issue(&key, &format!("{service}.tourin"));
        Workload::new(name(service), key, &issued).unwrap()
    }

    fn hash(&self) -> String {
        root_hash(self.root.der())
    }
}

fn name(service: &str) -> WorkloadName {
    WorkloadName {
        mesh: "tourin".to_owned(),
        service: service.to_owned(),
        instance: "a".to_owned(),
    }
}

/// The certificate that the server gets, if any.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<Option<CertificateDer<'static>>, rustls::Error> {
    let address = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = Connection::Client(ClientConnection::new(Arc::clone(client), address)?);
    let mut server = Connection::Server(ServerConnection::new(Arc::clone(server))?);
    while client.is_handshaking() || server.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok(server.peer_certificates().map(|chain| chain[0].clone().into_owned()))
}

fn pass(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut sent = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut sent).unwrap();
    }
    let mut unread = &sent[..];
    while !unread.is_empty() {
        to.read_tls(&mut unread).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn client_config(of: &Workload, service: &str) -> Arc<ClientConfig> {
    Arc::new(of.client_config(service).unwrap())
}

#[test]
fn a_peer_without_a_certificate_may_join_and_nothing_else() {
    let authority = Authority::new();
    let registry = authority.workload(REGISTRY);
    let anonymous: JoinToken = token(REGISTRY, &authority.hash()).parse().unwrap();
    let anonymous = anonymous.client_config().unwrap();
    // A registry sends its root, too.
    let mut issued = authority.issue(&registry.key, "registry.tourin");
    issued.chain.push_str(&issued.roots);
    registry.renewed(&issued).unwrap();
    let anonymous = Arc::new(anonymous);
    assert_eq!(handshake(&anonymous, &registry.server_config_for_joining()), Ok(None));
    assert!(handshake(&anonymous, &registry.server_config()).is_err());

    let stranger = client_config(&Authority::new().workload("core"), REGISTRY);
    assert!(handshake(&stranger, &registry.server_config_for_joining()).is_err());
}

#[test]
fn a_renewed_certificate_is_shown_by_what_exists_already() {
    let authority = Authority::new();
    let (core, gateway) = (authority.workload("core"), authority.workload("gateway"));
    let (client, server) = (client_config(&gateway, "core"), core.server_config());
    let shown = || handshake(&client, &server).unwrap().unwrap();
    let first = shown();
    assert_eq!(first, gateway.chain()[0]);
    gateway.renewed(&authority.issue(&gateway.key, "gateway.tourin")).unwrap();
    assert_ne!(shown(), first);
    assert_eq!(shown(), gateway.chain()[0]);

    // The certificate of another key is not taken, and the last one stays.
    let last = gateway.chain();
    let other = authority.issue(&WorkloadKey::random(), "gateway.tourin");
    assert!(gateway.renewed(&other).is_err());
    assert_eq!(gateway.chain(), last);
    assert_eq!(shown(), last[0]);
}

#[test]
fn what_is_no_certificate_is_refused() {
    let (authority, key) = (Authority::new(), WorkloadKey::random());
    let good = authority.issue(&key, "core.tourin");
    let with = |chain: &str, roots: &str| {
        let issued =
            IssuedCertificate { chain: chain.to_owned(), roots: roots.to_owned(), lifetime_s: 60 };
        Workload::new(name("core"), key.clone(), &issued)
    };
    assert!(with(&good.chain, &good.roots).is_ok());
    for (chain, roots) in [("", &*good.roots), ("rubbish", &good.roots), (&good.chain, "")] {
        let refused = with(chain, roots).unwrap_err().to_string();
        assert!(refused.contains("not usable"), "{refused}");
    }
    let workload = with(&good.chain, &good.roots).unwrap();
    assert!(workload.client_config("no service").is_err());
    // The key is in no log.
    let shown = format!("{workload:?}");
    assert!(shown.contains("core") && shown.len() < 120, "{shown}");
}

#[test]
fn a_pinned_root_is_the_only_one_that_is_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let verify = |pinned: &Authority, chain: &str| {
        let name = ServerName::try_from("registry.tourin").unwrap();
        let verifier = PinnedRoot { root: pinned.hash(), registry: name.clone() };
        let chain = certificates(chain).unwrap();
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let key = WorkloadKey::random();
    let registry = authority.issue(&key, "registry.tourin");
    let core = authority.issue(&key, "core.tourin");
    let (root, other_root) = (registry.roots.clone(), other.root.pem());
    // While the root is replaced, two are sent.
    let both = format!("{}{other_root}{root}", registry.chain);
    assert_eq!(verify(&authority, &both), Ok(()));
    assert_eq!(verify(&authority, &format!("{}{root}", registry.chain)), Ok(()));

    let refused = verify(&other, &format!("{}{root}", registry.chain)).unwrap_err();
    assert!(refused.contains("not the one of the join token"), "{refused}");
    assert!(verify(&authority, &registry.chain).is_err(), "the root is not sent");
    assert!(verify(&other, &both).is_err(), "it did not sign the certificate");
    assert!(verify(&authority, &format!("{}{root}", core.chain)).is_err(), "another service");
}

fn token(service: &str, root: &str) -> String {
    let claims = json!({"iss": "tourin", "sub": service, "jti": "j", "exp": 1, "root": root});
    format!("e30.{}.c2lnbmF0dXJl", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[test]
fn a_join_token_is_read_and_never_shown() {
    let text = token("core", "hash");
    let read: JoinToken = format!(" {text}\n").parse().unwrap();
    let shown = format!("{read:?}");
    assert!(shown.contains("core") && !shown.contains("c2lnbmF0dXJl"), "{shown}");
    for rubbish in ["", "a", "a.b", "a.b.c", &format!("{text}.d"), "e30.e30.e30"] {
        assert!(rubbish.parse::<JoinToken>().is_err(), "{rubbish:?}");
    }
}

fn setup(tls: ClientConfig) -> Result<Client, String> {
    let client = Client::builder().tls_backend_preconfigured(tls).no_proxy().build();
    client.map_err(|error| error.to_string())
}

async fn joined(url: &str, token: Result<String, String>) -> Result<Joined, JoinError> {
    let joining =
        Joining::new((url.to_owned(), Arc::new(move || token.clone()), setup), ("core", "a"));
    // Nothing listens there: what goes on trying is over here.
    let limit = Duration::from_millis(300);
    let tried = tokio::time::timeout(limit, joining.join(None)).await;
    tried.unwrap_or_else(|_| Err(JoinError::Refused("still trying".to_owned())))
}

#[tokio::test]
async fn who_cannot_join_says_why_and_does_not_wait() {
    let good = token("core", "hash");
    for (url, token, expected) in [
        ("https://127.0.0.1:1", Ok(token("gateway", "hash")), "tourin join-token core"),
        ("https://127.0.0.1:1", Ok("rubbish".to_owned()), "expected a join token"),
        ("https://127.0.0.1:1", Err("no such file".to_owned()), "no such file"),
        ("http://127.0.0.1:1", Ok(good.clone()), "https://host:port"),
        ("https://127.0.0.1:1", Ok(good), "still trying"),
    ] {
        let refused = joined(url, token).await.err().unwrap().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn attempts_to_renew_are_closer_near_the_end_and_not_after_it() {
    let s = Duration::from_secs;
    assert_eq!(pause_before_renewal(s(5), s(1_800)), s(5));
    assert_eq!(pause_before_renewal(s(5), s(8)), s(2));
    assert_eq!(pause_before_renewal(s(5), Duration::from_millis(40)), Duration::from_millis(100));
    // The registry may refuse the join token for as long as nobody looks.
    assert_eq!(pause_before_renewal(s(5), s(0)), s(5));
}

#[test]
fn the_registry_is_called_over_tls_alone() {
    let core = Authority::new().workload("core");
    let http = setup(core.client_config(REGISTRY).unwrap()).unwrap();
    for url in ["http://host:1", "host:1", "", "https://host/?a=b", "https://host/#a"] {
        assert!(RegistryClient::new(http.clone(), url).is_err(), "{url}");
    }
    let client = RegistryClient::new(http, "https://host:8500/").unwrap();
    assert_eq!(client.url(), "https://host:8500");
}
