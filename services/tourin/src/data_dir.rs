//! The data folder of an all-in-one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::{NamedTempFile, TempDir};
use tourin_chassis::secret::Secret;

/// The file with the access to the mesh that runs on the data.
pub const MESH_FILE: &str = "mesh.toml";

/// A data folder, locked by this process until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // Held for their `Drop`.
    _lock: File,
    _temporary: Option<TempDir>,
}

impl DataDir {
    /// Opens the folder at `path`; creates it if it does not exist.
    ///
    /// # Errors
    /// When it cannot be created or written to, or another process has locked it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Self::hold(path, None)
    }

    /// A temporary folder.
    ///
    /// # Errors
    /// When the system's temporary folder cannot be written to.
    pub fn temporary() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("tourin-").context("cannot make a temporary folder")?;
        let path = folder.path().to_owned();
        Self::hold(&path, Some(folder))
    }

    fn hold(path: &Path, temporary: Option<TempDir>) -> anyhow::Result<Self> {
        let shown = path.display();
        // Only the owner may read it: it has keys and e-mail addresses in it.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("--data-dir {shown}: cannot make the folder"))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .with_context(|| format!("--data-dir {shown}: cannot write to the folder"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "--data-dir {shown}: another tourin uses this folder; stop it, or name another folder"
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("--data-dir {shown}: cannot lock it"));
            }
        }
        let path = path.canonicalize().with_context(|| format!("--data-dir {shown}"))?;
        Ok(Self { path, _lock: lock, _temporary: temporary })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The secret of the mesh on this data, made at the first call. It is kept because visitors'
    /// pseudonyms are derived from it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn secret(&self) -> anyhow::Result<Secret> {
        let path = self.path.join("mesh-secret");
        let shown = path.display();
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|error| anyhow::anyhow!("{shown}: {error}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = Secret::random();
                let draft = self.draft(secret.expose())?;
                draft.persist_noclobber(&path).with_context(|| format!("cannot write {shown}"))?;
                Ok(secret)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {shown}")),
        }
    }

    /// Writes the access to the mesh on this data into a file for the `--config` of other commands.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn describe_mesh(&self, registry_url: &str, secret: &Secret) -> anyhow::Result<()> {
        // Neither has quotes in it: an address, and random letters and digits.
        let secret = secret.expose();
        self.write(
            MESH_FILE,
            &format!("registry-url = \"{registry_url}\"\nregistration-secret = \"{secret}\"\n"),
        )
    }

    /// Whether it is removed with the process.
    pub(crate) fn is_temporary(&self) -> bool {
        self._temporary.is_some()
    }

    /// The text of a file in the folder, if it can be read.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path.join(name)).ok()
    }

    /// Writes or replaces a file in the folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let draft = self.draft(text)?;
        draft.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }

    /// A temporary file that replaces another one atomically: half a secret would stop every later start.
    /// Its mode is 0600.
    fn draft(&self, text: &str) -> anyhow::Result<NamedTempFile> {
        let written = NamedTempFile::new_in(&self.path).and_then(|mut draft| {
            draft.write_all(text.as_bytes())?;
            draft.as_file().sync_all()?;
            Ok(draft)
        });
        written.with_context(|| format!("cannot write to {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_and_keeps_its_secret() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("deep/er");
        let first = DataDir::open(&path).unwrap();
        let secret = first.secret().unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains("another tourin"), "{refused}");
        drop(first);
        let second = DataDir::open(&path).unwrap();
        assert!(second.secret().unwrap().matches(secret.expose()));
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "").unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains("--data-dir") && refused.contains("file"), "{refused}");
    }
}
