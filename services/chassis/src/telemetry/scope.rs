//! The service that a span or a log line belongs to.

use std::sync::Arc;

use opentelemetry::{Context, KeyValue, StringValue};
use opentelemetry_sdk::trace::SdkTracer;

use super::names;
use super::propagation::Propagator;

/// A service, passed on in the context.
#[derive(Debug)]
pub(super) struct Scope {
    pub service: &'static str,
    /// Where it listens.
    pub local: Option<Arc<str>>,
    /// Begins its spans.
    pub tracer: SdkTracer,
    /// Writes the context of its spans into headers.
    pub propagator: Arc<Propagator>,
}

impl Scope {
    /// The scope of a context, if any.
    pub fn of(context: &Context) -> Option<&Arc<Self>> {
        context.get()
    }

    /// The attributes of every span of the service.
    pub fn attributes(&self) -> impl Iterator<Item = KeyValue> {
        let local = self.local.clone().map(StringValue::from);
        let local = local.map(|local| KeyValue::new(names::LOCAL, local));
        [KeyValue::new(names::SERVICE, self.service)].into_iter().chain(local)
    }
}
