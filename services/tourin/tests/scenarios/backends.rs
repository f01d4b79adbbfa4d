//! Where a scenario's mesh keeps its data: in its own folder, with nothing to clear away.

use std::time::Duration;

use tourin::up::UpSettings;

/// How long a scenario waits for something that must come true.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a view takes to the trend at most.
pub const FRESH: Duration = Duration::from_secs(1);
/// There is none.
pub const MONGODB_MAY_BE_SLOW: bool = false;

#[derive(Debug)]
pub struct Backends;

impl Backends {
    pub async fn create(_settings: &mut UpSettings) -> Self {
        Self
    }
}
