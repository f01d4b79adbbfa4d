//! The attributes of requests and calls on their spans.

use std::net::SocketAddr;

use http::Method;
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanBuilder, SpanKind};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::names;

/// A method's name, for spans and labels. An unknown method is a client's own text and becomes
/// `_OTHER`.
pub fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

fn peer(service: &str, address: Option<SocketAddr>) -> impl Iterator<Item = KeyValue> {
    let address = address.into_iter().flat_map(|address| {
        [
            KeyValue::new(names::SERVER_ADDRESS, address.ip().to_string()),
            KeyValue::new(names::SERVER_PORT, i64::from(address.port())),
        ]
    });
    [KeyValue::new(names::PEER_SERVICE, service.to_owned())].into_iter().chain(address)
}

/// An incoming request.
#[derive(Debug, Clone)]
pub struct HttpRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The template of its route, if it has one.
    pub route: Option<&'a str>,
    /// Whether it joins a caller's trace but starts none, as the mesh's own heartbeats and long
    /// polls.
    pub unsampled: bool,
    /// Whether the sender's sampling decision counts. A stranger's does not: it could have all its
    /// requests recorded, or none. Its trace id is kept in either case.
    pub sender_decides: bool,
    /// Why its response is only a substitute, whatever its status says.
    pub degraded: Option<&'static str>,
}

impl<'a> HttpRequest<'a> {
    /// A request for `route`.
    pub fn new(method: &'a Method, route: Option<&'a str>) -> Self {
        Self { method, route, unsampled: false, sender_decides: true, degraded: None }
    }

    pub(super) fn name(&self) -> String {
        let method = method_name(self.method);
        self.route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
    }

    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let method = KeyValue::new(names::HTTP_METHOD, method_name(self.method));
        let route = self.route.map(|route| KeyValue::new(names::HTTP_ROUTE, route.to_owned()));
        let degraded = self.degraded.map(|reason| KeyValue::new(names::DEGRADED, reason));
        [method].into_iter().chain(route).chain(degraded).collect()
    }
}

/// A request to another service.
#[derive(Debug, Clone)]
pub struct HttpCall<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The template of its route, without ids.
    pub route: &'a str,
    /// The called service's name in the mesh.
    pub service: &'a str,
    /// The called instance's id, if one was chosen.
    pub instance: Option<&'a str>,
    /// The called instance's address.
    pub address: Option<SocketAddr>,
    /// 0 for the first try, 1 for the first retry, and so on.
    pub resend_count: u32,
}

impl HttpCall<'_> {
    pub(super) fn name(&self) -> String {
        format!("{} {}", method_name(self.method), self.route)
    }

    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes: Vec<_> = peer(self.service, self.address).collect();
        attributes.push(KeyValue::new(names::HTTP_METHOD, method_name(self.method)));
        attributes.push(KeyValue::new(names::HTTP_ROUTE, self.route.to_owned()));
        let instance = self.instance.map(|id| KeyValue::new(names::INSTANCE, id.to_owned()));
        attributes.extend(instance);
        if self.resend_count > 0 {
            attributes.push(KeyValue::new(names::HTTP_RESEND, i64::from(self.resend_count)));
        }
        attributes
    }

    /// A `tracing` span.
    pub(super) fn span(&self) -> tracing::Span {
        let name = self.name();
        let span =
            tracing::info_span!(parent: None, "call", otel.kind = "client", otel.name = name);
        for KeyValue { key, value, .. } in self.attributes() {
            span.set_attribute(key, value);
        }
        span
    }
}

/// A call to a database or a cache. Never holds the statement, which may contain a user's input.
#[derive(Debug, Clone)]
pub struct DbCall<'a> {
    /// OpenTelemetry's name of the engine: `mysql`, `mariadb`, `sqlite`, `redis`, `mongodb`.
    pub system: &'static str,
    /// The operation, as a fixed word or two: `select`, `zincrby`, `place bookmark`.
    pub operation: &'static str,
    /// The table, collection or kind of key.
    pub collection: &'a str,
}

impl<'a> DbCall<'a> {
    /// A call with the required attributes.
    pub fn new(system: &'static str, operation: &'static str, collection: &'a str) -> Self {
        Self { system, operation, collection }
    }

    pub(super) fn builder(&self) -> SpanBuilder {
        SpanBuilder::from_name(format!("{} {}", self.operation, self.collection))
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new(names::DB_SYSTEM, self.system),
                KeyValue::new(names::DB_OPERATION, self.operation),
                KeyValue::new(names::DB_COLLECTION, self.collection.to_owned()),
            ])
    }
}
