//! Limits: connections per client, calls per client and minute, concurrent requests.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::routes::RouteTable;

/// Clients counted separately, per route. Further clients share one count, so that memory is bounded.
const MAX_CLIENTS: usize = 100_000;
const EVICT_EVERY: Duration = Duration::from_secs(10);
/// The key of all clients beyond [`MAX_CLIENTS`].
const OVERFLOW: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Calls per client address and minute.
pub struct RateLimits {
    by_template: HashMap<Arc<str>, DefaultKeyedRateLimiter<IpAddr>>,
    clock: DefaultClock,
}

impl RateLimits {
    /// The limits of the route table.
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
    /// The time to wait, when the client has called too often.
    pub fn check(&self, template: &str, client: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = self.by_template.get(template) else {
            return Ok(());
        };
        let key = if limiter.len() < MAX_CLIENTS { network_of(client) } else { OVERFLOW };
        limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Evicts idle clients until `stop`.
    pub async fn evict_idle(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVICT_EVERY) => {}
            }
            for limiter in self.by_template.values() {
                limiter.retain_recent();
            }
        }
    }
}

/// The key of a client: its IPv4 address, or the /64 of its IPv6 address, because a subscriber usually
/// has a whole /64.
pub fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
    }
}

/// Open connections by client.
#[derive(Debug, Clone)]
pub struct ClientConnections {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    limit: usize,
}

impl ClientConnections {
    /// At most `limit` per client.
    pub fn new(limit: usize) -> Self {
        Self { open: Arc::default(), limit }
    }

    /// Counts a connection from `client` until the value is dropped; `None` at the limit.
    pub fn try_add(&self, client: IpAddr) -> Option<ClientConnection> {
        let client = network_of(client);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(ClientConnection { open: Arc::clone(&self.open), client })
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct ClientConnection {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// A limit on concurrent requests.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit {
    permits: Arc<Semaphore>,
    limit: usize,
}

impl ConcurrencyLimit {
    /// At most `limit` requests.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(limit)), limit }
    }

    /// Requests in progress.
    pub fn in_use(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    /// A permit, held until it is dropped; `None` at the limit.
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
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
    fn the_connection_limit_ignores_the_spelling_of_an_address() {
        let clients = ClientConnections::new(2);
        let enter = |address: &str| clients.try_add(address.parse().unwrap());
        let first = enter("203.0.113.1").unwrap();
        let _second = enter("::ffff:203.0.113.1").unwrap();
        assert!(enter("203.0.113.1").is_none());
        let _other = enter("::ffff:203.0.113.2").expect("another client");
        let _six = [enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()];
        assert!(enter("2001:db8::3").is_none(), "one /64 is one client");
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(first);
        assert!(enter("203.0.113.1").is_some());
        assert_eq!(clients.open.lock().unwrap().len(), 3, "who has none is forgotten");
    }

    #[test]
    fn places_are_given_back() {
        let concurrency = ConcurrencyLimit::new(1);
        let permit = concurrency.try_acquire().unwrap();
        assert!(concurrency.try_acquire().is_none());
        drop(permit);
        assert!(concurrency.try_acquire().is_some());
    }
}
