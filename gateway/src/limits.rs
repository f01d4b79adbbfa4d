//! Limits: concurrent requests of a client and of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamLimits {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for which an idle connection is kept.
    pub idle_timeout: Duration,
    /// Time for which a client may stall.
    pub client_stall: Duration,
}

/// The key of a client: its IPv4 address, or the /64 of its IPv6 address, because a subscriber usually
/// has a whole /64.
pub fn network_of(client: IpAddr) -> IpAddr {
    prefix_of(client, 64)
}

/// The network whose connections and requests in flight are bounded together: the IPv4 address, or the
/// /56 of the IPv6 address, which providers give to a site (RFC 6177).
pub fn site_of(client: IpAddr) -> IpAddr {
    prefix_of(client, 56)
}

fn prefix_of(client: IpAddr, bits: u32) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let host_bits = 128 - bits;
            IpAddr::V6((u128::from(address) >> host_bits << host_bits).into())
        }
    }
}

/// Requests in flight by client, from the head's end to the response's.
#[derive(Debug, Clone)]
pub struct ClientRequests {
    in_flight: Arc<Mutex<HashMap<IpAddr, usize, RandomState>>>,
    limit: usize,
}

impl ClientRequests {
    /// At most `limit` per client ([`site_of`]).
    pub fn new(limit: usize) -> Self {
        Self { in_flight: Arc::default(), limit }
    }

    /// Counts a request of `client` until the value is dropped; `None` at the limit.
    pub fn try_add(&self, client: IpAddr) -> Option<ClientRequest> {
        let client = site_of(client);
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let count = in_flight.entry(client).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(ClientRequest { in_flight: Arc::clone(&self.in_flight), client })
    }
}

/// A counted request.
#[derive(Debug)]
pub struct ClientRequest {
    in_flight: Arc<Mutex<HashMap<IpAddr, usize, RandomState>>>,
    client: IpAddr,
}

impl Drop for ClientRequest {
    fn drop(&mut self) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = in_flight.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(&self.client);
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

    /// Most requests at once.
    pub fn limit(&self) -> usize {
        self.limit
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
    fn the_limit_of_requests_ignores_the_spelling_of_an_address() {
        let clients = ClientRequests::new(2);
        let enter = |address: &str| clients.try_add(address.parse().unwrap());
        let first = enter("203.0.113.1").unwrap();
        let _second = enter("::ffff:203.0.113.1").unwrap();
        assert!(enter("203.0.113.1").is_none());
        let _other = enter("::ffff:203.0.113.2").expect("another client");
        let _six = [enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()];
        assert!(enter("2001:db8:0:ff::3").is_none(), "one /56 is one client");
        assert!(enter("2001:db8:0:100::1").is_some());
        drop(first);
        assert!(enter("203.0.113.1").is_some());
        assert_eq!(clients.in_flight.lock().unwrap().len(), 3, "who has none is forgotten");
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
