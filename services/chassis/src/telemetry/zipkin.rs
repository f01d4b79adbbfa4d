//! Zipkin's v2 JSON, by `opentelemetry-zipkin`, with what that crate leaves out: the local and the
//! remote endpoint, and the attributes of annotations. The crate passes its body to an HTTP client
//! in this module. Besides, `propagation.rs` reads B3 by it; docs/decisions/0009-spans.md says what can
//! replace both.

#![allow(deprecated, reason = "decision 9 says until when the crate is used")]

use std::fmt::Write as _;
use std::net::SocketAddr;

use async_trait::async_trait;
use opentelemetry::trace::Event;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::collector::Collector;
use super::memory::MemoryStore;
use super::names;
use super::zipkin_span::{Endpoint, ZipkinSpan};

/// The tag with a failure's reason; present if and only if the span failed.
const ERROR: &str = "error";

/// The destination of spans.
#[derive(Debug)]
pub(super) enum Receiver {
    Collector(Collector),
    /// It accepts the body for a Zipkin server, so that there is one conversion.
    Memory(MemoryStore),
}

/// Exports spans to `Receiver`.
#[derive(Debug)]
pub(super) struct ZipkinExporter(opentelemetry_zipkin::ZipkinExporter);

impl ZipkinExporter {
    /// # Errors
    /// When the collector's URL is invalid.
    pub fn new(receiver: Receiver) -> Result<Self, String> {
        let url = match &receiver {
            Receiver::Collector(collector) => collector.url().to_owned(),
            Receiver::Memory(_) => "http://memory".to_owned(),
        };
        opentelemetry_zipkin::ZipkinExporter::builder()
            .with_collector_endpoint(url)
            .with_http_client(receiver)
            .build()
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl SpanExporter for ZipkinExporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        for event in batch.iter_mut().flat_map(|span| &mut span.events.events) {
            event.name = annotation_text(event).into();
        }
        self.0.export(batch).await
    }
}

/// An event as one line of text: `retry attempt=2 reason=connect_refused`.
fn annotation_text(event: &Event) -> String {
    let mut text = event.name.to_string();
    for pair in &event.attributes {
        // Writing to a String does not fail.
        let _written = write!(text, " {}={}", pair.key, pair.value);
    }
    text
}

#[async_trait]
impl HttpClient for Receiver {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut spans: Vec<ZipkinSpan> = serde_json::from_slice(request.body())?;
        spans.iter_mut().for_each(complete);
        match self {
            Self::Collector(collector) => {
                let body = serde_json::to_vec(&spans)?;
                collector.send_bytes(request.map(|_| body.into())).await
            }
            Self::Memory(store) => {
                store.insert(spans);
                Ok(Response::new(Bytes::new()))
            }
        }
    }
}

/// Moves names and addresses to Zipkin's endpoints, and removes the crate's extra tags.
fn complete(span: &mut ZipkinSpan) {
    span.parent_id.take_if(|parent| parent.bytes().all(|digit| digit == b'0'));
    span.name = span.name.take().map(|name| name.to_lowercase());
    span.duration = span.duration.map(|took| took.max(1));
    let tags = &mut span.tags;
    let local = tags.remove(names::LOCAL).and_then(|at| at.parse::<SocketAddr>().ok());
    span.local_endpoint = Endpoint {
        service_name: tags.remove(names::SERVICE).map(|name| name.to_lowercase()),
        port: local.map(|at| at.port()),
        ..Endpoint::default()
    }
    // The wildcard address is not an endpoint.
    .at(local.map(|at| at.ip()).filter(|ip| !ip.is_unspecified()))
    .filled();
    let system = || tags.get(names::DB_SYSTEM).or_else(|| tags.get(names::MESSAGING_SYSTEM));
    let peer = tags.get(names::PEER_SERVICE).or_else(system).map(|name| name.to_lowercase());
    let peer_ip = tags.get(names::SERVER_ADDRESS).and_then(|ip| ip.parse().ok());
    let peer_port = tags.get(names::SERVER_PORT).filter(|_| peer_ip.is_some());
    span.remote_endpoint = Endpoint {
        service_name: peer,
        port: peer_port.and_then(|port| port.parse().ok()),
        ..Endpoint::default()
    }
    .at(peer_ip)
    .filled();
    tags.retain(|name, _| name == ERROR || names::EXPORTED.contains(&name.as_str()));
}

#[cfg(test)]
pub(super) mod tests;
