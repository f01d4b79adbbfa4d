//! Mirrored traffic: a share of a route's requests is sent again to another service or version, and the
//! two answers are compared.
//!
//! The copy is made when the client's answer is complete, and it is sent by a task outside of the data
//! plane. So a mirror that is slow, dead or wrong changes nothing for the client. At the bound of copies
//! in progress further ones are dropped, and counted.
//!
//! A copy has the path, the query and the fields of the request that choose a representation. It has no
//! token, no cookie, no address of the client, and the identity of a visitor unless the route says
//! `identity = "caller"`. Its answer is thrown away; of a difference the statuses and lengths are logged.

mod policy;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use clap::{Args, value_parser};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_TYPE, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tourin_chassis::http_client::{self, CallError};
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_chassis::metrics::{Counters, Metrics};
use tourin_registry_api::Instance;

use crate::log_throttle::LogThrottle;
use crate::mesh_client::MeshClient;
pub use policy::{MirrorIdentity, MirrorPolicy, RawMirror};

/// Tells a service that this is a copy, whose effects nobody waits for.
pub const MIRRORED_HEADER: HeaderName = HeaderName::from_static("x-tourin-mirrored");
/// The pseudonym in a copy's identity. Services see one visitor.
const PSEUDONYM: &str = "mirror";
/// The fields that are copied.
const COPIED: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CONTENT_TYPE,
    HOST,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    RANGE,
];

/// Those of them that ask for less than the whole response.
const CONDITIONAL: [HeaderName; 3] = [IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE];

/// Settings of mirrored traffic.
#[derive(Debug, Clone, Copy, Args)]
pub struct MirrorSettings {
    /// Copies of requests that are sent to mirrors at once, and as many that wait; more are dropped
    #[arg(long, env = "TOURIN_GATEWAY_MIRROR_REQUESTS", value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(1..))]
    pub mirror_requests: u16,
}

/// A request of which a copy will be made, with what its own answer is.
pub struct MirrorProbe {
    template: Arc<str>,
    policy: Arc<MirrorPolicy>,
    copy: MirrorCopy,
    status: u16,
    answer: BodyDigest,
}

/// The copy of a request.
pub struct MirrorCopy {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The fields that are copied.
    pub headers: HeaderMap,
    /// The body, if it has one.
    pub body: Option<Bytes>,
    /// In whose name it is sent.
    pub subject: Subject,
}

impl MirrorCopy {
    /// The fields of a request that are copied. The mirror is asked for the `whole` response where the service
    /// was.
    pub fn headers_of(request: &HeaderMap, whole: bool) -> HeaderMap {
        let copied = COPIED.into_iter().filter(|name| !(whole && CONDITIONAL.contains(name)));
        let lines = copied.flat_map(|name| {
            let values = request.get_all(&name).into_iter();
            values.map(move |value| (name.clone(), value.clone())).collect::<Vec<_>>()
        });
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    /// The visitor in whose name copies are sent that do not have their caller's identity.
    pub fn visitor() -> Subject {
        Subject::Visitor { pseudonym: PSEUDONYM.to_owned() }
    }
}

/// The digest of a body, up to a bound.
#[derive(Default)]
struct BodyDigest {
    digest: Sha256,
    bytes: u64,
}

impl BodyDigest {
    fn add(&mut self, part: &[u8], most: u64) {
        self.bytes += part.len() as u64;
        if self.bytes <= most {
            self.digest.update(part);
        }
    }
}

impl MirrorProbe {
    /// Of this copy, for a mirror with this policy; the request is one of the route with this template.
    pub fn new(template: Arc<str>, policy: Arc<MirrorPolicy>, copy: MirrorCopy) -> Self {
        Self { template, policy, copy, status: 0, answer: BodyDigest::default() }
    }

    /// Another attempt begins, whose response counts.
    pub fn restart(&mut self) {
        (self.status, self.answer) = (0, BodyDigest::default());
    }

    /// The head of the request's own answer has come.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// A part of the body of the request's own answer has come.
    pub fn add(&mut self, part: &[u8]) {
        self.answer.add(part, self.policy.max_body_bytes);
    }
}

/// Takes requests to copy.
#[derive(Debug, Clone)]
pub struct Mirror {
    queue: mpsc::Sender<Box<MirrorProbe>>,
    outcomes: Counters<2>,
}

impl Mirror {
    /// The mirror, and the task that sends the copies until `stop`.
    pub fn new(
        settings: MirrorSettings,
        (mesh, signer): (MeshClient, Arc<IdentitySigner>),
        metrics: &Metrics,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let outcomes = metrics.counters(
            "tourin_gateway_mirrored_requests",
            "Copies of requests for mirrors, by the comparison of the answers",
        );
        let most = usize::from(settings.mirror_requests);
        let (queue, waiting) = mpsc::channel(most);
        let sender = Sender { mesh, signer, turn: AtomicUsize::new(0) };
        let task = send_copies(waiting, Arc::new(sender), outcomes.clone(), most, stop);
        (Self { queue, outcomes }, task)
    }

    /// The request's answer is complete; its copy is sent if there is room.
    pub fn submit(&self, probe: Box<MirrorProbe>) {
        let template = Arc::clone(&probe.template);
        if self.queue.try_send(probe).is_err() {
            self.outcomes.of([("route", &template), ("outcome", "dropped")]).increase();
        }
    }
}

/// What sends the copies.
struct Sender {
    mesh: MeshClient,
    signer: Arc<IdentitySigner>,
    turn: AtomicUsize,
}

/// How a copy's answer compares.
#[derive(Debug, PartialEq, Eq)]
enum Comparison {
    Same,
    StatusDiffers { mirror: u16 },
    BodyDiffers { mirror_bytes: usize },
    TooLarge,
    NoInstance,
    Failed,
    TimedOut,
}

impl Comparison {
    fn name(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::StatusDiffers { .. } => "status_differs",
            Self::BodyDiffers { .. } => "body_differs",
            Self::TooLarge => "too_large",
            Self::NoInstance => "no_instance",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }
}

async fn send_copies(
    mut waiting: mpsc::Receiver<Box<MirrorProbe>>,
    sender: Arc<Sender>,
    outcomes: Counters<2>,
    most: usize,
    stop: CancellationToken,
) {
    let mut sending = JoinSet::new();
    let mut log = LogThrottle::default();
    loop {
        tokio::select! {
            // Dropping the set ends the copies in progress.
            () = stop.cancelled() => return,
            Some(probe) = waiting.recv(), if sending.len() < most => {
                let sender = Arc::clone(&sender);
                sending.spawn(async move {
                    let comparison = sender.compare(&probe).await;
                    (probe, comparison)
                });
            }
            Some(sent) = sending.join_next() => {
                let Ok((probe, comparison)) = sent else { continue };
                let route = &probe.template;
                outcomes.of([("route", route), ("outcome", comparison.name())]).increase();
                report(&probe, &comparison, &mut log);
            }
        }
    }
}

/// Logs a difference, without anything of the request but its route.
fn report(probe: &MirrorProbe, comparison: &Comparison, log: &mut LogThrottle) {
    let (status, bytes) = match comparison {
        Comparison::StatusDiffers { mirror } => (*mirror, None),
        Comparison::BodyDiffers { mirror_bytes } => (probe.status, Some(*mirror_bytes)),
        _ => return,
    };
    if let Some(unlogged) = log.record(Instant::now()) {
        tracing::warn!(
            route = &*probe.template,
            status = probe.status,
            mirror_status = status,
            bytes = probe.answer.bytes,
            mirror_bytes = bytes,
            unlogged,
            "a mirror's answer differs"
        );
    }
}

impl Sender {
    async fn compare(&self, probe: &MirrorProbe) -> Comparison {
        let policy = &probe.policy;
        let most = policy.max_body_bytes;
        if probe.answer.bytes > most {
            return Comparison::TooLarge;
        }
        let Some(instance) = self.pick(policy) else { return Comparison::NoInstance };
        let Ok(client) = self.mesh.client(&policy.service) else { return Comparison::Failed };
        let copy = &probe.copy;
        let mut request = client
            .request(copy.method.clone(), format!("{}{}", instance.base_url(), copy.target))
            .headers(copy.headers.clone())
            .header(MIRRORED_HEADER, HeaderValue::from_static("1"))
            .header(IDENTITY_HEADER, self.signer.sign(&copy.subject, &policy.service))
            .timeout(policy.timeout);
        if let Some(body) = &copy.body {
            request = request.body(body.clone());
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        match http_client::send(request, most).await {
            Ok(answer) if answer.status().as_u16() != probe.status => {
                Comparison::StatusDiffers { mirror: answer.status().as_u16() }
            }
            Ok(answer)
                if Sha256::digest(answer.body()) != probe.answer.digest.clone().finalize() =>
            {
                Comparison::BodyDiffers { mirror_bytes: answer.body().len() }
            }
            Ok(_) => Comparison::Same,
            Err(CallError::TooLarge(_)) => Comparison::TooLarge,
            Err(CallError::NoResponse(error)) if error.is_timeout() => Comparison::TimedOut,
            Err(CallError::NoResponse(_)) => Comparison::Failed,
        }
    }

    fn pick(&self, policy: &MirrorPolicy) -> Option<Instance> {
        let instances = self.mesh.directory().instances(&policy.service);
        let fitting: Vec<_> =
            instances.iter().filter(|instance| policy.accepts(instance)).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        fitting.get(turn % fitting.len().max(1)).map(|instance| (*instance).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_digested_up_to_its_bound() {
        let mut body = BodyDigest::default();
        body.add(b"ab", 3);
        body.add(b"c", 3);
        assert_eq!(body.digest.clone().finalize(), Sha256::digest(b"abc"));
        body.add(b"d", 3);
        assert_eq!(body.bytes, 4);
    }
}
