//! The entry spans of a service.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanKind, TraceContextExt, TraceFlags, Tracer as _,
    TracerProvider as _,
};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SdkTracerProvider,
};

use super::calls::HttpRequest;
use super::propagation::{HeadDecision, Propagator};
use super::sampler::Sampler;
use super::scope::Scope;
use super::span::Span;
use super::tail::TailProcessor;

/// The parts that create a pipeline's spans.
#[derive(Debug)]
pub(super) struct Parts {
    pub provider: SdkTracerProvider,
    pub sampler: Sampler,
    /// `None` where nothing is exported: then there are ids and no spans.
    pub tail: Option<TailProcessor>,
    pub propagator: Arc<Propagator>,
}

impl Parts {
    /// The ids of a new span below `parent`, and its sampling decision.
    pub fn new_span(
        &self,
        parent: &Context,
        kind: &SpanKind,
        route: Option<&str>,
    ) -> (SpanContext, SamplingDecision) {
        let above = parent.span();
        let above = above.span_context();
        let ids = RandomIdGenerator::default();
        let trace = if above.is_valid() { above.trace_id() } else { ids.new_trace_id() };
        let decision = self.sampler.decide(parent, trace, kind, route);
        let is_sampled = decision == SamplingDecision::RecordAndSample;
        let flags = TraceFlags::default().with_sampled(is_sampled);
        let state = above.trace_state().clone();
        (SpanContext::new(trace, ids.new_span_id(), flags, false, state), decision)
    }
}

/// A service (one process may run several) as the source of spans.
///
/// Its spans have a remote parent or none. That of a request is built at its end
/// ([`super::DeferredRequest`]); OpenTelemetry's API creates those of named work, and of databases.
/// The other spans below them come from `tracing`.
#[derive(Clone)]
pub struct Service {
    scope: Arc<Scope>,
    parts: Arc<Parts>,
    base: Context,
}

/// Without the pipeline.
impl fmt::Debug for Service {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("Service").field(&self.name()).finish()
    }
}

impl Service {
    /// The service `name`, with the process's pipeline; see [`super::init`].
    pub fn new(name: &'static str) -> Self {
        super::pipeline().service(name)
    }

    pub(super) fn with(parts: Arc<Parts>, service: &'static str, local: Option<Arc<str>>) -> Self {
        let tracer = parts.provider.tracer("tourin");
        let propagator = Arc::clone(&parts.propagator);
        let scope = Arc::new(Scope { service, local, tracer, propagator });
        Self { base: Context::new().with_value(Arc::clone(&scope)), scope, parts }
    }

    /// Sets the address that it listens on, for Zipkin's local endpoint.
    #[must_use]
    pub fn listening(&self, address: SocketAddr) -> Self {
        let local = Some(Arc::from(address.to_string()));
        Self::with(Arc::clone(&self.parts), self.scope.service, local)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.scope.service
    }

    /// The context of background tasks: their spans and log lines belong to this service.
    pub fn context(&self) -> Context {
        self.base.clone()
    }

    /// Runs a background task's future in the context of this service.
    pub fn run<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.base.clone())
    }

    /// A trace that starts here: a timer's or an operator's work. `name` is a few fixed words.
    pub fn work(&self, name: &'static str) -> Span {
        let parent = self.base.with_value(HeadDecision::ByRatio);
        if self.parts.tail.is_none() {
            let (ids, _) = self.parts.new_span(&parent, &SpanKind::Internal, None);
            return Span::found(parent.with_remote_span_context(ids));
        }
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal);
        let span = self.scope.tracer.build_with_context(builder, &parent);
        Span::own(parent.with_span(span))
    }

    /// The context of a request's sender.
    pub(super) fn caller(&self, headers: &HeaderMap, request: &HttpRequest<'_>) -> Context {
        let caller = self.parts.propagator.extract_headers(&self.base, headers);
        if request.unsampled && !caller.has_active_span() {
            return caller.with_value(HeadDecision::Unsampled);
        }
        if !request.sender_decides {
            return caller.with_value(HeadDecision::ByRatio);
        }
        caller
    }

    pub(super) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    pub(super) fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }
}
