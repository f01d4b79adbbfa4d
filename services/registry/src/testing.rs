//! For tests of services: an authority of this process, and callers with its certificates.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tempfile::TempDir;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::identity::IdentitySigner;
use tourin_chassis::peer::{GATEWAY, spiffe_id};
use tourin_registry_api::wire::IssuedCertificate;
use tourin_registry_api::{Workload, WorkloadKey, WorkloadName};

use crate::authority::{Authority, AuthoritySettings};

static AUTHORITY: LazyLock<(Authority, TempDir)> = LazyLock::new(|| {
    let folder = TempDir::new().expect("the system's temporary folder can be written to");
    let settings = AuthoritySettings {
        folder: folder.path().to_owned(),
        mesh: "tourin".to_owned(),
        lifetime: Duration::from_secs(3_600),
        given: None,
        tokens: None,
    };
    let authority = Authority::open(settings, Arc::new(SystemClock));
    (authority.expect("the folder is new"), folder)
});

static THE_GATEWAY: LazyLock<Workload> = LazyLock::new(|| workload(GATEWAY));
static SIGNER: LazyLock<IdentitySigner> = LazyLock::new(|| {
    let name = THE_GATEWAY.name();
    let id = spiffe_id(&name.mesh, &name.service, &name.instance);
    IdentitySigner::new(THE_GATEWAY.key(), &id)
});

/// The identity of a new instance of `service`.
pub fn workload(service: &str) -> Workload {
    AUTHORITY.0.workload(service, &new_instance(service)).expect("the authority works")
}

/// The same, which takes its certificate to be expired after so many seconds.
pub fn workload_for(service: &str, lifetime_s: u32) -> Workload {
    let (instance, key) = (new_instance(service), WorkloadKey::random());
    let request = key.signing_request().expect("the key signs");
    let issued = AUTHORITY.0.issue(&request, (service, &instance));
    let issued = IssuedCertificate { lifetime_s, ..issued.expect("the authority works") };
    let name = WorkloadName { mesh: "tourin".to_owned(), service: service.to_owned(), instance };
    Workload::new(name, key, &issued).expect("the certificate is of its key")
}

fn new_instance(service: &str) -> String {
    format!("{service}-{}", uuid::Uuid::new_v4().simple())
}

/// An HTTP client with `workload`'s certificate for servers that are instances of `service`. Plain HTTP is
/// possible with it, too.
pub fn client(workload: &Workload, service: &str) -> reqwest::Client {
    let tls = workload.client_config(service).expect("a name of a service");
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
    client.build().expect("the settings are complete")
}

/// A client that calls instances of `service` as the gateway whose identities [`signer`] signs.
pub fn gateway_client(service: &str) -> reqwest::Client {
    client(&THE_GATEWAY, service)
}

/// A client that calls instances of `service` as an operator.
pub fn operator_client(service: &str) -> reqwest::Client {
    client(&workload(tourin_chassis::peer::OPERATOR), service)
}

/// Signs identities of callers as that gateway.
pub fn signer() -> &'static IdentitySigner {
    &SIGNER
}

/// The URL of a path of a service's listener: probes are asked for in plain HTTP, as on a machine.
pub fn url(address: std::net::SocketAddr, path: &str) -> String {
    let is_probe = ["/healthz", "/readyz", "/metrics"].contains(&path);
    format!("{}://{address}{path}", if is_probe { "http" } else { "https" })
}
