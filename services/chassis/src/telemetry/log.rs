//! Logs: structured, human or JSON, on standard error, because standard output is the program's
//! own. Every line within a request carries its service and its trace id.

use std::cell::RefCell;
use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use opentelemetry_sdk::trace::SdkTracer;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::scope::Scope;
use super::span::current_trace_id;
use crate::config::{LogFormat, LogSettings};

/// The most verbose level of libraries, whatever the filter says: more detail shows complete
/// requests, responses and messages, with users' tokens and input. The first prefix of a target
/// counts.
const BOUNDS: [(&str, LevelFilter); 5] = [
    // Its errors are lookups of missing queues, and connections that this program closes; the
    // bus itself logs lost ones. It also logs complete returned messages.
    ("lapin", LevelFilter::OFF),
    // "Fail to proxy" repeats the request.
    ("pingora_proxy", LevelFilter::OFF),
    // Clients that break off while HTTP/2 begins.
    ("pingora_core::apps", LevelFilter::OFF),
    ("pingora", LevelFilter::ERROR),
    ("sqlx", LevelFilter::WARN),
];
/// The bound for other libraries.
const BOUND: LevelFilter = LevelFilter::INFO;
/// Crates of this project whose name does not begin with `tourin`.
const OURS: [&str; 4] = ["gateway", "core", "recommendation", "registry"];

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for this process, and the layer that sends `tracing`'s spans to `tracer`. A
/// second call changes nothing.
///
/// Each of the two has its own filter: the log level does not decide what is traced.
pub(super) fn init(settings: &LogSettings, tracer: SdkTracer) -> Result<(), String> {
    let filter = parse(&settings.log)
        .map_err(|error| format!("invalid value '{}' for '--log': {error}", settings.log))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // Colours are for a terminal, not for a file or a pipe.
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match settings.log_format {
        LogFormat::Text => lines.event_format(TextLine).boxed(),
        LogFormat::Json => lines.event_format(JsonLine).boxed(),
    };
    let lines = lines.with_filter(bounded(filter));
    let registry = tracing_subscriber::registry().with(lines).with(span_layer(tracer));
    // An error only means that a subscriber is installed already.
    if registry.try_init().is_ok() {
        FILTER.set(handle).ok();
        // No record of a library is shown below this level. The gateway's libraries make dozens for each
        // request, and each would go through all filters.
        log::set_max_level(log::LevelFilter::Info);
    }
    Ok(())
}

/// The filter within the bounds. The hint lets callsites that it never enables cost nothing.
fn bounded<S>(filter: impl Filter<S>) -> impl Filter<S>
where
    S: Subscriber,
{
    filter.and(filter_fn(is_line).with_max_level_hint(LevelFilter::TRACE))
}

/// Sends this project's `tracing` spans to `tracer`. Libraries' spans stay out, and so do events:
/// annotations are made explicitly ([`super::Span::annotate`]).
pub(super) fn span_layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_ours = |metadata: &Metadata<'_>| {
        metadata.is_span() && *metadata.level() <= Level::INFO && is_ours(metadata.target())
    };
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO))
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|error| error.to_string())
}

fn root(target: &str) -> &str {
    target.split("::").next().unwrap_or(target)
}

fn is_ours(target: &str) -> bool {
    root(target).starts_with("tourin") || OURS.contains(&root(target))
}

fn is_line(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && is_within_bounds(metadata)
}

fn is_within_bounds(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    // A record of the `log` crate is checked by its own target before this one.
    if is_ours(target) || root(target) == "log" {
        return true;
    }
    let bound = BOUNDS.iter().find(|(name, _)| target.starts_with(name));
    *metadata.level() <= bound.map_or(BOUND, |(_, bound)| *bound)
}

/// The current filter; `None` before [`super::init`].
pub fn log_filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Changes the filter of the complete process, in the form of `--log`.
///
/// # Errors
/// When the filter is invalid, or logging was not started.
pub fn set_log_filter(filter: &str) -> Result<(), String> {
    let parsed = parse(filter)?;
    let handle = FILTER.get().ok_or("logging was not started here")?;
    handle.reload(parsed).map_err(|error| error.to_string())
}

fn current_service() -> Option<&'static str> {
    Context::map_current(|context| Scope::of(context).map(|scope| scope.service))
}

/// The time of a line, to the microsecond.
struct Now(DateTime<Utc>);

impl fmt::Display for Now {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        thread_local! {
            /// The last second, and its text: many lines are of the same one.
            static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
        }
        SECOND.with_borrow_mut(|(second, text)| {
            if *second != self.0.timestamp() {
                *second = self.0.timestamp();
                *text = self.0.format("%Y-%m-%dT%H:%M:%S").to_string();
            }
            write!(to, "{text}.{:06}Z", self.0.timestamp_subsec_micros())
        })
    }
}

fn now() -> Now {
    Now(Utc::now())
}

/// `TIME LEVEL [service,trace] message fields`
struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if writer.has_ansi_escapes() {
            let colour = match level {
                Level::ERROR => 31,
                Level::WARN => 33,
                Level::INFO => 32,
                Level::DEBUG => 34,
                Level::TRACE => 35,
            };
            write!(writer, "\x1b[2m{}\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m ", now())?;
        } else {
            write!(writer, "{} {level:>5} ", now())?;
        }
        match (current_service(), current_trace_id()) {
            (Some(service), Some(trace)) => write!(writer, "[{service},{trace}] ")?,
            (Some(service), None) => write!(writer, "[{service}] ")?,
            (None, Some(trace)) => write!(writer, "[,{trace}] ")?,
            (None, None) => {}
        }
        ctx.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// One JSON object, the event's fields at its top level.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), now().to_string().into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        if let Some(service) = current_service() {
            line.insert("service".to_owned(), service.into());
        }
        if let Some(trace) = current_trace_id() {
            line.insert("trace_id".to_owned(), trace.into());
        }
        event.record(&mut Fields(&mut line));
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        // A record of the `log` crate has its own location as fields.
        if let Some(about_the_record) = field.name().strip_prefix("log.") {
            if about_the_record == "target" {
                self.0.insert("target".to_owned(), value);
            }
            return;
        }
        // An event's field does not replace a field of the line.
        let name = match field.name() {
            name @ ("timestamp" | "level" | "target" | "service" | "trace_id")
                if self.0.contains_key(name) =>
            {
                format!("fields.{name}")
            }
            name => name.to_owned(),
        };
        self.0.insert(name, value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::telemetry::{Pipeline, TraceSettings};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn within_a_span(subscriber: impl Subscriber + Send + Sync + 'static) -> String {
        let pipeline = Pipeline::start(&TraceSettings::default(), None).unwrap();
        let span = pipeline.service("core").work("test");
        tracing::subscriber::with_default(subscriber, || {
            let _current = span.enter();
            tracing::info!(level = "odd", status = 200, "answered");
        });
        span.trace_id().unwrap()
    }

    #[test]
    fn a_json_line_has_the_trace_and_the_fields_at_its_top() {
        let captured = Captured::default();
        let writer = captured.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .event_format(JsonLine);
        let trace = within_a_span(tracing_subscriber::registry().with(lines));
        let line: Value = serde_json::from_str(captured.text().trim()).unwrap();
        assert_eq!(line["trace_id"], trace);
        assert_eq!(line["service"], "core");
        assert_eq!(line["message"], "answered");
        assert_eq!(line["status"], 200);
        assert_eq!((&line["level"], &line["fields.level"]), (&"INFO".into(), &"odd".into()));
    }

    #[test]
    fn a_line_has_its_time_to_the_microsecond() {
        for micros in [0, 1, 999_999, 1_000_000, 1_790_000_000_123_456] {
            let at = DateTime::from_timestamp_micros(micros).unwrap();
            let expected = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            assert_eq!(Now(at).to_string(), expected);
        }
    }

    #[test]
    fn a_text_line_has_the_service_and_the_trace() {
        let captured = Captured::default();
        let writer = captured.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(TextLine);
        let trace = within_a_span(tracing_subscriber::registry().with(lines));
        let text = captured.text();
        assert!(text.contains(&format!("  INFO [core,{trace}] answered")), "{text}");
        assert!(text.ends_with("status=200\n"), "{text}");
    }

    #[test]
    fn no_filter_lets_whole_messages_into_the_log() {
        for filter in ["trace", "debug,pingora_core::protocols=trace,lapin=trace"] {
            let captured = Captured::default();
            let writer = captured.clone();
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(move || writer.clone())
                .event_format(TextLine);
            let subscriber = tracing_subscriber::registry()
                .with(lines.with_filter(bounded(parse(filter).unwrap())));
            tracing::subscriber::with_default(subscriber, || {
                tracing::error!(target: "pingora_proxy", "whole");
                tracing::warn!(target: "pingora_core::protocols::http", "whole");
                tracing::error!(target: "pingora_core::apps", "whole");
                tracing::error!(target: "lapin::returned_messages", "whole");
                tracing::info!(target: "sqlx::query", "whole");
                tracing::debug!(target: "lapin::frames", "whole");
                tracing::error!(target: "pingora_core::server", "theirs");
                tracing::error!(target: "lapin::channels", "whole");
                tracing::info!(target: "redis::client", "theirs");
                tracing::debug!(target: "tourin_core::http", "ours");
                tracing::debug!(target: "gateway", "ours");
            });
            let text = captured.text();
            assert!(!text.contains("whole"), "{filter}: {text}");
            assert_eq!(text.matches("theirs").count(), 2, "{filter}: {text}");
            assert_eq!(text.matches("ours").count(), 2, "{filter}: {text}");
        }
    }

    #[test]
    fn what_no_filter_enables_is_skipped_at_its_source() {
        let (filter, _handle) = reload::Layer::<_, Registry>::new(parse("info").unwrap());
        let hint = Filter::<Registry>::max_level_hint(&bounded::<Registry>(filter));
        assert_eq!(hint, Some(LevelFilter::INFO));
    }

    #[test]
    fn an_invalid_filter_is_refused() {
        assert!(parse("info,core=chatty").is_err());
        assert!(parse("info,core=debug").is_ok());
    }
}
