//! Who may call what: the peers of connections, and on whose behalf they call.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Message};
use crate::identity::{IDENTITY_HEADER, IdentityVerifier};
use crate::metrics::{CounterBy, Metrics};
use crate::peer::{GATEWAY, OPERATOR, Peer, ThisMachine};
use crate::telemetry::method_name;

/// A service's table of callers: a path, or the beginning of one that ends in `/`, and the services that
/// may call it. The longest beginning counts; a path without a row is for nobody.
pub type Callers = &'static [(&'static str, &'static [&'static str])];

/// In a row: every service of the mesh.
pub const ANY_PEER: &str = "any peer";
/// In a row: also a caller without a certificate, by TLS.
pub const ANYBODY: &str = "anybody";
/// In a row: also a process of this machine, over plain HTTP.
pub const THIS_MACHINE: &str = "this machine";

/// Longest path in the log of a refusal.
const MAX_LOGGED_PATH_CHARS: usize = 100;

/// The rows that every service has, for operators and for health checks.
const OF_EVERY_SERVICE: Callers = &[
    ("/healthz", &[OPERATOR, GATEWAY, THIS_MACHINE]),
    ("/readyz", &[OPERATOR, GATEWAY, THIS_MACHINE]),
    ("/metrics", &[OPERATOR, THIS_MACHINE]),
    ("/internal/log-filter", &[OPERATOR]),
];

/// Admits peers by a table, and members by the identities that the gateway brings.
#[derive(Debug, Clone)]
pub struct Admission {
    callers: Callers,
    verifier: IdentityVerifier,
}

impl Admission {
    /// The admission of `service`, to whose own `callers` those of every service are added.
    pub fn new(service: &'static str, callers: Callers) -> Self {
        Self { callers, verifier: IdentityVerifier::new(service) }
    }

    fn admits(&self, caller: &Caller<'_>, path: &str) -> bool {
        let matches = |row: &str| row == path || (row.ends_with('/') && path.starts_with(row));
        self.callers
            .iter()
            .chain(OF_EVERY_SERVICE)
            .filter(|(row, _)| matches(row))
            .max_by_key(|(row, _)| row.len())
            .is_some_and(|(_, callers)| callers.iter().any(|row| caller.is(row)))
    }
}

/// Who calls.
enum Caller<'a> {
    /// An instance of this service.
    Service(&'a str),
    /// A process of this machine, over plain HTTP.
    ThisMachine,
    /// Somebody without a certificate, by TLS.
    Unknown,
}

impl<'a> Caller<'a> {
    fn of(request: &'a Request) -> Self {
        let extensions = request.extensions();
        match (extensions.get::<Arc<Peer>>(), extensions.get::<ThisMachine>()) {
            (Some(peer), _) => Self::Service(&peer.service),
            (None, Some(ThisMachine)) => Self::ThisMachine,
            (None, None) => Self::Unknown,
        }
    }

    fn is(&self, row: &str) -> bool {
        match (row, self) {
            (ANYBODY, Self::Service(_) | Self::Unknown)
            | (ANY_PEER, Self::Service(_))
            | (THIS_MACHINE, Self::ThisMachine) => true,
            (row, Self::Service(service)) => row == *service,
            _ => false,
        }
    }
}

/// [`admit`]'s state.
#[derive(Clone)]
pub(super) struct AdmissionFilter {
    admission: Admission,
    refused: CounterBy,
}

impl AdmissionFilter {
    pub(super) fn new(admission: Admission, metrics: &Metrics) -> Self {
        let refused = metrics.counter_by(
            "tourin_peer_refused",
            "Calls refused because the peer's certificate does not allow them, by the peer's service",
            "peer",
        );
        Self { admission, refused }
    }

    /// The log names the peer and the route, or the path of no route up to a bound: paths of routes may
    /// have members' ids in them.
    fn refuse(&self, request: &Request, message: &'static str) -> Response {
        let extensions = request.extensions();
        let peer = extensions.get::<Arc<Peer>>();
        let route = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let path: String = match route {
            Some(route) => route.to_owned(),
            None => request.uri().path().chars().take(MAX_LOGGED_PATH_CHARS).collect(),
        };
        let method = method_name(request.method());
        tracing::info!(?peer, method, path, message, "a call is refused");
        self.refused.increase(peer.map_or("none", |peer| &peer.service));
        ApiError::forbidden(Message::for_operators(message)).into_response()
    }
}

/// Answers 403 unless the table has the peer; then removes the identity header and puts the verified
/// subject into the request's extensions.
pub(super) async fn admit(
    State(filter): State<AdmissionFilter>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    if !filter.admission.admits(&Caller::of(&request), request.uri().path()) {
        let message = match peer {
            Some(_) => "the peer's service may not call this path",
            None => "this call needs a certificate of the mesh",
        };
        return filter.refuse(&request, message);
    }
    if let Some(value) = request.headers_mut().remove(IDENTITY_HEADER) {
        let gateway = peer.as_ref().filter(|peer| peer.service == GATEWAY);
        let Some(gateway) = gateway else {
            return filter.refuse(&request, "only the gateway may bring the identity of a caller");
        };
        let Some(subject) = filter.admission.verifier.verify(&value, gateway) else {
            return filter.refuse(&request, "the identity of the caller is not valid");
        };
        request.extensions_mut().insert(subject);
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_row_decides_and_a_path_without_one_is_for_nobody() {
        let admission = Admission::new(
            "demo",
            &[
                ("/api/", &["gateway"]),
                ("/internal/", &["gateway", "recommendation"]),
                ("/internal/secrets", &["gateway"]),
                ("/open", &[ANYBODY]),
                ("/mesh", &[ANY_PEER]),
            ],
        );
        for (service, path, expected) in [
            ("gateway", "/api/users", true),
            ("recommendation", "/api/users", false),
            ("recommendation", "/internal/spots", true),
            ("recommendation", "/internal/secrets", false),
            ("gateway", "/internal/secrets", true),
            ("gateway", "/internal/secretsx", true),
            ("gateway", "/elsewhere", false),
            ("gateway", "/metrics", false),
            ("operator", "/metrics", true),
            ("operator", "/internal/log-filter", true),
            ("gateway", "/internal/log-filter", false),
            ("operator", "/api/users", false),
        ] {
            let caller = Caller::Service(service);
            assert_eq!(admission.admits(&caller, path), expected, "{service} {path}");
        }
        for (path, [unknown, this_machine, service]) in [
            ("/open", [true, false, true]),
            ("/mesh", [false, false, true]),
            ("/metrics", [false, true, false]),
            ("/api/users", [false, false, false]),
        ] {
            assert_eq!(admission.admits(&Caller::Unknown, path), unknown, "{path}");
            assert_eq!(admission.admits(&Caller::ThisMachine, path), this_machine, "{path}");
            assert_eq!(admission.admits(&Caller::Service("web"), path), service, "{path}");
        }
    }
}
