use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use chrono::{TimeDelta, Utc};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use tempfile::TempDir;
use tourin_chassis::clock::{Clock as _, ManualClock};
use tourin_chassis::peer::Peer;

use super::*;

/// Short of [`CLOCK_LEEWAY`] even when it has passed twice: TLS reads the system's clock, and finds what a
/// clock in the future signed to be valid already.
const LIFETIME: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

struct Mesh {
    authority: Authority,
    clock: Arc<ManualClock>,
    folder: TempDir,
}

impl Mesh {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut AuthoritySettings)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut settings = settings(folder.path());
        adjust(&mut settings);
        let clock = Arc::new(ManualClock::new(Utc::now()));
        let authority = Authority::open(settings, clock.clone()).unwrap();
        Self { authority, clock, folder }
    }

    fn workload(&self, service: &str) -> Workload {
        self.authority.workload(service, "a").unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("authority").join(name)
    }

    /// A certificate's life later. A file's age counts by the system's clock, and so one that was just
    /// written is given the time of this clock.
    fn lifetime_passes(&self, just_written: &str) {
        let now = SystemTime::from(self.clock.now());
        let file = File::options().write(true).open(self.file(just_written)).unwrap();
        file.set_modified(now).unwrap();
        self.clock.advance(TimeDelta::seconds(21));
    }
}

fn settings(folder: &Path) -> AuthoritySettings {
    AuthoritySettings {
        folder: folder.join("authority"),
        mesh: "tourin".to_owned(),
        lifetime: LIFETIME,
        given: None,
        tokens: None,
    }
}

/// The service that a join token names; counts the use by a new request.
fn redeem(authority: &Authority, token: &str) -> Result<String, JoinRefused> {
    redeem_by(authority, token, &uuid::Uuid::new_v4().to_string())
}

fn redeem_by(authority: &Authority, token: &str, request: &str) -> Result<String, JoinRefused> {
    let claims = authority.check_token(token)?;
    let Some(limit) = claims.uses else { return Ok(claims.sub) };
    match authority.uses().count(&claims, limit, request) {
        Ok(true) => Ok(claims.sub),
        Ok(false) => Err(JoinRefused::UsedUp),
        Err(error) => Err(JoinRefused::Failed(format!("{error:#}"))),
    }
}

fn reopened(mesh: &Mesh) -> anyhow::Result<Authority> {
    Authority::open(settings(mesh.folder.path()), mesh.clock.clone())
}

/// What each end says of the other one when `client` calls `server` as an instance of `service`.
fn handshake(client: &Workload, server: &Workload, service: &str) -> Result<Peer, rustls::Error> {
    let config = client.client_config(service).unwrap();
    // A name that no certificate has: instances are called by their address.
    let address = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = Connection::Client(ClientConnection::new(config.into(), address)?);
    let mut server = Connection::Server(ServerConnection::new(server.server_config())?);
    while client.is_handshaking() || server.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    let certificate = &server.peer_certificates().unwrap()[0];
    Ok(Peer::of_certificate(certificate).unwrap())
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

fn knows(one: &Workload, other: &Workload) -> bool {
    handshake(one, other, &other.name().service).is_ok()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn peers_know_each_other_by_their_names() {
    let mesh = Mesh::new();
    let (core, gateway) = (mesh.workload("core"), mesh.workload("gateway"));
    let peer = handshake(&gateway, &core, "core").unwrap();
    assert_eq!(peer.id, "spiffe://tourin/gateway/a");
    assert_eq!((&*peer.service, &*peer.instance), ("gateway", "a"));
    let life = peer.expires.duration_since(SystemTime::now()).unwrap();
    assert!(life <= LIFETIME && life + Duration::from_secs(5) > LIFETIME, "{life:?}");
    assert!(handshake(&gateway, &core, "recommendation").is_err(), "another service answers");

    let elsewhere = Mesh::new();
    assert!(!knows(&elsewhere.workload("gateway"), &core));
    assert!(!knows(&gateway, &elsewhere.workload("core")));
}

#[test]
fn only_the_key_of_a_request_counts_and_it_is_ed25519() {
    let mesh = Mesh::new();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let asks = CertificateParams::new(["registry.tourin".to_owned()]).unwrap();
    let request = asks.serialize_request(&key).unwrap().pem().unwrap();
    let issued = mesh.authority.issue(&request, ("core", "a")).unwrap();
    let certificates = read_certificates(issued.chain.as_bytes()).unwrap();
    let peer = Peer::of_certificate(&certificates[0]).unwrap();
    assert_eq!(peer.id, "spiffe://tourin/core/a");
    assert!(!certificates[0].windows(15).any(|part| part == b"registry.tourin"));

    let other_kind = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&other_kind).unwrap();
    for (request, expected) in [
        (request.pem().unwrap(), "Ed25519"),
        ("rubbish".to_owned(), "PKCS #10"),
        (String::new(), "PKCS #10"),
    ] {
        let refused = mesh.authority.issue(&request, ("core", "a")).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn private_files_are_their_owners_and_readable_ones_are_refused() {
    let mesh = Mesh::new();
    mesh.authority.rotate_root().unwrap();
    let token = mesh.authority.join_token("core", Some(1), MINUTE).unwrap();
    redeem(&mesh.authority, &token).unwrap();
    assert_eq!(mode(&mesh.file("")), 0o700);
    let files: Vec<_> =
        fs::read_dir(mesh.file("")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 6, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    for (file, others) in [
        ("root-key.pem", 0o644),
        ("root-key.pem", 0o640),
        ("join-token-key", 0o604),
        ("join-token-uses.json", 0o644),
    ] {
        let path = mesh.file(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(others)).unwrap();
        let refused = format!("{:#}", reopened(&mesh).err().unwrap());
        assert!(refused.contains(&format!("chmod 600 {}", path.display())), "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    reopened(&mesh).unwrap();
}

#[test]
fn a_mesh_has_a_name_that_dns_and_spiffe_take() {
    for name in ["", "Tourin", "a.b", "a/b", "a b"] {
        let folder = TempDir::new().unwrap();
        let settings = AuthoritySettings { mesh: name.to_owned(), ..settings(folder.path()) };
        let clock = Arc::new(ManualClock::new(Utc::now()));
        let refused = Authority::open(settings, clock).err().unwrap().to_string();
        assert!(refused.contains("--mesh"), "{refused}");
    }
}

#[test]
fn a_restart_keeps_the_root_and_its_peers() {
    let mesh = Mesh::new();
    let before = mesh.workload("core");
    let token = mesh.authority.join_token("core", None, MINUTE).unwrap();
    let again = reopened(&mesh).unwrap();
    assert_eq!(again.root().unwrap(), mesh.authority.root().unwrap());
    // The intermediate is another one, also by its name: serial numbers are unique below one name.
    let name = |authority: &Authority| {
        let der = authority.state().intermediate.chain[0].clone();
        let text = String::from_utf8_lossy(&der).into_owned();
        let (_, name) = text.split_once("tourin intermediate ").unwrap();
        name[..8].to_owned()
    };
    assert_ne!(name(&again), name(&mesh.authority));
    assert!(knows(&again.workload("gateway", "a").unwrap(), &before));
    assert!(knows(&before, &again.registry().unwrap()));
    assert_eq!(redeem(&again, &token).unwrap(), "core");
}

#[test]
fn join_tokens_have_a_time_a_number_of_uses_and_a_mesh() {
    let mesh = Mesh::new();
    let authority = &mesh.authority;
    let token = authority.join_token("core", Some(2), MINUTE).unwrap();
    let lasting = authority.join_token("core", None, MINUTE * 2).unwrap();
    for _ in 0..2 {
        assert_eq!(redeem(authority, &token), Ok("core".to_owned()));
    }
    assert_eq!(redeem(authority, &token), Err(JoinRefused::UsedUp));
    assert_eq!(redeem(&reopened(&mesh).unwrap(), &token), Err(JoinRefused::UsedUp));
    assert_eq!(redeem(&Mesh::new().authority, &lasting), Err(JoinRefused::Invalid));
    assert_eq!(redeem(authority, &format!("{lasting}AAAA")), Err(JoinRefused::Invalid));
    assert_eq!(redeem(authority, ""), Err(JoinRefused::Invalid));
    assert!(authority.join_token("No Service", None, MINUTE).is_err());

    mesh.clock.advance(TimeDelta::seconds(59));
    assert_eq!(redeem(authority, &lasting), Ok("core".to_owned()));
    assert_eq!(redeem(authority, &token), Err(JoinRefused::UsedUp));
    mesh.clock.advance(TimeDelta::seconds(1));
    assert_eq!(redeem(authority, &token), Err(JoinRefused::Invalid));
    // Uses of tokens that have expired are forgotten.
    let other = authority.join_token("core", Some(1), MINUTE).unwrap();
    redeem(authority, &other).unwrap();
    let uses = fs::read_to_string(mesh.file("join-token-uses.json")).unwrap();
    assert_eq!(uses.matches("count").count(), 1, "{uses}");
}

#[test]
fn a_use_that_cannot_be_written_down_is_none() {
    let mesh = Mesh::new();
    let token = mesh.authority.join_token("core", Some(2), MINUTE).unwrap();
    // A folder in the way, since a file's mode stops no test that runs as root.
    let uses = mesh.file("join-token-uses.json");
    fs::create_dir_all(uses.join("in-the-way")).unwrap();
    for _again in 0..2 {
        let refused = redeem_by(&mesh.authority, &token, "a").unwrap_err();
        assert!(matches!(refused, JoinRefused::Failed(_)), "{refused}");
    }
    fs::remove_dir_all(uses).unwrap();
    for request in ["a", "b"] {
        assert_eq!(redeem_by(&mesh.authority, &token, request), Ok("core".to_owned()));
    }
    assert_eq!(redeem(&mesh.authority, &token), Err(JoinRefused::UsedUp));
}

#[test]
fn who_lost_the_answer_asks_again_and_nobody_else_does_for_a_while() {
    let mesh = Mesh::new();
    let token = mesh.authority.join_token("core", Some(1), MINUTE * 60).unwrap();
    let joined = Ok("core".to_owned());
    assert_eq!(redeem_by(&mesh.authority, &token, "a"), joined);
    assert_eq!(redeem_by(&mesh.authority, &token, "b"), Err(JoinRefused::UsedUp));
    mesh.clock.advance(TimeDelta::seconds(599));
    // A restart in between makes no difference.
    let again = reopened(&mesh).unwrap();
    assert_eq!(redeem_by(&again, &token, "a"), joined);
    assert_eq!(redeem_by(&again, &token, "b"), Err(JoinRefused::UsedUp));
    mesh.clock.advance(TimeDelta::seconds(1));
    assert_eq!(redeem_by(&again, &token, "a"), Err(JoinRefused::UsedUp));
}

#[test]
fn a_request_is_told_by_its_key_and_its_instance() {
    let (key, other) = (WorkloadKey::random(), WorkloadKey::random());
    let digest = |key: &WorkloadKey, instance| {
        Authority::digest_of_request(&key.signing_request().unwrap(), instance).unwrap()
    };
    assert_eq!(digest(&key, "a"), digest(&key, "a"));
    assert_ne!(digest(&key, "a"), digest(&other, "a"));
    assert_ne!(digest(&key, "a"), digest(&key, "b"));
    assert!(Authority::digest_of_request("rubbish", "a").is_err());
}

#[test]
fn the_root_is_replaced_with_no_peer_lost() {
    let mesh = Mesh::new();
    let authority = &mesh.authority;
    let registry = authority.registry().unwrap();
    let old = mesh.workload("core");
    let old_root = authority.root().unwrap();
    let old_token = authority.join_token("core", None, MINUTE * 60).unwrap();
    authority.rotate_root().unwrap();
    let refused = authority.rotate_root().unwrap_err().to_string();
    assert!(refused.contains("being replaced already"), "{refused}");
    assert_eq!(registry.roots().len(), 2, "the registry knows both at once");

    // Both are trusted, and the old one signs.
    let both = mesh.workload("core");
    authority.maintain().unwrap();
    assert_eq!(authority.root().unwrap(), old_root);
    assert!(knows(&old, &both) && knows(&both, &old));

    // The new one signs, and the old one is trusted: who knew only the old one has renewed by now.
    mesh.lifetime_passes("next-root.pem");
    authority.maintain().unwrap();
    assert_ne!(authority.root().unwrap(), old_root);
    let new = mesh.workload("core");
    assert_eq!(new.roots().len(), 2);
    for peer in [&both, &registry] {
        assert!(knows(peer, &new) && knows(&new, peer));
    }
    assert!(authority.rotate_root().is_err(), "the last change is not over");

    // The old one is dropped, and with it the tokens that name it.
    assert_eq!(redeem(authority, &old_token), Ok("core".to_owned()));
    mesh.lifetime_passes("old-root.pem");
    authority.maintain().unwrap();
    assert_eq!(redeem(authority, &old_token), Err(JoinRefused::Invalid));
    let new_token = authority.join_token("core", None, MINUTE).unwrap();
    assert_eq!(redeem(authority, &new_token), Ok("core".to_owned()));
    let newest = mesh.workload("core");
    assert_eq!(newest.roots().len(), 1);
    assert!(knows(&newest, &new) && knows(&new, &newest));
    assert!(knows(&newest, &registry) && knows(&registry, &newest));
    assert!(!knows(&newest, &old) && !knows(&old, &newest), "below the old root");
    assert!(!mesh.file("old-root.pem").exists() && !mesh.file("next-root.pem").exists());

    let again = reopened(&mesh).unwrap();
    assert!(knows(&again.workload("core", "b").unwrap(), &newest));
    authority.rotate_root().unwrap();
}

#[test]
fn a_change_of_the_root_that_was_interrupted_goes_on() {
    let mesh = Mesh::new();
    mesh.authority.rotate_root().unwrap();
    let both = mesh.workload("core");
    mesh.lifetime_passes("next-root.pem");
    // A crash between the two renames: the new key is beside the old certificate.
    fs::rename(mesh.file("next-root-key.pem"), mesh.file("root-key.pem")).unwrap();
    let again = reopened(&mesh).unwrap();
    again.maintain().unwrap();
    let new = again.workload("core", "b").unwrap();
    assert_eq!(new.roots().len(), 2);
    assert!(knows(&both, &new) && knows(&new, &both));
}

#[test]
fn the_intermediate_and_the_registrys_certificate_are_replaced_in_time() {
    let mesh = Mesh::new();
    let intermediate = || mesh.authority.state().intermediate.chain.clone();
    let registry = mesh.authority.registry().unwrap();
    let (first, own) = (intermediate(), registry.chain());
    mesh.clock.advance(TimeDelta::days(7) - TimeDelta::seconds(1));
    mesh.authority.maintain().unwrap();
    assert_eq!(intermediate(), first);
    mesh.clock.advance(TimeDelta::seconds(1));
    mesh.authority.maintain().unwrap();
    assert_ne!(intermediate(), first);
    assert_ne!(registry.chain(), own);
}

#[test]
fn a_token_of_each_service_is_kept_in_a_file() {
    let tokens = TempDir::new().unwrap();
    let folder = tokens.path().join("tokens");
    let mesh = Mesh::with(|settings| settings.tokens = Some(folder.clone()));
    let kept = |service: &str| fs::read_to_string(folder.join(service).join("join-token")).unwrap();
    let authority = &mesh.authority;
    authority.maintain().unwrap();
    for service in ["core", "gateway", "operator", "recommendation"] {
        assert_eq!(redeem(authority, &kept(service)), Ok(service.to_owned()));
        assert_eq!(mode(&folder.join(service).join("join-token")), 0o600);
    }
    let first = kept("core");
    mesh.clock.advance(TimeDelta::hours(11));
    authority.maintain().unwrap();
    assert_eq!(kept("core"), first);
    mesh.clock.advance(TimeDelta::hours(1));
    authority.maintain().unwrap();
    let second = kept("core");
    assert_ne!(second, first);
    assert_eq!(redeem(authority, &first), Ok("core".to_owned()), "who has just read it may join");

    // Who joins knows the registry by the root that signs.
    authority.rotate_root().unwrap();
    assert_eq!(kept("core"), second);
    mesh.lifetime_passes("next-root.pem");
    authority.maintain().unwrap();
    assert_ne!(kept("core"), second);
}

/// An authority of an operator: a root, and an intermediate below it with these constraints, whose key
/// signs.
fn given(folder: &Path, constraints: IsCa) -> (PathBuf, PathBuf) {
    let authority = |name: &str, constraints| {
        let mut params = lived(OffsetDateTime::now_utc(), MINUTE * 60);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = constraints;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params, KeyPair::generate().unwrap())
    };
    let (root, root_key) = authority("their root", IsCa::Ca(BasicConstraints::Unconstrained));
    let (between, key) = authority("for tourin", constraints);
    let root_certificate = root.self_signed(&root_key).unwrap();
    let certificate = between.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let (certificates, key_file) = (folder.join("given.pem"), folder.join("given-key.pem"));
    fs::write(&certificates, pem(&[certificate.der().clone(), root_certificate.der().clone()]))
        .unwrap();
    write_private(&key_file, &key.serialize_pem()).unwrap();
    (certificates, key_file)
}

fn opened_with(folder: &Path, given: (PathBuf, PathBuf)) -> anyhow::Result<Authority> {
    let settings = AuthoritySettings { given: Some(given), ..settings(folder) };
    Authority::open(settings, Arc::new(ManualClock::new(Utc::now())))
}

#[test]
fn an_authority_that_the_operator_gives_signs() {
    let folder = TempDir::new().unwrap();
    let files = given(folder.path(), IsCa::Ca(BasicConstraints::Constrained(1)));
    let authority = opened_with(folder.path(), files.clone()).unwrap();
    let core = authority.workload("core", "a").unwrap();
    let gateway = authority.workload("gateway", "a").unwrap();
    assert!(knows(&core, &gateway) && knows(&gateway, &core));
    assert!(knows(&core, &authority.registry().unwrap()));
    assert_eq!(core.chain().len(), 3, "itself, the registry's intermediate, and the given one");
    let read = read_certificates(&fs::read(&files.0).unwrap()).unwrap();
    assert_eq!(core.roots(), [read[1].clone()]);
    assert!(!folder.path().join("authority/root.pem").exists());
    let refused = authority.rotate_root().unwrap_err().to_string();
    assert!(refused.contains("the operator gave"), "{refused}");

    let again = opened_with(folder.path(), files).unwrap();
    assert!(knows(&again.workload("gateway", "b").unwrap(), &core));
}

#[test]
fn an_authority_that_cannot_sign_is_refused_at_the_start() {
    let folder = TempDir::new().unwrap();
    let refused = |files: (PathBuf, PathBuf), expected: &[&str]| {
        let refused = format!("{:#}", opened_with(folder.path(), files).err().unwrap());
        for expected in expected {
            assert!(refused.contains(expected), "{expected}: {refused}");
        }
    };
    for constraints in [IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Constrained(0))] {
        let files = given(folder.path(), constraints);
        refused(files, &["given.pem", "cannot sign for this one"]);
    }
    let (certificates, key) = given(folder.path(), IsCa::Ca(BasicConstraints::Unconstrained));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused((certificates.clone(), key.clone()), &["chmod 600", "given-key.pem"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    refused((key.clone(), key.clone()), &["given-key.pem", "no certificate"]);
    refused((folder.path().join("absent"), key.clone()), &["absent"]);
    write_private(&key, &KeyPair::generate().unwrap().serialize_pem()).unwrap();
    refused((certificates, key), &["given.pem", "cannot sign for this one"]);
}
