//! The handling of a request in Pingora's phases.
//!
//! Delivery contract: a request is sent to another instance only while nothing can have happened at
//! the first one: the connection failed, or was lost while the head was being written. Later only
//! idempotent methods are sent again, and only while the client has received nothing of a response.
//! Time-outs are never retried.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType, Result};
use tourin_chassis::http::fields::PERSONAL;
use tourin_chassis::http::{Language, TRACE_RESPONSE_HEADER};
use tourin_chassis::identity::SESSION_ENDED_HEADER;
use tourin_chassis::telemetry::{Service, method_name};

use crate::admission::AdmissionFilter;
use crate::attempt::Attempt;
use crate::connection::Connection;
use crate::context::RequestContext;
use crate::mesh_client::CORE;
use crate::metrics::GatewayMetrics;
use crate::responses::Response;
use crate::{failures, headers, messages};

/// An error of the gateway; the response is in the request's context.
const VERDICT: ErrorType = ErrorType::Custom("verdict");
/// The status in the log when the client disconnected before the response. Never sent.
const CLIENT_GONE: u16 = 499;

/// Bounds of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamLimits {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for which an idle connection is kept.
    pub idle_timeout: Duration,
    /// Attempts for one request.
    pub tries: usize,
    /// Time for which a client may stall.
    pub client_stall: Duration,
}

/// The gateway's part in Pingora's proxy.
pub struct Proxy {
    admission: Arc<AdmissionFilter>,
    limits: UpstreamLimits,
    service: Service,
    metrics: Arc<GatewayMetrics>,
}

impl Proxy {
    /// A proxy for the requests that the filter admits. Its spans are `service`'s.
    pub fn new(
        admission: Arc<AdmissionFilter>,
        limits: UpstreamLimits,
        service: Service,
        metrics: Arc<GatewayMetrics>,
    ) -> Self {
        Self { admission, limits, service, metrics }
    }

    async fn respond(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        answer: &Response,
    ) -> Result<()> {
        if let Some(error) = answer.refusal_kind() {
            self.metrics.refused(error);
            ctx.span().annotate("refused", &[("error", error)]);
        }
        let (mut head, body) = {
            let _current = ctx.span().enter();
            answer.render(Language::preferred(&session.req_header().headers))?
        };
        ctx.answered_after.get_or_insert_with(|| ctx.started.elapsed());
        if let Some(renewal) = ctx.renewal.take() {
            self.admission.authenticator.put_cookie(renewal, &mut head).await?;
        }
        head.insert_header("x-request-id", ctx.request_id.clone())?;
        if let Some(value) = ctx.span().trace_response() {
            head.insert_header(TRACE_RESPONSE_HEADER, value)?;
        }
        let method = &session.req_header().method;
        self.admission.origins.mark(&mut head, method, ctx.cross_origin.as_ref())?;
        if !session.is_body_done() {
            session.set_keepalive(None);
            if let Some(connection) = &ctx.connection {
                connection.linger();
            }
        }
        let bodyless = body.is_empty() || session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(head), bodyless).await?;
        if !bodyless {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

fn verdict(ctx: &mut RequestContext, answer: Response) -> Box<Error> {
    ctx.verdict = Some(answer);
    Error::new_in(VERDICT)
}

fn check_deadline(ctx: &mut RequestContext) -> Result<()> {
    match &ctx.admitted {
        Some(admitted) if Instant::now() >= admitted.deadline => {
            Err(verdict(ctx, Response::upstream_too_slow()))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> Self::CTX {
        RequestContext::default()
    }

    fn init_downstream_modules(&self, _: &mut HttpModules) {
        // No compression: responses are small, and services' bodies pass unchanged.
    }

    /// The accept loop passes the connection in this way, also for a first request.
    fn on_connection_reuse(
        &self,
        _: &mut Session,
        ctx: &mut Self::CTX,
        given: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(connection) = given.downcast::<Arc<Connection>>() {
            connection.admit();
            ctx.connection = Some(*connection);
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        session.set_read_timeout(Some(self.limits.client_stall));
        session.set_write_timeout(Some(self.limits.client_stall));
        headers::forbid_upgrade(session.req_header_mut());
        headers::apply_version(session);
        let path = self.admission.locate(session.req_header(), ctx);
        let is_trusted = ctx.connection.as_ref().is_some_and(|connection| {
            self.admission.trusted_proxies.contains(connection.peer.ip())
        });
        ctx.begin(&self.service, session.req_header(), is_trusted);
        let trace = ctx.span().trace_id();
        ctx.request_id = headers::request_id(&session.req_header().headers, trace.as_deref());
        let span = ctx.span().handle();
        let Err(answer) = span.run(self.admission.admit(session, ctx, path)).await else {
            if let (Some(connection), Some(admitted)) = (&ctx.connection, &ctx.admitted) {
                connection.end_by(admitted.deadline.into());
            }
            return Ok(false);
        };
        self.respond(session, ctx, &answer).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        if let Some(attempt) = ctx.open_attempt() {
            attempt.end();
        }
        check_deadline(ctx)?;
        let (Some(admitted), Some(trace)) = (&ctx.admitted, &ctx.trace) else {
            return Err(verdict(ctx, Response::internal()));
        };
        let Some(instance) = self.admission.upstreams.pick(&admitted.route.service, &ctx.excluded)
        else {
            let message = if ctx.excluded.is_empty() {
                messages::no_instance_is_up(&admitted.route.service)
            } else {
                messages::no_instance_reachable(&admitted.route.service)
            };
            return Err(verdict(ctx, Response::unavailable(message)));
        };
        let left = admitted.deadline.saturating_duration_since(Instant::now());
        let wait = admitted.first_byte_timeout.min(left);
        let mut peer = HttpPeer::new(instance.address, false, String::new());
        // A new instance at an old one's address does not get the old one's connections.
        let mut id = DefaultHasher::new();
        instance.id.hash(&mut id);
        peer.group_key = id.finish();
        let options = &mut peer.options;
        options.connection_timeout = Some(self.limits.connect_timeout.min(left));
        options.total_connection_timeout = options.connection_timeout;
        options.read_timeout = Some(wait);
        options.write_timeout = Some(wait);
        options.idle_timeout = Some(self.limits.idle_timeout);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        let counts = self.metrics.upstream(&admitted.route.service).cloned();
        ctx.attempts.push(Attempt::begin(trace, instance, counts));
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        // A second attempt sends the body again.
        ctx.body_bytes = 0;
        ctx.head_sent = false;
        let Some(admitted) = &ctx.admitted else {
            return Err(verdict(ctx, Response::internal()));
        };
        let trace = ctx.attempts.last_mut().map(Attempt::take_headers).unwrap_or_default();
        headers::prepare_request(
            request,
            &ctx.request_id,
            &admitted.identity,
            &admitted.client,
            admitted.cookies,
            trace,
        )
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        // Called once the head is written, also for an empty body.
        ctx.head_sent = true;
        check_deadline(ctx)?;
        ctx.body_bytes += body.as_ref().map_or(0, |part| part.len() as u64);
        match &ctx.admitted {
            Some(admitted) if ctx.body_bytes > admitted.body_limit => {
                let limit = admitted.body_limit;
                Err(verdict(ctx, Response::body_too_large(limit)))
            }
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if !response.status.is_informational()
            && let Some(attempt) = ctx.open_attempt()
        {
            attempt.answered(response.status.as_u16());
        }
        // Before the client has the response, so that its next request finds the session ended.
        let from_core =
            ctx.admitted.as_ref().is_some_and(|admitted| *admitted.route.service == *CORE);
        if from_core {
            for ended in response.headers.get_all(SESSION_ENDED_HEADER) {
                if let Ok(sessions) = ended.to_str() {
                    self.admission.authenticator.revocations.revoke_listed(sessions);
                }
            }
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        // The instance's part is complete, even if the client still reads.
        if end && let Some(attempt) = ctx.open_attempt() {
            attempt.end();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if !response.status.is_informational() {
            ctx.answered_after.get_or_insert_with(|| ctx.started.elapsed());
            if let Some(renewal) = ctx.renewal.take() {
                self.admission.authenticator.put_cookie(renewal, response).await?;
            }
        }
        if let Some(admitted) = &ctx.admitted {
            if admitted.is_personal && !response.status.is_informational() {
                response.insert_header(CACHE_CONTROL, PERSONAL)?;
            }
            let policy = &self.admission.cookies;
            policy.check(&admitted.client, admitted.cookies, &response.headers);
        }
        headers::prepare_response(response, &ctx.request_id, ctx.span().trace_response())?;
        let method = &session.req_header().method;
        self.admission.origins.mark(response, method, ctx.cross_origin.as_ref())?;
        headers::downgrade_response(session, response);
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        check_deadline(ctx)?;
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent, so any method may be retried.
        let again = ctx.attempts.len() < self.limits.tries;
        error.set_retry(again);
        ctx.attempt_failed(&error, again);
        let _current = ctx.span().enter();
        if let Some(Attempt { instance, .. }) = ctx.attempts.last() {
            tracing::warn!(instance = instance.id, tries = ctx.attempts.len(), error = %error.etype().as_str(), "cannot connect");
            ctx.excluded.push(instance.id.clone());
        }
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        let lost = *error.esource() == ErrorSource::Upstream
            && matches!(
                error.etype(),
                ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
            );
        let unanswered = session.response_written().is_none();
        // The head was not written completely, so no service can have acted on it.
        let nothing_sent = *error.etype() == ErrorType::WriteError && !ctx.head_sent;
        let repeatable =
            session.req_header().method.is_idempotent() && !session.retry_buffer_truncated();
        let again = lost
            && unanswered
            && ctx.attempts.len() < self.limits.tries
            && (repeatable || nothing_sent);
        error.set_retry(again);
        if ctx.verdict.is_none() {
            let deadline = ctx.admitted.as_ref().map(|admitted| admitted.deadline);
            ctx.verdict = failures::ended_downstream(&error, deadline, session.is_body_done());
        }
        ctx.attempt_failed(&error, again);
        let _current = ctx.span().enter();
        if let Some(Attempt { instance, .. }) = ctx.attempts.last() {
            tracing::warn!(
                instance = instance.id, tries = ctx.attempts.len(), client_reused, again,
                error = %error.etype().as_str(), "an attempt failed"
            );
            // A stale idle connection says nothing about its instance.
            if again && !client_reused {
                ctx.excluded.push(instance.id.clone());
            }
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        session.set_keepalive(None);
        let begun = session.response_written().is_some_and(|head| !head.status.is_informational());
        let answer = ctx.verdict.take().or_else(|| failures::response(error));
        if let Some(answer) = &answer
            && answer.status == StatusCode::INTERNAL_SERVER_ERROR
        {
            let _current = ctx.span().enter();
            tracing::error!(request_id = ?ctx.request_id, %error, "a fault in the gateway");
        }
        let error_code = match answer {
            None => CLIENT_GONE,
            // The response has begun: the connection is cut, so that the client sees that it is incomplete.
            Some(answer) if begun => answer.status.as_u16(),
            Some(answer) => match self.respond(session, ctx, &answer).await {
                Ok(()) => answer.status.as_u16(),
                Err(_) => CLIENT_GONE,
            },
        };
        if !begun && error_code != CLIENT_GONE && !session.is_body_done() {
            session.shutdown().await; // Lingers, so that the client can read the response.
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        let status = session.response_written().map_or(CLIENT_GONE, |head| head.status.as_u16());
        let took = ctx.started.elapsed();
        let method = &session.req_header().method;
        let answered_after = ctx.answered_after.unwrap_or(took);
        self.metrics.service.http().observe(
            ctx.route_name(),
            method_name(method),
            status,
            answered_after,
        );
        if status == CLIENT_GONE {
            ctx.span().annotate("client_gone", &[]);
        }
        let current = ctx.span().enter();
        tracing::info!(
            method = method_name(method),
            route = ctx.route_name(),
            status,
            duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            instance = ctx.attempts.last().map_or("-", |attempt| attempt.instance.id.as_str()),
            tries = ctx.attempts.len(),
            request_id = ctx.request_id.to_str().unwrap_or("-"),
            error = error.map(Error::etype).filter(|kind| **kind != VERDICT).map(ErrorType::as_str),
            "request"
        );
        drop(current);
        ctx.finish(method, status);
    }

    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        // The access log has the error, without the query.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Self::CTX,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, ctx: &Self::CTX) -> String {
        format!("{} {}", session.req_header().method, ctx.route_name())
    }
}
