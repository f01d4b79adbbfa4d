//! The access log: a JSON line per request, in a file or on standard output.
//!
//! Requests never wait for it. A line goes into a bounded queue, from which a thread writes; when the queue
//! is full the line is dropped and counted. Without `--access-log` the lines go to the program's own log.
//!
//! There is nothing of a person in a line: the route's template stands for the path, and neither the query
//! nor the client's address is in it. The request's id and its trace lead to more.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, value_parser};
use serde::{Serialize, Serializer};
use tokio::sync::oneshot;
use tourin_chassis::metrics::{Counter, Metrics};

use crate::reload::{Contents, Reloadable};

/// Standard output, as the value of the flag.
const STDOUT: &str = "-";
/// Time for the lines that are left at the stop.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Time between two looks whether the queue has room for the message that ends the log.
const CLOSE_RETRY: Duration = Duration::from_millis(10);

/// Where the access log goes, and how much of it.
#[derive(Debug, Clone, Args)]
pub struct AccessLogSettings {
    /// File for the access log, one JSON object a line; `-` for standard output. Opened again on SIGHUP
    /// [default: the program's own log]
    #[arg(long, env = "TOURIN_GATEWAY_ACCESS_LOG", value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Share of the requests in it, from 0 to 1. Those that failed (5xx, or the client left) are in it always
    #[arg(long, env = "TOURIN_GATEWAY_ACCESS_LOG_RATIO", value_name = "RATIO", default_value_t = 1.0, value_parser = parse_ratio)]
    pub access_log_ratio: f64,
    /// Lines of the access log that wait for the disk; further ones are dropped and counted
    #[arg(long, env = "TOURIN_GATEWAY_ACCESS_LOG_QUEUE", value_name = "N", default_value_t = 8_192, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub access_log_queue: u32,
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// A request, as the access log has it. `docs/operations/access-log.md` describes the fields.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When the request's head was complete.
    #[serde(serialize_with = "micros")]
    pub time: DateTime<Utc>,
    /// The method, or `_OTHER`.
    pub method: &'static str,
    /// The route's template, a path of the gateway's own, `unmatched` or `malformed`.
    pub route: &'a str,
    /// The service that the route names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    /// The status; 499 when the client left before the response.
    pub status: u16,
    /// Until the end of the response.
    #[serde(rename = "duration_us", serialize_with = "whole_micros")]
    pub duration: Duration,
    /// Until the response's head was sent.
    #[serde(rename = "answered_us", serialize_with = "whole_micros")]
    pub answered: Duration,
    /// Bytes of the request's body that were sent to the instance.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// The instance of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<&'a str>,
    /// Attempts on instances.
    pub tries: usize,
    /// Why the route's fall-back was the answer, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<&'a str>,
    /// The request's id.
    pub request_id: &'a str,
    /// The trace's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    /// Why it failed, as Pingora names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
}

fn micros<S: Serializer>(time: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn whole_micros<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

enum Message {
    Line(Vec<u8>),
    /// Open the file again; answers with the error, if any.
    Reopen(SyncSender<io::Result<()>>),
    /// Write what came before to the file and end; answers then.
    Close(oneshot::Sender<()>),
}

/// The access log. Clones share it; the last one's end closes it.
#[derive(Clone)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    file: Option<PathBuf>,
    sampling: Arc<Sampling>,
    dropped: Counter,
    failed: Counter,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").field("file", &self.file).finish_non_exhaustive()
    }
}

impl AccessLog {
    /// Opens the log's file and starts the thread that writes it.
    ///
    /// # Errors
    /// When the file cannot be opened, or the operating system gives no thread.
    pub fn open(settings: &AccessLogSettings) -> anyhow::Result<Self> {
        let mut log = Self {
            queue: None,
            file: None,
            sampling: Arc::new(Sampling::new(settings.access_log_ratio)),
            dropped: Counter::default(),
            failed: Counter::default(),
        };
        let Some(path) = &settings.access_log else { return Ok(log) };
        let output = Output::open(path)
            .with_context(|| format!("--access-log {}: cannot open it", path.display()))?;
        if path.as_os_str() != STDOUT {
            log.file = Some(path.clone());
        }
        let lines = usize::try_from(settings.access_log_queue).unwrap_or(usize::MAX);
        let (queue, messages) = sync_channel(lines);
        let failed = log.failed.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(output, messages, &failed))
            .context("cannot start the access log's thread")?;
        log.queue = Some(queue);
        Ok(log)
    }

    /// Counts its losses in `metrics`.
    pub fn measure(&self, metrics: &Metrics) {
        if self.queue.is_none() {
            return;
        }
        let (dropped, failed) = (self.dropped.clone(), self.failed.clone());
        metrics.counters_read(
            "tourin_gateway_access_log_lost",
            "Lines of the access log that were not written",
            move || {
                [("queue_full", &dropped), ("write_failed", &failed)]
                    .map(|(reason, count)| {
                        (vec![("reason", reason.to_owned())], count.value() as f64)
                    })
                    .to_vec()
            },
        );
    }

    /// What opens its file again on SIGHUP; `None` without a file.
    pub fn reopening(&self) -> Option<Arc<dyn Reloadable>> {
        self.file.as_ref()?;
        Some(Arc::new(Reopening(self.clone())))
    }

    /// Waits until all lines that were recorded are written, and ends the log. A disk that takes longer than
    /// [`CLOSE_TIMEOUT`] loses lines.
    pub async fn close(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, closed) = oneshot::channel();
        let closing = async {
            let mut message = Message::Close(done);
            while let Err(TrySendError::Full(unsent)) = queue.try_send(message) {
                message = unsent;
                tokio::time::sleep(CLOSE_RETRY).await;
            }
            // An error says that the log has ended before.
            closed.await.ok();
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the access log could not be written to its end in time");
        }
    }

    /// Records a request. Never waits.
    pub fn record(&self, line: &Line<'_>) {
        let Some(queue) = &self.queue else {
            return to_program_log(line);
        };
        let has_failed = line.status >= 499;
        if !has_failed && !self.sampling.takes_next() {
            return;
        }
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            queue.try_send(Message::Line(text))
        {
            self.dropped.increase();
        }
    }
}

fn to_program_log(line: &Line<'_>) {
    tracing::info!(
        target: "tourin_gateway::proxy",
        method = line.method,
        route = line.route,
        status = line.status,
        duration_us = u64::try_from(line.duration.as_micros()).unwrap_or(u64::MAX),
        instance = line.instance.unwrap_or("-"),
        tries = line.tries,
        fallback = line.fallback,
        request_id = line.request_id,
        error = line.error,
        "request"
    );
}

/// Takes an even share of requests.
#[derive(Debug)]
struct Sampling {
    ratio: f64,
    seen: AtomicU64,
}

impl Sampling {
    fn new(ratio: f64) -> Self {
        Self { ratio, seen: AtomicU64::new(0) }
    }

    fn takes_next(&self) -> bool {
        if self.ratio >= 1.0 {
            return true;
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) as f64;
        ((seen + 1.0) * self.ratio).floor() > (seen * self.ratio).floor()
    }
}

enum Output {
    File { path: PathBuf, writer: BufWriter<File> },
    Stdout(BufWriter<io::Stdout>),
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == STDOUT {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::File { path: path.to_owned(), writer: BufWriter::with_capacity(64 << 10, file) })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::File { writer, .. } => writer,
            Self::Stdout(writer) => writer,
        }
    }

    /// Writes the rest to the old file and opens the path again, which may be a new file by now.
    fn reopen(&mut self) -> io::Result<()> {
        let flushed = self.writer().flush();
        if let Self::File { path, .. } = self {
            *self = Self::open(&path.clone())?;
        }
        flushed
    }
}

/// Writes until it is told to end, or all senders are gone. The file is flushed whenever the queue is empty.
fn write(mut output: Output, messages: Receiver<Message>, failed: &Counter) {
    let mut unflushed = 0;
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                if output.writer().flush().is_err() {
                    failed.add(unflushed);
                }
                unflushed = 0;
                match messages.recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            }
        };
        match message {
            Message::Line(line) => match output.writer().write_all(&line) {
                Ok(()) => unflushed += 1,
                Err(_) => {
                    failed.increase();
                }
            },
            Message::Reopen(done) => {
                unflushed = 0;
                // The asker may have stopped waiting.
                done.send(output.reopen()).ok();
            }
            Message::Close(done) => {
                if output.writer().flush().is_err() {
                    failed.add(unflushed);
                }
                drop(messages);
                // As there.
                done.send(()).ok();
                return;
            }
        }
    }
    output.writer().flush().ok();
}

/// Opens the access log's file again on SIGHUP, after a rotation has moved it.
struct Reopening(AccessLog);

impl Reloadable for Reopening {
    fn name(&self) -> &'static str {
        "access_log"
    }

    fn files(&self) -> &[PathBuf] {
        // It is written, not read.
        &[]
    }

    fn apply(&self, _: &Contents) -> anyhow::Result<String> {
        let (Some(queue), Some(file)) = (&self.0.queue, &self.0.file) else {
            anyhow::bail!("there is no access log");
        };
        let (done, reopened) = sync_channel(1);
        queue.send(Message::Reopen(done)).context("the access log's thread has ended")?;
        let reopened = reopened.recv().context("the access log's thread has ended")?;
        reopened.with_context(|| format!("cannot open {}", file.display()))?;
        Ok(Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path: &Path, ratio: f64) -> AccessLogSettings {
        AccessLogSettings {
            access_log: Some(path.to_owned()),
            access_log_ratio: ratio,
            access_log_queue: 100,
        }
    }

    fn line(status: u16) -> Line<'static> {
        Line {
            time: DateTime::UNIX_EPOCH,
            method: "GET",
            route: "/a/{id}",
            service: Some("core"),
            status,
            duration: Duration::from_micros(1_500),
            answered: Duration::from_micros(1_200),
            request_bytes: 0,
            response_bytes: 7,
            instance: Some("core-1"),
            tries: 1,
            fallback: None,
            request_id: "r",
            trace_id: None,
            error: None,
        }
    }

    /// The lines of a closed log.
    fn lines(path: &Path, expected: usize) -> Vec<serde_json::Value> {
        for _ in 0..1_000 {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= expected {
                return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{expected} lines do not come: {:?}", std::fs::read_to_string(path));
    }

    #[test]
    fn a_line_is_json_with_whole_microseconds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::open(&settings(&path, 1.0)).unwrap();
        log.record(&line(200));
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z", "method": "GET", "route": "/a/{id}",
            "service": "core", "status": 200, "duration_us": 1_500, "answered_us": 1_200,
            "request_bytes": 0, "response_bytes": 7, "instance": "core-1", "tries": 1, "request_id": "r",
        });
        assert_eq!(lines(&path, 1), [expected]);
    }

    #[test]
    fn a_share_is_logged_and_every_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::open(&settings(&path, 0.1)).unwrap();
        for _ in 0..50 {
            log.record(&line(200));
        }
        log.record(&line(503));
        log.record(&line(499));
        let statuses: Vec<_> =
            lines(&path, 7).iter().map(|line| line["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 503, 499]);
    }

    #[tokio::test]
    async fn a_closed_log_has_all_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let settings = AccessLogSettings { access_log_queue: 100_000, ..settings(&path, 1.0) };
        let log = AccessLog::open(&settings).unwrap();
        for _ in 0..2_000 {
            log.record(&line(200));
        }
        log.close().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2_000);
        assert!(text.ends_with('\n'));
        // It is closed, so what comes now is lost, and counted.
        log.record(&line(200));
        assert_eq!(log.dropped.value(), 1);
        log.close().await;
    }

    #[test]
    fn a_moved_file_is_left_at_the_next_sighup() {
        let folder = tempfile::tempdir().unwrap();
        let [path, moved] = ["access.log", "access.log.1"].map(|name| folder.path().join(name));
        let log = AccessLog::open(&settings(&path, 1.0)).unwrap();
        log.record(&line(200));
        assert_eq!(lines(&path, 1).len(), 1);
        std::fs::rename(&path, &moved).unwrap();
        log.record(&line(201));
        assert_eq!(lines(&moved, 2).len(), 2);
        let reopening = log.reopening().unwrap();
        reopening.apply(&Contents::default()).unwrap();
        log.record(&line(202));
        assert_eq!(lines(&path, 1)[0]["status"], 202);
        // A folder that is gone is a refusal, and the open file stays in use.
        let gone = folder.path().join("x");
        std::fs::rename(&path, &gone).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = format!("{:#}", reopening.apply(&Contents::default()).unwrap_err());
        assert!(error.contains("access.log"), "{error}");
        log.record(&line(203));
        assert_eq!(lines(&gone, 2)[1]["status"], 203);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, messages) = sync_channel(2);
        let log = AccessLog {
            queue: Some(queue),
            file: None,
            sampling: Arc::new(Sampling::new(1.0)),
            dropped: Counter::default(),
            failed: Counter::default(),
        };
        let metrics = Metrics::new("gateway");
        log.measure(&metrics);
        (0..5).for_each(|_| log.record(&line(200)));
        assert_eq!(messages.try_iter().count(), 2);
        let text = metrics.render();
        let lost = r#"tourin_gateway_access_log_lost_total{reason="queue_full"} 3"#;
        assert!(text.contains(lost), "{text}");
    }

    #[test]
    fn a_log_that_cannot_be_opened_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let error = AccessLog::open(&settings(folder.path(), 1.0)).unwrap_err();
        assert!(format!("{error:#}").contains("--access-log"), "{error:#}");
    }
}
