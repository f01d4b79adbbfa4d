//! What is done with a route's requests besides sending them on: a cache of the responses, a share for a
//! new version, copies for a mirror.

mod response_cache;

use std::sync::Arc;

use clap::Args;
use http::{HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use tokio_util::sync::CancellationToken;
use tourin_chassis::identity::{IdentitySigner, Subject};
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Tasks;

use crate::canary::{CallerFacts, CanaryMetrics, VERSION_HEADER, VersionChoice};
use crate::context::{Admitted, RequestContext};
use crate::mesh_client::MeshClient;
use crate::mirror::{
    Mirror, MirrorCopy, MirrorIdentity, MirrorPolicy, MirrorProbe, MirrorSettings,
};
use crate::responses::Response;
use crate::routes::Route;
pub use response_cache::{CacheSettings, ResponseCache};

/// Settings of cache and mirrors.
#[derive(Debug, Clone, Copy, Args)]
pub struct TrafficSettings {
    /// The cache's.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// The mirrors'.
    #[command(flatten)]
    pub mirror: MirrorSettings,
}

/// The state of cache and mirrors. It outlives the route table.
pub struct Traffic {
    /// Cached responses.
    pub cache: ResponseCache,
    mirror: Mirror,
    canary: CanaryMetrics,
}

impl Traffic {
    /// Starts the task that sends copies to mirrors, until `stop`.
    pub fn start(
        settings: TrafficSettings,
        (mesh, signer): (&MeshClient, &Arc<IdentitySigner>),
        metrics: &Metrics,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        let as_gateway = (mesh.clone(), Arc::clone(signer));
        let (mirror, copying) = Mirror::new(settings.mirror, as_gateway, metrics, stop.clone());
        tasks.spawn("mirrors", copying);
        Self {
            cache: ResponseCache::new(settings.cache, Arc::clone(signer), metrics),
            mirror,
            canary: CanaryMetrics::new(metrics),
        }
    }

    /// The version for a request.
    ///
    /// # Errors
    /// See [`crate::canary::Canary::choose`].
    pub fn choose_version(
        &self,
        route: &Route,
        caller: &CallerFacts<'_>,
    ) -> Result<VersionChoice, Response> {
        let Some(canary) = &route.canary else { return Ok(VersionChoice::Any) };
        let choice = canary.choose(caller)?;
        self.canary.chosen(&route.template, &choice);
        Ok(choice)
    }

    /// Adds what a response tells of version and cache.
    ///
    /// # Errors
    /// Pingora's, which the headers set here do not cause.
    pub fn mark(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &RequestContext,
    ) -> pingora::Result<()> {
        let forced = ctx.admitted.as_ref().and_then(|admitted| admitted.version.forced());
        if let Some(version) = forced.and_then(|version| HeaderValue::from_str(version).ok()) {
            response.insert_header(VERSION_HEADER, version)?;
        }
        self.cache.mark(session, response, ctx)
    }

    /// The exchange has ended; `failed` if not with a complete response.
    pub fn end(&self, session: &Session, ctx: &mut RequestContext, failed: bool) {
        self.cache.count(session, ctx);
        if let Some(probe) = ctx.mirror.take().filter(|_| !failed) {
            self.mirror.submit(probe);
        }
    }
}

/// An attempt begins. The first one decides whether the request is copied to a mirror; the last one's response
/// is what the mirror's is compared with.
pub fn begin_attempt(session: &Session, ctx: &mut RequestContext) {
    if let Some(probe) = &mut ctx.mirror {
        probe.restart();
    }
    if std::mem::replace(&mut ctx.mirror_decided, true) {
        return;
    }
    let Some(admitted) = &ctx.admitted else { return };
    let Some(policy) = &admitted.route.mirror else { return };
    if policy.takes(&session.req_header().method)
        && let Some(copy) = copy(session, admitted, policy)
    {
        let template = Arc::clone(&admitted.route.template);
        ctx.mirror = Some(Box::new(MirrorProbe::new(template, Arc::clone(policy), copy)));
    }
}

/// The head of an attempt's response has come. One that confirms a cached response has nothing to compare.
pub fn answered(session: &Session, ctx: &mut RequestContext, status: StatusCode) {
    if status == StatusCode::NOT_MODIFIED && session.cache.enabled() {
        ctx.mirror = None;
    }
    if let Some(probe) = &mut ctx.mirror {
        probe.answered(status.as_u16());
    }
}

/// `None` for a body that was not kept.
fn copy(session: &Session, admitted: &Admitted, policy: &MirrorPolicy) -> Option<MirrorCopy> {
    let request = session.req_header();
    let body = match admitted.body_declared {
        Some(0) => None,
        _ => Some(session.as_ref().get_retry_buffer()?),
    };
    // With a cache the service is asked for the whole response, by GET.
    let whole = session.cache.enabled();
    Some(MirrorCopy {
        method: if whole { Method::GET } else { request.method.clone() },
        target: request.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        headers: MirrorCopy::headers_of(&request.headers, whole),
        body,
        subject: match policy.identity {
            MirrorIdentity::Caller => Subject::clone(&admitted.subject),
            MirrorIdentity::Visitor => MirrorCopy::visitor(),
        },
    })
}
