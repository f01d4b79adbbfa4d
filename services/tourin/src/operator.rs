//! The all-in-one's listener for operators: the traces that are kept in memory without a collector, and
//! the metrics and readiness of all parts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use futures::future::join_all;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tourin_chassis::config::defaults;
use tourin_chassis::http::{
    Admission, ApiError, Callers, HttpLimits, Listener, Message, THIS_MACHINE, admitted, bind,
    guard_operators, serve,
};
use tourin_chassis::http_client;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::peer::OPERATOR;
use tourin_chassis::shutdown::Shutdown;
use tourin_chassis::telemetry::TraceSettings;
use tourin_chassis::telemetry::memory::{MemoryLimits, MemoryStore};
use tourin_chassis::trace_viewer;
use tourin_registry_api::Joined;

/// Longest wait for a part's metrics or readiness, in milliseconds.
const PART_TIMEOUT_MS: u64 = 2_000;
/// Longest metrics or readiness of a part, in bytes.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
const DRAIN_TIMEOUT_MS: u64 = 200;
/// All pages are for processes and browsers of this machine, and for operators' certificates.
const CALLERS: Callers = &[("/", &[OPERATOR, THIS_MACHINE])];

/// Settings of the operators' listener, and of the traces in memory.
#[derive(Debug, Clone, Args)]
pub struct OperatorSettings {
    /// Address on which traces, metrics and readiness are shown: in plain HTTP to this machine, and to
    /// others by TLS with an operator's certificate; port 0 takes a free one, which the start prints
    #[arg(
        long,
        env = "TOURIN_OPERATOR_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:0"
    )]
    pub operator_listen: SocketAddr,
    /// Name by which operators ask for that listener, besides addresses, localhost and names without a
    /// dot; repeatable. Requests with another Host get 403
    #[arg(
        long = "operator-host",
        env = "TOURIN_OPERATOR_HOSTS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub operator_hosts: Vec<String>,
    /// Spans of the last traces that are kept in memory where no collector is configured
    /// (--zipkin-url, --otlp-url); 0 keeps none
    #[arg(long, env = "TOURIN_TRACE_MEMORY_SPANS", value_name = "COUNT", default_value_t = MemoryLimits::default().spans, value_parser = RangedU64ValueParser::<usize>::new().range(0..=10_000_000))]
    pub trace_memory_spans: usize,
    /// Bytes that those spans take at most; the oldest traces go first
    #[arg(long, env = "TOURIN_TRACE_MEMORY_BYTES", value_name = "BYTES", default_value_t = MemoryLimits::default().bytes, value_parser = RangedU64ValueParser::<usize>::new().range(65_536..=4_294_967_295))]
    pub trace_memory_bytes: usize,
}

impl Default for OperatorSettings {
    fn default() -> Self {
        defaults(&[])
    }
}

impl OperatorSettings {
    /// The store of traces in memory; `None` with a collector, or when it is switched off.
    pub fn trace_store(&self, traces: &TraceSettings) -> Option<MemoryStore> {
        if traces.has_collector() || self.trace_memory_spans == 0 {
            return None;
        }
        Some(MemoryStore::new(MemoryLimits {
            spans: self.trace_memory_spans,
            bytes: self.trace_memory_bytes,
        }))
    }
}

/// The operators' listener, bound.
pub(crate) struct Operator {
    listener: Listener,
    pub addr: SocketAddr,
    router: Router,
    /// Renews the certificate.
    _joined: Joined,
}

/// The addresses of the built parts for `/metrics` and `/readyz`.
#[derive(Debug, Clone, Default)]
pub(crate) struct PartAddresses(Arc<Mutex<BTreeMap<String, SocketAddr>>>);

impl PartAddresses {
    /// Adds a part.
    pub fn add(&self, part: impl Into<String>, address: SocketAddr) {
        self.lock().insert(part.into(), address);
    }

    fn of(&self, part: &str) -> Option<SocketAddr> {
        self.lock().get(part).copied()
    }

    fn all(&self) -> BTreeMap<String, SocketAddr> {
        self.lock().clone()
    }

    /// The paths of their metrics, one per line.
    fn paths(&self) -> String {
        self.lock().keys().map(|part| format!("/metrics/{part}\n")).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operator {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn build(
        settings: &OperatorSettings,
        traces: Option<&MemoryStore>,
        (parts, joined): (PartAddresses, Joined),
    ) -> anyhow::Result<Self> {
        let listener = bind(settings.operator_listen).await?;
        let addr = listener.local_addr()?;
        let client = http_client::client(Duration::from_millis(PART_TIMEOUT_MS))?;
        let metrics = Router::new()
            .route("/metrics", get(list))
            .route("/metrics/{part}", get(metrics))
            .route("/readyz", get(readiness))
            .with_state(Parts { client, addresses: parts });
        let router = match traces {
            Some(store) => trace_viewer::router(store.clone()).merge(metrics),
            None => metrics.fallback(|| async {
                ApiError::not_found(Message::for_operators(
                    "here are /readyz, and /metrics, which lists the parts; traces are kept here only \
                     without --zipkin-url and --otlp-url, and with a --trace-memory-spans above 0",
                ))
            }),
        };
        let admission = Admission::new(OPERATOR, CALLERS);
        let router = admitted(router, admission, &Metrics::new(OPERATOR));
        let router = guard_operators(router, &settings.operator_hosts);
        let listener = Listener::with_tls(
            listener,
            joined.workload.server_config(),
            &joined.workload.name().mesh,
        );
        Ok(Self { listener, addr, router, _joined: joined })
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run_until_stopped(self, stop: Shutdown) -> anyhow::Result<()> {
        tracing::info!(addr = %self.addr, "operators' page listening");
        let drain = Duration::from_millis(DRAIN_TIMEOUT_MS);
        serve(self.listener, self.router, &HttpLimits::default(), stop, drain).await?;
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Parts {
    client: reqwest::Client,
    addresses: PartAddresses,
}

async fn list(State(parts): State<Parts>) -> String {
    parts.addresses.paths()
}

/// The readiness of every part; 200 if all are ready.
async fn readiness(State(parts): State<Parts>) -> Response {
    let asked = parts.addresses.all().into_iter().map(|(part, address)| {
        let client = parts.client.clone();
        async move {
            let said = async {
                let request = client.get(format!("http://{address}/readyz"));
                let answer = http_client::send(request, MAX_RESPONSE_BYTES).await?;
                let is_ready = answer.status().is_success();
                anyhow::Ok((is_ready, serde_json::from_slice::<Value>(answer.body())?))
            };
            let (is_ready, said) = said.await.unwrap_or_else(|error| {
                tracing::debug!(part, %error, "cannot ask whether it is ready");
                (
                    false,
                    json!({"status": "unready", "unready": {part.clone(): "it does not answer"}}),
                )
            });
            (is_ready, (part, said))
        }
    });
    let (ready, said): (Vec<_>, serde_json::Map<_, _>) = join_all(asked).await.into_iter().unzip();
    let all_ready = ready.into_iter().all(|is_ready| is_ready);
    let status = if all_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(said)).into_response()
}

async fn metrics(State(parts): State<Parts>, Path(part): Path<String>) -> Response {
    let Some(address) = parts.addresses.of(&part) else {
        let known = parts.addresses.paths().replace('\n', " ");
        let message = Message::for_operators(format!("there are {}", known.trim_end()));
        return ApiError::not_found(message).into_response();
    };
    let asked = async {
        let request = parts.client.get(format!("http://{address}/metrics"));
        let answer = http_client::send(request, MAX_RESPONSE_BYTES).await?;
        anyhow::ensure!(answer.status().is_success(), "answered {}", answer.status());
        let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
        let kind = kind.unwrap_or(HeaderValue::from_static("text/plain"));
        anyhow::Ok(([(header::CONTENT_TYPE, kind)], answer.into_body()))
    };
    match asked.await {
        Ok(answer) => answer.into_response(),
        Err(error) => {
            tracing::warn!(part, %error, "cannot read the metrics");
            (StatusCode::BAD_GATEWAY, "the part does not answer\n").into_response()
        }
    }
}
