//! `mesh.toml`, by which operators' commands reach the mesh of an all-in-one.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tourin_chassis::peer::OPERATOR;
use tourin_registry::authority::Authority;

use crate::data_dir::{MESH_FILE, write_private};

/// Life of the join token in it.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked whether the token is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The file, with a token that is replaced at half of its life, and when another root signs: who joins by a
/// token knows the registry by the root that it names.
pub(crate) struct MeshFile {
    folder: PathBuf,
    registry_url: String,
    authority: Arc<Authority>,
    token: String,
}

impl MeshFile {
    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        folder: &Path,
        registry_url: &str,
        authority: &Arc<Authority>,
    ) -> anyhow::Result<Self> {
        let token = authority.join_token(OPERATOR, None, TOKEN_TTL)?;
        // Neither has quotes in it: an address, and a JWT.
        let text = format!("registry-url = \"{registry_url}\"\njoin-token = \"{token}\"\n");
        write_private(folder, MESH_FILE, &text)?;
        let (folder, registry_url) = (folder.to_owned(), registry_url.to_owned());
        Ok(Self { folder, registry_url, authority: Arc::clone(authority), token })
    }

    /// Keeps it current until it is dropped.
    pub async fn keep(mut self) -> Infallible {
        let mut has_failed = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.is_due() {
                continue;
            }
            match Self::write(&self.folder, &self.registry_url, &self.authority) {
                Ok(written) => (self, has_failed) = (written, false),
                Err(error) if !has_failed => {
                    tracing::warn!(error = format!("{error:#}"), "{MESH_FILE} is not replaced");
                    has_failed = true;
                }
                Err(_) => {}
            }
        }
    }

    fn is_due(&self) -> bool {
        let Ok(claims) = self.authority.check_token(&self.token) else { return true };
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.exp);
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        left < TOKEN_TTL / 2 || self.authority.root().is_ok_and(|root| root != claims.root)
    }
}
