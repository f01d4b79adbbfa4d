//! OTLP over HTTP as JSON, by `opentelemetry-otlp`, with the cargo feature `otlp`.

use std::collections::BTreeMap;

use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::collector::Collector;
use super::names;

/// Exports spans to a collector. One resource for each service: a process may run several.
#[derive(Debug)]
pub(super) struct OtlpExporter(pub Collector);

impl SpanExporter for OtlpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut services: BTreeMap<String, Vec<SpanData>> = BTreeMap::new();
        for mut span in batch {
            let mut service = None;
            span.attributes.retain(|pair| {
                if pair.key.as_str() == names::SERVICE {
                    service = Some(pair.value.as_str().into_owned());
                }
                ![names::SERVICE, names::LOCAL].contains(&pair.key.as_str())
            });
            let service = service.unwrap_or_else(|| "unknown".to_owned());
            services.entry(service).or_default().push(span);
        }
        for (service, spans) in services {
            let mut exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_http_client(self.0.clone())
                .with_protocol(Protocol::HttpJson)
                .with_endpoint(self.0.url())
                .build()
                .map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?;
            let resource = Resource::builder_empty().with_service_name(service).build();
            exporter.set_resource(&resource);
            exporter.export(spans).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::routing::post;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::super::export::{Bounds, Destination};
    use super::super::zipkin::tests::with_extra_attributes;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_gets_listed_and_redacted_attributes_only() {
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let taken = Arc::clone(&bodies);
        let take = move |Json(body): Json<Value>| async move {
            taken.lock().unwrap().push(body);
            Json(json!({}))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take));
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        let limit = Duration::from_secs(5);
        let collector = Collector::new("otlp-url", &url, "/v1/traces", limit).unwrap();
        let bounds = Bounds { queue_spans: 9, batch_spans: 9, flush_interval: limit };
        let to = Destination::start("otlp", OtlpExporter(collector), bounds);
        to.offer(with_extra_attributes());
        to.flush().unwrap();
        let bodies = bodies.lock().unwrap();
        let of_service = &bodies[0]["resourceSpans"][0];
        let resource = &of_service["resource"]["attributes"];
        assert!(resource.to_string().contains("Core"), "{resource}");
        let span = &of_service["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "0000000000000000000000000000abcd");
        assert_eq!(span["parentSpanId"], "0000000000000034");
        assert_eq!((&span["name"], &span["kind"]), (&"Look for [removed]".into(), &3.into()));
        assert_eq!(span["startTimeUnixNano"], "1500000000");
        let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
        let attributes = span["attributes"].as_array().unwrap();
        assert!(attributes.contains(&text("db.system.name", "mysql")), "{attributes:?}");
        assert!(attributes.contains(&text("tourin.outcome", "[removed]")), "{attributes:?}");
        let names: Vec<_> = attributes.iter().filter_map(|pair| pair["key"].as_str()).collect();
        assert!(names.iter().all(|name| names::EXPORTED.contains(name)), "{names:?}");
        let event = &span["events"][0];
        assert_eq!(event["name"], "retry");
        assert_eq!(event["attributes"][0], text("reason", "no member [removed]"));
        assert_eq!(
            (&span["status"]["code"], &span["status"]["message"]),
            (&2.into(), &"failed".into())
        );
    }
}
