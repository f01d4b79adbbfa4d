//! Histories on MongoDB.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::try_join;
use mongodb::bson::{Bson, doc};
use serde::Deserialize;

use super::collections::{DEGREES, DELETED, HOLDERS, MEMBERS, STATE};
use super::connection::{Connection, Index, Statement};
use super::member::Item;
use super::recorder::{Change, Changed, Recorder};
use crate::app::ingest::MARGIN;
use crate::app::ports::{
    HistoryEvent, HistoryOutcome, HistoryStore, Interactions, PortError, Profile,
};
use crate::domain::interaction::{ChangeOrder, Kind, Remembered};
use crate::domain::similarity::{Holder, Neighbourhood};
use crate::domain::spot::SpotId;
use crate::operation::{read, write};
use crate::store::HistoryRules;
use crate::store::interaction::Interaction;

/// Members pruned in one batch.
const PRUNE_BATCH: i64 = 500;
/// The maximum number of records of each kind that a pass removes. A wrong clock that passes its
/// check does not empty the histories at once.
const PRUNED_PER_PASS: u64 = 200_000;

/// The indexes of the histories.
pub(super) fn indexes() -> [Index; 4] {
    [
        Index {
            collection: MEMBERS,
            name: "by_oldest_dead",
            keys: doc! { "oldest_dead_at": 1 },
            is_sparse: true,
            sphere_version: None,
        },
        Index {
            collection: MEMBERS,
            name: "by_forgotten_until",
            keys: doc! { "forgotten_until": 1 },
            is_sparse: true,
            sphere_version: None,
        },
        Index {
            collection: HOLDERS,
            name: "by_spot",
            keys: doc! { "spot": 1, "live": 1, "at": -1, "member": 1 },
            is_sparse: false,
            sphere_version: None,
        },
        Index {
            collection: HOLDERS,
            name: "by_gone_at",
            keys: doc! { "gone_at": 1 },
            is_sparse: true,
            sphere_version: None,
        },
    ]
}

pub(super) struct MongoHistories {
    connection: Connection,
    recorder: Recorder,
    rules: HistoryRules,
}

impl MongoHistories {
    pub(super) fn new(connection: Connection, recorder: Recorder, rules: HistoryRules) -> Self {
        Self { connection, recorder, rules }
    }

    /// Deletes holders that are not live and old. They are kept so long because a late effect could
    /// otherwise make them live again.
    async fn prune_holders(&self, dead_before: i64) -> Result<(), PortError> {
        let gone = doc! { "gone_at": { "$lt": dead_before } };
        let mut removed = 0;
        loop {
            let found: Vec<Keyed> = self
                .connection
                .find(HOLDERS, gone.clone(), doc! { "_id": 1 }, doc! {}, PRUNE_BATCH)
                .await?;
            if found.is_empty() {
                return Ok(());
            }
            let mut batch = gone.clone();
            let ids: Vec<_> = found.into_iter().map(|holder| holder.id).collect();
            batch.insert("_id", doc! { "$in": ids });
            removed += self.connection.delete_all(HOLDERS, batch).await?;
            if removed >= PRUNED_PER_PASS {
                return Ok(());
            }
        }
    }

    /// Prunes the members that a query finds, until there is nothing left to prune. Returns the
    /// number of removed records.
    async fn prune_members(
        &self,
        query: mongodb::bson::Document,
        dead_before: i64,
        now: i64,
    ) -> Result<u64, PortError> {
        let mut removed = 0;
        loop {
            let found: Vec<Named> = self
                .connection
                .find(MEMBERS, query.clone(), doc! { "_id": 1 }, doc! {}, PRUNE_BATCH)
                .await?;
            let ids: Vec<&str> = found.iter().map(|member| member.id.as_str()).collect();
            let pruned = found.iter().map(|member| {
                self.recorder.submit(Change::Prune(member.id.clone(), dead_before, now))
            });
            let mut progress = 0;
            for pruned in futures::future::join_all(pruned).await {
                if let Changed::Pruned(count) = pruned? {
                    progress += count;
                }
            }
            let empty = doc! {
                "_id": { "$in": ids },
                "items": { "$size": 0 },
                "pending": { "$size": 0 },
                "forgotten_until": { "$exists": false },
            };
            self.delete(empty).await?;
            removed += progress;
            if progress == 0 || removed >= PRUNED_PER_PASS {
                return Ok(removed);
            }
        }
    }
}

impl MongoHistories {
    async fn degrees_of(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError> {
        let ids: Vec<i64> = spots.iter().map(|spot| spot.number()).collect();
        let query = doc! { "_id": { "$in": ids }, "degree": { "$gt": 0 } };
        let found: Vec<Degree> =
            self.connection.find(DEGREES, query, doc! { "degree": 1 }, doc! {}, 0).await?;
        Ok(found
            .into_iter()
            .filter_map(|found| Some((SpotId::new(found.spot)?, u64::try_from(found.degree).ok()?)))
            .collect())
    }

    /// Deletes empty members. Their highest `seq` is stored first, because a later member with the
    /// same id must continue above it: holders are compared by `seq`.
    async fn delete(&self, empty: mongodb::bson::Document) -> Result<(), PortError> {
        let fields = doc! { "_id": 1, "seq": 1 };
        let found: Vec<Numbered> =
            self.connection.find(MEMBERS, empty.clone(), fields, doc! {}, 0).await?;
        let Some(highest) = found.iter().map(|member| member.seq).max() else {
            return Ok(());
        };
        let note = Statement {
            query: doc! { "_id": DELETED },
            update: doc! { "$max": { "seq": highest } },
        };
        self.connection.upsert_where(STATE, &[note]).await?;
        // A member that has changed since has a higher `seq` and is not deleted.
        let mut unchanged = empty;
        unchanged.insert("seq", doc! { "$lte": highest });
        self.connection.delete_all(MEMBERS, unchanged).await?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Numbered {
    seq: i64,
}

#[derive(Deserialize)]
struct Keyed {
    #[serde(rename = "_id")]
    id: Bson,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_id")]
    id: String,
}

#[derive(Deserialize)]
struct History {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Holding {
    member: String,
}

#[derive(Deserialize)]
struct Known {
    #[serde(rename = "_id")]
    member: String,
    degree: i64,
    recent: Vec<i64>,
}

#[derive(Deserialize)]
struct Degree {
    #[serde(rename = "_id")]
    spot: i64,
    degree: i64,
}

#[async_trait]
impl HistoryStore for MongoHistories {
    async fn record(&self, event: &HistoryEvent) -> Result<HistoryOutcome, PortError> {
        write(&self.connection.engine, "record", "histories", async {
            match self.recorder.submit(Change::Record(event.clone())).await? {
                Changed::Recorded(kept) => Ok(kept),
                other => Err(unexpected(&other)),
            }
        })
        .await
    }

    async fn forget(
        &self,
        member: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        write(&self.connection.engine, "forget", "histories", async {
            let until = remember_until.timestamp_micros();
            self.recorder.submit(Change::Forget(member.to_owned(), order.into(), until)).await?;
            Ok(())
        })
        .await
    }

    async fn profile(&self, member: &str, limit: usize) -> Result<Profile, PortError> {
        read(&self.connection.engine, "profile", "histories", async {
            let query = doc! { "_id": member };
            let history: Option<History> =
                self.connection.get(MEMBERS, query, doc! { "items": 1 }).await?;
            let mut live: Vec<_> = history
                .map_or_else(Vec::new, |history| history.items)
                .into_iter()
                .map(Item::parts)
                .filter(|(_, interaction)| interaction.is_live())
                .filter_map(|(spot, interaction)| Some((SpotId::new(spot)?, interaction)))
                .collect();
            live.sort_unstable_by(|(spot, a), (other, b)| {
                b.last_at().cmp(&a.last_at()).then(spot.cmp(other))
            });
            let recent = live.iter().take(limit).map(|(spot, interaction)| {
                Ok(Remembered {
                    spot: *spot,
                    kind: if interaction.bookmarked { Kind::Bookmark } else { Kind::View },
                    last_at: DateTime::from_timestamp_micros(interaction.last_at()).ok_or_else(
                        || PortError::failed(anyhow::anyhow!("an interaction has an invalid time")),
                    )?,
                })
            });
            Ok(Profile {
                recent: recent.collect::<Result<_, PortError>>()?,
                known: live.iter().map(|(spot, _)| *spot).collect(),
            })
        })
        .await
    }

    async fn interactions(&self, member: &str, limit: usize) -> Result<Interactions, PortError> {
        read(&self.connection.engine, "interactions", "histories", async {
            let query = doc! { "_id": member };
            let history: Option<History> =
                self.connection.get(MEMBERS, query, doc! { "items": 1 }).await?;
            let mut items: Vec<_> = history
                .map_or_else(Vec::new, |history| history.items)
                .into_iter()
                .map(Item::parts)
                .collect();
            items.sort_unstable_by_key(|(spot, _)| *spot);
            let spots = |matches: fn(&Interaction) -> bool| {
                let matching = items.iter().filter(|(_, interaction)| matches(interaction));
                matching.filter_map(|(spot, _)| SpotId::new(*spot)).take(limit).collect()
            };
            Ok(Interactions {
                bookmarked: spots(|interaction| interaction.bookmarked),
                viewed: spots(|interaction| interaction.viewed_at.is_some()),
            })
        })
        .await
    }

    async fn neighbourhood(
        &self,
        spot: SpotId,
        holders: usize,
    ) -> Result<Neighbourhood, PortError> {
        read(&self.connection.engine, "neighbourhood", "histories", async {
            if holders == 0 {
                return Ok(Neighbourhood::default());
            }
            let holding = self.connection.find::<Holding>(
                HOLDERS,
                doc! { "spot": spot.number(), "live": true },
                doc! { "member": 1 },
                doc! { "at": -1, "member": 1 },
                i64::try_from(holders).unwrap_or(i64::MAX),
            );
            let one = [spot];
            let (holding, degrees) = try_join(holding, self.degrees_of(&one)).await?;
            let ids: Vec<&str> = holding.iter().map(|holding| holding.member.as_str()).collect();
            if ids.is_empty() {
                return Ok(Neighbourhood::default());
            }
            let known: Vec<Known> = self
                .connection
                .find(
                    MEMBERS,
                    doc! { "_id": { "$in": ids } },
                    doc! { "degree": 1, "recent": 1 },
                    doc! {},
                    0,
                )
                .await?;
            let mut known: HashMap<String, Known> =
                known.into_iter().map(|known| (known.member.clone(), known)).collect();
            let holders = holding
                .iter()
                // Skips members who are being forgotten.
                .filter_map(|holding| {
                    known.remove(&holding.member).filter(|known| known.degree > 0)
                })
                .map(|known| Holder {
                    degree: u64::try_from(known.degree).unwrap_or_default(),
                    recent: known.recent.into_iter().filter_map(SpotId::new).collect(),
                })
                .collect();
            Ok(Neighbourhood { degree: degrees.get(&spot).copied().unwrap_or_default(), holders })
        })
        .await
    }

    async fn degrees(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError> {
        read(&self.connection.engine, "degrees", "histories", self.degrees_of(spots)).await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        write(&self.connection.engine, "prune", "histories", async {
            let needed = i64::try_from(self.rules.max_age.saturating_add(MARGIN).as_micros())
                .unwrap_or(i64::MAX);
            let now = now.timestamp_micros();
            let dead_before = now.saturating_sub(needed);
            let dead = doc! { "oldest_dead_at": { "$lt": dead_before } };
            let forgotten = doc! { "forgotten_until": { "$lt": now } };
            let removed = self.prune_members(dead, dead_before, now).await?
                + self.prune_members(forgotten, dead_before, now).await?;
            self.prune_holders(dead_before).await?;
            Ok(removed)
        })
        .await
    }
}

fn unexpected(outcome: &Changed) -> PortError {
    PortError::failed(anyhow::anyhow!("the recorder returned an unexpected outcome: {outcome:?}"))
}
