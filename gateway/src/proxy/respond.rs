//! Responses that the gateway sends itself: pages, refusals, and the fall-backs of routes.

use http::{Method, StatusCode};
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, Result};
use tourin_chassis::http::{Language, TRACE_RESPONSE_HEADER};

use super::{CLIENT_GONE, Proxy};
use crate::context::RequestContext;
use crate::failures;
use crate::fallback::Fallback;
use crate::responses::Response;
use crate::service_guards::Outcome;
use crate::stream_opening::is_interim;
use crate::unserved::Unserved;

impl Proxy {
    /// Sends a response of the gateway's own, or the route's fall-back in its place.
    ///
    /// # Errors
    /// When the client cannot be written to.
    pub(super) async fn respond(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        answer: Response,
    ) -> Result<()> {
        let answer = self.or_fallback(session, ctx, answer);
        if let Some(error) = answer.refusal_kind() {
            self.metrics.refused(error);
            let reason = answer.unserved.map_or("", Unserved::label);
            let facts = [("error", error), ("reason", reason)];
            // Only a service's own troubles have a reason.
            let known = if reason.is_empty() { 1 } else { 2 };
            ctx.span().annotate("refused", &facts[..known]);
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
        ctx.rate_headers.apply(&mut head)?;
        let method = &session.req_header().method;
        self.admission.origins.mark(&mut head, method, ctx.cross_origin.as_ref())?;
        self.admission.response_headers.add(&mut head, ctx.is_tls())?;
        // What follows a request that is not valid could be a part of it to somebody else.
        if answer.status == StatusCode::BAD_REQUEST || !session.is_body_done() {
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

    /// The fall-back of the request's route, if `answer` says that its service did not serve it.
    fn or_fallback(
        &self,
        session: &Session,
        ctx: &mut RequestContext,
        answer: Response,
    ) -> Response {
        let Some(reason) = answer.unserved else { return answer };
        ctx.settle_call(Outcome::Failed(reason));
        let Some(route) = &ctx.route else { return answer };
        match &route.fallback {
            Some(fallback) if Fallback::serves(&session.req_header().method) => {
                self.metrics.fell_back(&route.template, reason.label());
                ctx.span().annotate("fall_back", &[("reason", reason.label())]);
                ctx.fell_back = Some(reason);
                fallback.response(reason)
            }
            _ => answer,
        }
    }

    /// Responds to a request that failed after it was admitted, if its client is still there.
    pub(super) async fn respond_to_failure(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        session.set_keepalive(None);
        let begun = session.response_written().is_some_and(|head| !is_interim(head));
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
            Some(answer) => match self.respond(session, ctx, answer).await {
                Ok(()) => {
                    session.response_written().map_or(CLIENT_GONE, |head| head.status.as_u16())
                }
                Err(_) => CLIENT_GONE,
            },
        };
        if !begun && error_code != CLIENT_GONE {
            // Lingers while there is more from the client, so that it can read the response.
            session.shutdown().await;
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }
}
