//! Head sampling of traces.
//!
//! A caller's decision holds. A trace that starts here is sampled by its route's ratio, or else by
//! the general one, from its trace id, so that processes with the same ratio agree. Unsampled spans
//! are still recorded where failed and slow requests are to be kept; see [`super::tail`]. Otherwise
//! they cost ids only. A span that repeats earlier ones ([`names::REPEAT`]) is never sampled, but
//! recorded.
//!
//! Requests, events and named work begin a trace. A span within a service that has no parent does
//! not: periodic work (probes, pruning) is not worth a trace.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, ShouldSample,
};

use super::names;
use super::propagation::HeadDecision;
use super::settings::RouteRatio;

/// The sampler of a process.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    pub ratio: f64,
    pub routes: Vec<RouteRatio>,
    /// Whether unsampled spans are recorded until their request's outcome is known.
    pub record_unsampled: bool,
}

impl Sampler {
    /// The decision for a span of `trace` below `parent`.
    pub fn decide(
        &self,
        parent: &Context,
        trace: TraceId,
        kind: &SpanKind,
        route: Option<&str>,
    ) -> SamplingDecision {
        let span = parent.span();
        let above = span.span_context();
        let decision = parent.get::<HeadDecision>();
        let sampled = if above.is_valid() {
            match decision {
                Some(HeadDecision::Deferred) if above.is_remote() => self.by_ratio(trace, route),
                // Not by the trace's id, which the sender chose.
                Some(HeadDecision::ByRatio) if above.is_remote() => {
                    self.by_ratio(RandomIdGenerator::default().new_trace_id(), route)
                }
                // This process dropped its parent.
                _ if !above.is_sampled() && !above.is_remote() && !span.is_recording() => {
                    return SamplingDecision::Drop;
                }
                _ => above.is_sampled(),
            }
        } else {
            match decision {
                Some(HeadDecision::Unsampled) => return SamplingDecision::Drop,
                Some(HeadDecision::ForNewTrace(sampled)) => *sampled,
                None if matches!(kind, SpanKind::Internal | SpanKind::Client) => {
                    return SamplingDecision::Drop;
                }
                _ => self.by_ratio(trace, route),
            }
        };
        match (sampled, self.record_unsampled) {
            (true, _) => SamplingDecision::RecordAndSample,
            (false, true) => SamplingDecision::RecordOnly,
            (false, false) => SamplingDecision::Drop,
        }
    }

    fn by_ratio(&self, trace: TraceId, route: Option<&str>) -> bool {
        let of_route = self.routes.iter().find(|entry| route.is_some_and(|r| entry.matches(r)));
        in_ratio(trace, of_route.map_or(self.ratio, |entry| entry.ratio))
    }
}

/// Decides by the trace id's last eight bytes, which should be random by W3C.
fn in_ratio(trace: TraceId, ratio: f64) -> bool {
    let bytes = trace.to_bytes();
    let low = bytes[8..].iter().fold(0u64, |low, byte| low << 8 | u64::from(*byte));
    // 53 bits: the exact range of a double.
    ((low >> 11) as f64) < ratio * (1u64 << 53) as f64
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        _: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let none = Context::new();
        let parent = parent.unwrap_or(&none);
        let attribute = |name| attributes.iter().find(|pair| pair.key.as_str() == name);
        let route = attribute(names::HTTP_ROUTE).map(|route| route.value.as_str());
        let decision = match self.decide(parent, trace, kind, route.as_deref()) {
            decision if attribute(names::REPEAT).is_none() => decision,
            // Until it is known whether it only repeats earlier ones.
            SamplingDecision::RecordAndSample => SamplingDecision::RecordOnly,
            _ if self.record_unsampled => SamplingDecision::RecordOnly,
            decision => decision,
        };
        SamplingResult {
            decision,
            attributes: Vec::new(),
            trace_state: parent.span().span_context().trace_state().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

    use super::*;

    fn sampler(ratio: f64, record_unsampled: bool) -> Sampler {
        Sampler {
            ratio,
            routes: vec!["/login=1".parse().unwrap(), "/feed*=0".parse().unwrap()],
            record_unsampled,
        }
    }

    fn decide(sampler: &Sampler, parent: &Context, route: &str) -> SamplingDecision {
        let attributes = [KeyValue::new(names::HTTP_ROUTE, route.to_owned())];
        let trace = TraceId::from(7u128);
        sampler.should_sample(Some(parent), trace, "", &SpanKind::Server, &attributes, &[]).decision
    }

    fn caller(sampled: bool) -> Context {
        let flags = TraceFlags::default().with_sampled(sampled);
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from(7u128),
            SpanId::from(7u64),
            flags,
            true,
            TraceState::default(),
        ))
    }

    #[test]
    fn the_ratio_is_kept() {
        for ratio in [0.0, 0.1, 0.5, 1.0] {
            let sampled = (0..20_000u64)
                // An odd multiplier spreads the numbers over all 64 bits.
                .map(|n| TraceId::from(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
                .filter(|trace| in_ratio(*trace, ratio))
                .count();
            let off = (sampled as f64 / 20_000.0 - ratio).abs();
            assert!(off < 0.02, "{ratio}: {sampled} of 20000");
        }
        assert!(in_ratio(TraceId::from(u128::MAX), 1.0));
    }

    #[test]
    fn a_callers_decision_wins_then_the_routes_then_the_ratio() {
        use SamplingDecision::{Drop, RecordAndSample};
        let none = Context::new();
        assert_eq!(decide(&sampler(0.0, false), &none, "/other"), Drop);
        assert_eq!(decide(&sampler(0.0, false), &none, "/login"), RecordAndSample);
        assert_eq!(decide(&sampler(1.0, false), &none, "/feed/x"), Drop);
        assert_eq!(decide(&sampler(0.0, false), &caller(true), "/feed"), RecordAndSample);
        assert_eq!(decide(&sampler(1.0, false), &caller(false), "/login"), Drop);
        let deferred = caller(false).with_value(HeadDecision::Deferred);
        assert_eq!(decide(&sampler(1.0, false), &deferred, "/other"), RecordAndSample);
        let denied = none.with_value(HeadDecision::ForNewTrace(false));
        assert_eq!(decide(&sampler(1.0, false), &denied, "/login"), Drop);
    }

    #[test]
    fn spans_that_start_no_trace_join_the_callers() {
        let internal = |context: Context| context.with_value(HeadDecision::Unsampled);
        assert_eq!(
            decide(&sampler(1.0, true), &internal(Context::new()), "/login"),
            SamplingDecision::Drop
        );
        assert_eq!(
            decide(&sampler(0.0, true), &internal(caller(true)), "/x"),
            SamplingDecision::RecordAndSample
        );
    }

    #[test]
    fn only_requests_events_and_named_work_start_traces() {
        let decide = |context: &Context, kind| {
            sampler(1.0, true).decide(context, TraceId::from(7u128), &kind, None)
        };
        let none = Context::new();
        for kind in [SpanKind::Server, SpanKind::Consumer, SpanKind::Producer] {
            assert_eq!(decide(&none, kind), SamplingDecision::RecordAndSample);
        }
        for kind in [SpanKind::Internal, SpanKind::Client] {
            assert_eq!(decide(&none, kind), SamplingDecision::Drop);
        }
        let work = none.with_value(HeadDecision::ByRatio);
        assert_eq!(decide(&work, SpanKind::Internal), SamplingDecision::RecordAndSample);
        // Nothing below a span that is not recorded is recorded.
        let dropped = Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from(7u128),
            SpanId::from(7u64),
            TraceFlags::default(),
            false,
            TraceState::default(),
        ));
        assert_eq!(decide(&dropped, SpanKind::Client), SamplingDecision::Drop);
    }

    /// A stranger who sets the flag, or chooses an id that every ratio samples, gets no more recorded.
    #[test]
    fn a_stranger_does_not_decide_what_is_sampled() {
        for flag in [false, true] {
            let stranger = caller(flag).with_value(HeadDecision::ByRatio);
            let none = decide(&sampler(0.0, false), &stranger, "/x");
            assert_eq!(none, SamplingDecision::Drop, "flag {flag}");
            let all = decide(&sampler(1.0, false), &stranger, "/x");
            assert_eq!(all, SamplingDecision::RecordAndSample, "flag {flag}");
            // Trace 7 is in every ratio above 0 by its id.
            let some = (0..200).filter(|_| {
                decide(&sampler(0.5, false), &stranger, "/x") == SamplingDecision::RecordAndSample
            });
            assert!((40..160).contains(&some.count()), "flag {flag}");
        }
    }

    #[test]
    fn unsampled_spans_are_recorded_only_where_they_may_be_kept() {
        assert_eq!(
            decide(&sampler(0.0, true), &Context::new(), "/x"),
            SamplingDecision::RecordOnly
        );
    }
}
