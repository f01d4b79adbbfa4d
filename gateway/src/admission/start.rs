//! The start of the admission filter, with the tasks that keep its data current.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::identity::IdentitySigner;
use tourin_chassis::peer::spiffe_id;
use tourin_chassis::shutdown::Tasks;
use tourin_registry_api::{Workload, WorkloadName};

use super::{AdmissionFilter, RequestLimits};
use crate::auth::Authenticator;
use crate::auth::cookies::CookiePolicy;
use crate::auth::keys::KeyStore;
use crate::auth::revocation::Revocations;
use crate::auth::revocation::stream::RevocationStream;
use crate::auth::sliding::SlidingSessions;
use crate::auth::tokens::{TokenRules, TokenVerifier};
use crate::auth::visitor::Visitors;
use crate::client_address::TrustedProxies;
use crate::config::Settings;
use crate::landing_page::LandingPage;
use crate::limits::{ClientRequests, ConcurrencyLimit};
use crate::mesh_client::MeshClient;
use crate::metrics::GatewayMetrics;
use crate::openapi::ApiDescription;
use crate::origin::OriginPolicy;
use crate::rate_limits::RateLimits;
use crate::rate_limits::shared::SharedCounts;
use crate::readiness::Readiness;
use crate::request_body::BodyMemory;
use crate::response_headers::ResponseHeaders;
use crate::routes::CurrentRoutes;
use crate::service_guards::ServiceGuards;
use crate::streams::OpenStreams;
use crate::traffic::Traffic;
use crate::upstreams::Upstreams;

/// What the gateway reads and counts in the Redis of sessions.
pub type SessionRedis = (RevocationStream, Arc<SharedCounts>);

/// Builds the filter, and starts the tasks that keep its data current until `stop`.
#[expect(clippy::too_many_arguments, reason = "each is another part of the gateway")]
pub fn start(
    settings: &Settings,
    routes: Arc<CurrentRoutes>,
    (workload, mesh, upstreams): (&Workload, MeshClient, Arc<Upstreams>),
    redis: Option<SessionRedis>,
    streams: OpenStreams,
    metrics: &GatewayMetrics,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Arc<AdmissionFilter> {
    let clock: SharedClock = Arc::new(SystemClock);
    let WorkloadName { mesh: trust_domain, service, instance } = workload.name();
    let signer = IdentitySigner::new(workload.key(), &spiffe_id(trust_domain, service, instance));
    let signer = Arc::new(signer);
    let traffic = Traffic::start(settings.traffic, (&mesh, &signer), &metrics.service, tasks, stop);
    let registry = mesh.directory().connected();
    let keys = Arc::new(KeyStore::default());
    let stale_after = Duration::from_millis(settings.revocation_stale_ms);
    let when_stale = settings.revocation_when_stale;
    let revocations = Revocations::new(stale_after, when_stale, Arc::clone(&clock));
    let revocations = Arc::new(revocations.with_tags(traffic.cache.tags().clone()));
    let api = Arc::new(ApiDescription::default());

    macro_rules! follow {
        ($name:literal, $what:ident, $method:ident $(, $argument:ident)*) => {{
            let (what, stop) = (Arc::clone(&$what), stop.clone());
            $(let $argument = $argument.clone();)*
            tasks.spawn($name, async move { what.$method($($argument,)* stop).await });
        }};
    }
    follow!("upstreams", upstreams, follow);
    follow!("token keys", keys, follow, mesh);
    let (stream, shared) = redis.unzip();
    match stream {
        Some(stream) => follow!("ended sessions", revocations, follow_stream, stream),
        None => follow!("ended sessions", revocations, follow, mesh),
    }
    let (canary, canaries) = (settings.canary, metrics.canaries.clone());
    follow!("canary sessions", revocations, measure, canary, canaries, mesh);
    let (open, known, ends) = (streams.clone(), Arc::clone(&revocations), stop.clone());
    tasks.spawn("streams", async move {
        let has_ended = |session: &str, opened| {
            known.has_ended(session) || known.may_have_missed_an_end(opened)
        };
        open.follow(has_ended, ends).await;
    });
    let visitors = Arc::new(Visitors::default());
    follow!("visitor key", visitors, follow, mesh);
    let rates = Arc::new(RateLimits::new(shared.clone()));
    follow!("rate limits", rates, evict_idle);
    if let Some(shared) = shared {
        shared.read_state(&metrics.service);
        follow!("shared rate limits", shared, follow);
    }
    let guards = Arc::new(ServiceGuards::new(settings.breaker.clone(), settings.adaptive));
    follow!("service guards", guards, follow, routes);
    follow!("API description", api, follow, routes, mesh);

    let rules = TokenRules {
        issuer: settings.token_issuer.clone(),
        audience: settings.token_audience.clone(),
        leeway: Duration::from_secs(settings.token_leeway_s),
        cache_entries: settings.token_cache_entries,
    };
    let tokens = Arc::new(TokenVerifier::new(Arc::clone(&keys), &rules, Arc::clone(&clock)));
    let sliding = Arc::new(SlidingSessions::new(
        mesh,
        Arc::clone(&tokens),
        metrics.renewals.clone(),
        Duration::from_secs(settings.session_cookie_idle_s.into()),
        Arc::clone(&clock),
        stop.clone(),
    ));
    follow!("session renewals", sliding, drain);
    Arc::new(AdmissionFilter {
        readiness: Readiness::new(workload, registry, &metrics.service),
        routes,
        authenticator: Authenticator { tokens, revocations, sliding, visitors },
        upstreams,
        origins: OriginPolicy::new(settings.allowed_origins.clone()),
        response_headers: ResponseHeaders::new(&settings.response_headers),
        trusted_proxies: TrustedProxies {
            networks: settings.trusted_proxies.clone(),
            header: settings.forwarding_header,
        },
        cookies: CookiePolicy::new(settings.cookie_secure),
        signer,
        rates,
        client_requests: ClientRequests::new(settings.max_requests_per_client),
        streams,
        traffic,
        bodies: BodyMemory::default(),
        concurrency: ConcurrencyLimit::new(settings.max_requests),
        guards,
        api,
        landing_page: LandingPage::new(
            settings.traces_url.as_deref(),
            settings.metrics_url.as_deref(),
        ),
        limits: RequestLimits {
            uri_bytes: settings.uri_limit_bytes,
            header_count: settings.header_limit_count,
            body_bytes: settings.body_limit_bytes,
            first_byte_timeout: Duration::from_millis(settings.first_byte_timeout_ms),
            total_timeout: Duration::from_millis(settings.total_timeout_ms),
        },
        keys,
    })
}
