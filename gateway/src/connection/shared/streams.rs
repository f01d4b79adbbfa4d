//! The requests of one HTTP/2 connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Version;
use pingora::http::RequestHeader;
use tokio::time::Instant;
use tourin_chassis::metrics::Counter;

use super::Connection;

/// A request that its client resets within this time was hardly meant: Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`.
const MEANT_AFTER: Duration = Duration::from_secs(1);
/// So many such requests, if they are more than half of all, close the connection. A page that is left
/// while it loads resets its requests too, but hardly so many. Envoy's
/// `overload.premature_reset_total_stream_count` is 500 requests.
const MAX_RESETS: u64 = 100;

/// What the requests of one HTTP/2 connection share.
#[derive(Debug)]
pub struct Streams {
    connection: Arc<Connection>,
    state: Mutex<State>,
    closed: Counter,
}

#[derive(Debug, Default)]
struct State {
    requests: u64,
    /// Reset soon after they came.
    resets: u64,
    /// Requests that do not wait for the client.
    busy: usize,
    /// Those of them that are streams which the gateway closes.
    closing: usize,
}

impl Streams {
    /// Those of `connection`. Counts in `closed` if it is closed for its resets.
    pub fn new(connection: Arc<Connection>, closed: Counter) -> Arc<Self> {
        Arc::new(Self { connection, state: Mutex::default(), closed })
    }

    /// Puts the state of a new request into its head, for [`Connection::of_http2`]: Pingora passes a user
    /// context for HTTP/1 alone.
    pub fn next_request(self: &Arc<Self>, head: &mut RequestHeader) -> Arc<Connection> {
        let request = self.next();
        head.extensions_mut().insert(Arc::clone(&request));
        request
    }

    /// The next request's own state.
    fn next(self: &Arc<Self>) -> Arc<Connection> {
        self.connection.mark_admitted();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).requests += 1;
        let connection = (self.connection.peer, self.connection.is_tls);
        Arc::new(Connection::with(connection, Instant::now(), Some(Arc::clone(self))))
    }

    /// One request more or less waits for the client. The connection waits while all of them do.
    pub(super) fn wait_for_client(&self, waits: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let was_busy = state.busy > 0;
        state.busy = if waits { state.busy.saturating_sub(1) } else { state.busy + 1 };
        if was_busy != (state.busy > 0) {
            self.connection.wait_for_client(waits);
        }
        self.close_if_only_streams(&state);
    }

    /// The gateway closes a stream of this connection.
    pub(super) fn stream_closes(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closing += 1;
        self.close_if_only_streams(&state);
    }

    /// Such a stream has ended.
    pub(super) fn stream_closed(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing -= 1;
    }

    fn close_if_only_streams(&self, state: &State) {
        if state.closing > 0 && state.busy <= state.closing {
            self.connection.evict();
        }
    }

    /// The client has reset a request after this time. Too many of them close the connection: each
    /// costs the client two small frames, and the services a request (CVE-2023-44487).
    pub(super) fn abandoned(&self, after: Duration) {
        if after >= MEANT_AFTER {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.resets += 1;
        let is_flood = state.resets >= MAX_RESETS && state.resets * 2 > state.requests;
        if is_flood && !self.connection.is_evicted() {
            self.connection.evict();
            self.closed.increase();
            tracing::debug!(requests = state.requests, "closed an HTTP/2 connection: resets");
        }
    }
}

impl Connection {
    /// Takes the state of a request over HTTP/2 out of its head; `None` for one over HTTP/1.
    pub fn of_http2(head: &mut RequestHeader) -> Option<Arc<Self>> {
        if head.version == Version::HTTP_2 { head.extensions_mut().remove() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::{CloseReason, StreamControl, StreamHandle, StreamKind};

    fn streams() -> (Arc<Connection>, Arc<Streams>, Counter) {
        let (connection, closed) =
            (Connection::new("203.0.113.9:1".parse().unwrap(), true), Counter::default());
        (Arc::clone(&connection), Streams::new(connection, closed.clone()), closed)
    }

    #[test]
    fn a_connection_is_idle_while_all_its_requests_wait_for_the_client() {
        let (connection, streams, _) = streams();
        assert!(connection.idle_since().is_some());
        let (one, two) = (streams.next(), streams.next());
        assert!(connection.idle_since().is_some(), "neither has been admitted");
        one.admit();
        two.admit();
        assert!(connection.idle_since().is_none());
        one.wait_for_client(true);
        one.wait_for_client(true);
        assert!(connection.idle_since().is_none());
        two.wait_for_client(true);
        assert!(connection.idle_since().is_some());
        two.wait_for_client(false);
        drop(one);
        assert!(connection.idle_since().is_none());
        drop(two);
        assert!(connection.idle_since().is_some());
    }

    #[tokio::test]
    async fn a_connection_ends_once_it_has_none_but_streams_that_close() {
        let (connection, streams, _) = streams();
        let (events, other) = (streams.next(), streams.next());
        events.admit();
        other.admit();
        let control = Arc::new(StreamControl::default());
        let idle_timeout = Duration::from_secs(60);
        let kind = StreamKind::Events;
        events.open_stream(StreamHandle { kind, idle_timeout, control: Arc::clone(&control) });
        control.close(CloseReason::SessionEnded);
        events.stream_closes().await;
        assert!(!connection.is_evicted(), "another request is under way");
        drop(events);
        assert!(!connection.is_evicted(), "it has ended by itself");

        let events = streams.next();
        events.admit();
        events.open_stream(StreamHandle { kind, idle_timeout, control });
        events.stream_closes().await;
        drop(other);
        assert!(connection.is_evicted());
    }

    #[test]
    fn a_flood_of_resets_closes_the_connection() {
        let (connection, streams, closed) = streams();
        let reset = |times: u64, after: Duration| {
            for _ in 0..times {
                let _request = streams.next();
                streams.abandoned(after);
            }
        };
        reset(1_000, MEANT_AFTER);
        assert!(!connection.is_evicted(), "a client may lose patience");
        reset(999, Duration::ZERO);
        assert!(!connection.is_evicted(), "half of the requests were meant");
        reset(2, Duration::ZERO);
        assert!(connection.is_evicted());
        reset(50, Duration::ZERO);
        assert_eq!(closed.value(), 1);
    }
}
