//! One attempt of a request on one instance: its metrics, and the facts of its span, which is built
//! later if the request's spans are exported.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::{Error, ErrorSource, ErrorType};
use tourin_chassis::telemetry::{DeferredRequest, FinishedCall, HttpCall, SpanId};
use tourin_registry_api::Instance;

use crate::metrics::{TryOutcome, UpstreamMetrics};
use crate::responses::Response;
use crate::routes::Route;

/// An attempt, in progress or ended.
#[derive(Debug)]
pub struct Attempt {
    /// The instance.
    pub instance: Instance,
    span: SpanId,
    headers: Vec<(HeaderName, HeaderValue)>,
    began: Instant,
    began_at: SystemTime,
    took: Option<Duration>,
    status: Option<u16>,
    failed: Option<&'static str>,
    abandoned: Option<&'static str>,
    counts: Option<Arc<UpstreamMetrics>>,
    settled: bool,
}

impl Attempt {
    /// Begins an attempt of `request`.
    pub fn begin(
        request: &DeferredRequest,
        instance: Instance,
        counts: Option<Arc<UpstreamMetrics>>,
    ) -> Self {
        let (span, headers) = request.new_call();
        Self {
            instance,
            span,
            headers,
            began: Instant::now(),
            began_at: SystemTime::now(),
            took: None,
            status: None,
            failed: None,
            abandoned: None,
            counts,
            settled: false,
        }
    }

    /// The headers by which the service continues the trace.
    pub fn take_headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        std::mem::take(&mut self.headers)
    }

    /// Whether it is in progress.
    pub fn is_open(&self) -> bool {
        self.took.is_none()
    }

    /// The response's head has arrived.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
        if let Some(counts) = &self.counts {
            counts.answered_after(self.began.elapsed());
        }
        // A class is one digit.
        self.settle(TryOutcome::Answered(u8::try_from(status / 100).unwrap_or(5)));
    }

    /// The attempt failed, before or after the response's head. Returns the reason, one of a fixed set.
    /// `verdict` is the gateway's response if the gateway or the client ended the attempt.
    pub fn failed(&mut self, error: &Error, verdict: Option<&Response>) -> &'static str {
        let (outcome, reason) = judge(error, verdict);
        if outcome == TryOutcome::Abandoned {
            self.abandoned = Some(reason);
        } else {
            self.failed = Some(reason);
        }
        self.settle(outcome);
        self.end();
        reason
    }

    /// The instance's response is complete, or no longer needed.
    pub fn end(&mut self) {
        self.took.get_or_insert_with(|| self.began.elapsed());
        self.settle(TryOutcome::Abandoned);
    }

    /// The request is sent again, for this reason.
    pub fn retried(&self) {
        if let Some(counts) = &self.counts {
            counts.retried();
        }
    }

    /// The attempt's span; `number` attempts came before it.
    pub fn as_call<'a>(
        &'a self,
        method: &'a Method,
        route: &'a Route,
        number: usize,
    ) -> FinishedCall<'a> {
        FinishedCall {
            id: self.span,
            call: HttpCall {
                method,
                route: &route.template,
                service: &route.service,
                instance: Some(&self.instance.id),
                address: Some(self.instance.address),
                resend_count: u32::try_from(number).unwrap_or(u32::MAX),
            },
            started: self.began_at,
            took: self.took.unwrap_or_else(|| self.began.elapsed()),
            status: self.status,
            error: self.failed,
            abandoned: self.abandoned,
        }
    }

    fn settle(&mut self, outcome: TryOutcome) {
        if let Some(counts) = self.counts.as_ref().filter(|_| !self.settled) {
            counts.tried(outcome);
        }
        self.settled = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.settle(TryOutcome::Abandoned);
    }
}

fn judge(error: &Error, verdict: Option<&Response>) -> (TryOutcome, &'static str) {
    if let Some(answer) = verdict {
        return match answer.status {
            // Only this one says something about the instance.
            StatusCode::GATEWAY_TIMEOUT => (TryOutcome::TimedOut, "timeout"),
            StatusCode::REQUEST_TIMEOUT => (TryOutcome::Abandoned, "client_too_slow"),
            _ => (TryOutcome::Abandoned, answer.refusal_kind().unwrap_or("answered")),
        };
    }
    if *error.esource() == ErrorSource::Downstream {
        // A client that is still connected gets a response.
        return (TryOutcome::Abandoned, "client_gone");
    }
    match error.etype() {
        ErrorType::ConnectTimedout => (TryOutcome::ConnectFailed, "connect_timeout"),
        ErrorType::ConnectRefused => (TryOutcome::ConnectFailed, "connect_refused"),
        ErrorType::ConnectNoRoute => (TryOutcome::ConnectFailed, "connect_no_route"),
        kind if is_connect_failure(kind) => (TryOutcome::ConnectFailed, "connect_failed"),
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => (TryOutcome::TimedOut, "timeout"),
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
            (TryOutcome::BrokenOff, "broken_off")
        }
        _ => (TryOutcome::BrokenOff, "not_http"),
    }
}

/// Whether no connection could be made.
pub fn is_connect_failure(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::BindError
    )
}
