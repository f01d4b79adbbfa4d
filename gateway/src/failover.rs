//! What follows a failed attempt: another one at another instance, where [`crate::proxy`]'s delivery
//! contract and the limits of [`crate::retries`] allow it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};
use tourin_registry_api::Instance;

use crate::attempt::FailedAttempt;
use crate::balance::{Candidates, Member};
use crate::context::{Admitted, RequestContext};
use crate::failures;
use crate::retries::{RetrySettings, first_byte_wait};
use crate::streams::StreamPlace;
use crate::upstreams::Upstreams;

/// Chooses the instances of a request's attempts.
pub struct Failover {
    upstreams: Arc<Upstreams>,
    settings: RetrySettings,
    tries: usize,
}

/// How an attempt ended that may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Without a response, or with one that is not HTTP.
    Broken,
    /// On a connection that had been idle, and that the instance may have closed before.
    Stale,
    /// Without a response in time.
    TimedOut,
}

impl Failover {
    /// At most `tries` attempts for a request.
    pub fn new(upstreams: Arc<Upstreams>, settings: RetrySettings, tries: usize) -> Self {
        Self { upstreams, settings, tries }
    }

    /// The instance of the next attempt. Waits a little if one has failed.
    pub async fn next(
        &self,
        header: &RequestHeader,
        ctx: &mut RequestContext,
    ) -> Option<Arc<Member>> {
        let admitted = ctx.admitted.as_ref()?;
        if let Some(member) = ctx.next.take() {
            let left = admitted.deadline.saturating_duration_since(Instant::now());
            tokio::time::sleep(self.settings.pause(ctx.attempts.len()).min(left)).await;
            return Some(member);
        }
        self.upstreams.pool(&admitted.route.service).budget.request();
        let member = self.pick(header, admitted, &ctx.excluded)?;
        if !member.health.is_up() {
            let facts = [("instance", member.instance.id.as_str())];
            ctx.span().annotate("ejected_instance_used", &facts);
        }
        Some(member)
    }

    /// How long an attempt at `member` may wait for the first byte of a response, with so much time `left`.
    pub fn first_byte_wait(
        &self,
        header: &RequestHeader,
        ctx: &RequestContext,
        member: &Arc<Member>,
        left: Duration,
    ) -> Duration {
        let Some(Admitted { first_byte_timeout: whole, route, .. }) = &ctx.admitted else {
            return left;
        };
        // A request is repeated after one time-out: a second one is rather the request's own fault.
        let may_repeat = left / 2 < *whole
            && header.method.is_idempotent()
            && !ctx.has_timed_out
            && ctx.attempts.len() + 1 < self.tries
            && self.upstreams.pool(&route.service).has_another(member);
        first_byte_wait(*whole, left, may_repeat)
    }

    fn pick(
        &self,
        header: &RequestHeader,
        admitted: &Admitted,
        excluded: &[Arc<Member>],
    ) -> Option<Arc<Member>> {
        let policy = &admitted.route.balance;
        let key = policy.key(&header.headers, &admitted.subject);
        let version = &admitted.version;
        let pick = |accepts: &(dyn Fn(&Instance) -> bool + Sync)| {
            let candidates = Candidates { key, excluded, accepts };
            self.upstreams.pick(&admitted.route.service, policy, &candidates)
        };
        let chosen = pick(&|instance| version.accepts(instance));
        let is_up = |member: &Option<Arc<Member>>| {
            member.as_ref().is_some_and(|member| member.health.is_up())
        };
        if !version.falls_back() || is_up(&chosen) {
            return chosen;
        }
        // Rather one of the other side than one that is down.
        let any = pick(&|_| true);
        if chosen.is_none() || is_up(&any) { any } else { chosen }
    }

    /// No connection could be made. Nothing was sent, so any method may be sent again.
    pub fn not_connected(&self, session: &Session, ctx: &mut RequestContext, error: &mut Error) {
        let failed = ctx.attempt_failed(error, false);
        let again = self.repeat(session, ctx, Ended::Broken);
        error.set_retry(again);
        log(ctx, error, failed, again);
    }

    /// An attempt failed after its connection was made; `is_reused` says that it had been idle.
    pub fn broken(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        error: &mut Error,
        is_reused: bool,
    ) {
        let ended = match error.etype() {
            _ if *error.esource() != ErrorSource::Upstream => None,
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Some(Ended::TimedOut),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
                if is_reused =>
            {
                Some(Ended::Stale)
            }
            _ => Some(Ended::Broken),
        };
        let unanswered = session.response_written().is_none();
        // The head was not written completely, so no service can have acted on it.
        let is_writing = matches!(error.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
        let nothing_sent = is_writing && !ctx.head_sent;
        let repeatable =
            session.req_header().method.is_idempotent() && !session.retry_buffer_truncated();
        if ctx.verdict.is_none() {
            let deadline = ctx.admitted.as_ref().map(|admitted| admitted.deadline);
            ctx.verdict = failures::ended_downstream(error, deadline, session.is_body_done())
                .or_else(|| failures::stalled_body(error, session));
        }
        // A quiet stream is no fault of its instance.
        let is_idle = ended == Some(Ended::TimedOut)
            && ctx
                .admitted
                .as_ref()
                .and_then(|admitted| admitted.stream.as_ref())
                .is_some_and(StreamPlace::end_idle);
        if is_idle && let Some(attempt) = ctx.open_attempt() {
            attempt.end();
        }
        let failed = ctx.attempt_failed(error, ended == Some(Ended::Stale));
        let may = unanswered && (repeatable || nothing_sent) && ctx.verdict.is_none();
        let again = ended.filter(|_| may).is_some_and(|ended| self.repeat(session, ctx, ended));
        error.set_retry(again);
        log(ctx, error, failed, again);
    }

    /// Chooses the instance of another attempt, if there may be one.
    fn repeat(&self, session: &Session, ctx: &mut RequestContext, ended: Ended) -> bool {
        let Some(admitted) = &ctx.admitted else { return false };
        let is_late = Instant::now() >= admitted.deadline;
        let is_second_timeout = ended == Ended::TimedOut && ctx.has_timed_out;
        ctx.has_timed_out |= ended == Ended::TimedOut;
        if ctx.attempts.len() >= self.tries || is_late || is_second_timeout {
            return false;
        }
        if let Some(attempt) = ctx.attempts.last() {
            ctx.excluded.push(Arc::clone(&attempt.member));
        }
        let header = session.req_header();
        let mut next = self.pick(header, admitted, &ctx.excluded);
        if next.is_none() && ended == Ended::Stale {
            // A stale connection says nothing about its instance, which may be the only one.
            ctx.excluded.pop();
            next = self.pick(header, admitted, &ctx.excluded);
        }
        let pool = self.upstreams.pool(&admitted.route.service);
        if next.is_some() && !pool.budget.retry() {
            pool.group().metrics().retry_denied();
            ctx.span().annotate("retry_denied", &[("reason", "budget")]);
            return false;
        }
        ctx.next = next;
        ctx.next.is_some()
    }
}

fn log(ctx: &RequestContext, error: &Error, failed: Option<FailedAttempt>, again: bool) {
    let Some(attempt) = ctx.attempts.last() else { return };
    let instance = attempt.member.instance.id.as_str();
    if let Some(failed) = failed.filter(|_| again) {
        attempt.retried();
        let facts = [("reason", failed.reason), ("failed", instance)];
        ctx.span().annotate("retry", &facts);
    }
    let _current = ctx.span().enter();
    let tries = ctx.attempts.len();
    tracing::warn!(instance, tries, again, error = %error.etype().as_str(), "an attempt failed");
}
