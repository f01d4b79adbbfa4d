//! The authority's files. All have the mode 0600.
//!
//! | file | what |
//! |---|---|
//! | `root.pem`, `root-key.pem` | the root that signs |
//! | `next-root.pem`, `next-root-key.pem` | its successor: trusted, and signs when every instance knows it |
//! | `old-root.pem` | its predecessor: trusted until the last certificate below it has ended |
//! | `join-token-key` | the key of join tokens |
//! | `join-token-uses.json` | how often tokens with a limit were used |
//! | `registry.lock` | held by the registry that runs on the folder; empty |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use rcgen::{BasicConstraints, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519};
use rustls::pki_types::CertificateDer;
use tempfile::NamedTempFile;
use time::OffsetDateTime;

use super::{lived, read_certificates};

/// Life of a root.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A signing authority.
pub(super) struct Root {
    /// Its certificate, then those above it, the root last.
    pub certificates: Vec<CertificateDer<'static>>,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Root {
    /// Reads an authority's certificates and key.
    pub fn read(certificates: &Path, key: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let key_text = read_private(key)?;
            let pem = fs::read(certificates)
                .with_context(|| format!("cannot read {}", certificates.display()))?;
            let certificates = read_certificates(&pem)?;
            let signing = certificates.first().context("no certificate (PEM) in the file")?;
            let key = KeyPair::from_pem(&key_text).context("the key is not PKCS #8 in PEM")?;
            let issuer = Issuer::from_ca_cert_der(signing, key)?;
            Ok(Self { certificates, issuer })
        };
        let shown = (certificates.display(), key.display());
        read().with_context(|| format!("the authority in {} and {}", shown.0, shown.1))
    }
}

/// Makes the folder if there is none, and keeps other registries out of it for as long as the result lives.
/// Two would sign below two roots, and count the uses of join tokens apart.
///
/// # Errors
/// When another registry runs on the folder, or it cannot be used.
pub fn hold_folder(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let lock = Folder::open(path)?.path("registry.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let file = file.with_context(|| format!("cannot open {}", lock.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "--data-dir {shown}: another registry runs on this folder; give each a folder of its own"
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", lock.display()))
        }
    }
}

/// The folder.
#[derive(Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("--data-dir {}: cannot make the folder", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The text of a private file, if there is one.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.path(name);
        if path.exists() { read_private(&path).map(Some) } else { Ok(None) }
    }

    /// Writes or replaces a private file.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write_private(&self.path(name), text)
    }

    /// The root that signs, made if there is none, and all that are trusted, the signing one first.
    pub fn roots(
        &self,
        mesh: &str,
        now: OffsetDateTime,
    ) -> anyhow::Result<(Root, Vec<CertificateDer<'static>>)> {
        if !self.has("root.pem") {
            self.make_root("root", mesh, now)?;
        }
        let root = Root::read(&self.path("root.pem"), &self.path("root-key.pem"))?;
        let mut trusted = root.certificates.clone();
        for other in ["next-root.pem", "old-root.pem"] {
            if let Some(pem) = self.read(other)? {
                trusted.extend(read_certificates(pem.as_bytes())?);
            }
        }
        Ok((root, trusted))
    }

    fn make_root(&self, name: &str, mesh: &str, now: OffsetDateTime) -> anyhow::Result<()> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = lived(now, ROOT_LIFE);
        let common_name = format!("{mesh} root of {}", now.date());
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        self.write(&format!("{name}-key.pem"), &key.serialize_pem())?;
        self.write(&format!("{name}.pem"), &to_pem("CERTIFICATE", certificate.der()))
    }

    /// Makes the root's successor.
    pub fn add_next_root(&self, mesh: &str, now: OffsetDateTime) -> anyhow::Result<()> {
        ensure!(
            !self.has("next-root.pem") && !self.has("old-root.pem"),
            "the root is being replaced already"
        );
        self.make_root("next-root", mesh, now)
    }

    /// Lets the successor sign when it is as old as a certificate lives, and drops the predecessor after
    /// the same time. Says whether something changed.
    pub fn advance_rotation(
        &self,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> anyhow::Result<bool> {
        let is_due = |name: &str| self.age(name, now).is_some_and(|age| age >= lifetime);
        if is_due("next-root.pem") {
            // A copy, whose age counts from now on. Each step can be repeated after a crash.
            let old = self.read("root.pem")?.context("root.pem is missing")?;
            self.write("old-root.pem", &old)?;
            if self.has("next-root-key.pem") {
                self.rename("next-root-key.pem", "root-key.pem")?;
            }
            self.rename("next-root.pem", "root.pem")?;
            tracing::info!("certificates are signed below the new root");
            return Ok(true);
        }
        if is_due("old-root.pem") && !self.has("next-root.pem") {
            fs::remove_file(self.path("old-root.pem"))?;
            tracing::info!("the old root is not trusted any more");
            return Ok(true);
        }
        Ok(false)
    }

    fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        fs::rename(self.path(from), self.path(to)).with_context(|| format!("cannot rename {from}"))
    }

    fn age(&self, name: &str, now: OffsetDateTime) -> Option<Duration> {
        let modified = fs::metadata(self.path(name)).ok()?.modified().ok()?;
        SystemTime::from(now).duration_since(modified).ok()
    }
}

/// Reads a file that only its owner may read.
pub(crate) fn read_private(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let mode = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.permissions();
    ensure!(
        mode.mode().trailing_zeros() >= 6,
        "{shown} can be read by others than its owner: chmod 600 {shown}"
    );
    fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))
}

/// Writes a file that only its owner may read. A reader sees the old one or the new one, never a part.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
        let mut draft = NamedTempFile::new_in(folder)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}
