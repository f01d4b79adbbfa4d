use std::time::SystemTime;

use http::Method;

use super::super::memory::{MemoryLimits, MemoryStore};
use super::super::{HttpRequest, Pipeline, Propagation, Service, TraceSettings};
use super::*;

fn service() -> Service {
    Pipeline::start(&TraceSettings::default(), None).unwrap().service("core")
}

fn request(service: &Service, headers: &HeaderMap) -> Span {
    let asked = HttpRequest::new(&Method::GET, Some("/a"));
    service.deferred(headers, &asked, SystemTime::now()).handle().handle()
}

#[test]
fn nothing_of_the_pipeline_shows_with_a_service() {
    assert_eq!(format!("{:?}", service()), "Service(\"core\")");
}

#[test]
fn parts_follow_what_was_decided_for_the_request_however_they_are_reached() {
    let sampled_of = |ratio: f64, header: (&'static str, &'static str), unsampled: bool| {
        let settings = TraceSettings {
            trace_ratio: ratio,
            trace_keep_failed: false,
            trace_slow_ms: 0,
            ..TraceSettings::default()
        };
        let store = MemoryStore::new(MemoryLimits::default());
        let pipeline = Pipeline::start(&settings, Some(store)).unwrap();
        let _spans = pipeline.enter();
        let service = pipeline.service("core");
        let mut headers = HeaderMap::new();
        headers.insert(header.0, HeaderValue::from_static(header.1));
        let mut asked = HttpRequest::new(&Method::GET, Some("/a"));
        asked.unsampled = unsampled;
        let request = service.deferred(&headers, &asked, SystemTime::now());
        let request = request.handle();
        let direct = request.child("direct");
        let found = {
            let _current = request.enter();
            Span::current().child("found")
        };
        let recording = [request, &direct, &found].map(Span::is_recording);
        assert_eq!(recording, [recording[0]; 3]);
        assert_eq!(direct.trace_id(), request.trace_id());
        assert_eq!(found.trace_id(), request.trace_id());
        recording[0]
    };
    let deferred = ("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7");
    assert!(sampled_of(1.0, deferred, false));
    assert!(!sampled_of(0.0, deferred, false));
    assert!(sampled_of(0.0, ("b3", "1"), false));
    assert!(!sampled_of(1.0, ("b3", "0"), false));
    assert!(!sampled_of(1.0, ("accept", "*/*"), true));
    assert!(sampled_of(1.0, ("accept", "*/*"), false));
}

#[test]
fn a_handle_can_be_sent_and_kept() {
    fn is_sendable<T: Send + Sync + 'static>() {}
    is_sendable::<Span>();
    is_sendable::<Service>();
}

#[test]
fn stale_context_of_other_formats_does_not_go_on() {
    let mut headers = HeaderMap::new();
    headers.insert("b3", HeaderValue::from_static("0"));
    headers.insert("x-b3-traceid", HeaderValue::from_static("0000000000000001"));
    headers.insert("accept", HeaderValue::from_static("*/*"));
    request(&service(), &HeaderMap::new()).inject(&mut headers);
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "traceparent"]);
}

#[test]
fn the_formats_that_are_sent_are_those_chosen() {
    let settings = TraceSettings {
        trace_propagation: vec![Propagation::B3, Propagation::B3Single],
        ..TraceSettings::default()
    };
    let service = Pipeline::start(&settings, None).unwrap().service("core");
    let mut headers = BTreeMap::from([("traceparent".to_owned(), "stale".to_owned())]);
    let span = request(&service, &HeaderMap::new());
    span.inject_event(&mut headers);
    let names: Vec<_> = headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["b3", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid"]);
    assert_eq!(headers["x-b3-traceid"], span.trace_id().unwrap());
}

#[tokio::test]
async fn code_in_a_span_sees_the_span_and_its_trace() {
    let span = request(&service(), &HeaderMap::new());
    assert_eq!(current_trace_id(), None);
    let found = span
        .run(async {
            tokio::task::yield_now().await;
            (current_trace_id(), Span::current().child("inner").trace_id())
        })
        .await;
    assert_eq!(found, (span.trace_id(), span.trace_id()));
    assert_eq!(current_trace_id(), None);
}

#[test]
fn the_answers_header_names_trace_and_span() {
    let span = request(&service(), &HeaderMap::new());
    let header = span.trace_response().unwrap();
    let header = header.to_str().unwrap();
    assert!(header.starts_with(&format!("00-{}-", span.trace_id().unwrap())), "{header}");
    assert_eq!(Span::none().trace_response(), None);
    assert_eq!(Span::none().child("x").trace_id(), None);
}

#[tokio::test]
async fn a_services_background_tasks_log_its_name() {
    use crate::shutdown::{Shutdown, Tasks};
    let (service, stop) = (service(), Shutdown::new());
    let tasks = Tasks::new(stop.clone()).of_service(&service);
    let (seen, see) = tokio::sync::oneshot::channel();
    tasks.spawn("asks", async move {
        // As in code that uses only OpenTelemetry's API.
        let whose = Context::map_current(|context| Scope::of(context).map(|scope| scope.service));
        seen.send(whose).unwrap();
        stop.begun().await;
    });
    assert_eq!(see.await.unwrap(), Some("core"));
    tasks.shutdown().begin();
    tasks.finish(std::time::Duration::from_secs(2)).await.unwrap();
}
