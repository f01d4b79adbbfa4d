//! How much is let in: calls per client on routes that ask for it, and requests at once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::routes::RouteTable;

/// Clients counted apart, per route. More share one count, so that memory stays bounded.
const MAX_CLIENTS: usize = 100_000;
/// Clients that have been quiet for long enough are forgotten this often.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Stands for all clients beyond [`MAX_CLIENTS`].
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Calls per client address and minute.
pub struct RateLimits {
    by_template: HashMap<String, DefaultKeyedRateLimiter<IpAddr>>,
    clock: DefaultClock,
}

impl RateLimits {
    /// The limits that the table asks for.
    pub fn new(table: &RouteTable) -> Self {
        let limited = table.iter().filter_map(|route| {
            let quota = Quota::per_minute(route.rate_per_minute?);
            Some((route.template.clone(), RateLimiter::keyed(quota)))
        });
        Self { by_template: limited.collect(), clock: DefaultClock::default() }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long the client has to wait, when it has called too often.
    pub fn check(&self, template: &str, client: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = self.by_template.get(template) else {
            return Ok(());
        };
        let key = if limiter.len() < MAX_CLIENTS { counted_as(client) } else { OTHERS };
        limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Forgets quiet clients now and then, until `stop`.
    pub async fn forget_quiet(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(FORGET_EVERY) => {}
            }
            for limiter in self.by_template.values() {
                limiter.retain_recent();
            }
        }
    }
}

/// Who has one IPv6 address has a /64 of them.
fn counted_as(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
    }
}

/// Requests at once.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Semaphore>);

impl Admission {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))))
    }

    /// A place for a request until it is dropped; `None` when all are taken.
    pub fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart_and_per_route() {
        let table = RouteTable::parse(
            "[[route]]\npath = \"/a\"\nservice = \"s\"\nmethods = { GET = \"public\" }\nrate_per_minute = 2\n\
             [[route]]\npath = \"/b\"\nservice = \"s\"\nmethods = { GET = \"public\" }\n",
        )
        .unwrap();
        let limits = RateLimits::new(&table);
        let [one, two, neighbour, three]: [IpAddr; 4] =
            ["203.0.113.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
                .map(|text| text.parse().unwrap());
        assert!(limits.check("/a", one).is_ok());
        assert!(limits.check("/a", one).is_ok());
        let wait = limits.check("/a", one).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(60), "{wait:?}");
        assert!(limits.check("/a", two).is_ok());
        assert!(limits.check("/a", neighbour).is_ok());
        assert!(limits.check("/a", two).is_err(), "one /64 is one client");
        assert!(limits.check("/a", three).is_ok());
        assert!((0..100).all(|_| limits.check("/b", one).is_ok()));
    }

    #[test]
    fn places_are_given_back() {
        let admission = Admission::new(1);
        let place = admission.enter().unwrap();
        assert!(admission.enter().is_none());
        drop(place);
        assert!(admission.enter().is_some());
    }
}
