//! The key of the day, with which gateways make visitors' pseudonyms.
//!
//! It is random, shared by all gateways of the mesh, and overwritten by the next day's. After that
//! nobody can tell whose pseudonym a stored one was, not even with the mesh's keys, a list of all
//! addresses and the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Days, NaiveTime, Utc};
use tourin_chassis::clock::SharedClock;

use super::StoreError;
use crate::domain::token::random_bytes;

/// A key: 256 random bits.
pub type VisitorKey = [u8; 32];

/// Where the key of the day is, for all processes of core.
#[async_trait]
pub trait VisitorKeyStore: Send + Sync {
    /// The key of `day`, counted from the epoch. The first call of a day overwrites the key of
    /// another day with `candidate`. The key of the next day is kept: the clock of another process
    /// is a little ahead. A key from further ahead is overwritten, since a wrong clock made it and
    /// it would stay until that day.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn visitor_key(&self, day: i64, candidate: &VisitorKey)
    -> Result<VisitorKey, StoreError>;
}

/// Gives the key of the day.
pub struct VisitorKeys {
    store: Arc<dyn VisitorKeyStore>,
    clock: SharedClock,
}

impl VisitorKeys {
    /// Keys in `store`.
    pub fn new(store: Arc<dyn VisitorKeyStore>, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Today's key (UTC), and how long the day still lasts. Destroys the key of the day before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn today(&self) -> Result<(VisitorKey, Duration), StoreError> {
        let candidate = random_bytes().map_err(|error| StoreError::Failed(error.into()))?;
        let now = self.clock.now();
        let day = now.timestamp().div_euclid(24 * 3_600);
        Ok((self.store.visitor_key(day, &candidate).await?, left_of_day(now)))
    }
}

fn left_of_day(now: DateTime<Utc>) -> Duration {
    let midnight = (now.date_naive() + Days::new(1)).and_time(NaiveTime::MIN).and_utc();
    (midnight - now).to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_at_midnight() {
        let at = |text: &str| left_of_day(text.parse().unwrap());
        assert_eq!(at("2026-05-04T00:00:00Z"), Duration::from_secs(86_400));
        assert_eq!(at("2026-05-04T23:59:59.500Z"), Duration::from_millis(500));
    }
}
