//! The graph of services, computed from traces by the rules of Zipkin's dependency linker: a
//! server's own name takes precedence over the client's name for it, work inside a service is
//! skipped, and a broker stands between producers and consumers.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::MemoryStore;
use super::query::{remote_service, service, start_of};
use crate::telemetry::ZipkinSpan;

/// Calls from one service to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The caller.
    pub parent: String,
    /// The called service.
    pub child: String,
    /// The number of calls.
    pub call_count: u64,
    /// The number of failed calls.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub error_count: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Default)]
struct Links(BTreeMap<(String, String), (u64, u64)>);

impl Links {
    fn add(&mut self, parent: &str, child: &str, failed: bool) {
        let counts = self.0.entry((parent.to_owned(), child.to_owned())).or_default();
        counts.0 += 1;
        counts.1 += u64::from(failed);
    }
}

fn kind(span: &ZipkinSpan) -> Option<&str> {
    span.kind.as_deref()
}

fn failed(span: &ZipkinSpan) -> bool {
    span.tags.contains_key("error")
}

fn add_trace(links: &mut Links, trace: &[ZipkinSpan]) {
    let by_id: HashMap<&str, &ZipkinSpan> =
        trace.iter().map(|span| (span.id.as_str(), span)).collect();
    let above = |span: &ZipkinSpan| span.parent_id.as_deref().and_then(|id| by_id.get(id).copied());
    for span in trace {
        let is_parent = || trace.iter().any(|s| s.parent_id.as_deref() == Some(&span.id));
        let (own, other) = (service(span), remote_service(span));
        let (mut from, to) = match kind(span) {
            Some("SERVER" | "CONSUMER") => (other, own),
            Some("CLIENT") if is_parent() => continue, // Its server's span tells.
            Some("CLIENT" | "PRODUCER") => (own, other),
            None if own.is_some() && other.is_some() => (own, other),
            _ => continue,
        };
        let mut with_error = failed(span);
        if !matches!(kind(span), Some("PRODUCER" | "CONSUMER")) {
            // Bounded by the trace's length, in case ids form a ring.
            let ancestor = std::iter::successors(above(span), |span| above(span))
                .take(trace.len())
                .find(|span| kind(span).is_some());
            if let Some(ancestor) = ancestor
                && let Some(name) = service(ancestor)
            {
                if kind(span) != Some("SERVER")
                    && let Some(own) = own
                    && own != name
                {
                    links.add(name, own, false);
                }
                if kind(span) == Some("SERVER") || from.is_none() {
                    from = Some(name);
                }
                let is_call = kind(ancestor) == Some("CLIENT")
                    && span.parent_id.as_deref() == Some(&ancestor.id);
                with_error |= is_call && failed(ancestor);
            }
        }
        if let (Some(from), Some(to)) = (from, to) {
            links.add(from, to, with_error);
        }
    }
}

impl MemoryStore {
    /// Calls in the traces that started in the `lookback_ms` before `end_ms`.
    pub fn dependencies(&self, end_ms: u64, lookback_ms: u64) -> Vec<Link> {
        let mut links = Links::default();
        self.map_traces(|trace| {
            let start = start_of(trace) / 1_000;
            if start <= end_ms && start >= end_ms.saturating_sub(lookback_ms) {
                add_trace(&mut links, trace);
            }
            None::<()>
        });
        let link = |((parent, child), (call_count, error_count))| Link {
            parent,
            child,
            call_count,
            error_count,
        };
        links.0.into_iter().map(link).collect()
    }
}
