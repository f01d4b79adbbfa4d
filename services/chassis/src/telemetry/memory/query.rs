//! Trace search, with the same parameters and meaning as Zipkin's.

use std::collections::BTreeSet;

use super::MemoryStore;
use crate::telemetry::ZipkinSpan;

/// A trace query.
#[derive(Debug, Clone)]
pub struct TraceQuery {
    /// Traces with spans of this service. The next five conditions apply to its spans only.
    pub service: Option<String>,
    /// The name of one of its spans.
    pub span: Option<String>,
    /// A peer: a service that it called or that called it.
    pub remote_service: Option<String>,
    /// `key` or `key=value`, joined by ` and `: a tag, or an annotation's text.
    pub annotations: Vec<(String, Option<String>)>,
    /// Shortest duration in microseconds.
    pub min_duration: Option<u64>,
    /// Longest duration in microseconds.
    pub max_duration: Option<u64>,
    /// Latest start, in milliseconds since 1970.
    pub end_ms: u64,
    /// How far back from there, in milliseconds.
    pub lookback_ms: u64,
    /// The most traces.
    pub limit: usize,
}

impl TraceQuery {
    fn is_of_service(&self, span: &ZipkinSpan) -> bool {
        self.service.is_none() || self.service.as_deref() == service(span)
    }

    /// Each condition may match another span of the service, as in Zipkin.
    fn matches(&self, trace: &[ZipkinSpan]) -> bool {
        let start = start_of(trace) / 1_000;
        if start > self.end_ms || start < self.end_ms.saturating_sub(self.lookback_ms) {
            return false;
        }
        let any = |met: &dyn Fn(&ZipkinSpan) -> bool| {
            trace.iter().any(|span| self.is_of_service(span) && met(span))
        };
        let duration = |span: &ZipkinSpan| {
            let took = span.duration.unwrap_or_default();
            self.min_duration.is_none_or(|least| took >= least)
                && self.max_duration.is_none_or(|most| took <= most)
        };
        any(&duration)
            && self.span.as_ref().is_none_or(|name| any(&|span| span.name.as_ref() == Some(name)))
            && self
                .remote_service
                .as_deref()
                .is_none_or(|name| any(&|span| remote_service(span) == Some(name)))
            && self.annotations.iter().all(|(key, value)| {
                any(&|span| match value {
                    Some(value) => span.tags.get(key) == Some(value),
                    None => {
                        span.tags.contains_key(key)
                            || span.annotations.iter().any(|note| note.value == *key)
                    }
                })
            })
    }
}

pub(super) fn service(span: &ZipkinSpan) -> Option<&str> {
    span.local_endpoint.as_ref()?.service_name.as_deref()
}

pub(super) fn remote_service(span: &ZipkinSpan) -> Option<&str> {
    span.remote_endpoint.as_ref()?.service_name.as_deref()
}

/// When the trace's first span started, in microseconds since 1970.
pub(super) fn start_of(trace: &[ZipkinSpan]) -> u64 {
    trace.iter().filter_map(|span| span.timestamp).min().unwrap_or_default()
}

impl MemoryStore {
    /// The latest traces that match `query`.
    pub fn traces(&self, query: &TraceQuery) -> Vec<Vec<ZipkinSpan>> {
        let mut found = self
            .map_traces(|trace| query.matches(trace).then(|| (start_of(trace), trace.to_vec())));
        found.sort_by_key(|(start, _)| std::cmp::Reverse(*start));
        found.truncate(query.limit);
        found.into_iter().map(|(_, trace)| trace).collect()
    }

    /// Names of the services that have spans.
    pub fn services(&self) -> BTreeSet<String> {
        self.names(|span| service(span).map(str::to_owned))
    }

    /// Names of a service's spans.
    pub fn span_names(&self, of: &str) -> BTreeSet<String> {
        let of = of.to_lowercase();
        self.names(|span| span.name.clone().filter(|_| service(span) == Some(&of)))
    }

    /// Names of the peers of a service's spans.
    pub fn remote_services(&self, of: &str) -> BTreeSet<String> {
        let of = of.to_lowercase();
        self.names(|span| {
            remote_service(span).filter(|_| service(span) == Some(&of)).map(str::to_owned)
        })
    }

    fn names(&self, name: impl Fn(&ZipkinSpan) -> Option<String>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        self.map_traces(|trace| {
            names.extend(trace.iter().filter_map(&name));
            None::<()>
        });
        names
    }
}
