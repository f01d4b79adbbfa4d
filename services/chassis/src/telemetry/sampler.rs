//! Which traces are sampled, decided at their head.
//!
//! A caller's decision holds. A trace that starts here is sampled by its route's ratio, else by the
//! general one, from its trace id, so that processes with the same ratio agree. What is not sampled
//! is recorded nevertheless where failed and slow requests are to be kept; see
//! [`super::processor`]. Where not, it costs ids and nothing else. A span that repeats what others
//! said ([`names::REPEAT`]) is not sampled whatever its trace is, and recorded all the same.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

use super::codec::{Above, CallersDecision};
use super::names;
use super::settings::RouteRatio;

/// The sampler of a process.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    pub ratio: f64,
    pub routes: Vec<RouteRatio>,
    /// Whether unsampled spans are recorded until it is known how their request ended.
    pub record_unsampled: bool,
}

impl Sampler {
    /// What becomes of a span of `trace`. `route` is asked for only where it counts.
    pub fn decide<R: AsRef<str>>(
        &self,
        above: Above<'_>,
        trace: TraceId,
        route: impl FnOnce() -> Option<R>,
    ) -> SamplingDecision {
        let sampled = match (above.span, above.decision) {
            (Some(span), Some(CallersDecision::Deferred)) if span.is_remote() => {
                self.by_ratio(trace, route)
            }
            (Some(span), _) => span.is_sampled(),
            (None, Some(CallersDecision::Unwatched)) => return SamplingDecision::Drop,
            (None, Some(CallersDecision::ForNewTrace(sampled))) => sampled,
            (None, _) => self.by_ratio(trace, route),
        };
        match (sampled, self.record_unsampled) {
            (true, _) => SamplingDecision::RecordAndSample,
            (false, true) => SamplingDecision::RecordOnly,
            (false, false) => SamplingDecision::Drop,
        }
    }

    fn by_ratio<R: AsRef<str>>(&self, trace: TraceId, route: impl FnOnce() -> Option<R>) -> bool {
        let of_route = || {
            let route = route()?;
            self.routes.iter().find(|entry| entry.matches(route.as_ref())).map(|entry| entry.ratio)
        };
        let own = if self.routes.is_empty() { None } else { of_route() };
        in_ratio(trace, own.unwrap_or(self.ratio))
    }
}

/// By the trace id's last eight bytes, which W3C asks to be random.
fn in_ratio(trace: TraceId, ratio: f64) -> bool {
    let bytes = trace.to_bytes();
    let low = bytes[8..].iter().fold(0u64, |low, byte| low << 8 | u64::from(*byte));
    // 53 bits: what a double holds exactly.
    ((low >> 11) as f64) < ratio * (1u64 << 53) as f64
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        _: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let none = Context::new();
        let parent = parent.unwrap_or(&none);
        let route = || {
            let route = attributes.iter().find(|pair| pair.key.as_str() == names::HTTP_ROUTE)?;
            Some(route.value.as_str())
        };
        let span = parent.span();
        let above = Above {
            span: Some(span.span_context()).filter(|above| above.is_valid()),
            decision: parent.get().copied(),
        };
        let repeats = attributes.iter().any(|pair| pair.key.as_str() == names::REPEAT);
        let decision = match self.decide(above, trace, route) {
            // Until it is known whether it says something new.
            SamplingDecision::RecordAndSample if repeats => SamplingDecision::RecordOnly,
            decision => decision,
        };
        SamplingResult {
            decision,
            attributes: Vec::new(),
            trace_state: above.span.map(|above| above.trace_state().clone()).unwrap_or_default(),
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
        let deferred = caller(false).with_value(CallersDecision::Deferred);
        assert_eq!(decide(&sampler(1.0, false), &deferred, "/other"), RecordAndSample);
        let denied = none.with_value(CallersDecision::ForNewTrace(false));
        assert_eq!(decide(&sampler(1.0, false), &denied, "/login"), Drop);
    }

    #[test]
    fn what_is_unwatched_joins_traces_and_starts_none() {
        let unwatched = |context: Context| context.with_value(CallersDecision::Unwatched);
        assert_eq!(
            decide(&sampler(1.0, true), &unwatched(Context::new()), "/login"),
            SamplingDecision::Drop
        );
        assert_eq!(
            decide(&sampler(0.0, true), &unwatched(caller(true)), "/x"),
            SamplingDecision::RecordAndSample
        );
    }

    #[test]
    fn unsampled_spans_are_recorded_only_where_they_may_be_kept() {
        assert_eq!(
            decide(&sampler(0.0, true), &Context::new(), "/x"),
            SamplingDecision::RecordOnly
        );
    }
}
