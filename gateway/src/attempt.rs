//! One attempt of a request on one instance: its metrics, and the facts of its span, which is built
//! later if the request's spans are exported.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::{Error, ErrorSource, ErrorType};
use tourin_chassis::telemetry::{DeferredRequest, FinishedCall, HttpCall, SpanId};

use crate::balance::Member;
use crate::metrics::{TryOutcome, UpstreamMetrics};
use crate::outliers::{Failure, InFlight, Reason};
use crate::responses::Response;
use crate::routes::Route;

/// A time-out of an attempt that had less time than this says nothing about the instance: the request's
/// own time was used up by others.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

/// What a failed attempt shows.
#[derive(Debug, Clone, Copy)]
pub struct FailedAttempt {
    /// Why it failed, one of a fixed set.
    pub reason: &'static str,
    /// Why its instance was ejected, if it was.
    pub ejected: Option<Reason>,
}

/// An attempt, in progress or ended.
#[derive(Debug)]
pub struct Attempt {
    /// The instance, with its health.
    pub member: Arc<Member>,
    in_flight: Option<InFlight>,
    span: SpanId,
    headers: Vec<(HeaderName, HeaderValue)>,
    began: Instant,
    began_at: SystemTime,
    /// When the instance had the whole request; `began`, if the body did not come slowly.
    waits_since: Instant,
    took: Option<Duration>,
    status: Option<u16>,
    failed: Option<&'static str>,
    abandoned: Option<&'static str>,
    counts: Arc<UpstreamMetrics>,
    settled: bool,
}

impl Attempt {
    /// Begins an attempt of `request`.
    pub fn begin(
        request: &DeferredRequest,
        member: Arc<Member>,
        counts: Arc<UpstreamMetrics>,
    ) -> Self {
        let (span, headers) = request.new_call();
        let began = Instant::now();
        Self {
            in_flight: Some(member.health.begin(began)),
            member,
            span,
            headers,
            began,
            began_at: SystemTime::now(),
            waits_since: began,
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

    /// The instance has the whole request since `now`.
    pub fn request_sent(&mut self, now: Instant) {
        self.waits_since = now;
    }

    /// The response's head has arrived.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
        let now = Instant::now();
        let took = now.saturating_duration_since(self.waits_since);
        self.member.health.answered(now, took);
        self.counts.answered_after(&self.member.instance.id, took);
        // A class is one digit.
        self.settle(TryOutcome::Answered(u8::try_from(status / 100).unwrap_or(5)));
    }

    /// Its response is a stream, which may be quiet for long.
    pub fn becomes_stream(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.becomes_stream();
        }
    }

    /// The attempt failed, before or after the response's head. `verdict` is the gateway's response if the
    /// gateway or the client ended the attempt. `is_stale` says that the connection was idle before, and
    /// that the instance may have closed it: that says nothing about the instance.
    pub fn failed(
        &mut self,
        error: &Error,
        verdict: Option<&Response>,
        is_stale: bool,
    ) -> FailedAttempt {
        let (outcome, reason) = judge(error, verdict, self.status.is_some());
        let failure = match outcome {
            TryOutcome::ConnectFailed => Some(Failure::Broken),
            TryOutcome::BrokenOff if !is_stale => Some(Failure::Broken),
            TryOutcome::TimedOut if self.began.elapsed() >= SHORTEST_TIMEOUT => {
                Some(Failure::TimedOut)
            }
            _ => None,
        };
        let ejected = failure
            .and_then(|failure| self.member.health.failed(failure, self.began, Instant::now()));
        if outcome == TryOutcome::Abandoned {
            self.abandoned = Some(reason);
        } else {
            self.failed = Some(reason);
        }
        self.settle(outcome);
        self.finish();
        FailedAttempt { reason, ejected }
    }

    /// The instance's response is complete, or no longer needed.
    pub fn end(&mut self) {
        if let (true, Some(status)) = (self.is_open(), self.status) {
            self.member.health.completed(status >= 500);
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.took.get_or_insert_with(|| self.began.elapsed());
        self.in_flight = None;
        self.settle(TryOutcome::Abandoned);
    }

    /// The request is sent again, for this reason.
    pub fn retried(&self) {
        self.counts.retried();
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
                instance: Some(&self.member.instance.id),
                address: Some(self.member.instance.address),
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
        if !std::mem::replace(&mut self.settled, true) {
            self.counts.tried(&self.member.instance.id, outcome);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.settle(TryOutcome::Abandoned);
    }
}

fn judge(
    error: &Error,
    verdict: Option<&Response>,
    has_answered: bool,
) -> (TryOutcome, &'static str) {
    if let Some(answer) = verdict {
        return match answer.status {
            // The client may have read slowly: over HTTP/2 nothing else ends that.
            StatusCode::GATEWAY_TIMEOUT if has_answered => (TryOutcome::Abandoned, "deadline"),
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
        kind if is_tls_failure(kind) => (TryOutcome::ConnectFailed, "tls_failed"),
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
    ) || is_tls_failure(kind)
}

fn is_tls_failure(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError
    )
}
