//! The data folder of an all-in-one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::{NamedTempFile, TempDir};

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
        write_private(&self.path, name, text)
    }
}

/// Writes or replaces a file in a folder, atomically. Its mode is 0600.
pub(crate) fn write_private(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let written = || -> std::io::Result<()> {
        let mut draft = NamedTempFile::new_in(folder)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(&path)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("deep/er");
        let first = DataDir::open(&path).unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains("another tourin"), "{refused}");
        drop(first);
        DataDir::open(&path).unwrap();
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
