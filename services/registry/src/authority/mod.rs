//! The mesh's authority: it issues short-lived certificates to instances.
//!
//! A root signs an intermediate, which signs the instances' certificates. The intermediate's key is in
//! memory alone and is new at each start and each week. The root's is in a file that only its owner can
//! read, or the operator gives a certificate of an authority that there is already.

mod folder;
mod join_tokens;
#[cfg(test)]
mod tests;
mod uses;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    PublicKeyData as _, SanType,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::peer::spiffe_id;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{IssuedCertificate, JoinClaims};
use tourin_registry_api::{REGISTRY, Workload, WorkloadKey, WorkloadName, root_hash};

pub use self::folder::hold_folder;
use self::folder::{Folder, Root};
pub(crate) use self::folder::{read_private, write_private};
pub use self::join_tokens::{JoinRefused, JoinTokens};
pub use self::uses::FileUses;

/// Life of the intermediate. It is replaced at half.
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How far the clocks of the mesh's machines may differ: certificates begin that long before.
const CLOCK_LEEWAY: Duration = Duration::from_secs(60);
/// How often the authority looks whether something is due.
const TICK: Duration = Duration::from_secs(1);

/// Settings of the authority.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// The folder of its files.
    pub folder: PathBuf,
    /// The mesh's name.
    pub mesh: String,
    /// Life of an instance's certificate.
    pub lifetime: Duration,
    /// An authority's certificates, the signing one first, and its key (PEM files). `None`: a root in the
    /// folder.
    pub given: Option<(PathBuf, PathBuf)>,
    /// The folder in which a join token for each service is kept.
    pub tokens: Option<PathBuf>,
}

/// The authority of a mesh.
pub struct Authority {
    settings: AuthoritySettings,
    folder: Folder,
    tokens: JoinTokens,
    uses: FileUses,
    state: Mutex<State>,
    /// The next certificate's serial number.
    serial: AtomicU64,
    /// Held by who changes the files.
    files: Mutex<()>,
    clock: SharedClock,
}

struct State {
    intermediate: Intermediate,
    roots: Vec<CertificateDer<'static>>,
    /// This registry's own identity, which follows.
    registry: Option<Workload>,
}

struct Intermediate {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate and those between it and the root.
    chain: Vec<CertificateDer<'static>>,
    replace_at: OffsetDateTime,
}

impl Authority {
    /// Reads the authority's files; makes them at the first start.
    ///
    /// # Errors
    /// When a file cannot be read or written, is readable for others, or is no authority's.
    pub fn open(settings: AuthoritySettings, clock: SharedClock) -> anyhow::Result<Self> {
        // It becomes a part of DNS names and of SPIFFE IDs.
        tourin_registry_api::limits::service_name(&settings.mesh)
            .map_err(|_| anyhow::anyhow!("--mesh {:?}: expected a lower-case letter, then lower-case letters, digits and hyphens", settings.mesh))?;
        let folder = Folder::open(&settings.folder)?;
        let now = now(&clock);
        let (intermediate, roots) = signers(&settings, &folder, now)?;
        let given = settings.given.as_ref().map(|(_, key)| read_private(key)).transpose()?;
        let tokens =
            JoinTokens::open(&folder, (&settings.mesh, given.as_deref()), Arc::clone(&clock))?;
        let uses = FileUses::open(&folder, Arc::clone(&clock))?;
        let state = Mutex::new(State { intermediate, roots, registry: None });
        let serial = AtomicU64::new(1);
        let files = Mutex::new(());
        let authority = Self { settings, folder, tokens, uses, state, serial, files, clock };
        if let Some((certificates, _)) = &authority.settings.given {
            let shown = certificates.display();
            authority
                .check()
                .with_context(|| format!("the authority in {shown} cannot sign for this one"))?;
        }
        Ok(authority)
    }

    /// Whether peers accept what is signed. They would not with the key of another certificate, or below
    /// one that may not sign for an authority.
    fn check(&self) -> anyhow::Result<()> {
        let registry = self.workload(REGISTRY, "registry")?;
        let mut roots = RootCertStore::empty();
        for root in registry.roots() {
            roots.add(root)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build()?;
        let chain = registry.chain();
        let (own, between) = chain.split_first().context("no certificate")?;
        let name = ServerName::try_from(registry.dns_name(REGISTRY))?;
        verifier.verify_server_cert(own, between, &name, &[], UnixTime::now())?;
        Ok(())
    }

    /// Whether a request for a certificate can be granted.
    ///
    /// # Errors
    /// When it cannot be read, or its key is not Ed25519.
    pub fn check_request(request: &str) -> anyhow::Result<()> {
        signing_request(request).map(drop)
    }

    /// What stands for a request for a certificate of an instance: the same for the same key and name.
    ///
    /// # Errors
    /// Those of [`Authority::check_request`].
    pub fn digest_of_request(request: &str, instance: &str) -> anyhow::Result<String> {
        let request = signing_request(request)?;
        let mut digest = Sha256::new();
        digest.update(request.public_key.der_bytes());
        digest.update(instance);
        Ok(hex(&digest.finalize()))
    }

    /// A certificate for an instance that asks with a PKCS #10 request (PEM). Only the request's key
    /// counts.
    ///
    /// # Errors
    /// When the request cannot be read, or its key is not Ed25519.
    pub fn issue(
        &self,
        request: &str,
        (service, instance): (&str, &str),
    ) -> anyhow::Result<IssuedCertificate> {
        let request = signing_request(request)?;
        let Self { settings: AuthoritySettings { mesh, lifetime, .. }, .. } = self;
        let mut params = lived(now(&self.clock), *lifetime);
        params.distinguished_name.push(DnType::CommonName, format!("{service}/{instance}"));
        params.subject_alt_names = vec![
            SanType::URI(spiffe_id(mesh, service, instance).try_into()?),
            SanType::DnsName(format!("{service}.{mesh}").try_into()?),
        ];
        // Unique below its intermediate, and short: Pingora hashes it for each request.
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(serial.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let state = self.state();
        let certificate = params.signed_by(&request.public_key, &state.intermediate.issuer)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(state.intermediate.chain.iter().cloned());
        if service == REGISTRY {
            // By them an instance that joins recognizes the root that its token names.
            chain.extend(state.roots.iter().cloned());
        }
        Ok(IssuedCertificate {
            chain: pem(&chain),
            roots: pem(&state.roots),
            lifetime_s: u32::try_from(lifetime.as_secs())?,
        })
    }

    /// An identity for an instance in this process.
    ///
    /// # Errors
    /// Those of [`Authority::issue`].
    pub fn workload(&self, service: &str, instance: &str) -> anyhow::Result<Workload> {
        let key = WorkloadKey::random();
        let issued = self.issue(&key.signing_request()?, (service, instance))?;
        let name = WorkloadName {
            mesh: self.settings.mesh.clone(),
            service: service.to_owned(),
            instance: instance.to_owned(),
        };
        Ok(Workload::new(name, key, &issued)?)
    }

    /// The registry's own identity, which [`Authority::keep`] renews.
    ///
    /// # Errors
    /// Those of [`Authority::issue`].
    pub fn registry(&self) -> anyhow::Result<Workload> {
        let known = self.state().registry.clone();
        if let Some(registry) = known {
            return Ok(registry);
        }
        let registry = self.workload(REGISTRY, "registry")?;
        self.state().registry = Some(registry.clone());
        Ok(registry)
    }

    /// A join token for instances of `service`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn join_token(
        &self,
        service: &str,
        uses: Option<u32>,
        ttl: Duration,
    ) -> anyhow::Result<String> {
        self.tokens.sign(service, (uses, ttl), self.root()?)
    }

    /// The root that signs, as join tokens name it.
    ///
    /// # Errors
    /// When there is none.
    pub fn root(&self) -> anyhow::Result<String> {
        self.state().roots.first().map(root_hash).context("there is no root")
    }

    /// What a join token says that this mesh made, that has not expired, and whose root is one of the mesh's
    /// still. Its use is not counted yet.
    ///
    /// # Errors
    /// [`JoinRefused::Invalid`].
    pub fn check_token(&self, token: &str) -> Result<JoinClaims, JoinRefused> {
        let claims = self.tokens.claims(token)?;
        let is_trusted = self.state().roots.iter().any(|root| root_hash(root) == claims.root);
        if is_trusted { Ok(claims) } else { Err(JoinRefused::Invalid) }
    }

    /// Counts uses of join tokens in the folder, for a registry that is alone.
    pub fn uses(&self) -> &FileUses {
        &self.uses
    }

    /// Begins to replace the root. The new one is trusted by every instance after half a certificate's
    /// life, signs after a whole one, and the old one is dropped after one more.
    ///
    /// # Errors
    /// When the operator gave the authority, or the files cannot be written.
    pub fn rotate_root(&self) -> anyhow::Result<()> {
        ensure!(
            self.settings.given.is_none(),
            "the operator gave the authority's certificate: replace its files and start the registry again"
        );
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.folder.add_next_root(&self.settings.mesh, now(&self.clock))?;
        self.refresh()
    }

    /// Renews this registry's certificate, the intermediate and the tokens' files, and moves a change of
    /// the root on, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: Shutdown) {
        let mut last = String::new();
        loop {
            tokio::select! {
                () = stop.begun() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            let authority = Arc::clone(&self);
            let done = tokio::task::spawn_blocking(move || authority.maintain()).await;
            let error = match done.map_err(anyhow::Error::from).and_then(|done| done) {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            };
            if error != last && !error.is_empty() {
                tracing::error!(error, "the authority's files");
            }
            last = error;
        }
    }

    /// What is due now.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn maintain(&self) -> anyhow::Result<()> {
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now(&self.clock);
        // First: it needs no file.
        let registry = self.state().registry.clone();
        if let Some(registry) = registry.filter(Workload::is_due) {
            self.renew_registry(&registry)?;
        }
        let changed = self.settings.given.is_none()
            && self.folder.advance_rotation(now, self.settings.lifetime)?;
        if changed || now >= self.state().intermediate.replace_at {
            self.refresh()?;
        }
        if let Some(tokens) = &self.settings.tokens {
            let sign = |service: &str, ttl| self.join_token(service, None, ttl);
            self.tokens.keep_files(tokens, &self.root()?, sign)?;
        }
        Ok(())
    }

    fn refresh(&self) -> anyhow::Result<()> {
        let (intermediate, roots) = signers(&self.settings, &self.folder, now(&self.clock))?;
        let registry = {
            let mut state = self.state();
            state.intermediate = intermediate;
            state.roots = roots;
            state.registry.clone()
        };
        match registry {
            Some(registry) => self.renew_registry(&registry),
            None => Ok(()),
        }
    }

    fn renew_registry(&self, registry: &Workload) -> anyhow::Result<()> {
        let name = registry.name();
        let issued = self.issue(&registry.signing_request()?, (&name.service, &name.instance))?;
        Ok(registry.renewed(&issued)?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signing_request(pem: &str) -> anyhow::Result<CertificateSigningRequestParams> {
    let request = CertificateSigningRequestParams::from_pem(pem)
        .context("csr: not a PKCS #10 request in PEM, signed by its key")?;
    ensure!(*request.public_key.algorithm() == PKCS_ED25519, "csr: the key must be Ed25519");
    Ok(request)
}

/// A new intermediate, and the roots.
fn signers(
    settings: &AuthoritySettings,
    folder: &Folder,
    now: OffsetDateTime,
) -> anyhow::Result<(Intermediate, Vec<CertificateDer<'static>>)> {
    let (signer, roots) = match &settings.given {
        Some((certificates, key)) => {
            let signer = Root::read(certificates, key)?;
            let root = signer.certificates.last().cloned().context("no certificate")?;
            (signer, vec![root])
        }
        None => folder.roots(&settings.mesh, now)?,
    };
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    // Serial numbers of what it signs begin anew, so its name is its own, also among registries that start at
    // the same moment.
    let random = key.public_key_raw().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let mut params = lived(now, INTERMEDIATE_LIFE);
    let name = format!("{} intermediate {random:08x}", settings.mesh);
    params.distinguished_name.push(DnType::CommonName, name);
    let serial = now.unix_timestamp().unsigned_abs() << 32 | u64::from(random);
    params.serial_number = Some(serial.into());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &signer.issuer)?;
    let mut chain = vec![certificate.der().clone()];
    // A root is known to peers; what a given authority has below it is not.
    let between = signer.certificates.len().saturating_sub(1);
    chain.extend(signer.certificates.into_iter().take(between));
    let intermediate = Intermediate {
        issuer: Issuer::new(params, key),
        chain,
        replace_at: now + INTERMEDIATE_LIFE / 2,
    };
    Ok((intermediate, roots))
}

/// Parameters of a certificate that is valid from `now` on.
fn lived(now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_LEEWAY;
    params.not_after = now + life;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn now(clock: &SharedClock) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(clock.now().timestamp())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let pem = |der: &CertificateDer<'_>| folder::to_pem("CERTIFICATE", der);
    certificates.iter().map(pem).collect()
}

fn read_certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}
