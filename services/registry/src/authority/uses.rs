//! Uses of join tokens, counted in the registry's folder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tourin_chassis::clock::SharedClock;
use tourin_registry_api::wire::JoinClaims;

use super::folder::Folder;
use crate::app::ports::{REPEATABLE, TokenUses, Unavailable};

const USES: &str = "join-token-uses.json";

#[derive(Default, Serialize, Deserialize)]
struct Use {
    count: u32,
    /// The token's end, in seconds since the epoch.
    exp: u64,
    /// The requests that may be repeated, and until when, in seconds since the epoch.
    #[serde(default)]
    repeatable: BTreeMap<String, u64>,
}

/// Counts uses in a file. Clones share it.
#[derive(Clone)]
pub struct FileUses(Arc<Inner>);

struct Inner {
    folder: Folder,
    /// By the token's id.
    uses: Mutex<BTreeMap<String, Use>>,
    clock: SharedClock,
}

impl FileUses {
    pub(super) fn open(folder: &Folder, clock: SharedClock) -> anyhow::Result<Self> {
        let uses = folder.read(USES)?;
        let uses = uses.map(|uses| serde_json::from_str(&uses)).transpose().context(USES)?;
        let uses = Mutex::new(uses.unwrap_or_default());
        let folder = folder.clone();
        Ok(Self(Arc::new(Inner { folder, uses, clock })))
    }

    /// The same as [`TokenUses::count`], and waits for the disk. It is written there before the certificate is
    /// issued, so that a restart allows no further use.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn count(&self, claims: &JoinClaims, limit: u32, request: &str) -> anyhow::Result<bool> {
        let Inner { folder, uses, clock } = &*self.0;
        let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = u64::try_from(clock.now().timestamp()).unwrap_or_default();
        uses.retain(|_, used| used.exp > now);
        let used = uses.entry(claims.jti.clone()).or_default();
        used.exp = claims.exp;
        used.repeatable.retain(|_, until| *until > now);
        if used.repeatable.contains_key(request) {
            return Ok(true);
        }
        if used.count >= limit {
            return Ok(false);
        }
        used.count += 1;
        used.repeatable.insert(request.to_owned(), now + REPEATABLE.as_secs());
        let written = serde_json::to_string(&*uses)
            .map_err(anyhow::Error::from)
            .and_then(|text| folder.write(USES, &text));
        if written.is_err()
            && let Some(used) = uses.get_mut(&claims.jti)
        {
            // Nothing is issued. A repetition must not pass for one that was written down.
            used.count -= 1;
            used.repeatable.remove(request);
        }
        written.map(|()| true)
    }
}

#[async_trait]
impl TokenUses for FileUses {
    async fn count(
        &self,
        claims: &JoinClaims,
        limit: u32,
        request: &str,
    ) -> Result<bool, Unavailable> {
        let (uses, claims, request) = (self.clone(), claims.clone(), request.to_owned());
        let counted =
            tokio::task::spawn_blocking(move || Self::count(&uses, &claims, limit, &request));
        Ok(counted.await.map_err(anyhow::Error::from)??)
    }
}
