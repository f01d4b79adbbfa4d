//! Places that spans can be read back from.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::net::TcpListener;
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::telemetry::{Pipeline, TraceSettings};
use tourin_chassis::trace_viewer;
use tourin_testbed::eventually;

/// Somewhere that answers Zipkin's read API.
pub struct Reader {
    base: String,
    client: reqwest::Client,
}

impl Reader {
    pub fn at(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            client: tourin_chassis::http_client::client(None).unwrap(),
        }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    /// The trace once it has `spans` spans.
    pub async fn trace(&self, id: &str, spans: usize) -> Vec<Value> {
        let path = format!("/api/v2/trace/{id}");
        eventually(&format!("{spans} spans at {}{path}", self.base), async || {
            match self.get(&path).await.1 {
                Value::Array(found) if found.len() >= spans => Ok(found),
                other => Err(other),
            }
        })
        .await
    }
}

/// The Zipkin server of the test bed.
pub fn zipkin_url() -> String {
    std::env::var("TOURIN_ZIPKIN_URL").ok().filter(|url| !url.is_empty()).expect(
        "TOURIN_ZIPKIN_URL is not set: run it by deploy/testbed.sh run -- cargo test -p tourin-chassis",
    )
}

pub fn all() -> TraceSettings {
    TraceSettings { trace_ratio: 1.0, trace_flush_interval_ms: 20, ..TraceSettings::default() }
}

pub async fn serve(router: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A pipeline into the real server, and a reader of it.
pub async fn real() -> (Pipeline, Reader) {
    let url = zipkin_url();
    let settings = TraceSettings { zipkin_url: Some(url.clone()), ..all() };
    (Pipeline::start(&settings, None).unwrap(), Reader::at(&url))
}

/// A pipeline into a store of this process, and a reader of its API.
pub async fn in_memory() -> (Pipeline, Reader) {
    let store = MemoryStore::new(MemoryLimits::default());
    let address = serve(trace_viewer::router(store.clone())).await;
    (Pipeline::start(&all(), Some(store)).unwrap(), Reader::at(&format!("http://{address}")))
}

/// A pipeline through the reporter over HTTP into the collector of a store.
pub async fn through_a_collector() -> (Pipeline, Reader) {
    let store = MemoryStore::new(MemoryLimits::default());
    let address =
        serve(trace_viewer::router(store.clone()).merge(trace_viewer::collector(store))).await;
    let base = format!("http://{address}");
    let settings = TraceSettings { zipkin_url: Some(format!("{base}/api/v2/spans")), ..all() };
    (Pipeline::start(&settings, None).unwrap(), Reader::at(&base))
}
