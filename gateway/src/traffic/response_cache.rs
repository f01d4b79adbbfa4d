//! How requests use the cache of responses.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
use http::{HeaderName, HeaderValue, Method};
use pingora::cache::lock::{CacheKeyLockImpl, CacheLock};
use pingora::cache::predictor::Predictor;
use pingora::cache::{CacheKey, CachePhase, NoCacheReason, RespCacheable};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use tourin_chassis::identity::{IdentitySigner, KnownSubject, Subject};
use tourin_chassis::metrics::{Counters, Metrics};

use crate::cache::storage::ResponseStore;
use crate::cache::tags::{CacheTags, TagEpochs};
use crate::context::RequestContext;

/// The header that tells a client how the cache was used (RFC 9211).
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The pseudonym by which a service is asked for everybody.
const PSEUDONYM: &str = "cache";
/// How long requests wait for another one's answer before they ask the service themselves.
const LOCK_FOR: Duration = Duration::from_millis(2_000);
/// Keys per shard, of 16, whose responses were not cacheable: requests for them do not wait for each other.
const UNCACHEABLE_KEYS: usize = 1_024;

/// Settings of the cache.
#[derive(Debug, Clone, Copy, Args)]
pub struct CacheSettings {
    /// Memory for cached responses in bytes; only routes with `[route.cache]` use it
    #[arg(long, env = "TOURIN_GATEWAY_CACHE_BYTES", value_name = "BYTES", default_value_t = 32 << 20, value_parser = value_parser!(u64).range(1 << 20..))]
    pub cache_bytes: u64,
}

/// The cache of a gateway.
pub struct ResponseCache {
    store: &'static ResponseStore,
    lock: &'static CacheKeyLockImpl,
    predictor: &'static Predictor<16>,
    tags: CacheTags,
    signer: Arc<IdentitySigner>,
    /// As whom a service is asked for a shared response.
    everybody: Arc<KnownSubject>,
    requests: Counters<2>,
}

impl ResponseCache {
    /// An empty cache. Its memory is never freed, since Pingora asks for storage that lives for ever: make
    /// one for each gateway.
    pub fn new(settings: CacheSettings, signer: Arc<IdentitySigner>, metrics: &Metrics) -> Self {
        let tags = CacheTags::new(metrics.counter(
            "tourin_gateway_cache_invalidations",
            "Tags of cached responses that were invalidated",
        ));
        let store: &'static ResponseStore =
            Box::leak(Box::new(ResponseStore::new(settings.cache_bytes, tags.clone())));
        metrics.gauge_read("tourin_gateway_cache_entries", "Responses in the cache", move || {
            Some(store.size().0 as f64)
        });
        metrics.gauge_read(
            "tourin_gateway_cache_bytes",
            "Memory of the responses in the cache",
            move || Some(store.size().1 as f64),
        );
        Self {
            store,
            lock: Box::leak(CacheLock::new_boxed(LOCK_FOR)),
            predictor: Box::leak(Box::new(Predictor::new(UNCACHEABLE_KEYS, None))),
            tags,
            signer,
            everybody: Arc::new(Subject::Visitor { pseudonym: PSEUDONYM.to_owned() }.into()),
            requests: metrics.counters(
                "tourin_gateway_cache_requests",
                "Requests of routes with a cache, by how it was used",
            ),
        }
    }

    /// The tags, by which events invalidate.
    pub fn tags(&self) -> &CacheTags {
        &self.tags
    }

    /// Enables the cache for a request that may use it.
    pub fn enable(&self, session: &mut Session, ctx: &mut RequestContext) {
        let Some(admitted) = &mut ctx.admitted else { return };
        let Some(policy) = admitted.route.cache.clone() else { return };
        let request = session.req_header();
        let is_read = [Method::GET, Method::HEAD].contains(&request.method);
        let has_cookies = admitted.cookies.sent;
        if !is_read || !policy.serves(&admitted.subject, &request.headers, has_cookies) {
            return;
        }
        if policy.shared {
            // The service must not know for whom it answers.
            admitted.subject = Arc::clone(&self.everybody);
            admitted.identity = self.signer.sign_known(&self.everybody, &admitted.route.service);
        }
        session.cache.enable(self.store, None, Some(self.predictor), Some(self.lock), None);
        session.cache.set_max_file_size_bytes(policy.max_body_bytes);
    }

    /// The key: everything that a response depends on besides what `Vary` names.
    pub fn key(&self, session: &Session, ctx: &RequestContext) -> CacheKey {
        let request = session.req_header();
        let mut key = Vec::new();
        let mut add = |part: &str| {
            key.extend_from_slice(&(part.len() as u64).to_be_bytes());
            key.extend_from_slice(part.as_bytes());
        };
        let mut epochs = TagEpochs::default();
        if let Some(admitted) = &ctx.admitted {
            let client = &admitted.client;
            add(client.scheme);
            add(client.host.as_ref().map_or("", |host| host.as_str()));
            add(&admitted.route.service);
            add(admitted.version.name().unwrap_or_default());
            add(admitted.version.forced().unwrap_or_default());
            if let Some(policy) = &admitted.route.cache {
                let path = request.uri.path();
                epochs = self.tags.epochs(policy.tags(path));
            }
        }
        add(request.uri.path_and_query().map_or("/", |target| target.as_str()));
        let mut key = CacheKey::new(key, "");
        key.extensions.insert(epochs);
        key
    }

    /// Whether a response is stored.
    pub fn judge(&self, response: &ResponseHeader, ctx: &RequestContext) -> RespCacheable {
        let policy = ctx.admitted.as_ref().and_then(|admitted| admitted.route.cache.as_ref());
        match policy {
            Some(policy) => policy.judge(response),
            None => RespCacheable::Uncacheable(NoCacheReason::NeverEnabled),
        }
    }

    /// Tells the client and the span how the cache was used.
    ///
    /// # Errors
    /// Pingora's, which the header set here does not cause.
    pub fn mark(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &RequestContext,
    ) -> pingora::Result<()> {
        if !has_cache(ctx) {
            return Ok(());
        }
        let value = match session.cache.phase() {
            CachePhase::Hit => "tourin; hit",
            CachePhase::Revalidated => "tourin; fwd=stale; fwd-status=304",
            CachePhase::Expired => "tourin; fwd=stale",
            CachePhase::Miss => "tourin; fwd=uri-miss",
            _ => "tourin; fwd=bypass",
        };
        response.insert_header(CACHE_STATUS, HeaderValue::from_static(value))
    }

    /// Counts a request by how the cache was used.
    pub fn count(&self, session: &Session, ctx: &RequestContext) {
        if has_cache(ctx) {
            let outcome = match session.cache.phase() {
                CachePhase::Hit => "hit",
                CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => "revalidated",
                CachePhase::Expired => "expired",
                CachePhase::Miss => "miss",
                CachePhase::Disabled(NoCacheReason::NeverEnabled) => "personal",
                _ => "uncacheable",
            };
            self.requests.of([("route", ctx.route_name()), ("outcome", outcome)]).increase();
        }
    }
}

fn has_cache(ctx: &RequestContext) -> bool {
    ctx.admitted.as_ref().is_some_and(|admitted| admitted.route.cache.is_some())
}
