//! Open connections by client, and which of them are closed to make room.
//!
//! A connection is idle while the gateway waits for the client: for a request, or for the rest of a
//! head or a body. At a limit the longest idle one is closed, so connections that are held without use
//! do not keep other clients out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tourin_chassis::metrics::Counter;

use crate::connection::Connection;
use crate::limits::site_of;

/// When the gateway is full, one in so many connections is closed: one scan then serves many accepts.
const EVICTED_SHARE: usize = 100;

/// Open connections by client, trusted proxies apart.
#[derive(Debug, Clone)]
pub struct ClientConnections {
    open: Arc<Mutex<HashMap<IpAddr, Vec<Arc<Connection>>>>>,
    limit: usize,
    evicted: Counter,
}

impl ClientConnections {
    /// At most `limit` per client ([`site_of`]). Counts those that are closed to make room.
    pub fn new(limit: usize, evicted: Counter) -> Self {
        Self { open: Arc::default(), limit, evicted }
    }

    /// Counts the connection until the value is dropped. At the limit the client's longest idle
    /// connection is closed for it; `None` when none of them is idle.
    pub fn try_add(&self, connection: &Arc<Connection>) -> Option<ClientConnection> {
        let client = site_of(connection.peer.ip());
        let mut open = self.lock();
        let of_client = open.entry(client).or_default();
        if of_client.len() >= self.limit {
            let idle = of_client
                .iter()
                .enumerate()
                .filter_map(|(at, connection)| Some((connection.idle_since()?, at)));
            let (_, longest) = idle.min()?;
            of_client.swap_remove(longest).evict();
            self.evicted.increase();
        }
        of_client.push(Arc::clone(connection));
        Some(ClientConnection { all: self.clone(), connection: Arc::clone(connection) })
    }

    /// Closes the longest idle connections, at least one, if there are any.
    pub fn evict_idle(&self) {
        let open = self.lock();
        let all = open.values().map(Vec::len).sum::<usize>();
        let mut idle: Vec<_> = open
            .values()
            .flatten()
            .filter_map(|connection| Some((connection.idle_since()?, connection)))
            .collect();
        let count = (all / EVICTED_SHARE).max(1).min(idle.len());
        if count < idle.len() {
            idle.select_nth_unstable_by_key(count, |(since, _)| *since);
        }
        idle[..count].iter().for_each(|(_, connection)| connection.evict());
        self.evicted.add(count as u64);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Vec<Arc<Connection>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct ClientConnection {
    all: ClientConnections,
    connection: Arc<Connection>,
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let client = site_of(self.connection.peer.ip());
        let mut open = self.all.lock();
        if let Some(of_client) = open.get_mut(&client) {
            of_client.retain(|other| !Arc::ptr_eq(other, &self.connection));
            if of_client.is_empty() {
                open.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(peer: &str) -> Arc<Connection> {
        Connection::new(format!("{peer}:5000").parse().unwrap(), false)
    }

    #[test]
    fn the_longest_idle_connection_of_a_client_makes_room() {
        let clients = ClientConnections::new(2, Counter::default());
        let [busy, idle, next, other] =
            ["203.0.113.1", "203.0.113.1", "[::ffff:203.0.113.1]", "203.0.113.2"].map(connection);
        busy.admit();
        let places = [&busy, &idle, &other].map(|new| clients.try_add(new).unwrap());
        let _next = clients.try_add(&next).expect("the idle one is closed");
        assert!(idle.is_evicted() && !busy.is_evicted() && !other.is_evicted());
        next.admit();
        assert!(clients.try_add(&connection("203.0.113.1")).is_none(), "none is idle");
        drop(places);
        assert_eq!(clients.lock().values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn one_site_of_ipv6_is_one_client() {
        let clients = ClientConnections::new(1, Counter::default());
        let [first, second, elsewhere] =
            ["[2001:db8::1]", "[2001:db8:0:ff::1]", "[2001:db8:0:100::1]"].map(connection);
        let _places = [&first, &elsewhere, &second].map(|new| clients.try_add(new).unwrap());
        assert!(first.is_evicted() && !elsewhere.is_evicted());
    }

    #[test]
    fn of_all_the_longest_idle_go_first_and_busy_ones_stay() {
        let clients = ClientConnections::new(1_000, Counter::default());
        let all: Vec<_> = (0..250).map(|n| connection(&format!("203.0.113.{n}"))).collect();
        let _places: Vec<_> = all.iter().map(|new| clients.try_add(new).unwrap()).collect();
        all[0].admit();
        clients.evict_idle();
        let evicted: Vec<_> = (0..250).filter(|n| all[*n].is_evicted()).collect();
        assert_eq!(evicted, [1, 2]);
        all[3].admit();
        all[3].wait_for_client(true);
        all[4..].iter().for_each(|connection| connection.admit());
        clients.evict_idle();
        assert!(all[3].is_evicted(), "it does not send its body");
        clients.evict_idle();
        assert_eq!(clients.evicted.value(), 3);
    }
}
