//! The backends of a scenario's mesh: embedded stores in its own temporary folder.

use std::time::Duration;

use tourin::up::UpSettings;

/// How long a scenario waits for a condition.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// Longest time from a view to the trend.
pub const FRESH: Duration = Duration::from_secs(10);
/// There is no MongoDB.
pub const MONGODB_MAY_BE_SLOW: bool = false;

#[derive(Debug)]
pub struct Backends;

impl Backends {
    pub async fn create(_settings: &mut UpSettings) -> Self {
        Self
    }
}
