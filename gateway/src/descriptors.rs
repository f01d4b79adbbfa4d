//! The limit of open files, and the number of client connections that it allows.
//!
//! The soft limit is often 1,024. A process without descriptors cannot accept, connect to services, or,
//! in the all-in-one, open its stores.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything else: listeners, stores, calls inside the mesh.
const RESERVED: u64 = 200;
/// Descriptors per client connection: its own, the connection to an instance, and in the all-in-one the
/// instance's end of that.
const PER_CONNECTION: u64 = 3;

/// Raises the soft limit of open files to the hard one, and gives the new limit; `None` if unlimited.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            // Some systems do not grant their stated hard limit.
            tracing::debug!(%error, soft = limit.current, "cannot raise the limit of open files");
            limit.current
        }
    }
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Of all clients.
    pub total: usize,
    /// Of one client.
    pub per_client: usize,
}

impl ConnectionCounts {
    /// Reduces the bounds to what `limit` descriptors allow. A reduced bound per client is at most half
    /// of the total.
    #[must_use]
    pub fn within(self, limit: Option<u64>) -> Self {
        let Some(limit) = limit else {
            return self;
        };
        let fit = (limit.saturating_sub(RESERVED) / PER_CONNECTION).max(1);
        let fit = usize::try_from(fit).unwrap_or(usize::MAX);
        if self.total <= fit {
            return self;
        }
        let fitting = Self { total: fit, per_client: self.per_client.min(fit.div_ceil(2)) };
        tracing::warn!(
            asked = self.total,
            connections = fitting.total,
            per_client = fitting.per_client,
            open_files = limit,
            "the limit of open files leaves room for fewer client connections than asked for"
        );
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_descriptors_that_there_are() {
        let asked = ConnectionCounts { total: 10_000, per_client: 512 };
        assert_eq!(asked.within(None), asked);
        assert_eq!(asked.within(Some(1 << 20)), asked);
        for (limit, total, per_client) in [(1_024, 274, 137), (4_096, 1_298, 512), (100, 1, 1)] {
            let fitting = asked.within(Some(limit));
            assert_eq!(fitting, ConnectionCounts { total, per_client }, "{limit}");
            assert!(limit < RESERVED || fitting.total as u64 * PER_CONNECTION + RESERVED <= limit);
        }
        let few = ConnectionCounts { total: 10, per_client: 10 };
        assert_eq!(few.within(Some(1_024)), few, "what fits is not touched");
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, raised);
        assert_eq!(now.current, now.maximum);
    }
}
