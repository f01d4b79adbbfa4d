//! One try of a request towards one instance: its span and its counts.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::{Error, ErrorSource, ErrorType};
use tourin_chassis::telemetry::{HttpCall, Span, Text};
use tourin_registry_api::Instance;

use crate::metrics::{TryOutcome, UpstreamMetrics};
use crate::responses::Response;
use crate::routes::Route;

/// A try under way. Dropping it ends its span.
#[derive(Debug)]
pub struct Attempt {
    span: Span,
    began: Instant,
    counts: Option<Arc<UpstreamMetrics>>,
    settled: bool,
}

impl Attempt {
    /// Begins the try number `number`, from 1, of the request whose span is `request`.
    pub fn begin(
        request: &Span,
        (method, route): (&Method, &Route),
        instance: &Instance,
        number: usize,
        counts: Option<Arc<UpstreamMetrics>>,
    ) -> Self {
        let span = request.http_client(&HttpCall {
            method,
            route: Text::from(&route.template),
            service: Text::from(&route.service),
            instance: Some(&instance.id),
            address: Some(instance.address),
            resend_count: u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX),
        });
        Self { span, began: Instant::now(), counts, settled: false }
    }

    /// The headers by which the service continues the trace.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        self.span.headers()
    }

    /// The head of the answer is there.
    pub fn answered(&mut self, status: u16) {
        self.span.set_status(status);
        if let Some(counts) = &self.counts {
            counts.answered_after(self.began.elapsed());
        }
        // A class is one digit.
        self.settle(TryOutcome::Answered(u8::try_from(status / 100).unwrap_or(5)));
    }

    /// It failed, before or after the head of its answer. Gives the reason in a fixed word.
    /// `verdict` is the answer where the gateway itself gave up, or the client made it.
    pub fn failed(&mut self, error: &Error, verdict: Option<&Response>) -> &'static str {
        let (outcome, reason) = judge(error, verdict);
        if outcome == TryOutcome::Abandoned {
            self.span.annotate("abandoned", &[("reason", reason)]);
        } else {
            self.span.set_error(reason);
        }
        self.settle(outcome);
        reason
    }

    /// The request is sent again, for this reason.
    pub fn retried(&self) {
        if let Some(counts) = &self.counts {
            counts.retried();
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
            // The only verdict over an instance.
            StatusCode::GATEWAY_TIMEOUT => (TryOutcome::TimedOut, "timeout"),
            StatusCode::REQUEST_TIMEOUT => (TryOutcome::Abandoned, "client_too_slow"),
            _ => (TryOutcome::Abandoned, answer.refusal_kind().unwrap_or("answered")),
        };
    }
    if *error.esource() == ErrorSource::Downstream {
        // Whoever is still there gets an answer.
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
