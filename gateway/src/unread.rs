//! Requests whose head could not be read, or asks for a tunnel (CONNECT). They never reach the proxy,
//! and are seen all the same: in a trace, a line of the log and the counts, with the ids that every
//! answer has.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use tourin_chassis::http::TRACE_RESPONSE_HEADER;
use tourin_chassis::identity::REQUEST_ID_HEADER;
use tourin_chassis::telemetry::{HttpRequest, Service, method_name};

use crate::answers::Answer;
use crate::metrics::GatewayMetrics;

/// What stands for a route that nobody could read.
const UNREAD: &str = "unread";

/// How a request is seen of which there is no head.
#[derive(Debug, Clone)]
pub struct Unread {
    service: Service,
    metrics: Arc<GatewayMetrics>,
}

impl Unread {
    /// For the gateway as `service`, counted in its `metrics`.
    pub fn new(service: Service, metrics: Arc<GatewayMetrics>) -> Self {
        Self { service, metrics }
    }

    /// The whole refusal of a request that began to come at `started`.
    pub fn refuse(&self, answer: Answer, started: SystemTime) -> Bytes {
        // What came may be anything; nothing of it is taken over. This goes by `_OTHER`.
        let method = &Method::CONNECT;
        let request = HttpRequest::new(method, Some(UNREAD));
        let mut trace = self.service.deferred(&HeaderMap::new(), &request, started);
        let status = answer.status.as_u16();
        if let Some(error) = answer.refusal_kind() {
            self.metrics.refused(error);
            trace.span().annotate("refused", &[("error", error)]);
        }
        let took = started.elapsed().unwrap_or_default();
        // From the head on, as for all requests; there was none.
        let answering = Duration::ZERO;
        self.metrics.service.http().observe(UNREAD, method_name(method), status, answering);

        trace.finish(&request, status, std::iter::empty);
        let span = trace.span();
        let _current = span.enter();
        let id = span.trace_id();
        tracing::info!(
            method = method_name(method),
            route = UNREAD,
            status,
            duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            request_id = id.as_deref().unwrap_or("-"),
            "request"
        );
        let id = id.and_then(|id| HeaderValue::try_from(id).ok());
        let ids = [(REQUEST_ID_HEADER, id), (TRACE_RESPONSE_HEADER, span.trace_response())];
        let with = |answer: Answer, (name, value): (_, Option<_>)| match value {
            Some(value) => answer.with(name, value),
            None => answer,
        };
        ids.into_iter().fold(answer, with).to_wire()
    }
}
