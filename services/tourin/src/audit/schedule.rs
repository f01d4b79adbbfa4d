//! The load generator, an open loop: requests are made at their times whether or not earlier ones have
//! been answered, so a slow mesh does not get less load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tourin_chassis::shutdown::Shutdown;

use super::gateways::{Call, Gateways, Reply};
use super::ledger::{Ledger, Outcome, SpotId};
use super::members::Member;

/// Of 100 requests so many of each kind; the rest read recommendations. A request that is not possible,
/// because there is nothing to remove, is a read too.
const PLACE: u32 = 50;
const REMOVE: u32 = 12;
const WRITE: u32 = 16;
const DELETE: u32 = 7;
/// Maximum number of kinds of failure that are counted separately.
const FAILURE_KINDS: usize = 20;

/// Upper estimate of the bookmarks among so many requests.
pub fn bookmarks_in(requests: u64) -> u64 {
    // A tenth above the average.
    requests * u64::from(PLACE) * 11 / 1_000 + 1
}

/// A member's action.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Place { member: usize, spot: SpotId },
    Remove { member: usize, spot: SpotId },
    Write { member: usize, spot: SpotId, content: String },
    Delete { member: usize, content: String, id: String },
    Read { member: usize, path: &'static str },
}

/// Statistics of the requests.
#[derive(Debug, Clone, Default)]
pub struct RequestStats {
    /// Requests made.
    pub requests: u64,
    /// Requests that were skipped, because too many were in flight.
    pub not_made: u64,
    /// Failed requests, by kind of failure.
    pub failed: BTreeMap<String, u64>,
    /// Time from when a request was due to its response, for successful ones.
    pub latencies: Vec<Duration>,
}

impl RequestStats {
    fn fail(&mut self, what: String) {
        let is_known = self.failed.contains_key(&what);
        let kind =
            if is_known || self.failed.len() < FAILURE_KINDS { what } else { "other".to_owned() };
        *self.failed.entry(kind).or_default() += 1;
    }
}

/// Makes the members' requests.
#[derive(Debug)]
pub struct LoadGenerator {
    /// The gateways.
    pub gateways: Gateways,
    /// The members.
    pub members: Vec<Member>,
    /// The spots they are about.
    pub spots: Vec<SpotId>,
    /// Prefix of reviews, unique to this audit.
    pub run: String,
    ledger: Mutex<Ledger>,
    stats: Mutex<RequestStats>,
}

impl LoadGenerator {
    /// A generator that has not made any request.
    pub fn new(gateways: Gateways, members: Vec<Member>, spots: Vec<SpotId>, run: String) -> Self {
        let (ledger, stats) = Default::default();
        Self { gateways, members, spots, run, ledger, stats }
    }

    /// The writes so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statistics so far.
    pub fn stats(&self) -> MutexGuard<'_, RequestStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `requests` requests, `rate` per second, at most `in_flight` at once, until all have ended;
    /// `stop` ends it sooner.
    ///
    /// # Errors
    /// When a request's task fails, which none should.
    pub async fn run(
        self: &Arc<Self>,
        requests: u64,
        rate: u32,
        in_flight: u32,
        stop: &Shutdown,
    ) -> anyhow::Result<()> {
        let permits = Arc::new(Semaphore::new(in_flight as usize));
        let mut choice = Choice::new(self.members.len(), self.spots.len());
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        let mut waiting = JoinSet::new();
        for number in 0..requests {
            let due = tokio::select! {
                due = ticks.tick() => due,
                () = stop.begun() => break,
            };
            while let Some(ended) = waiting.try_join_next() {
                ended.context("a request's task failed")?;
            }
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                self.stats().not_made += 1;
                continue;
            };
            let action = self.choose(&mut choice, number);
            let load = Arc::clone(self);
            self.stats().requests += 1;
            waiting.spawn(async move {
                load.act(action, due.into_std()).await;
                drop(permit);
            });
        }
        while let Some(ended) = waiting.join_next().await {
            ended.context("a request's task failed")?;
        }
        Ok(())
    }

    /// Chooses the next action, and notes a write in the ledger before it is made.
    fn choose(&self, choice: &mut Choice, number: u64) -> Action {
        let kind = choice.rng.random_range(0..100);
        let mut ledger = self.ledger();
        if kind < PLACE {
            if let Some((member, spot)) = choice.next_pair() {
                let spot = self.spots[spot];
                ledger.placing(&self.members[member].id, spot, Utc::now());
                return Action::Place { member, spot };
            }
        } else if kind < PLACE + REMOVE {
            if let Some((id, spot)) = ledger.removing() {
                return Action::Remove { member: self.index_of(&id), spot };
            }
        } else if kind < PLACE + REMOVE + WRITE {
            let member = choice.rng.random_range(0..self.members.len());
            let spot = self.spots[choice.rng.random_range(0..self.spots.len())];
            let content = format!("{} {number}", self.run);
            ledger.writing(&self.members[member].id, spot, &content);
            return Action::Write { member, spot, content };
        } else if kind < PLACE + REMOVE + WRITE + DELETE
            && let Some((content, author, id)) = ledger.deleting()
        {
            return Action::Delete { member: self.index_of(&author), content, id };
        }
        let member = choice.rng.random_range(0..self.members.len());
        let path = ["/api/recommendations/trend?k=5", "/api/recommendations/personalized?k=5"];
        Action::Read { member, path: path[choice.rng.random_range(0..path.len())] }
    }

    fn index_of(&self, id: &str) -> usize {
        self.members.iter().position(|member| member.id == id).unwrap_or_default()
    }

    async fn act(&self, action: Action, due: Instant) {
        let (member, mut call) = self.call(&action);
        let reply = match member.token(&self.gateways).await {
            Ok(token) => {
                call.token = Some(token);
                self.gateways.call(&call).await
            }
            Err(error) => {
                // Nothing was sent.
                self.note(&action, Outcome::Refused, &[]);
                self.stats().fail(format!("no token: {error:#}"));
                return;
            }
        };
        let (outcome, failure) = judge(&action, &reply);
        let body = match &reply {
            Reply::Response { body, .. } => &body[..],
            Reply::NoResponse(_) => &[],
        };
        self.note(&action, outcome, body);
        let mut stats = self.stats();
        match failure {
            Some(failure) => stats.fail(format!("{} {failure}", action.name())),
            None => stats.latencies.push(due.elapsed()),
        }
    }

    fn call(&self, action: &Action) -> (&Member, Call) {
        let of = |member: &usize| &self.members[*member];
        match action {
            Action::Place { member, spot } => {
                let path = format!("/api/users/{}/bookmarks", of(member).id);
                let call = Call::post(path, json!({"tourSpotId": spot.to_string()}));
                (of(member), Call { idempotent: true, ..call })
            }
            Action::Remove { member, spot } => {
                let call = Call::get(format!("/api/users/{}/bookmarks/{spot}", of(member).id));
                (of(member), Call { method: Method::DELETE, ..call })
            }
            Action::Write { member, spot, content } => {
                let body = json!({"userId": of(member).id, "content": content});
                (of(member), Call::post(format!("/api/tour-spots/{spot}/reviews"), body))
            }
            Action::Delete { member, id, .. } => {
                let call = Call::get(format!("/api/tour-spot-reviews/{id}"));
                (of(member), Call { method: Method::DELETE, ..call })
            }
            Action::Read { member, path } => (of(member), Call::get(*path)),
        }
    }

    fn note(&self, action: &Action, outcome: Outcome, body: &[u8]) {
        let mut ledger = self.ledger();
        match action {
            Action::Place { member, spot } => {
                ledger.placed(&self.members[*member].id, *spot, outcome, Utc::now());
            }
            Action::Remove { member, spot } => {
                ledger.removed(&self.members[*member].id, *spot, outcome);
            }
            Action::Write { content, .. } => {
                let answer: Option<Value> = serde_json::from_slice(body).ok();
                let id = answer.and_then(|answer| answer["id"].as_str().map(ToOwned::to_owned));
                let id = id.filter(|_| outcome == Outcome::Acknowledged);
                ledger.written(content, outcome, id);
            }
            Action::Delete { content, .. } => ledger.deleted(content, outcome),
            Action::Read { .. } => {}
        }
    }
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Place { .. } => "bookmark",
            Self::Remove { .. } => "removal",
            Self::Write { .. } => "review",
            Self::Delete { .. } => "deletion",
            Self::Read { .. } => "recommendation",
        }
    }

    fn is_done(&self, status: StatusCode) -> bool {
        match self {
            Self::Place { .. } | Self::Write { .. } => status == StatusCode::CREATED,
            // 404: an earlier attempt, or a gateway's retry, has done it.
            Self::Remove { .. } | Self::Delete { .. } => {
                matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_FOUND)
            }
            Self::Read { .. } => status == StatusCode::OK,
        }
    }
}

/// The outcome of an action by its reply, and the kind of failure if it failed.
fn judge(action: &Action, reply: &Reply) -> (Outcome, Option<String>) {
    match reply {
        Reply::Response { status, .. } if action.is_done(*status) => (Outcome::Acknowledged, None),
        Reply::Response { status, after_ambiguous, .. } => {
            let is_refusal = status.is_client_error() && !after_ambiguous;
            let outcome = if is_refusal { Outcome::Refused } else { Outcome::Unknown };
            (outcome, Some(status.as_u16().to_string()))
        }
        Reply::NoResponse(reason) => (Outcome::Unknown, Some(reason.clone())),
    }
}

/// Random choices, and the remaining pairs of member and spot.
struct Choice {
    rng: StdRng,
    members: usize,
    spots: usize,
    pairs: usize,
}

impl Choice {
    fn new(members: usize, spots: usize) -> Self {
        Self { rng: StdRng::from_os_rng(), members, spots, pairs: 0 }
    }

    /// The next pair, each once: members in turn, each at a different spot.
    fn next_pair(&mut self) -> Option<(usize, usize)> {
        if self.pairs >= self.members * self.spots {
            return None;
        }
        let (round, member) = (self.pairs / self.members, self.pairs % self.members);
        self.pairs += 1;
        Some((member, (round + member * self.spots / self.members) % self.spots))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_pair_comes_once_and_neighbours_are_at_different_spots() {
        for (members, spots) in [(3, 7), (20, 120), (5, 5), (4, 2)] {
            let mut choice = Choice::new(members, spots);
            let pairs: Vec<_> = std::iter::from_fn(|| choice.next_pair()).collect();
            let distinct: BTreeSet<_> = pairs.iter().copied().collect();
            assert_eq!(distinct.len(), members * spots);
            assert_eq!(pairs.len(), members * spots);
            if spots >= members {
                let first: BTreeSet<_> = pairs[..members].iter().map(|(_, spot)| spot).collect();
                assert_eq!(first.len(), members);
            }
        }
    }

    #[test]
    fn a_refusal_after_doubt_leaves_the_outcome_open() {
        let place = Action::Place { member: 0, spot: 1 };
        let answer = |status, after_ambiguous| Reply::Response {
            status: StatusCode::from_u16(status).unwrap(),
            body: bytes::Bytes::new(),
            after_ambiguous,
        };
        assert_eq!(judge(&place, &answer(201, true)).0, Outcome::Acknowledged);
        assert_eq!(judge(&place, &answer(404, false)).0, Outcome::Refused);
        assert_eq!(judge(&place, &answer(404, true)).0, Outcome::Unknown);
        assert_eq!(judge(&place, &answer(503, false)).0, Outcome::Unknown);
        assert_eq!(judge(&place, &Reply::NoResponse("cut".into())).0, Outcome::Unknown);
        let remove = Action::Remove { member: 0, spot: 1 };
        assert_eq!(judge(&remove, &answer(404, true)).0, Outcome::Acknowledged);
    }
}
