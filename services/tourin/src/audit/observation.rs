//! What the mesh shows afterwards: the store by its public lists, the effects by the recommendation
//! service's internal ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::identity::{IDENTITY_HEADER, IdentitySigner, Subject};
use tourin_registry_api::RegistryClient;

use super::gateways::Gateways;
use super::ledger::SpotId;

const RECOMMENDATION: &str = "recommendation";
/// What the audit calls itself towards services.
const AUDITOR: &str = "auditor";
/// A read of effects takes at most this long (milliseconds).
const EFFECTS_TIMEOUT_MS: u64 = 5_000;
/// Items on a page of a list.
const PAGE: usize = 100;
/// Spots in one question for scores.
const SCORES_AT_ONCE: usize = 500;
/// Lists read at once.
const AT_ONCE: usize = 8;

/// A review as its spot lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenReview {
    /// Its number.
    pub id: String,
    /// Who wrote it.
    pub user_id: String,
    /// Its text.
    pub content: String,
}

/// What the store holds of the audit's members.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// The bookmarks of each member, as listed.
    pub bookmarks: BTreeMap<String, Vec<SpotId>>,
    /// Their reviews, each number once.
    pub reviews: Vec<SeenReview>,
}

/// The trend's scores as one instance tells them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scores {
    /// When they are worth that.
    pub at: DateTime<Utc>,
    /// Milliseconds in which a score halves.
    pub half_life_ms: u64,
    /// What one counts, by kind.
    pub weights: Weights,
    /// By spot; a spot that nothing counted for may be left out.
    pub scores: BTreeMap<SpotId, f64>,
}

/// How much a thing that a person does counts for the trend.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Weights {
    /// A bookmark.
    pub bookmark: f64,
    /// A view.
    pub view: f64,
}

/// A member's history as one instance tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Spots that the member has bookmarked.
    pub bookmarked: Vec<SpotId>,
    /// Spots that the member has viewed.
    pub viewed: Vec<SpotId>,
}

#[derive(Deserialize)]
struct HistoryAnswer {
    bookmarked: Vec<Value>,
    viewed: Vec<Value>,
}

/// The effects as one instance of the recommendation service tells them.
#[derive(Debug, Clone, PartialEq)]
pub struct Effects {
    /// The trend.
    pub scores: Scores,
    /// The histories of the audit's members.
    pub histories: BTreeMap<String, History>,
}

/// Reads the ids of all spots, in the catalogue's order.
///
/// # Errors
/// When a page cannot be read.
pub async fn catalogue(gateways: &Gateways, most: usize) -> anyhow::Result<Vec<SpotId>> {
    let mut spots = BTreeSet::new();
    for page in 1.. {
        let list = gateways.read(&format!("/api/tour-spots?pageNo={page}&pageSize={PAGE}")).await?;
        let list = list.as_array().context("the list of spots is no list")?;
        for spot in list {
            spots.insert(number(&spot["id"])?);
        }
        if list.len() < PAGE || spots.len() >= most {
            break;
        }
    }
    Ok(spots.into_iter().take(most).collect())
}

/// Reads what the store holds of these members, and of reviews of these spots.
///
/// # Errors
/// When a list cannot be read.
pub async fn store(
    gateways: &Gateways,
    members: &[String],
    spots: &BTreeSet<SpotId>,
) -> anyhow::Result<Store> {
    let bookmarks = stream::iter(members)
        .map(async |member| anyhow::Ok((member.clone(), bookmarks(gateways, member).await?)))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let lists: Vec<Vec<SeenReview>> = stream::iter(spots)
        .map(|spot| reviews(gateways, *spot))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    // A review moves to the next page when somebody else writes one meanwhile: its number tells it
    // from a second one with the same words.
    let mut seen = BTreeSet::new();
    let reviews = lists
        .into_iter()
        .flatten()
        .filter(|review| members.contains(&review.user_id) && seen.insert(review.id.clone()))
        .collect();
    Ok(Store { bookmarks, reviews })
}

async fn bookmarks(gateways: &Gateways, member: &str) -> anyhow::Result<Vec<SpotId>> {
    let path = format!("/api/users/{member}/bookmarks");
    let listed = whole_list(gateways, &path).await?;
    listed.iter().map(|bookmark| number(&bookmark["tourSpotId"])).collect()
}

async fn reviews(gateways: &Gateways, spot: SpotId) -> anyhow::Result<Vec<SeenReview>> {
    let listed = whole_list(gateways, &format!("/api/tour-spots/{spot}/reviews")).await?;
    let parse = |review| serde_json::from_value(review).context("a review");
    listed.into_iter().map(parse).collect()
}

async fn whole_list(gateways: &Gateways, path: &str) -> anyhow::Result<Vec<Value>> {
    let mut whole = Vec::new();
    for page in 1.. {
        let list = gateways.read(&format!("{path}?pageNo={page}&pageSize={PAGE}")).await?;
        let Value::Array(list) = list else {
            bail!("GET {path}: not a list");
        };
        let is_last = list.len() < PAGE;
        whole.extend(list);
        if is_last {
            break;
        }
    }
    Ok(whole)
}

/// An id: a number, in JSON a string or a number.
fn number(id: &Value) -> anyhow::Result<SpotId> {
    let parsed = match id {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    parsed.with_context(|| format!("{id} is no spot's id"))
}

/// Looks at effects, as a part of the mesh.
#[derive(Debug)]
pub struct Observer {
    registry: RegistryClient,
    signer: IdentitySigner,
    client: reqwest::Client,
}

impl Observer {
    /// An observer in this mesh.
    ///
    /// # Errors
    /// When the registry's URL is none.
    pub fn new(mesh: &MeshAccess) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_millis(EFFECTS_TIMEOUT_MS))
            .build()
            .context("cannot make an HTTP client")?;
        let registry = RegistryClient::new(&mesh.registry_url, mesh.registration_secret.expose())?;
        Ok(Self { registry, signer: IdentitySigner::new(&mesh.registration_secret), client })
    }

    /// The instances of the recommendation service: their names and addresses.
    ///
    /// # Errors
    /// When the registry does not answer, or has none.
    pub async fn instances(&self) -> anyhow::Result<Vec<(String, SocketAddr)>> {
        let snapshot = self.registry.list(Some(RECOMMENDATION)).await?;
        ensure!(!snapshot.instances.is_empty(), "no instance of {RECOMMENDATION} is registered");
        Ok(snapshot.instances.into_iter().map(|found| (found.id, found.address)).collect())
    }

    /// The scores of these spots as the instance at `address` tells them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn scores(&self, address: SocketAddr, spots: &[SpotId]) -> anyhow::Result<Scores> {
        let mut whole: Option<Scores> = None;
        for spots in spots.chunks(SCORES_AT_ONCE) {
            let ids: Vec<_> = spots.iter().map(ToString::to_string).collect();
            let path = format!("/internal/trend/scores?ids={}", ids.join(","));
            let mut part: Scores = self.read(address, &path).await?;
            if let Some(whole) = &mut whole {
                // As of one time: that of the first part.
                let factor = part.decay(whole.at);
                whole
                    .scores
                    .extend(part.scores.iter().map(|(spot, score)| (*spot, score / factor)));
            } else {
                part.scores.retain(|spot, _| spots.contains(spot));
                whole = Some(part);
            }
        }
        whole.context("no spots to look at")
    }

    /// The effects as the instance at `address` tells them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn effects(
        &self,
        address: SocketAddr,
        spots: &[SpotId],
        members: &[String],
    ) -> anyhow::Result<Effects> {
        let scores = self.scores(address, spots).await?;
        let histories = stream::iter(members)
            .map(async |member| {
                let path = format!("/internal/histories/{member}");
                let answer: HistoryAnswer = self.read(address, &path).await?;
                let bookmarked = answer.bookmarked.iter().map(number).collect::<Result<_, _>>()?;
                let viewed = answer.viewed.iter().map(number).collect::<Result<_, _>>()?;
                anyhow::Ok((member.clone(), History { bookmarked, viewed }))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Effects { scores, histories })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        address: SocketAddr,
        path: &str,
    ) -> anyhow::Result<T> {
        let identity =
            self.signer.sign(&Subject::Service { name: AUDITOR.to_owned() }, RECOMMENDATION);
        let request = self.client.get(format!("http://{address}{path}"));
        let answer = request.header(IDENTITY_HEADER, identity).send().await?.error_for_status()?;
        answer.json().await.with_context(|| format!("GET {path} at {address}"))
    }
}

impl Scores {
    /// What is left at [`Scores::at`] of one unit at `time`.
    pub fn decay(&self, time: DateTime<Utc>) -> f64 {
        let age_ms = (self.at - time).num_microseconds().unwrap_or(i64::MAX) as f64 / 1e3;
        (-age_ms / self.half_life_ms.max(1) as f64).exp2()
    }

    /// A spot's score.
    pub fn of(&self, spot: SpotId) -> f64 {
        self.scores.get(&spot).copied().unwrap_or_default()
    }
}
