//! The way out of the process. Each destination has a bounded queue and a task of its own, on one
//! thread that no request shares. A span that finds the queue full is dropped and counted: nobody
//! waits for a collector.

mod otlp;
pub(crate) mod zipkin;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::memory::MemoryStore;
use super::processor::Ended;

/// Times that a batch is offered to the collector before it is given up.
const TRIES: u32 = 3;
/// Pause before the second try; it doubles for the third.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Spans a second that a queue holds between two looks at it, while a batch fills up.
const SPANS_BETWEEN_LOOKS: u32 = 160_000;
/// Longest time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// What happened to spans on their way to one destination, since the start.
#[derive(Debug, Default)]
pub struct ExportCounters {
    /// Taken by the destination.
    pub exported: AtomicU64,
    /// Dropped because the queue was full: the destination is slow or dead.
    pub queue_full: AtomicU64,
    /// Dropped because the destination did not take them in [`TRIES`] tries, or refused them.
    pub failed: AtomicU64,
}

impl ExportCounters {
    /// Dropped for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.queue_full.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
    }
}

/// Where spans go.
#[derive(Debug)]
pub(super) enum Sink {
    Zipkin(Collector),
    Otlp(Collector),
    Memory(MemoryStore),
}

impl Sink {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zipkin(_) => "zipkin",
            Self::Otlp(_) => "otlp",
            Self::Memory(_) => "memory",
        }
    }

    /// Where it is, for an operator.
    pub fn place(&self) -> String {
        let (scheme, authority) = match self {
            Self::Zipkin(at) | Self::Otlp(at) => (at.scheme(), &at.authority),
            Self::Memory(_) => return "this process's memory".to_owned(),
        };
        format!("{} at {scheme}://{authority}", self.name())
    }

    /// Host and port of the collector, without whatever else its URL has.
    fn authority(&self) -> Option<&str> {
        match self {
            Self::Zipkin(collector) | Self::Otlp(collector) => Some(&collector.authority),
            Self::Memory(_) => None,
        }
    }

    /// What is sent for a batch.
    fn body(&self, batch: &[Ended]) -> serde_json::Result<Bytes> {
        let body = match self {
            Self::Zipkin(_) | Self::Memory(_) => zipkin::body(batch),
            Self::Otlp(_) => otlp::body(batch),
        };
        body.map(Bytes::from)
    }

    async fn send(&self, body: Bytes) -> Result<(), Failure> {
        match self {
            Self::Zipkin(collector) | Self::Otlp(collector) => collector.post_json(body).await,
            // It takes what a Zipkin server would be sent, so that there is one conversion.
            Self::Memory(store) => serde_json::from_slice(&body)
                .map(|spans| store.insert(spans))
                .map_err(Failure::of_json),
        }
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Failure {
    what: String,
    /// Whether another try could help.
    transient: bool,
}

impl Failure {
    fn of_json(error: serde_json::Error) -> Self {
        Self { what: error.to_string(), transient: false }
    }
}

/// Bounds of the way to one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub queue_spans: usize,
    pub batch_spans: usize,
    pub flush_interval: Duration,
}

impl Bounds {
    fn look_every(self) -> Duration {
        let spans = u32::try_from(self.queue_spans).unwrap_or(u32::MAX);
        let fills =
            Duration::from_secs(1).mul_f64(f64::from(spans) / f64::from(SPANS_BETWEEN_LOOKS));
        fills.clamp(Duration::from_millis(1), LOOK_EVERY)
    }
}

/// A destination's queue, seen from the spans' side.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    pub name: &'static str,
    pub counters: Arc<ExportCounters>,
    queue: mpsc::Sender<Ended>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
}

impl Outlet {
    /// Takes the span if there is room for it; never waits.
    pub fn offer(&self, span: impl FnOnce() -> Ended) {
        if let Ok(place) = self.queue.try_reserve() {
            place.send(span());
        } else {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Resolves when what is in the queue now was sent or given up.
    pub async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        if self.flushes.send(done).await.is_ok() {
            // An error says that the worker is gone, and with it what could be waited for.
            sent.await.ok();
        }
    }
}

/// Starts the thread `trace-export` with a task for each destination. It ends with the last outlet, of
/// which a span of our own that waits holds one: when nobody makes spans any more and the last was sent
/// or given up.
pub(super) fn start(sinks: Vec<Sink>, bounds: Bounds) -> std::io::Result<Vec<Outlet>> {
    if sinks.is_empty() {
        return Ok(Vec::new());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outlets = Vec::new();
    let mut workers = Vec::new();
    for sink in sinks {
        let (queue, spans) = mpsc::channel(bounds.queue_spans);
        let (flushes, flush) = mpsc::channel(8);
        let counters = Arc::new(ExportCounters::default());
        outlets.push(Outlet { name: sink.name(), counters: counters.clone(), queue, flushes });
        // A store in this process has no reason to wait.
        let wait = match sink {
            Sink::Memory(_) => Duration::from_millis(20),
            _ => bounds.flush_interval,
        };
        let bounds = Bounds { flush_interval: wait, ..bounds };
        workers.push(Worker { sink, spans, flush, counters, bounds, reachable: true });
    }
    std::thread::Builder::new().name("trace-export".to_owned()).spawn(move || {
        runtime.block_on(run_all(workers));
    })?;
    Ok(outlets)
}

async fn run_all(workers: Vec<Worker>) {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in workers {
        tasks.spawn(worker.run());
    }
    while tasks.join_next().await.is_some() {}
}

struct Worker {
    sink: Sink,
    spans: mpsc::Receiver<Ended>,
    flush: mpsc::Receiver<oneshot::Sender<()>>,
    counters: Arc<ExportCounters>,
    bounds: Bounds,
    reachable: bool,
}

impl Worker {
    async fn run(mut self) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                taken = self.spans.recv_many(&mut batch, self.bounds.batch_spans) => {
                    if taken == 0 {
                        return;
                    }
                    let done = self.fill(&mut batch).await;
                    self.deliver(batch).await;
                    if let Some(done) = done {
                        self.drain(done).await;
                    }
                }
                Some(done) = self.flush.recv() => self.drain(done).await,
            }
        }
    }

    /// Waits for the batch to fill up, for the interval to pass, or for somebody who asks to flush.
    ///
    /// It looks now and then and is not woken: to wake this thread would cost the request that sends
    /// a span more than the span does.
    async fn fill(&mut self, batch: &mut Vec<Ended>) -> Option<oneshot::Sender<()>> {
        let deadline = Instant::now() + self.bounds.flush_interval;
        loop {
            let room = self.bounds.batch_spans.saturating_sub(batch.len());
            if room > 0 && !self.spans.is_empty() {
                self.spans.recv_many(batch, room).await;
                continue;
            }
            if room == 0 || Instant::now() >= deadline {
                return None;
            }
            tokio::select! {
                () = sleep_until(deadline.min(Instant::now() + self.bounds.look_every())) => {}
                Some(done) = self.flush.recv() => return Some(done),
            }
        }
    }

    async fn drain(&mut self, done: oneshot::Sender<()>) {
        let mut left = self.spans.len();
        while left > 0 {
            let mut batch = Vec::new();
            let room = left.min(self.bounds.batch_spans);
            left -= self.spans.recv_many(&mut batch, room).await.clamp(1, left);
            self.deliver(batch).await;
        }
        // Whoever asked may have stopped waiting.
        done.send(()).ok();
    }

    async fn deliver(&mut self, batch: Vec<Ended>) {
        let count = batch.len() as u64;
        let body = match self.sink.body(&batch) {
            Ok(body) => body,
            Err(error) => return self.give_up(count, &Failure::of_json(error)),
        };
        drop(batch);
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=TRIES {
            match self.sink.send(body.clone()).await {
                Ok(()) => {
                    self.counters.exported.fetch_add(count, Ordering::Relaxed);
                    if !self.reachable {
                        self.reachable = true;
                        tracing::info!(to = self.sink.name(), "spans are taken again");
                    }
                    return;
                }
                Err(failure) if failure.transient && attempt < TRIES => {
                    // Collectors that come back meet their clients spread out.
                    sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause *= 2;
                }
                Err(failure) => return self.give_up(count, &failure),
            }
        }
    }

    fn give_up(&mut self, count: u64, failure: &Failure) {
        self.counters.failed.fetch_add(count, Ordering::Relaxed);
        // Once for an outage, not for each batch of it.
        if self.reachable {
            self.reachable = false;
            tracing::warn!(
                to = self.sink.name(), at = self.sink.authority(), error = %failure,
                "spans are not taken and dropped; see tourin_trace_spans_dropped_total"
            );
        }
    }
}

/// A collector that takes JSON.
#[derive(Debug)]
pub(super) struct Collector {
    url: String,
    /// For the log: a URL may carry a password.
    authority: String,
    client: reqwest::Client,
}

impl Collector {
    /// At `url`, which was set as `setting`, with `path` where it names none.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the setting.
    pub fn new(setting: &str, url: &str, path: &str, timeout: Duration) -> Result<Self, String> {
        // Bounded, and without the mesh's own middleware.
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .pool_max_idle_per_host(1)
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot make a client for the trace collector: {error}"))?;
        let url = collector_url(setting, url, path)?;
        let uri = url.parse::<http::Uri>().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(80);
        let authority = format!("{}:{port}", uri.host().unwrap_or_default());
        Ok(Self { url, authority, client })
    }

    fn scheme(&self) -> &str {
        self.url.split_once(':').map_or("http", |(scheme, _)| scheme)
    }

    async fn post_json(&self, body: Bytes) -> Result<(), Failure> {
        let request = self.client.post(&self.url).header("content-type", "application/json");
        let answer = request.body(body).send().await.map_err(|error| Failure {
            // Without the URL, which may carry a password.
            what: innermost(&error.without_url()),
            transient: true,
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let transient = status.is_server_error() || status.as_u16() == 429;
        Err(Failure { what: format!("the collector answered {status}"), transient })
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn collector_url(setting: &str, url: &str, path: &str) -> Result<String, String> {
    let parsed = url
        .parse::<http::Uri>()
        .map_err(|error| format!("invalid value for '--{setting}': {error}"))?;
    if parsed.scheme_str() != Some("http") || parsed.host().is_none() {
        return Err(format!(
            "invalid value for '--{setting}': expected http://HOST:PORT (for TLS, a collector on this machine that forwards)"
        ));
    }
    if parsed.path().trim_end_matches('/').is_empty() {
        let base = url.trim_end_matches('/');
        return Ok(format!("{base}{path}"));
    }
    Ok(url.to_owned())
}

#[cfg(test)]
mod tests;
