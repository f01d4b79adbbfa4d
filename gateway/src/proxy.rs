//! The handling of a request in Pingora's phases.
//!
//! Delivery contract: a request is sent to another instance only while nothing can have happened at
//! the first one: the connection failed, or was lost while the head was being written. Later only
//! idempotent methods are sent again, and only while the client has received nothing of a response:
//! after a lost connection, after a response that is not HTTP, and once after a time-out. So no instance
//! gets a POST or a PATCH that another one may have acted on.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, EXPECT};
use pingora::cache::key::HashBinary;
use pingora::cache::{CacheKey, CacheMeta, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorType, Result};
use tourin_chassis::http::fields::PERSONAL;
use tourin_chassis::telemetry::{Service, method_name};

use crate::access_log::{AccessLog, Line};
use crate::admission::AdmissionFilter;
use crate::attempt::Attempt;
use crate::connection::Connection;
use crate::context::RequestContext;
use crate::failover::Failover;
use crate::limits::UpstreamLimits;
use crate::mesh_client::CORE;
use crate::metrics::GatewayMetrics;
use crate::request_body::Unread;
use crate::responses::Response;
use crate::service_guards::Outcome;
use crate::stream_opening::{self, is_interim};
use crate::streams::StreamPlace;
use crate::timed_connector::name_timeout;
use crate::traffic;
use crate::unserved::Unserved;
use crate::upstream_tls::UpstreamTls;
use crate::{cache, compression, failures, headers, messages, websocket};

mod respond;

/// An error of the gateway; the response is in the request's context.
const VERDICT: ErrorType = ErrorType::Custom("verdict");
/// The status in the log when the client disconnected before the response. Never sent.
const CLIENT_GONE: u16 = 499;

/// The gateway's part in Pingora's proxy.
pub struct Proxy {
    admission: Arc<AdmissionFilter>,
    failover: Failover,
    limits: UpstreamLimits,
    tls: UpstreamTls,
    service: Service,
    metrics: Arc<GatewayMetrics>,
    access_log: AccessLog,
}

impl Proxy {
    /// A proxy for the requests that the filter admits. Its spans are `service`'s.
    pub fn new(
        admission: Arc<AdmissionFilter>,
        (failover, limits, tls): (Failover, UpstreamLimits, UpstreamTls),
        service: Service,
        (metrics, access_log): (Arc<GatewayMetrics>, AccessLog),
    ) -> Self {
        Self { admission, failover, limits, tls, service, metrics, access_log }
    }

    /// Reads the body of an admitted request, within its deadline.
    async fn read_body(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        let Some(admitted) = &mut ctx.admitted else { return Ok(()) };
        let Some(connection) = &ctx.connection else {
            return Err(verdict(ctx, Response::internal()));
        };
        let (declared, deadline) = (admitted.body_declared, admitted.deadline);
        connection.end_by(deadline.into());
        if declared == Some(0) {
            return Ok(());
        }
        connection.wait_for_client(true);
        let limit = admitted.body_limit;
        let times = (self.limits.client_stall, deadline);
        let read = self.admission.bodies.read(session, declared, limit, times).await;
        connection.wait_for_client(false);
        match read {
            Ok(memory) => {
                admitted.body_memory = memory;
                Ok(())
            }
            Err(Unread::Refused(response)) => Err(verdict(ctx, response)),
            Err(Unread::Failed(error)) => {
                ctx.verdict =
                    failures::ended_downstream(&error, Some(deadline), session.is_body_done());
                Err(error)
            }
        }
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

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        compression::add_module(modules);
    }

    /// A request over HTTP/2 brings its connection along.
    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        if let Some(stream) = Connection::of_http2(session.req_header_mut()) {
            stream.admit();
            ctx.connection = Some(stream);
        }
        Ok(())
    }

    /// One over HTTP/1 gets it from the accept loop in this way, also a first request.
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
        headers::forget_spelling(session.req_header_mut());
        headers::apply_version(session);
        let path = self.admission.locate(session.req_header(), ctx);
        if ctx.route.as_ref().is_none_or(|route| route.streams.upgrade.is_none()) {
            headers::forbid_upgrade(session.req_header_mut());
        }
        let is_trusted = ctx.connection.as_ref().is_some_and(|connection| {
            self.admission.trusted_proxies.contains(connection.peer.ip())
        });
        ctx.begin(&self.service, session.req_header(), is_trusted);
        let trace = ctx.span().trace_id();
        ctx.request_id = headers::request_id(&session.req_header().headers, trace.as_deref());
        let span = ctx.span().handle();
        let admitted = span.run(self.admission.admit(session, ctx, path)).await;
        let entered = match admitted {
            Ok(()) => {
                self.read_body(session, ctx).await?;
                self.admission.enter(ctx, session.is_body_done())
            }
            refused => refused,
        };
        if let Err(answer) = entered {
            self.respond(session, ctx, answer).await?;
            return Ok(true);
        }
        Ok(false)
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        self.admission.traffic.cache.enable(session, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        Ok(self.admission.traffic.cache.key(session, ctx))
    }

    fn response_cache_filter(
        &self,
        _: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<RespCacheable> {
        Ok(self.admission.traffic.cache.judge(response, ctx))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        _: &mut Self::CTX,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        cache::variance(meta, request)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        if let Some(attempt) = ctx.open_attempt() {
            attempt.end();
        }
        check_deadline(ctx)?;
        let header = session.req_header();
        let next = self.failover.next(header, ctx).await;
        let (Some(admitted), Some(trace)) = (&ctx.admitted, &ctx.trace) else {
            return Err(verdict(ctx, Response::internal()));
        };
        let Some(member) = next else {
            let message = messages::no_instance_is_up(&admitted.route.service);
            let refusal = Response::unavailable(message).because(Unserved::NoInstance);
            return Err(verdict(ctx, refusal));
        };
        let left = admitted.deadline.saturating_duration_since(Instant::now());
        let wait = self.failover.first_byte_wait(header, ctx, &member, left);
        let mut peer = self.tls.peer(&member.instance);
        // A new instance at an old one's address does not get the old one's connections.
        peer.group_key = member.connection_group;
        let options = &mut peer.options;
        options.connection_timeout = Some(self.limits.connect_timeout.min(left));
        options.total_connection_timeout = options.connection_timeout;
        (options.read_timeout, options.write_timeout) = (Some(wait), Some(wait));
        options.idle_timeout = Some(self.limits.idle_timeout);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        stream_opening::prepare(admitted, session.is_http2(), wait, &mut peer);
        let counts = self.metrics.upstream(&admitted.route.service);
        ctx.attempts.push(Attempt::begin(trace, member, counts));
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        traffic::begin_attempt(session, ctx);
        // A second attempt sends the body again.
        ctx.body_bytes = 0;
        ctx.head_sent = false;
        ctx.body_passes = !session.is_body_done();
        let Some(admitted) = &ctx.admitted else {
            return Err(verdict(ctx, Response::internal()));
        };
        if !ctx.body_passes {
            // The client was invited already.
            request.remove_header(&EXPECT);
        }
        let trace = ctx.attempts.last_mut().map(Attempt::take_headers).unwrap_or_default();
        headers::prepare_request(
            request,
            &ctx.request_id,
            &admitted.identity,
            &admitted.client,
            admitted.cookies,
            trace,
        );
        if admitted.route.streams.upgrade.is_some() { websocket::ask(request) } else { Ok(()) }
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        // Called once the head is written, also for an empty body.
        ctx.head_sent = true;
        if end && ctx.body_passes {
            ctx.body_has_passed();
        }
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
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if !is_interim(response)
            && let Some(attempt) = ctx.open_attempt()
        {
            attempt.answered(response.status.as_u16());
        }
        traffic::answered(session, ctx, response.status);
        if response.status.is_server_error() && ctx.has_fallback(&session.req_header().method) {
            // Counts for the instance as a 5xx that is passed on does.
            if let Some(attempt) = ctx.open_attempt() {
                attempt.end();
            }
            let refusal = Response::unavailable(messages::service_failed());
            return Err(verdict(ctx, refusal.because(Unserved::ServerError)));
        }
        // Before the client has the response, so that its next request finds the session ended.
        let from_core =
            ctx.admitted.as_ref().is_some_and(|admitted| *admitted.route.service == *CORE);
        if from_core {
            self.admission.authenticator.revocations.revoke_named(&response.headers);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if let (Some(probe), Some(part)) = (&mut ctx.mirror, body) {
            probe.add(part);
        }
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
        if !is_interim(response) {
            ctx.settle_call(Outcome::Answered(response.status.as_u16()));
            ctx.answered_after.get_or_insert_with(|| ctx.started.elapsed());
            if let Some(renewal) = ctx.renewal.take() {
                self.admission.authenticator.put_cookie(renewal, response).await?;
            }
        }
        if let Some(admitted) = &ctx.admitted {
            if admitted.is_personal && !is_interim(response) {
                response.insert_header(CACHE_CONTROL, PERSONAL)?;
            }
            let compression = admitted.route.compression.as_ref();
            if let Some(compression) = compression.filter(|_| !admitted.is_personal) {
                compression::begin(compression, session, response)?;
            }
            let policy = &self.admission.cookies;
            policy.check(&admitted.client, admitted.cookies, &response.headers);
        }
        headers::prepare_response(response, &ctx.request_id, ctx.span().trace_response())?;
        ctx.rate_headers.apply(response)?;
        let method = &session.req_header().method;
        self.admission.origins.mark(response, method, ctx.cross_origin.as_ref())?;
        self.admission.response_headers.add(response, ctx.is_tls())?;
        headers::downgrade_response(session, response);
        stream_opening::open(session, response, ctx)?;
        self.admission.traffic.mark(session, response, ctx)?;
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        _: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        check_deadline(ctx)?;
        let stream = ctx.admitted.as_ref().and_then(|admitted| admitted.stream.as_ref());
        if session.is_http2() && stream.is_some_and(StreamPlace::is_closing) {
            // Over HTTP/1 the connection closes it.
            return Error::e_explain(ErrorType::ConnectionClosed, "the stream was closed");
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.failover.not_connected(session, ctx, &mut error);
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
        name_timeout(&mut error);
        self.failover.broken(session, ctx, &mut error, client_reused);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        self.respond_to_failure(session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        let status = session.response_written().map_or(CLIENT_GONE, |head| head.status.as_u16());
        let took = ctx.started.elapsed();
        self.admission.traffic.end(session, ctx, error.is_some());
        let method = &session.req_header().method;
        let answered_after = ctx.answered_after.unwrap_or(took);
        let http = self.metrics.service.http();
        let (route, name) = (ctx.route_name(), method_name(method));
        match ctx.fell_back {
            None => http.observe(route, name, status, answered_after),
            Some(_) => http.observe_degraded(route, name, answered_after),
        }
        if status == CLIENT_GONE {
            if let Some(connection) = &ctx.connection {
                connection.abandoned(ctx.started);
            }
            ctx.span().annotate("client_gone", &[]);
        }
        let current = ctx.span().enter();
        let trace = ctx.span().trace_id();
        self.access_log.record(&Line {
            response_bytes: session.body_bytes_sent() as u64,
            trace_id: trace.as_deref(),
            error: error.map(Error::etype).filter(|kind| **kind != VERDICT).map(ErrorType::as_str),
            ..ctx.access_line(method, status, (took, answered_after))
        });
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
