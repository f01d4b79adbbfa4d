//! The moment when an exchange becomes a stream: its response's head.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

use crate::context::{Admitted, RequestContext};
use crate::streams::{StreamKind, Upgrade};
use crate::timed_connector::TimedConnector;
use crate::upgrade_connector::UpgradeConnector;
use crate::websocket;

/// A deadline that is never reached.
const NO_DEADLINE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Bounds the silence of an instance on the connection to it, where a stream may come of it; `wait` is for
/// the response's head.
///
/// A WebSocket's silence is bounded on the client's side, where both directions pass, and the wait for its
/// handshake's response by the exchange's deadline. It has a connection of its own, which is not kept if the
/// service refuses. So has a client's request over HTTP/2, where that connection bounds the wait
/// ([`crate::timed_connector`]).
pub fn prepare(admitted: &Admitted, is_http2: bool, wait: Duration, peer: &mut HttpPeer) {
    let Some(place) = &admitted.stream else { return };
    let options = &mut peer.options;
    let upgrades = admitted.route.streams.upgrade.is_some();
    if upgrades || is_http2 {
        // No other request can be given it, not even in the moment until it is closed.
        peer.group_key = rand::random();
        options.idle_timeout = Some(Duration::ZERO);
    }
    if upgrades {
        options.custom_l4 = Some(Arc::new(UpgradeConnector));
        (options.read_timeout, options.write_timeout) = (None, None);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
    } else {
        options.read_timeout = Some(wait.max(place.idle_timeout));
        if is_http2 {
            place.reads.set(Some(admitted.deadline.into()));
            options.custom_l4 = Some(Arc::new(TimedConnector(Arc::clone(&place.reads))));
        }
    }
}

/// Whether the response's head is an interim one, after which another head comes.
pub fn is_interim(response: &ResponseHeader) -> bool {
    response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Opens the stream if the response begins one: a WebSocket, or events where the route allows them. From
/// then on the exchange has no deadline, and its permits are given back.
///
/// # Errors
/// Pingora's, which the headers set here do not cause.
pub fn open(
    session: &mut Session,
    response: &mut ResponseHeader,
    ctx: &mut RequestContext,
) -> pingora::Result<()> {
    let Some(admitted) = &mut ctx.admitted else { return Ok(()) };
    let kind = kind_of(response, admitted);
    let Some(place) = &mut admitted.stream else { return Ok(()) };
    let Some(kind) = kind else {
        if !is_interim(response) {
            admitted.deadline = place.response_deadline;
            place.reads.set(Some(admitted.deadline.into()));
            if let Some(connection) = &ctx.connection {
                connection.end_by(admitted.deadline.into());
            }
            admitted.stream = None;
        }
        return Ok(());
    };
    let handle = place.open(kind, &admitted.subject);
    place.reads.set(None);
    admitted.deadline = Instant::now() + NO_DEADLINE;
    admitted.permit = None;
    admitted.of_client = None;
    admitted.body_memory = None;
    // What a WebSocket's client sends is a body to Pingora.
    admitted.body_limit = u64::MAX;
    // Over HTTP/1 the connection bounds the silence, of both directions together. Over HTTP/2 it does not see
    // that a client reads nothing.
    let write_timeout = session.is_http2().then_some(handle.idle_timeout);
    session.set_read_timeout(None);
    session.set_write_timeout(write_timeout);
    if let Some(connection) = &ctx.connection {
        connection.open_stream(handle);
    }
    if let Some(attempt) = ctx.open_attempt() {
        attempt.becomes_stream();
    }
    ctx.span().annotate("stream_opened", &[("kind", kind.name())]);
    if kind == StreamKind::WebSocket { websocket::confirm(response) } else { Ok(()) }
}

fn kind_of(response: &ResponseHeader, admitted: &Admitted) -> Option<StreamKind> {
    let policy = &admitted.route.streams;
    match response.status {
        StatusCode::SWITCHING_PROTOCOLS => {
            policy.upgrade.map(|Upgrade::Websocket| StreamKind::WebSocket)
        }
        status if status.is_success() && policy.events && is_event_stream(&response.headers) => {
            Some(StreamKind::Events)
        }
        _ => None,
    }
}

/// Whether a response is a stream of events, whose parts must reach the client at once.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return false };
    let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_known_by_their_type() {
        let is = |kind: &'static str| {
            let value = http::HeaderValue::from_static(kind);
            is_event_stream(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        assert!(is("text/event-stream") && is("Text/Event-Stream; charset=utf-8"));
        assert!(!is("text/event-streams") && !is("text/plain") && !is(""));
    }
}
