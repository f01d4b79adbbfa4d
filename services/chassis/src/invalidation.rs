//! What core and the gateways agree on about cached responses that have tags: core tells by tags which of
//! them are out of date.

use std::time::Duration;

/// The tag that stands for every tag.
pub const EVERYTHING: &str = "*";

/// The longest time for which a gateway serves a cached response that has a tag. Core keeps what it tells for
/// as long, for gateways that are away.
pub const LONGEST_FRESHNESS: Duration = Duration::from_secs(600);
