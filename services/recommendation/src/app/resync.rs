//! A full resync reads core's complete catalogue into the replica. It brings spots whose events were
//! published before this service existed or were lost with its data.

use std::sync::Arc;

use super::ports::{Catalogue, PortError, SpotReplica, SpotState};

/// The maximum number of pages, in case the catalogue never ends: 1,000 spots each, ten million.
const MAX_PAGES: usize = 10_000;

/// The result of a resync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resynced {
    /// Spots in core's catalogue.
    pub read: usize,
    /// Spots that were new or newer than the replica's.
    pub changed: usize,
    /// Spots of the replica that core no longer has.
    pub removed: u64,
}

/// Brings the replica up to core's catalogue.
#[derive(Clone)]
pub struct Resync {
    catalogue: Arc<dyn Catalogue>,
    spots: Arc<dyn SpotReplica>,
}

impl Resync {
    /// A resync of `spots` from `catalogue`.
    pub fn new(catalogue: Arc<dyn Catalogue>, spots: Arc<dyn SpotReplica>) -> Self {
        Self { catalogue, spots }
    }

    /// Whether core's log differs from the replica's: core has new data, and only a full resync
    /// shows which spots still exist.
    ///
    /// # Errors
    /// When core or the replica does not answer.
    pub async fn is_due(&self) -> Result<bool, PortError> {
        let current = self.catalogue.log_id().await?;
        Ok(self.spots.log_id().await?.as_deref() != Some(current.as_str()))
    }

    /// Reads the complete catalogue. Events may be applied at the same time: the higher version of a
    /// spot wins.
    ///
    /// # Errors
    /// When core or the replica does not answer. The pages read before stay merged.
    pub async fn run(&self) -> Result<Resynced, PortError> {
        let number = self.spots.begin_resync().await?;
        let log_id = self.catalogue.log_id().await?;
        self.spots.adopt_log(&log_id).await?;
        let mut resynced = Resynced::default();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.catalogue.page(after.as_deref()).await?;
            let states: Vec<SpotState> = page.spots.into_iter().map(SpotState::Live).collect();
            resynced.read += states.len();
            resynced.changed += self.spots.merge(&states).await?;
            match page.next {
                Some(next) if after.as_deref() != Some(next.as_str()) => after = Some(next),
                _ => {
                    resynced.removed = self.spots.sweep(number).await?;
                    return Ok(resynced);
                }
            }
        }
        Err(PortError::failed(anyhow::anyhow!(
            "core's catalogue did not end after {MAX_PAGES} pages"
        )))
    }
}
