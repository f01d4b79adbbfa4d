//! The route table: the service of each path, and who may call it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;

use crate::adaptive::Priority;
use crate::balance::{Policy, RawPolicy};
use crate::breaker::{RawBreaker, RouteBreaker};
use crate::cache::{CachePolicy, RawCache};
use crate::canary::{Canary, RawCanary};
use crate::compression::Compression;
use crate::fallback::{Fallback, RawFallback};
use crate::mirror::{MirrorPolicy, RawMirror};
use crate::path;
use crate::policy_fields::FieldError;
use crate::rate_limits::{LimitedRoute, RawRateLimit, RouteLimits};
use crate::streams::{StreamPolicy, Upgrade};

mod current;
mod file;

pub use current::CurrentRoutes;
pub use file::{RoutesFile, check};

/// The built-in table.
pub const BUILT_IN: &str = include_str!("../routes.toml");
/// The path of the merged API description, which the gateway serves itself.
pub const OPENAPI_PATH: &str = "/api/openapi.json";

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anybody. A valid token counts; an invalid one, or one that cannot be checked now, is ignored.
    Public,
    /// Like [`Access::Public`], for responses that depend on the caller: a token that cannot be checked
    /// now is answered 503.
    Optional,
    /// Anybody, for calls that end a session. A token with a valid signature counts although it has
    /// expired, and is not renewed; an invalid one is ignored; one that cannot be checked now is
    /// answered 503. Without a bearer token the call must come from an own page, also without cookies.
    Logout,
    /// Anybody, as a visitor: tokens and cookies are ignored, so that stale ones do not matter.
    Anonymous,
    /// Callers with a session.
    Session,
    /// Callers with a session and this role.
    Role(String),
}

/// An entry of the table.
#[derive(Debug)]
pub struct Route {
    /// The path template, under which requests are logged.
    pub template: Arc<str>,
    /// The service's name in the registry.
    pub service: Arc<str>,
    /// Largest request body in bytes, when not the gateway's default.
    pub body_limit_bytes: Option<u64>,
    /// Wait for a response's first byte, when not the gateway's default.
    pub first_byte_timeout: Option<Duration>,
    /// Time for the whole request, when not the gateway's default.
    pub total_timeout: Option<Duration>,
    /// The choice of an instance.
    pub balance: Policy,
    /// Calls per minute.
    pub rate_limits: RouteLimits,
    /// Whether it is refused first when its service is at its limit.
    pub priority: Priority,
    /// When its circuit breaker opens and closes, where not as by default.
    pub breaker: RouteBreaker,
    /// What is sent when its service does not serve a request.
    pub fallback: Option<Fallback>,
    /// How responses are compressed; not at all when absent.
    pub compression: Option<Compression>,
    /// Whether its requests may become streams.
    pub streams: StreamPolicy,
    /// What of its responses is cached.
    pub cache: Option<Arc<CachePolicy>>,
    /// The share of its requests that is for a new version.
    pub canary: Option<Canary>,
    /// Where a share of its requests is copied to.
    pub mirror: Option<Arc<MirrorPolicy>>,
    methods: Vec<(Method, Access)>,
}

impl Route {
    /// Who may call with this method; `None` if the route does not have it.
    pub fn access(&self, method: &Method) -> Option<&Access> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.methods.iter().find(|(known, _)| known == method).map(|(_, access)| access)
    }

    /// The route, by what its rate limits count.
    pub fn limited(&self) -> LimitedRoute<'_> {
        LimitedRoute { template: &self.template, limits: &self.rate_limits }
    }

    /// The methods, as `Allow` lists them.
    pub fn allow(&self) -> String {
        let mut methods = Vec::new();
        for (method, _) in &self.methods {
            methods.push(method.as_str());
            if method == Method::GET {
                methods.push("HEAD");
            }
        }
        methods.join(", ")
    }
}

/// An invalid table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct RouteError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, with the field's name and its value.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    route: Vec<Spanned<RawRoute>>,
    /// What holds for a service's routes that say nothing else.
    #[serde(default)]
    service: BTreeMap<Spanned<String>, RawService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    balance: Option<RawPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    path: Spanned<String>,
    service: Spanned<String>,
    methods: BTreeMap<String, Spanned<String>>,
    body_limit_bytes: Option<u64>,
    first_byte_timeout_ms: Option<Spanned<u64>>,
    total_timeout_ms: Option<Spanned<u64>>,
    balance: Option<RawPolicy>,
    rate_per_minute: Option<Spanned<u64>>,
    #[serde(default)]
    rate_limit: Vec<RawRateLimit>,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    breaker: RawBreaker,
    fallback: Option<RawFallback>,
    compression: Option<Spanned<Compression>>,
    upgrade: Option<Upgrade>,
    #[serde(default)]
    stream: bool,
    stream_idle_timeout_ms: Option<Spanned<u64>>,
    cache: Option<Spanned<RawCache>>,
    canary: Option<RawCanary>,
    mirror: Option<RawMirror>,
}

/// The routes.
///
/// Templates with `{*rest}` are in a second router, which is asked after the first: matchit refuses a
/// catch-all and a `{name}` at the same position. So a full template wins over a prefix.
#[derive(Debug)]
pub struct RouteTable {
    exact: matchit::Router<Arc<Route>>,
    prefixes: matchit::Router<Arc<Route>>,
    routes: Vec<Arc<Route>>,
    services: BTreeSet<String>,
    version: String,
    /// The text that it was read from.
    text: Box<str>,
}

impl RouteTable {
    /// Reads a table.
    ///
    /// # Errors
    /// [`RouteError`] for the first fault.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let raw: RawTable = toml::from_str(text).map_err(|error| RouteError {
            line: line_at(text, error.span().map_or(0, |span| span.start)),
            reason: error.message().replace('\n', "; "),
        })?;
        let mut table = Self {
            exact: matchit::Router::new(),
            prefixes: matchit::Router::new(),
            routes: Vec::new(),
            services: BTreeSet::new(),
            version: version_of(text),
            text: text.into(),
        };
        for entry in raw.route {
            let line = line_at(text, entry.span().start);
            let entry = entry.into_inner();
            let service = raw.service.get(entry.service.get_ref().as_str());
            table.add(text, line, entry, service)?;
        }
        if table.routes.is_empty() {
            return Err(RouteError { line: 1, reason: "no [[route]] in it".to_owned() });
        }
        let services = table.services();
        if let Some(unknown) =
            raw.service.keys().find(|service| !services.contains(service.get_ref()))
        {
            let line = line_at(text, unknown.span().start);
            let reason = format!("service.{}: no route names this service", unknown.get_ref());
            return Err(RouteError { line, reason });
        }
        Ok(table)
    }

    fn add(
        &mut self,
        text: &str,
        line: usize,
        raw: RawRoute,
        service: Option<&RawService>,
    ) -> Result<(), RouteError> {
        let wrong = |at: usize, field: &str, value: &str, expected: &str| RouteError {
            line: line_at(text, at),
            reason: format!("{field} = {value:?}: {expected}"),
        };
        let bounded = |field: &str, value: &Option<Spanned<u64>>| match value {
            Some(ms) if *ms.get_ref() == 0 => {
                Err(wrong(ms.span().start, field, "0", "at least 1 millisecond"))
            }
            value => Ok(value.as_ref().map(|ms| Duration::from_millis(*ms.get_ref()))),
        };
        let (at, template) = (raw.path.span().start, raw.path.get_ref().as_str());
        check_template(template).map_err(|expected| wrong(at, "path", template, expected))?;
        if let Err(error) = tourin_registry_api::limits::service_name(raw.service.get_ref()) {
            let service = raw.service.get_ref();
            return Err(wrong(raw.service.span().start, "service", service, &error.to_string()));
        }
        let mut methods = Vec::new();
        for (name, access) in &raw.methods {
            let field = format!("methods.{name}");
            let (at, value) = (access.span().start, access.get_ref().as_str());
            let method = match name.as_str() {
                "GET" => Method::GET,
                "POST" => Method::POST,
                "PUT" => Method::PUT,
                "PATCH" => Method::PATCH,
                "DELETE" => Method::DELETE,
                _ => {
                    return Err(wrong(
                        at,
                        &field,
                        value,
                        "methods are GET (with HEAD), POST, PUT, PATCH, DELETE",
                    ));
                }
            };
            let access = parse_access(value).ok_or_else(|| {
                wrong(
                    at,
                    &field,
                    value,
                    "expected \"public\", \"optional\", \"anonymous\", \"logout\", \"session\" or \"role:NAME\"",
                )
            })?;
            methods.push((method, access));
        }
        if methods.is_empty() {
            return Err(RouteError { line, reason: format!("path {template:?} has no methods") });
        }
        let balance = raw.balance.as_ref().or_else(|| service?.balance.as_ref());
        let policy =
            |error: FieldError| RouteError { line: line_at(text, error.at), reason: error.reason };
        let balance = balance.map(RawPolicy::check).transpose().map_err(policy)?;
        if raw.upgrade.is_some() && methods.iter().any(|(method, _)| method != Method::GET) {
            let reason =
                "upgrade = \"websocket\": the only method of its path can be GET".to_owned();
            return Err(RouteError { line, reason });
        }
        let streams = StreamPolicy {
            upgrade: raw.upgrade,
            events: raw.stream,
            idle_timeout: bounded("stream_idle_timeout_ms", &raw.stream_idle_timeout_ms)?,
        };
        let names = methods.iter().map(|(method, _)| method.clone());
        let fallback = raw.fallback.map(|fallback| fallback.check(names)).transpose();
        let is_shared = |(method, access): &(Method, Access)| {
            *method == Method::GET && matches!(access, Access::Public | Access::Optional)
        };
        let compression = raw.compression.map(|compression| {
            let line = line_at(text, compression.span().start);
            let checked = compression.into_inner().check(methods.iter().any(is_shared));
            checked.map_err(|reason| RouteError { line, reason: format!("compression: {reason}") })
        });
        let is_cacheable = methods.iter().any(is_shared) && !streams.allows_streams();
        let cache = raw.cache.map(|cache| {
            let at = cache.span().start;
            cache.into_inner().check(at, template, is_cacheable)
        });
        let service = raw.service.get_ref().as_str();
        let mirror = raw.mirror.map(|mirror| mirror.check(service)).transpose();
        let canary = raw.canary.map(RawCanary::check).transpose();
        let route = Arc::new(Route {
            template: template.into(),
            service: raw.service.get_ref().as_str().into(),
            body_limit_bytes: raw.body_limit_bytes,
            first_byte_timeout: bounded("first_byte_timeout_ms", &raw.first_byte_timeout_ms)?,
            total_timeout: bounded("total_timeout_ms", &raw.total_timeout_ms)?,
            balance: balance.unwrap_or_default(),
            rate_limits: RouteLimits::check(raw.rate_per_minute, raw.rate_limit).map_err(policy)?,
            priority: raw.priority,
            breaker: raw.breaker.check().map_err(policy)?,
            fallback: fallback.map_err(policy)?,
            compression: compression.transpose()?,
            streams,
            cache: cache.transpose().map_err(policy)?.map(Arc::new),
            canary: canary.map_err(policy)?,
            mirror: mirror.map_err(policy)?.map(Arc::new),
            methods,
        });
        let router = if template.contains("{*") { &mut self.prefixes } else { &mut self.exact };
        router
            .insert(template, Arc::clone(&route))
            .map_err(|error| wrong(at, "path", template, &error.to_string()))?;
        self.services.insert(route.service.to_string());
        self.routes.push(route);
        Ok(())
    }

    /// The route of a canonical path.
    pub fn find(&self, path: &str) -> Option<&Arc<Route>> {
        if path::is_internal(path) {
            return None;
        }
        self.exact.at(path).or_else(|_| self.prefixes.at(path)).ok().map(|found| found.value)
    }

    /// Every route, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }

    /// The services that the table names.
    pub fn services(&self) -> &BTreeSet<String> {
        &self.services
    }

    /// The beginning of the SHA-256 of the table's text: gateways with the same one have the same table.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The version and the entries as they were read, for operators.
    pub fn to_json(&self) -> serde_json::Value {
        let read: serde_json::Value = toml::from_str(&self.text).unwrap_or_default();
        serde_json::json!({"version": self.version, "routes": read["route"]})
    }
}

fn version_of(text: &str) -> String {
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn parse_access(text: &str) -> Option<Access> {
    match text {
        "public" => Some(Access::Public),
        "optional" => Some(Access::Optional),
        "logout" => Some(Access::Logout),
        "anonymous" => Some(Access::Anonymous),
        "session" => Some(Access::Session),
        _ => text
            .strip_prefix("role:")
            .filter(|role| !role.is_empty())
            .map(|role| Access::Role(role.to_owned())),
    }
}

fn check_template(template: &str) -> Result<(), &'static str> {
    // Fixed text that is not canonical would never match.
    let mut plain = String::new();
    let mut in_parameter = false;
    for character in template.chars() {
        match character {
            '{' => in_parameter = true,
            '}' => {
                in_parameter = false;
                plain.push('x');
            }
            character if !in_parameter => plain.push(character),
            _ => {}
        }
    }
    match path::canonical(plain.as_bytes()) {
        Ok(canonical) if canonical != plain => {
            Err("fixed text must be percent-encoded in the canonical way")
        }
        Ok(plain) if path::is_internal(&plain) => Err("this path is never routed"),
        Ok(plain) if plain == OPENAPI_PATH => Err("the gateway serves this path itself"),
        Ok(_) => Ok(()),
        Err(_) => Err("expected a path such as /api/users/{id}, without dot or empty segments"),
    }
}

fn line_at(text: &str, byte: usize) -> usize {
    1 + text.as_bytes()[..byte.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests;
