use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn read(headers: &[(&str, &str)]) -> Context {
    let headers: BTreeMap<&str, &str> = headers.iter().copied().collect();
    Propagator::default().extract_by(&Context::new(), |name| headers.get(name).copied())
}

fn ids_of(context: &Context) -> Option<(String, String, bool)> {
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| {
        (context.trace_id().to_string(), context.span_id().to_string(), context.is_sampled())
    })
}

fn expected(sampled: bool) -> Option<(String, String, bool)> {
    Some((TRACE.to_owned(), SPAN.to_owned(), sampled))
}

#[test]
fn every_format_is_read() {
    let w3c = format!("00-{TRACE}-{SPAN}-01");
    let context = read(&[("traceparent", &w3c), ("tracestate", "vendor=x")]);
    assert_eq!(ids_of(&context), expected(true));
    assert!(context.span().span_context().is_remote());
    assert_eq!(context.span().span_context().trace_state().header(), "vendor=x");
    let later = format!("01-{TRACE}-{SPAN}-00-more");
    assert_eq!(ids_of(&read(&[("traceparent", &later)])), expected(false));

    for (state, sampled) in [("-1", true), ("-d", true), ("-0", false)] {
        let single = format!("{TRACE}-{SPAN}{state}");
        assert_eq!(ids_of(&read(&[("b3", &single)])), expected(sampled), "{single}");
    }
    let with_parent = format!("{TRACE}-{SPAN}-1-{SPAN}");
    assert_eq!(ids_of(&read(&[("b3", &with_parent)])), expected(true));

    let multi = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")];
    assert_eq!(ids_of(&read(&multi)), expected(true));
    let short = [("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")];
    assert_eq!(ids_of(&read(&short)), Some((format!("{SPAN:0>32}"), SPAN.to_owned(), true)));
}

#[test]
fn a_decision_without_ids_differs_from_ids_without_a_decision() {
    let decision = |headers: &[(&str, &str)]| read(headers).get::<HeadDecision>().copied();
    assert_eq!(decision(&[("b3", "0")]), Some(HeadDecision::ForNewTrace(false)));
    assert_eq!(decision(&[("x-b3-sampled", "1")]), Some(HeadDecision::ForNewTrace(true)));
    let deferred = format!("{TRACE}-{SPAN}");
    assert_eq!(decision(&[("b3", &deferred)]), Some(HeadDecision::Deferred));
    assert_eq!(ids_of(&read(&[("b3", &deferred)])), expected(false));
}

#[test]
fn malformed_trace_headers_are_ignored() {
    let zero_trace = format!("00-{}-{SPAN}-01", "0".repeat(32));
    let zero_span = format!("00-{TRACE}-{}-01", "0".repeat(16));
    let upper = format!("00-{}-{SPAN}-01", TRACE.to_uppercase());
    let reserved = format!("ff-{TRACE}-{SPAN}-01");
    let trailing = format!("00-{TRACE}-{SPAN}-01-x");
    let short = format!("00-{SPAN}-{SPAN}-01");
    let sign = format!("00-+{}-{SPAN}-01", &TRACE[1..]);
    for bad in ["", "-", "00", &zero_trace, &zero_span, &upper, &reserved, &trailing, &short, &sign]
    {
        assert_eq!(ids_of(&read(&[("traceparent", bad)])), None, "{bad}");
    }
    let good = format!("{TRACE}-{SPAN}-1");
    // An invalid header of one format does not hide a valid one of another.
    assert_eq!(ids_of(&read(&[("traceparent", "junk"), ("b3", &good)])), expected(true));
    for bad in ["2", "x-y", &format!("{TRACE}-{SPAN}-2"), &format!("{good}-{SPAN}-1")] {
        assert_eq!(ids_of(&read(&[("b3", bad)])), None, "{bad}");
    }
    assert_eq!(ids_of(&read(&[("x-b3-traceid", TRACE)])), None);
}

#[test]
fn two_different_headers_of_one_name_are_ignored() {
    let mut headers = HeaderMap::new();
    headers.append("traceparent", format!("00-{TRACE}-{SPAN}-01").parse().unwrap());
    headers.append("traceparent", HeaderValue::from_bytes(b"\xff").unwrap());
    headers.append("traceparent", format!("00-{TRACE}-{SPAN}-01").parse().unwrap());
    assert!(single(&headers, "traceparent").is_some());
    headers.append("traceparent", format!("00-{TRACE}-{SPAN}-00").parse().unwrap());
    assert_eq!(single(&headers, "traceparent"), None);
}

#[test]
fn tracestate_is_a_list() {
    let mut headers = HeaderMap::new();
    assert_eq!(joined_tracestate(&headers), None);
    for line in
        [b"a=1, b=2".as_slice(), b"\xff=3,c=4", b"Broken,a=5,,d=6,=7", b"e@f=7 ,g=\xec\x84\x9c"]
    {
        headers.append("tracestate", HeaderValue::from_bytes(line).unwrap());
    }
    let joined = joined_tracestate(&headers).unwrap();
    assert_eq!(well_formed_tracestate(&joined), "a=1,b=2,c=4,d=6,e@f=7");
    // Members are dropped from the right, long ones first.
    let long = format!("long={},short=1234567890,", "x".repeat(130));
    let many: Vec<_> = (0..40).map(|n| format!("key-{n}=123456789")).collect();
    let kept = well_formed_tracestate(&format!("{long}{}", many.join(",")));
    assert!(kept.starts_with("short=1234567890,key-0=") && !kept.contains("long"), "{kept}");
    assert!((400..=MAX_TRACESTATE_BYTES).contains(&kept.len()), "{}", kept.len());
}

fn any_context() -> impl Strategy<Value = SpanContext> {
    (1u128.., 1u64.., any::<bool>()).prop_map(|(trace, span, sampled)| {
        let flags = TraceFlags::default().with_sampled(sampled);
        SpanContext::new(trace.into(), span.into(), flags, false, TraceState::default())
    })
}

proptest! {
    #[test]
    fn written_headers_are_read_back(context in any_context()) {
        for format in [Propagation::W3c, Propagation::B3Single, Propagation::B3] {
            let propagator = Propagator::new(&[format], &[format]);
            let mut headers = HashMap::new();
            let written = Context::new().with_remote_span_context(context.clone());
            propagator.inject_context(&written, &mut headers);
            let read = propagator.extract(&headers);
            let (span, expected) = (read.span(), &context);
            let read = span.span_context();
            prop_assert_eq!(read.trace_id(), expected.trace_id());
            prop_assert_eq!(read.span_id(), expected.span_id());
            prop_assert_eq!(read.is_sampled(), expected.is_sampled());
        }
    }

    #[test]
    fn no_input_panics_or_makes_an_invalid_parent(
        values in proptest::collection::vec("(\\PC{0,80}|[0-9a-f-]{0,70})", 8)
    ) {
        let headers: BTreeMap<&str, &str> =
            NAMES.iter().copied().zip(values.iter().map(String::as_str)).collect();
        let context =
            Propagator::default().extract_by(&Context::new(), |name| headers.get(name).copied());
        prop_assert!(!context.has_active_span() || context.span().span_context().is_valid());
    }
}
