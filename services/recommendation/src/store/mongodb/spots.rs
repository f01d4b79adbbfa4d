//! The replica of spots on MongoDB.
//!
//! A spot's document has its version and the generation of core's log. The larger pair wins. Every
//! write contains this condition, so that states may arrive in any order and from several replicas.
//! Another log begins a new generation: one document changes, and every earlier version is below
//! every later one.
//!
//! The document also has the number of the latest resync that had begun when the spot was last
//! mentioned. The number only grows, so that resyncs do not depend on a clock.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::future::try_join;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::Sphere2DIndexVersion;
use serde::Deserialize;

use super::connection::{Connection, Index, Statement};
use crate::app::ports::{PortError, SpotReplica, SpotState, TagCursor};
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::operation::{read, write};

const SPOTS: &str = "spots";
const LOG: &str = "core_log";
/// The id of the one document of [`LOG`].
const CURRENT: &str = "current";
/// Spots read beyond the limit, so that spots at the same distance are ordered by id.
const TIES: usize = 16;
/// Attempts to adopt a log while other replicas do so too.
const ADOPT_ATTEMPTS: usize = 10;

/// The indexes of the replica. They are created at the end of the first resync, because indexing all
/// documents at once is several times faster than one by one.
pub(super) fn indexes() -> [Index; 2] {
    [
        // Does not contain spots without a place, such as deleted ones.
        Index {
            collection: SPOTS,
            name: "by_place",
            keys: doc! { "place": "2dsphere" },
            is_sparse: false,
            sphere_version: Some(Sphere2DIndexVersion::V3),
        },
        Index {
            collection: SPOTS,
            name: "by_tag_count",
            keys: doc! { "deleted": 1, "tag_count": -1, "_id": 1 },
            is_sparse: false,
            sphere_version: None,
        },
    ]
}

pub(super) struct MongoSpots(Connection);

impl MongoSpots {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// The stored versions of these spots, by id.
    async fn versions(
        &self,
        states: impl Iterator<Item = &SpotState>,
    ) -> Result<HashMap<i64, Version>, PortError> {
        let ids: Vec<i64> = states.map(|state| id_of(state).number()).collect();
        let fields = doc! { "generation": 1, "version": 1, "swept": 1, "resync": 1 };
        let versions: Vec<Version> =
            self.0.find(SPOTS, doc! { "_id": { "$in": ids } }, fields, doc! {}, 0).await?;
        Ok(versions.into_iter().map(|version| (version.id, version)).collect())
    }

    /// Stores that spots were mentioned.
    async fn confirm(&self, ids: Vec<i64>, log: &Log) -> Result<(), PortError> {
        if ids.is_empty() {
            return Ok(());
        }
        let update = doc! { "$max": { "resync": log.resync } };
        self.0.update_all(SPOTS, doc! { "_id": { "$in": ids } }, update).await.map(drop)
    }

    async fn log(&self) -> Result<Log, PortError> {
        log(&self.0).await
    }
}

async fn log(connection: &Connection) -> Result<Log, PortError> {
    let log: Option<Log> = connection.get(LOG, doc! { "_id": CURRENT }, doc! {}).await?;
    Ok(log.unwrap_or_default())
}

/// Creates the indexes of a complete replica. An older version may have created others.
pub(super) async fn prepare(connection: &Connection) -> Result<(), PortError> {
    if log(connection).await?.is_complete {
        connection.create_indexes(&indexes()).await?;
    }
    Ok(())
}

/// Core's log as the replica knows it, and the resyncs from it.
#[derive(Default, Deserialize)]
struct Log {
    log_id: Option<String>,
    /// The number of earlier logs.
    #[serde(default)]
    generation: i64,
    /// The number of the latest resync.
    #[serde(default)]
    resync: i64,
    /// Whether a resync has ended. 0.1.0 named the stored field.
    #[serde(default, rename = "is_whole")]
    is_complete: bool,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(rename = "_id")]
    id: i64,
    version: i64,
    name: String,
    address: String,
    lat: f64,
    lng: f64,
    image_url: Option<String>,
    tags: Vec<String>,
}

/// A spot with its distance, as returned by `$geoNear`.
#[derive(Deserialize)]
struct Near {
    #[serde(flatten)]
    spot: Stored,
    distance_m: f64,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "_id")]
    id: i64,
    generation: i64,
    version: i64,
    #[serde(default)]
    swept: bool,
    #[serde(default)]
    resync: i64,
}

impl Version {
    /// Whether a state would change this document.
    fn is_below(&self, state: &SpotState, generation: i64) -> bool {
        let (known, new) = ((self.generation, self.version), (generation, version_of(state)));
        known < new || (known == new && self.swept && matches!(state, SpotState::Live(_)))
    }
}

/// What a merge has to write. Writes without effect are skipped here; a statement's condition decides about
/// the others.
struct MergePlan<'a> {
    unknown: Vec<&'a SpotState>,
    newer: Vec<&'a SpotState>,
    /// Known as they are, and not yet mentioned in the latest resync.
    confirmed: Vec<i64>,
}

impl<'a> MergePlan<'a> {
    fn new(
        states: impl IntoIterator<Item = &'a SpotState>,
        versions: &HashMap<i64, Version>,
        log: &Log,
    ) -> Self {
        let mut plan = Self { unknown: Vec::new(), newer: Vec::new(), confirmed: Vec::new() };
        for state in states {
            match versions.get(&id_of(state).number()) {
                None => plan.unknown.push(state),
                Some(known) if known.is_below(state, log.generation) => plan.newer.push(state),
                Some(known) if matches!(state, SpotState::Live(_)) && known.resync < log.resync => {
                    plan.confirmed.push(known.id);
                }
                Some(_) => {}
            }
        }
        plan
    }
}

impl TryFrom<Stored> for Spot {
    type Error = PortError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let id = SpotId::new(stored.id)
            .ok_or_else(|| PortError::failed(anyhow::anyhow!("a spot's id is below zero")))?;
        Ok(Self {
            id,
            version: u64::try_from(stored.version).unwrap_or_default(),
            name: stored.name,
            address: stored.address,
            coordinates: Coordinates { lat: stored.lat, lng: stored.lng },
            image_url: stored.image_url,
            tags: stored.tags,
        })
    }
}

#[async_trait]
impl SpotReplica for MongoSpots {
    async fn merge(&self, states: &[SpotState]) -> Result<usize, PortError> {
        write(&self.0.engine, "merge", "spots", async {
            if states.is_empty() {
                return Ok(0);
            }
            let (log, versions) = try_join(self.log(), self.versions(states.iter())).await?;
            let mut plan = MergePlan::new(states, &versions, &log);
            // An insert is much less work for the server than a conditional upsert.
            let documents: Vec<Document> =
                plan.unknown.iter().map(|state| document(state, &log)).collect();
            let inserted = self.0.insert(SPOTS, &documents).await?;
            if !inserted.refused.is_empty() {
                // Another replica has inserted them meanwhile, most often the same states.
                let refused = inserted.refused.into_iter().map(|at| plan.unknown[at]);
                let refused: Vec<&SpotState> = refused.collect();
                let versions = self.versions(refused.iter().copied()).await?;
                let again = MergePlan::new(refused, &versions, &log);
                plan.newer.extend(again.unknown);
                plan.newer.extend(again.newer);
                plan.confirmed.extend(again.confirmed);
            }
            let newer: Vec<Statement> =
                plan.newer.iter().map(|state| statement(state, &log)).collect();
            let changed = self.0.upsert_where(SPOTS, &newer);
            let (changed, ()) = try_join(changed, self.confirm(plan.confirmed, &log)).await?;
            let (updated, changed) = (changed.matched, inserted.matched + changed.matched);
            if updated < newer.len() as u64 {
                // Another replica was faster, perhaps before this resync began. Mark its spots as
                // mentioned, so that the sweep keeps them.
                let live = states.iter().filter(|state| matches!(state, SpotState::Live(_)));
                self.confirm(live.map(|state| id_of(state).number()).collect(), &log).await?;
            }
            Ok(usize::try_from(changed).unwrap_or(usize::MAX))
        })
        .await
    }

    async fn get_many(&self, ids: &[SpotId]) -> Result<HashMap<SpotId, Spot>, PortError> {
        read(&self.0.engine, "find", "spots", async {
            if ids.is_empty() {
                return Ok(HashMap::new());
            }
            let ids: Vec<i64> = ids.iter().map(|id| id.number()).collect();
            let query = doc! { "_id": { "$in": ids }, "deleted": false };
            let found: Vec<Stored> = self.0.find(SPOTS, query, doc! {}, doc! {}, 0).await?;
            found.into_iter().map(|stored| Spot::try_from(stored).map(|s| (s.id, s))).collect()
        })
        .await
    }

    async fn near(
        &self,
        coordinates: Coordinates,
        tags: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        read(&self.0.engine, "near", "spots", async {
            let Some(point) = point(coordinates).filter(|_| limit > 0) else {
                return Ok(Vec::new());
            };
            let mut query = doc! { "deleted": false };
            if let Some(tags) = tags {
                query.insert("tags", doc! { "$in": tags.to_vec() });
            }
            let pipeline = vec![
                doc! { "$geoNear": {
                    "near": point,
                    "key": "place",
                    "spherical": true,
                    "distanceField": "distance_m",
                    "query": query,
                } },
                doc! { "$limit": integer(limit.saturating_add(TIES)) },
            ];
            let mut found: Vec<Near> = self.0.aggregate(SPOTS, pipeline).await?;
            found.sort_by(|a, b| {
                a.distance_m.total_cmp(&b.distance_m).then_with(|| a.spot.id.cmp(&b.spot.id))
            });
            found.truncate(limit);
            found.into_iter().map(|near| Spot::try_from(near.spot)).collect()
        })
        .await
    }

    async fn most_tagged(
        &self,
        after: Option<TagCursor>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        read(&self.0.engine, "most tagged", "spots", async {
            if limit == 0 {
                return Ok(Vec::new());
            }
            let mut query = doc! { "deleted": false };
            if let Some(after) = after {
                let tags = integer(after.tags);
                query.insert(
                    "$or",
                    vec![
                        doc! { "tag_count": { "$lt": tags } },
                        doc! { "tag_count": tags, "_id": { "$gt": after.id.number() } },
                    ],
                );
            }
            let sort = doc! { "tag_count": -1, "_id": 1 };
            let found: Vec<Stored> =
                self.0.find(SPOTS, query, doc! {}, sort, integer(limit)).await?;
            found.into_iter().map(Spot::try_from).collect()
        })
        .await
    }

    async fn is_complete(&self) -> Result<bool, PortError> {
        read(&self.0.engine, "find", "log", async { Ok(self.log().await?.is_complete) }).await
    }

    async fn log_id(&self) -> Result<Option<String>, PortError> {
        read(&self.0.engine, "find", "log", async { Ok(self.log().await?.log_id) }).await
    }

    async fn adopt_log(&self, log_id: &str) -> Result<(), PortError> {
        write(&self.0.engine, "adopt", "log", async {
            for _ in 0..ADOPT_ATTEMPTS {
                let log = self.log().await?;
                let adopted = match &log.log_id {
                    Some(known) if known == log_id => return Ok(()),
                    Some(_) => {
                        let next = Statement {
                            query: doc! { "_id": CURRENT, "generation": log.generation },
                            update: doc! { "$set": {
                                "log_id": log_id,
                                "generation": log.generation.saturating_add(1),
                            } },
                        };
                        self.0.update(LOG, &[next]).await?
                    }
                    None => {
                        let first = Statement {
                            query: doc! { "_id": CURRENT, "log_id": { "$exists": false } },
                            update: doc! { "$set": { "log_id": log_id, "generation": 0_i64 } },
                        };
                        self.0.upsert_where(LOG, &[first]).await?.matched
                    }
                };
                if adopted > 0 {
                    return Ok(());
                }
            }
            Err(PortError::failed(anyhow::anyhow!("replicas disagree about core's log")))
        })
        .await
    }

    async fn begin_resync(&self) -> Result<u64, PortError> {
        write(&self.0.engine, "begin", "resync", async {
            let number = self.0.increment(LOG, CURRENT, "resync").await?;
            Ok(number.unsigned_abs())
        })
        .await
    }

    async fn sweep(&self, resync: u64) -> Result<u64, PortError> {
        write(&self.0.engine, "sweep", "spots", async {
            let log = self.log().await?;
            let query = doc! { "deleted": false, "$or": [
                { "resync": { "$lt": stored(resync) } },
                // A spot that the current log does not mention does not exist, whatever its resync.
                { "generation": { "$lt": log.generation } },
            ] };
            let mut set = deleted_fields();
            set.insert("swept", true);
            let update = doc! { "$set": set, "$unset": { "place": "" } };
            let removed = self.0.update_all(SPOTS, query, update).await?;
            self.0.create_indexes(&indexes()).await?;
            let complete = Statement {
                query: doc! { "_id": CURRENT },
                update: doc! { "$set": { "is_whole": true } },
            };
            self.0.update(LOG, &[complete]).await?;
            Ok(removed)
        })
        .await
    }
}

fn id_of(state: &SpotState) -> SpotId {
    match state {
        SpotState::Live(spot) => spot.id,
        SpotState::Deleted { id, .. } => *id,
    }
}

fn version_of(state: &SpotState) -> i64 {
    let (SpotState::Live(Spot { version, .. }) | SpotState::Deleted { version, .. }) = state;
    stored(*version)
}

/// A number as BSON's signed integer, saturating.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The write of a state, if it is newer than the document.
fn statement(state: &SpotState, log: &Log) -> Statement {
    let (generation, version) = (log.generation, version_of(state));
    let mut below = vec![
        doc! { "generation": { "$lt": generation } },
        doc! { "generation": generation, "version": { "$lt": version } },
    ];
    if matches!(state, SpotState::Live(_)) {
        // Core still has a swept spot.
        below.push(doc! { "generation": generation, "version": version, "swept": true });
    }
    Statement {
        query: doc! { "_id": id_of(state).number(), "$or": below },
        update: update_of(state, log),
    }
}

fn update_of(state: &SpotState, log: &Log) -> Document {
    let (set, mentioned) = (fields(state, log), doc! { "resync": log.resync });
    if set.contains_key("place") {
        doc! { "$set": set, "$max": mentioned }
    } else {
        doc! { "$set": set, "$max": mentioned, "$unset": { "place": "" } }
    }
}

/// A state as a new document.
fn document(state: &SpotState, log: &Log) -> Document {
    let mut document = doc! { "_id": id_of(state).number(), "resync": log.resync };
    document.extend(fields(state, log));
    document
}

fn fields(state: &SpotState, log: &Log) -> Document {
    let mut set = match state {
        SpotState::Live(spot) => doc! {
            "deleted": false,
            "name": &spot.name,
            "address": &spot.address,
            "lat": spot.coordinates.lat,
            "lng": spot.coordinates.lng,
            "image_url": spot.image_url.clone().map_or(Bson::Null, Bson::from),
            "tags": spot.tags.clone(),
            "tag_count": integer(spot.tags.len()),
        },
        SpotState::Deleted { .. } => deleted_fields(),
    };
    set.insert("generation", log.generation);
    set.insert("version", version_of(state));
    set.insert("swept", false);
    if let SpotState::Live(spot) = state
        && let Some(coordinates) = point(spot.coordinates)
    {
        set.insert("place", coordinates);
    }
    set
}

/// The fields of a deleted spot besides its version.
fn deleted_fields() -> Document {
    doc! {
        "deleted": true,
        "name": "",
        "address": "",
        "lat": 0.0,
        "lng": 0.0,
        "image_url": Bson::Null,
        "tags": Vec::<String>::new(),
        "tag_count": 0_i64,
    }
}

/// A place for the geographic index, or `None` if it is not on the Earth: the index would refuse the
/// document and with it the rest of the command.
fn point(coordinates: Coordinates) -> Option<Document> {
    let is_on_earth =
        (-90.0..=90.0).contains(&coordinates.lat) && (-180.0..=180.0).contains(&coordinates.lng);
    is_on_earth.then(|| doc! { "type": "Point", "coordinates": [coordinates.lng, coordinates.lat] })
}

fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
