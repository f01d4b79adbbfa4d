//! Open streams: WebSockets and server-sent events, which last longer than a request.
//!
//! A stream holds no permit of the concurrent requests and has no deadline. Instead it is counted here,
//! per client and in all, and it ends when nothing has passed in either direction for the idle time.
//! It also ends when the gateway stops, and when the session that opened it has ended: its token was
//! checked only once, at the beginning.
//!
//! The stream of the connection does the closing (`connection::open_stream`), since it alone sees where
//! a frame ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use pingora::proxy::Session;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tourin_chassis::identity::Subject;
use tourin_chassis::metrics::{CounterBy, Metrics};

use crate::limits::site_of;
use crate::messages;
use crate::responses::Response;
use crate::timed_connector::ReadDeadline;
use crate::websocket;

/// How often open streams are compared with the ended sessions.
const SESSIONS_EVERY: Duration = Duration::from_millis(500);

/// Settings of streams.
#[derive(Debug, Clone, Copy, Args)]
pub struct StreamSettings {
    /// Milliseconds after which a WebSocket or a stream of events is closed because nothing has passed
    /// in either direction, unless the route has its own `stream_idle_timeout_ms`
    #[arg(long, env = "TOURIN_GATEWAY_STREAM_IDLE_MS", value_name = "MS", default_value_t = 120_000, value_parser = value_parser!(u64).range(1..=86_400_000))]
    pub stream_idle_ms: u64,
    /// WebSockets and streams of events held at once; more are answered 503
    #[arg(long, env = "TOURIN_GATEWAY_MAX_STREAMS", value_name = "N", default_value_t = 4_096, value_parser = value_parser!(u32).range(1..))]
    pub max_streams: u32,
    /// WebSockets and streams of events of one client (IPv4 address, IPv6 /56) held at once; more are
    /// answered 429
    #[arg(long, env = "TOURIN_GATEWAY_MAX_STREAMS_PER_CLIENT", value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..))]
    pub max_streams_per_client: u32,
}

/// The only protocol that a route can name in `upgrade`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upgrade {
    /// RFC 6455.
    Websocket,
}

/// What a route says of streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamPolicy {
    /// The protocol to which its requests upgrade; other requests are refused.
    pub upgrade: Option<Upgrade>,
    /// Whether a response of the type `text/event-stream` has no deadline.
    pub events: bool,
    /// The idle time, when not the gateway's default.
    pub idle_timeout: Option<Duration>,
}

impl StreamPolicy {
    /// Whether its requests may become streams.
    pub fn allows_streams(&self) -> bool {
        self.upgrade.is_some() || self.events
    }
}

/// The kinds of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Frames in both directions.
    WebSocket,
    /// A response of the type `text/event-stream`.
    Events,
}

impl StreamKind {
    const ALL: [Self; 2] = [Self::WebSocket, Self::Events];

    /// The label in metrics and spans.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Events => "events",
        }
    }
}

/// Why the gateway closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseReason {
    /// Client or service ended it.
    Ended = 0,
    /// The gateway stops.
    Shutdown = 1,
    /// Its session has ended.
    SessionEnded = 2,
    /// Nothing has passed for the idle time.
    Idle = 3,
}

impl CloseReason {
    fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Shutdown => "shutdown",
            Self::SessionEnded => "session_ended",
            Self::Idle => "idle",
        }
    }

    /// The status of a WebSocket's Close frame (RFC 6455, 7.4.1): going away, or policy violation.
    pub fn status(self) -> u16 {
        if self == Self::SessionEnded { 1008 } else { 1001 }
    }
}

/// By which a stream is asked to close.
#[derive(Debug, Default)]
pub struct StreamControl {
    closing: CancellationToken,
    reason: AtomicU8,
}

impl StreamControl {
    /// Asks it to close. The first reason counts.
    pub fn close(&self, reason: CloseReason) {
        self.note(reason);
        self.closing.cancel();
    }

    /// Notes why it ends, unless that is known.
    fn note(&self, reason: CloseReason) {
        let first = CloseReason::Ended as u8;
        let _ =
            self.reason.compare_exchange(first, reason as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Cancelled when it is to close.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Why it closes.
    pub fn reason(&self) -> CloseReason {
        match self.reason.load(Ordering::Relaxed) {
            1 => CloseReason::Shutdown,
            2 => CloseReason::SessionEnded,
            3 => CloseReason::Idle,
            _ => CloseReason::Ended,
        }
    }
}

/// An open stream, as the connection gets it.
#[derive(Debug, Clone)]
pub struct StreamHandle {
    /// What passes.
    pub kind: StreamKind,
    /// How long nothing may pass.
    pub idle_timeout: Duration,
    /// By which it is closed.
    pub control: Arc<StreamControl>,
}

#[derive(Debug)]
struct Entry {
    client: IpAddr,
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    kind: StreamKind,
    at: Instant,
    session: Option<String>,
    control: Arc<StreamControl>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: HashMap<u64, Entry>,
    by_client: HashMap<IpAddr, u32>,
    stopping: bool,
}

/// All streams, open or about to be.
#[derive(Debug, Clone)]
pub struct OpenStreams {
    state: Arc<Mutex<State>>,
    settings: StreamSettings,
    opened: CounterBy,
    closed: CounterBy,
}

impl OpenStreams {
    /// None yet. Registers the metrics.
    pub fn new(settings: StreamSettings, metrics: &Metrics) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (now, busiest) = (Arc::clone(&state), Arc::clone(&state));
        metrics.gauges_read(
            "tourin_gateway_streams",
            "WebSockets and event streams open",
            move || {
                let state = lock(&now);
                let opened = || state.entries.values().filter_map(|entry| entry.opened.as_ref());
                let count = |kind| opened().filter(|opened| opened.kind == kind).count();
                StreamKind::ALL
                    .map(|kind| (vec![("kind", kind.name().to_owned())], count(kind) as f64))
                    .to_vec()
            },
        );
        metrics.gauge_read(
            "tourin_gateway_streams_of_busiest_client",
            "WebSockets and event streams of the client that has most of them",
            move || Some(lock(&busiest).by_client.values().copied().max().unwrap_or(0).into()),
        );
        Self {
            state,
            settings,
            opened: metrics.counter_by(
                "tourin_gateway_streams_opened",
                "WebSockets and event streams that were opened",
                "kind",
            ),
            closed: metrics.counter_by(
                "tourin_gateway_streams_closed",
                "WebSockets and event streams that were closed, by the reason",
                "reason",
            ),
        }
    }

    /// Checks a request of a route that allows streams, and counts it for its client. `None` if the
    /// route allows none.
    ///
    /// # Errors
    /// The refusal of what is no handshake where one is needed, or at a limit.
    pub fn admit(
        &self,
        policy: &StreamPolicy,
        session: &Session,
        client: IpAddr,
        response_deadline: Instant,
    ) -> Result<Option<StreamPlace>, Response> {
        if policy.upgrade.is_some() {
            let is_http1 = session.as_http1().is_some();
            websocket::check_handshake(session.req_header(), is_http1)?;
        }
        if !policy.allows_streams() {
            return Ok(None);
        }
        let mut state = lock(&self.state);
        if state.stopping || state.entries.len() >= self.settings.max_streams as usize {
            return Err(Response::unavailable(messages::too_many_streams()));
        }
        let client = site_of(client);
        let of_client = state.by_client.entry(client).or_default();
        if *of_client >= self.settings.max_streams_per_client {
            return Err(Response::client_has_too_many_streams());
        }
        *of_client += 1;
        let id = state.next;
        state.next += 1;
        state.entries.insert(id, Entry { client, opened: None });
        let default = Duration::from_millis(self.settings.stream_idle_ms);
        let idle_timeout = policy.idle_timeout.unwrap_or(default);
        let all = self.clone();
        let (reads, control) = (Arc::default(), None);
        Ok(Some(StreamPlace { all, id, idle_timeout, response_deadline, reads, control }))
    }

    /// Asks every stream to close, and those that open later.
    pub fn close_all(&self) {
        let mut state = lock(&self.state);
        state.stopping = true;
        for opened in state.entries.values().filter_map(|entry| entry.opened.as_ref()) {
            opened.control.close(CloseReason::Shutdown);
        }
    }

    /// Closes the streams of sessions that have ended, until `stop`. `has_ended` gets the session and when its
    /// stream was opened.
    pub async fn follow(&self, has_ended: impl Fn(&str, Instant) -> bool, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SESSIONS_EVERY) => {}
            }
            let state = lock(&self.state);
            for opened in state.entries.values().filter_map(|entry| entry.opened.as_ref()) {
                let session = opened.session.as_deref();
                if session.is_some_and(|session| has_ended(session, opened.at)) {
                    opened.control.close(CloseReason::SessionEnded);
                }
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A counted stream, which may not have been opened yet. Dropping it takes it out of the count.
#[derive(Debug)]
pub struct StreamPlace {
    all: OpenStreams,
    id: u64,
    /// How long nothing may pass.
    pub idle_timeout: Duration,
    /// The exchange's deadline if its response begins no stream.
    pub response_deadline: Instant,
    /// Bounds the waits for its instance, over HTTP/2.
    pub reads: Arc<ReadDeadline>,
    control: Option<Arc<StreamControl>>,
}

impl StreamPlace {
    /// Opens it, for the session of `subject`.
    pub fn open(&mut self, kind: StreamKind, subject: &Subject) -> StreamHandle {
        let control = Arc::new(StreamControl::default());
        let session = match subject {
            Subject::Member { session, .. } => Some(session.clone()),
            Subject::Visitor { .. } => None,
        };
        let mut state = lock(&self.all.state);
        if state.stopping {
            control.close(CloseReason::Shutdown);
        }
        if let Some(entry) = state.entries.get_mut(&self.id) {
            let (at, control) = (Instant::now(), Arc::clone(&control));
            entry.opened = Some(Opened { kind, at, session, control });
        }
        drop(state);
        self.all.opened.increase(kind.name());
        self.control = Some(Arc::clone(&control));
        StreamHandle { kind, idle_timeout: self.idle_timeout, control }
    }

    /// Notes that it ends because nothing has come from the service for the idle time; `false` if it has not
    /// been opened.
    pub fn end_idle(&self) -> bool {
        let Some(control) = &self.control else { return false };
        control.note(CloseReason::Idle);
        true
    }

    /// Whether the gateway closes it.
    pub fn is_closing(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.closing().is_cancelled())
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut state = lock(&self.all.state);
        let Some(entry) = state.entries.remove(&self.id) else { return };
        if let Some(count) = state.by_client.get_mut(&entry.client) {
            *count -= 1;
            if *count == 0 {
                state.by_client.remove(&entry.client);
            }
        }
        drop(state);
        if let Some(opened) = entry.opened {
            self.all.closed.increase(opened.control.reason().name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(metrics: &Metrics, max: u32, per_client: u32) -> OpenStreams {
        let settings = StreamSettings {
            stream_idle_ms: 1_000,
            max_streams: max,
            max_streams_per_client: per_client,
        };
        OpenStreams::new(settings, metrics)
    }

    fn place(streams: &OpenStreams, client: &str) -> StreamPlace {
        let client: IpAddr = client.parse().unwrap();
        let mut state = lock(&streams.state);
        let id = state.next;
        state.next += 1;
        *state.by_client.entry(site_of(client)).or_default() += 1;
        state.entries.insert(id, Entry { client: site_of(client), opened: None });
        drop(state);
        let idle_timeout = Duration::from_secs(1);
        let (all, response_deadline) = (streams.clone(), Instant::now());
        let (reads, control) = (Arc::default(), None);
        StreamPlace { all, id, idle_timeout, response_deadline, reads, control }
    }

    fn member(session: &str) -> Subject {
        Subject::Member { id: "m".to_owned(), session: session.to_owned(), roles: Vec::new() }
    }

    #[test]
    fn streams_are_counted_by_kind_and_client_and_by_the_reason_of_their_end() {
        let metrics = Metrics::new("gateway");
        let streams = streams(&metrics, 10, 10);
        let mut one = place(&streams, "203.0.113.1");
        let mut two = place(&streams, "203.0.113.1");
        let handle = one.open(StreamKind::WebSocket, &member("s1"));
        assert_eq!(handle.idle_timeout, Duration::from_secs(1));
        let has = |line: &str| {
            let text = metrics.render();
            assert!(text.contains(line), "{line} is not in\n{text}");
        };
        has(r#"tourin_gateway_streams{kind="websocket"} 1"#);
        has(r#"tourin_gateway_streams{kind="events"} 0"#);
        has("tourin_gateway_streams_of_busiest_client 2");
        streams.close_all();
        assert!(handle.control.closing().is_cancelled());
        let late = two.open(StreamKind::Events, &member("s2"));
        assert!(late.control.closing().is_cancelled(), "opened while the gateway stops");
        drop((one, two));
        has(r#"tourin_gateway_streams_closed_total{reason="shutdown"} 2"#);
        has("tourin_gateway_streams_of_busiest_client 0");
        assert!(lock(&streams.state).by_client.is_empty());
    }

    #[test]
    fn the_first_reason_counts() {
        let control = StreamControl::default();
        assert_eq!(control.reason(), CloseReason::Ended);
        control.close(CloseReason::SessionEnded);
        control.close(CloseReason::Shutdown);
        assert_eq!(
            (control.reason(), control.reason().status()),
            (CloseReason::SessionEnded, 1008)
        );
    }
}
