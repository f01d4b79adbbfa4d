//! Malformed requests and CONNECT. They never reach the proxy, so their trace, log line, metrics and
//! ids are made here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use tourin_chassis::http::TRACE_RESPONSE_HEADER;
use tourin_chassis::identity::REQUEST_ID_HEADER;
use tourin_chassis::telemetry::{HttpRequest, Service, method_name};

use crate::access_log::{AccessLog, Line};
use crate::metrics::GatewayMetrics;
use crate::response_headers::ResponseHeaders;
use crate::responses::Response;

/// The route's name for requests without a readable path.
const MALFORMED: &str = "malformed";

/// Refuses malformed requests, and traces, logs and counts them.
#[derive(Debug, Clone)]
pub struct MalformedRequests {
    service: Service,
    metrics: Arc<GatewayMetrics>,
    access_log: AccessLog,
    headers: ResponseHeaders,
}

impl MalformedRequests {
    /// Spans are `service`'s, log lines go to the access log, and the refusals have `headers`.
    pub fn new(
        service: Service,
        metrics: Arc<GatewayMetrics>,
        (access_log, headers): (AccessLog, ResponseHeaders),
    ) -> Self {
        Self { service, metrics, access_log, headers }
    }

    /// The refusal, as bytes, of a request whose first byte came at `started`, over TLS or not.
    pub fn refuse(&self, response: Response, is_tls: bool, started: SystemTime) -> Bytes {
        // Nothing of the request is used. CONNECT is recorded as `_OTHER`.
        let method = &Method::CONNECT;
        let request = HttpRequest::new(method, Some(MALFORMED));
        let mut trace = self.service.deferred(&HeaderMap::new(), &request, started);
        let status = response.status.as_u16();
        if let Some(error) = response.refusal_kind() {
            self.metrics.refused(error);
            trace.handle().annotate("refused", &[("error", error)]);
        }
        let took = started.elapsed().unwrap_or_default();
        // Measured from the end of the head, as for all requests; there was no head.
        let answering = Duration::ZERO;
        self.metrics.service.http().observe(MALFORMED, method_name(method), status, answering);

        trace.finish(&request, Some(status));
        let span = trace.handle();
        let _current = span.enter();
        let id = span.trace_id();
        self.access_log.record(&Line {
            time: started.into(),
            method: method_name(method),
            route: MALFORMED,
            service: None,
            status,
            duration: took,
            answered: answering,
            request_bytes: 0,
            response_bytes: 0,
            instance: None,
            tries: 0,
            fallback: None,
            request_id: id.as_deref().unwrap_or("-"),
            trace_id: id.as_deref(),
            error: None,
        });
        let id = id.and_then(|id| HeaderValue::try_from(id).ok());
        let ids = [(REQUEST_ID_HEADER, id), (TRACE_RESPONSE_HEADER, span.trace_response())];
        let with = |response: Response, (name, value): (_, Option<_>)| match value {
            Some(value) => response.with(name, value),
            None => response,
        };
        let response = ids.into_iter().fold(response, with);
        // Without bytes the connection is closed all the same.
        response.to_wire(&self.headers, is_tls).unwrap_or_else(|error| {
            tracing::error!(%error, "a fault in the gateway: a refusal cannot be written");
            Bytes::new()
        })
    }
}
