//! The settings of logs and traces, the same in every binary.

use std::str::FromStr;

use clap::Args;

use super::propagation::Propagation;
use crate::config::{LogSettings, defaults};

/// Logs and traces.
#[derive(Debug, Clone, Args)]
pub struct TelemetrySettings {
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub log: LogSettings,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub traces: TraceSettings,
}

impl From<&LogSettings> for TelemetrySettings {
    /// Logs as set, and no traces exported.
    fn from(log: &LogSettings) -> Self {
        Self { log: log.clone(), traces: TraceSettings::default() }
    }
}

impl From<&Self> for TelemetrySettings {
    fn from(settings: &Self) -> Self {
        settings.clone()
    }
}

/// Traces: their destinations, sampling and bounds.
#[derive(Debug, Clone, Args)]
pub struct TraceSettings {
    /// Zipkin server to send spans to, such as http://127.0.0.1:9411 [default: none]
    #[arg(long, env = "TOURIN_ZIPKIN_URL", value_name = "URL")]
    pub zipkin_url: Option<String>,
    /// Collector to send spans to by OTLP over HTTP as JSON, such as http://127.0.0.1:4318; for a
    /// program that was built with the feature 'otlp' [default: none]
    #[arg(long, env = "TOURIN_OTLP_URL", value_name = "URL")]
    pub otlp_url: Option<String>,
    /// Formats of trace context sent to the next hop, separated by commas
    #[arg(
        long,
        env = "TOURIN_TRACE_PROPAGATION",
        value_name = "FORMATS",
        value_delimiter = ',',
        default_value = "w3c"
    )]
    pub trace_propagation: Vec<Propagation>,
    /// Formats of trace context accepted from the hop before, separated by commas
    #[arg(
        long,
        env = "TOURIN_TRACE_ACCEPT",
        value_name = "FORMATS",
        value_delimiter = ',',
        default_value = "w3c,b3-single,b3"
    )]
    pub trace_accept: Vec<Propagation>,
    /// Part of the traces that start here which is sampled, from 0 to 1; a caller's decision wins. 1 suits a
    /// trial, 0.1 production
    #[arg(long, env = "TOURIN_TRACE_RATIO", value_name = "RATIO", default_value_t = 1.0, value_parser = parse_ratio)]
    pub trace_ratio: f64,
    /// Another ratio for a route, such as '/api/auth/login=1'; a trailing * stands for the rest. Repeatable,
    /// or separated by commas; the first that matches counts
    #[arg(long, env = "TOURIN_TRACE_ROUTE", value_name = "ROUTE=RATIO", value_delimiter = ',')]
    pub trace_route: Vec<RouteRatio>,
    /// Whether the spans of an unsampled request that failed (status 500 or more) are exported all
    /// the same; each process decides for its own part of the trace when that part ends
    #[arg(long, env = "TOURIN_TRACE_KEEP_FAILED", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub trace_keep_failed: bool,
    /// Milliseconds from which an unsampled request counts as slow and is exported all the same;
    /// 0 is never
    #[arg(long, env = "TOURIN_TRACE_SLOW_MS", value_name = "MS", default_value_t = 1_000)]
    pub trace_slow_ms: u64,
    /// Maximum number of spans that wait for export; more are dropped and counted
    #[arg(long, env = "TOURIN_TRACE_QUEUE_SPANS", value_name = "COUNT", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub trace_queue_spans: u32,
    /// Maximum number of spans in one request
    #[arg(long, env = "TOURIN_TRACE_BATCH_SPANS", value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub trace_batch_spans: u32,
    /// Milliseconds that a span waits for others to be sent with
    #[arg(long, env = "TOURIN_TRACE_FLUSH_INTERVAL_MS", value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trace_flush_interval_ms: u64,
    /// Milliseconds in which the collector must accept a batch
    #[arg(long, env = "TOURIN_TRACE_EXPORT_TIMEOUT_MS", value_name = "MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trace_export_timeout_ms: u64,
}

impl TraceSettings {
    /// Whether spans are exported.
    pub fn has_collector(&self) -> bool {
        let given = |url: &Option<String>| url.as_ref().is_some_and(|url| !url.trim().is_empty());
        given(&self.zipkin_url) || given(&self.otlp_url)
    }
}

impl Default for TraceSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// A route with its own sampling ratio.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRatio {
    route: String,
    prefix: bool,
    /// The sampling ratio of its traces, from 0 to 1.
    pub ratio: f64,
}

impl RouteRatio {
    /// Whether it applies to `route`, a template such as `/api/tourspots/{id}`.
    pub fn matches(&self, route: &str) -> bool {
        if self.prefix { route.starts_with(&self.route) } else { route == self.route }
    }
}

impl FromStr for RouteRatio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (route, ratio) =
            text.rsplit_once('=').ok_or("expected ROUTE=RATIO, such as /api/auth/login=1")?;
        if !route.starts_with('/') {
            return Err("a route starts with /".to_owned());
        }
        let (route, prefix) = match route.strip_suffix('*') {
            Some(route) => (route, true),
            None => (route, false),
        };
        Ok(Self { route: route.to_owned(), prefix, ratio: parse_ratio(ratio)? })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        settings: TelemetrySettings,
    }

    fn parsed(args: &[&str]) -> Result<TelemetrySettings, String> {
        Program::try_parse_from([&["program"], args].concat())
            .map(|program| program.settings)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn routes_and_formats() {
        let traces = parsed(&[
            "--trace-route=/api/auth/*=1,/api/tourspots/{id}=0.5",
            "--trace-propagation=b3-single,w3c",
            "--trace-keep-failed=false",
        ])
        .unwrap()
        .traces;
        assert!(!traces.trace_keep_failed);
        assert_eq!(traces.trace_propagation, [Propagation::B3Single, Propagation::W3c]);
        assert!(traces.trace_route[0].matches("/api/auth/login"));
        assert!(!traces.trace_route[1].matches("/api/tourspots/{id}/reviews"));
        assert!((traces.trace_route[1].ratio - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_bad_value_is_refused() {
        for bad in [
            "--trace-ratio=2",
            "--trace-ratio=NaN",
            "--trace-route=login=1",
            "--trace-route=/login",
            "--trace-propagation=jaeger",
            "--trace-queue-spans=0",
        ] {
            assert!(parsed(&[bad]).is_err(), "{bad}");
        }
    }
}
