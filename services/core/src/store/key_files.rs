//! The signing keys on disk, as PEM.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey};
use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::domain::token::random_bytes;

/// Reads an Ed25519 private key (PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it).
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let pem = fs::read_to_string(path)
        .with_context(|| format!("cannot read the signing key {}", path.display()))?;
    if let Ok(meta) = fs::metadata(path)
        && meta.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(
            path = %path.display(),
            "other users of this machine can read the signing key; chmod it to 0600"
        );
    }
    SigningKey::from_pkcs8_pem(&pem).map_err(|_| {
        anyhow::anyhow!(
            "{} is not an Ed25519 private key in PKCS#8 PEM (`openssl genpkey -algorithm ed25519`)",
            path.display()
        )
    })
}

/// Reads the key at `path`, or creates one there, readable by its owner only. When several processes
/// start at once, all use the key of the first one.
///
/// # Errors
/// When the key can neither be read nor written.
pub fn read_or_create_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    match fs::exists(path) {
        Ok(true) => return read_signing_key(path),
        Ok(false) => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read the signing key {}", path.display()));
        }
    }
    let key = SigningKey::from_bytes(&random_bytes()?);
    let pem = key.to_pkcs8_pem(LineEnding::LF).context("encoding a new signing key")?;
    // Written to a temporary file and then linked, so that no process reads half a key.
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::new_v4()));
    let written = write_private(&draft, pem.as_bytes()).and_then(|()| fs::hard_link(&draft, path));
    // A draft that cannot be removed does no harm.
    let _ = fs::remove_file(&draft);
    match written {
        Ok(()) => {
            tracing::info!(path = %path.display(), "created a new signing key");
            Ok(key)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read_signing_key(path),
        Err(error) => {
            Err(error).with_context(|| format!("cannot write the signing key {}", path.display()))
        }
    }
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads the public half of every key in `paths`: PEM files, private or public, and folders of such
/// files (`*.pem`). A path that does not exist is an error.
///
/// # Errors
/// When a file cannot be read or holds something else.
pub fn read_previous_keys(paths: &[PathBuf]) -> anyhow::Result<Vec<VerifyingKey>> {
    let mut files = Vec::new();
    for path in paths {
        let reading = || format!("cannot read the previous signing keys {}", path.display());
        if fs::metadata(path).with_context(reading)?.is_dir() {
            for entry in fs::read_dir(path).with_context(reading)? {
                let file = entry.with_context(reading)?.path();
                if file.extension().is_some_and(|extension| extension == "pem") {
                    files.push(file);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    files.iter().map(|file| read_public_half(file)).collect()
}

fn read_public_half(path: &Path) -> anyhow::Result<VerifyingKey> {
    let pem = fs::read_to_string(path)
        .with_context(|| format!("cannot read the previous signing key {}", path.display()))?;
    SigningKey::from_pkcs8_pem(&pem)
        .map(|key| key.verifying_key())
        .or_else(|_| VerifyingKey::from_public_key_pem(&pem).map_err(|_| ()))
        .map_err(|()| {
            anyhow::anyhow!("{} is not an Ed25519 key in PEM, private or public", path.display())
        })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::pkcs8::EncodePublicKey;

    use super::*;

    #[test]
    fn the_key_of_the_first_start_is_used_ever_after_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.pem");
        let first = read_or_create_signing_key(&path).unwrap();
        assert_eq!(read_or_create_signing_key(&path).unwrap(), first);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn of_processes_that_start_at_once_all_use_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.pem");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| read_or_create_signing_key(&path).unwrap()))
                .collect();
            starting.into_iter().map(|process| process.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(read_signing_key(&path).unwrap(), keys[0]);
    }

    #[test]
    fn previous_keys_are_read_from_folders_and_files_private_or_public() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("previous");
        fs::create_dir(&folder).unwrap();
        let (a, b) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        fs::write(folder.join("a.pem"), a.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
        fs::write(folder.join("readme.txt"), "not a key").unwrap();
        let single = dir.path().join("b.pem");
        fs::write(&single, b.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()).unwrap();
        let keys = read_previous_keys(&[folder, single]).unwrap();
        assert_eq!(keys.len(), 2);
        assert!(keys.contains(&a.verifying_key()) && keys.contains(&b.verifying_key()));
    }

    #[test]
    fn an_invalid_key_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.pem");
        fs::write(&path, "nonsense").unwrap();
        let error = read_or_create_signing_key(&path).unwrap_err().to_string();
        assert!(error.contains("signing.pem is not an Ed25519 private key"), "{error}");
        let missing = dir.path().join("missing.pem");
        let error = read_previous_keys(&[missing]).unwrap_err().to_string();
        assert!(error.contains("missing.pem"), "{error}");
    }
}
