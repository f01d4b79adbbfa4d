//! File descriptors: how many there are, and how many client connections that is enough for.
//!
//! A process starts with a soft limit that is often 1,024, and running out of descriptors stops
//! everything at once: accepting, reaching services, and in the all-in-one the stores too.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Left for everything that does not grow with the clients: listeners, stores, the mesh's own calls.
const RESERVED: u64 = 200;
/// Descriptors that one client connection may cost: itself, the connection to an instance, and in
/// the all-in-one the instance's own end of that.
const PER_CONNECTION: u64 = 3;

/// Raises this process's soft limit to its hard one; gives the limit that holds then, `None` when
/// there is none.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            // Some systems state a hard limit that they do not grant.
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
    /// These bounds, or as much of them as a `limit` of descriptors leaves room for. A bound that has
    /// to shrink leaves at least half of all places to other clients.
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
