//! Limits on calls per minute: by client address, by member, or for a route as a whole.
//!
//! A limit counts at this gateway alone, by governor, or is shared by all gateways through Redis
//! ([`shared`]). Both use the generic cell rate algorithm: calls may come all at once up to the burst, and
//! are then paid back one by one.
//!
//! A shared limit is counted here first. What this gateway alone refuses needs no round trip, so a client
//! that calls far too often costs Redis no more than its limit. While Redis is away the own count decides:
//! then a client gets at most the limit at each gateway.

pub mod shared;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use toml::Spanned;

use crate::keyed::Keyed;
use crate::limits::network_of;
use crate::messages;
use crate::policy_fields::{FieldError, number};
use crate::responses::Response;
use shared::SharedCounts;

/// Callers counted apart, per limit, so that memory is bounded.
const MAX_CALLERS: usize = 100_000;
const EVICT_EVERY: Duration = Duration::from_secs(10);
/// How many counts all callers of a route share while it has [`MAX_CALLERS`], each by its hash: somebody with
/// very many addresses fills them, and must not use up one count that is everybody's.
const SHARED_COUNTS: u64 = 1 << 16;
/// The key of limits for a whole route.
const EVERYBODY: u64 = 0;
/// Largest limit and burst: `gcra.lua` counts in whole microseconds.
const MAX_PER_MINUTE: u32 = 1_000_000;
/// The window that policies name, in seconds.
const WINDOW_S: u32 = 60;
/// The limits that a response was counted against (draft-ietf-httpapi-ratelimit-headers-10).
const POLICY_HEADER: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of each.
const STATE_HEADER: HeaderName = HeaderName::from_static("ratelimit");

/// Whose calls are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A client address; of IPv6 its /64.
    Address,
    /// A member; a visitor's client address.
    Member,
    /// All callers of the route.
    Route,
}

impl By {
    /// The policy's name in the headers.
    fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Member => "member",
            Self::Route => "route",
        }
    }
}

/// A `[[route.rate_limit]]` as it stands in the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRateLimit {
    by: Spanned<By>,
    per_minute: Spanned<u64>,
    burst: Option<Spanned<u64>>,
    #[serde(default)]
    shared: bool,
}

/// A limit of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    by: By,
    per_minute: NonZeroU32,
    burst: NonZeroU32,
    shared: bool,
}

/// The limits of a route, in the order in which they are counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteLimits {
    limits: Vec<RateLimit>,
    policy: Option<HeaderValue>,
}

impl RouteLimits {
    /// Checks the limits of a route. `per_address` is the short form of one by address.
    ///
    /// # Errors
    /// For a number that is out of its range, and two limits by the same.
    pub fn check(
        per_address: Option<Spanned<u64>>,
        raw: Vec<RawRateLimit>,
    ) -> Result<Self, FieldError> {
        let mut limits = Vec::new();
        let count = |field: &str, value: &Spanned<u64>| -> Result<NonZeroU32, FieldError> {
            number(field, Some(value), 1..=MAX_PER_MINUTE.into())?;
            let count = u32::try_from(*value.get_ref()).ok().and_then(NonZeroU32::new);
            // In the range.
            Ok(count.unwrap_or(NonZeroU32::MIN))
        };
        if let Some(rate) = per_address {
            let per_minute = count("rate_per_minute", &rate)?;
            limits.push(RateLimit {
                by: By::Address,
                per_minute,
                burst: per_minute,
                shared: false,
            });
        }
        for entry in raw {
            let RawRateLimit { by, per_minute, burst, shared } = entry;
            let rate = count("rate_limit.per_minute", &per_minute)?;
            let burst = burst.map(|burst| count("rate_limit.burst", &burst)).transpose()?;
            let (at, by) = (by.span().start, by.into_inner());
            if limits.iter().any(|known| known.by == by) {
                let expected = "one limit of each kind per route (rate_per_minute is by address)";
                return Err(FieldError::new(at, "rate_limit.by", by.label(), expected));
            }
            limits.push(RateLimit { by, per_minute: rate, burst: burst.unwrap_or(rate), shared });
        }
        limits.sort_unstable_by_key(|limit| limit.by);
        let policies: Vec<_> = limits
            .iter()
            .map(|limit| format!("\"{}\";q={};w={WINDOW_S}", limit.by.label(), limit.per_minute))
            .collect();
        let policy = HeaderValue::try_from(policies.join(", ")).ok();
        Ok(Self { policy: policy.filter(|_| !limits.is_empty()), limits })
    }

    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// The limits by client address, in calls per minute.
    #[cfg(test)]
    pub fn per_address(&self) -> Option<u32> {
        let mut limits = self.limits.iter();
        limits.find(|limit| limit.by == By::Address).map(|limit| limit.per_minute.get())
    }
}

/// A route, by what is counted of it.
#[derive(Debug, Clone, Copy)]
pub struct LimitedRoute<'a> {
    /// Its template.
    pub template: &'a str,
    /// Its limits.
    pub limits: &'a RouteLimits,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// The member, if it has a session.
    pub member: Option<&'a str>,
}

/// How a caller stands with a limit after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Calls that are left now.
    pub left: u32,
    /// Time until all of them are.
    pub reset: Duration,
    /// Time until the next call is allowed; `None` if this one was.
    pub wait: Option<Duration>,
}

impl Standing {
    /// Of two counts of the same limit the one that allows less.
    fn stricter(self, other: Self) -> Self {
        if (other.wait.is_some(), self.left) > (self.wait.is_some(), other.left) {
            other
        } else {
            self
        }
    }
}

/// The standings of a request, as its response tells them.
#[derive(Debug, Default)]
pub struct RateHeaders {
    policy: Option<HeaderValue>,
    state: String,
}

impl RateHeaders {
    fn add(&mut self, limits: &RouteLimits, by: By, standing: Standing) {
        self.policy.clone_from(&limits.policy);
        let between = if self.state.is_empty() { "" } else { ", " };
        let (left, reset) = (standing.left, seconds(standing.reset));
        // Writing to a string cannot fail.
        let _ = write!(self.state, "{between}\"{}\";r={left};t={reset}", by.label());
    }

    /// Adds the headers to a response, if its route has limits.
    ///
    /// # Errors
    /// Pingora's, which these headers do not cause.
    pub fn apply(&self, response: &mut ResponseHeader) -> pingora::Result<()> {
        if let Some(policy) = &self.policy {
            response.insert_header(POLICY_HEADER, policy.clone())?;
            response.insert_header(STATE_HEADER, self.state.as_str())?;
        }
        Ok(())
    }
}

/// Rounded up, so that a client that waits this long is not refused again.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

type Limiter = DefaultKeyedRateLimiter<u64, StateInformationMiddleware>;

/// This gateway's counts of a route.
struct Counts {
    limits: RouteLimits,
    limiters: Vec<Limiter>,
}

/// The counts of all limits.
pub struct RateLimits {
    by_route: Keyed<Counts>,
    clock: DefaultClock,
    /// Keys the hashes of callers, so that nobody can choose to share another one's count.
    hasher: RandomState,
    shared: Option<Arc<SharedCounts>>,
}

impl RateLimits {
    /// Counts of this gateway, and those that it shares.
    pub fn new(shared: Option<Arc<SharedCounts>>) -> Self {
        Self {
            by_route: Keyed::default(),
            clock: DefaultClock::default(),
            hasher: RandomState::new(),
            shared,
        }
    }

    /// Counts a call against the limits of a route by address, before anything else of it is looked at.
    ///
    /// # Errors
    /// The refusal, when a limit is reached.
    pub async fn check_address(
        &self,
        route: LimitedRoute<'_>,
        caller: Caller<'_>,
        headers: &mut RateHeaders,
    ) -> Result<(), Response> {
        self.check(route, caller, headers, |by| by == By::Address).await
    }

    /// Counts a call against the other limits, once its caller is known and may make it.
    ///
    /// # Errors
    /// The refusal, when a limit is reached.
    pub async fn check_caller(
        &self,
        route: LimitedRoute<'_>,
        caller: Caller<'_>,
        headers: &mut RateHeaders,
    ) -> Result<(), Response> {
        self.check(route, caller, headers, |by| by != By::Address).await
    }

    async fn check(
        &self,
        route: LimitedRoute<'_>,
        caller: Caller<'_>,
        headers: &mut RateHeaders,
        is_due: impl Fn(By) -> bool,
    ) -> Result<(), Response> {
        let limits = route.limits;
        if !limits.limits.iter().any(|limit| is_due(limit.by)) {
            return Ok(());
        }
        let counts = self.counts(route);
        for (limit, limiter) in limits.limits.iter().zip(&counts.limiters) {
            if !is_due(limit.by) {
                continue;
            }
            let mut standing = self.count(limit, limiter, caller);
            if limit.shared
                && standing.wait.is_none()
                && let Some(shared) = &self.shared
                && let Some(everywhere) = shared.count(route.template, limit, caller).await
            {
                standing = standing.stricter(everywhere);
            }
            headers.add(limits, limit.by, standing);
            if let Some(wait) = standing.wait {
                let message = match limit.by {
                    By::Address => messages::too_many_calls(),
                    By::Member if caller.member.is_some() => messages::too_many_calls_of_yours(),
                    By::Member => messages::too_many_calls(),
                    By::Route => messages::too_many_calls_of_all(),
                };
                return Err(Response::rate_limited(message, wait));
            }
        }
        Ok(())
    }

    fn count(&self, limit: &RateLimit, limiter: &Limiter, caller: Caller<'_>) -> Standing {
        let key = match limit.by {
            By::Route => EVERYBODY,
            By::Address => self.hasher.hash_one(network_of(caller.address)),
            By::Member => match caller.member {
                Some(member) => self.hasher.hash_one(member),
                None => self.hasher.hash_one(network_of(caller.address)),
            },
        };
        let key = if limiter.len() < MAX_CALLERS { key } else { key % SHARED_COUNTS };
        let quota = limit.quota();
        match limiter.check_key(&key) {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                let used = limit.burst.get().saturating_sub(left);
                Standing { left, reset: quota.replenish_interval() * used, wait: None }
            }
            Err(until) => {
                let reset = quota.replenish_interval() * limit.burst.get();
                Standing { left: 0, reset, wait: Some(until.wait_time_from(self.clock.now())) }
            }
        }
    }

    /// The counts of a route. A route whose limits have changed has new ones.
    fn counts(&self, route: LimitedRoute<'_>) -> Arc<Counts> {
        let make = || Counts {
            limits: route.limits.clone(),
            limiters: route.limits.limits.iter().map(RateLimit::limiter).collect(),
        };
        let known = self.by_route.get_or_insert_with(route.template, make);
        if known.limits == *route.limits {
            known
        } else {
            self.by_route.insert(route.template, make())
        }
    }

    /// Evicts idle callers until `stop`.
    pub async fn evict_idle(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVICT_EVERY) => {}
            }
            for counts in self.by_route.all().values() {
                counts.limiters.iter().for_each(Limiter::retain_recent);
            }
            // The routes of some are gone by now.
            self.by_route.retain(|_, counts| !counts.limiters.iter().all(Limiter::is_empty));
        }
    }
}

impl RateLimit {
    fn quota(&self) -> Quota {
        Quota::per_minute(self.per_minute).allow_burst(self.burst)
    }

    fn limiter(&self) -> Limiter {
        RateLimiter::keyed(self.quota()).with_middleware()
    }
}

#[cfg(test)]
mod tests;
