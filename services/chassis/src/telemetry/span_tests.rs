use http::Method;

use super::super::{Pipeline, Propagation, TraceSettings};
use super::*;

fn service() -> Service {
    Pipeline::start(&TraceSettings::default(), None).unwrap().service("core")
}

fn request(service: &Service, headers: &HeaderMap) -> Span {
    service.server(headers, &HttpRequest::new(&Method::GET, Some("/a")))
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
async fn what_runs_in_a_span_finds_it_and_its_trace() {
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
async fn a_services_background_tasks_know_whose_they_are() {
    use crate::shutdown::{Shutdown, Tasks};
    let (service, stop) = (service(), Shutdown::new());
    let tasks = Tasks::new(stop.clone()).of_service(&service);
    let (seen, see) = tokio::sync::oneshot::channel();
    tasks.spawn("asks", async move {
        // As code does that knows OpenTelemetry's API alone.
        let whose = Context::map_current(|context| context.get::<Origin>().map(|o| o.service));
        seen.send(whose).unwrap();
        stop.begun().await;
    });
    assert_eq!(see.await.unwrap(), Some("core"));
    tasks.shutdown().begin();
    tasks.finish(std::time::Duration::from_secs(2)).await.unwrap();
}
