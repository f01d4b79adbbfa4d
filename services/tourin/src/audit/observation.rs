//! Observes the mesh: the store by its public lists, the effects by internal calls of the recommendation
//! service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tourin_chassis::config::MeshAccess;
use tourin_chassis::http_client;
use tourin_chassis::secret::Secret;
use tourin_registry_api::{Joined, RegistryClient};

use super::gateways::Gateways;
use super::ledger::SpotId;
use crate::joined;

pub(super) const CORE: &str = "core";
pub(super) const RECOMMENDATION: &str = "recommendation";
const EFFECTS_TIMEOUT_MS: u64 = 5_000;
/// The longest response, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 20;
const PAGE: usize = 100;
const SCORES_AT_ONCE: usize = 500;
const AT_ONCE: usize = 8;

/// A listed review.
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

/// The store's data of the audit's members.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// The listed bookmarks of each member.
    pub bookmarks: BTreeMap<String, Vec<SpotId>>,
    /// Their listed reviews, each id once.
    pub reviews: Vec<SeenReview>,
}

/// The trend's scores at one instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scores {
    /// The time of the scores.
    pub at: DateTime<Utc>,
    /// Milliseconds in which a score halves.
    pub half_life_ms: u64,
    /// The weights of effects.
    pub weights: Weights,
    /// By spot; without an entry, a spot's score is 0.
    pub scores: BTreeMap<SpotId, f64>,
}

/// The weights of effects in the trend.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Weights {
    /// A bookmark.
    pub bookmark: f64,
    /// A view.
    pub view: f64,
}

/// A member's history at one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Spots that the member has bookmarked.
    pub bookmarked: Vec<SpotId>,
    /// Spots that the member has viewed.
    pub viewed: Vec<SpotId>,
}

#[derive(Deserialize)]
struct HistoryResponse {
    bookmarked: Vec<Value>,
    viewed: Vec<Value>,
}

/// The effects at one instance of the recommendation service.
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
pub async fn catalogue(gateways: &Gateways, max: usize) -> anyhow::Result<Vec<SpotId>> {
    let mut spots = BTreeSet::new();
    for page in 1.. {
        let list = gateways.read(&format!("/api/tour-spots?pageNo={page}&pageSize={PAGE}")).await?;
        let list = list.as_array().context("the list of spots is no list")?;
        for spot in list {
            spots.insert(number(&spot["id"])?);
        }
        if list.len() < PAGE || spots.len() >= max {
            break;
        }
    }
    Ok(spots.into_iter().take(max).collect())
}

/// Reads the bookmarks of these members, and their reviews of these spots.
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
    // A review moves to the next page when another one is written meanwhile, so it may be read twice.
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

/// An id, which is a string or a number in JSON.
fn number(id: &Value) -> anyhow::Result<SpotId> {
    let parsed = match id {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    parsed.with_context(|| format!("{id} is no spot's id"))
}

/// Reads effects, as a service of the mesh.
#[derive(Debug)]
pub struct Observer {
    connection: Mutex<Arc<MeshConnection>>,
    /// Read again when the mesh has been restarted.
    mesh_file: Option<PathBuf>,
}

/// Access to a mesh.
#[derive(Debug)]
struct MeshConnection {
    access: MeshAccess,
    registry: RegistryClient,
    core: reqwest::Client,
    recommendation: reqwest::Client,
    /// Renews the certificate.
    _joined: Joined,
}

impl MeshConnection {
    async fn new(access: MeshAccess) -> anyhow::Result<Self> {
        let joined = joined::join(&access).await?;
        let (workload, registry) = (joined.workload.clone(), joined.registry.clone());
        let client = |service| {
            let limit = Duration::from_millis(EFFECTS_TIMEOUT_MS);
            http_client::mesh_client(workload.client_config(service)?, limit)
        };
        let (core, recommendation) = (client(CORE)?, client(RECOMMENDATION)?);
        Ok(Self { core, recommendation, registry, access, _joined: joined })
    }

    fn client(&self, service: &str) -> &reqwest::Client {
        if service == CORE { &self.core } else { &self.recommendation }
    }
}

/// The file that `tourin up` writes into its data folder.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MeshFile {
    registry_url: String,
    join_token: String,
}

impl MeshFile {
    fn read(path: &Path) -> anyhow::Result<MeshAccess> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        // The parser's error would quote the line, which may contain the token.
        let file: Self = toml::from_str(&text)
            .ok()
            .with_context(|| format!("{shown} does not say how to enter a mesh"))?;
        let token: Secret = file
            .join_token
            .parse()
            .map_err(|error| anyhow::anyhow!("{shown}: join-token: {error}"))?;
        Ok(MeshAccess { join_token: Some(token), ..MeshAccess::new(file.registry_url) })
    }
}

impl Observer {
    /// An observer of this mesh. It follows a restarted mesh if its access is from `mesh_file`.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses the join token.
    pub async fn new(mesh: &MeshAccess, mesh_file: Option<&Path>) -> anyhow::Result<Self> {
        let is_from_file = |path: &&Path| {
            MeshFile::read(path).is_ok_and(|said| said.registry_url == mesh.registry_url)
        };
        let mesh_file = mesh_file.filter(is_from_file).map(ToOwned::to_owned);
        let connection = Mutex::new(Arc::new(MeshConnection::new(mesh.clone()).await?));
        Ok(Self { connection, mesh_file })
    }

    fn connection(&self) -> Arc<MeshConnection> {
        Arc::clone(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the mesh file again. `None` if it is unchanged, or cannot be read.
    async fn moved(&self) -> Option<Arc<MeshConnection>> {
        let access = match MeshFile::read(self.mesh_file.as_deref()?) {
            Ok(access) => access,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the mesh's file cannot be read");
                return None;
            }
        };
        if access.registry_url == self.connection().access.registry_url {
            return None;
        }
        tracing::info!(registry = access.registry_url, "the mesh was restarted; following it");
        let moved = Arc::new(
            MeshConnection::new(access)
                .await
                .inspect_err(|error| tracing::warn!(%error, "cannot join the restarted mesh"))
                .ok()?,
        );
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&moved);
        Some(moved)
    }

    /// The instances of the recommendation service: their names and addresses.
    ///
    /// # Errors
    /// When the registry does not answer, or has none.
    pub async fn instances(&self) -> anyhow::Result<Vec<(String, SocketAddr)>> {
        self.instances_of(RECOMMENDATION).await
    }

    /// The instances of a service: their names and addresses.
    pub(super) async fn instances_of(
        &self,
        service: &str,
    ) -> anyhow::Result<Vec<(String, SocketAddr)>> {
        let listed = self.connection().registry.list(Some(service)).await;
        let snapshot = match (listed, self.mesh_file.is_some()) {
            (Err(error), true) => match self.moved().await {
                Some(connection) => connection.registry.list(Some(service)).await?,
                None => return Err(error.into()),
            },
            (listed, _) => listed?,
        };
        ensure!(!snapshot.instances.is_empty(), "no instance of {service} is registered");
        Ok(snapshot.instances.into_iter().map(|found| (found.id, found.address)).collect())
    }

    /// The scores of these spots at an instance.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn scores(&self, address: SocketAddr, spots: &[SpotId]) -> anyhow::Result<Scores> {
        let mut whole: Option<Scores> = None;
        for spots in spots.chunks(SCORES_AT_ONCE) {
            let ids: Vec<_> = spots.iter().map(ToString::to_string).collect();
            let path = format!("/internal/trend/scores?ids={}", ids.join(","));
            let mut part: Scores = self.read(RECOMMENDATION, address, &path).await?;
            if let Some(whole) = &mut whole {
                // All at the time of the first part.
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

    /// The effects at an instance.
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
                let answer: HistoryResponse = self.read(RECOMMENDATION, address, &path).await?;
                let bookmarked = answer.bookmarked.iter().map(number).collect::<Result<_, _>>()?;
                let viewed = answer.viewed.iter().map(number).collect::<Result<_, _>>()?;
                anyhow::Ok((member.clone(), History { bookmarked, viewed }))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Effects { scores, histories })
    }

    /// Calls an instance of a service.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        service: &str,
        address: SocketAddr,
        path: &str,
    ) -> anyhow::Result<T> {
        let connection = self.connection();
        let request = connection.client(service).get(format!("https://{address}{path}"));
        let shown = || format!("GET {path} at {address}");
        let response = http_client::send(request, MAX_RESPONSE_BYTES).await.with_context(shown)?;
        http_client::json_of(&response).with_context(shown)
    }
}

impl Scores {
    /// The factor by which a score decays from `time` to [`Scores::at`].
    pub fn decay(&self, time: DateTime<Utc>) -> f64 {
        let age_ms = (self.at - time).num_microseconds().unwrap_or(i64::MAX) as f64 / 1e3;
        (-age_ms / self.half_life_ms.max(1) as f64).exp2()
    }

    /// A spot's score.
    pub fn of(&self, spot: SpotId) -> f64 {
        self.scores.get(&spot).copied().unwrap_or_default()
    }
}
